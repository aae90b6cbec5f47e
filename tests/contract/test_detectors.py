"""Every detector of the registry, on frames of a simulated cluster: the promises that all of them make."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from daemon.codec import decode, to_plain
from daemon.frame import FrameBuilder
from daemon.model import KINDS, NAN, Detector, Entity, Finding, Frame, Frames
from daemon.outlook import Outlook
from daemon.outlook import frame as outlook_frame
from daemon.patterns import PATTERNS
from detectors import DETECTORS
from simulator.defaults import default_spec
from simulator.faults import Fault
from simulator.policies import policy_of
from simulator.sources import WorldSource
from simulator.world import World

EPOCH = 1_780_272_000.0 + 8 * 3600.0
"""A Monday, 08:00 UTC."""
TICK = 15.0
GPUS = 32
TROUBLE = (
    Fault("thermal-throttle", Entity("gpu", "n00/gpu5"), EPOCH + 600.0, 3600.0, 0.4),
    Fault("slow-silicon", Entity("gpu", "n01/gpu3"), EPOCH + 300.0, 7200.0, 0.2),
    Fault("engine-hang", Entity("engine", "n00:8000"), EPOCH + 900.0, 3600.0),
    Fault("bad-cable", Entity("port", "n02/mlx5_0"), EPOCH + 700.0, 3600.0, 80.0),
    Fault("pfc-storm", Entity("port", "n01/mlx5_1"), EPOCH + 1200.0, 3600.0),
    Fault("exporter-outage", Entity("target", "n03:9400"), EPOCH + 900.0, 3600.0),
    Fault("xid79", Entity("gpu", "n02/gpu6"), EPOCH + 1000.0, 7200.0),
    Fault("spot-reclaim", Entity("node", "n03"), EPOCH + 600.0, 7200.0, 2400.0),
    Fault("slow-store", Entity("storage", "nas:/models"), EPOCH + 1500.0, 7200.0),
)
Stream = tuple[Frames, ...]
Change = Callable[[Frame, int], Frame]


@cache
def stream(faulty: bool, minutes: int) -> Stream:
    """A quarter of an hour each of tides, noise and lost scrapes; with faults when `faulty`."""
    spec = default_spec(GPUS)
    world = World(spec, 3, EPOCH)
    for fault in TROUBLE if faulty else ():
        world.inject(fault)
    builder = FrameBuilder(policy_of(spec, "contract"))
    now = [EPOCH]
    source = WorldSource(world, lambda: now[0])

    async def read() -> list[Frames]:
        made = []
        for tick in range(minutes * 4):
            now[0] = EPOCH + TICK * tick
            for scrape in await source.read():
                builder.absorb(scrape)
            made.append(_with_outlook(builder.build(now[0]), tick, short=faulty))
        return made

    return tuple(asyncio.run(read()))


def _with_outlook(frames: Frames, tick: int, *, short: bool) -> Frames:
    """A forecast every quarter of an hour that sees a third more, or a third less, than stands."""
    need = GPUS * (1.33 if short else 0.67)
    needed = {0.5: np.full(168, 0.8 * need), 0.9: np.full(168, need)}
    outlook = Outlook(frames.at, 3600.0, needed, float(GPUS), EPOCH + 900.0 * (tick // 60), 86400.0)
    cluster = outlook_frame(outlook, policy_of(default_spec(GPUS), "contract"))
    regions = _regions(frames.at, tick, lost=short)
    engine = _canary(frames["engine"]) if short and tick >= 20 else frames["engine"]
    more = {"cluster": cluster, "region": regions, "engine": engine}
    return Frames(frames.at, {**frames.by_kind, **more}, frames.events)


def _canary(engine: Frame) -> Frame:
    """The second replica, which nothing else ails, runs another version, of whose requests nine in ten fail."""
    values, column = engine.values.copy(), engine.signals.index("lb_errors_per_s")
    values[1, column] = 9.0 * engine.column("lb_done_per_s")[1]
    before = engine.facts["version"]
    versions = (before[0], "v2", *before[2:])
    return replace(engine, values=values, facts={**engine.facts, "version": versions})


def _regions(at: float, tick: int, *, lost: bool) -> Frame:
    """Two regions; one of them falls silent after ten minutes, and the door of the other is shut after twenty."""
    silent, shut = lost and tick >= 40, lost and tick >= 80
    values = np.array([[NAN if silent else 1.0, NAN, 9.0], [0.9, 0.0 if shut else 1.0, 8.0]])
    signals = ("health_ratio", "front_up", "requests_per_s")
    return Frame(at, "region", ("north", "south"), signals, values, np.zeros(2))


def healthy() -> Stream:
    return stream(False, 40)


def sick() -> Stream:
    return stream(True, 50)


def changed(given: Iterable[Frames], change: Change) -> Stream:
    """The stream with every frame changed; the change knows the tick."""
    return tuple(
        Frames(f.at, {k: change(frame, tick) for k, frame in f.by_kind.items()}, f.events)
        for tick, f in enumerate(given)
    )


def picked(frame: Frame, order: np.ndarray) -> Frame:
    """The rows of a frame in another order, or some of them."""
    return replace(
        frame,
        entities=tuple(frame.entities[i] for i in order),
        values=frame.values[order],
        age_s=frame.age_s[order],
        facts={k: tuple(v[i] for i in order) for k, v in frame.facts.items()},
    )


def claims(found: Iterable[Finding]) -> set[tuple[Any, ...]]:
    """What a set of findings says, whatever the order; figures to six digits."""
    return {
        (f.detector, str(f.entity), f.kind, f.severity, round(f.score, 6), f"{f.since:.6g}", f.text)
        for f in found
    }


@pytest.fixture(params=sorted(DETECTORS))
def make(request: pytest.FixtureRequest) -> Callable[[], Detector]:
    return DETECTORS[request.param]


def said(detector: Detector, given: Iterable[Frames]) -> list[list[Finding]]:
    return [detector.update(frames) for frames in given]


# -- what it says ----------------------------------------------------------------------------------------------


def test_a_healthy_cluster_gives_no_finding(make: Callable[[], Detector]) -> None:
    assert [f for found in said(make(), healthy()) for f in found if f.severity != "info"] == []


def test_a_sick_cluster_gives_findings_that_are_whole(make: Callable[[], Detector]) -> None:
    found = [(frames, f) for frames, each in zip(sick(), said(make(), sick()), strict=True) for f in each]

    assert found
    names = {n for n, m in DETECTORS.items() if m is make}
    for frames, finding in found:
        assert finding.detector in names
        assert finding.kind in PATTERNS
        assert finding.at == frames.at
        assert 0.0 <= finding.score <= 1.0
        assert finding.since != finding.since or finding.since <= finding.at
        assert finding.evidence
        assert finding.entity.name
        if finding.entity.kind in KINDS:
            assert finding.entity.name in frames[finding.entity.kind].entities


def test_the_right_things_are_blamed() -> None:
    """All detectors together name each injected fault at its place."""
    found = {
        (f.kind, str(f.entity)) for make in DETECTORS.values() for each in said(make(), sick()) for f in each
    }

    assert {
        ("gpu_throttle", "gpu n00/gpu5"),
        ("gpu_slow", "gpu n01/gpu3"),
        ("gpu_lost", "gpu n02/gpu6"),
        ("engine_hung", "engine n00:8000"),
        ("bad_cable", "port n02/mlx5_0"),
        ("pfc_storm", "port n01/mlx5_1"),
        ("target_down", "target n03:9400"),
        ("store_slow", "storage nas:/models"),
        ("capacity_short", "cluster contract"),
    } <= found


# -- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.35, 0.6])
def test_dumped_and_loaded_in_midstream_it_says_the_same(make: Callable[[], Detector], share: float) -> None:
    cut = int(share * len(sick()))
    kept = make()
    said(kept, sick()[:cut])
    loaded = decode(type(kept), json.loads(json.dumps(to_plain(kept))))

    after, again = said(kept, sick()[cut:]), said(loaded, sick()[cut:])

    assert to_plain(again) == to_plain(after)
    assert any(after)


def test_two_of_them_on_the_same_frames_say_the_same(make: Callable[[], Detector]) -> None:
    assert to_plain(said(make(), sick())) == to_plain(said(make(), sick()))


def test_frames_are_left_as_they_were(make: Callable[[], Detector]) -> None:
    given = sick()[-40:]
    before = [{k: f.values.tobytes() for k, f in frames.by_kind.items()} for frames in given]

    said(make(), given)

    assert [{k: f.values.tobytes() for k, f in frames.by_kind.items()} for frames in given] == before


# -- what is missing -------------------------------------------------------------------------------------------


def test_empty_frames_are_quiet(make: Callable[[], Detector]) -> None:
    empty = [Frames(EPOCH + TICK * k, {}) for k in range(8)]

    assert said(make(), empty) == [[]] * 8


def test_frames_of_entities_with_nothing_measured_are_quiet(make: Callable[[], Detector]) -> None:
    blank = changed(
        healthy()[-40:], lambda frame, _: replace(frame, values=np.full_like(frame.values, np.nan))
    )

    assert said(make(), blank) == [[]] * 40


def test_going_blind_in_the_middle_raises_no_new_alarm(make: Callable[[], Detector]) -> None:
    half = len(healthy()) // 2
    blinded = changed(
        healthy(),
        lambda frame, tick: (
            frame if tick < half else replace(frame, values=np.full_like(frame.values, np.nan))
        ),
    )

    assert [f for found in said(make(), blinded) for f in found if f.severity != "info"] == []


def test_one_entity_of_each_kind_has_no_peers_and_is_quiet(make: Callable[[], Detector]) -> None:
    lonely = changed(healthy(), lambda frame, _: picked(frame, np.arange(min(1, len(frame.entities)))))

    assert [f for found in said(make(), lonely) for f in found if f.severity != "info"] == []


def test_signals_that_vanish_one_after_the_other_raise_no_alarm(make: Callable[[], Detector]) -> None:
    def fewer(frame: Frame, tick: int) -> Frame:
        gone = max(0, tick - 80) if frame.kind != "cluster" else 0
        values = frame.values.copy()
        values[:, :gone] = np.nan
        return replace(frame, values=values)

    found = [f for each in said(make(), changed(healthy(), fewer)) for f in each]

    assert [f for f in found if f.severity != "info"] == []


def test_each_signal_may_be_absent_alone(make: Callable[[], Detector]) -> None:
    """Tick k lacks the k-th signal of every kind, round and round, columns and all."""

    def without(frame: Frame, tick: int) -> Frame:
        if frame.kind == "cluster" or not frame.signals:
            return frame
        gone = tick % len(frame.signals)
        keep = [i for i in range(len(frame.signals)) if i != gone]
        return replace(frame, signals=tuple(frame.signals[i] for i in keep), values=frame.values[:, keep])

    found = [f for each in said(make(), changed(healthy(), without)) for f in each]

    assert [f for f in found if f.severity != "info"] == []


def test_frames_without_facts_raise_no_alarm(make: Callable[[], Detector]) -> None:
    found = said(make(), changed(healthy(), lambda frame, _: replace(frame, facts={})))

    assert [f for each in found for f in each if f.severity != "info"] == []


# -- order and size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled_anew", [False, True], ids=["one other order", "another order each tick"])
def test_the_order_of_entities_does_not_matter(make: Callable[[], Detector], shuffled_anew: bool) -> None:
    def mixed(frame: Frame, tick: int) -> Frame:
        rng = np.random.default_rng(tick if shuffled_anew else 0)
        return picked(frame, rng.permutation(len(frame.entities)))

    straight, crooked = said(make(), sick()), said(make(), changed(sick(), mixed))

    assert [claims(found) for found in crooked] == [claims(found) for found in straight]


def test_constant_input_is_quiet(make: Callable[[], Detector]) -> None:
    """The same figures for two hours; only the clocks of nodes go on."""
    still = healthy()[-1]

    def at(seconds: float) -> Frames:
        by_kind = {}
        for kind, frame in still.by_kind.items():
            values = frame.values.copy()
            if "clock_s" in frame.signals:
                values[:, frame.signals.index("clock_s")] += seconds
            by_kind[kind] = replace(frame, at=still.at + seconds, values=values)
        return Frames(still.at + seconds, by_kind)

    found = said(make(), [at(TICK * k) for k in range(480)])

    assert [f for each in found for f in each if f.severity != "info"] == []


def calls_of(detector: Detector, given: Iterable[Frames]) -> int:
    """Python calls made: a measure of work that no busy machine disturbs."""
    count = 0

    def count_one(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_one)
    try:
        for frames in given:
            detector.update(frames)
    finally:
        sys.setprofile(None)
    return count


def test_cost_grows_far_slower_than_the_fleet(make: Callable[[], Detector]) -> None:
    """Columns, not loops: ten times the hardware costs less than four times the calls."""
    few = healthy()[-60:]

    def tenfold(frame: Frame, _: int) -> Frame:
        if frame.kind in ("cluster", "pool"):
            return frame
        copies = [
            replace(
                picked(frame, np.arange(len(frame.entities))),
                entities=tuple(f"c{k}-{n}" for n in frame.entities),
            )
            for k in range(10)
        ]
        return replace(
            frame,
            entities=tuple(n for c in copies for n in c.entities),
            values=np.vstack([c.values for c in copies]),
            age_s=np.concatenate([c.age_s for c in copies]),
            facts={k: v * 10 for k, v in frame.facts.items()},
        )

    many = changed(few, tenfold)

    assert calls_of(make(), many) < 4 * calls_of(make(), few) + 100 * len(few)
