"""Free GPUs that lie in pieces too small for a replica, with the one move that would join some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daemon.fleet import Fleet
from daemon.model import Entity
from daemon.packing import free_gpus
from daemon.placement import FRAGMENT, Wish
from daemon.policy import Policy
from daemon.topology import Topology

POOLS_MAX = 10
"""Pools for which a move is looked for, the worst first."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What one pool could do with the free GPUs. fits : replicas that fit on single nodes. could : that would fit in one piece.

    stranded : free GPUs the pool cannot use as they lie.
    """

    pool: str
    size: int
    free: int
    fits: int
    could: int

    @property
    def stranded(self) -> int:
        return self.free - self.fits * self.size

    @property
    def ratio(self) -> float:
        """Share of the free GPUs this pool cannot use only because they lie apart, 0 when nothing is free."""
        return (self.could - self.fits) * self.size / self.free if self.free else 0.0


def pieces(topology: Topology, fleet: Fleet, policy: Policy) -> tuple[Pieces, ...]:
    """Every pool whose replicas stand on one node, the worst first. A pool whose size is not known is left out."""
    free = free_gpus(topology, fleet)
    total = sum(free.values())
    widest = max((len(g) for g in topology.gpus_on.values()), default=0)
    found = []
    for pool in topology.pools():
        own = policy.pool(pool)
        size = (own.gpus_per_replica if own else 0) or topology.gpus_per_replica(pool)
        if 0 < size <= widest:
            found.append(Pieces(pool, size, total, sum(f // size for f in free.values()), total // size))
    return tuple(sorted(found, key=lambda p: (-p.ratio, p.pool)))


def wishes(topology: Topology, fleet: Fleet, policy: Policy) -> tuple[Wish, ...]:
    """One for each pool that gets a replica's room by moving one replica of another; nothing where no single move helps."""
    free = free_gpus(topology, fleet)
    found = []
    short = [piece for piece in pieces(topology, fleet, policy) if piece.could > piece.fits]
    for piece in short[:POOLS_MAX]:
        move = _move(topology, free, piece.size)
        said = (
            f"{piece.stranded} of {piece.free} free GPUs are of no use to {piece.pool}, whose replicas need {piece.size} on one node: "
            f"{piece.fits} fit, {piece.could} would in one piece"
        )
        if move is None:
            text = f"{said}; no single move helps"
            found.append(Wish(FRAGMENT, Entity("pool", piece.pool), piece.pool, text))
            continue
        engine, node, target = move
        text = f"{said}; moving {engine} ({topology.pool_of.get(engine, '?')}) from {node} to {target} makes room for one"
        found.append(Wish(FRAGMENT, Entity("pool", piece.pool), piece.pool, text, to=target))
    return tuple(found)


def _move(topology: Topology, free: Mapping[str, int], size: int) -> tuple[str, str, str] | None:
    """(replica, from, to) after which one replica more of `size` fits: the smallest that will do, to the tightest place."""
    best: tuple[tuple[int, int, str, str], tuple[str, str, str]] | None = None
    # Places with equal room are alike: two of each are enough, one of them is not where the replica stands.
    alike: dict[int, list[str]] = {}
    for name, room in sorted(free.items()):
        if len(alike.setdefault(room, [])) < 2:
            alike[room].append(name)
    targets = [(name, room) for room, names in alike.items() for name in names]
    for node, have in free.items():
        for engine in topology.engines_on.get(node, ()):
            held = len(topology.gpus_of.get(engine, ()))
            gained = (have + held) // size - have // size
            if not 0 < held < size or gained < 1:
                continue
            for target, room in targets:
                lost = room // size - (room - held) // size
                if target == node or room < held or gained <= lost:
                    continue
                key = (held, room, engine, target)
                if best is None or key < best[0]:
                    best = (key, (engine, node, target))
    return best[1] if best else None
