"""All targets' readings of a tick worked through at once, as columns over every slot of the fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon import histogram
from daemon.model import NAN, Array, Entity, Event, Layout

Index = NDArray[np.intp]

WRAP_32 = 2.0**32


@dataclass(slots=True)
class Part:
    """Where the slots of one target that belong to one kind go. group : slot -> cell, several may share one."""

    kind: str
    slots: Index
    rows: Index
    columns: Index
    group: Index
    is_max: NDArray[np.bool_]
    entity_rows: Index


@dataclass(slots=True)
class Binding:
    """One target's layout bound to the tables, with what its slots last read (a view into the Sweep).

    entities : all that its series speak of. engines : those of which it is the own page.
    """

    layout: Layout
    parts: list[Part]
    counters: Index
    codes: Index
    code_entities: tuple[Entity, ...]
    buckets: histogram.Binding | None
    before: Array
    entities: frozenset[Entity]
    engines: tuple[Entity, ...]
    at: float = NAN
    is_stale: bool = False


@dataclass(slots=True)
class Cells:
    """One kind's cells over all targets. flat : (cell,) place in the table laid out row by row. owner : (cell,) position of the target in the Sweep.

    entity_rows, entity_owner : (entity,) rows of the table that are seen when the target answers.
    """

    slots: Index
    flat: Index
    group: Index | None
    is_max: NDArray[np.bool_]
    owner: Index
    entity_rows: Index
    entity_owner: Index


class Sweep:
    """The bindings of all targets laid end to end. Made anew when any layout changes."""

    def __init__(self, bindings: Sequence[Binding], widths: Mapping[str, int]) -> None:
        """widths : kind -> columns of its table."""
        self.bindings = tuple(bindings)
        sizes = [b.before.size for b in bindings]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        self.before = np.concatenate([b.before for b in bindings]) if bindings else np.empty(0)
        for binding, start, size in zip(bindings, self.starts, sizes, strict=False):
            binding.before = self.before[start : start + size]
        owner = np.repeat(np.arange(len(sizes), dtype=np.intp), sizes)
        self.counters = _joined([b.counters for b in bindings], self.starts)
        self.counter_owner = owner[self.counters]
        self.codes = _joined([b.codes for b in bindings], self.starts)
        self.code_entities = tuple(e for b in bindings for e in b.code_entities)
        self.buckets = histogram.joined(
            [(b.buckets, int(s)) for b, s in zip(bindings, self.starts, strict=False)]
        )
        kinds = dict.fromkeys(p.kind for b in bindings for p in b.parts)
        self.cells = {kind: self._cells(kind, widths[kind]) for kind in kinds}

    def _cells(self, kind: str, width: int) -> Cells:
        found = [
            (i, int(start), part)
            for i, (binding, start) in enumerate(zip(self.bindings, self.starts, strict=False))
            for part in binding.parts
            if part.kind == kind
        ]
        offset = np.concatenate([[0], np.cumsum([p.rows.size for _, _, p in found])]).astype(np.intp)
        group = _joined([p.group for _, _, p in found], offset)
        slots = np.concatenate([p.slots + start for _, start, p in found])
        rows = np.concatenate([p.rows for _, _, p in found])
        return Cells(
            slots=slots,
            flat=rows * width + np.concatenate([p.columns for _, _, p in found]),
            group=group if rows.size < slots.size else None,
            is_max=np.concatenate([p.is_max for _, _, p in found]),
            owner=np.repeat([i for i, _, _ in found], [p.rows.size for _, _, p in found]),
            entity_rows=np.concatenate([p.entity_rows for _, _, p in found]),
            entity_owner=np.repeat([i for i, _, _ in found], [p.entity_rows.size for _, _, p in found]),
        )

    def work(
        self, readings: dict[int, tuple[Array, float]], store: histogram.Store
    ) -> tuple[Array, list[Event], list[int]]:
        """Rates, codes and histograms of the readings.

        readings : position of the target -> (values, at). Returns (slot,) what each slot means now, the events
        read out of last-code gauges, and the targets whose page differs from the one before. Slots of targets without a
        reading are as if nothing had happened.
        """
        elapsed = np.zeros(len(self.bindings))
        now = np.concatenate(
            [readings[i][0] if i in readings else binding.before for i, binding in enumerate(self.bindings)]
        )
        for i, (_, at) in readings.items():
            binding = self.bindings[i]
            elapsed[i] = at - binding.at
            binding.at = at
        out = now.copy()
        counters = self.counters
        out[counters] = rate(self.before[counters], now[counters], elapsed[self.counter_owner])
        events = self._codes(now, out, max(at for _, at in readings.values()))
        if self.buckets is not None:
            store.add(self.buckets, self.before, now)
        moved = self._moved(now)
        self.before[:] = now
        return out, events, moved

    def _moved(self, now: Array) -> list[int]:
        """Targets of which any slot reads otherwise than before. NaN is as NaN."""
        differs = (now != self.before) & ((now == now) | (self.before == self.before))
        if not differs.size:
            return []
        # reduceat gives an empty stretch the next one's answer, and has none for one at the very end
        filled = (self.starts[:-1] < self.starts[1:]).nonzero()[0]
        return [int(i) for i in filled[np.logical_or.reduceat(differs, self.starts[:-1][filled])]]

    def _codes(self, now: Array, out: Array, at: float) -> list[Event]:
        """A last-code gauge counts only when it changes to something: it never clears, and survives restarts."""
        if not self.codes.size:
            return []
        code, then = now[self.codes], self.before[self.codes]
        fresh = (code > 0) & (code != then) & np.isfinite(then)
        out[self.codes] = np.where(fresh, code, NAN)
        return [
            Event(at, self.code_entities[i], "xid", float(code[i]), "gauge")
            for i in fresh.nonzero()[0].tolist()
        ]


def _joined(indices: list[Index], starts: Index) -> Index:
    """Per-target indices as indices into the whole."""
    shifted = [index + start for index, start in zip(indices, starts, strict=False)]
    return np.concatenate(shifted) if shifted else np.empty(0, dtype=np.intp)


def rate(before: Array, now: Array, elapsed_s: Array | float) -> Array:
    """Increase per second of counters. NaN at first sight, over a reset, or when no time has passed.

    A reset gives NaN, not the new total: the events before the reset are unknown, and a fault must never be
    read out of a restart. A 32-bit counter that went round its end is carried on.

    >>> rate(np.array([10.0, 10.0, 4294967290.0]), np.array([25.0, 3.0, 4.0]), 5.0)
    array([ 3., nan,  2.])
    """
    increase = now - before
    if (increase < 0).any():
        wrapped = (increase < 0) & (before > 0.98 * WRAP_32) & (before < WRAP_32) & (now < 0.02 * WRAP_32)
        increase = np.where(wrapped, increase + WRAP_32, increase)
        increase[increase < 0] = NAN
    # x / NaN is quiet: no warning to suppress
    per_s: Array = increase / np.where(np.asarray(elapsed_s) > 0, elapsed_s, NAN)
    return per_s


def combine(values: Array, group: Index, is_max: NDArray[np.bool_]) -> Array:
    """Several series that mean one cell: their sum or maximum, ignoring what is missing; all missing = NaN."""
    size = is_max.size
    present = np.isfinite(values)
    total = np.bincount(group, np.where(present, values, 0.0), minlength=size)
    if is_max.any():
        top = np.full(size, -np.inf)
        np.maximum.at(top, group, np.where(present, values, -np.inf))
        total = np.where(is_max, top, total)
    return np.where(np.bincount(group, present, minlength=size) > 0, total, NAN)
