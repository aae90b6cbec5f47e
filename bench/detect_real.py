"""Detection on data nobody here made: any long table of (time, group, entity, value).

    python -m bench.detect_real latency.csv
    python -m bench.detect_real --sample sample.csv && python -m bench.detect_real sample.csv

A group is a cluster, its entities are peers, a value is a latency or another time: higher is slower
(--higher-is-faster turns it round). Time is in seconds since the epoch or ISO 8601.

Two detectors. "blocks": peer residuals at block medians of several spans, with thresholds from all other clusters, so that
each cluster is judged by what was learnt elsewhere (leave one cluster out). "daemon": the daemon's own straggler detector
and incidents, which start anew in every cluster and are fitted to none. For both: alarms on the data as they are, which
count as false, and alarms on the same data with a slowdown put into one entity at a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bench.intervals import plain, poisson_rate, quantile
from daemon.core import Core
from daemon.model import NAN, Array, Entity, Frame, Frames
from daemon.policy import Policy
from detectors.stats import groups, peers
from detectors.straggler import StragglerDetector
from simulator.noise import ColouredNoise

COLUMNS = ("time", "group", "entity", "value")
SPANS_MIN = (1, 5, 15, 60, 240)
FACTORS = (1.1, 1.2, 1.5, 2.0)
LASTS_S = 7200.0
"""A slowdown lasts two hours, as in the reference table."""
MARGIN = 1.15
"""Thresholds stand this much above the largest residual of the other clusters."""
FLOOR = 0.05
SETTLE_S = 6 * 3600.0
"""Device offsets are learnt from so much; nothing is judged in it."""


class DataError(Exception):
    """A table cannot be used: the message says where, what was found and what is needed."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """at : (time,) seconds. values : (time, entity), NaN = missing."""

    name: str
    at: Array
    entities: tuple[str, ...]
    values: Array

    @property
    def days(self) -> float:
        """Entity-days that are judged."""
        span = float(self.at[-1] - self.at[0]) - SETTLE_S
        return max(span, 0.0) / 86400.0 * len(self.entities)


# -- reading ----------------------------------------------------------------------------------------------


def read(path: Path) -> list[Cluster]:
    """Clusters of a CSV or Parquet file. Raises DataError."""
    rows = _parquet(path) if path.suffix in (".parquet", ".pq") else _csv(path)
    table: dict[str, dict[tuple[float, str], float]] = {}
    for at, group, entity, value in rows:
        table.setdefault(group, {})[(at, entity)] = value
    if not table:
        raise DataError(
            f"{path}: no rows; a header {','.join(COLUMNS)} and one line a measurement are needed"
        )
    return [_cluster(name, cells) for name, cells in sorted(table.items())]


def _csv(path: Path) -> Iterable[tuple[float, str, str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path}:1: no column {', '.join(missing)}; found {reader.fieldnames}, needed {', '.join(COLUMNS)}"
            )
        for row in reader:
            try:
                value = float(row["value"]) if row["value"] else NAN
                yield _seconds(row["time"]), row["group"], row["entity"], value
            except (TypeError, ValueError) as problem:
                raise DataError(
                    f"{path}:{reader.line_num}: {problem}; time is a number or ISO 8601, value a number or empty"
                ) from problem


def _parquet(path: Path) -> Iterable[tuple[float, str, str, float]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs the package pyarrow: pip install 'tidewarden[bench]', or write CSV"
        ) from None
    table = parquet.read_table(path)
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; found {table.column_names}")
    columns = [table.column(c).to_pylist() for c in COLUMNS]
    for at, group, entity, value in zip(*columns, strict=True):
        yield _seconds(at), str(group), str(entity), NAN if value is None else float(value)


def _seconds(given: Any) -> float:
    if isinstance(given, datetime):
        return given.timestamp() if given.tzinfo else given.replace(tzinfo=UTC).timestamp()
    try:
        return float(given)
    except ValueError:
        return _seconds(datetime.fromisoformat(given))


def _cluster(name: str, cells: Mapping[tuple[float, str], float]) -> Cluster:
    times = sorted({at for at, _ in cells})
    entities = sorted({entity for _, entity in cells})
    if len(entities) < 4:
        raise DataError(f"group {name}: {len(entities)} entities; peers need four or more")
    if times[-1] - times[0] < SETTLE_S + LASTS_S:
        hours = (SETTLE_S + LASTS_S) / 3600.0
        raise DataError(
            f"group {name}: {(times[-1] - times[0]) / 3600:.1f} h; {hours:.0f} h or more are needed"
        )
    row, column = {t: i for i, t in enumerate(times)}, {e: i for i, e in enumerate(entities)}
    values = np.full((len(times), len(entities)), NAN)
    for (at, entity), value in cells.items():
        values[row[at], column[entity]] = value if value > 0 else NAN
    return Cluster(name, np.array(times), tuple(entities), values)


# -- blocks -----------------------------------------------------------------------------------------------


def residuals(cluster: Cluster) -> Array:
    """(time, entity) log of each value over its peers' median, without the device's own offset."""
    where = groups(("all",) * len(cluster.entities))
    with np.errstate(divide="ignore", invalid="ignore"):
        over = np.array([np.log(row / peers(row, where, least=3).median) for row in cluster.values])
    settled = over[cluster.at - cluster.at[0] <= SETTLE_S]
    offset = [np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else NAN for c in settled.T]
    return np.asarray(over - np.array(offset), dtype=float)


def blocks(at: Array, residual: Array, span_s: float) -> tuple[Array, Array]:
    """(block,) ends and (block, entity) medians of whole blocks; NaN where less than half was measured."""
    number = ((at - at[0]) // span_s).astype(int)
    ends, medians = [], []
    for block in range(int(number[-1])):
        part = residual[number == block]
        known = np.isfinite(part).sum(axis=0)
        ordered = np.sort(part, axis=0)
        each = np.arange(part.shape[1])
        some = np.maximum(known, 1)
        middle = 0.5 * (ordered[(some - 1) // 2, each] + ordered[some // 2, each]) if len(part) else NAN
        medians.append(np.where(2 * known >= max(len(part), 1), middle, NAN))
        ends.append(at[0] + (block + 1) * span_s)
    return np.array(ends), np.array(medians)


def thresholds(others: Sequence[tuple[Cluster, Array]]) -> dict[int, float]:
    """Span in minutes -> the largest residual of the clusters given, with a margin, never below the floor."""
    found = {}
    for span in SPANS_MIN:
        tops = [0.0]
        for cluster, residual in others:
            ends, medians = blocks(cluster.at, residual, 60.0 * span)
            late = medians[ends - cluster.at[0] > SETTLE_S] if len(ends) else medians
            tops.append(float(np.nanmax(late, initial=0.0)))
        found[span] = max(FLOOR, MARGIN * max(tops))
    return found


def first_alarm(at: Array, residual: Array, limits: Mapping[int, float], since: float) -> Array:
    """(entity,) when a block that ends after `since` first crosses its limit, NaN = never."""
    first = np.full(residual.shape[1], np.inf)
    for span, limit in limits.items():
        ends, medians = blocks(at, residual, 60.0 * span)
        for end, row in zip(ends, medians, strict=True):
            if end > since:
                first = np.where((row > limit) & (end < first), end, first)
    return np.where(np.isfinite(first), first, NAN)


def by_blocks(clusters: Sequence[Cluster], trials: int, rng: Generator) -> dict[str, Any]:
    """Leave one cluster out: false alarms (one an entity) and what is found of injected slowdowns."""
    known = [(c, residuals(c)) for c in clusters]
    false, found = 0, {factor: _Found() for factor in FACTORS}
    for out, (cluster, residual) in enumerate(known):
        limits = thresholds([k for i, k in enumerate(known) if i != out])
        alarms = first_alarm(cluster.at, residual, limits, cluster.at[0] + SETTLE_S)
        false += int(np.isfinite(alarms).sum())
        for factor in FACTORS:
            for entity, onset in _strikes(cluster, trials, rng):
                near = (cluster.at >= onset - 86400.0) & (cluster.at <= onset + LASTS_S)
                at = cluster.at[near]
                sick = residual[near][:, [entity]] + np.log(factor) * (at >= onset)[:, None]
                when = float(first_alarm(at, sick, limits, onset)[0])
                found[factor].note(when - onset)
    return {"false_alarms": false, "found": {str(f): v.told() for f, v in found.items()}}


# -- the daemon -------------------------------------------------------------------------------------------


def by_daemon(clusters: Sequence[Cluster], trials: int, rng: Generator) -> dict[str, Any]:
    """The daemon's own detector and incidents: one pass over the data as they are, one for each slowdown."""
    false, found = 0, {factor: _Found() for factor in FACTORS}
    for cluster in clusters:
        false += len(alarms_of_daemon(cluster))
        for factor in FACTORS:
            strikes = _strikes(cluster, trials, rng, apart_s=2 * LASTS_S)
            values = cluster.values.copy()
            for entity, onset in strikes:
                sick = (cluster.at >= onset) & (cluster.at < onset + LASTS_S)
                values[sick, entity] *= factor
            opened = alarms_of_daemon(replace(cluster, values=values))
            for entity, onset in strikes:
                mine = [t for name, t in opened if name == cluster.entities[entity]]
                within = [t - onset for t in mine if onset <= t <= onset + LASTS_S]
                found[factor].note(min(within, default=NAN))
    return {"false_alarms": false, "found": {str(f): v.told() for f, v in found.items()}}


LOAD = (8.0, 100.0, 1000.0, 0.0)
"""Requests running, tokens, prompt tokens, cached ones: the table says nothing of load, so it is the same for all."""


def alarms_of_daemon(cluster: Cluster) -> list[tuple[str, float]]:
    """(entity, when) of every incident about one entity after the settling time. A value stands for seconds a step."""
    core = Core(Policy("real"), {"straggler": StragglerDetector()})
    size = len(cluster.entities)
    usual = float(np.nanmedian(cluster.values))
    facts = {key: (value,) * size for key, value in
             {"pool": cluster.name, "peer": cluster.name, "model": "m", "role": "mixed", "version": "v1"}.items()}  # fmt: skip
    signals = ("itl_mean_s", "running", "itl_per_s", "prompt_tokens_s", "prompt_cached_tokens_s")
    found = []
    for at, row in zip(cluster.at.tolist(), cluster.values, strict=True):
        # a step of 20 ms in the middle: the detector reads seconds, whatever the unit of the table
        columns = np.column_stack((0.02 * row / usual, np.tile(LOAD, (size, 1))))
        columns[~np.isfinite(row)] = NAN
        frame = Frame(at, "engine", cluster.entities, signals, columns, np.zeros(size), facts, 1)
        decision = core.tick(Frames(at, {"engine": frame}))
        found += [(i.scope.name, at) for i in decision.opened if i.scope == Entity("engine", i.scope.name)]
    return [(name, at) for name, at in found if at - cluster.at[0] > SETTLE_S]


# -- both -------------------------------------------------------------------------------------------------


class _Found:
    def __init__(self) -> None:
        self.delays: list[float] = []
        self.tried = 0

    def note(self, delay_s: float) -> None:
        self.tried += 1
        if np.isfinite(delay_s):
            self.delays.append(float(delay_s))

    def told(self) -> dict[str, float]:
        share = len(self.delays) / self.tried if self.tried else NAN
        return {"tried": self.tried, "recall": share, "delay_p50_s": quantile(self.delays, 0.5)}


def _strikes(cluster: Cluster, trials: int, rng: Generator, apart_s: float = 0.0) -> list[tuple[int, float]]:
    """(entity, onset) of slowdowns; with `apart_s` they follow one another by at least that much."""
    first, last = cluster.at[0] + SETTLE_S, cluster.at[-1] - LASTS_S
    if apart_s:
        onsets = np.arange(first, last, max(apart_s, (last - first) / max(trials, 1)))[:trials]
    else:
        onsets = rng.uniform(first, last, trials)
    return [(int(rng.integers(len(cluster.entities))), float(t)) for t in onsets]


def write_sample(
    path: Path, clusters: int = 3, devices: int = 24, hours: float = 30.0, seed: int = 1
) -> None:
    """A small table with the simulator's noise: latencies of a few clusters with offsets and a daily load."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for cluster in range(clusters):
            noise = ColouredNoise((devices,), 60.0, rng)
            offset = 1.0 + 0.014 * rng.standard_normal(devices)
            base = float(rng.uniform(0.005, 0.02))
            for minute in range(round(hours * 60)):
                load = 1.0 + 0.2 * np.sin(2 * np.pi * minute / 1440.0)
                values = base * load * offset * np.exp(0.02 * noise.step())
                for device in np.flatnonzero(rng.random(devices) > 0.001).tolist():
                    writer.writerow(
                        (1.78e9 + 60.0 * minute, f"c{cluster}", f"d{device:02d}", f"{values[device]:.7f}")
                    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, nargs="?", help="CSV or Parquet with time, group, entity, value")
    parser.add_argument("--sample", type=Path, help="write a small sample there and end")
    parser.add_argument("--higher-is-faster", action="store_true")
    parser.add_argument("--trials", type=int, default=20, help="slowdowns a cluster and size")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.sample:
        write_sample(given.sample, seed=given.seed)
        return
    if given.table is None:
        parser.error("name a table, or --sample FILE to write one")
    try:
        clusters = read(given.table)
        if len(clusters) < 2:
            raise DataError(f"{given.table}: one group; leaving one out needs two or more")
    except (DataError, OSError) as problem:
        sys.exit(str(problem))
    if given.higher_is_faster:
        clusters = [replace(c, values=1.0 / c.values) for c in clusters]
    print(json.dumps(plain(report(clusters, given.trials, given.seed))))


def report(clusters: Sequence[Cluster], trials: int, seed: int) -> dict[str, Any]:
    """Both detectors on all clusters; prints the table to stderr as it goes."""
    days = sum(c.days for c in clusters)
    result: dict[str, Any] = {"clusters": len(clusters), "entity_days": days}
    for name, judge in (("blocks", by_blocks), ("daemon", by_daemon)):
        found = judge(clusters, trials, np.random.default_rng(seed))
        rate, low, high = poisson_rate(found["false_alarms"], days / 1000.0)
        result[name] = found | {"false_per_1000_entity_days": rate, "interval": [low, high]}
        print(f"{name}: {found['false_alarms']} false alarms in {days:.0f} entity-days", file=sys.stderr)
        for factor, row in found["found"].items():
            delay = row["delay_p50_s"] / 60.0
            print(f"  {factor}x: {row['recall']:.0%} of {row['tried']}, p50 {delay:.0f} min", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
