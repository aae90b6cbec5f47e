"""PromQL for canonical signals, with the exporters' names taken from the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from daemon.telemetry import load_catalogue
from daemon.telemetry.catalogue import Catalogue, Meaning

OWN = 'job=~"$job", instance=~"$instance"'
"""Which daemon: the metrics of tidewarden itself."""
TARGET = 'instance=~"$target"'
"""Which exporters: everybody else's metrics."""
WINDOW = "$__rate_interval"
BARE = ("DCGM_", "node_ethtool_", "node_vmstat_")
"""Who writes counters without `_total`; every Prometheus client library adds it."""
SKIPPED = frozenset({"dynamo", "ray_serve", "process"})
"""Frontends repeat what the engines behind them say; adding both up would count each request twice."""


@cache
def catalogue() -> Catalogue:
    return load_catalogue()


@dataclass(frozen=True, slots=True)
class Name:
    """One vendor name of a signal. labels : matchers without braces, "" = none."""

    metric: str
    meaning: Meaning
    labels: str


def signal(kind: str, name: str, part: str = "") -> list[list[Name]]:
    """Alternatives in the catalogue's order, newest first; the names of one alternative are added up.

    part : "_bucket", "_sum", "_count" of a histogram. Raises KeyError for a signal without any name.
    """
    by_rank: dict[int, list[Name]] = {}
    for metric, meaning in _spelled():
        wanted = meaning.signal.kind == kind and meaning.signal.name == name
        if wanted and _is_usual(metric, meaning) and metric.endswith(part):
            by_rank.setdefault(meaning.rank, []).append(Name(metric, meaning, _matchers(meaning)))
    if not by_rank:
        raise KeyError(f"no exporter writes {kind}.{name}{part}; see daemon/telemetry/catalogue.yaml")
    return [by_rank[rank] for rank in sorted(by_rank)]


def _spelled() -> Iterator[tuple[str, Meaning]]:
    found = catalogue()
    for metric, meanings in found.exact.items():
        for meaning in meanings:
            yield metric, meaning
    for pattern, meaning in found.patterns:
        if "[0-7]" not in pattern.pattern:
            raise ValueError(f"{pattern.pattern}: only a digit may vary in a name that dashboards query")
        for digit in "01234567":
            yield re.sub(r"\(\?:|\)|\\", "", pattern.pattern).replace("[0-7]", digit), meaning


def _is_usual(metric: str, meaning: Meaning) -> bool:
    """Whether it is the spelling under the family's first prefix, with its usual ending."""
    family = meaning.family
    if family.name in SKIPPED or not metric.startswith(family.prefixes[0]):
        return False
    if meaning.signal.shape == "histogram":
        return True
    is_bare = meaning.signal.shape != "counter" or metric.startswith(BARE)
    return metric.endswith("_total") is not is_bare


def _matchers(meaning: Meaning) -> str:
    found = [f'{label}=~"{_text(p.pattern)}"' for label, p in meaning.where]
    found += [f'{label}!~"{_text(p.pattern)}"' for label, p in meaning.unless]
    return ", ".join(found)


def _text(pattern: str) -> str:
    # re.escape escapes more than PromQL's RE2 needs; both read the rest alike.
    return re.sub(r"\\([-_/ :])", r"\1", pattern).replace("\\", "\\\\")


def gauge(kind: str, name: str, by: str = "") -> str:
    """The signal as it is, in the catalogue's unit; older names fill in for newer ones, never beside them."""
    return _either([_added(names, "", by) for names in signal(kind, name)])


def rate(kind: str, name: str, by: str = "") -> str:
    """The signal of a counter, per second."""
    return _either([_added(names, WINDOW, by) for names in signal(kind, name)])


def quantile(level: float, kind: str, name: str, by: str) -> str:
    """A latency quantile. Buckets of two engines' layouts are never mixed: the job keeps them apart."""
    return _either(
        [
            f"histogram_quantile({level:g}, sum by (le, {by}) (rate({n[0].metric}{{{_selector(n[0])}}}[{WINDOW}])))"
            for n in signal(kind, name, "_bucket")
        ]
    )


def mean(kind: str, name: str, by: str) -> str:
    """Mean of a latency histogram over the window; nothing where nothing ended."""
    pairs = zip(signal(kind, name, "_sum"), signal(kind, name, "_count"), strict=True)
    return _either(
        [
            f"sum by ({by}) (rate({s[0].metric}{{{_selector(s[0])}}}[{WINDOW}])) / "
            f"(sum by ({by}) (rate({c[0].metric}{{{_selector(c[0])}}}[{WINDOW}])) > 0)"
            for s, c in pairs
        ]
    )


def _added(names: list[Name], window: str, by: str) -> str:
    """One alternative. Names that differ in a digit alone are told apart by a label, or PromQL would merge them."""
    terms = []
    for index, name in enumerate(names):
        text = f"{name.metric}{{{_selector(name)}}}"
        text = f"rate({text}[{window}])" if window else text
        terms.append(f'label_replace({text}, "part", "{index}", "", "")' if len(names) > 1 else text)
    joined = " or ".join(terms)
    first = names[0].meaning
    if len(names) > 1:
        joined = f"sum without (part) ({joined})"
    if first.scale != 1.0:
        joined = f"{joined} * {first.scale:.10g}"
    if first.offset:
        joined = f"{joined} + {first.offset:g}"
    return f"sum by ({by}) ({joined})" if by else joined


def _selector(name: Name) -> str:
    return f"{TARGET}, {name.labels}" if name.labels else TARGET


def _either(texts: list[str]) -> str:
    return "\nor ".join(dict.fromkeys(texts))


def own(metric: str, labels: str = "") -> str:
    """A metric of tidewarden itself."""
    return f"tidewarden_{metric}{{{OWN}{', ' + labels if labels else ''}}}"
