"""The view over regions: shares by what a region carries, a lost one's requests where they fit, unknown never zero."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest

from daemon.codec import decode, to_plain
from daemon.core import Core
from daemon.fleet import Fleet
from daemon.model import NAN, Entity, Frame, Frames, Outcome, Result, Step, Verb
from daemon.policy import Federation, Member, Mode, Policy
from daemon.regions import View, current, hundredths, propose, turned_away
from detectors.regions import RegionDetector

SIGNALS = ("health_ratio", "requests_per_s", "carries_per_s", "could_carry_per_s", "ttft_s", "gpus_usable", "front_up")  # fmt: skip
SIZES = {"east": 800.0, "west": 400.0, "south": 200.0}


@dataclass
class Globe:
    """Three regions that carry a request a second for every ten GPUs, under a balancer that does what it is told.

    down : regions nobody hears of. fronts : region -> what a probe of its door says.
    """

    rate: float = 60.0
    federation: Federation = field(default_factory=lambda: Federation(members=dict.fromkeys(SIZES, Member())))
    at: float = 10_000.0
    fleet: Fleet = field(default_factory=Fleet)
    view: View = field(default_factory=View)
    down: set[str] = field(default_factory=set)
    fronts: dict[str, float] = field(default_factory=dict)
    health: dict[str, float] = field(default_factory=dict)
    ttft: dict[str, float] = field(default_factory=dict)
    carries: dict[str, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return Policy(cluster="globe", federation=self.federation)

    def shares(self) -> dict[str, float]:
        natural = {n: s / sum(SIZES.values()) for n, s in SIZES.items()}
        return {n: self.fleet.shares.get(n, natural[n]) for n in SIZES}

    def frame(self) -> Frame:
        rows = []
        for name, size in SIZES.items():
            front = self.fronts.get(name, NAN)
            if name in self.down:
                rows.append([NAN] * 6 + [front])
                continue
            rate = self.rate * self.shares()[name]
            could = size / 10.0
            carries = self.carries.get(name, could) if rate > 0 else NAN
            rows.append(
                [self.health.get(name, 1.0), rate, carries, could if rate > 0 else NAN, self.ttft.get(name, 0.5), size, front]
            )  # fmt: skip
        values = np.array(rows)
        return Frame(self.at, "region", tuple(SIZES), SIGNALS, values, np.zeros(len(SIZES)))

    def run(self, seconds: float, obeys: bool = True) -> list[Step]:
        """Tick after tick; what is asked is done at once. Returns what was asked for in that time."""
        asked = []
        for _ in range(int(seconds / 15.0)):
            self.at += 15.0
            steps = propose(Frames(self.at, {"region": self.frame()}), self.fleet, self.policy, self.view)
            asked += steps
            for step in steps if obeys else ():
                self.fleet.absorb(Outcome(step, Result.DONE), self.at)
        self.steps += asked
        return asked

    def load(self, name: str) -> float:
        """Requests over what the region carries."""
        return self.rate * self.shares()[name] / (SIZES[name] / 10.0)


def test_what_is_balanced_already_stays_as_it_is() -> None:
    globe = Globe()

    assert globe.run(1800.0) == []
    assert set(globe.view.states.values()) == {"well"}


def test_a_lost_regions_requests_go_where_they_fit_and_overload_nobody() -> None:
    globe = Globe(rate=50.0)
    globe.run(600.0)

    globe.down = {"east"}
    globe.run(300.0)

    assert globe.shares()["east"] == 0.0
    assert sum(globe.shares().values()) == pytest.approx(1.0)
    assert max(globe.load("west"), globe.load("south")) <= 1.25
    assert globe.view.short == 0.0


def test_nothing_moves_before_silence_is_a_loss() -> None:
    globe = Globe()
    globe.run(600.0)

    globe.down = {"east"}
    asked = globe.run(105.0)

    assert asked == []
    assert globe.view.states["east"] == "unknown"


def test_a_silent_daemon_is_no_lost_region_while_its_front_door_answers() -> None:
    globe = Globe(fronts={"east": 1.0})
    globe.run(600.0)

    globe.down = {"east"}
    asked = globe.run(3600.0)

    assert asked == []
    assert globe.view.states["east"] == "unknown"
    assert globe.shares()["east"] == pytest.approx(800 / 1400)


def test_a_front_door_that_is_shut_moves_the_requests_within_a_minute() -> None:
    globe = Globe(rate=50.0, fronts={"east": 1.0})
    globe.run(600.0)

    globe.fronts["east"] = 0.0
    globe.run(60.0)

    assert globe.shares()["east"] == 0.0


def test_when_most_fall_silent_the_view_is_cut_off_and_touches_nothing() -> None:
    globe = Globe()
    globe.run(600.0)

    globe.down = {"east", "west"}
    asked = globe.run(1800.0)

    assert asked == []
    assert "cut off" in globe.view.note


def test_what_fits_nowhere_is_said_and_goes_to_the_overflow() -> None:
    globe = Globe(rate=100.0, federation=Federation(members={n: Member() for n in SIZES}, overflow="busy"))
    globe.run(600.0)

    globe.down = {"east"}
    globe.run(300.0)

    # 600 GPUs carry 60 a second of 100.
    assert globe.view.short == pytest.approx(0.40, abs=0.01)
    assert globe.fleet.shares["busy"] == pytest.approx(0.40, abs=0.01)
    assert max(globe.load("west"), globe.load("south")) <= 1.01


def test_what_is_turned_away_is_told_to_those_who_could_grow() -> None:
    globe = Globe(
        rate=60.0,
        federation=Federation(members={n: Member() for n in SIZES}, overflow="busy"),
        carries={"west": 20.0, "south": 20.0},
    )
    globe.run(1200.0)
    before = turned_away(globe.view, globe.fleet, globe.federation)

    globe.down = {"east"}
    globe.run(240.0)
    told = turned_away(globe.view, globe.fleet, globe.federation)

    away = globe.fleet.shares["busy"] * 60.0
    assert sum(before.values()) == 0.0
    assert away > 5.0
    assert sum(told.values()) == pytest.approx(away, rel=0.2)
    assert told["east"] == 0.0
    assert told["west"] > told["south"]


def test_without_an_overflow_the_rest_share_the_excess_alike() -> None:
    globe = Globe(rate=100.0)
    globe.run(600.0)

    globe.down = {"east"}
    globe.run(300.0)

    assert globe.view.short > 0.3
    assert globe.load("west") == pytest.approx(globe.load("south"), rel=0.05)


def test_a_region_that_is_back_is_watched_and_then_gets_more_by_degrees() -> None:
    globe = Globe(rate=50.0)
    globe.run(600.0)
    globe.down = {"east"}
    globe.run(600.0)

    globe.down = set()
    globe.run(285.0)
    held = globe.shares()["east"]
    rises = [s.amount for s in globe.run(3900.0) if s.target.name == "east"]

    assert held == 0.0
    assert rises[0] == 0.05
    assert max(b - a for a, b in pairwise(rises)) <= 0.21
    assert globe.shares()["east"] == pytest.approx(800 / 1400, abs=0.06)


def test_a_region_that_grows_only_gets_what_its_ready_replicas_carry() -> None:
    globe = Globe(rate=50.0)
    globe.run(600.0)
    globe.down = {"east"}
    globe.run(600.0)

    globe.down, globe.carries = set(), {"east": 10.0}
    globe.run(3600.0)

    assert globe.rate * globe.shares()["east"] == pytest.approx(12.0, abs=0.6)


def test_a_far_or_late_region_is_liked_less_and_never_forgotten() -> None:
    members = {"east": Member(round_trip_s=0.3), "west": Member(), "south": Member()}
    globe = Globe(rate=40.0, federation=Federation(members=members))
    globe.ttft = {"south": 2.5}
    globe.run(3600.0)

    assert 0.0 < globe.shares()["south"] < 200 / 1400 - 0.05
    assert globe.shares()["east"] / globe.shares()["west"] < 1.7


def test_noise_below_the_step_moves_nothing() -> None:
    globe = Globe()
    rng = np.random.default_rng(3)
    for _ in range(120):
        globe.ttft = {n: 0.5 + 0.06 * float(rng.standard_normal()) for n in SIZES}
        globe.run(15.0)

    assert globe.steps == []


def test_a_contract_caps_a_regions_share() -> None:
    members = {"east": Member(share_max=0.4), "west": Member(), "south": Member()}
    globe = Globe(federation=Federation(members=members))
    globe.run(3600.0)

    assert globe.shares()["east"] <= 0.41
    assert sum(globe.shares().values()) == pytest.approx(1.0)


def test_the_first_move_gives_every_region_its_weight() -> None:
    globe = Globe(rate=50.0, fronts={"east": 1.0})
    globe.run(600.0)
    globe.fronts["east"] = 0.0

    asked = globe.run(60.0)

    assert {s.target.name for s in asked} == set(SIZES)


def test_who_must_approve_is_asked_the_same_for_as_long_as_it_stands() -> None:
    globe = Globe(rate=50.0)
    globe.health = {"east": 0.4}
    rng = np.random.default_rng(4)
    asked: list[Step] = []
    for _ in range(80):
        globe.ttft = {n: 0.5 + 0.02 * float(rng.standard_normal()) for n in SIZES}
        asked += globe.run(15.0, obeys=False)

    assert len({(s.target.name, s.amount) for s in asked}) == 3


@pytest.mark.parametrize("seed", range(25))
def test_shares_are_whole_hundredths_that_are_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.dirichlet(np.ones(5)).tolist()

    found = hundredths({str(i): p for i, p in enumerate(parts)})

    assert sum(found.values()) == pytest.approx(1.0)
    assert all(abs(found[str(i)] - p) <= 0.011 for i, p in enumerate(parts))


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_shares_are_one_and_a_lost_region_gets_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    globe = Globe(rate=float(rng.uniform(10.0, 130.0)))
    globe.run(600.0)
    for _ in range(30):
        name = str(rng.choice(list(SIZES)))
        if rng.random() < 0.3:
            globe.down = {name} if name not in globe.down else set()
        globe.health[name] = float(rng.uniform(0.2, 1.0))
        globe.ttft[name] = float(rng.uniform(0.1, 3.0))
        globe.run(240.0)

        if globe.fleet.shares:
            assert sum(current(globe.view, globe.fleet, globe.federation).values()) == pytest.approx(1.0)
        if globe.view.states.get(next(iter(globe.down), "")) == "lost" and not globe.view.note:
            assert globe.shares()[next(iter(globe.down))] == 0.0


def test_the_view_survives_a_restart() -> None:
    globe = Globe(rate=50.0)
    globe.run(600.0)
    globe.down = {"east"}
    globe.run(300.0)

    again = decode(View, to_plain(globe.view))
    globe.view = replace(again)
    asked = globe.run(600.0)

    assert asked == []
    assert globe.view.states["east"] == "lost"


def test_mode_and_journal_hold_for_regions_too() -> None:
    globe = Globe(rate=50.0)
    policy = Policy(
        cluster="globe", federation=globe.federation, mode=Mode.APPROVE, able=frozenset({Verb.BALANCE})
    )
    core = Core(policy, {})
    verdicts = []
    for beat in range(80):
        globe.at += 15.0
        globe.down = {"east"} if beat > 40 else set()
        verdicts += core.tick(Frames(globe.at, {"region": globe.frame()})).verdicts

    asked = [v for v in verdicts if v.step.verb is Verb.BALANCE]
    assert asked
    assert {v.reason.value for v in asked} == {"awaits_approval"}


def test_a_lost_region_is_an_incident_and_a_silent_one_with_an_open_door_is_none() -> None:
    globe, watch = Globe(fronts={"west": 1.0}), RegionDetector()
    found = []
    for beat in range(40):
        globe.at += 15.0
        globe.down = {"east", "west"} if beat >= 10 else set()
        found += watch.update(Frames(globe.at, {"region": globe.frame()}))

    assert {(f.entity, f.kind, f.rule_id) for f in found} == {
        (Entity("region", "east"), "region_lost", "regions.silent")
    }
    assert found[0].at - found[0].since == pytest.approx(135.0)
