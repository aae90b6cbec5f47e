"""Scrapes to Frames: alignment, counters to rates, histograms to quantiles, staleness to NaN."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daemon import histogram, pools
from daemon.model import GONE, NAN, Array, Entity, Event, Fact, Frame, Frames, Layout, Scrape, Shape
from daemon.policy import Policy
from daemon.sweep import Binding, Index, Part, Sweep, combine
from daemon.topology import complete

FORGET_AFTER = 4.0
"""A target that neither answered nor failed for this many stale periods has left discovery."""

KEPT = ("gpu", "port")
"""Kinds that do not come and go: one that vanishes from a living page is news."""

TARGET_SIGNALS = ("up", "took_s", "silent_s", "fails", "series", "dropped", "unchanged_s")


@dataclass(slots=True)
class Table:
    """The growing matrix of one kind: rows are entities, columns signals."""

    rows: dict[str, int] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    values: Array = field(default_factory=lambda: np.full((0, 0), NAN))
    seen: Array = field(default_factory=lambda: np.full(0, -np.inf))

    def row(self, name: str) -> int:
        return self.rows.setdefault(name, len(self.rows))

    def column(self, signal: str) -> int:
        return self.columns.setdefault(signal, len(self.columns))

    def fit(self) -> None:
        """Make room for rows and columns named since the last call."""
        shape = (len(self.rows), len(self.columns))
        if shape == self.values.shape:
            return
        grown = np.full(shape, NAN)
        grown[: self.values.shape[0], : self.values.shape[1]] = self.values
        seen = np.full(shape[0], -np.inf)
        seen[: self.seen.size] = self.seen
        self.values, self.seen = grown, seen

    def keep(self, names: set[str]) -> Index | None:
        """Drop every row that is not named. (row,) the new row of each old one, -1 where dropped; None when all stay."""
        order = [n for n in self.rows if n in names]
        if len(order) == len(self.rows):
            return None
        index = np.array([self.rows[n] for n in order], dtype=np.intp)
        places = np.full(len(self.rows), -1, dtype=np.intp)
        places[index] = np.arange(index.size)
        self.values, self.seen = self.values[index], self.seen[index]
        self.rows = {n: i for i, n in enumerate(order)}
        return places


@dataclass(slots=True)
class Health:
    """What is known of one target's answers."""

    up: float = NAN
    took_s: float = NAN
    answered: float = NAN
    attempted: float = NAN
    fails: int = 0
    series: int = 0
    dropped: int = 0
    changed: float = NAN
    error: str = ""
    first: float = NAN


class FrameBuilder:
    """Turns whatever scrapes have come into one Frame a kind. All state is here; time comes with the data."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tables: dict[str, Table] = {}
        self.bindings: dict[str, Binding] = {}
        self.health: dict[str, Health] = {}
        self.events: list[Event] = []
        self.histograms = histogram.Store(policy.slo_window_s)
        self.vanished: dict[Entity, tuple[str, tuple[Fact, ...]]] = {}
        self.revision = 0
        self._columns: dict[str, dict[str, tuple[str, ...]]] = {}
        self._columns_revision = -1
        self._pending: dict[str, tuple[Array, float]] = {}
        self._sweep: Sweep | None = None
        self._places: dict[str, int] = {}

    # -- taking in ------------------------------------------------------------------------------------

    def absorb(self, scrape: Scrape) -> None:
        """Take one reading in. A failed one only changes the target's health: its last values age."""
        if scrape.error == GONE:
            if scrape.target in self.health:
                self._work()
                self._forget([scrape.target])
            return
        if scrape.events:
            self.events.extend(scrape.events)
        if scrape.layout is None and not scrape.error:
            return  # a log has events and no values: that is not a failure
        health = self.health.get(scrape.target)
        if health is None:
            health = self.health[scrape.target] = Health(first=scrape.at)
            self.revision += 1
        health.attempted, health.took_s = scrape.at, scrape.took_s
        health.dropped = scrape.dropped
        if scrape.layout is None or scrape.values is None:
            health.up, health.error, health.fails = 0.0, scrape.error, health.fails + 1
            return
        binding = self.bindings.get(scrape.target)
        if binding is None or binding.layout is not scrape.layout:
            if binding is not None:
                self._work()
                self._vanish(scrape.layout, binding)
            old, binding = binding, self._bind(scrape.layout, binding)
            if old is not None and any(e.kind not in KEPT for e in old.entities - binding.entities):
                self._forget([])
            health.changed = scrape.at
        pending = self._pending.get(scrape.target)
        last = binding.at if pending is None else pending[1]
        if not scrape.at > last and last == last:
            return  # the same page again, or a clock that went back: the newer reading stands
        if health.up != 1.0:
            health.changed = scrape.at
        health.up, health.error, health.fails = 1.0, "", 0
        health.answered, health.series = scrape.at, len(scrape.layout.series)
        if pending is not None:
            self._work()  # two readings within a tick: the first must not be lost to the counters
        self._pending[scrape.target] = (scrape.values, scrape.at)

    def _work(self) -> None:
        """Work what was taken in since the last time into the tables, all targets at once."""
        if not self._pending:
            return
        if self._sweep is None:
            widths = {kind: len(table.columns) for kind, table in self.tables.items()}
            self._sweep = Sweep(tuple(self.bindings.values()), widths)
            self._places = {b.layout.target: i for i, b in enumerate(self._sweep.bindings)}
        sweep = self._sweep
        readings = {self._places[target]: reading for target, reading in self._pending.items()}
        self._pending = {}
        out, events, moved = sweep.work(readings, self.histograms)
        self.events += events
        for i in moved:
            self.health[sweep.bindings[i].layout.target].changed = readings[i][1]
        has_news = np.zeros(len(sweep.bindings), dtype=bool)
        has_news[list(readings)] = True
        for kind, cells in sweep.cells.items():
            values = out[cells.slots]
            if cells.group is not None:
                values = combine(values, cells.group, cells.is_max)
            flat = cells.flat
            if len(readings) < len(sweep.bindings):
                news = has_news[cells.owner]
                flat, values = flat[news], values[news]
            self.tables[kind].values.reshape(-1)[flat] = values  # a view: tables lie row by row
        for i in readings:
            sweep.bindings[i].is_stale = False
        at = np.array([b.at for b in sweep.bindings])
        for kind, cells in sweep.cells.items():
            # Two targets may speak of one entity, as a load balancer of an engine: the newer word counts. fmax: NaN = never.
            np.fmax.at(self.tables[kind].seen, cells.entity_rows, at[cells.entity_owner])

    # -- binding layouts ------------------------------------------------------------------------------

    def _bind(self, layout: Layout, old: Binding | None) -> Binding:
        """Give every series of a layout its cell, keeping what the same series read before."""
        self.revision += 1
        by_kind: dict[str, list[int]] = {}
        for slot, series in enumerate(layout.series):
            if series.shape not in (Shape.BUCKET, Shape.SUM, Shape.COUNT):
                by_kind.setdefault(series.entity.kind, []).append(slot)
        parts = [self._part(layout, kind, slots) for kind, slots in by_kind.items()]
        shapes = [s.shape for s in layout.series]
        codes = [i for i, s in enumerate(shapes) if s is Shape.LAST_CODE]
        before = np.full(len(layout.series), NAN)
        at = NAN
        if old is not None and old.layout is layout:
            before, at = old.before.copy(), old.at
        elif old is not None:
            known = {_key(s): i for i, s in enumerate(old.layout.series)}
            for slot, series in enumerate(layout.series):
                if _key(series) in known:
                    before[slot] = old.before[known[_key(series)]]
            at = old.at
        entities = frozenset(s.entity for s in layout.series)
        for entity in entities:
            self.tables.setdefault(entity.kind, Table()).row(entity.name)
        buckets = histogram.bind(layout, self.histograms)
        for entity, signal in buckets.signals if buckets is not None else ():
            for name in histogram.columns(signal):
                self.tables[entity.kind].column(name)
        for table in self.tables.values():
            table.fit()
        binding = Binding(
            layout=layout,
            parts=parts,
            counters=np.array([i for i, s in enumerate(shapes) if s is Shape.COUNTER], dtype=np.intp),
            codes=np.array(codes, dtype=np.intp),
            code_entities=tuple(layout.series[i].entity for i in codes),
            buckets=buckets,
            before=before,
            entities=entities,
            # an engine's own page, as against a load balancer's word on it
            engines=tuple(s.entity for s in layout.series if s.signal == "running"),
            at=at,
        )
        self.bindings[layout.target] = binding
        self._sweep = None
        return binding

    def _vanish(self, layout: Layout, old: Binding) -> None:
        """Blank the old cells. What a living target stops naming is remembered: a GPU off the bus leaves so."""
        for part in old.parts:
            self.tables[part.kind].values[part.rows, part.columns] = NAN
        present = {s.entity for s in layout.series}
        for entity in old.entities - present:
            if entity.kind not in KEPT:
                continue  # an engine that a load balancer no longer lists has been taken away
            facts = tuple(f for f in old.layout.facts if f.entity == entity)
            self.vanished[entity] = (layout.target, facts)
        for entity in present & self.vanished.keys():
            del self.vanished[entity]

    def _part(self, layout: Layout, kind: str, slots: list[int]) -> Part:
        table = self.tables.setdefault(kind, Table())
        cells: dict[tuple[int, int], int] = {}
        group = []
        is_max: list[bool] = []
        for slot in slots:
            series = layout.series[slot]
            cell = (table.row(series.entity.name), table.column(series.signal))
            if cell not in cells:
                is_max.append(series.combine == "max")
            group.append(cells.setdefault(cell, len(cells)))
        rows = np.array([r for r, _ in cells], dtype=np.intp)
        return Part(
            kind=kind,
            slots=np.array(slots, dtype=np.intp),
            rows=rows,
            columns=np.array([c for _, c in cells], dtype=np.intp),
            group=np.array(group, dtype=np.intp),
            is_max=np.array(is_max, dtype=bool),
            entity_rows=np.unique(rows),
        )

    # -- giving out -----------------------------------------------------------------------------------

    def build(self, at: float) -> Frames:
        """The frames of this tick. Values older than policy.stale_s are NaN; a target that left is forgotten."""
        self._work()
        self._age(at)
        columns = self._facts_now()
        by_kind = {}
        for kind, table in self.tables.items():
            by_kind[kind] = Frame(
                at=at,
                kind=kind,
                entities=tuple(table.rows),
                signals=tuple(table.columns),
                values=table.values.copy(),
                age_s=at - table.seen,
                facts=columns.get(kind, {}),
                revision=self.revision,
            )
        # What gateways count of pools is no pool: it goes into the row of one that has engines.
        told: dict[str, Frame] = {kind: by_kind[kind] for kind in ("pool", "region") if kind in by_kind}
        by_kind.pop("pool", None)
        if "engine" in by_kind:
            self.histograms.fill(by_kind["engine"], self.policy, at)
            by_kind["pool"] = pools.frame(by_kind["engine"], self.policy, told)
        by_kind["target"] = self._target_frame(at, columns.get("target", {}))
        events, self.events = tuple(self.events), []
        return Frames(at, by_kind, events)

    def _age(self, at: float) -> None:
        """NaN what is stale, and forget targets that nothing speaks of any more."""
        newest = max((h.attempted for h in self.health.values()), default=NAN)
        horizon = self.policy.stale_s * FORGET_AFTER
        gone = []
        for target, health in self.health.items():
            binding = self.bindings.get(target)
            if binding is not None and not binding.is_stale and at - binding.at > self.policy.stale_s:
                binding.is_stale = True
                for part in binding.parts:
                    self.tables[part.kind].values[part.rows, part.columns] = NAN
            # Only while others still speak: when everything is silent the source is sick, not the fleet smaller.
            if newest - health.attempted > horizon:
                gone.append(target)
        if gone:
            self._forget(gone)

    def _forget(self, targets: list[str]) -> None:
        for target in targets:
            self.health.pop(target, None)
            self.bindings.pop(target, None)
        self._sweep = None
        self.vanished = {e: v for e, v in self.vanished.items() if v[0] in self.bindings}
        named = self.vanished.keys() | frozenset().union(*(b.entities for b in self.bindings.values()))
        names: dict[str, set[str]] = {kind: set() for kind in self.tables}
        for entity in named:
            names.setdefault(entity.kind, set()).add(entity.name)
        moved = {k: places for k, t in self.tables.items() if (places := t.keep(names[k])) is not None}
        rows = self.histograms.keep(named)
        self.histograms.shown = None  # rows of the frame have moved
        for binding in self.bindings.values():
            for part in binding.parts:
                if part.kind in moved:
                    part.rows = moved[part.kind][part.rows]
                    part.entity_rows = moved[part.kind][part.entity_rows]
            if rows is not None and binding.buckets is not None:
                binding.buckets.rows = rows[binding.buckets.rows]
        self.revision += 1

    def _facts_now(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """kind -> key -> one string an entity; worked out only when something changed."""
        if self._columns_revision == self.revision:
            return self._columns
        facts: dict[Entity, dict[str, str]] = {}
        for kind, table in self.tables.items():
            for name in table.rows:
                facts[Entity(kind, name)] = {}
        for _, vanished in self.vanished.values():
            for fact in vanished:
                facts.setdefault(fact.entity, {})[fact.key] = fact.value
        for target, binding in self.bindings.items():
            for fact in binding.layout.facts:
                facts.setdefault(fact.entity, {})[fact.key] = fact.value
            facts.setdefault(Entity("target", target), {})["node"] = _home(binding.layout)
            for engine in binding.engines:
                facts[engine]["target"] = target
        full = complete(facts, self.policy)
        self._columns = {}
        for kind in (*self.tables, "target"):
            names = list(self.health) if kind == "target" else list(self.tables[kind].rows)
            known = [full.get(Entity(kind, n), {}) for n in names]
            keys = sorted({k for facts_of in known for k in facts_of})
            self._columns[kind] = {k: tuple(f.get(k, "") for f in known) for k in keys}
        self._columns_revision = self.revision
        return self._columns

    def _target_frame(self, at: float, facts: dict[str, tuple[str, ...]]) -> Frame:
        states = list(self.health.values())
        values = np.array(
            [
                (
                    h.up,
                    h.took_s,
                    at - (h.answered if h.answered == h.answered else h.first),
                    h.fails,
                    h.series,
                    h.dropped,
                    at - h.changed,
                )
                for h in states
            ]
        ).reshape(len(states), len(TARGET_SIGNALS))
        errors = {"error": tuple(h.error for h in states)}
        return Frame(
            at=at,
            kind="target",
            entities=tuple(self.health),
            signals=TARGET_SIGNALS,
            values=values,
            age_s=np.array([at - h.attempted for h in states]),
            facts={**facts, **errors},
            revision=self.revision,
        )


def _key(series: Any) -> tuple[str, Entity, Shape, str]:
    return series.signal, series.entity, series.shape, repr(series.le)


def _home(layout: Layout) -> str:
    """The node most of a target's series speak of; "" for a load balancer, whose series name many."""
    said = [f.value for f in layout.facts if f.key == "node" and f.entity.kind == "target"]
    if said:
        return said[0]
    nodes = Counter(
        s.entity.name.split("/")[0] for s in layout.series if s.entity.kind in ("gpu", "node", "port")
    )
    if nodes:
        return nodes.most_common(1)[0][0]
    engines = {s.entity for s in layout.series if s.entity.kind == "engine"}
    if len(engines) == 1:
        return next((f.value for f in layout.facts if f.key == "node" and f.entity in engines), "")
    return ""
