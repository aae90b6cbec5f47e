"""Engines to pools: what a pool's replicas show together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from daemon.model import NAN, Array, Frame
from daemon.policy import Policy, PoolPolicy

SUMS = (
    "running",
    "waiting",
    "prompt_tokens_s",
    "generation_tokens_s",
    "requests_done_per_s",
    "requests_failed_per_s",
    "preemptions_per_s",
    "ttft_per_s",
    "lb_sessions_per_s",
    "lb_sessions",
)
MEANS = ("kv_used_ratio", "itl_mean_s")
MAXIMA = ("ttft_p95_s", "kv_used_ratio")
SIGNALS = (
    "replicas",
    "ready",
    *SUMS,
    *(f"{s}_mean" for s in MEANS),
    *(f"{s}_max" for s in MAXIMA),
    "over_slo_ratio",
    "concurrency",
)
"""`replicas` are engines that exist, `ready` those with a running count in fresh telemetry."""


def objectives(engines: Frame, policy: Policy) -> Mapping[str, Array]:
    """signal -> (engine,) latency objective in seconds of the engine's pool."""
    names = engines.facts.get("pool", ("",) * len(engines.entities))
    found = {name: policy.pool(name) or PoolPolicy(name) for name in set(names)}
    return {
        "ttft_s": np.array([found[n].ttft_slo_s for n in names]),
        "itl_s": np.array([found[n].itl_slo_s for n in names]),
    }


def frame(engines: Frame, policy: Policy) -> Frame:
    """One row a pool. Sums ignore engines that are missing; a sum of nothing but missing is NaN."""
    of = engines.facts.get("pool", ("",) * len(engines.entities))
    names = tuple(sorted({p for p in of if p} | {p.name for p in policy.pools}))
    members, belongs = _membership(of, names)
    columns = engines.columns((*SUMS, *MEANS, "ttft_over_ratio", "ttft_per_s"))
    ready = np.isfinite(columns[:, 0]) & ~(engines.column("asleep") > 0)
    over = columns[:, -2]
    columns[:, -1] = np.where(np.isfinite(over), columns[:, -1], NAN)
    columns[:, -2] = over * columns[:, -1]
    known = np.isfinite(columns)
    number = belongs @ known
    total = np.where(number > 0, belongs @ np.where(known, columns, 0.0), NAN)
    sums = total[:, : len(SUMS)]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (total / number)[:, len(SUMS) : len(SUMS) + len(MEANS)]
        over_ratio = total[:, -2] / total[:, -1]
    tops = np.column_stack([_top(engines.column(s), members) for s in MAXIMA])
    running, waiting = sums[:, 0], sums[:, 1]
    values = np.column_stack(
        [
            belongs.sum(axis=1),
            belongs @ ready,
            sums,
            means,
            tops,
            over_ratio,
            running + np.where(np.isfinite(waiting), waiting, 0.0),
        ]
    )
    age = np.array([engines.age_s[m].min() if m else np.inf for m in members])
    return Frame(engines.at, "pool", names, SIGNALS, values, age, {}, engines.revision)


@lru_cache(maxsize=8)
def _membership(of: tuple[str, ...], names: tuple[str, ...]) -> tuple[list[list[int]], Array]:
    """Rows of each pool's engines, and the same as a (pool, engine) matrix of zeros and ones."""
    members = [[i for i, p in enumerate(of) if p == name] for name in names]
    belongs = np.zeros((len(names), len(of)))
    for row, found in enumerate(members):
        belongs[row, found] = 1.0
    return members, belongs


def _top(values: Array, members: list[list[int]]) -> Array:
    """(pool,) maximum over its engines, ignoring what is missing."""
    return np.array([np.fmax.reduce(values[m], initial=NAN) if m else NAN for m in members])
