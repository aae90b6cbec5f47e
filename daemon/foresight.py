"""Forecasts as the shell asks for them: from what is recorded, kept, scored when elapsed, replaced when they fail."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from daemon import demand, hindsight, masking
from daemon.archive import Kept
from daemon.hindsight import BLEND, NAIVE, SCORED_LEAD_S, WEEK_S, Standing
from daemon.model import NAN, Array, Entity, Forecast, Incident, Occasion, Track
from daemon.record import Record

Fit = Callable[[Track, float], Awaitable[Forecast]]
"""(track, horizon_s) -> Forecast, in a worker process or, under the virtual loop, at once."""

Calendar = Callable[[float, float], Sequence[Occasion]]
"""(from, to) -> the days unlike others within."""

KEEP_EVERY_S = 6 * 3600.0
"""Every forecast would be as good as the one an hour before: four a day are kept to be scored."""
YOUNG_S = 8 * 86400.0
HOUR_S = 3600.0
SIGNALS = ("prompt_tokens_s", "generation_tokens_s", "requests_done_per_s", "kv_used_replicas")
"""Forecast beside the concurrency that capacity is planned by, where a worker process does it."""
CLUSTER_SIGNALS = demand.SIGNALS["cluster"]


def no_days(since: float, until: float) -> Sequence[Occasion]:
    return ()


def itself(entity: Entity) -> Collection[Entity]:
    return (entity,)


@dataclass(slots=True)
class Foresight:
    """What is known of demand ahead.

    history_s : how much of the past a fit sees. calendar : see Calendar. plugin : a site's own forecaster, "" = none.
    scopes : an entity -> what it is part of, its pools among it, as things stand now.
    standings : (target, signal) -> forecaster -> how it did over five weeks. others : (target, signal) -> newest
    forecast of what capacity is not planned by. notes : target -> why it has no forecast, or what to know of it. known : incidents
    with their scopes, as of known_at.
    """

    record: Record
    fit: Fit
    horizon_s: float
    history_s: float
    calendar: Calendar = no_days
    plugin: str = ""
    signals: tuple[str, ...] = ()
    scopes: Callable[[Entity], Collection[Entity]] = itself
    standings: dict[tuple[str, str], Mapping[str, Standing]] = field(default_factory=dict)
    others: dict[tuple[str, str], Forecast] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    known: Sequence[tuple[Collection[Entity], Incident]] = ()
    known_at: float = NAN

    async def of(self, pool: str, pools: Sequence[str], at: float) -> Forecast | None:
        """One pool's demand ahead, None while nothing can be said (see notes). Raises what the fit raises."""
        found = await self._one(pool, "concurrency", pools, at)
        for signal in self.signals:
            other = await self._one(pool, signal, pools, at)
            if other is not None:
                self.others[pool, signal] = other
        return found

    async def of_cluster(self, cluster: str, at: float) -> None:
        """Forecast what is recorded of the whole cluster, into `others`. Raises what the fit raises."""
        for signal in CLUSTER_SIGNALS if self.signals else ():
            times, values = self.record.series("cluster", cluster, signal, at - self.history_s, at)
            days = tuple(self.calendar(at - self.history_s, at + self.horizon_s))
            made = await self.fit(
                Track(cluster, times, values, signal, until=at, occasions=days), self.horizon_s
            )
            if math.isfinite(float(made.quantiles[0, 0])):
                used = self._chosen(made, at)
                self._keep(made, used, at)
                self.others[cluster, signal] = used

    async def _one(self, pool: str, signal: str, pools: Sequence[str], at: float) -> Forecast | None:
        made = await self.fit(self._track(pool, signal, pools, at), self.horizon_s)
        if signal == "concurrency":
            self.notes[pool] = made.note
        if not math.isfinite(float(made.quantiles[0, 0])):
            return None
        used = self._chosen(made, at)
        self._keep(made, used, at)
        if signal == "concurrency":
            self.notes[pool] = used.note
        return used

    def _track(self, pool: str, signal: str, pools: Sequence[str], at: float) -> Track:
        since = at - self.history_s
        times, values = self._measured(pool, signal, since, at)
        track = Track(
            pool,
            times,
            values,
            signal,
            until=at,
            occasions=tuple(self.calendar(since, at + self.horizon_s)),
            plugin=self.plugin,
        )
        if times.size and at - times[0] >= YOUNG_S:
            return track
        like = [(p, *self._measured(p, signal, since, at)) for p in pools if p != pool]
        like = [found for found in like if found[1].size and at - found[1][0] >= YOUNG_S]
        if not like:
            return track
        # The one with the longest past; by name where they are alike, so that a replay picks the same.
        name, lent_at, lent = min(like, key=lambda f: (f[1][0], f[0]))
        return replace(track, sibling_name=name, sibling_at=lent_at, sibling_values=lent)

    def _measured(self, pool: str, signal: str, since: float, until: float) -> tuple[Array, Array]:
        """A pool's rows, unknown where none of its replicas was ready, or where an incident had taken too many of them:
        nobody is asked while nobody answers."""
        times, values = self.record.series("pool", pool, signal, since, until)
        seen, ready = self.record.series("pool", pool, "ready", since, until)
        silent = seen[(ready <= 0.0) | masking.masked(seen, ready, self._taken(pool, since, until))]
        if silent.size:
            values = np.where(np.isin(times, silent), NAN, values)
        return times, values

    def _taken(self, pool: str, since: float, until: float) -> list[tuple[float, float]]:
        """Stretches in which an incident may have taken replicas of the pool. Incidents are read once a round."""
        if self.known_at != until:
            self.known_at = until
            self.known = [(self.scopes(i.scope), i) for i in self.record.incidents()]
        mine = [i for scopes, i in self.known if Entity("pool", pool) in scopes]
        return masking.took(mine, since, until)

    def _chosen(self, made: Forecast, at: float) -> Forecast:
        """The forecast to be used: the blend's, or another's where the scores of elapsed ones say so."""
        kept = self.record.archive.since(made.target, made.signal, at - WEEK_S - 2 * SCORED_LEAD_S)
        name, why = hindsight.choose(kept, at) if kept else (BLEND, "")
        if name == BLEND or name not in made.rivals:
            return made
        return replace(
            made,
            quantiles=made.rivals[name],
            model=name,
            note="; ".join(filter(None, (why, made.note))),
        )

    def _keep(self, made: Forecast, used: Forecast, at: float) -> None:
        archive = self.record.archive
        last = archive.made_before(made.target, made.signal, at + HOUR_S)
        if last is not None and made.at - last.at < KEEP_EVERY_S:
            return
        kind = kind_of(made.signal)
        _, before = self.record.series(kind, made.target, made.signal, at - 2 * WEEK_S, at)
        threshold = float(np.quantile(before, hindsight.HIGH_SHARE)) if before.size else NAN
        archive.keep(
            Kept(
                made.target,
                made.signal,
                made.at,
                made.step_s,
                used.model if used is not made else BLEND,
                made.levels,
                {BLEND: made.quantiles, **made.rivals},
                threshold,
                hindsight.chance_above(used, threshold),
            )
        )

    def look_back(self, at: float) -> None:
        """Score what has elapsed since the last time, and sum up."""
        changed = set()
        for kept in self.record.archive.due(at - SCORED_LEAD_S):
            times, values = self.record.series(
                kind_of(kept.signal), kept.target, kept.signal, kept.at, kept.at + SCORED_LEAD_S
            )
            scores = hindsight.score(kept, hourly_from(kept.at, times, values, int(SCORED_LEAD_S // HOUR_S)))
            self.record.archive.scored(kept, scores)
            changed.add((kept.target, kept.signal))
        known = {(t, s) for t, s in self.standings}
        for target, signal in sorted(changed | (self._scored_before(at) - known)):
            self.standings[target, signal] = hindsight.standings(
                self.record.archive.since(target, signal, 0.0)
            )

    def _scored_before(self, at: float) -> set[tuple[str, str]]:
        """After a restart: series whose forecasts were scored by the run before."""
        return {(p, s) for p in self.notes for s in ("concurrency", *self.signals)} | set(self.others)


def kind_of(signal: str) -> str:
    """Of what entity a forecast signal is recorded."""
    return "cluster" if signal in CLUSTER_SIGNALS else "pool"


def hourly_from(start: float, at: Array, values: Array, hours: int) -> Array:
    """(hour,) means from `start` on, NaN where nothing was measured."""
    index = np.floor((at - start) / HOUR_S).astype(np.int64)
    inside = (index >= 0) & (index < hours) & np.isfinite(values)
    number = np.bincount(index[inside], minlength=hours)
    total = np.bincount(index[inside], values[inside], minlength=hours)
    return np.where(number > 0, total / np.maximum(number, 1), NAN)


__all__ = ["BLEND", "NAIVE", "Calendar", "Fit", "Foresight", "hourly_from"]
