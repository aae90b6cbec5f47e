"""What a store remembers becomes the record's own past, of pools and of the cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from web_town import lived

from daemon.demand import BUCKET_S
from daemon.model import Array, Frame, Frames, SourceError
from daemon.past import SETTLED_MIN, Past
from daemon.policy import Mode, Policy, PoolPolicy
from daemon.record import Record
from daemon.replica import Learnt
from daemon.topology import Topology

NOW = 1_800_000_000.0
DAY_S = 86400.0
AT = np.arange(NOW - DAY_S, NOW, BUCKET_S)
POLICY = Policy(cluster="c", pools=(PoolPolicy("chat", gpus_per_replica=4, replicas_min=1),))
TOPOLOGY = Topology(pool_of={"e0": "chat"}, gpus_on={"n0": ("n0/gpu0",)})


class Store:
    """Ten requests in flight at night, a hundred by day; two GPUs of 300 W."""

    asked: Sequence[str] = ()

    async def demand(
        self, pools: Mapping[str, Mapping[str, str]], since: float, until: float, step_s: float
    ) -> Mapping[str, Mapping[str, tuple[Array, Array]]]:
        return {pool: {"concurrency": (AT, demand())} for pool in pools}

    async def gpus(
        self, uuids: Sequence[str], since: float, until: float, step_s: float
    ) -> Mapping[str, tuple[Array, Array]]:
        self.asked = uuids
        return {"gpus_healthy": (AT, np.full(AT.size, 2.0)), "power_w": (AT, np.full(AT.size, 600.0))}


def demand() -> Array:
    return np.where(AT < NOW - DAY_S / 2, 10.0, 100.0)


def frames() -> Frames:
    gpu = Frame(
        NOW, "gpu", ("n0/gpu0", "n0/gpu1"), (), np.empty((2, 0)), np.zeros(2), {"uuid": ("GPU-a", "")}
    )
    return Frames(NOW, {"gpu": gpu})


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record.open(tmp_path / "state")


def series(record: Record, signal: str) -> Array:
    return record.series("cluster", "c", signal, NOW - 2 * DAY_S, NOW)[1]


async def test_the_clusters_own_series_go_back_to_what_the_store_remembers(record: Record) -> None:
    store = Store()
    past = Past(record, store, DAY_S)
    joint = NOW - 3600.0
    assert past.is_wanted

    await past.read(frames(), POLICY, NOW, joint)

    before = np.searchsorted(AT, joint)
    assert list(store.asked) == ["GPU-a"]
    assert series(record, "gpus_healthy").tolist() == [2.0] * int(before)
    assert series(record, "power_w").tolist() == [600.0] * int(before)
    assert not series(record, "gpus_needed").size  # nobody knows yet what a replica holds
    assert not past.is_wanted
    assert not Past(record, store, DAY_S).is_wanted


async def test_past_demand_becomes_gpus_once_a_replica_is_known(record: Record) -> None:
    past = Past(record, Store(), DAY_S)
    await past.read(frames(), POLICY, NOW, NOW)
    learnt = {"chat": Learnt(capacity=20.0, minutes=SETTLED_MIN - 1)}

    past.count_gpus(NOW, TOPOLOGY, POLICY, learnt)
    assert not series(record, "gpus_needed").size

    learnt["chat"].minutes = SETTLED_MIN
    past.count_gpus(NOW, TOPOLOGY, POLICY, learnt)
    needed = series(record, "gpus_needed")
    assert needed.size == AT.size
    night, day = needed[AT < NOW - DAY_S / 2], needed[AT >= NOW - DAY_S / 2]
    # 4 GPUs a replica; a hundred requests need five full replicas and more at planned load.
    assert set(night % 4) == set(day % 4) == {0.0}
    assert night.max() < 5 * 4 < day.min() < 10 * 4

    # Another start, which has learnt otherwise, leaves what is on record.
    learnt["chat"].capacity = 200.0
    Past(record, Store(), DAY_S).count_gpus(NOW, TOPOLOGY, POLICY, learnt)
    assert series(record, "gpus_needed").tolist() == needed.tolist()


async def test_a_pool_that_was_unknown_leaves_a_gap(record: Record) -> None:
    past = Past(record, Store(), DAY_S)
    await past.read(frames(), POLICY, NOW, NOW)
    two = Topology(pool_of={"e0": "chat", "e1": "code"}, gpus_on={"n0": ("n0/gpu0",)})
    known = Learnt(capacity=20.0, minutes=SETTLED_MIN)

    past.count_gpus(NOW, two, POLICY, {"chat": known, "code": known})

    assert not series(record, "gpus_needed").size


async def test_without_a_store_nothing_is_wanted(record: Record) -> None:
    past = Past(record, None, DAY_S)

    past.count_gpus(NOW, TOPOLOGY, POLICY, {"chat": Learnt(capacity=20.0, minutes=SETTLED_MIN)})

    assert not past.is_wanted
    assert not series(record, "gpus_needed").size


async def test_a_store_that_fails_halfway_is_asked_again_at_the_next_start(record: Record) -> None:
    class Broken(Store):
        async def gpus(self, *given: object) -> Mapping[str, tuple[Array, Array]]:
            raise SourceError("no answer")

    past = Past(record, Broken(), DAY_S)

    with pytest.raises(SourceError):
        await past.read(frames(), POLICY, NOW, NOW)

    assert past.is_wanted
    assert not record.series("pool", "chat", "concurrency", NOW - 2 * DAY_S, NOW)[0].size


def test_the_first_forecast_waits_for_the_past_and_is_made_once() -> None:
    town = lived(0.5, Mode.OBSERVE)

    told = [(e.payload["pool"], e.at) for e in town.daemon.record.events(type="forecast", limit=100)]
    (read,) = town.daemon.record.events(type="backfill", limit=10)
    assert sorted(pool for pool, _ in told) == sorted(town.daemon.frames["pool"].entities)
    assert all(at >= read.at for _, at in told)
