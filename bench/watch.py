"""The daemon's own path from scrapes to incidents and proposed isolations, over a simulated fleet that nobody touches."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.events import LOAD_KINDS
from bench.fleets import Fleet
from daemon.core import Core
from daemon.frame import FrameBuilder
from daemon.model import (
    GONE,
    Decision,
    Entity,
    Frames,
    Incident,
    Outcome,
    Result,
    Scrape,
    Severity,
    Verb,
)
from detectors import DETECTORS
from simulator.fleet import State
from simulator.policies import policy_of
from simulator.world import World

TICK_S = 15.0
ABLE = frozenset({Verb.ISOLATE, Verb.REROUTE})
PARTS = ("simulate", "frame", "decide", "baselines")
LOADED = 1.3
"""A replica with this many times its pool's median batch is loaded."""


@dataclass(slots=True)
class Claim:
    """An incident as the daemon opened it, or an alarm of a baseline.

    severity : the highest it reached. cause : why it closed. was_loaded : the replica blamed carried clearly more
    than its peers at that time. is_true_load : what it says of load is so.
    """

    id: str
    kind: str
    scope: Entity
    opened: float
    severity: str
    closed: float = np.inf
    cause: str = ""
    was_loaded: bool = False
    is_true_load: bool = False


@dataclass(frozen=True, slots=True)
class Isolation:
    """An isolation that the guard allowed in mode auto."""

    at: float
    target: Entity
    incident: str
    kind: str


@dataclass(slots=True)
class Seen:
    """All that a run showed. cpu_s : process time by part: simulate, frame, decide, baselines."""

    claims: dict[str, Claim] = field(default_factory=dict)
    isolations: list[Isolation] = field(default_factory=list)
    alarms: dict[str, list[Claim]] = field(default_factory=dict)
    loaded_replica_s: float = 0.0
    replica_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))


Watcher = Callable[[Frames], Sequence[tuple[Entity, str]]]
"""A baseline: frames -> (entity, what it says) of everything it finds wrong now."""


def watch(fleet: Fleet, baselines: Mapping[str, Watcher]) -> tuple[Seen, World]:
    """Run a fleet to its end. The daemon sees scrapes alone; every step it is allowed is refused by the world at once,
    so that neither delays nor magnitudes are changed by what was done about an earlier fault."""
    world = World(fleet.spec, fleet.seed, fleet.epoch)
    for case in fleet.cases:
        world.inject(case.fault)
    policy = replace(policy_of(fleet.spec, "bench"), able=ABLE)
    builder = FrameBuilder(policy)
    core = Core(policy, {name: make() for name, make in DETECTORS.items()})
    truth, seen = _Load(world), Seen()
    books = {name: Book() for name in baselines}
    known: frozenset[str] = frozenset()
    gc.freeze()
    # Millions of short-lived objects and hardly a cycle: looking for cycles costs a tenth of the run.
    threshold = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    clock = time.process_time
    try:
        for beat in range(round(fleet.hours * 3600.0 / TICK_S)):
            at = fleet.epoch + beat * TICK_S
            marks = [clock()]
            world.advance(at)
            present = frozenset(t.address for t in world.targets())
            scrapes = [Scrape(name, at, None, None, error=GONE) for name in sorted(known - present)]
            known = present
            scrapes += world.sweep()
            if beat % 4 == 0:
                truth.look(at, seen)
            marks.append(clock())
            for scrape in scrapes:
                builder.absorb(scrape)
            frames = builder.build(at)
            marks.append(clock())
            _take(core.tick(frames), core, truth, seen)
            marks.append(clock())
            for name, look in baselines.items():
                books[name].take(at, look(frames), name)
            marks.append(clock())
            for part, begun, done in zip(PARTS, marks, marks[1:], strict=False):
                seen.cpu_s[part] += done - begun
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
    for claim in seen.claims.values():
        claim.is_true_load = claim.kind in LOAD_KINDS and truth.was_so(claim)
    seen.alarms = {name: book.claims for name, book in books.items()}
    return seen, world


def _take(decision: Decision, core: Core, truth: _Load, seen: Seen) -> None:
    for incident in decision.opened:
        seen.claims[incident.id] = _claim(incident, truth)
    for incident in decision.changed:
        claim = seen.claims[incident.id]
        claim.severity = incident.severity.value
    for incident in decision.closed:
        claim = seen.claims.setdefault(incident.id, _claim(incident, truth))
        claim.closed, claim.cause = incident.closed, incident.cause
    for verdict in decision.verdicts:
        step = verdict.step
        if not verdict.allowed or step.verb is Verb.NOTIFY:
            continue
        known = any(i.incident == step.incident and i.target == step.target for i in seen.isolations)
        if step.verb is Verb.ISOLATE and not known:
            kind = seen.claims[step.incident].kind if step.incident in seen.claims else ""
            seen.isolations.append(Isolation(decision.at, step.target, step.incident, kind))
        core.absorb(Outcome(step, Result.FAILED, "only watched", 0.0, decision.at))


def _claim(incident: Incident, truth: _Load) -> Claim:
    return Claim(
        id=incident.id,
        kind=incident.kind,
        scope=incident.scope,
        opened=incident.opened,
        severity=incident.severity.value,
        was_loaded=incident.scope.name in truth.loaded,
    )


class Book:
    """Alarms of a baseline as incidents: one an entity, closed after ten quiet minutes."""

    QUIET_S = 600.0

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self._open: dict[Entity, tuple[Claim, float]] = {}

    def take(self, at: float, alarms: Sequence[tuple[Entity, str]], name: str) -> None:
        for entity, kind in alarms:
            if entity in self._open:
                self._open[entity] = (self._open[entity][0], at)
                continue
            number = f"{name}{len(self.claims)}"
            claim = Claim(number, kind, entity, at, Severity.WARNING.value)
            self.claims.append(claim)
            self._open[entity] = (claim, at)
        for entity, (claim, last) in list(self._open.items()):
            if at - last > self.QUIET_S:
                claim.closed = at
                del self._open[entity]


class _Load:
    """What the load really was, minute by minute: who carried more than its peers, and where requests suffered."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.loaded: set[str] = set()
        self._bad: dict[str, list[float]] = {pool.name: [] for pool in world.spec.pools}
        self._before = np.zeros((2, world.serving.slots))

    def look(self, at: float, seen: Seen) -> None:
        world, serving = self._world, self._world.serving
        now = np.stack((serving.slow + serving.lost, serving.slow + serving.lost + serving.finished))
        gone = np.maximum(now - self._before, 0.0)
        self._before = now
        self.loaded = set()
        for index, pool in enumerate(world.spec.pools):
            mine = [e for e in world.fleet.of_pool(index) if e.state is State.READY]
            if not mine:
                continue
            slots = [e.slot for e in mine]
            run, wait = serving.run_gauge[slots], serving.wait_gauge[slots]
            usual = max(float(np.median(run)), 4.0)
            seen.replica_s += 60.0 * len(mine)
            busy = run > LOADED * usual
            seen.loaded_replica_s += 60.0 * float(busy.sum())
            self.loaded |= {e.address for e, b in zip(mine, busy.tolist(), strict=True) if b}
            bad, done = gone[:, slots].sum(axis=1)
            strained = (
                bad > 0.01 * max(float(done), 1.0) or bool((wait > 3).any())
                or bool((serving.kv_used[slots] > 0.85).any()) or bool(busy.any())
            )  # fmt: skip
            if strained:
                self._bad[pool.name].append(at)

    def was_so(self, claim: Claim) -> bool:
        """Whether the pool concerned really was under strain in the quarter of an hour before."""
        pools = self._bad if claim.scope.kind == "cluster" else {self._pool(claim.scope): None}
        times = [t for name in pools for t in self._bad.get(name, [])]
        return any(claim.opened - 900.0 <= t <= claim.opened + 60.0 for t in times)

    def _pool(self, scope: Entity) -> str:
        engine = self._world.engine_at(scope.name)
        return scope.name if engine is None else self._world.spec.pools[engine.pool].name
