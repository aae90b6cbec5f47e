"""Cumulative histogram buckets to windowed means and quantiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daemon import pools
from daemon.model import NAN, Array, Entity, Frame, Layout, Shape
from daemon.policy import Policy

Index = NDArray[np.intp]


def stem(signal: str) -> str:
    """``ttft_s`` -> ``ttft``: every histogram of the catalogue is in seconds."""
    return signal.removesuffix("_s")


def columns(signal: str) -> tuple[str, ...]:
    """The frame columns one histogram gives. The order is that of `fill`."""
    base = stem(signal)
    return tuple(f"{base}_{what}" for what in ("mean_s", "p50_s", "p95_s", "floor_s", "over_ratio", "per_s"))


@dataclass(slots=True)
class Binding:
    """All histograms of one target.

    rows    : (histogram,) in the store. buckets : (histogram, bucket) slots in order of upper edge, padded with the
    last one. totals : (histogram, 2) slots of sum and count; has_total : False where one is not exported.
    """

    signals: tuple[tuple[Entity, str], ...]
    rows: Index
    buckets: Index
    totals: Index
    has_total: NDArray[np.bool_]


FIGURES = 6
"""What `describe` tells of each histogram, in the order of `columns`."""


@dataclass(slots=True)
class Placed:
    """Where figures go. of : (histogram,) rows of the store. rows, columns : cells of the frame. limit : objectives.

    figures : (histogram, FIGURES) as made at `at`.
    """

    key: tuple[int, int]
    of: Index
    rows: Index
    columns: Index
    limit: Array
    figures: Array = field(default_factory=lambda: np.empty((0, FIGURES)))
    at: float = -np.inf


@dataclass(slots=True)
class Store:
    """All histograms of the fleet as one matrix of counts that only grow, so that resets cannot show.

    window_s : span of observations a quantile is taken over.
    """

    window_s: float
    rows: dict[tuple[Entity, str], int] = field(default_factory=dict)
    edges: Array = field(default_factory=lambda: np.empty((0, 0)))
    counts: Array = field(
        default_factory=lambda: np.empty((0, 0))
    )  # cumulative over buckets, growing in time
    totals: Array = field(default_factory=lambda: np.empty((0, 2)))  # (sum, count)
    past: deque[tuple[float, Array, Array]] = field(default_factory=deque)
    shown: Placed | None = None
    placed: Placed | None = None

    def row(self, entity: Entity, signal: str, edges: Array) -> int:
        """The row of a histogram; its edges are learnt anew when they changed."""
        self.shown = None
        row = self.rows.setdefault((entity, signal), len(self.rows))
        width = max(edges.size, self.edges.shape[1])
        if row >= self.edges.shape[0] or width > self.edges.shape[1]:
            shape = (max(len(self.rows), self.edges.shape[0]), width)
            grown, counts = np.full(shape, np.inf), np.zeros(shape)
            totals = np.zeros((shape[0], 2))
            old = self.edges.shape
            grown[: old[0], : old[1]] = self.edges
            counts[: old[0], : old[1]] = self.counts
            # Padding repeats the last bucket: it adds nothing.
            if old[1] and width > old[1]:
                counts[: old[0], old[1] :] = self.counts[:, -1:]
                self.past.clear()
            totals[: old[0]] = self.totals
            self.edges, self.counts, self.totals = grown, counts, totals
        self.edges[row] = np.inf
        self.edges[row, : edges.size] = edges
        return row

    def add(self, binding: Binding, before: Array, now: Array) -> None:
        """Add what was observed since `before`; over a reset or at first sight nothing is known to be new."""
        step = now[binding.buckets] - before[binding.buckets]
        known = np.asarray((step >= 0).all(axis=1))
        if not known.all():
            if not known.any():
                return
            step = np.where(known[:, None], step, 0.0)
        size = step.shape[1]
        self.counts[binding.rows, :size] += step
        if size < self.counts.shape[1]:
            self.counts[binding.rows, size:] += step[:, -1:]
        increase = now[binding.totals] - before[binding.totals]
        self.totals[binding.rows] += np.where(known[:, None], np.where(binding.has_total, increase, NAN), 0.0)

    def keep(self, entities: Set[Entity]) -> Index | None:
        """Drop the histograms of entities that are not named. (row,) the new row of each old one, -1 where dropped; None when all stay."""
        order = [key for key in self.rows if key[0] in entities]
        if len(order) == len(self.rows):
            return None
        index = np.array([self.rows[key] for key in order], dtype=np.intp)
        places = np.full(self.edges.shape[0], -1, dtype=np.intp)
        places[index] = np.arange(index.size)
        self.rows = {key: i for i, key in enumerate(order)}
        self.edges, self.counts, self.totals = self.edges[index], self.counts[index], self.totals[index]
        # A past that did not know the last rows yet is of no use any more.
        self.past = deque(
            (t, c[index], s[index]) for t, c, s in self.past if c.shape[0] > index.max(initial=-1)
        )
        self.shown = None
        return places

    def fill(self, frame: Frame, policy: Policy, at: float) -> None:
        """Write the window's figures into a frame of engines, in place. policy : whose objectives shares are above of."""
        if not self.rows:
            return
        # Figures over a window are made anew twice a window; in between the last ones stand.
        shown = self.shown
        if shown is not None and at - shown.at < 0.48 * self.window_s:
            frame.values[shown.rows, shown.columns] = shown.figures
            return
        while len(self.past) > 1 and at - self.past[1][0] >= self.window_s:
            self.past.popleft()
        then, counts, totals = self.past[0] if self.past else (NAN, self.counts, self.totals)
        self.past.append((at, self.counts.copy(), self.totals.copy()))
        if not at > then:
            return
        size = counts.shape[0]
        seen, sums = self.counts.copy(), self.totals.copy()
        seen[:size] -= counts
        sums[:size] -= totals
        places = self._placed(frame, policy)
        rows = places.of
        places.figures = describe(self.edges[rows], seen[rows], sums[rows], places.limit, at - then)
        places.at = at
        self.shown = places
        frame.values[places.rows, places.columns] = places.figures

    def _limit(self, row: int, signal: str, limit: float) -> float:
        """An objective for the time between tokens counts from the next edge on: requests of one replica are alike, and of a bucket that the
        objective cuts nobody can tell how many lie above it."""
        if signal != "tpot_s":
            return limit
        above = self.edges[row][self.edges[row] >= limit]
        return float(above[0]) if above.size and np.isfinite(above[0]) else limit

    def _placed(self, frame: Frame, policy: Policy) -> Placed:
        """Where each histogram's figures go; worked out again when entities, facts or policy change."""
        key = (frame.revision, len(self.rows))
        if self.placed is not None and self.placed.key == key:
            return self.placed
        position = {name: i for i, name in enumerate(frame.entities)}
        known = [(r, position[e.name], s) for (e, s), r in self.rows.items() if e.name in position]
        limits = pools.objectives(frame, policy)
        first = {s: frame.signals.index(columns(s)[0]) for s in {s for _, _, s in known}}
        starts = np.array([first[s] for _, _, s in known], dtype=np.intp)
        self.placed = Placed(
            key=key,
            of=np.array([r for r, _, _ in known], dtype=np.intp),
            rows=np.array([p for _, p, _ in known], dtype=np.intp)[:, None],
            columns=starts[:, None] + np.arange(FIGURES),
            limit=np.array([self._limit(r, s, limits[s][p]) if s in limits else NAN for r, p, s in known]),
        )
        return self.placed


def describe(edges: Array, counts: Array, totals: Array, limit: Array, window_s: float) -> Array:
    """(histogram, 6): mean, p50, p95, floor, share above `limit`, observations per second.

    edges, counts : (histogram, bucket), upper edges and cumulative counts of the window, padded with inf.
    floor is the first bucket's upper edge where the p95 lies in that bucket (nothing below is resolved), else NaN.
    All but the rate are NaN where nothing was observed.
    """
    number = counts[:, -1]
    some = number > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        count = np.where(np.isfinite(totals[:, 1]), totals[:, 1], number)
        mean = np.where(count > 0, totals[:, 0] / count, NAN)
        p50, p95 = quantiles(edges, counts, LEVELS)
        floor = np.where(some & (counts[:, 0] >= 0.95 * number), edges[:, 0], NAN)
        over = np.where(some, 1.0 - below(edges, counts, limit) / number, NAN)
    return np.column_stack([mean, p50, p95, floor, over, number / window_s])


LEVELS = np.array([0.50, 0.95])


def quantiles(edges: Array, counts: Array, levels: Array) -> Array:
    """(level, histogram) linear within a bucket as Prometheus does; the highest finite edge when it lies beyond."""
    number = counts[:, -1]
    rank = levels[:, None] * number
    at = (counts < rank[:, :, None]).sum(axis=2).clip(max=edges.shape[1] - 1)
    each = np.arange(edges.shape[0])
    upper = edges[each, at]
    is_inner = at > 0
    lower = np.where(is_inner, edges[each, at - 1], 0.0)
    below_count = np.where(is_inner, counts[each, at - 1], 0.0)
    inside = counts[each, at] - below_count
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(inside > 0, (rank - below_count) / inside, 1.0)
        value = np.where(np.isfinite(upper), lower + (upper - lower) * share, lower)
    return np.where(number > 0, value, NAN)


def below(edges: Array, counts: Array, limit: Array) -> Array:
    """(histogram,) observations at or under `limit`, linear within a bucket. NaN limit gives NaN."""
    at = (edges < limit[:, None]).sum(axis=1).clip(max=edges.shape[1] - 1)
    each = np.arange(edges.shape[0])
    upper = edges[each, at]
    lower = np.where(at > 0, edges[each, at - 1], 0.0)
    under = np.where(at > 0, counts[each, at - 1], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(np.isfinite(upper), (limit - lower) / (upper - lower), 0.0)
    return np.where(np.isfinite(limit), under + share * (counts[each, at] - under), NAN)


@lru_cache(maxsize=8192)
def _found(layout: Layout) -> tuple[tuple[tuple[Entity, str], Array, list[int], tuple[int, int]], ...]:
    """(entity and signal, upper edges, bucket slots, slots of sum and count or -1) of each histogram of a layout."""
    groups: dict[tuple[Entity, str], dict[Shape, list[tuple[float, int]]]] = {}
    for slot, series in enumerate(layout.series):
        if series.shape in (Shape.BUCKET, Shape.SUM, Shape.COUNT):
            parts = groups.setdefault((series.entity, series.signal), {})
            parts.setdefault(series.shape, []).append((series.le, slot))
    found = []
    for key, parts in groups.items():
        if ladder := sorted(parts.get(Shape.BUCKET, ())):
            total, count = (parts[s][0][1] if s in parts else -1 for s in (Shape.SUM, Shape.COUNT))
            found.append(
                (key, np.array([le for le, _ in ladder]), [slot for _, slot in ladder], (total, count))
            )
    return tuple(found)


def bind(layout: Layout, store: Store) -> Binding | None:
    """The histograms of a layout with their rows in the store; None where it has none."""
    found = _found(layout)
    if not found:
        return None
    rows = [store.row(entity, signal, edges) for (entity, signal), edges, _, _ in found]
    width = max(len(slots) for _, _, slots, _ in found)
    totals = np.array([t for _, _, _, t in found], dtype=np.intp)
    return Binding(
        signals=tuple(key for key, _, _, _ in found),
        rows=np.array(rows, dtype=np.intp),
        buckets=np.array([s + [s[-1]] * (width - len(s)) for _, _, s, _ in found], dtype=np.intp),
        totals=totals,
        has_total=totals >= 0,
    )


def joined(bindings: list[tuple[Binding | None, int]]) -> Binding | None:
    """The histograms of many targets as one. bindings : with the position of each target's first slot."""
    found = [(b, start) for b, start in bindings if b is not None]
    if not found:
        return None
    width = max(b.buckets.shape[1] for b, _ in found)
    wide = [
        np.hstack([b.buckets, np.repeat(b.buckets[:, -1:], width - b.buckets.shape[1], axis=1)])
        for b, _ in found
    ]
    return Binding(
        signals=tuple(s for b, _ in found for s in b.signals),
        rows=np.concatenate([b.rows for b, _ in found]),
        buckets=np.vstack([w + start for w, (_, start) in zip(wide, found, strict=True)]),
        totals=np.vstack([b.totals + start for b, start in found]),
        has_total=np.vstack([b.has_total for b, _ in found]),
    )
