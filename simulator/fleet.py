"""Replicas on GPUs: placed, started, drained, moved, and the GPUs set aside or lent meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from daemon.model import Entity
from simulator.spec import PoolSpec
from simulator.wiring import Wiring

Indices = NDArray[np.intp]
DRAIN_MAX_S = 150.0
"""A draining engine is stopped then, whoever it still serves."""


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass
class Engine:
    """One replica. weight : routing weight 0..1. pull : share of the sessions that stick to it over an even one. loads_from : see simulator.storage. reborn : version it restarts with once drained, "" = it leaves."""

    slot: int
    address: str
    pool: int
    node: int
    gpus: tuple[int, ...]
    version: str
    state: State
    started_at: float
    ready_at: float
    weight: float = 1.0
    pull: float = 1.0
    drain_by: float = 0.0
    failed_at: float = np.inf
    silent_since: float = np.inf
    reborn: str = ""
    loads_from: int = 0


@dataclass
class Lease:
    """GPUs lent to offline work. gone_at : the work has left by then, infinite while nobody asked. begun : of its job."""

    gpus: tuple[int, ...]
    until: float
    gone_at: float = np.inf
    begun: float = 0.0


@dataclass
class Hooks:
    """What the fleet asks of the rest of the world. load : node, pool, draw 0..1 -> store, seconds a start takes."""

    held: Callable[[int], int]
    occupied: Callable[[Engine, bool], None]
    vacated: Callable[[Engine], None]
    load: Callable[[int, int, float], tuple[int, float]]


@dataclass
class Fleet:
    """Who runs where. revision changes whenever engines or their states do; routes whenever routing does.

    wanted : replicas asked for, a pool. isolated : what is set aside -> owner. lent : entity -> its lease.
    """

    wiring: Wiring
    rng: Generator
    hooks: Hooks
    slots: int
    wanted: list[int] = field(default_factory=list)
    engines: dict[int, Engine] = field(default_factory=dict)
    isolated: dict[Entity, str] = field(default_factory=dict)
    lent: dict[Entity, Lease] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    revision: int = 0
    routes: int = 0

    def __post_init__(self) -> None:
        self.pools: tuple[PoolSpec, ...] = self.wiring.spec.pools
        self.gpu_slot = np.full(len(self.wiring.gpus), -1, dtype=np.intp)
        self.wanted = [pool.replicas for pool in self.pools]
        self.versions = [pool.version for pool in self.pools]
        self.broken = np.zeros(len(self.wiring.gpus), dtype=bool)
        self.canaries: set[str] = set()
        self.avoid: frozenset[str] = frozenset()
        self._rolled_at = -np.inf
        self._rolled: list[str] = []
        self._calm: tuple[int, bool] = (-1, False)
        self._silent: tuple[int, bool] = (-1, False)

    # -- reading ----------------------------------------------------------------------------------

    @property
    def is_calm(self) -> bool:
        """Nobody starts, drains, has failed or is missing."""
        if self._calm[0] != self.routes:
            settled = all(e.state is State.READY for e in self.engines.values())
            self._calm = (self.routes, settled and len(self.engines) == sum(self.wanted))
        return self._calm[1]

    @property
    def some_silent(self) -> bool:
        if self._silent[0] != self.routes:
            self._silent = (self.routes, any(e.silent_since < np.inf for e in self.engines.values()))
        return self._silent[1]

    def of_pool(self, pool: int) -> list[Engine]:
        return [e for e in self.engines.values() if e.pool == pool]

    def at(self, address: str) -> Engine | None:
        return next((e for e in self.engines.values() if e.address == address), None)

    def spread(self, engine: Engine) -> None:
        """Start half of the engine's ranks anew on free GPUs of a node under another leaf; nothing without one."""
        half = engine.gpus[len(engine.gpus) // 2 :]
        taken = self.lent_mask() | self.set_aside() | self.broken | (self.gpu_slot >= 0)
        for node, leaf in enumerate(self.wiring.leaves):
            free = [g for g in self.wiring.gpus_of(node) if not taken[g]]
            if leaf == self.wiring.leaves[engine.node] or len(free) < len(half):
                continue
            self.gpu_slot[list(half)] = -1
            engine.gpus = (*engine.gpus[: len(engine.gpus) - len(half)], *free[: len(half)])
            self.gpu_slot[list(engine.gpus)] = engine.slot
            return self.touch()

    def set_aside(self) -> NDArray[np.bool_]:
        """(gpu,) true where an isolation covers it."""
        mask = np.zeros(len(self.wiring.gpus), dtype=bool)
        for entity in self.isolated:
            mask[self.gpus_of(entity)] = True
        return mask

    def lent_mask(self) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.wiring.gpus), dtype=bool)
        for lease in self.lent.values():
            mask[list(lease.gpus)] = True
        return mask

    def gpus_of(self, entity: Entity) -> list[int]:
        """GPU indices of a node or GPU. Raises KeyError for an unknown name."""
        if entity.kind == "node":
            return list(self.wiring.gpus_of(self.wiring.node(entity.name)))
        return [self.wiring.gpu(entity.name)]

    def routing(self, now: float, silent_s: float) -> tuple[np.ndarray, Indices, NDArray[np.bool_]]:
        """(edge,) ascending keys pool + cumulative share, (edge,) slots, (pool,) true where somebody serves.

        An engine that has not answered health checks for `silent_s` gets nothing.
        """
        edges: list[float] = []
        slots: list[int] = []
        serves = np.zeros(len(self.pools), dtype=bool)
        for index in range(len(self.pools)):
            usable = [
                e
                for e in self.of_pool(index)
                if e.state is State.READY and e.weight > 0 and now - e.silent_since < silent_s
            ]
            if usable:
                serves[index] = True
                share = np.cumsum([e.weight * e.pull for e in usable])
                edges += list(index + share / share[-1])
                slots += [e.slot for e in usable]
        return np.array(edges), np.array(slots, dtype=np.intp), serves

    # -- changing ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Bring the fleet towards what is wanted."""
        self._end_leases(now)
        if self.is_calm and not self.isolated and self.versions == self._rolled:
            return
        self._follow_lifecycles(now)
        aside = self.set_aside() if self.isolated else None
        if aside is not None:
            self._leave_set_aside(aside, now)
        blocked = (aside if aside is not None else np.zeros(len(self.broken), dtype=bool)) | self.lent_mask()
        for pool in range(len(self.pools)):
            self._match(pool, blocked, now)
        self._roll(now)
        self._rolled = list(self.versions) if self.is_calm else []

    def fail(self, engine: Engine, now: float) -> None:
        """The process dies; it stays dead until its GPUs are well again or somebody takes it away."""
        if engine.state is not State.FAILED:
            engine.state, engine.failed_at = State.FAILED, now
            self.hooks.vacated(engine)
            self._changed()

    def drain(self, engine: Engine, now: float, reborn: str = "") -> None:
        if engine.state is State.DRAINING:
            return
        if engine.state is not State.READY and not reborn:
            self.remove(engine)
            return
        engine.state, engine.drain_by, engine.reborn = State.DRAINING, now + DRAIN_MAX_S, reborn
        self._changed()

    def remove(self, engine: Engine) -> None:
        self.hooks.vacated(engine)
        self.gpu_slot[list(engine.gpus)] = -1
        del self.engines[engine.slot]
        self._changed()

    def weigh(self, engine: Engine, weight: float) -> None:
        engine.weight = weight
        self.routes += 1

    def want(self, pool: int, replicas: int) -> None:
        self.wanted[pool] = replicas
        self.touch()

    def try_out(self, pool: int, version: str, now: float) -> None:
        """The first replica that serves restarts with another version and keeps it."""
        ready = [e for e in self.of_pool(pool) if e.state is State.READY]
        if ready:
            self.canaries.add(version)
            self.drain(ready[0], now, reborn=version)

    def end_trial(self, version: str) -> None:
        """Replicas of that version go back to what their pool should have."""
        self.canaries.discard(version)
        self._rolled = []

    def attract(self, engine: Engine, pull: float) -> None:
        engine.pull = pull
        self.routes += 1

    def touch(self) -> None:
        """Routing depends on something that has changed outside, e.g. who answers."""
        self.routes += 1

    def _changed(self) -> None:
        self.revision += 1
        self.routes += 1

    def _end_leases(self, now: float) -> None:
        for entity, lease in list(self.lent.items()):
            # the end stands on the offline job itself: it stops whether anybody asks or not
            if now >= min(lease.until, lease.gone_at):
                del self.lent[entity]
                self._changed()

    def _follow_lifecycles(self, now: float) -> None:
        for engine in list(self.engines.values()):
            if engine.state is State.STARTING and now >= engine.ready_at:
                engine.state = State.READY
                self._changed()
            elif engine.state is State.DRAINING:
                mute = now - engine.silent_since > 0
                if mute or now >= engine.drain_by or self.hooks.held(engine.slot) == 0:
                    self._drained(engine, now)
            elif engine.state is State.FAILED and self._may_restart(engine):
                self._restart(engine, now, engine.version)

    def _may_restart(self, engine: Engine) -> bool:
        return engine.silent_since == np.inf and not self.broken[list(engine.gpus)].any()

    def _drained(self, engine: Engine, now: float) -> None:
        if engine.reborn:
            self.hooks.vacated(engine)
            self._restart(engine, now, engine.reborn)
        else:
            self.remove(engine)

    def _restart(self, engine: Engine, now: float, version: str) -> None:
        engine.state, engine.version, engine.reborn = State.STARTING, version, ""
        engine.started_at, engine.failed_at = now, np.inf
        engine.loads_from, took_s = self._load(engine.node, engine.pool)
        engine.ready_at = now + took_s
        self.hooks.occupied(engine, True)
        self._changed()

    def _load(self, node: int, pool: int) -> tuple[int, float]:
        return self.hooks.load(node, pool, float(self.rng.random()))

    def _leave_set_aside(self, aside: NDArray[np.bool_], now: float) -> None:
        for engine in list(self.engines.values()):
            if engine.state is not State.DRAINING and aside[list(engine.gpus)].any():
                if engine.state is State.READY and now - engine.silent_since < 0:
                    self.drain(engine, now)
                else:
                    self.remove(engine)

    def _match(self, pool: int, blocked: NDArray[np.bool_], now: float) -> None:
        mine = self.of_pool(pool)
        live = [e for e in mine if e.state is not State.DRAINING or e.reborn]
        missing = self.wanted[pool] - len(live)
        for _ in range(missing):
            if not self.place(pool, blocked, now, None):
                break
        if missing < 0:
            for engine in self._victims(live)[:-missing]:
                self.drain(engine, now)

    def _victims(self, live: Iterable[Engine]) -> list[Engine]:
        order = {State.FAILED: 0, State.STARTING: 1, State.DRAINING: 2, State.READY: 3}
        return sorted(live, key=lambda e: (order[e.state], e.weight, self.hooks.held(e.slot), e.slot))

    def place(self, pool: int, blocked: NDArray[np.bool_], now: float, ready_at: float | None) -> bool:
        """Start one replica where it fits best. Returns whether it found room."""
        gpus = self._room(pool, blocked)
        slot = next((s for s in range(self.slots) if s not in self.engines), None)
        if not gpus or slot is None:
            return False
        node = int(self.wiring.gpu_node[gpus[0]])
        address = f"{self.wiring.nodes[node]}:{8000 + gpus[0] % self.wiring.spec.gpus_per_node}"
        where, took_s = self._load(node, pool) if ready_at is None else (0, ready_at - now)
        engine = Engine(
            slot,
            address,
            pool,
            node,
            gpus,
            self.versions[pool],
            State.STARTING,
            now,
            now + took_s,
            loads_from=where,
        )
        self.engines[slot] = engine
        self.gpu_slot[list(gpus)] = slot
        self.hooks.occupied(engine, False)
        self._changed()
        return True

    def _room(self, pool: int, blocked: NDArray[np.bool_]) -> tuple[int, ...]:
        """The GPUs of the best node: one already in use if possible, then the rack with fewest of this pool; where replicas
        are scattered, the emptiest."""
        tp = self.pools[pool].tp
        free = (self.gpu_slot < 0) & ~blocked & ~self.broken
        for name in self.avoid:
            free[list(self.wiring.gpus_of(self.wiring.node(name)))] = False
        in_rack: dict[str, int] = {}
        for engine in self.of_pool(pool):
            rack = self.wiring.racks[engine.node]
            in_rack[rack] = in_rack.get(rack, 0) + 1
        best: tuple[tuple[int, int, int], tuple[int, ...]] | None = None
        for node in range(len(self.wiring.nodes)):
            own = [g for g in self.wiring.gpus_of(node) if free[g]]
            if len(own) < tp:
                continue
            whole = len(own) == self.wiring.spec.gpus_per_node
            key = (int(whole and tp < len(own)), in_rack.get(self.wiring.racks[node], 0), node)
            if self.wiring.spec.is_scattered:
                key = (-len(own), 0, node)
            if best is None or key < best[0]:
                best = (key, tuple(own[:tp]))
        return best[1] if best else ()

    def _roll(self, now: float) -> None:
        """One engine after another restarts with the version its pool should have."""
        if now - self._rolled_at < 90.0:
            return
        for pool, version in enumerate(self.versions):
            mine = self.of_pool(pool)
            ready = [e for e in mine if e.state is State.READY]
            old = [e for e in ready if e.version != version and e.version not in self.canaries]
            if old and not any(e.reborn for e in mine):
                self._rolled_at = now
                self.drain(old[0], now, reborn=version)
                return
