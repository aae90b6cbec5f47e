"""The last two hours: what is kept, what it is held against, what stays of an incident."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daemon.model import Entity, Evidence, Finding, Frame, Frames, Incident, Severity
from daemon.pictures import KEPT_S
from daemon.recent import KEPT, Recent, pictured
from daemon.record import Record
from daemon.web.fleetmap import fleet, step_of
from daemon.web.traces import drawn, sparks


def frames(at: float, temperatures: list[float], groups: tuple[str, ...] = ("a", "a", "a", "b")) -> Frames:
    """GPUs n0/gpu0.. with a temperature each and nothing else measured."""
    names = tuple(f"n0/gpu{k}" for k in range(len(temperatures)))
    values = np.array(temperatures)[:, None]
    facts = {"peer": groups[: len(names)]}
    gpu = Frame(at, "gpu", names, ("temp_c",), values, np.zeros(len(names)), facts)
    return Frames(at, {"gpu": gpu})


def filled(minutes: int) -> Recent:
    recent = Recent()
    for k in range(minutes * 4):
        recent.push(frames(1000.0 + 15.0 * k, [90.0, 50.0, 60.0, 10.0]))
    return recent


def test_one_value_a_minute_is_kept_for_two_hours() -> None:
    recent = filled(KEPT + 30)

    assert len(recent.minutes) == KEPT
    assert np.diff([m.at for m in recent.minutes]).tolist() == [60.0] * (KEPT - 1)


def test_a_trace_stands_beside_the_median_of_its_peers_without_itself() -> None:
    recent = filled(5)

    (trace,) = recent.traces("gpu", "n0/gpu0", recent.peers(Entity("gpu", "n0/gpu0")))

    assert trace.signal == "temp_c"
    assert trace.own.tolist() == [90.0] * 5
    assert set(trace.low.tolist()) == {50.0}
    assert set(trace.high.tolist()) == {60.0}


def test_what_was_never_measured_has_no_trace_and_who_has_no_peers_no_median() -> None:
    recent = filled(3)

    (alone,) = recent.traces("gpu", "n0/gpu3", recent.peers(Entity("gpu", "n0/gpu3")))

    assert np.isnan(alone.median).all()
    assert recent.traces("gpu", "n9/gpu0") == []
    assert recent.traces("port", "n0/mlx5_0") == []


def test_who_left_is_still_held_against_its_former_peers() -> None:
    recent = filled(3)
    for k in range(8):
        recent.push(frames(1180.0 + 15.0 * k, [50.0], ("b",)))

    peers = recent.peers(Entity("gpu", "n0/gpu2"))
    (trace,) = recent.traces("gpu", "n0/gpu2", peers)

    assert peers == ["n0/gpu0", "n0/gpu1", "n0/gpu2"]
    assert [math.isnan(v) for v in trace.own.tolist()] == [False] * 3 + [True] * 2


@pytest.fixture
def incident() -> Incident:
    gpu = Entity("gpu", "n0/gpu0")
    finding = Finding(
        1100.0, "fault", gpu, "gpu_throttle", 0.9, Severity.WARNING, (Evidence("temp", 90.0, "C"),), 1100.0
    )
    return Incident(
        id="i00001",
        kind="gpu_throttle",
        scope=gpu,
        opened=1120.0,
        severity=Severity.WARNING,
        seen=1300.0,
        findings=(finding,),
        state="closed",
        closed=1300.0,
    )


def test_pictures_of_a_closed_incident_outlive_the_process(tmp_path: Path, incident: Incident) -> None:
    recent = filled(5)
    record = Record.open(tmp_path / "state.db")
    record.pictures.keep(1300.0, "i00001", pictured(recent, incident))
    record.commit()
    record.close()

    again = Record.open(tmp_path / "state.db")
    (trace,) = again.pictures.of("i00001")

    assert trace.own.tolist() == [90.0] * 5
    assert (trace.kind, trace.name, trace.signal) == ("gpu", "n0/gpu0", "temp_c")
    again.prune(1300.0 + KEPT_S + 1.0)
    again.commit()
    assert again.pictures.of("i00001") == []
    again.close()


def test_what_was_set_aside_is_shown_beside_those_it_served_with(incident: Incident) -> None:
    """Drained it is one of the idle ones, beside which its fault would look like a virtue."""
    recent = filled(5)
    for k in range(12):
        recent.push(frames(1300.0 + 15.0 * k, [40.0, 50.0, 60.0, 10.0], ("b", "a", "a", "b")))

    (trace,) = pictured(recent, incident)

    assert set(trace.median.tolist()) <= {50.0, 60.0}
    assert recent.peers(Entity("gpu", "n0/gpu0")) == ["n0/gpu0", "n0/gpu3"]


def test_an_incident_older_than_what_is_kept_is_shown_beside_the_oldest_peers_known(
    incident: Incident,
) -> None:
    (trace,) = pictured(filled(5), replace(incident, opened=100.0))

    assert set(trace.median.tolist()) <= {50.0, 60.0}


def test_a_trace_is_drawn_with_its_peers_and_read_aloud() -> None:
    recent = filled(5)
    traces = recent.traces("gpu", "n0/gpu0", recent.peers(Entity("gpu", "n0/gpu0")))

    picture = drawn(traces[0], [("open", 1060.0, 1120.0)])
    line = sparks(traces)["temp_c"]

    assert 'aria-label="temperature of n0/gpu0 beside its peers"' in picture
    assert picture.count('class="band wide"') == 2  # the band, and its key in the legend
    assert "while it was open" in picture
    assert 'aria-label="temperature of n0/gpu0: 90 to 90 °C"' in line


def node(name: str, rack: str, values: list[float], state: str = "serving") -> dict[str, object]:
    cards = [{"util_ratio": v} for v in values]
    return {"name": name, "rack": rack, "leaf": "l0", "state": state, "gpus": cards}


def test_the_map_shows_every_gpu_by_size_and_says_the_same_in_words() -> None:
    nodes = [
        node("n0", "r0", [0.0, 1.0, 1.0, math.nan]),
        node("n1", "r0", [0.3] * 4, "isolated"),
        node("n2", "r1", []),
    ]

    data = fleet(nodes, "busy")

    first, second = data["racks"]
    assert (data["gpus"], first["gpus"], second["gpus"]) == (8, 8, 0)
    assert first["unknown"] == 1
    assert first["marked"] == {"isolated": ["n1"]}
    assert round(first["mean"]) == 46
    assert '<path class="f-1" d="M30 5h9"/>' in first["svg"]
    assert '<path class="f5" d="M10 5h19"/>' in first["svg"]
    assert '<path class="f2" d="M0 15h39"/>' in first["svg"]
    assert '<a href="/nodes/n1">n1</a>' in first["svg"]


def test_the_scale_begins_at_zero_and_knows_the_unknown() -> None:
    assert [step_of(v, (0.05, 0.5)) for v in (0.0, 0.05, 0.7, math.nan)] == [0, 1, 2, -1]


def test_ten_thousand_gpus_fit_a_page() -> None:
    rng = np.random.default_rng(1)
    nodes = [node(f"node-{k:04d}", f"rack-{k // 8:03d}", rng.random(8).tolist()) for k in range(1250)]

    size = sum(len(r["svg"]) for r in fleet(nodes, "busy")["racks"])

    assert size < 110_000  # at its worst, when no two neighbours are alike
