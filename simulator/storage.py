"""Disks and the shared store of a simulated cluster: what starting replicas read, and how long a read takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daemon.model import Array
from simulator.conditions import Conditions
from simulator.fleet import State
from simulator.spec import PoolSpec

if TYPE_CHECKING:
    from simulator.world import World

SHARE = "nas:/models"
DISK = "nvme0n1"
PER_NODE = (DISK, SHARE)
COUNTERS = (
    "read_bytes_s", "write_bytes_s", "reads_per_s", "writes_per_s", "read_s_per_s", "write_s_per_s", "busy_ratio",
    "errors_per_s", "resent_per_s",
)  # fmt: skip
SHOWN = {DISK: COUNTERS[:7], SHARE: (*COUNTERS[:6], *COUNTERS[7:])}
"""What node_exporter tells of each: a mount has no busy time, a disk no time-outs."""
_C = {name: k for k, name in enumerate(COUNTERS)}
READ_BYTES = 2.0**20
_READ_S = np.array([0.0004, 0.003])
"""A read of a megabyte from the disk, and over the network. Source: 2.5 GB/s of an NVMe, a filer that answers in 3 ms."""
_IDLE_READS = np.array([6.0, 4.0])
WEIGHTS_BYTES_A_GPU = 40e9
HELD = 2
"""Models a node keeps on its disk; the one that was read longest ago leaves."""


class Stores:
    """Every node's disk and mount. rates, counters : (node, 2, COUNTERS). held : node -> pools whose weights are on its disk."""

    def __init__(self, nodes: int) -> None:
        self.rates = np.zeros((nodes, 2, len(COUNTERS)))
        self.counters = np.zeros_like(self.rates)
        self.held: list[list[int]] = [[] for _ in range(nodes)]

    def fetch(self, node: int, pool: int) -> int:
        """Which store a replica's weights are read from, 0 = the disk, 1 = the share; from then on the disk has them."""
        held = self.held[node]
        where = 0 if pool in held else 1
        self.held[node] = [p for p in held if p != pool][-(HELD - 1) :] + [pool]
        return where

    def step(self, loads: Array, ills: Conditions) -> None:
        """loads : (node, 2) bytes a second that starting replicas read."""
        reads = _IDLE_READS + loads / READ_BYTES
        took = np.stack(
            (_READ_S[0] * ills.disk_slow, np.full(len(loads), _READ_S[1] * ills.share_slow)), axis=1
        )
        r = self.rates
        r[:, :, _C["reads_per_s"]] = reads
        r[:, :, _C["read_bytes_s"]] = _IDLE_READS * 4096.0 + loads
        r[:, :, _C["read_s_per_s"]] = reads * took
        r[:, :, _C["writes_per_s"]], r[:, :, _C["write_bytes_s"]] = 8.0, 2e5
        r[:, :, _C["write_s_per_s"]] = 8.0 * took
        r[:, :, _C["busy_ratio"]] = np.minimum(reads * took, 1.0)
        r[:, 1, _C["errors_per_s"]] = ills.share_errors
        r[:, 1, _C["resent_per_s"]] = (reads[:, 1] + 8.0) * (1.1 if ills.share_errors else 1.0)

    def count_on(self, span: float) -> None:
        self.counters += self.rates * span


def cold_start_s(pool: PoolSpec, draw: float, where: int, slow: float) -> float:
    """Seconds a start takes. draw : 0..1. From the disk it is the quicker half of what the pool's starts take from the share; a store that
    is `slow` times slower than usual makes reading, six tenths of it, that much longer."""
    span = pool.cold_start_max_s - pool.cold_start_min_s
    usual = pool.cold_start_min_s + span * draw * (1.0 if where else 0.5)
    return usual * (0.4 + 0.6 * slow)


def loads_of(world: World) -> Array:
    """(node, 2) bytes a second that replicas which are starting read now."""
    loads = np.zeros((world.spec.nodes, 2))
    for engine in () if world.fleet.is_calm else world.fleet.engines.values():
        if engine.state is State.STARTING and engine.ready_at > engine.started_at:
            size = WEIGHTS_BYTES_A_GPU * len(engine.gpus)
            loads[engine.node, engine.loads_from] += size / (engine.ready_at - engine.started_at)
    return loads
