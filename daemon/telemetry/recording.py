"""Reads a recorded stretch of telemetry out of a store or an export, in order of time."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from daemon.model import GONE, NAN, Array, Scrape, SourceError, Target
from daemon.telemetry.catalogue import Catalogue, Identity
from daemon.telemetry.exposition import Key
from daemon.telemetry.fetch import FetchError, describe, redact
from daemon.telemetry.promql import TARGET_LABELS, PromqlSource, decode

CHUNK_S = 900.0
"""A quarter of an hour of 128 GPUs is some ten megabytes of answer."""
ABSENT_CHUNKS = 2
"""A target without a sample for so long has left discovery; until then it is only silent."""
PAGES_MAX = 50_000
SAME_S = 1.0
"""Samples of one scrape carry one time, or nearly."""


@dataclass(frozen=True, slots=True)
class Run:
    """The samples of one series: labels with the name as `__name__`; (sample,) times in seconds, ascending, and values."""

    metric: Mapping[str, str]
    at: Array
    values: Array


@dataclass(slots=True)
class Tape:
    """Turns runs of samples into the scrapes they came from.

    target_labels : labels that discovery put on every series of a target. steps : time between scrapes, as seen.
    """

    catalogue: Catalogue
    target_labels: tuple[str, ...] = TARGET_LABELS
    steps: list[float] = field(default_factory=list)
    _known: dict[tuple[Target, tuple[Key, ...]], Identity] = field(default_factory=dict)
    _missed: dict[str, int] = field(default_factory=dict)

    @property
    def step_s(self) -> float:
        """Usual time between two scrapes of a target, NaN before any was seen."""
        return float(np.median(self.steps)) if self.steps else NAN

    def scrapes(self, runs: Iterable[Run], until: float) -> list[Scrape]:
        """All scrapes of a chunk that ends at `until`, in order of time; the targets that are gone come last."""
        by_target: dict[str, list[Run]] = {}
        ups: list[Run] = []
        for run in runs:
            instance = run.metric.get("instance", "")
            if not instance or not run.at.size:
                continue
            if run.metric.get("__name__") == "up":
                ups.append(run)
            elif self.catalogue.wanted(run.metric.get("__name__", "")):
                by_target.setdefault(instance, []).append(run)
        found = [scrape for name, rows in by_target.items() for scrape in self._target_scrapes(name, rows)]
        for run in ups:
            failed = run.at[run.values == 0]
            error = "the store could not scrape it (up is 0)"
            found += [Scrape(run.metric["instance"], float(t), None, None, error=error) for t in failed]
        found.sort(key=lambda s: (s.at, s.target))
        return found + self._gone(set(by_target) | {r.metric["instance"] for r in ups}, until)

    def _target_scrapes(self, instance: str, rows: Sequence[Run]) -> list[Scrape]:
        times = np.unique(np.concatenate([run.at for run in rows]))
        times = times[np.concatenate((np.diff(times) >= SAME_S, [True]))]
        if times.size > 1:
            self.steps.append(float(np.median(np.diff(times))))
        keys = tuple(sorted({self._key(run.metric) for run in rows}))
        column = {key: k for k, key in enumerate(keys)}
        table = np.full((times.size, len(keys)), NAN)
        is_there = np.zeros(table.shape, dtype=bool)
        for run in rows:
            place = np.minimum(np.searchsorted(times, run.at), times.size - 1)
            table[place, column[self._key(run.metric)]] = run.values
            is_there[place, column[self._key(run.metric)]] = True
        # A page that names other series than the one before is another page: that a GPU is gone shows there.
        turns = np.flatnonzero(np.concatenate(([True], (is_there[1:] != is_there[:-1]).any(axis=1))))
        scrapes = []
        for first, last in zip(turns, [*turns[1:], times.size], strict=True):
            shown = is_there[first]
            identity = self._identity(
                instance, tuple(k for k, yes in zip(keys, shown, strict=True) if yes), rows
            )
            scrapes += [
                Scrape(instance, float(times[k]), identity.layout, identity.values(table[k, shown]))
                for k in range(first, last)
            ]
        return scrapes

    def _identity(self, instance: str, keys: tuple[Key, ...], rows: Sequence[Run]) -> Identity:
        labels = {n: run.metric[n] for run in rows for n in self.target_labels if n in run.metric}
        target = Target(instance, labels=tuple(sorted(labels.items())))
        known = self._known.get((target, keys))
        if known is None:
            # A store may hold targets without end; what is made again only costs time.
            if len(self._known) > PAGES_MAX:
                self._known.clear()
            known = self._known[target, keys] = self.catalogue.identify(target, keys)
        return known

    def _key(self, metric: Mapping[str, str]) -> Key:
        skip = {"__name__", "instance", "job", *self.target_labels}
        # Prometheus moves a series' own label out of the way of the target's of the same name.
        labels = {k.removeprefix("exported_"): v for k, v in metric.items() if k not in skip}
        return Key(metric["__name__"], tuple(sorted(labels.items())))

    def _gone(self, seen: set[str], until: float) -> list[Scrape]:
        for name in seen:
            self._missed[name] = 0
        gone = []
        for name in sorted(set(self._missed) - seen):
            self._missed[name] += 1
            if self._missed[name] == ABSENT_CHUNKS:
                gone.append(Scrape(name, until, None, None, error=GONE))
        return gone


async def from_store(
    source: PromqlSource, since: float, until: float
) -> AsyncIterator[tuple[float, list[Run]]]:
    """(end of chunk, its runs) of [since, until), asked of a Prometheus-compatible store with range selectors.

    `source.window_s` must be CHUNK_S. Raises SourceError when the store does not answer or refuses.
    """
    end = since
    async with aiohttp.ClientSession() as session:
        while end < until:
            end = min(end + CHUNK_S, until)
            runs: list[Run] = []
            for query in source.queries():
                runs += await _ask(session, source, query, end)
            yield end, runs


async def _ask(session: aiohttp.ClientSession, source: PromqlSource, query: str, at: float) -> list[Run]:
    url = source.url.rstrip("/") + "/api/v1/query"
    try:
        async with session.post(
            url,
            # A selector takes both ends: a sample on the edge belongs to the chunk that it ends.
            data={"query": query, "time": f"{at:.3f}"},
            headers={**source.credentials.headers(), "Accept": "application/json"},
            ssl=source.credentials.context(),
            timeout=aiohttp.ClientTimeout(total=120.0),
        ) as answer:
            if answer.status not in (200, 400, 422, 503):
                raise SourceError(f"{redact(url)}: HTTP status {answer.status}, 200 is needed")
            rows = await decode(await answer.read())
    except (aiohttp.ClientError, TimeoutError, FetchError) as problem:
        why = (
            describe(problem)
            if isinstance(problem, aiohttp.ClientError)
            else str(problem) or "no answer in 120 s"
        )
        raise SourceError(
            f"{redact(url)}: {why}; check the address and that it holds the days asked for"
        ) from problem
    return [
        Run(row.metric, np.array([t for t, _ in row.values]), np.array([float(v) for _, v in row.values]))
        for row in rows
    ]


def from_export(folder: Path) -> list[Run]:
    """Runs of an export in JSON lines, as VictoriaMetrics' /api/v1/export writes it: every `*.jsonl` and `*.jsonl.gz`
    of a folder. Raises SourceError naming file and line."""
    files = sorted(p for p in folder.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise SourceError(
            f"{folder}: no *.jsonl or *.jsonl.gz; export with `curl STORE/api/v1/export -d 'match[]={{__name__!=\"\"}}'`"
        )
    return [run for path in files for run in _lines(path)]


def _lines(path: Path) -> Iterable[Run]:
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                at = np.array(row["timestamps"], dtype=float) / 1000.0
                values = np.array([NAN if v is None else float(v) for v in row["values"]])
                order = np.argsort(at, kind="stable")
                yield Run(row["metric"], at[order], values[order])
            except (KeyError, TypeError, ValueError) as problem:
                raise SourceError(
                    f"{path}:{number}: not a line of an export ({problem}); expected an object with metric, values, timestamps"
                ) from problem


def cut(runs: Sequence[Run], since: float, until: float) -> list[Run]:
    """What of the runs lies in (since, until]."""
    found = []
    for run in runs:
        low, high = np.searchsorted(run.at, [since, until], side="right")
        if high > low:
            found.append(Run(run.metric, run.at[low:high], run.values[low:high]))
    return found


def span_of(runs: Sequence[Run]) -> tuple[float, float]:
    """First and last time of an export. Raises SourceError when it holds no sample."""
    times = [(float(r.at[0]), float(r.at[-1])) for r in runs if r.at.size]
    if not times:
        raise SourceError("the export holds no sample")
    first, last = min(t for t, _ in times), max(t for _, t in times)
    return (first, last) if math.isfinite(first) else (NAN, NAN)
