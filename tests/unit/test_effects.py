"""What was done is looked at again: whether it did what was expected, and what follows when it did not."""

import math

import pytest
from small_frames import frame, frames

from daemon import effects, plan, replica
from daemon.effects import HELD_S, START_LEAST_S, Held, Watch, held, look, renewed
from daemon.fleet import Fleet
from daemon.model import Entity, Frames, Outcome, Result, Step, Verb
from daemon.outlook import Outlook
from daemon.policy import Mode, Policy, PoolPolicy
from daemon.resize import Memory
from daemon.situation import Situation
from daemon.topology import Topology

POOL = PoolPolicy("chat", replicas_min=2, replicas_max=8, gpus_per_replica=4, cold_start_s=120.0)
POLICY = Policy(mode=Mode.AUTO, pools=(POOL,), able=frozenset(v for v in Verb if v is not Verb.NOTIFY))
TOPOLOGY = Topology(
    nodes=("n0", "n1"),
    gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(8)) for n in ("n0", "n1")},
    engines_on={"n0": ("a:8000",), "n1": ("b:8000",)},
    node_of_engine={"a:8000": "n0", "b:8000": "n1"},
    pool_of={"a:8000": "chat", "b:8000": "chat"},
)


def shown(at: float, *, ready: float = 2.0, late: float = 0.0, sessions: float = 3.0) -> Frames:
    pool = {
        "ready": ready, "replicas": 2.0, "over_slo_ratio": late, "concurrency": 40.0, "running": 30.0,
        "waiting": 10.0, "lb_sessions_per_s": 6.0, "requests_done_per_s": 6.0,
    }  # fmt: skip
    return frames(
        at,
        frame("pool", at, {"chat": pool}),
        frame("gpu", at, {}),
        frame("node", at, {}),
        frame("target", at, {}),
        frame(
            "engine",
            at,
            {
                "a:8000": {"lb_sessions_per_s": sessions, "running": 9.0},
                "b:8000": {"lb_sessions_per_s": 3.0, "running": 9.0},
            },
            {e: {"pool": "chat"} for e in ("a:8000", "b:8000")},
        ),
    )


def done(verb: Verb, target: Entity, amount: float, **args: str) -> Outcome:
    step = Step("s1", verb, target, amount, "why", args=tuple(args.items()), pool="chat")
    return Outcome(step, Result.DONE)


GROWN = done(Verb.SCALE, Entity("pool", "chat"), 4.0, **{"from": "2"})
EMPTIED = done(Verb.REROUTE, Entity("engine", "a:8000"), 0.0)


def watches(outcome: Outcome) -> list[Watch]:
    return renewed([], outcome, POLICY, 0.0)


def test_a_growth_that_came_says_after_how_long_and_what_it_did_for_those_who_were_late():
    going, said, _ = look(watches(GROWN), shown(15.0, late=0.08), TOPOLOGY)
    assert said == []

    going, said, claims = look(going, shown(150.0, ready=4.0, late=0.01), TOPOLOGY)

    (effect,) = said
    assert (effect.step, effect.state, effect.took_s) == ("s1", "seen", 150.0)
    assert "8.0% of the requests were late, 1.0% are" in effect.text
    assert going == []
    assert claims == []


def test_a_growth_that_does_not_come_is_said_once_and_claimed_while_it_lasts():
    going, said, claims = look(watches(GROWN), shown(START_LEAST_S), TOPOLOGY)
    _, again, still = look(going, shown(START_LEAST_S + 15.0), TOPOLOGY)

    assert [e.state for e in said] == ["missing"]
    assert [(c.kind, c.entity) for c in claims] == [("no_effect", Entity("pool", "chat"))]
    assert "2 replicas of chat are ready, 4 were to be" in claims[0].text
    assert again == []
    assert len(still) == 1


def test_what_comes_after_all_ends_the_claim():
    going, _, _ = look(watches(GROWN), shown(START_LEAST_S), TOPOLOGY)

    going, said, claims = look(going, shown(START_LEAST_S + 300.0, ready=4.0), TOPOLOGY)

    assert [e.state for e in said] == ["late"]
    assert (going, claims) == ([], [])


def test_requests_that_still_arrive_after_weight_nought_have_another_way():
    before, said, _ = look(watches(EMPTIED), shown(15.0), TOPOLOGY)
    assert said == []

    _, said, claims = look(before, shown(effects.REROUTE_S), TOPOLOGY)

    assert [e.state for e in said] == ["missing"]
    assert "3.00 new requests/s" in claims[0].text


def test_a_rate_that_looks_back_is_given_time_to_fall():
    quiet = look(watches(EMPTIED), shown(15.0, sessions=0.0), TOPOLOGY)
    later = look(watches(EMPTIED), shown(60.0, sessions=0.0), TOPOLOGY)

    assert quiet[1] == []
    assert [e.state for e in later[1]] == ["seen"]


def test_what_is_not_measured_is_not_held_against_anybody():
    _, said, claims = look(watches(EMPTIED), shown(effects.REROUTE_S, sessions=math.nan), TOPOLOGY)

    assert [e.state for e in said] == ["unknown"]
    assert claims == []


def test_a_later_step_on_the_same_target_replaces_what_was_expected():
    smaller = done(Verb.SCALE, Entity("pool", "chat"), 3.0, **{"from": "4"})

    (watch,) = renewed(watches(GROWN), smaller, POLICY, 60.0)

    assert watch.step.amount == 3.0


@pytest.mark.parametrize("result", [Result.REFUSED, Result.FAILED])
def test_what_was_not_done_has_no_effect_to_wait_for(result: Result):
    refused = Outcome(GROWN.step, result)

    assert renewed([], refused, POLICY, 0.0) == []
    assert len(renewed(watches(GROWN), refused, POLICY, 9.0)) == 1


# -- a way out -----------------------------------------------------------------------------------------------


def test_a_pool_whose_growth_did_not_come_is_held_to_what_came():
    before = watches(GROWN)
    at = START_LEAST_S
    _, said, _ = look(before, shown(at), TOPOLOGY)

    assert held(said, before, shown(at)) == {"chat": Held(2.0, at + HELD_S)}


def proposed(at: float, fleet: Fleet, memory: Memory, ready: float = 2.0) -> list[float]:
    outlook = Outlook(at, math.nan, {}, 16.0, math.nan)
    now = Situation(at, shown(at, ready=ready), TOPOLOGY, (), fleet, {}, outlook, POLICY)
    return [s.amount for s in plan.propose(now, memory) if s.verb is Verb.SCALE]


def test_what_was_asked_for_and_did_not_come_is_given_back_and_tried_again_later():
    """4 are wanted by us, 2 are there: the two that wait for room are taken back, or they would wait for ever."""
    memory = Memory({"chat": replica.Learnt(capacity=14.0, minutes=60)}, held={"chat": Held(2.0, 3000.0)})
    stuck = Fleet(replicas={"chat": 4.0}, scaled={"chat": 0.0})

    given_back = proposed(1300.0, stuck, memory)
    quiet = proposed(1315.0, Fleet(replicas={"chat": 2.0}, scaled={"chat": 1300.0}), memory)
    again = proposed(3001.0, Fleet(replicas={"chat": 2.0}, scaled={"chat": 1300.0}), memory)

    assert given_back == [2.0]
    assert quiet == []
    assert len(again) == 1
    assert again[0] > 2.0


def test_a_replica_that_comes_late_after_all_is_kept():
    memory = Memory({"chat": replica.Learnt(capacity=14.0, minutes=60)}, held={"chat": Held(2.0, 3000.0)})

    assert proposed(1330.0, Fleet(replicas={"chat": 3.0}, scaled={"chat": 0.0}), memory, ready=3.0) == []
