"""Weeks of demand for fleets of three sizes, with bursts, failures and silent telemetry."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.autoscale_engine import STEP_S, Array, Indices, rate_at
from simulator.defaults import default_spec
from simulator.load import profile, read_trace
from simulator.spec import PoolSpec

HOUR_S, DAY_S, WEEK_S = 3600.0, 86400.0, 7 * 86400.0
EPOCH = 1_780_272_000.0
"""A Monday, 00:00 UTC, first hour of every generated series."""
FLEETS = (8, 64, 400)
COLD_STARTS_S = (30.0, 90.0, 240.0)
PEAK_USE = 0.8
"""Share of the replicas there may be that the highest minute of the trend needs; noise and bursts need the rest."""
NOISE, DRIFT_S = 0.08, 1200.0
BURSTS_PER_DAY, BURST_S = 6.0, 150.0
FAILURES_PER_GPU_HOUR = 1.0 / 5000.0
"""Ten times what large fleets report, so that a week of 64 GPUs sees a few."""
OUTAGE_S = 900.0


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One fleet over one stretch of time.

    arrived, failures : (pool, step) requests and replicas lost. blind : (step,) no telemetry. history : (pool, hour)
    mean requests per second of the hours before the first step. most : (pool,) replicas each pool may have.
    begins : seconds since the epoch of the first step.
    """

    name: str
    gpus: int
    cold_s: float
    pools: tuple[PoolSpec, ...]
    arrived: Array
    failures: Array
    blind: np.ndarray
    history: Array
    most: Indices
    begins: float

    @property
    def steps(self) -> int:
        return int(self.arrived.shape[1])


def pools_of(gpus: int) -> tuple[tuple[PoolSpec, int], ...]:
    """Pools of a fleet with the replicas each may have; together they fill it."""
    chat, code, small = default_spec(64).pools
    if gpus <= 8:
        return ((replace(small, tp=1), gpus),)
    if gpus <= 64:
        return ((replace(chat, tp=2), 20), (replace(small, tp=1), 24))
    return ((chat, gpus // 8), (code, gpus // 32), (small, gpus // 8))


def trend(shape: Array, begins: float, steps: int) -> Array:
    """(step,) level between the middles of the hours. shape : (hour,) from the hour of `begins` on, one more than needed."""
    middles = (np.arange(shape.size) + 0.5) * HOUR_S
    return np.interp((np.arange(steps) + 0.5) * STEP_S, middles, shape)


def restless(steps: int, rng: np.random.Generator) -> Array:
    """(step,) factor about 1: a drift of some minutes' memory, and bursts that fade in minutes."""
    decay = np.exp(-STEP_S / DRIFT_S)
    shocks = rng.standard_normal(steps) * np.sqrt(1 - decay**2)
    kicks = np.where(rng.random(steps) < BURSTS_PER_DAY * STEP_S / DAY_S, rng.uniform(0.2, 0.6, steps), 0.0)
    drift, burst, fade = rng.standard_normal(), 0.0, np.exp(-STEP_S / BURST_S)
    found = np.empty(steps)
    for k in range(steps):
        drift = drift * decay + shocks[k]
        burst = kicks[k] or burst * fade
        found[k] = np.exp(NOISE * drift - NOISE**2 / 2) * (1.0 + burst)
    return found


def generated(weeks: int, seed: int) -> Array:
    """(hour,) a service's demand: days and weekends of the simulator, another level and noise every hour and day."""
    rng = np.random.default_rng([seed, 11])
    pool = default_spec(64).pools[seed % 3]
    pool = replace(pool, night_ratio=float(rng.uniform(0.2, 0.4)), peak_hour=float(rng.uniform(9.0, 20.0)))
    hours = int(weeks * WEEK_S / HOUR_S)
    days = np.repeat(1.0 + 0.05 * rng.standard_normal(hours // 24 + 1), 24)[:hours]
    at = EPOCH + (np.arange(hours) + 0.5) * HOUR_S
    return profile(pool, at) * days * np.exp(0.03 * rng.standard_normal(hours))


def recorded(path: Path) -> Array:
    """(hour,) of a `timestamp,value` file, gaps filled with the hour before. Raises ValueError naming the file."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "value" not in rows[0]:
        raise ValueError(f"{path}: expected a CSV with the columns timestamp,value")
    values = [float(row["value"]) if row["value"] else np.nan for row in rows]
    for k in range(1, len(values)):
        if np.isnan(values[k]):
            values[k] = values[k - 1]
    return np.maximum(np.nan_to_num(np.array(values)), 0.0)


def gusts(path: Path) -> tuple[Array, PoolSpec]:
    """(step,) arrivals over their mean of a request trace, and a pool whose requests are as long as the trace's."""
    at, prompt, output = read_trace(str(path))
    count = np.bincount((at / STEP_S).astype(np.intp)).astype(float)[:-1]
    smooth = np.convolve(np.pad(count, 40, mode="reflect"), np.ones(81) / 81, mode="valid")
    base = default_spec(64).pools[0]
    spec = replace(
        base,
        name=path.stem.split("_")[0],
        tp=1,
        prompt_tokens=float(prompt.mean()),
        output_tokens=float(output.mean()),
        length_sigma=float(np.sqrt(np.log1p(np.var(prompt) / prompt.mean() ** 2))),
        kv_blocks=40000,
        prefill_token_s=6e-5,
        # Nobody expects the first token of a whole book within two seconds.
        ttft_slo_s=2.0 if prompt.mean() < 4000 else 10.0,
    )
    return count / np.maximum(smooth, 1e-9), spec


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of a series: first hour, hours."""

    first: int
    hours: int


TUNE_H, SCORE_H, PAST_H = 72, 168, 48
QUICK_TUNE_H, QUICK_SCORE_H = 24, 48


def spans(hours: int, quick: bool) -> dict[str, Span]:
    """The tuning part lies right before the scoring part, which is the end of the series."""
    tune, score = (QUICK_TUNE_H, QUICK_SCORE_H) if quick else (TUNE_H, SCORE_H)
    if hours < tune + score + PAST_H + 1:
        raise ValueError(
            f"{hours} hours; {tune + score + PAST_H + 1} are needed: some past, a part to tune on, one to score"
        )
    return {"tune": Span(hours - 1 - score - tune, tune), "score": Span(hours - 1 - score, score)}


def case(
    name: str,
    gpus: int,
    cold_s: float,
    series: Sequence[Array],
    part: str,
    seed: int,
    *,
    quick: bool = False,
    days: int = 0,
    gust: tuple[Array, PoolSpec] | None = None,
) -> Case:
    """A fleet whose pools follow the series in turn. days : length of the scored part, 0 = as `spans` says."""
    rng = np.random.default_rng([seed, gpus, int(cold_s), {"tune": 1, "score": 2}[part]])
    made = pools_of(gpus)
    hours = min(s.size for s in series)
    span = spans(hours, quick)[part]
    if days and part == "score":
        span = Span(hours - 1 - days * 24, days * 24)
    elif days:
        span = Span(hours - 1 - days * 24 - TUNE_H, TUNE_H)
    steps = int(span.hours * HOUR_S / STEP_S)
    pools, arrived, history = [], [], []
    for index, (spec, most) in enumerate(made):
        shape = series[index % len(series)][-hours:]
        if gust is not None and index == 0:
            spec = replace(gust[1], tp=spec.tp)
        scale = PEAK_USE * most * rate_at(spec) / max(float(shape[-1 - 11 * 24 :].max()), 1e-9)
        level = trend(scale * shape[span.first : span.first + span.hours + 2], 0.0, steps) * restless(
            steps, rng
        )
        if gust is not None and index == 0:
            level = level * np.resize(gust[0], steps)
        arrived.append(rng.poisson(level * STEP_S).astype(float))
        history.append(scale * shape[: span.first])
        pools.append(spec)
    hours_of = np.array([[s.tp * n * STEP_S / HOUR_S] for s, n in made]) * FAILURES_PER_GPU_HOUR * 0.6
    failures = rng.poisson(np.broadcast_to(hours_of, (len(made), steps))).astype(float)
    total = np.sum(arrived, axis=0)
    blind = np.zeros(steps, dtype=bool)
    # The telemetry falls silent at the peak of the second day, or of the only one.
    day = slice(int(DAY_S / STEP_S) if steps > DAY_S / STEP_S else 0, int(min(2 * DAY_S / STEP_S, steps)))
    peak = day.start + int(np.convolve(total[day], np.ones(60), mode="same").argmax())
    blind[peak : peak + int(OUTAGE_S / STEP_S)] = True
    return Case(
        name,
        gpus,
        cold_s,
        tuple(pools),
        np.array(arrived),
        failures,
        blind,
        np.array(history),
        np.array([n for _, n in made], dtype=np.intp),
        EPOCH + span.first * HOUR_S,
    )


def cases(part: str, folder: Path | None, *, quick: bool = False) -> list[Case]:
    """Every set of series on every fleet, the cold starts taking turns. Without a folder the series are generated."""
    found = []
    for number, (name, series, gust) in enumerate(_sets(folder)):
        for size, fleet in enumerate(FLEETS):
            cold_s = COLD_STARTS_S[(number + size) % 3]
            label = f"{name}-{fleet}-{cold_s:.0f}s"
            found.append(case(label, fleet, cold_s, series, part, number, quick=quick, gust=gust))
    return found


def _sets(folder: Path | None) -> list[tuple[str, list[Array], tuple[Array, PoolSpec] | None]]:
    sets: list[tuple[str, list[Array], tuple[Array, PoolSpec] | None]] = [
        (f"made{k}", [generated(5, 3 * k + j) for j in range(3)], None) for k in range(3)
    ]
    if folder is None:
        return sets
    files = sorted(folder.rglob("*.csv")) if folder.is_dir() else [folder]
    traces = sorted(folder.rglob("*.jsonl")) if folder.is_dir() else []
    traces += [f for f in files if "ContextTokens" in f.open(encoding="utf-8").readline()]
    hourly = [f for f in files if f not in traces]
    for path in traces:
        sets.append((path.stem.split("_")[0], sets[0][1], gusts(path)))
    served = [f for f in hourly if f.name.startswith(("ai.", "web."))] or hourly
    for k in range(0, len(served), 3):
        some = served[k : k + 3]
        sets.append(("+".join(f.stem.split(".")[1] for f in some), [recorded(f) for f in some], None))
    return sets
