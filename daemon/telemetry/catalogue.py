"""Knows every canonical signal by name, unit, shape, with the exporters' names for it; loaded once from catalogue.yaml."""

from __future__ import annotations

import importlib.resources
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Layout, Series, Shape, SourceError, Target
from daemon.telemetry.exposition import Key
from daemon.telemetry.naming import PortNames, at_home, entity_of, facts_of, target_name

CAPS = (255.0, 65535.0, 4294967295.0)
"""Where 8, 16 and 32 bit counters stop. Source: InfiniBand port counters do not wrap, they saturate."""
_PARTS = {"_bucket": Shape.BUCKET, "_sum": Shape.SUM, "_count": Shape.COUNT}


@dataclass(frozen=True, slots=True)
class Signal:
    """One canonical quantity. shape : as in the file; "histogram" stands for its three parts.

    saturates : a counter that stops at its last number instead of going round.
    """

    kind: str
    name: str
    unit: str
    shape: str
    combine: str
    help: str
    saturates: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One exporter's way of naming. See the head of catalogue.yaml for the meaning of the fields."""

    name: str
    job: str
    kind: str
    entity: str
    prefixes: tuple[str, ...]
    facts: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, str]
    one_row: bool
    only_with: frozenset[str]
    enable: str


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one vendor metric means. rank : lower is preferred; the lowest that an entity has is the only one that counts.

    value = raw * scale + offset, or the product of `labels` where those are given.
    """

    signal: Signal
    family: Family
    rank: int
    shape: Shape
    scale: float = 1.0
    offset: float = 0.0
    labels: tuple[str, ...] = ()
    combine: str = "sum"
    where: tuple[tuple[str, re.Pattern[str]], ...] = ()
    unless: tuple[tuple[str, re.Pattern[str]], ...] = ()

    def fits(self, labels: Mapping[str, str]) -> bool:
        return all(p.fullmatch(labels.get(k, "")) for k, p in self.where) and not any(
            p.fullmatch(labels.get(k, "")) for k, p in self.unless
        )


class Alias(NamedTuple):
    """One name as people see it. enable : what to do so that the exporter writes it."""

    family: str
    name: str
    enable: str


class BlindSpot(NamedTuple):
    """A signal nobody exports. names : what exporters call it, newest first. remedy : the line that enables it."""

    kind: str
    signal: str
    names: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """What the series of one target mean.

    picks, scale, offset : (slot,) so that values[slot] = raw[picks] * scale + offset. job : the exporter, "" if unknown.
    capped : slots of counters that saturate: at their end they count no further and say nothing.
    """

    layout: Layout
    job: str
    picks: NDArray[np.intp]
    scale: Array
    offset: Array
    capped: NDArray[np.intp]

    def values(self, raw: Array) -> Array:
        """(slot,) canonical values of a page's (key,) raw ones; NaN stays NaN."""
        with np.errstate(invalid="ignore"):  # 0 * inf of an info series is NaN, and means unknown
            values: Array = raw[self.picks] * self.scale + self.offset
        if self.capped.size:
            counts = values[self.capped]
            values[self.capped] = np.where(_is_full(counts), NAN, counts)
        return values


def _is_full(counts: Array) -> NDArray[np.bool_]:
    full: NDArray[np.bool_] = (counts == CAPS[0]) | (counts == CAPS[1]) | (counts == CAPS[2])
    return full


class _Row(NamedTuple):
    pick: int
    key: Key
    labels: Mapping[str, str]
    entity: Entity
    meaning: Meaning


@dataclass(slots=True)
class Catalogue:
    """The file, ready for look-ups. ports : how network devices become port names. hosts : metric -> label by which a page
    names the host it comes from."""

    signals: Mapping[str, Mapping[str, Signal]]
    families: Mapping[str, Family]
    exact: Mapping[str, tuple[Meaning, ...]]
    patterns: tuple[tuple[re.Pattern[str], Meaning], ...]
    aliases: Mapping[tuple[str, str], tuple[Alias, ...]]
    own: Mapping[str, Mapping[str, str]]
    ports: PortNames
    hosts: Mapping[str, str] = field(default_factory=dict)
    _found: dict[str, tuple[Meaning, ...]] = field(default_factory=dict)

    def meanings(self, metric: str) -> tuple[Meaning, ...]:
        """Everything a vendor name may mean; label conditions are not looked at yet."""
        found = self.exact.get(metric)
        if found is not None:
            return found
        if metric not in self._found:
            # The cache is bounded: names come from the network.
            if len(self._found) > 20_000:
                self._found.clear()
            self._found[metric] = tuple(m for pattern, m in self.patterns if pattern.fullmatch(metric))
        return self._found[metric]

    def wanted(self, metric: str) -> bool:
        return metric in self.hosts or bool(self.meanings(metric))

    def keep(self, key: Key) -> bool:
        """Whether a series means anything, label conditions included."""
        labels = dict(key.labels)
        return key.metric in self.hosts or any(meaning.fits(labels) for meaning in self.meanings(key.metric))

    def vendor_names(self) -> tuple[str, ...]:
        """Every name written out in the file, prefixes and suffixes applied; patterns are left out."""
        return (*self.exact, *self.hosts)

    def identify(
        self, target: Target, keys: Sequence[Key], engines: Mapping[str, str] | None = None
    ) -> Identity:
        """Say what each series of a page means.

        engines : load-balancer server name (or proxy/name) -> engine name, used when the target's own label
        `engines` does not name the server. Series of unknown metrics or entities are left out.
        """
        told = (dict(k.labels).get(self.hosts[k.metric], "") for k in keys if k.metric in self.hosts)
        target = at_home(target, next(told, ""))
        rows = self._rows(target, keys, engines or {})
        job = target.job or _job_of(rows)
        rows = [r for r in rows if _belongs(r.meaning.family, rows)]
        kept = _preferred(rows)
        series, scale, offset = [], [], []
        for row in kept:
            constant = _constant(row)
            series.append(_series(row))
            scale.append(row.meaning.scale if constant is None else 0.0)
            offset.append(row.meaning.offset if constant is None else constant)
        described = [(r.entity, r.labels, r.meaning.family) for r in rows if not r.meaning.family.only_with]
        facts = facts_of(target, job, described)
        return Identity(
            Layout(target_name(target), tuple(series), facts),
            job,
            np.array([r.pick for r in kept], np.intp),
            np.array(scale, float),
            np.array(offset, float),
            np.array([i for i, r in enumerate(kept) if r.meaning.signal.saturates], np.intp),
        )

    def _rows(self, target: Target, keys: Sequence[Key], engines: Mapping[str, str]) -> list[_Row]:
        rows = []
        for pick, key in enumerate(keys):
            meanings = self.meanings(key.metric)
            if not meanings:
                continue
            labels = dict(key.labels)
            for meaning in meanings:
                if not meaning.fits(labels):
                    continue
                family = meaning.family
                name = entity_of(target, family.entity, labels, self.ports, engines)
                if name:
                    rows.append(_Row(pick, key, labels, Entity(family.kind, name), meaning))
        return rows

    def blind_spots(self, seen: Mapping[str, Collection[str]]) -> list[BlindSpot]:
        """Signals that nobody exports, for the kinds that exist at all.

        seen : kind -> canonical names with at least one value. A kind that is absent has no entities: not reported.
        """
        return [
            self._blind_spot(signal)
            for kind, names in seen.items()
            for signal in self.signals.get(kind, {}).values()
            if signal.name not in names
        ]

    def _blind_spot(self, signal: Signal) -> BlindSpot:
        found = self.aliases.get((signal.kind, signal.name), ())
        lines = dict.fromkeys(_remedy(signal, alias, found) for alias in _first_per_family(found))
        own = self.own.get(signal.kind, {}).get(signal.name, "")
        return BlindSpot(
            signal.kind,
            signal.name,
            tuple(alias.name for alias in found),
            "; or ".join([*lines, *([own] * bool(own))]),
        )


def _remedy(signal: Signal, alias: Alias, found: Sequence[Alias]) -> str:
    # Not str.format: configuration lines have braces of their own.
    help_text = signal.help or signal.name.replace("_", " ")
    text = alias.enable
    for mark, word in (("{name}", alias.name), ("{shape}", signal.shape), ("{help}", help_text)):
        text = text.replace(mark, word)
    older = [other.name for other in found if other.family == alias.family and other.name != alias.name]
    return text + (f" (other versions call it {', '.join(dict.fromkeys(older))})" if older else "")


def _first_per_family(found: Sequence[Alias]) -> list[Alias]:
    first: dict[str, Alias] = {}
    for alias in found:
        first.setdefault(alias.family, alias)
    return list(first.values())


def _job_of(rows: Sequence[_Row]) -> str:
    """The family most series of the page belong to."""
    counts: dict[str, int] = {}
    for row in rows:
        if not row.meaning.family.only_with:
            name = row.meaning.family.job
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name], default="")


def _belongs(family: Family, rows: Sequence[_Row]) -> bool:
    return not family.only_with or any(r.meaning.family.name in family.only_with for r in rows)


def _preferred(rows: Sequence[_Row]) -> list[_Row]:
    """Of the names an entity has for one signal only the first in the catalogue's order: no double count."""
    best: dict[tuple[Entity, str], int] = {}
    usable = [row for row in rows if not row.meaning.labels or _constant(row) is not None]
    for row in usable:
        what = (row.entity, row.meaning.signal.name)
        best[what] = min(best.get(what, row.meaning.rank), row.meaning.rank)
    kept, single = [], set()
    for row in usable:
        if row.meaning.rank != best[row.entity, row.meaning.signal.name]:
            continue
        if row.meaning.family.one_row and row.meaning.combine == "sum":
            # The same reading listed once a pod must not be added to itself.
            what_row = (row.entity, row.meaning.signal.name, row.key.metric)
            if what_row in single:
                continue
            single.add(what_row)
        kept.append(row)
    return kept


def _constant(row: _Row) -> float | None:
    """The number written in the labels of an info series, None when the value itself counts or a label is no number."""
    if not row.meaning.labels:
        return None
    try:
        return math.prod(float(row.labels.get(name, "")) for name in row.meaning.labels)
    except ValueError:
        return None


def _series(row: _Row) -> Series:
    edge = _number(row.labels.get("le", "")) if row.meaning.shape is Shape.BUCKET else NAN
    return Series(row.meaning.signal.name, row.entity, row.meaning.shape, edge, row.meaning.combine)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return NAN


# -- reading the file --------------------------------------------------------------------------------


def load_catalogue(ports: PortNames | None = None, text: str | None = None) -> Catalogue:
    """Read catalogue.yaml. ports : replaces the file's port rules. Raises SourceError when the file contradicts itself."""
    if text is None:
        text = importlib.resources.files("daemon.telemetry").joinpath("catalogue.yaml").read_text("utf-8")
    raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    signals = {
        kind: {
            name: Signal(
                kind,
                name,
                str(spec.get("unit", "")),
                spec.get("shape", "gauge"),
                spec.get("combine", "sum"),
                spec.get("help", ""),
                spec.get("saturates", False),
            )
            for name, spec in entries.items()
        }
        for kind, entries in raw["signals"].items()
    }
    builder = _Builder()
    families = {name: _family(name, spec) for name, spec in raw["families"].items()}
    for name, spec in raw["families"].items():
        for signal_name, aliases in spec["aliases"].items():
            signal = signals[families[name].kind].get(signal_name)
            if signal is None:
                raise SourceError(
                    f"catalogue.yaml: family {name} names signal {signal_name!r}, which is not among signals."
                    f"{families[name].kind}; correct the name or add the signal"
                )
            for alias in aliases:
                builder.add(signal, families[name], alias if isinstance(alias, dict) else {"name": alias})
    rules = tuple((re.compile(a), b) for a, b in raw.get("port_rules", ()))
    return Catalogue(
        signals,
        families,
        {name: tuple(found) for name, found in builder.exact.items()},
        tuple(builder.patterns),
        {what: tuple(found) for what, found in builder.aliases.items()},
        raw.get("own", {}),
        ports or PortNames(rules, re.compile(raw.get("port_skip", "(?!)"))),
        raw.get("hosts", {}),
    )


def _family(name: str, spec: Mapping[str, Any]) -> Family:
    return Family(
        name=name,
        job=spec.get("job", name),
        kind=spec["kind"],
        entity=spec.get("entity", spec["kind"]),
        prefixes=tuple(spec["prefixes"]),
        facts={k: (v,) if isinstance(v, str) else tuple(v) for k, v in spec.get("facts", {}).items()},
        fixed=spec.get("fixed", {}),
        one_row=spec.get("one_row", False),
        only_with=frozenset(spec.get("only_with", ())),
        enable=spec.get("enable", ""),
    )


class _Builder:
    """Collects meanings while the file is read; each alias and prefix gets the next rank of its signal."""

    def __init__(self) -> None:
        self.exact: dict[str, list[Meaning]] = {}
        self.patterns: list[tuple[re.Pattern[str], Meaning]] = []
        self.aliases: dict[tuple[str, str], list[Alias]] = {}
        self._rank = 0

    def add(self, signal: Signal, family: Family, alias: Mapping[str, Any]) -> None:
        parts = [part if isinstance(part, dict) else {"name": part} for part in alias.get("sum_of", [alias])]
        # Exporters disagree about _total; "" is the form shown to people. A histogram ends in its parts instead.
        suffixes = ("",) if signal.shape == "histogram" else ("_total", "")
        for prefix in family.prefixes:
            for suffix in suffixes:
                self._rank += 1
                for part in parts:
                    self._add_name(signal, family, prefix, suffix, {**alias, **part})

    def _add_name(
        self, signal: Signal, family: Family, prefix: str, suffix: str, spec: Mapping[str, Any]
    ) -> None:
        name = spec["name"]
        combine = spec.get("combine") or (
            "max" if family.one_row and "sum_of" not in spec else signal.combine
        )
        shapes = _PARTS if signal.shape == "histogram" else {"": Shape(signal.shape)}
        for ending, shape in shapes.items():
            meaning = Meaning(
                signal,
                family,
                self._rank,
                shape,
                float(spec.get("scale", 1.0)),
                float(spec.get("offset", 0.0)),
                tuple(spec.get("labels", ())),
                combine,
                _conditions(spec.get("where", {})),
                _conditions(spec.get("unless", {})),
            )
            if name.startswith("~"):
                pattern = re.compile(re.escape(prefix) + f"(?:{name[1:]})" + suffix + ending)
                self.patterns.append((pattern, meaning))
            else:
                self.exact.setdefault(prefix + name + suffix + ending, []).append(meaning)
        if suffix == "" and prefix == family.prefixes[0]:
            shown = Alias(family.name, prefix + name.lstrip("~"), spec.get("hint", family.enable))
            self.aliases.setdefault((signal.kind, signal.name), []).append(shown)


def _conditions(spec: Mapping[str, Any]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((label, _pattern(value)) for label, value in spec.items())


def _pattern(value: Any) -> re.Pattern[str]:
    if isinstance(value, list):
        return re.compile("|".join(re.escape(str(v)) for v in value))
    text = str(value)
    return re.compile(text[1:] if text.startswith("~") else re.escape(text))


def shapes_of(catalogue: Catalogue) -> dict[str, dict[str, tuple[Shape, str]]]:
    """kind -> signal -> (shape, combine) of everything that is no histogram, for sources that read canonical values."""
    return {
        kind: {s.name: (Shape(s.shape), s.combine) for s in signals.values() if s.shape != "histogram"}
        for kind, signals in catalogue.signals.items()
    }
