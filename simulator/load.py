"""Requests as they arrive: a doubly stochastic process with daily cycle, weekend, bursts, or a recorded trace."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

from daemon.model import Array
from simulator.sizing import capacity_rps
from simulator.spec import PoolSpec, WorldSpec

BLOCK_S = 60.0
_DRIFT_S = 1200.0
_GOLDEN = 0.6180339887498949
_BURST_CHANCE = 0.004
"""A minute starts a small burst with this chance: about six a day."""

POOL, ARRIVED, PROMPT, CACHED, OUTPUT, KEY = range(6)
"""Rows of an arrivals matrix (row, request); KEY in 0..1 picks the replica."""


@cache
def _weekday_mean(peak_hour: float, night_ratio: float) -> float:
    return float(_shape(np.arange(0.0, 24.0, 0.05), peak_hour, night_ratio).mean())


def _shape(hour: Array, peak_hour: float, night_ratio: float) -> Array:
    wave = 0.5 + 0.5 * np.cos((hour - peak_hour) * (2 * np.pi / 24))
    return np.asarray(night_ratio + (1 - night_ratio) * wave**1.2, dtype=float)


def profile(pool: PoolSpec, at: Array) -> Array:
    """Expected requests per second of the pool at wall times `at`, before noise."""
    days = np.floor(at / 86400.0)
    hour = (at - days * 86400.0) / 3600.0
    weekday = (days + 3) % 7  # 0 = Monday: the epoch was a Thursday
    level = pool.requests_per_s / _weekday_mean(pool.peak_hour, pool.night_ratio)
    week = np.where(weekday >= 5, pool.weekend_ratio, 1.0)
    return np.asarray(level * week * _shape(hour, pool.peak_hour, pool.night_ratio), dtype=float)


def peak_ratio(pool: PoolSpec) -> float:
    """The weekday peak over the weekday mean."""
    return 1.0 / _weekday_mean(pool.peak_hour, pool.night_ratio)


def _lengths(rng: Generator, mean: float, sigma: float, count: int) -> Array:
    drawn: Array = np.rint(rng.lognormal(np.log(mean) - sigma * sigma / 2, sigma, count))
    return np.maximum(drawn, 1.0)


class Load:
    """Draws the arrivals of all pools, a minute at a time.

    rate, prompt, output, hits : multipliers a pool, set by faults between blocks. traffic : the same, set by a
    balancer over several clusters.
    """

    def __init__(self, spec: WorldSpec, epoch: float, rng: Generator) -> None:
        self._pools = spec.pools
        self._epoch = epoch
        self._rng = rng
        count = len(spec.pools)
        self.rate, self.prompt, self.output = np.ones(count), np.ones(count), np.ones(count)
        self.hits, self.traffic = np.ones(count), np.ones(count)
        self._drift = rng.standard_normal(count)
        self._burst = np.zeros(count)
        self._session = np.zeros(count)
        self._days: list[tuple[float, list[float]]] = [(np.nan, [])] * count
        self._trace = read_trace(spec.trace) if spec.trace else None
        self._trace_pool = [p.name for p in spec.pools].index(spec.trace_pool) if spec.trace else -1
        self._trace_speed = spec.trace_speed
        self._block = np.empty((6, 0))
        self._from = 0
        self.until = 0.0

    def take(self, start: float, end: float, edge: float) -> Array:
        """(row, request) arrivals in [start, end), in order of time; times are seconds since the epoch of the world.

        edge : the next instant at which a multiplier changes; a block never reaches across it.
        """
        parts = []
        while True:
            stop = int(np.searchsorted(self._block[ARRIVED], end))
            if stop > self._from:
                parts.append(self._block[:, self._from : stop])
                self._from = stop
            if self.until >= end:
                break
            begin = max(self.until, start)
            until = min(begin + BLOCK_S, edge) if edge > begin else begin + BLOCK_S
            self._block, self._from, self.until = self._draw(begin, until), 0, until
        if not parts:
            return np.empty((6, 0))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def cut(self, at: float) -> None:
        """Forget what was drawn beyond `at`: it is drawn again with the multipliers of that time."""
        if at < self.until:
            keep = int(np.searchsorted(self._block[ARRIVED], at))
            self._block = self._block[:, : max(keep, self._from)]
            self.until = at

    def _draw(self, start: float, end: float) -> Array:
        self._wander(end - start)
        blocks = [self._pool_block(index, start, end) for index in range(len(self._pools))]
        block = np.concatenate(blocks, axis=1)
        return block[:, np.argsort(block[ARRIVED], kind="stable")]

    def _wander(self, seconds: float) -> None:
        decay = np.exp(-seconds / _DRIFT_S)
        self._drift = self._drift * decay + np.sqrt(1 - decay**2) * self._rng.standard_normal(
            len(self._drift)
        )
        self._burst *= np.exp(-seconds / 150.0)
        starts = self._rng.random(len(self._burst)) < _BURST_CHANCE * seconds / BLOCK_S
        self._burst[starts] = self._rng.uniform(0.2, 0.6, int(starts.sum()))

    def _pool_block(self, index: int, start: float, end: float) -> Array:
        pool, rng = self._pools[index], self._rng
        if index == self._trace_pool:
            arrived, prompt, output = self._replayed(start, end)
        else:
            noise = np.exp(pool.load_noise * self._drift[index] - pool.load_noise**2 / 2)
            expected = self._expected(index, self._epoch + (start + end) / 2)
            rate = expected * noise * (1 + self._burst[index]) * self.rate[index] * self.traffic[index]
            count = int(rng.poisson(max(rate, 0.0) * (end - start)))
            arrived = np.sort(rng.uniform(start, end, count))
            prompt = _lengths(rng, pool.prompt_tokens * self.prompt[index], pool.length_sigma, count)
            output = _lengths(rng, pool.output_tokens * self.output[index], pool.length_sigma, count)
        # the engines refuse what exceeds their context window at the door
        prompt = np.minimum(prompt, pool.kv_tokens * 0.15)
        output = np.minimum(output, pool.kv_tokens * 0.05)
        hits = np.clip(rng.normal(pool.prefix_hit_share, 0.2, len(arrived)), 0.0, 0.95) * self.hits[index]
        block = np.empty((6, len(arrived)))
        block[POOL], block[ARRIVED], block[PROMPT] = index, arrived, prompt
        block[CACHED], block[OUTPUT] = np.floor(prompt * hits), output
        block[KEY] = self._keys(index, len(arrived))
        return block

    def expected(self, at: float) -> Array:
        """(pool,) requests a second expected at wall time `at` of the clients of this cluster alone."""
        return np.array([self._expected(index, at) for index in range(len(self._pools))])

    def _expected(self, index: int, at: float) -> float:
        """The pool's profile in this minute; a day of it is worked out at once."""
        day, minute = divmod(at, 86400.0)
        if self._days[index][0] != day:
            middles = day * 86400.0 + np.arange(30.0, 86400.0, 60.0)
            self._days[index] = (day, profile(self._pools[index], middles).tolist())
        return self._days[index][1][int(minute // 60.0)]

    def _keys(self, index: int, count: int) -> Array:
        """Low-discrepancy keys: like round robin over any weights; sticky sessions keep theirs."""
        keys: Array = (self._session[index] + _GOLDEN * np.arange(1, count + 1)) % 1.0
        self._session[index] = keys[-1] if count else self._session[index]
        sticky = self._pools[index].sticky_share
        if sticky > 0:
            sessions = (self._rng.zipf(1.6, count) * _GOLDEN) % 1.0
            keys = np.where(self._rng.random(count) < sticky, sessions, keys)
        return keys

    def _replayed(self, start: float, end: float) -> tuple[Array, Array, Array]:
        assert self._trace is not None
        at, prompt, output = self._trace
        length = float(at[-1]) + 1.0
        low, high = start * self._trace_speed, end * self._trace_speed
        parts: list[tuple[Array, Array, Array]] = []
        for lap in range(int(low // length), int(high // length) + 1):
            chosen = slice(*np.searchsorted(at, [low - lap * length, high - lap * length]))
            parts.append(((at[chosen] + lap * length) / self._trace_speed, prompt[chosen], output[chosen]))
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return np.minimum(joined[0], np.nextafter(end, start)), joined[1], joined[2]


def read_trace(path: str) -> tuple[Array, Array, Array]:
    """(request,) seconds since the first request, prompt tokens, output tokens of a recorded trace.

    Reads `TIMESTAMP,ContextTokens,GeneratedTokens` CSV or JSON lines with timestamp (ms), input_length,
    output_length. Raises ValueError naming the file when it holds neither.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    try:
        rows = _mooncake(lines) if path.endswith(".jsonl") else _azure(lines)
    except (KeyError, ValueError) as problem:
        raise ValueError(
            f"{path}: not a request trace ({problem}); expected CSV with TIMESTAMP,ContextTokens,GeneratedTokens "
            "or .jsonl with timestamp, input_length, output_length"
        ) from problem
    if len(rows) < 2:
        raise ValueError(f"{path}: a trace needs at least two requests, found {len(rows)}")
    table = np.array(rows, dtype=float)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0] - table[0, 0], np.maximum(table[:, 1], 1.0), np.maximum(table[:, 2], 1.0)


def _azure(lines: list[str]) -> list[tuple[float, float, float]]:
    rows = []
    for row in csv.DictReader(lines):
        # fromisoformat knows at most six decimals; the traces have seven
        stamp = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp()
        rows.append((stamp, float(row["ContextTokens"]), float(row["GeneratedTokens"])))
    return rows


def _mooncake(lines: list[str]) -> list[tuple[float, float, float]]:
    records = [json.loads(line) for line in lines if line.strip()]
    return [(r["timestamp"] / 1000.0, float(r["input_length"]), float(r["output_length"])) for r in records]


def history(
    spec: WorldSpec, epoch: float, weeks: int, step_s: float, rng: Generator
) -> Mapping[str, Mapping[str, tuple[Array, Array]]]:
    """What the load process would have recorded in the weeks before the epoch.

    Returns pool -> signal -> (at, values), at the left edge of each step. Signals: arrivals_per_s (1/s),
    prompt_tokens_s, generation_tokens_s (tokens/s), concurrency (requests), demand (replicas needed, fractional).
    """
    at: Array = (
        epoch - weeks * 7 * 86400.0 + step_s * np.arange(int(weeks * 7 * 86400.0 / step_s), dtype=np.float64)
    )
    return {pool.name: _pool_history(pool, at, step_s, rng) for pool in spec.pools}


def _pool_history(
    pool: PoolSpec, at: Array, step_s: float, rng: Generator
) -> Mapping[str, tuple[Array, Array]]:
    decay = float(np.exp(-step_s / _DRIFT_S))
    shocks = np.sqrt(1 - decay**2) * rng.standard_normal(len(at))
    drift, burst = np.empty(len(at)), np.empty(len(at))
    starts = rng.random(len(at)) < 1 - (1 - _BURST_CHANCE) ** (step_s / BLOCK_S)
    depths = rng.uniform(0.2, 0.6, len(at))
    fade = float(np.exp(-step_s / 150.0))
    level, surge = float(rng.standard_normal()), 0.0
    for k in range(len(at)):
        level = level * decay + shocks[k]
        surge = depths[k] if starts[k] else surge * fade
        drift[k], burst[k] = level, surge
    # a long step averages the drift inside it
    spread = pool.load_noise * np.sqrt(
        min(1.0, _DRIFT_S / max(step_s, 1.0) * (1 - np.exp(-step_s / _DRIFT_S)))
    )
    share = min(1.0, 150.0 / step_s)
    rate = profile(pool, at + step_s / 2) * np.exp(spread * drift - spread**2 / 2) * (1 + share * burst)
    count = rng.poisson(rate * step_s).astype(float)
    arrivals = count / step_s
    wobble = np.sqrt(np.expm1(pool.length_sigma**2) / np.maximum(count, 1.0))
    prompt = arrivals * pool.prompt_tokens * np.maximum(1 + wobble * rng.standard_normal(len(at)), 0.1)
    output = arrivals * pool.output_tokens * np.maximum(1 + wobble * rng.standard_normal(len(at)), 0.1)
    demand = arrivals / capacity_rps(pool)
    busy_s = pool.output_tokens * pool.step_base_s * 1.5 + pool.prompt_tokens * pool.prefill_token_s
    return {
        "arrivals_per_s": (at, arrivals),
        "prompt_tokens_s": (at, prompt),
        "generation_tokens_s": (at, output),
        "concurrency": (at, arrivals * busy_s),
        "demand": (at, demand),
    }
