"""Engines to pools: what a pool's replicas show together."""

from __future__ import annotations

from collections.abc import Mapping

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
    found = [policy.pool(name) or PoolPolicy(name) for name in names]
    return {"ttft_s": np.array([p.ttft_slo_s for p in found]), "itl_s": np.array([p.itl_slo_s for p in found])}


def frame(engines: Frame, policy: Policy) -> Frame:
    """One row a pool. Sums ignore engines that are missing; a sum of nothing but missing is NaN."""
    of = engines.facts.get("pool", ("",) * len(engines.entities))
    names = tuple(sorted({p for p in of if p} | {p.name for p in policy.pools}))
    place = {name: i for i, name in enumerate(names)}
    member = np.array([place.get(p, len(names)) for p in of], dtype=np.intp)
    size = len(names) + 1
    present = {s: engines.column(s) for s in {*SUMS, *MEANS, *MAXIMA, "ttft_over_ratio", "asleep"}}

    def total(values: Array) -> Array:
        known = np.isfinite(values)
        number = np.bincount(member, known, minlength=size)
        return np.where(number > 0, np.bincount(member, np.where(known, values, 0.0), minlength=size), NAN)

    def top(values: Array) -> Array:
        found = np.full(size, -np.inf)
        np.maximum.at(found, member, np.where(np.isfinite(values), values, -np.inf))
        return np.where(np.isfinite(found), found, NAN)

    ready = np.isfinite(present["running"]) & ~(present["asleep"] > 0)
    out = {
        "replicas": np.bincount(member, minlength=size).astype(float),
        "ready": np.bincount(member, ready, minlength=size),
        **{s: total(present[s]) for s in SUMS},
        **{f"{s}_max": top(present[s]) for s in MAXIMA},
    }
    for s in MEANS:
        known = np.bincount(member, np.isfinite(present[s]), minlength=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[f"{s}_mean"] = total(present[s]) / known
    weight = present["ttft_per_s"]
    with np.errstate(invalid="ignore", divide="ignore"):
        out["over_slo_ratio"] = total(present["ttft_over_ratio"] * weight) / total(
            np.where(np.isfinite(present["ttft_over_ratio"]), weight, NAN)
        )
    out["concurrency"] = out["running"] + np.where(np.isfinite(out["waiting"]), out["waiting"], 0.0)
    values = np.column_stack([out[s][: len(names)] for s in SIGNALS]) if names else np.empty((0, len(SIGNALS)))
    age = np.full(size, np.inf)
    np.minimum.at(age, member, engines.age_s)
    return Frame(engines.at, "pool", names, SIGNALS, values, age[: len(names)], {}, engines.revision)
