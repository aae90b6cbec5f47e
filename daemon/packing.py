"""Which of the replicas that pools are to get find room: a replica of one node needs its GPUs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.fleet import Fleet
from daemon.model import Entity
from daemon.topology import Topology


def free_gpus(topology: Topology, fleet: Fleet) -> dict[str, int]:
    """node -> GPUs that carry no engine, are not isolated and not lent."""
    return {
        node: sum(g not in topology.engine_of and Entity("gpu", g) not in fleet.isolated for g in gpus)
        for node, gpus in topology.gpus_on.items()
        if node not in fleet.leases and Entity("node", node) not in fleet.isolated
    }


@dataclass(frozen=True, slots=True)
class Growth:
    """A pool that is to hold `granted` replicas. coming : ordered and not seen yet. seen : replicas that exist. size : GPUs of one."""

    pool: str
    size: int
    seen: int
    coming: int
    granted: int


def packed(growths: Sequence[Growth], free: Mapping[str, int], width: int) -> dict[str, int]:
    """pool -> replicas it can hold, for those that find less room than they were granted; first come, first served.

    free : node -> GPUs nobody holds. width : GPUs of the widest node. Each replica goes to the node that it fills best. Of one wider than
    any node, or of unknown size, nothing can be said.
    """
    left = dict(free)
    growths = [g for g in growths if 0 < g.size <= width]
    cut = {}
    for growth in growths:
        for _ in range(growth.coming):
            _take(left, growth.size)
    for growth in growths:
        standing = growth.seen + growth.coming
        for number in range(standing, growth.granted):
            if not _take(left, growth.size):
                cut[growth.pool] = number
                break
    return cut


def _take(left: dict[str, int], size: int) -> bool:
    fits = [(room, node) for node, room in left.items() if room >= size]
    if not fits:
        return False
    left[min(fits)[1]] -= size
    return True
