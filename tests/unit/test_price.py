"""What it costs to take a sick part out, and whether it goes at once, after a spare, or in a quieter hour."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_frames import frame, frames

from daemon import plan, replica, tails
from daemon.fleet import Fleet, Mark
from daemon.guard import Guarded, judge
from daemon.model import Entity, Evidence, Finding, Incident, Outcome, Reason, Result, Severity, Step, Verb
from daemon.outlook import Outlook, PoolOutlook
from daemon.policy import Budgets, Mode, Policy, PoolPolicy
from daemon.price import Price, prices
from daemon.resize import Memory
from daemon.situation import Situation
from daemon.topology import Topology

HOUR = 3600.0
AT = 1_780_272_000.0 + 10 * HOUR
"""A Monday, 10:00 UTC."""
NODES = tuple(f"n{k}" for k in range(5))
ENGINES = {f"e{k}": f"n{k}" for k in range(4)}
SICK = Entity("gpu", "n1/gpu2")
POOL = PoolPolicy("chat", replicas_min=2, replicas_max=6, gpus_per_replica=4, cold_start_s=120.0)
AUTO = Policy(
    mode=Mode.AUTO,
    pools=(POOL,),
    budgets=Budgets(isolated_share_max=0.5, isolated_pool_share_max=0.5),
    able=frozenset(v for v in Verb if v is not Verb.NOTIFY),
)
TOPOLOGY = Topology(
    nodes=NODES,
    gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(4)) for n in NODES},
    gpus_of={e: tuple(f"{n}/gpu{g}" for g in range(4)) for e, n in ENGINES.items()},
    engine_of={f"{n}/gpu{g}": e for e, n in ENGINES.items() for g in range(4)},
    engines_on={n: (e,) for e, n in ENGINES.items()},
    pool_of=dict.fromkeys(ENGINES, "chat"),
)


def learnt(per_s: float, full_per_s: float = 2.0) -> replica.Learnt:
    """A pool that gets `per_s` requests a second and whose replicas carry `full_per_s` each in time."""
    known = replica.Learnt(capacity=10.0, demand=per_s * 5.0, stay_s=5.0, work=1.0, work_s=7200.0, stood=4)
    known.tails = tails.Tails(unit=full_per_s)
    for percent in range(5, 140, 3):
        tails.note(known.tails, full_per_s * percent / 100, 5000.0, 0.001 if percent < 98 else 0.4)
    tails.settle(known.tails, 0.0)
    known.pace.fast = known.pace.slow = per_s
    known.needs = [(AT - 1200.0, 4)]
    return known


def outlook(*needed: float) -> Outlook:
    """Replicas of chat needed in each hour from now on, all paths alike."""
    hours = np.tile(np.array(needed or (math.nan,)), (10, 1))
    pools = {"chat": PoolOutlook(hours, 4, 4.0)} if needed else {}
    return Outlook(AT, HOUR, {}, 20.0, AT, pools=pools)


def situation(
    *, ahead: Outlook | None = None, fleet: Fleet | None = None, policy: Policy = AUTO, kind: str = "gpu_slow"
) -> Situation:
    claim = Finding(AT - 1000.0, "straggler", SICK, kind, 0.9, Severity.WARNING)
    incident = Incident("i1", kind, SICK, AT - 700.0, AT, Severity.WARNING, (claim,))
    shown = frames(
        AT,
        frame("engine", AT, {e: {"running": 5.0} for e in ENGINES}),
        frame("gpu", AT, {}),
        frame("node", AT, {n: {"clock_s": AT} for n in NODES}),
        frame("target", AT, {}),
        frame("pool", AT, {"chat": dict.fromkeys(("replicas", "ready"), 4.0) | ROW}),
    )
    return Situation(AT, shown, TOPOLOGY, (incident,), fleet or Fleet(), {}, ahead or outlook(), policy)


ROW = {
    "concurrency": 20.0, "running": 20.0, "waiting": 0.0, "over_slo_ratio": 0.0, "lb_sessions_per_s": 4.0,
    "requests_done_per_s": 4.0,
}  # fmt: skip


def price(per_s: float, now: Situation) -> Price:
    (found,) = prices(SICK, now.incidents[0].opened, now, {"chat": learnt(per_s)})
    return found


def isolation(now: Situation, per_s: float) -> Step:
    memory = Memory({"chat": learnt(per_s)})
    (step,) = [s for s in plan.propose(now, memory) if s.verb is Verb.ISOLATE]
    return step


def test_where_the_others_bear_it_the_sick_part_goes_at_once():
    found = price(3.0, situation())

    assert found.wait == ""
    assert (found.replicas, found.of) == (1.0, 4.0)
    assert found.after < 0.01


def test_where_the_others_do_not_bear_it_a_spare_comes_first():
    found = price(5.4, situation())

    assert found.wait == "spare"
    assert found.late < 0.01 < found.after
    assert "1 of 4 replicas of chat" in found.text
    assert "until a replica more is ready" in found.text


def test_where_no_spare_can_start_it_waits_for_a_quieter_hour():
    full = replace(AUTO, pools=(replace(POOL, replicas_max=4),))

    found = price(5.4, situation(policy=full, ahead=outlook(4, 5, 5, 4, 3, 2, 3)))

    assert found.wait == "valley"
    assert found.until == AT + 4 * HOUR
    assert (found.short, found.short_at) == (2.0, AT + HOUR)
    assert "about Mon 14:00 UTC" in found.text


def test_the_present_hour_is_not_the_quiet_one_though_it_was_forecast_so():
    """A burst makes now dear; "waits until about now" would say nothing."""
    full = replace(AUTO, pools=(replace(POOL, replicas_max=4),))

    found = price(5.4, situation(policy=full, ahead=outlook(2, 5, 5, 3)))

    assert (found.wait, found.until) == ("valley", AT + 3 * HOUR)


def test_without_spare_and_quiet_hour_a_person_decides():
    full = replace(AUTO, pools=(replace(POOL, replicas_max=4),))

    assert price(5.4, situation(policy=full, ahead=outlook(4, 5, 5))).wait == "person"
    assert price(5.4, situation(policy=full)).wait == "person"


def test_a_spare_that_does_not_come_is_not_waited_for_for_ever():
    now = situation(ahead=outlook(4, 4, 2))
    late = now.at - 2.0 * POOL.cold_start_s - 901.0

    (found,) = prices(SICK, late, now, {"chat": learnt(5.4)})

    assert found.wait == "valley"


def test_a_spare_is_only_counted_on_where_pools_grow_by_themselves():
    by_hand = replace(AUTO, modes={Verb.SCALE: Mode.APPROVE})

    assert price(5.4, situation(policy=by_hand)).wait == "person"


def test_a_replica_at_a_quarter_of_its_weight_costs_a_quarter():
    found = price(6.0, situation(fleet=Fleet(weights={"e1": 0.25})))

    assert (found.replicas, found.of) == (0.25, 3.25)


def test_what_gets_no_requests_any_more_costs_nothing():
    now = situation(fleet=Fleet(weights={"e1": 0.0}))

    assert prices(SICK, AT - 700.0, now, {"chat": learnt(5.4)}) == []


def test_before_lateness_is_known_room_says_it_and_before_that_nothing_is_claimed():
    young = replica.Learnt(capacity=10.0, demand=35.0)
    new = replica.Learnt()

    (roomy,) = prices(SICK, AT, situation(), {"chat": young})
    (unknown,) = prices(SICK, AT, situation(), {"chat": new})

    assert roomy.wait == "spare"
    assert roomy.load == pytest.approx(35.0 / 30.0)
    assert unknown.wait == ""
    assert "not known yet" in unknown.text


# -- what planning and the guard make of it ------------------------------------------------------------------


def test_the_step_says_its_price_and_the_guard_names_why_it_waits():
    now = situation()
    step = isolation(now, 5.4)
    world = Guarded(now.at, now.frames, now.topology, now.fleet, now.policy)

    verdict = judge(replace(step, id="s1"), world)
    approved = judge(replace(step, id="s1"), replace(world, approved=frozenset({"s1"})))

    assert "1 of 4 replicas of chat" in step.expected
    assert verdict.reason is Reason.WAITS_FOR_SPARE
    assert verdict.detail == step.arg("price")
    assert approved.allowed


def test_while_an_isolation_waits_the_pool_gets_the_replica_it_waits_for():
    wanted = [
        next((s.amount for s in plan.propose(situation(kind=kind), Memory({"chat": learnt(5.4)})) if s.verb is Verb.SCALE), 4.0)
        for kind in ("gpu_slow", "capacity_short")
    ]  # fmt: skip

    assert wanted[0] == wanted[1] + 1


def test_the_replica_it_waits_for_is_asked_for_once_and_not_every_tick():
    fleet = Fleet()
    order = Step("s1", Verb.SCALE, Entity("pool", "chat"), 5.0, "", args=(("from", "4"),), pool="chat")
    fleet.absorb(Outcome(order, Result.DONE, at=AT - 15.0), AT - 15.0)

    roomy = replace(AUTO, pools=(replace(POOL, replicas_max=9, gpus_per_replica=1),))
    first, second = (
        plan.propose(situation(fleet=known, policy=roomy), Memory({"chat": learnt(5.4)}))
        for known in (Fleet(), fleet)
    )

    assert [s.amount for s in first if s.verb is Verb.SCALE] == [5.0]
    assert [s.amount for s in second if s.verb is Verb.SCALE] == []


def test_what_serves_nobody_in_safety_never_waits():
    """A GPU with an uncorrectable error gives wrong answers: its price is told and not haggled over."""
    step = isolation(situation(kind="gpu_uncontained"), 5.4)

    assert step.arg("wait") == ""
    assert "replicas of chat" in step.arg("price")


# -- weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slower", "standing", "weight"),
    [(0.1, None, 0.91), (0.1, 0.85, None), (0.24, None, 0.81), (0.5, None, 0.5), (1.5, None, 0.5), (math.nan, None, 0.5)],
)  # fmt: skip
def test_a_slow_replica_gets_less_by_what_was_measured(
    slower: float, standing: float | None, weight: float | None
):
    """One a tenth slower is not halved: that would burden the others with more than it ails."""
    now = situation(fleet=Fleet(weights={} if standing is None else {"e1": standing}))
    claim = replace(
        now.incidents[0].findings[0], evidence=(Evidence("slower_at_equal_load", slower, "ratio"),)
    )
    now = replace(now, incidents=(replace(now.incidents[0], findings=(claim,)),))

    steps = [s for s in plan.propose(now, Memory({"chat": learnt(3.0)})) if s.verb is Verb.REROUTE]

    assert [s.amount for s in steps] == ([] if weight is None else [weight])


@pytest.mark.parametrize(
    ("slower", "reason"),
    [
        (0.22, None),  # 0.82 of the work: near where it was taken down, not yet another weight
        (0.10, "weight 0.75: gpu_slow at gpu n1/gpu2 (i1) has become milder: it bears 0.91"),
        (None, "weight 0.75: nothing speaks against it any more"),
    ],
)
def test_a_weight_rises_while_its_incident_is_open_only_for_what_has_become_milder(
    slower: float | None, reason: str | None
):
    now = situation(fleet=Fleet(weights={"e1": 0.5}))
    signs = (Evidence("slower_at_equal_load", slower or 0.0, "ratio"),)
    claim = replace(now.incidents[0].findings[0], evidence=signs)
    incident = replace(now.incidents[0], findings=(claim,))
    now = replace(now, incidents=(incident,) if slower else ())

    steps = [s for s in plan.propose(now, Memory({"chat": learnt(3.0)})) if s.verb is Verb.REROUTE]

    assert [s.reason for s in steps] == ([reason] if reason else [])


def test_the_weight_of_what_is_set_aside_is_left_alone():
    """It is drained: to raise its weight would be refused by the balancer, and say that all is well."""
    drained = Fleet(weights={"e1": 0.5, "e2": 0.5}, isolated={SICK: Mark(AT, "i1", "chat", 1)})
    now = replace(situation(fleet=drained), incidents=())

    steps = [s for s in plan.propose(now, Memory({"chat": learnt(3.0)})) if s.verb is Verb.REROUTE]

    assert [s.target.name for s in steps] == ["e2"]


def test_a_rack_with_two_lost_gpus_keeps_the_traffic_of_its_sound_replicas():
    """One incident for the rack, and weight nought for those that lost a GPU: the others serve on, and lend nothing sick."""
    lost = [
        Finding(AT, "fault", Entity("gpu", g), "gpu_lost", 1.0, Severity.CRITICAL)
        for g in ("n0/gpu0", "n1/gpu2")
    ]
    rack = Incident("i1", "gpu_lost", Entity("rack", "r0"), AT, AT, Severity.CRITICAL, tuple(lost))
    place = {n: {"rack": "r0"} for n in NODES}
    now = replace(situation(), incidents=(rack,), topology=replace(TOPOLOGY, place=place))

    steps = [s for s in plan.propose(now, Memory({"chat": learnt(3.0)})) if s.verb is Verb.REROUTE]

    assert [(s.target.name, s.amount) for s in steps] == [("e0", 0.0), ("e1", 0.0)]
    assert now.sick_nodes() == {"n0", "n1"}
