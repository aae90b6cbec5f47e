"""The last resort: classes in their order, then a rate, and back again; versions taken back once; never unasked."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from small_frames import frame, frames

from daemon.fleet import Fleet
from daemon.lastresort import Resort, limited, propose
from daemon.model import NAN, Entity, Frames, Incident, Outcome, Result, Severity, Step, Verb
from daemon.policy import Mode, Policy, PoolPolicy

CHAT = PoolPolicy("chat", classes=("batch", "free"), cold_start_s=120.0)


@dataclass
class Gate:
    """A pool of two replicas; what is asked is done at once. queued_since : NaN = nothing queues. up : as the balancer says."""

    at: float = 10_000.0
    queued_since: float = NAN
    waiting: float = 60.0
    up: float = NAN
    pool: PoolPolicy = CHAT
    fleet: Fleet = field(default_factory=Fleet)
    memory: Resort = field(default_factory=Resort)
    versions: tuple[str, str] = ("v1", "v1")
    worse: bool = False

    def frames(self) -> Frames:
        engines = {
            "a:8000": {"running": 20.0, "lb_up": self.up},
            "b:8000": {"running": 20.0, "lb_up": self.up},
        }
        facts = {e: {"pool": "chat", "version": v} for e, v in zip(engines, self.versions, strict=True)}
        pool = {
            "chat": {
                "running": 40.0,
                "waiting": self.waiting if self.queued_since == self.queued_since else 0.0,
            }
        }
        return frames(self.at, frame("engine", self.at, engines, facts), frame("pool", self.at, pool))

    def incidents(self) -> list[Incident]:
        found = []
        if self.queued_since == self.queued_since:
            found.append(self._incident("queue_growth", self.queued_since))
        if self.worse:
            found.append(self._incident("deploy_regression", self.at - 60.0))
        return found

    def _incident(self, kind: str, opened: float) -> Incident:
        return Incident(f"i-{kind}", kind, Entity("pool", "chat"), opened, self.at, Severity.WARNING, ())

    def run(self, seconds: float, obeys: bool = True) -> list[Step]:
        asked = []
        for _ in range(int(seconds / 15.0)):
            self.at += 15.0
            steps = propose(
                self.frames(), self.incidents(), self.fleet, Policy(pools=(self.pool,)), self.memory
            )
            asked += steps
            for step in steps if obeys else ():
                self.fleet.absorb(Outcome(step, Result.DONE), self.at)
        return asked


def told(steps: list[Step]) -> list[tuple[str, float]]:
    return [(s.target.name, s.amount) for s in steps]


def test_scaling_gets_its_chance_before_anybody_is_refused() -> None:
    gate = Gate(queued_since=10_000.0)

    assert gate.run(165.0) == []


def test_while_replicas_start_it_waits_longer() -> None:
    gate = Gate(queued_since=10_000.0)
    gate.fleet.scaled["chat"] = 10_150.0

    assert gate.run(225.0) == []


def test_classes_go_in_their_order_and_then_a_rate() -> None:
    gate = Gate(queued_since=10_000.0)

    steps = gate.run(420.0)

    assert told(steps)[:3] == [("chat/batch", 0.0), ("chat/free", 0.0), ("chat", 0.4)]
    assert [s.arg("how") for s in steps[:3]] == ["shed", "shed", "rate"]
    assert steps[0].incident == "i-queue_growth"


def test_a_rate_is_never_below_its_floor() -> None:
    gate = Gate(queued_since=10_000.0, waiting=4000.0)
    gate.run(3600.0)

    assert gate.fleet.limits["chat"] == 0.3


def test_all_are_let_in_again_the_other_way_round_with_time_between() -> None:
    gate = Gate(queued_since=10_000.0)
    gate.run(420.0)

    gate.queued_since = NAN
    steps = gate.run(3600.0)

    assert told(steps)[-2:] == [("chat/free", 1.0), ("chat/batch", 1.0)]
    assert [amount for name, amount in told(steps) if name == "chat"] == [0.55, 0.8, 1.0]
    assert limited(gate.fleet) == {}


def test_a_relapse_while_letting_in_refuses_again() -> None:
    gate = Gate(queued_since=10_000.0)
    gate.run(420.0)
    gate.queued_since = NAN
    gate.run(1500.0)

    gate.queued_since = gate.at
    steps = gate.run(300.0)

    assert steps[0].amount < 1.0


def test_a_pool_without_classes_is_limited_by_rate_alone() -> None:
    gate = Gate(queued_since=10_000.0, pool=PoolPolicy("chat"))

    assert told(gate.run(225.0)) == [("chat", 0.4)]


def test_no_replica_behind_the_balancer_breaks_the_circuit_and_closes_it_by_trial() -> None:
    gate = Gate(up=0.0)
    broken = gate.run(60.0)

    gate.up = 1.0
    steps = gate.run(1500.0)

    assert [(s.amount, s.arg("how")) for s in broken] == [(0.0, "break")]
    assert [amount for _, amount in told(steps)] == [0.1, 0.35, 0.6, 0.85, 1.0]


def test_silence_of_exporters_breaks_nothing() -> None:
    gate = Gate(up=NAN)

    assert gate.run(600.0) == []


def test_a_worse_version_is_taken_back_once() -> None:
    gate = Gate()
    gate.run(60.0)
    gate.versions = ("v1", "v2")
    gate.worse = True

    steps = gate.run(600.0)

    assert [(s.verb, s.arg("from"), s.arg("version")) for s in steps] == [(Verb.ROLLBACK, "v2", "v1")]


def test_without_an_older_version_there_is_nothing_to_go_back_to() -> None:
    gate = Gate(worse=True)

    assert gate.run(600.0) == []


@pytest.mark.parametrize("verb", [Verb.LIMIT, Verb.ROLLBACK])
def test_neither_is_done_on_the_word_of_the_cluster_alone(verb: Verb) -> None:
    assert Policy(mode=Mode.AUTO).mode_of(verb, "chat") is Mode.ADVISE
    assert Policy(mode=Mode.OBSERVE).mode_of(verb, "chat") is Mode.OBSERVE
    assert Policy(mode=Mode.OBSERVE, modes={verb: Mode.APPROVE}).mode_of(verb, "chat") is Mode.APPROVE
    own = PoolPolicy("chat", modes={verb: Mode.AUTO})
    assert Policy(mode=Mode.ADVISE, pools=(own,)).mode_of(verb, "chat") is Mode.AUTO
