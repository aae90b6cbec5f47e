"""Many pools of engines at once: the simulator's engine as measured tables, in motion as a fluid.

What a replica does at a steady load is measured once a kind of pool by running `simulator.serving` itself, request by
request, at twenty loads. Between loads the fluid moves: what runs follows what arrives within a request's stay, what
exceeds the throughput waits and is worked off. How far that is from the engine: tests/sim/test_bench_autoscale.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daemon.rivals import Seen
from simulator.load import ARRIVED, CACHED, OUTPUT, PROMPT
from simulator.serving import SUMS, Serving
from simulator.spec import CLIENT_TIMEOUT_S, PoolSpec

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

STEP_S = 15.0
LOADS = np.array([0.0, 0.2, 0.35, 0.5, 0.6, 0.66, 0.7, 0.74, 0.78, 0.81, 0.84, 0.87, 0.9, 0.93, 0.96, 1.0])
"""Share of its highest throughput at which a replica is measured."""
GRID = 201
"""Loads a table is read at, from 0 to 1: near enough that no interpolation is needed."""
REPLICAS = 4
MEASURE_S, WARM_S, ENGINE_STEP_S = 3600.0, 600.0, 5.0
DRAIN_S = 60.0
"""A drained replica holds its GPUs this long; whoever scales, its requests end in peace (generous to the baselines)."""
LAG, LAG_FROM = 4.0, 0.7
"""Near its throughput a replica nears what it shows in the long run by so many stays of a request more.
Source: tests/sim/test_bench_autoscale.py, five-minute bursts against the engine itself."""
LATE, ITL, RUNNING, WAITING, KV, TTFT, QUEUE = range(7)
"""Columns of a table: share of requests late, seconds a token, requests running and waiting in a replica, share of KV,
95 % levels of time to first token and of queueing."""


def requests(spec: PoolSpec, count: int, rng: np.random.Generator) -> Array:
    """(row, request) prompts, cached tokens and outputs as the simulator's load draws them."""
    sigma, found = spec.length_sigma, np.zeros((6, count))
    for row, mean, most in ((PROMPT, spec.prompt_tokens, 0.15), (OUTPUT, spec.output_tokens, 0.05)):
        drawn = np.rint(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count))
        found[row] = np.clip(drawn, 1.0, spec.kv_tokens * most)
    found[CACHED] = np.floor(
        found[PROMPT] * np.clip(rng.normal(spec.prefix_hit_share, 0.2, count), 0.0, 0.95)
    )
    return found


class Bank:
    """Engines of one kind side by side, a group of REPLICAS for each rate, fed in turn."""

    def __init__(self, spec: PoolSpec, groups: int, seed: int = 3) -> None:
        self.spec, self.groups = spec, groups
        self.serving = Serving(groups * REPLICAS)
        for slot in range(groups * REPLICAS):
            self.serving.occupy(slot, spec)
        self.rng = np.random.default_rng(seed)
        self.turn = np.zeros(groups, dtype=np.intp)
        self.at = 0.0

    def step(self, rates: Array, span: float = ENGINE_STEP_S) -> None:
        """rates : (group,) requests per second of one replica."""
        counts = self.rng.poisson(rates * REPLICAS * span)
        group = np.repeat(np.arange(self.groups), counts)
        place = np.arange(group.size) - np.repeat(counts.cumsum() - counts, counts)
        slot = group * REPLICAS + (place + self.turn[group]) % REPLICAS
        self.turn += counts
        new = requests(self.spec, group.size, self.rng)
        new[ARRIVED] = self.rng.uniform(self.at, self.at + span, group.size)
        order = np.argsort(new[ARRIVED], kind="stable")
        serving, sound = self.serving, np.ones(self.serving.slots)
        serving.open_step()
        serving.step(self.at, span, slot[order], new[:, order], sound > 0, sound, sound)
        self.at += span

    def counts(self) -> Array:
        """(group, 4) requests finished, slow, lost, and tokens in the histogram sums of first tokens and queues."""
        s = self.serving
        rows = np.stack([s.finished, s.slow, s.lost, s.totals[:, SUMS]], axis=1)
        return np.asarray(rows.reshape(self.groups, REPLICAS, -1).sum(axis=1))


@lru_cache(maxsize=64)
def throughput(spec: PoolSpec) -> float:
    """Requests per second one replica finishes at most, with a queue that never empties."""
    guess = 1.0 / (spec.prompt_tokens * (1 - spec.prefix_hit_share) * spec.prefill_token_s)
    bank, half = Bank(spec, 1), int(WARM_S / ENGINE_STEP_S)
    for k in range(4 * half):
        if k == half:
            before = bank.counts()
        bank.step(np.array([guess]))
    return float((bank.counts() - before)[0, 0]) / REPLICAS / (3 * half * ENGINE_STEP_S)


@lru_cache(maxsize=64)
def table(spec: PoolSpec) -> Array:
    """(GRID, column) what a replica shows at each share of its throughput."""
    rates = LOADS * throughput(spec)
    bank, seen, queues = Bank(spec, LOADS.size), [], []
    serving = bank.serving
    while bank.at < MEASURE_S:
        bank.step(rates)
        if bank.at == WARM_S:
            before = bank.counts()
        if bank.at > WARM_S:
            gauges = (serving.itl, serving.run_gauge, serving.wait_gauge, serving.kv_used)
            seen.append(np.stack(gauges, axis=1).reshape(LOADS.size, REPLICAS, 4).mean(axis=1))
            queues.append(serving.wait_gauge.reshape(LOADS.size, REPLICAS).mean(axis=1))
    finished, slow, lost, _ = (bank.counts() - before).T
    mean = np.mean(seen, axis=0)
    prefill_s = mean_prefill_s(spec)
    found = np.empty((LOADS.size, 7))
    found[:, LATE] = np.maximum.accumulate((slow + lost) / np.maximum(finished + lost, 1.0))
    found[:, ITL : KV + 1] = mean
    # A wait is a queue over the rate that works it off; the 95 % level from that of the queue over time.
    found[:, QUEUE] = np.quantile(queues, 0.95, axis=0) / np.maximum(rates, 1e-3)
    found[:, TTFT] = found[:, QUEUE] + mean[:, 0] + 2.5 * prefill_s
    fine = np.linspace(0.0, 1.0, GRID)
    return np.stack([np.interp(fine, LOADS, column) for column in found.T], axis=1)


@lru_cache(maxsize=64)
def mean_prefill_s(spec: PoolSpec) -> float:
    """Seconds of prefill of a mean request."""
    drawn = requests(spec, 50_000, np.random.default_rng(5))
    return float((drawn[PROMPT] - drawn[CACHED]).mean()) * spec.prefill_token_s


def rate_at(spec: PoolSpec, target: float = 0.99) -> float:
    """Highest steady rate (1/s) of one replica at which that share of requests is in time."""
    late = table(spec)[:, LATE]
    fine = np.linspace(0.0, 1.0, GRID)
    return float(np.interp(1.0 - target, late, fine)) * throughput(spec)


@dataclass(slots=True)
class Engines:
    """The pools of all worlds, one a world. ready : (world,) replicas that serve.

    good, asked, lost : requests in time, all, and lost since the start. replica_s : seconds of replicas that hold GPUs.
    """

    specs: Sequence[PoolSpec]
    ready: Array
    cold_steps: Indices
    load: Array = field(init=False)
    queue: Array = field(init=False)
    start: Array = field(init=False)
    drain: Array = field(init=False)
    good: Array = field(init=False)
    asked: Array = field(init=False)
    lost: Array = field(init=False)
    replica_s: Array = field(init=False)
    seen: Seen = field(init=False)

    def __post_init__(self) -> None:
        n, kinds = self.ready.size, list(dict.fromkeys(self.specs))
        self._kind = np.array([kinds.index(s) for s in self.specs], dtype=np.intp)
        self._tables = np.stack([table(s) for s in kinds])
        self._most = np.array([throughput(s) for s in self.specs])
        self._prompt = np.array([s.prompt_tokens for s in self.specs])
        self._output = np.array([s.output_tokens for s in self.specs])
        self._prefill_s = np.array([mean_prefill_s(s) for s in self.specs])
        self._ttft_slo_s = np.array([s.ttft_slo_s for s in self.specs])
        self._rows = np.arange(n)
        self.load, self.queue = np.zeros(n), np.zeros(n)
        self.start = np.zeros((n, int(self.cold_steps.max()) + 1))
        self.drain = np.zeros((n, int(DRAIN_S / STEP_S)))
        self.good, self.asked, self.lost, self.replica_s = (np.zeros(n) for _ in range(4))
        self.seen = Seen(*(np.full(n, np.nan) for _ in range(14)))

    _kind: Indices = field(init=False)
    _tables: Array = field(init=False)
    _most: Array = field(init=False)
    _prompt: Array = field(init=False)
    _output: Array = field(init=False)
    _prefill_s: Array = field(init=False)
    _ttft_slo_s: Array = field(init=False)
    _rows: Indices = field(init=False)

    @property
    def starting(self) -> Array:
        return np.asarray(self.start.sum(axis=1))

    @property
    def held(self) -> Array:
        """(world,) replicas that hold GPUs: serving, starting or draining."""
        return np.asarray(self.ready + self.start.sum(axis=1) + self.drain.sum(axis=1))

    def resize(self, wanted: Array) -> None:
        """Replicas there are to be. The newest start is given up first; what serves is drained."""
        change = wanted - self.ready - self.starting
        if (change > 0).any():
            self.start[self._rows, self.cold_steps] += np.maximum(change, 0.0)
        shrink = np.maximum(-change, 0.0)
        if shrink.any():
            for column in range(self.start.shape[1] - 1, -1, -1):
                taken = np.minimum(self.start[:, column], shrink)
                self.start[:, column] -= taken
                shrink = shrink - taken
            gone = np.minimum(shrink, np.maximum(self.ready - 1.0, 0.0))
            self.ready -= gone
            self.drain[:, -1] += gone

    def fail(self, number: Array) -> None:
        """Replicas die with what they hold; their pool starts others in their place."""
        number = np.minimum(number, np.maximum(self.ready - 1.0, 0.0))
        if number.any():
            gone = (
                self.load * self._most * self._output * 0.03 + self.queue / np.maximum(self.ready, 1)
            ) * number
            self.lost += gone
            self.queue *= 1.0 - number / np.maximum(self.ready, 1.0)
            self.ready -= number
            self.start[self._rows, self.cold_steps] += number

    def step(self, arrived: Array) -> None:
        """Serve what `arrived` (world,) in STEP_S seconds."""
        self.replica_s += self.held * STEP_S
        before = np.maximum(self.ready, 1e-9)
        self.ready = self.ready + self.start[:, 0]
        self.start[:, :-1] = self.start[:, 1:]
        self.start[:, -1] = 0.0
        self.drain[:, :-1] = self.drain[:, 1:]
        self.drain[:, -1] = 0.0
        ready = np.maximum(self.ready, 1e-9)
        # A new replica is empty; what runs stays where it is and ends there.
        load = self.load * np.minimum(before / ready, 1.0)
        shown = self._read(load)
        rate, queue = arrived / (STEP_S * ready), self.queue / ready
        taken = np.minimum(rate + queue / STEP_S, self._most)
        left = np.maximum(queue + (rate - taken) * STEP_S, 0.0)
        given_up = np.maximum(left - CLIENT_TIMEOUT_S * taken, 0.0)
        left -= given_up
        stay = (
            self._output * shown[:, ITL] * (1.0 + LAG * np.maximum(load - LAG_FROM, 0.0) / (1.0 - LAG_FROM))
        )
        load = load + (taken / self._most - load) * (1.0 - np.exp(-STEP_S / stay))
        shown = self._read(load)
        wait_s = (queue + left) / 2 / np.maximum(taken, 1e-6)
        in_time = (1.0 - shown[:, LATE]) * np.clip(1.0 - wait_s / self._ttft_slo_s, 0.0, 1.0)
        self.good += np.maximum(arrived - given_up * ready, 0.0) * in_time
        self.asked += arrived
        self.lost += given_up * ready
        self.load, self.queue = load, left * ready
        done = load * self._most * ready
        self.seen = Seen(
            self.ready.copy(),
            self.starting,
            shown[:, RUNNING] * ready,
            self.queue + shown[:, WAITING] * ready,
            shown[:, KV],
            shown[:, ITL],
            shown[:, TTFT] + wait_s,
            shown[:, QUEUE] + wait_s,
            self._prefill_s,
            done,
            taken * ready * self._prompt,
            done * self._output,
            arrived / STEP_S,
            1.0 - in_time,
        )

    def _read(self, load: Array) -> Array:
        """(world, column) of the tables at a share of the throughput."""
        place = np.minimum((load * (GRID - 1) + 0.5).astype(np.intp), GRID - 1)
        return np.asarray(self._tables[self._kind, place])
