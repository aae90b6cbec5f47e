"""One replica as a state-dependent M/M/1/K queue: what formulas alone say of its load and its tails."""

from __future__ import annotations

import math

import numpy as np

from bench.autoscale_engine import Array, mean_prefill_s
from simulator.spec import PoolSpec

KV_SHARE_MAX = 0.93
DEEP = 60
"""States beyond a full cache that are followed: a queue of so many."""


def context(spec: PoolSpec) -> float:
    """Tokens a running request holds, as met on the way: long answers are met more often (x E[o^2] / E[o])."""
    return spec.prompt_tokens + spec.output_tokens * math.exp(spec.length_sigma**2) / 2


def room(spec: PoolSpec) -> int:
    """Requests that fit into the cache and the batch."""
    return int(min(KV_SHARE_MAX * spec.kv_tokens / context(spec), spec.max_num_seqs))


def states(spec: PoolSpec, rate: float) -> Array:
    """(number of requests,) chance of each at an arrival rate, 1/s.

    With n running a token takes T(n) = (base + n (seq + context)) / (1 - prefill share), so that n / (output T(n)) leave
    a second; beyond the room no more leave than from a full cache.
    """
    share = min(rate * mean_prefill_s(spec), 0.95)
    full = room(spec)
    n = np.minimum(np.arange(1, full + DEEP + 1), full)
    token_s = (spec.step_base_s + n * (spec.step_seq_s + spec.step_context_s * context(spec))) / (1.0 - share)
    leaving = n / (spec.output_tokens * token_s)
    weight = np.concatenate(([0.0], np.cumsum(np.log(rate / leaving))))
    chance = np.exp(weight - weight.max())
    return np.asarray(chance / chance.sum())


def running(spec: PoolSpec, rate: float) -> float:
    """Mean requests in a replica."""
    chance = states(spec, rate)
    return float(chance @ np.arange(chance.size))


def late(spec: PoolSpec, rate: float) -> float:
    """Share of requests that find no room, or whose tokens come too slowly."""
    chance, share = states(spec, rate), min(rate * mean_prefill_s(spec), 0.95)
    full, n = room(spec), np.arange(chance.size)
    token_s = (spec.step_base_s + n * (spec.step_seq_s + spec.step_context_s * context(spec))) / (1.0 - share)
    return float(chance[(n >= full) | (token_s > spec.itl_slo_s)].sum())


def rate_at(spec: PoolSpec, share: float = 0.01) -> float:
    """Highest arrival rate, 1/s, at which no more than `share` of the requests is late, by bisection."""
    low, high = 0.0, 2.0 / mean_prefill_s(spec)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if late(spec, middle) <= share else (low, middle)
    return low
