"""Robust statistics over peers, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array

Index = NDArray[np.intp]

MAD_TO_SIGMA = 1.4826
"""Makes the MAD consistent for a normal (Rousseeuw & Croux 1993)."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Entities cut into peer groups, padded to a rectangle so that medians need no loop.

    member : (group, place) row of the entity, -1 = padding. of : (entity,) its group, -1 = in none.
    """

    member: Index
    of: Index
    place: Index


@lru_cache(maxsize=64)
def groups(keys: tuple[str, ...]) -> Groups:
    """Peer groups by equal key; an empty key is in no group. Remembered: the keys of a fleet seldom change."""
    names: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            names.setdefault(key, []).append(row)
    width = max((len(rows) for rows in names.values()), default=0)
    member = np.full((len(names), width), -1, dtype=np.intp)
    of, place = np.full(len(keys), -1, dtype=np.intp), np.zeros(len(keys), dtype=np.intp)
    for i, rows in enumerate(names.values()):
        member[i, : len(rows)] = rows
        of[rows] = i
        place[rows] = np.arange(len(rows))
    return Groups(member, of, place)


@dataclass(frozen=True, slots=True, eq=False)
class Peers:
    """What an entity's peers show. All (entity,), NaN where there are too few peers.

    median : of the others, without itself. sigma : robust spread of the group. count : others that were measured.
    """

    median: Array
    sigma: Array
    count: Array


def peers(values: Array, where: Groups, *, least: int = 3) -> Peers:
    """Leave-one-out median and robust spread of each entity's peers.

    values : (entity,), NaN = not sampled. least : other members that must be measured, else NaN.

    >>> p = peers(np.array([1.0, 2.0, 3.0, 100.0]), groups(("a",) * 4))
    >>> p.median.tolist()
    [3.0, 3.0, 2.0, 2.0]
    """
    size = values.size
    blank = np.full(size, NAN)
    if not where.member.size:
        return Peers(blank, blank, np.zeros(size))
    padded = np.where(where.member >= 0, values[where.member], NAN)
    ordered = np.sort(padded, axis=1)  # NaN sorts last
    number = np.isfinite(ordered).sum(axis=1)
    others = number - 1
    half = np.maximum(others, 1)
    low, high = (half - 1) // 2, half // 2
    each, last = np.arange(number.size), padded.shape[1] - 1
    # Without an element the k-th of the rest is the k-th of all where the element lies above that, else the one after it.
    of = where.of
    lower, upper = ordered[each, low][of], ordered[each, high][of]
    lower = np.where(values > lower, lower, ordered[each, np.minimum(low + 1, last)][of])
    upper = np.where(values > upper, upper, ordered[each, np.minimum(high + 1, last)][of])
    centre = _row_median(ordered, number)
    spread = np.sort(np.abs(padded - centre[:, None]), axis=1)
    sigma = MAD_TO_SIGMA * _row_median(spread, number)
    inside = of >= 0
    known = inside & np.isfinite(values) & (others >= least)[of]
    return Peers(
        np.where(known, 0.5 * (lower + upper), NAN),
        np.where(known, sigma[of], NAN),
        np.where(inside, others[of], 0.0),
    )


def middle(values: Array) -> float:
    """Median of (value,), one or more and none missing: np.median's, in a fifth of its time."""
    ordered = np.sort(values)
    half = ordered.size // 2
    return float(ordered[half]) if ordered.size % 2 else float(0.5 * (ordered[half - 1] + ordered[half]))


def nearby(values: Array, by: Array, at: Array, count: int) -> Array:
    """(point,) median of the `count` values that are nearest in rank to each point. values, by : (value,), none missing, `count` or more; at : (point,)
    in units of `by`. A point that is a value itself is among them.

    >>> nearby(np.array([1.0, 2.0, 9.0, 4.0]), np.array([0.0, 1.0, 3.0, 2.0]), np.array([0.0, 2.9]), 3).tolist()
    [2.0, 4.0]
    """
    order = np.argsort(by, kind="stable")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values[order], count), axis=1)
    first = np.searchsorted(by[order], at) - count // 2
    found: Array = medians[np.clip(first, 0, medians.size - 1)]
    return found


def _row_median(ordered: Array, number: Index) -> Array:
    """Median of each row's first `number` values, NaN for an empty row."""
    some = np.maximum(number, 1)
    each = np.arange(ordered.shape[0])
    middle = 0.5 * (ordered[each, (some - 1) // 2] + ordered[each, some // 2])
    return np.where(number > 0, middle, NAN)


@dataclass(slots=True)
class Rings:
    """Medians of several spans of each entity, kept as medians of medians and never as raw samples.

    spans_s : lengths of the blocks, each a multiple of the one before. rows follow `names`.
    """

    spans_s: tuple[float, ...] = (60.0, 300.0, 900.0)
    names: tuple[str, ...] = ()
    raw: list[list[float]] = field(default_factory=list)
    blocks: list[list[list[float]]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    latest: list[list[float]] = field(default_factory=list)

    def push(self, at: float, names: tuple[str, ...], values: Array) -> bool:
        """Add one tick; whether it ended a block of the shortest span, so that `medians` has something new."""
        if names != self.names:
            self._follow(names)
        if not self.ends:
            self.ends = [at + span for span in self.spans_s]
        self.raw.append(values.tolist())
        feed = self.raw
        for level, span in enumerate(self.spans_s):
            if at < self.ends[level]:
                break
            self.ends[level] = at + span
            self.latest[level] = _median_of(feed, len(names))
            feed.clear()
            self.blocks[level].append(self.latest[level])
            feed = self.blocks[level]
        del self.blocks[-1][:-1]
        return not self.raw

    def medians(self) -> list[Array]:
        """The newest finished median of each span, (span)(entity,), NaN before the first is full."""
        return [np.array(row) for row in self.latest]

    def _follow(self, names: tuple[str, ...]) -> None:
        """Re-order everything remembered to a new list of entities; a newcomer starts unknown."""
        place = {name: i for i, name in enumerate(self.names)}
        index = [place.get(name, -1) for name in names]

        def move(row: list[float]) -> list[float]:
            return [row[i] if i >= 0 else NAN for i in index]

        depth = len(self.spans_s)
        self.raw = [move(row) for row in self.raw]
        self.blocks = [[move(row) for row in level] for level in self.blocks] or [[] for _ in range(depth)]
        self.latest = [move(row) for row in self.latest] or [[NAN] * len(names) for _ in range(depth)]
        self.names = names


def _median_of(rows: list[list[float]], size: int) -> list[float]:
    return columns_median(np.array(rows)).tolist() if rows and size else [NAN] * size


def columns_median(rows: Array) -> Array:
    """(entity,) medians over time of rows (time, entity), NaN = missing; less than half measured is unknown."""
    ordered = np.sort(rows, axis=0)  # NaN sorts last
    number = np.isfinite(ordered).sum(axis=0)
    some, each = np.maximum(number, 1), np.arange(ordered.shape[1])
    middle = 0.5 * (ordered[(some - 1) // 2, each] + ordered[some // 2, each])
    return np.where(number * 2 >= rows.shape[0], middle, NAN)


@dataclass(slots=True)
class Streak:
    """How long each entity's condition has held, over gaps no longer than `gap_s`."""

    gap_s: float = 45.0
    since: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def held(self, at: float, names: Sequence[str]) -> dict[str, float]:
        """names : for which the condition is true now. Returns name -> seconds it has held."""
        for name in names:
            if name not in self.last or at - self.last[name] > self.gap_s:
                self.since[name] = at
            self.last[name] = at
        for name in [n for n, t in self.last.items() if at - t > self.gap_s]:
            del self.last[name], self.since[name]
        return {name: at - self.since[name] for name in names}


def rows(mask: NDArray[np.bool_]) -> list[int]:
    """Indices at which a mask is true, as plain ints."""
    found: list[int] = mask.nonzero()[0].tolist()
    return found
