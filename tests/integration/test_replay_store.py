"""A VictoriaMetrics that somebody else filled gives the same replay as an export of it."""

import json
import math
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.__main__ import _replay
from daemon.cli import Roots, run
from daemon.model import Entity
from simulator.defaults import default_spec
from simulator.faults import Fault
from simulator.recorder import export
from simulator.world import World

pytestmark = pytest.mark.integration

SPAN_S, STEP_S = 3600.0, 15.0
BEGAN = math.floor(time.time() / 900.0) * 900.0 - 3 * 3600.0
FAULT_AT = BEGAN + 1800.0

Start = Callable[[list[str]], subprocess.Popen[bytes]]
Answers = Callable[[str, subprocess.Popen[bytes]], None]


def post(url: str, body: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
        assert answer.status in (200, 204)


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    nothing = lambda *_: 0  # noqa: E731
    roots = Roots(*[nothing] * 3, _replay, *[nothing] * 4)
    assert run(roots, ["replay", "--days", "0.05", "--policy", "ours", "--json", *arguments]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_store_filled_by_others_is_replayed_with_original_times(
    tmp_path: Path,
    binary: Callable[[str], str],
    start: Start,
    free_port: Callable[[], int],
    answers: Answers,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(replace(default_spec(16), telemetry_loss=0.0), 4, BEGAN)
    world.inject(Fault("xid79", Entity("gpu", "n00/gpu1"), FAULT_AT, 3600.0))
    folder = tmp_path / "export"
    folder.mkdir()
    export(world, folder, SPAN_S, STEP_S, ("node", "pool", "gpus"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(
        [
            binary("victoria-metrics"),
            f"-storageDataPath={tmp_path / 'vm'}",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-retentionPeriod=6",
            "-search.latencyOffset=0s",
        ]
    )
    answers(f"{url}/health", process)
    post(f"{url}/api/v1/import", (folder / "week.jsonl").read_bytes())
    post(f"{url}/internal/force_flush", b"")

    until = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(BEGAN + SPAN_S))
    stored = replayed(capsys, "--from", url, "--until", until)
    exported = replayed(capsys, "--from", str(folder))

    for result in (stored, exported):
        lost = next(i for i in result["incidents"] if i["kind"] == "gpu_lost")
        assert lost["entity"] == "n00/gpu1"
        assert FAULT_AT <= lost["opened_at"] <= FAULT_AT + 60.0
        assert result["step_s"] == STEP_S
    assert abs(stored["ticks"] - exported["ticks"]) <= 2
    assert {i["kind"] for i in stored["incidents"]} == {i["kind"] for i in exported["incidents"]}


def test_a_store_that_is_not_there_is_a_clear_error(
    free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = lambda *_: 0  # noqa: E731
    roots = Roots(*[nothing] * 3, _replay, *[nothing] * 4)

    code = run(roots, ["replay", "--from", f"http://127.0.0.1:{free_port()}", "--days", "0.05"])

    assert code == 1
    assert "check the address" in capsys.readouterr().err
