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
    "rejections_per_s",
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
    "kv_used_replicas",
    "refused_per_s",
    "gateway_arrivals_per_s",
    "gateway_errors_per_s",
    "gateway_queue",
    "gateway_latency_s",
    "members",
    "members_up",
    "ttft_slo_s",
    "slo_target",
)
"""`replicas` are engines that exist, `ready` those with a running count in fresh telemetry; `slo_target` is what the
policy asks of the pool; `kv_used_replicas` is the KV cache in use as a number of full replicas, a silent one taken for as full as the
rest; `waiting` and `concurrency` include what a gateway holds; `gateway_*` and `members*` are as gateways
count; `refused_per_s` are requests turned away further up or at the door: demand that no engine shows."""


def objectives(engines: Frame, policy: Policy) -> Mapping[str, Array]:
    """signal -> (engine,) latency objective in seconds of the engine's pool."""
    names = engines.facts.get("pool", ("",) * len(engines.entities))
    found = {name: policy.pool(name) or PoolPolicy(name) for name in set(names)}
    return {
        "ttft_s": np.array([found[n].ttft_slo_s for n in names]),
        "itl_s": np.array([found[n].itl_slo_s for n in names]),
        "tpot_s": np.array([found[n].itl_slo_s for n in names]),
    }


def frame(engines: Frame, policy: Policy, told: Mapping[str, Frame] | None = None) -> Frame:
    """One row a pool. Sums ignore engines that are missing; a sum of nothing but missing is NaN.

    told : "pool" = what gateways count of pools, "region" = what a balancer over regions says of them.
    """
    of = engines.facts.get("pool", ("",) * len(engines.entities))
    names = tuple(sorted({p for p in of if p} | {p.name for p in policy.pools}))
    if not of:
        none = np.full((len(names), len(SIGNALS)), NAN)
        none[:, :2], none[:, -2:] = 0.0, _targets(names, policy)
        return Frame(
            engines.at, "pool", names, SIGNALS, none, np.full(len(names), np.inf), {}, engines.revision
        )
    belongs, outside = _membership(of, names)
    columns = engines.columns(_WANTED)
    known = np.isfinite(columns)
    ready = known[:, 0] & ~(columns[:, _ASLEEP] > 0)
    # Requests count only where the share above the objective is known.
    for share, rate in LATE:
        columns[:, rate] = np.where(known[:, share], columns[:, rate], NAN)
        columns[:, share] *= columns[:, rate]
    known = np.isfinite(columns)
    number = belongs @ known
    some = number > 0
    total = np.where(some, belongs @ np.where(known, columns, 0.0), NAN)
    tops = (np.where(known[:, _TOPS], columns[:, _TOPS], -np.inf) + outside[:, :, None]).max(axis=1)
    gateway = _gateway(names, (told or {}).get("pool"))
    running, held = total[:, 0], gateway[:, _HELD]
    # What a gateway holds waits as well, whoever will have it; that it holds nothing says nothing of engines that are silent.
    own = total[:, 1]
    waiting = np.where(np.isfinite(own), own + _or_none(held), np.where(held > 0, held, NAN))
    total[:, 1] = waiting
    came = total[:, _CAME]
    total[:, _CAME] = np.where(np.isfinite(came), came, gateway[:, 0])
    means = (total / np.maximum(number, 1.0))[:, len(SUMS) : len(SUMS) + len(MEANS)]
    with np.errstate(invalid="ignore", divide="ignore"):
        late = [_or_none(total[:, share] / total[:, rate]) for share, rate in LATE]
    # Late at its first token or between the others: who is the one may be the other as well.
    is_measured = np.isfinite(total[:, [share for share, _ in LATE]]).any(axis=1)
    over_ratio = np.where(is_measured, 1.0 - (1.0 - late[0]) * (1.0 - late[1]), NAN)
    values = np.column_stack(
        (
            belongs.sum(axis=1),
            belongs @ ready,
            total[:, : len(SUMS)],
            means,
            np.where(tops > -np.inf, tops, NAN),
            over_ratio,
            running + _or_none(waiting),
            means[:, 0] * (belongs @ ready),
            _refused(names, total[:, _DONE], total[:, _REJECTED], told or {}, policy),
            gateway,
            _targets(names, policy),
        )
    )
    age = (engines.age_s - outside).min(axis=1)
    return Frame(engines.at, "pool", names, SIGNALS, values, age, {}, engines.revision)


def _or_none(values: Array) -> Array:
    """0 for what is missing, where its part of a sum is wanted."""
    return np.where(np.isnan(values), 0.0, values)


_WANTED = (*SUMS, *MEANS, "ttft_over_ratio", "tpot_over_ratio", "ttft_per_s", "tpot_per_s", "asleep", *MAXIMA)
GATEWAY = (
    "arrivals_per_s",
    "errors_per_s",
    "queue",
    "latency_s",
    "latency_s_per_s",
    "answered_per_s",
    "members",
    "members_up",
)
_HELD, _CAME = GATEWAY.index("queue"), SUMS.index("lb_sessions_per_s")
_FIRST_LATE, _SLOW, _FIRST, _FINISHED, _ASLEEP = (len(SUMS) + len(MEANS) + k for k in range(5))
LATE = ((_FIRST_LATE, _FIRST), (_SLOW, _FINISHED))
"""Columns of the shares of requests over an objective, and of the requests they are shares of."""
_DONE, _REJECTED = SUMS.index("requests_done_per_s"), SUMS.index("rejections_per_s")
_TOPS = slice(_ASLEEP + 1, _ASLEEP + 1 + len(MAXIMA))


def _gateway(names: tuple[str, ...], told: Frame | None) -> Array:
    """(pool, 6) arrivals and failures a second, requests held, mean seconds, members and members that are up, of gateways."""
    table = np.full((len(names), 6), NAN)
    if told is None:
        return table
    at = {name: i for i, name in enumerate(told.entities)}
    rows = [i for i, name in enumerate(names) if name in at]
    columns = told.columns(GATEWAY)[[at[names[i]] for i in rows]]
    table[rows, :3] = columns[:, :3]
    table[rows, 3] = latency_s(columns[:, 3:6])
    table[rows, 4:] = columns[:, 6:]
    return table


def latency_s(columns: Array) -> Array:
    """(row,) mean seconds of a request. columns : (row, 3) the mean, or seconds a second and answers a second."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(columns[:, 0]), columns[:, 0], columns[:, 1] / columns[:, 2])


def _refused(
    names: tuple[str, ...], done: Array, rejected: Array, told: Mapping[str, Frame], policy: Policy
) -> Array:
    """(pool,) requests a second turned away: by the engines, by the gateway, by a balancer over regions on our behalf.

    That balancer knows no pools: its part is shared as what is finished. NaN where nobody counts.
    """
    found = [rejected]
    if "pool" in told:
        gateway = told["pool"]
        counted = dict(zip(gateway.entities, gateway.column("refused_per_s").tolist(), strict=True))
        found.append(np.array([counted.get(name, NAN) for name in names]))
    if "region" in told:
        part = told["region"].value(policy.region or policy.cluster, "turned_away_per_s")
        whole = np.nansum(done)
        found.append(part * done / whole if whole > 0 else np.full(len(names), NAN))
    away = found[0]
    for other in found[1:]:
        away = np.where(np.isnan(away), other, away + np.where(np.isnan(other), 0.0, other))
    return away


def _targets(names: tuple[str, ...], policy: Policy) -> Array:
    """(pool, 2) objective of the time to first token and the share of requests that must meet it; NaN for a pool that is not
    configured."""
    found = (policy.pool(name) for name in names)
    table = [(pool.ttft_slo_s, pool.slo_target) if pool else (NAN, NAN) for pool in found]
    return np.array(table).reshape(len(names), 2)


@lru_cache(maxsize=8)
def _membership(of: tuple[str, ...], names: tuple[str, ...]) -> tuple[Array, Array]:
    """(pool, engine) ones for a pool's engines, and the same with 0 inside and -inf outside, for maxima."""
    belongs = np.array([[float(p == name) for p in of] for name in names]).reshape(len(names), len(of))
    return belongs, np.where(belongs > 0, 0.0, -np.inf)
