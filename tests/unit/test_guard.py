from dataclasses import replace

import numpy as np
import pytest

from daemon.fleet import Fleet, Lease, Mark
from daemon.guard import Guarded, judge
from daemon.model import Entity, Frame, Frames, Reason, Step, Verb
from daemon.policy import Budgets, Maintenance, Mode, Policy, PoolPolicy
from daemon.topology import Topology

NODES = tuple(f"n{i}" for i in range(8))
ENGINES = tuple(f"e{i}" for i in range(8))
FLEET_OF_8 = Topology(
    nodes=NODES,
    gpus_on={n: tuple(f"{n}/gpu{k}" for k in range(8)) for n in NODES},
    engines_on={n: (e,) for n, e in zip(NODES, ENGINES, strict=True)},
    engine_of={f"{n}/gpu{k}": e for n, e in zip(NODES, ENGINES, strict=True) for k in range(8)},
    gpus_of={e: tuple(f"{n}/gpu{k}" for k in range(8)) for n, e in zip(NODES, ENGINES, strict=True)},
    node_of_engine=dict(zip(ENGINES, NODES, strict=True)),
    pool_of=dict.fromkeys(ENGINES, "chat"),
    place={n: {"rack": f"r{i // 4}", "leaf": "l0"} for i, n in enumerate(NODES)},
    node_of_target={f"{n}:9400": n for n in NODES},
)
AUTO = Policy(
    mode=Mode.AUTO, pools=(PoolPolicy("chat"),), able=frozenset(Verb), budgets=Budgets(isolated_share_max=0.5)
)


def frames(silent_s: float = 0.0, dead: frozenset[str] = frozenset()) -> Frames:
    running = np.array([[np.nan if e in dead else 3.0] for e in ENGINES])
    engine = Frame(1000.0, "engine", ENGINES, ("running",), running, np.zeros(8))
    targets = tuple(f"{n}:9400" for n in NODES)
    target = Frame(1000.0, "target", targets, ("silent_s",), np.full((8, 1), silent_s), np.zeros(8))
    return Frames(1000.0, {"engine": engine, "target": target})


def world(policy: Policy = AUTO, fleet: Fleet | None = None, **more: object) -> Guarded:
    given: dict[str, object] = {"frames": frames()} | more
    return Guarded(at=1000.0, topology=FLEET_OF_8, fleet=fleet or Fleet(), policy=policy, **given)  # type: ignore[arg-type]


def isolate(node: str, id: str = "s1") -> Step:
    return Step(id, Verb.ISOLATE, Entity("node", node), 1.0, "gpu_lost", pool="chat", gpus=8.0)


def weigh(engine: str, weight: float = 0.0) -> Step:
    return Step("s2", Verb.REROUTE, Entity("engine", engine), weight, "sick", pool="chat")


def scale(amount: int, standing: int = 8) -> Step:
    return Step(
        "s3",
        Verb.SCALE,
        Entity("pool", "chat"),
        float(amount),
        "load",
        args=(("from", str(standing)),),
        pool="chat",
    )


def reason(step: Step, now: Guarded) -> Reason:
    return judge(step, now).reason


def test_a_sick_node_may_be_isolated_in_auto():
    verdict = judge(isolate("n0"), world())

    assert verdict.allowed
    assert verdict.reason is Reason.ALLOWED


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.OBSERVE, Reason.MODE_OBSERVE),
        (Mode.ADVISE, Reason.MODE_ADVISE),
        (Mode.APPROVE, Reason.AWAITS_APPROVAL),
        (Mode.AUTO, Reason.ALLOWED),
    ],
)
def test_the_mode_speaks_last(mode: Mode, expected: Reason):
    assert reason(isolate("n0"), world(replace(AUTO, mode=mode))) is expected


def test_an_approved_step_runs_and_only_that_one():
    policy = replace(AUTO, mode=Mode.APPROVE)
    now = world(policy, approved=frozenset({"s1"}))

    assert reason(isolate("n0", "s1"), now) is Reason.APPROVED
    assert reason(isolate("n0", "s9"), now) is Reason.AWAITS_APPROVAL


def test_a_rejected_step_stays_refused():
    assert reason(isolate("n0"), world(rejected=frozenset({"s1"}))) is Reason.REJECTED


def test_the_cluster_budget_counts_what_is_isolated_and_what_is_on_its_way():
    policy = replace(AUTO, budgets=Budgets(isolated_share_max=0.25, isolated_pool_share_max=1.0))
    fleet = Fleet(isolated={Entity("node", "n0"): Mark(0.0, "i1")})
    now = world(policy, fleet)

    assert reason(isolate("n5"), now) is Reason.ALLOWED
    assert (
        reason(isolate("n5"), world(policy, fleet, in_flight=(isolate("n4", "s0"),))) is Reason.BUDGET_CLUSTER
    )


def test_the_share_limit_leaves_one_in_a_small_cluster():
    policy = replace(AUTO, budgets=Budgets(isolated_share_max=0.01))

    assert reason(isolate("n0"), world(policy)) is Reason.ALLOWED


def test_a_rack_is_never_emptied():
    policy = replace(
        AUTO, budgets=Budgets(isolated_share_max=1.0, isolated_nodes_max=8, isolated_domain_max=1)
    )
    fleet = Fleet(isolated={Entity("node", "n1"): Mark(0.0, "i1")})

    assert reason(isolate("n2"), world(policy, fleet)) is Reason.BUDGET_DOMAIN
    assert reason(isolate("n6"), world(policy, fleet)) is Reason.ALLOWED


def test_a_pool_keeps_most_of_its_replicas():
    policy = replace(
        AUTO, budgets=Budgets(isolated_share_max=1.0, isolated_nodes_max=8, isolated_pool_share_max=0.125)
    )
    fleet = Fleet(isolated={Entity("node", "n1"): Mark(0.0, "i1")})

    assert reason(isolate("n6"), world(policy, fleet)) is Reason.BUDGET_POOL


def test_isolations_are_limited_by_the_hour():
    fleet = Fleet(history=[(900.0, "isolate", "chat")] * 4)

    assert reason(isolate("n0"), world(fleet=fleet)) is Reason.BUDGET_RATE


def test_the_last_replica_that_serves_is_never_cut_off_but_a_dead_one_may_be():
    others = frozenset(ENGINES[1:])

    assert reason(weigh("e0"), world(frames=frames(dead=others))) is Reason.LAST_REPLICAS
    assert reason(weigh("e1"), world(frames=frames(dead=others))) is Reason.ALLOWED


def test_two_cuts_in_one_tick_cannot_empty_a_pool():
    now = world(frames=frames(dead=frozenset(ENGINES[2:])))
    first = judge(weigh("e0"), now)
    now.tentative.append(first.step)

    assert first.allowed
    assert reason(weigh("e1"), now) is Reason.LAST_REPLICAS


def test_stale_telemetry_takes_nothing_away_but_may_grow_and_give_back():
    stale = frames(silent_s=500.0)

    assert reason(isolate("n0"), world(frames=stale)) is Reason.STALE_DATA
    assert reason(scale(6), world(frames=stale)) is Reason.STALE_DATA
    assert reason(scale(9), world(frames=stale)) is Reason.ALLOWED
    release = replace(isolate("n0"), verb=Verb.RELEASE)
    assert reason(release, world(frames=stale)) is Reason.ALLOWED


def test_maintenance_holds_back_isolation_in_its_scope_and_never_a_release():
    window = Maintenance(0.0, 2000.0, Entity("rack", "r0"), "new switch")
    policy = replace(AUTO, maintenance=(window,))

    verdict = judge(isolate("n0"), world(policy))

    assert (verdict.reason, verdict.detail) == (Reason.MAINTENANCE, "new switch")
    assert reason(isolate("n5"), world(policy)) is Reason.ALLOWED
    assert reason(replace(isolate("n0"), verb=Verb.RELEASE), world(policy)) is Reason.ALLOWED


def test_pause_stops_everything_but_messages():
    now = world(paused_until=2000.0)
    page = Step("s4", Verb.NOTIFY, Entity("incident", "i1"), 1.0, "firing")

    assert reason(isolate("n0"), now) is Reason.PAUSED
    assert reason(page, now) is Reason.ALLOWED


def test_nothing_is_changed_that_cannot_be_written_down():
    assert reason(isolate("n0"), world(can_journal=False)) is Reason.NO_JOURNAL


def test_a_failed_step_waits_before_it_is_tried_again():
    failed = {(Verb.ISOLATE, Entity("node", "n0")): 900.0}

    assert reason(isolate("n0"), world(failed_at=failed)) is Reason.COOL_DOWN


def test_one_step_at_a_time_on_one_target():
    assert reason(isolate("n0", "s2"), world(in_flight=(isolate("n0", "s1"),))) is Reason.IN_FLIGHT


def test_a_pool_nobody_configured_is_never_scaled():
    assert reason(scale(9), world(replace(AUTO, pools=()))) is Reason.UNKNOWN_POOL


def test_traffic_moves_slowly_unless_it_leaves_a_sick_replica():
    fleet = Fleet(weighed={"e1": 990.0, "e2": 990.0})

    assert reason(weigh("e0", 0.5), world(fleet=fleet)) is Reason.BUDGET_RATE
    assert reason(weigh("e0", 0.0), world(fleet=fleet)) is Reason.ALLOWED


def test_no_more_than_the_agreed_share_is_lent():
    fleet = Fleet(leases={n: Lease(0.0, 9000.0, 8.0) for n in NODES[:4]})
    lend = Step("s5", Verb.LEND, Entity("node", "n7"), 8.0, "idle", until=9000.0, gpus=8.0)

    assert reason(lend, world(fleet=fleet)) is Reason.BUDGET_CLUSTER
    assert reason(lend, world()) is Reason.ALLOWED


def test_a_verb_without_a_backend_says_so_once_it_would_be_carried_out():
    bare = replace(AUTO, able=frozenset())

    assert reason(isolate("n0"), world(bare)) is Reason.NO_BACKEND
    assert reason(isolate("n0"), world(replace(bare, mode=Mode.OBSERVE))) is Reason.MODE_OBSERVE
