"""What is recorded of pools and of the cluster every five minutes, and forecast from it."""

import asyncio
import math

import numpy as np
import pytest
from small_frames import frame, frames
from web_town import Town, lived

from daemon.demand import Buckets
from daemon.fleet import Fleet, Mark
from daemon.foresight import CLUSTER_SIGNALS, SIGNALS, Foresight
from daemon.model import Entity, Forecast, Frame, Track
from daemon.outlook import cluster_now
from daemon.policy import Mode, Policy, PoolPolicy
from daemon.record import Record
from daemon.replica import Learnt
from daemon.topology import Topology

HOUR = 3600.0
NODES = {f"n{k}": tuple(f"n{k}/gpu{g}" for g in range(4)) for k in range(3)}
TOPOLOGY = Topology(
    nodes=tuple(NODES),
    gpus_on=NODES,
    engines_on={"n0": ("a",), "n1": ("b",)},
    gpus_of={"a": NODES["n0"], "b": NODES["n1"]},
    pool_of={"a": "chat", "b": "chat"},
)
POLICY = Policy(cluster="c", pools=(PoolPolicy("chat"),), spare_min=1)


def now(concurrency: float, watts: dict[str, float], fleet: Fleet | None = None, **learnt: Learnt) -> Frame:
    gpus = {g: {"power_w": watts.get(g, math.nan)} for node in NODES.values() for g in node}
    seen = frames(0.0, frame("pool", 0.0, {"chat": {"concurrency": concurrency}}), frame("gpu", 0.0, gpus))
    return cluster_now(seen, TOPOLOGY, fleet or Fleet(), POLICY, learnt)


def test_the_cluster_needs_what_its_pools_need_now():
    fleet = Fleet(isolated={Entity("node", "n2"): Mark("i1", 0.0)})
    all_told = {g: 300.0 for node in NODES.values() for g in node}

    found = now(30.0, all_told, fleet, chat=Learnt(capacity=10.0, minutes=600))

    assert found.value("c", "gpus_needed") == 5 * 4.0  # 30 / 9.5 and a spare
    assert found.value("c", "gpus_healthy") == 8.0
    assert found.value("c", "power_w") == 3600.0


def test_what_is_not_known_of_the_cluster_is_not_zero():
    few = {"n0/gpu0": 300.0}

    unknown, silent = now(30.0, few), now(math.nan, few, chat=Learnt(capacity=10.0, minutes=600))

    assert math.isnan(unknown.value("c", "gpus_needed"))
    assert math.isnan(silent.value("c", "gpus_needed"))
    assert math.isnan(unknown.value("c", "power_w"))


def test_five_minutes_of_ticks_are_one_row_a_series():
    buckets = Buckets()
    rows = []
    for k in range(41):  # ten minutes of ticks, 15 s apart
        at = 15.0 * k
        pool = frame("pool", at, {"chat": {"concurrency": float(k), "kv_used_replicas": 1.5}})
        rows += buckets.add(pool, frame("cluster", at, {"c": {"gpus_needed": 8.0, "power_w": math.nan}}))

    told = {(kind, name, signal, at): (mean, most, n) for kind, name, signal, at, mean, most, n in rows}
    assert told["pool", "chat", "concurrency", 300.0] == (29.5, 39.0, 20.0)
    assert told["pool", "chat", "kv_used_replicas", 0.0] == (1.5, 1.5, 20.0)
    assert told["cluster", "c", "gpus_needed", 0.0] == (8.0, 8.0, 20.0)
    assert not any(signal == "power_w" for _, _, signal, _ in told)


def test_the_clusters_series_are_forecast_and_scored_beside_the_pools():
    record = Record.open(None)
    at = HOUR * np.arange(20 * 24)
    record.rollup(("cluster", "c", "gpus_needed", t, 12.0, 12.0, 12.0) for t in at)
    asked: list[Track] = []

    async def fit(track: Track, horizon_s: float) -> Forecast:
        asked.append(track)
        level = 12.0 if track.values.size else math.nan
        levels = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
        bands = np.full((7, 168), level)
        return Forecast(
            track.until, track.target, track.signal, HOUR, levels, bands, rivals={"weekly naive": bands}
        )

    foresight = Foresight(record, fit, 168 * HOUR, 30 * 24 * HOUR, signals=("prompt_tokens_s",))
    asyncio.run(foresight.of_cluster("c", 10 * 24 * HOUR))
    foresight.look_back(14 * 24 * HOUR)

    assert [t.signal for t in asked] == list(CLUSTER_SIGNALS)
    assert set(foresight.others) == {("c", "gpus_needed")}  # the rest has no history
    assert foresight.standings["c", "gpus_needed"]["blend"].coverage80 == 1.0
    record.close()


def test_where_nothing_is_forecast_beside_requests_the_cluster_is_not_either():
    record = Record.open(None)

    async def fit(track: Track, horizon_s: float) -> Forecast:
        raise AssertionError(track.signal)

    asyncio.run(Foresight(record, fit, 168 * HOUR, 30 * 24 * HOUR).of_cluster("c", 0.0))

    record.close()


@pytest.fixture
def town() -> Town:
    return lived(0.2, Mode.OBSERVE)


async def test_forecasts_of_tokens_reach_the_core_with_those_of_requests(town: Town):
    foresight = town.daemon.foresight

    async def fit(track: Track, horizon_s: float) -> Forecast:
        bands = np.full((7, 168), 5.0)
        levels = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
        at = town.now // HOUR * HOUR
        return Forecast(at, track.target, track.signal, HOUR, levels, bands, rivals={"weekly naive": bands})

    foresight.fit, foresight.signals = fit, SIGNALS
    await town.daemon._forecast(town.now)
    await town.beat()

    state = town.daemon.core.state
    assert state.forecasts["chat"].signal == "concurrency"
    assert set(state.work_ahead["chat"]) == {"generation_tokens_s", "prompt_tokens_s"}
    assert {s for target, s in foresight.others if target == "chat"} == set(SIGNALS)
    assert (town.daemon.core.policy.cluster, "gpus_needed") in foresight.others
    town.daemon.record.close()
