"""A recorded stretch of telemetry through the core: what it would have found and done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daemon.core import Core
from daemon.frame import FrameBuilder
from daemon.model import (
    NAN,
    Array,
    Decision,
    Entity,
    Forecast,
    Incident,
    Outcome,
    Result,
    Scrape,
    Step,
    Track,
    Verb,
)

Fit = Callable[[Track, float], Forecast]
"""(track, horizon_s) -> Forecast, at once."""

FORECAST_EVERY_S = 3600.0
HORIZON_S = 168 * 3600.0
BUCKET_S = 300.0


@dataclass(slots=True)
class PoolTape:
    """What a pool showed at each tick. rows : signal values by name, as daemon.pools has them. forecasts : as made."""

    at: list[float] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    gpus: int = 1

    def track(self, name: str, until: float) -> Track:
        """Concurrency in means of five minutes."""
        at: Array = np.array(self.at, dtype=np.float64)
        values = np.array([row["concurrency"] for row in self.rows])
        known = np.isfinite(values)
        bucket = (at[known] // BUCKET_S).astype(np.int64)
        first = int(bucket[0]) if bucket.size else 0
        number = np.bincount(bucket - first)
        means: Array = np.bincount(bucket - first, values[known]) / np.maximum(number, 1)
        filled = np.flatnonzero(number)
        return Track(name, np.asarray((filled + first) * BUCKET_S, dtype=float), means[filled], until=until)


@dataclass(slots=True)
class Replay:
    """A core beside the days it did not live through. Its steps change nothing there, whatever they would have changed.

    An isolation, a weight or a lease counts as done, so that budgets and releases work; a size of a pool does not, since
    the recording goes on with the replicas it had. step_s : time between two ticks.
    """

    core: Core
    builder: FrameBuilder
    fit: Fit
    step_s: float
    pools: dict[str, PoolTape] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    steps: list[tuple[float, Step]] = field(default_factory=list)
    ticks: int = 0
    missed_recalls: int = 0
    next_at: float = NAN
    gpus: int = 0
    _forecast_at: float = -np.inf

    def feed(self, scrapes: Iterable[Scrape], until: float) -> None:
        """Take scrapes in order of time; decide at every step up to `until`."""
        for scrape in scrapes:
            if np.isnan(self.next_at):
                self.next_at = scrape.at + self.step_s
            self._decide_until(scrape.at)
            self.builder.absorb(scrape)
        self._decide_until(until)

    def _decide_until(self, at: float) -> None:
        while self.next_at < at:
            self._tick(self.next_at)
            self.next_at += self.step_s

    def _tick(self, at: float) -> None:
        frames = self.builder.build(at)
        lent = set(self.core.state.fleet.leases)
        decision = self.core.tick(frames)
        self.ticks += 1
        self.gpus = max(self.gpus, self.core.topology.gpu_count)
        self._note(decision)
        table = frames["pool"]
        for name, values in zip(table.entities, table.values.tolist(), strict=True):
            tape = self.pools.setdefault(name, PoolTape())
            tape.at.append(at)
            tape.rows.append(dict(zip(table.signals, values, strict=True)))
            tape.gpus = max(1, self.core.topology.gpus_per_replica(name))
        # Somebody serves on what the daemon would have lent: it would have been wanted back before.
        busy = {n for n, engines in self.core.topology.engines_on.items() if engines}
        self.missed_recalls += len(busy & lent & set(self.core.state.fleet.leases))
        for node in busy & set(self.core.state.fleet.leases):
            self._done(Step("", Verb.RECALL, Entity("node", node), 1.0, "the recording serves there"), at)
        if at - self._forecast_at >= FORECAST_EVERY_S:
            self._forecast_at = at
            self._forecast(at)

    def _note(self, decision: Decision) -> None:
        for incident in (*decision.opened, *decision.changed, *decision.closed):
            self.incidents[incident.id] = incident
        for verdict in decision.verdicts:
            if not verdict.allowed or verdict.step.verb is Verb.NOTIFY:
                continue
            self.steps.append((decision.at, verdict.step))
            if verdict.step.verb is Verb.SCALE:
                self.core.absorb(Outcome(verdict.step, Result.REFUSED, "a recording", at=decision.at))
            else:
                self._done(verdict.step, decision.at)

    def _done(self, step: Step, at: float) -> None:
        self.core.absorb(Outcome(step, Result.DONE, "a recording", at=at))

    def _forecast(self, at: float) -> None:
        for name, tape in self.pools.items():
            track = tape.track(name, at)
            if not track.at.size:
                continue
            made = self.fit(track, HORIZON_S)
            if np.isfinite(made.quantiles[0, 0]):
                tape.forecasts.append(made)
                self.core.absorb(made)

    def found(self) -> list[dict[str, Any]]:
        """The incidents as data, with the first of each step that was meant for them."""
        rows = []
        for incident in sorted(self.incidents.values(), key=lambda i: (i.opened, i.id)):
            steps: dict[tuple[str, str], dict[str, Any]] = {}
            for at, step in self.steps:
                if step.incident == incident.id:
                    key = (step.verb.value, str(step.target))
                    steps.setdefault(key, {"verb": key[0], "target": key[1], "at": at})
            rows.append(
                {
                    "kind": incident.kind,
                    "scope": incident.scope.kind,
                    "entity": incident.scope.name,
                    "opened_at": incident.opened,
                    "closed_at": incident.closed if incident.state == "closed" else None,
                    "severity": incident.severity.value,
                    "cause": incident.cause,
                    "steps": list(steps.values()),
                }
            )
        return rows
