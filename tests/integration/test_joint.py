"""History from a real Prometheus goes over into live telemetry without a gap and without counting anything twice."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import Parts, assemble, fit_here
from daemon.clock import wall_clock
from daemon.demand import BUCKET_S
from daemon.loop import Pace
from daemon.model import Entity, Fact, Layout, Scrape, Series
from daemon.policy import Policy
from daemon.record import Record
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.history import History

pytestmark = pytest.mark.integration

RUNNING_BEFORE, RUNNING_NOW = 4.0, 9.0
ENGINE = Entity("engine", "e0:8000")
LAYOUT = Layout("e0:8000", (Series("running", ENGINE),), (Fact(ENGINE, "model", "llama"),))


class Live:
    """An engine that runs nine requests now, where the store remembers four."""

    async def read(self) -> Sequence[Scrape]:
        return [Scrape("e0:8000", wall_clock(), LAYOUT, np.array([RUNNING_NOW]))]


def history_lines(now: float) -> str:
    labels = 'engine="0",instance="e0:8000",job="vllm",model_name="llama"'
    stamps = np.arange(now - 4 * 3600, now, 15.0)
    lines = [f"vllm:num_requests_running{{{labels}}} {RUNNING_BEFORE} {at:.3f}" for at in stamps]
    return "\n".join([*lines, "# EOF\n"])


async def test_the_past_ends_where_the_present_begins(
    tmp_path: Path,
    binary: Callable[[str], str],
    start: Callable[[list[str]], subprocess.Popen[bytes]],
    free_port: Callable[[], int],
    answers: Callable[[str, subprocess.Popen[bytes]], None],
):
    now = time.time()
    (tmp_path / "history.txt").write_text(history_lines(now))
    blocks = [binary("promtool"), "tsdb", "create-blocks-from", "openmetrics", "history.txt", "tsdb"]
    await asyncio.to_thread(
        subprocess.run, blocks, check=True, capture_output=True, timeout=120, cwd=tmp_path
    )
    (tmp_path / "prometheus.yml").write_text("{}")
    address = f"127.0.0.1:{free_port()}"
    storage = f"--storage.tsdb.path={tmp_path / 'tsdb'}"
    config = f"--config.file={tmp_path / 'prometheus.yml'}"
    process = start([binary("prometheus"), config, storage, f"--web.listen-address={address}"])
    answers(f"http://{address}/-/ready", process)
    record = Record.open(tmp_path / "state")
    daemon = assemble(
        Parts(
            policy=Policy(tick_s=0.1),
            sources={"live": Live()},
            record=record,
            clock=wall_clock,
            fit=fit_here,
            backends={},
            action_of={},
            pace=Pace(tick_s=0.1, history_s=3 * 3600.0),
            history=History(f"http://{address}", load_catalogue()),
        )
    )
    begun = wall_clock()

    await daemon.run(ticks=30)

    at, concurrency = record.series("pool", "llama", "concurrency", now - 3 * 3600, now + 3600)
    record.close()
    np.testing.assert_array_equal(np.diff(at), BUCKET_S)  # every bucket once, none missing
    assert at[-1] <= wall_clock() < at[-1] + BUCKET_S
    live = at >= begun // BUCKET_S * BUCKET_S
    np.testing.assert_allclose(concurrency[live], RUNNING_NOW)
    np.testing.assert_allclose(concurrency[~live], RUNNING_BEFORE)
    assert (~live).sum() >= 3 * 3600 / BUCKET_S - 2
