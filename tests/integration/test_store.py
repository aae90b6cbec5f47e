"""Real stores: back-filled demand agrees with what was written, live PromQL agrees with the exporter."""

import asyncio
import math
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from daemon.clock import wall_clock
from daemon.model import SourceError, Target
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from daemon.telemetry.history import History
from daemon.telemetry.promql import PromqlSource

pytestmark = pytest.mark.integration

CATALOGUE = load_catalogue()
GOLDEN = Path(__file__).parents[1] / "golden"
STEP_S = 60.0
SPAN_S = 6 * 3600
SCRAPE_S = 15
BASE = math.floor((time.time() - 10 * 3600) / 3600) * 3600.0
GAP = (BASE + 2 * 3600, BASE + 2.5 * 3600)
"""Nothing was scraped in this half hour."""

Start = Callable[[list[str]], subprocess.Popen[bytes]]
Answers = Callable[[str, subprocess.Popen[bytes]], None]


CACHES = (
    (("vllm:kv_cache_usage_perc", 0, 0.5), ("vllm:kv_cache_usage_perc", 1, 0.3)),
    (("vllm:kv_cache_usage_perc", 0, 0.25), ("vllm:gpu_cache_usage_perc", 0, 0.25)),
    (("vllm:kv_cache_usage_perc", 0, 0.9),),
)
"""engine -> (name, rank, share of the cache in use)."""
GPUS = (
    ("GPU-a0", "DCGM_FI_DEV_POWER_USAGE", 400.0, 0),
    ("GPU-a1", "DCGM_FI_DEV_POWER_USAGE", 300.0, 0),
    ("GPU-a1", "DCGM_FI_DEV_BOARD_POWER_WATTS", 300.0, 0),
    ("GPU-a2", "DCGM_FI_DEV_POWER_USAGE", 200.0, 4 * 3600),
    ("GPU-b9", "DCGM_FI_DEV_POWER_USAGE", 999.0, 0),
)
"""UUID, name, watts, second of the first sample."""


def rate_of(engine: int, at: float) -> float:
    """Generated tokens per second: a slow wave, so that neighbouring steps differ."""
    return 100.0 * (engine + 1) * (1.5 + math.sin(2 * math.pi * (at - BASE) / 7200))


def lines(millis: bool) -> str:
    """Six hours of two engines of one pool (one exports the old and the new KV names, one has two ranks) with a third of another
    pool, and of GPUs, one of which serves another pod from the third hour on, one comes later, one is of another cluster."""
    rows: dict[str, list[str]] = {}
    totals = [0.0, 0.0, 0.0]
    for second in range(0, SPAN_S, SCRAPE_S):
        at = BASE + second
        for engine in range(3):
            totals[engine] += rate_of(engine, at) * SCRAPE_S
            if GAP[0] <= at < GAP[1]:
                continue
            if engine == 1 and second >= 3 * 3600:
                value = totals[1] - 1e6  # restarted: the counter began again
            else:
                value = totals[engine]
            model = "other" if engine == 2 else "llama"
            common = f'engine="0",instance="e{engine}:8000",job="vllm",model_name="{model}"'
            stamp = f"{at * 1000:.0f}" if millis else f"{at:.3f}"
            for name, labels, shown in (
                ("vllm:generation_tokens_total", "", max(0.0, value)),
                ("vllm:request_success_total", ',finished_reason="stop"', max(0.0, value) / 200),
                ("vllm:request_success_total", ',finished_reason="abort"', max(0.0, value) / 2000),
                ("vllm:num_requests_running", "", 4.0 + engine),
                ("vllm:num_requests_waiting", "", 7.0),
                ("vllm:num_requests_waiting_by_reason", ',reason="capacity"', 2.0),
                ("vllm:num_requests_waiting_by_reason", ',reason="deferred"', 5.0),
            ):
                rows.setdefault(name, []).append(f"{name}{{{common}{labels}}} {shown!r} {stamp}\n")
            for name, rank, used in CACHES[engine]:
                labels = common.replace('engine="0"', f'engine="{rank}"')
                rows.setdefault(name, []).append(f"{name}{{{labels}}} {used} {stamp}\n")
        for uuid, name, watts, first in GPUS:
            if second >= first and not GAP[0] <= at < GAP[1]:
                stamp = f"{at * 1000:.0f}" if millis else f"{at:.3f}"
                labels = f'UUID="{uuid}",instance="n0:9400",pod="p{second // (3 * 3600)}"'
                rows.setdefault(name, []).append(f"{name}{{{labels}}} {watts} {stamp}\n")
    return "".join("".join(part) for part in rows.values())


def expected_tokens(at: float) -> float:
    """Mean rate of the pool over the step that begins at `at`."""
    inside = np.arange(at, at + STEP_S)
    return float(np.mean([rate_of(0, t) + rate_of(1, t) for t in inside]))


async def check_back_fill(url: str) -> None:
    history = History(url, CATALOGUE)
    pools = {"chat": {"model": "llama"}, "absent": {"model": "none"}}

    whole = await history.demand(pools, BASE + 600, BASE + SPAN_S - 600, STEP_S)
    early = await history.demand(pools, BASE + 600, BASE + 2.25 * 3600 + 17, STEP_S)
    late = await history.demand(pools, BASE + 2.25 * 3600, BASE + SPAN_S - 600, STEP_S)

    tokens = whole["chat"]["generation_tokens_s"]
    gap = (tokens.at >= GAP[0] + STEP_S) & (tokens.at + STEP_S <= GAP[1])
    assert np.isnan(tokens.values[gap]).all()
    around = (tokens.at + 2 * STEP_S > GAP[0]) & (tokens.at - STEP_S < GAP[1])
    restart = abs(tokens.at - (BASE + 3 * 3600)) <= 2 * STEP_S
    steady = ~around & ~restart
    expected = np.array([expected_tokens(at) for at in tokens.at[steady]])
    assert not np.isnan(tokens.values[steady]).any()
    np.testing.assert_allclose(tokens.values[steady], expected, rtol=0.02)
    assert np.nanmin(tokens.values) >= 0
    done = whole["chat"]["requests_done_per_s"].values[steady]
    np.testing.assert_allclose(done, expected / 200, rtol=0.02)
    # running 4 + 5, waiting 2 + 2: of the two ways to say waiting only the preferred one counts.
    np.testing.assert_allclose(whole["chat"]["concurrency"].values[steady], 13.0)
    # The fullest rank of the first engine, and the second engine once.
    np.testing.assert_allclose(whole["chat"]["kv_used_replicas"].values[steady], 0.75)
    assert np.isnan(whole["absent"]["generation_tokens_s"].values).all()
    assert np.isnan(whole["absent"]["kv_used_replicas"].values).all()
    hardware = await history.gpus(["GPU-a0", "GPU-a1", "GPU-a2"], BASE + 600, BASE + SPAN_S - 600, STEP_S)
    at, healthy = hardware["gpus_healthy"]
    power = hardware["power_w"].values
    silent = gap & (at + STEP_S < GAP[1])  # a mean needs one sample where a rate needs two
    assert np.isnan(healthy[silent]).all()
    assert np.isnan(power[silent]).all()
    few, all_three = steady & (at < BASE + 3.9 * 3600), steady & (at > BASE + 4.1 * 3600)
    np.testing.assert_allclose(healthy[few], 2.0)
    np.testing.assert_allclose(power[few], 700.0)
    np.testing.assert_allclose(healthy[all_three], 3.0)
    np.testing.assert_allclose(power[all_three], 900.0)
    # The joint: two readings that meet tell every step once and the same.
    joined_at = np.concatenate(
        [early["chat"]["generation_tokens_s"].at, late["chat"]["generation_tokens_s"].at]
    )
    joined = np.concatenate(
        [early["chat"]["generation_tokens_s"].values, late["chat"]["generation_tokens_s"].values]
    )
    np.testing.assert_array_equal(joined_at, tokens.at)
    np.testing.assert_allclose(joined, tokens.values)


@pytest.fixture
def prometheus(
    tmp_path: Path, binary: Callable[[str], str], start: Start, free_port: Callable[[], int], answers: Answers
) -> Callable[[str], str]:
    def _prometheus(config: str) -> str:
        (tmp_path / "prometheus.yml").write_text(config)
        port = free_port()
        process = start(
            [
                binary("prometheus"),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ]
        )
        answers(f"http://127.0.0.1:{port}/-/ready", process)
        return f"http://127.0.0.1:{port}"

    return _prometheus


def create_blocks(promtool: str, folder: Path) -> None:
    (folder / "history.txt").write_text(lines(millis=False) + "# EOF\n")
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", "history.txt", "tsdb"]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=folder)


async def test_prometheus_history_is_back_filled_without_gap_or_double_count(
    tmp_path: Path, binary: Callable[[str], str], prometheus: Callable[[str], str]
) -> None:
    await asyncio.to_thread(create_blocks, binary("promtool"), tmp_path)
    url = await asyncio.to_thread(prometheus, "global: {scrape_interval: 15s}\n")

    await check_back_fill(url)


async def test_victoria_metrics_history_reads_the_same(
    tmp_path: Path, binary: Callable[[str], str], start: Start, free_port: Callable[[], int], answers: Answers
) -> None:
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
    await asyncio.to_thread(answers, f"{url}/health", process)

    def post(path: str, body: bytes) -> None:
        with urllib.request.urlopen(urllib.request.Request(url + path, data=body), timeout=30) as answer:
            assert answer.status in (200, 204)

    await asyncio.to_thread(post, "/api/v1/import/prometheus", lines(millis=True).encode())
    await asyncio.to_thread(post, "/internal/force_flush", b"")

    await check_back_fill(url)


async def test_a_store_that_is_not_there_is_a_clear_error(free_port: Callable[[], int]) -> None:
    history = History(f"http://127.0.0.1:{free_port()}", CATALOGUE, timeout_s=2.0)

    with pytest.raises(SourceError, match="start without back-fill"):
        await history.demand({"chat": {}}, BASE, BASE + 600, STEP_S)


@asynccontextmanager
async def engine_page(body: list[str]) -> AsyncIterator[int]:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text=body[0])

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def test_live_promql_gives_what_the_exporter_says(
    prometheus: Callable[[str], str], free_port: Callable[[], int]
) -> None:
    body = (GOLDEN / "vllm-0.32-loaded-1.txt").read_text()
    dead = free_port()
    async with engine_page([body]) as port:
        config = f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: engines
  static_configs:
  - {{targets: ['127.0.0.1:{port}'], labels: {{pool: chat, node: n1}}}}
  - {{targets: ['127.0.0.1:{dead}']}}
"""
        url = await asyncio.to_thread(prometheus, config)
        source = PromqlSource(url, CATALOGUE, wall_clock)
        scrapes = {}
        try:
            async with asyncio.timeout(60):
                while len(scrapes) < 2:
                    scrapes |= {s.target: s for s in await source.read()}
                    await asyncio.sleep(0.3)
                again = await source.read()
                while not any(s.target == f"127.0.0.1:{port}" for s in again):
                    again = await source.read()
                    await asyncio.sleep(0.3)
        finally:
            await source.close()

    scrape = scrapes[f"127.0.0.1:{port}"]
    reading = Page(CATALOGUE.wanted, CATALOGUE.keep).parse(body.encode())
    direct = CATALOGUE.identify(
        Target(f"127.0.0.1:{port}", labels=(("node", "n1"), ("pool", "chat"))), reading.keys
    )
    assert scrape.layout is not None
    assert scrape.values is not None

    def order(series: object) -> str:
        return repr(series)

    through_store = sorted(zip(scrape.layout.series, scrape.values.tolist(), strict=True), key=order)
    from_page = sorted(
        zip(direct.layout.series, direct.values(reading.values).tolist(), strict=True), key=order
    )
    assert repr(through_store) == repr(from_page)
    assert set(scrape.layout.facts) == set(direct.layout.facts)
    assert abs(scrape.at - wall_clock()) < 60
    newer = next(s for s in again if s.target == f"127.0.0.1:{port}")
    assert newer.at > scrape.at
    assert newer.layout is scrape.layout
    assert scrapes[f"127.0.0.1:{dead}"].error == "the store could not scrape it (up is 0)"
