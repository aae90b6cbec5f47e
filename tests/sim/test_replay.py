"""Recorded days played again: the same core, other people's telemetry, the original times."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import _replay
from daemon.cli import Roots, run
from daemon.model import Entity
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.recording import Run, Tape, cut, from_export
from simulator.defaults import default_spec
from simulator.faults import Fault
from simulator.recorder import export
from simulator.world import World

EPOCH = 1_780_272_000.0 + 10 * 3600.0
FAULT_AT = EPOCH + 2400.0


def replayed(*arguments: str) -> int:
    nothing = lambda *_: 0  # noqa: E731
    return run(Roots(*[nothing] * 3, _replay, *[nothing] * 4), ["replay", *arguments])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour and a half of 16 GPUs at a step of 30 s, in which a GPU falls off the bus."""
    spec = replace(default_spec(16), telemetry_loss=0.0)
    world = World(spec, 4, EPOCH)
    world.inject(Fault("xid79", Entity("gpu", "n00/gpu1"), FAULT_AT, 3600.0))
    return export(world, tmp_path_factory.mktemp("recording"), 5400.0, 30.0, ("node", "rack", "pool", "gpus"))


def test_a_lost_gpu_is_found_at_its_original_time_with_what_would_have_been_done(recording, capsys):
    assert (
        replayed("--from", str(recording), "--days", "1", "--policy", "ours", "--policy", "hpa", "--json")
        == 0
    )

    result = json.loads(capsys.readouterr().out)
    lost = next(i for i in result["incidents"] if i["kind"] == "gpu_lost")
    assert (lost["scope"], lost["entity"]) == ("gpu", "n00/gpu1")
    assert FAULT_AT <= lost["opened_at"] <= FAULT_AT + 120.0
    assert "reroute" in {step["verb"] for step in lost["steps"]}
    assert all(step["at"] >= lost["opened_at"] for step in lost["steps"])
    assert result["step_s"] == 30.0
    assert result["gpus"] == 16
    assert set(result["policies"]) == {"recorded", "ours", "hpa"}
    assert result["policies"]["recorded"]["gpu_hours"] > 0
    assert result["speed"] > 100.0


def test_a_replay_gives_the_same_answer_twice(recording, capsys):
    found = []
    for _ in range(2):
        replayed("--from", str(recording), "--days", "1", "--policy", "ours", "--json")
        result = json.loads(capsys.readouterr().out)
        found.append({k: v for k, v in result.items() if k not in ("speed", "wall_s")})

    assert found[0] == found[1]


def test_the_page_draws_every_pool(recording, tmp_path, capsys):
    page = tmp_path / "replay.html"

    replayed("--from", str(recording), "--days", "1", "--policy", "ours", "--plot", str(page))

    text = page.read_text(encoding="utf-8")
    assert text.count("<polyline") >= 2
    assert "CONTROLLER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "no *.jsonl"),
        ({"a.jsonl": "nonsense"}, "a.jsonl:1: not a line of an export"),
        (
            {"a.jsonl": '{"metric": {"__name__": "other"}, "values": [1], "timestamps": [1000]}'},
            "nothing was recorded",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(files, complaint, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    assert replayed("--from", str(tmp_path)) == 1

    assert complaint in capsys.readouterr().err


def test_scrapes_come_back_as_they_were_made():
    at = np.array([100.0, 115.0, 130.0])
    own = {"instance": "e0:8000", "model_name": "m", "engine": "0"}
    runs = [
        Run({"__name__": "vllm:num_requests_running", **own}, at, np.array([1.0, 2.0, 3.0])),
        Run({"__name__": "vllm:num_requests_waiting", **own}, at[:2] + 0.2, np.array([4.0, 5.0])),
        Run({"__name__": "up", "instance": "e0:8000"}, np.array([145.0]), np.array([0.0])),
    ]
    tape = Tape(load_catalogue())

    found = tape.scrapes(runs, 150.0)

    assert [s.at for s in found] == pytest.approx([100.2, 115.2, 130.0, 145.0])
    assert found[-1].error.startswith("the store could not scrape it")
    assert tape.step_s == pytest.approx(15.0, abs=0.3)
    running = [float(np.nansum(s.values)) for s in found[:3] if s.values is not None]
    assert running == [5.0, 7.0, 3.0]
    assert [s.error for s in tape.scrapes([], 165.0)] == []
    assert [s.error for s in tape.scrapes([], 180.0)] == ["no longer discovered"]


def test_an_export_is_cut_at_the_edges_of_a_chunk_without_loss(recording):
    runs = from_export(recording)
    first = min(float(r.at[0]) for r in runs)

    parts = [cut(runs, first - 1 + k * 900.0, first - 1 + (k + 1) * 900.0) for k in range(7)]

    assert sum(r.at.size for part in parts for r in part) == sum(r.at.size for r in runs)
