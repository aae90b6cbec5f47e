"""The core from fault to release: one tick after the other, with outcomes as the shell would give them."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from small_frames import frame, frames

from daemon import plan
from daemon.codec import decode, to_plain
from daemon.core import Command, Core, Journal
from daemon.incident import Book, Candidate
from daemon.model import (
    Decision,
    Entity,
    Event,
    Finding,
    Forecast,
    Frames,
    Incident,
    Outcome,
    Reason,
    Result,
    Severity,
    Step,
    Verb,
    Verdict,
)
from daemon.patterns import PATTERNS
from daemon.plan import HOLD_S, RAMP_EVERY_S
from daemon.policy import Budgets, Mode, Policy, PoolPolicy
from daemon.situation import Situation
from detectors.fault import FaultDetector

NODES = ("n0", "n1", "n2", "n3", "n4", "n5")
SPARE = NODES[4:]
ENGINES = {f"e{k}": n for k, n in enumerate(NODES[:4])}
GPUS = tuple(f"{n}/gpu{g}" for n in NODES for g in range(4))
TICK = 15.0
ABLE = frozenset(v for v in Verb if v is not Verb.NOTIFY)
AUTO = Policy(
    mode=Mode.AUTO,
    pools=(PoolPolicy("chat", replicas_max=4, replicas_min=4, gpus_per_replica=4),),
    budgets=Budgets(isolated_share_max=0.5, isolated_pool_share_max=0.5),
    able=ABLE,
)


def seen(at: float, events: Iterable[Event] = (), *, running: float = 5.0, revision: int = 1) -> Frames:
    """Four engines of four GPUs each on four of six nodes, all well as far as numbers go."""
    owner = {n: e for e, n in ENGINES.items()}
    gpu_facts = {g: {"engine": owner.get(g.split("/")[0], ""), "peer": "chat|H100"} for g in GPUS}
    engine = {"running": running, "waiting": 0.0, "kv_used_ratio": 0.4}
    pool = {
        "concurrency": 4 * running,
        "requests_done_per_s": 0.4 * running,
        "lb_sessions_per_s": 0.4 * running,
        "running": 4 * running,
        "waiting": 0.0,
        "replicas": 4.0,
        "ready": 4.0,
        "over_slo_ratio": 0.0,
    }
    return frames(
        at,
        frame("gpu", at, {g: {"util_ratio": 0.9} for g in GPUS}, gpu_facts, revision=revision),
        frame(
            "engine",
            at,
            dict.fromkeys(ENGINES, engine),
            {e: {"node": n, "pool": "chat"} for e, n in ENGINES.items()},
        ),
        frame("node", at, {n: {"clock_s": at} for n in NODES}, {n: {"rack": f"r{n[1]}"} for n in NODES}),
        frame("pool", at, {"chat": pool}),
        frame(
            "target",
            at,
            {f"{n}:9400": {"silent_s": 1.0, "fails": 0.0} for n in NODES},
            {f"{n}:9400": {"node": n} for n in NODES},
        ),
        events=events,
    )


@dataclass
class Shell:
    """Ticks a core and tells it of every allowed step that it was done, one tick later."""

    core: Core
    at: float = 0.0
    result: Result = Result.DONE
    decisions: list[Decision] = field(default_factory=list)
    under_way: list[Step] = field(default_factory=list)
    answers: bool = True

    def tick(self, *events: Event) -> Decision:
        if self.answers:
            for step in self.under_way:
                self.core.absorb(Outcome(step, self.result, at=self.at))
            self.under_way = []
        decision = self.core.tick(seen(self.at, events))
        self.under_way += [v.step for v in decision.verdicts if v.allowed and v.step.verb is not Verb.NOTIFY]
        self.decisions.append(decision)
        self.at += TICK
        return decision

    def run(self, seconds: float, *events: Event) -> None:
        for _ in range(int(seconds // TICK)):
            self.tick(*events)
            events = ()

    def verdicts(self, verb: Verb) -> list[tuple[float, Verdict]]:
        return [(d.at, v) for d in self.decisions for v in d.verdicts if v.step.verb is verb]


def shell(policy: Policy = AUTO) -> Shell:
    return Shell(Core(policy, {"fault": FaultDetector()}))


def lost(at: float, gpu: str = "n1/gpu2") -> Event:
    return Event(at, Entity("gpu", gpu), "xid", 79.0, "kernel_log")


# -- from fault to release -----------------------------------------------------------------------------------


def test_a_lost_gpu_loses_its_traffic_first_and_then_its_node():
    cluster = shell()

    decision = cluster.tick(lost(0.0))
    cluster.run(300.0)

    assert [i.kind for i in decision.opened] == ["gpu_lost"]
    assert [(v.step.verb, v.allowed) for v in decision.verdicts] == [
        (Verb.REROUTE, True),
        (Verb.ISOLATE, True),
    ]
    assert (str(decision.verdicts[0].step.target), decision.verdicts[0].step.amount) == ("engine e1", 0.0)
    assert "gpu_lost opened on gpu n1/gpu2" in decision.sentence
    node = next(
        v.step for _, v in cluster.verdicts(Verb.ISOLATE) if v.allowed and v.step.target.kind == "node"
    )
    assert (node.target.name, node.gpus) == ("n1", 4)
    assert node.arg("owner") == "tidewarden/cluster"


def test_the_node_is_isolated_once_and_released_a_hold_after_its_incident_closed():
    cluster = shell()
    cluster.run(3 * 3600.0, lost(0.0))

    isolated, released = cluster.verdicts(Verb.ISOLATE), cluster.verdicts(Verb.RELEASE)
    closed = [d.at for d in cluster.decisions if d.closed]

    taken, given = [v.step.target for _, v in isolated], [v.step.target for _, v in released]
    assert Entity("node", "n1") in taken
    assert len(set(taken)) == len(taken)
    assert sorted(given) == sorted(taken)
    assert all(v.allowed for _, v in (*isolated, *released))
    assert released[0][0] >= closed[0] + HOLD_S - TICK
    assert cluster.core.state.fleet.isolated == {}


def test_traffic_comes_back_by_degrees_after_the_incident():
    cluster = shell()
    cluster.run(3 * 3600.0, lost(0.0))

    weights = [(at, v.step.amount) for at, v in cluster.verdicts(Verb.REROUTE)]

    assert [w for _, w in weights] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(b - a >= RAMP_EVERY_S for (a, _), (b, _) in itertools.pairwise(weights))
    assert cluster.core.state.fleet.weights == {}


def test_an_incident_closes_only_after_its_quiet_time():
    cluster = shell()
    cluster.run(3 * 3600.0, lost(0.0))

    closed = next(d for d in cluster.decisions if d.closed)

    # The claim of an event stands for a while of its own before the quiet begins.
    assert closed.at >= FaultDetector().hold_s + PATTERNS["gpu_lost"].quiet_s - TICK


def test_a_step_under_way_is_not_proposed_again():
    cluster = shell()
    cluster.answers = False

    cluster.run(300.0, lost(0.0))

    told = [(v.step.verb, v.step.target) for d in cluster.decisions for v in d.verdicts]
    assert len(told) >= 2
    assert len(set(told)) == len(told)
    assert len(cluster.core.state.in_flight) == len(told)


def test_a_failed_step_is_tried_again_after_the_cool_down_under_a_new_id():
    cluster = shell()
    cluster.result = Result.FAILED
    cluster.run(400.0, lost(0.0))

    tries = [(at, v.step.id) for at, v in cluster.verdicts(Verb.REROUTE) if v.allowed]

    assert len(tries) == 2
    assert tries[1][0] - tries[0][0] >= AUTO.budgets.cool_down_s
    assert tries[0][1] != tries[1][1]


def test_an_isolation_nobody_can_vouch_for_counts_as_done_for_the_budgets():
    cluster = shell(replace(AUTO, budgets=Budgets(isolated_share_max=0.17, isolated_pool_share_max=0.5)))
    cluster.result = Result.UNKNOWN
    cluster.run(60.0, lost(0.0))

    second = cluster.tick(lost(cluster.at, "n2/gpu0"))

    assert [v.reason for v in second.verdicts if v.step.verb is Verb.ISOLATE] == [Reason.BUDGET_CLUSTER]


# -- what is told ---------------------------------------------------------------------------------------------


def test_a_refusal_is_news_once_and_not_every_tick():
    cluster = shell(replace(AUTO, mode=Mode.OBSERVE))
    cluster.run(300.0, lost(0.0))

    told = [v for d in cluster.decisions for v in d.verdicts]

    assert {v.reason for v in told} == {Reason.MODE_OBSERVE}
    assert {v.step.verb for v in told} == {Verb.REROUTE, Verb.ISOLATE}
    assert len({(v.step.verb, v.step.target) for v in told}) == len(told)


def test_a_refusal_for_another_reason_is_news_again_under_the_same_id():
    cluster = shell(replace(AUTO, mode=Mode.ADVISE))
    cluster.run(60.0, lost(0.0))
    cluster.core.absorb(Command("pause", "600", "ops", cluster.at))

    decision = cluster.tick()

    first = cluster.verdicts(Verb.ISOLATE)[0][1]
    again = next(v for v in decision.verdicts if v.step.verb is Verb.ISOLATE)
    assert again.reason is Reason.PAUSED
    assert again.step.id == first.step.id


def test_a_quiet_tick_says_nothing():
    cluster = shell()
    cluster.run(120.0)

    assert {d.sentence for d in cluster.decisions} == {""}
    assert all(not d.verdicts for d in cluster.decisions)


def test_on_call_hears_of_the_opening_and_of_the_end():
    cluster = shell(replace(AUTO, able=ABLE | {Verb.NOTIFY}))
    cluster.run(3 * 3600.0, lost(0.0))

    pages = [v.step for _, v in cluster.verdicts(Verb.NOTIFY)]

    assert next(p.arg("status") for p in pages) == "firing"
    assert [p.arg("status") for p in pages][-1] == "resolved"
    assert len({p.id for p in pages}) == len(pages)
    assert {p.arg("incident") for p in pages} == {"i00001"}
    assert pages[0].arg("summary") == "GPU fell off the bus: gpu n1/gpu2"


def test_a_disabled_detector_is_not_asked():
    cluster = shell(replace(AUTO, disabled=frozenset({"fault"})))

    assert cluster.tick(lost(0.0)).opened == ()


# -- operators ------------------------------------------------------------------------------------------------


def awaiting(cluster: Shell, verb: Verb) -> Step:
    return next(v.step for _, v in cluster.verdicts(verb) if v.reason is Reason.AWAITS_APPROVAL)


def test_an_approved_step_is_carried_out_once_and_the_others_wait():
    cluster = shell(replace(AUTO, mode=Mode.APPROVE))
    cluster.run(60.0, lost(0.0))
    step = awaiting(cluster, Verb.ISOLATE)

    cluster.core.absorb(Command("approve", step.id, "ops", cluster.at))
    decision = cluster.tick()
    cluster.run(120.0)

    assert [(v.step.id, v.reason) for v in decision.verdicts] == [(step.id, Reason.APPROVED)]
    assert [v.allowed for _, v in cluster.verdicts(Verb.ISOLATE) if v.step.id == step.id] == [False, True]
    assert not any(v.allowed for _, v in cluster.verdicts(Verb.REROUTE))


def test_a_rejected_step_stays_refused_while_it_is_proposed():
    cluster = shell(replace(AUTO, mode=Mode.APPROVE))
    cluster.run(60.0, lost(0.0))

    step = awaiting(cluster, Verb.ISOLATE)
    cluster.core.absorb(Command("reject", step.id, "ops", cluster.at))
    cluster.run(300.0)

    reasons = [v.reason for _, v in cluster.verdicts(Verb.ISOLATE) if v.step.target == step.target]
    assert reasons == [Reason.AWAITS_APPROVAL, Reason.REJECTED]


def test_a_pause_holds_everything_back_until_it_is_over():
    cluster = shell()
    cluster.core.absorb(Command("pause", "120", "ops", 0.0))
    cluster.run(240.0, lost(0.0))

    isolations = [(at, v.reason) for at, v in cluster.verdicts(Verb.ISOLATE)]

    assert [r for _, r in isolations] == [Reason.PAUSED, Reason.ALLOWED]
    assert isolations[1][0] == 120.0


def test_resume_ends_a_pause_without_an_end():
    cluster = shell()
    cluster.core.absorb(Command("pause", "", "ops", 0.0))
    cluster.run(60.0, lost(0.0))
    cluster.core.absorb(Command("resume", "", "ops", cluster.at))

    assert [v.reason for v in cluster.tick().verdicts] == [Reason.ALLOWED, Reason.ALLOWED]


def test_an_unknown_command_is_refused_by_name():
    with pytest.raises(ValueError, match="approve, reject, pause, resume"):
        shell().core.absorb(Command("explode"))


def test_without_a_journal_nothing_is_changed():
    cluster = shell()
    cluster.core.absorb(Journal(False))
    cluster.run(60.0, lost(0.0))
    cluster.core.absorb(Journal(True))
    cluster.tick()

    assert [v.reason for _, v in cluster.verdicts(Verb.ISOLATE)] == [Reason.NO_JOURNAL, Reason.ALLOWED]


def test_an_approval_is_of_the_amount_that_was_shown():
    """One number was shown and approved; what is asked meanwhile is another."""
    policy = replace(
        AUTO, mode=Mode.APPROVE, pools=(PoolPolicy("chat", replicas_max=12, gpus_per_replica=1),)
    )
    core = Core(policy, {})
    for k in range(24):
        core.tick(seen(TICK * k, running=5.0))
    rising = [core.tick(seen(TICK * k, running=12.0)) for k in range(24, 36)]
    step = next(v.step for d in rising for v in d.verdicts if v.step.verb is Verb.SCALE)
    core.absorb(Command("approve", step.id, "ops", 0.0))

    later = [core.tick(seen(TICK * k, running=30.0)) for k in range(36, 56)]

    allowed = [v.step.amount for d in later for v in d.verdicts if v.allowed and v.step.verb is Verb.SCALE]
    assert set(allowed) <= {step.amount}


# -- memory ---------------------------------------------------------------------------------------------------


def through_json(core: Core) -> Core:
    fresh = Core(core.policy, {"fault": FaultDetector()})
    fresh.load(json.loads(json.dumps(core.dump())))
    return fresh


@pytest.mark.parametrize("seconds", [15.0, 300.0, 1300.0, 2400.0])
def test_a_core_restored_in_the_middle_of_an_incident_decides_the_same(seconds: float):
    kept = shell()
    kept.run(seconds, lost(0.0))
    restored = Shell(through_json(kept.core), kept.at, under_way=list(kept.under_way))
    begun = len(kept.decisions)

    kept.run(3 * 3600.0)
    restored.run(3 * 3600.0)

    assert to_plain(restored.decisions) == to_plain(kept.decisions[begun:])
    assert any(d.closed for d in restored.decisions) or seconds > 1200.0


def test_a_claim_on_its_way_to_an_incident_survives_a_restart():
    gpu = Entity("gpu", "n1/gpu2")
    book = Book(candidates={("gpu_slow", gpu): Candidate(0.0, 15.0)}, offences={("gpu_slow", gpu): [0.0]})

    assert decode(Book, json.loads(json.dumps(to_plain(book)))) == book


def test_a_detector_of_another_shape_starts_fresh_and_the_rest_is_kept():
    kept = shell()
    kept.run(60.0, lost(0.0))
    dumped = kept.core.dump()
    dumped["detectors"]["fault"] = {"claims": 7}
    fresh = Core(AUTO, {"fault": FaultDetector()})

    fresh.load(dumped)

    assert fresh.detectors["fault"] == FaultDetector()
    assert [i.kind for i in fresh.state.book.open.values()] == ["gpu_lost"]


def test_a_forecast_is_kept_by_pool_and_the_newest_counts():
    core = shell().core
    levels = (0.5, 0.9)
    for at in (0.0, 3600.0):
        core.absorb(Forecast(at, "chat", "concurrency", 3600.0, levels, np.full((2, 24), 10.0)))

    assert core.state.forecasts["chat"].at == 3600.0


# -- leases ---------------------------------------------------------------------------------------------------


def lending() -> Shell:
    pool = PoolPolicy("chat", replicas_max=6, replicas_min=4, gpus_per_replica=4, lendable=True)
    cluster = Shell(Core(replace(AUTO, pools=(pool,)), {"fault": FaultDetector()}))
    cluster.core.absorb(Forecast(0.0, "chat", "concurrency", 3600.0, (0.5, 0.9), np.full((2, 48), 10.0)))
    return cluster


def test_an_idle_node_is_lent_and_one_idle_node_is_kept():
    cluster = lending()
    cluster.run(1800.0)

    lent = [v.step for _, v in cluster.verdicts(Verb.LEND) if v.allowed]

    assert [s.target.name for s in lent] == [SPARE[0]]
    assert lent[0].until <= lent[0].deadline_s + AUTO.lease_max_s + 1800.0
    assert sorted(cluster.core.state.fleet.leases) == [SPARE[0]]


def test_while_a_replica_is_on_its_way_no_node_is_lent_from_under_it():
    cluster, quiet = lending(), lending()
    grown = Step("s9", Verb.SCALE, Entity("pool", "chat"), 5.0, "", args=(("from", "4"),), pool="chat")
    cluster.core.state.fleet.absorb(Outcome(grown, Result.DONE), 750.0)
    for each in (cluster, quiet):
        each.run(860.0)

    assert cluster.verdicts(Verb.LEND) == []
    assert quiet.verdicts(Verb.LEND) != []


def test_a_pool_that_was_just_met_lends_nothing():
    cluster = lending()
    cluster.run(300.0)

    assert cluster.verdicts(Verb.LEND) == []


def test_without_a_forecast_nothing_is_lent():
    cluster = lending()
    cluster.core.state.forecasts.clear()
    cluster.run(1800.0)

    assert cluster.verdicts(Verb.LEND) == []


def test_a_lease_is_had_back_before_it_ends():
    cluster = lending()
    cluster.run(AUTO.lease_max_s + 1200.0)

    lent = next(v.step for _, v in cluster.verdicts(Verb.LEND) if v.allowed)
    recalled = next(at for at, v in cluster.verdicts(Verb.RECALL) if v.allowed)

    assert lent.until - AUTO.recall_lead_s <= recalled < lent.until


class Silent:
    """Claims that one replica does not answer."""

    def update(self, frames: Frames) -> list[Finding]:
        entity = Entity("engine", "e3")
        return [Finding(frames.at, "test", entity, "engine_out", 0.9, Severity.WARNING)]


def test_a_replica_we_asked_to_go_is_not_reported_missing_but_one_too_many_is():
    core = Core(replace(AUTO, pools=()), {"silent": Silent()})
    smaller = Step("s1", Verb.SCALE, Entity("pool", "chat"), 3.0, "less load", pool="chat")
    core.tick(seen(0.0))
    core.absorb(Outcome(smaller, Result.DONE, at=10.0))

    leaving = [core.tick(seen(TICK * k)) for k in range(1, 15)]
    staying = [core.tick(seen(400.0 + TICK * k)) for k in range(4)]

    assert not any(d.opened for d in leaving)
    assert [i.kind for d in staying for i in d.opened] == ["engine_out"]


@pytest.mark.parametrize(("score", "isolated"), [(0.5, False), (0.85, True)])
@pytest.mark.parametrize("suffers", [False, True], ids=["alone", "with a replica that is surely slow"])
def test_a_guess_against_the_own_past_never_costs_the_hardware(score: float, isolated: bool, suffers: bool):
    entity = Entity("gpu", "n1/gpu2")
    claim = Finding(700.0, "straggler", entity, "gpu_slow", score, Severity.WARNING)
    symptom = replace(claim, entity=Entity("engine", "n1:8000"), kind="replica_slow", score=0.95)
    slow = Incident(
        "i1", "gpu_slow", entity, 0.0, 700.0, Severity.WARNING, (claim, symptom) if suffers else (claim,)
    )
    cluster = shell()
    frames = seen(700.0)
    cluster.core.tick(frames)
    state = cluster.core.state
    now = Situation(
        700.0,
        frames,
        cluster.core.topology,
        (slow,),
        state.fleet,
        {},
        cluster.core.outlook,
        cluster.core.policy,
    )

    wanted = [s.target for s in plan.propose(now, state.memory) if s.verb is Verb.ISOLATE]

    assert wanted == ([entity] if isolated else [])


def test_forecasts_of_tokens_stand_beside_those_of_requests_and_survive_a_restart_without_their_paths():
    core = Core(AUTO, {})
    levels = (0.5, 0.9)
    for signal in ("concurrency", "generation_tokens_s", "prompt_tokens_s"):
        made = Forecast(
            0.0, "chat", signal, 3600.0, levels, np.full((2, 24), 7.0), ranks=np.full((80, 24), 0.5)
        )
        core.absorb(made)

    later = Core(AUTO, {})
    later.load(core.dump())

    assert core.state.forecasts["chat"].signal == "concurrency"
    assert set(later.state.work_ahead["chat"]) == {"generation_tokens_s", "prompt_tokens_s"}
    assert later.state.work_ahead["chat"]["prompt_tokens_s"].at_level(0.9).tolist() == [7.0] * 24
    assert later.state.work_ahead["chat"]["prompt_tokens_s"].ranks.size == 0
