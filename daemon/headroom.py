"""What a region says of itself to others: how well it is, what it carries, what it could carry, at which cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daemon import replica
from daemon.energy import Meter, bills
from daemon.fleet import Fleet
from daemon.model import NAN, Frame, Frames
from daemon.policy import Policy
from daemon.topology import Topology, node_of_name

SIGNALS = (
    "health_ratio",
    "requests_per_s",
    "carries_per_s",
    "could_carry_per_s",
    "ttft_s",
    "gpus_usable",
    "gpus_free",
    "money_per_mtoken",
)
"""In the order they are published; `daemon/telemetry/catalogue.yaml` says what each means."""
LEAST_PER_S = 0.01
"""Requests a second below which nothing can be said of how many more a region could carry."""


def report(
    frames: Frames,
    topology: Topology,
    fleet: Fleet,
    policy: Policy,
    learnt: Mapping[str, replica.Learnt],
    meter: Meter,
) -> dict[str, float]:
    """signal -> value now, NaN where it is not known. All of `SIGNALS`.

    What could be carried is told in requests a second of the mix that comes now: a region elsewhere has other GPUs,
    but a request is a request.
    """
    engine, pool = frames["engine"], frames["pool"]
    rate = _sum(pool.column("requests_done_per_s"))
    carries, could = _room(pool, topology, fleet, policy, learnt)
    usable = float(sum(fleet.left_of(n, g) for n, g in topology.gpus_on.items()))
    lent = sum(lease.gpus for lease in fleet.leases.values())
    serving = sum(fleet.left_of(node_of_name(gpu), (gpu,)) for gpu in topology.engine_of)
    found = {
        "health_ratio": _health(engine, fleet),
        "requests_per_s": rate,
        "carries_per_s": rate * carries if rate >= LEAST_PER_S else NAN,
        "could_carry_per_s": rate * could if rate >= LEAST_PER_S else NAN,
        "ttft_s": _latency(engine),
        "gpus_usable": usable if topology.gpus_on else NAN,
        "gpus_free": max(0.0, usable - lent - serving) if topology.gpus_on else NAN,
        "money_per_mtoken": _money(meter, policy),
    }
    return {signal: found[signal] for signal in SIGNALS}


def _health(engine: Frame, fleet: Fleet) -> float:
    """Share of replicas that answer and get requests; NaN without any. One that is silent is not well, it is not absent."""
    if not engine.entities:
        return NAN
    speaks = np.isfinite(engine.column("running"))
    given = np.array([fleet.weights.get(name, 1.0) > 0.0 for name in engine.entities])
    return float((speaks & given).mean())


def _room(
    pool: Frame,
    topology: Topology,
    fleet: Fleet,
    policy: Policy,
    learnt: Mapping[str, replica.Learnt],
) -> tuple[float, float]:
    """How many times the load of now would fit on the replicas that are ready, and on all usable GPUs.

    The pool with the least room decides for the replicas: load comes as a mix. NaN while a loaded pool's capacity is unknown.
    """
    least, needed = np.inf, 0.0
    loads, ready = pool.column("concurrency").tolist(), pool.column("ready").tolist()
    for name, load, standing in zip(pool.entities, loads, ready, strict=True):
        if not load > 0:
            continue
        room = replica.room(learnt[name]) if name in learnt else NAN
        own = policy.pool(name)
        size = (own.gpus_per_replica if own else 0) or topology.gpus_per_replica(name)
        if not room > 0 or not size or standing != standing:
            return NAN, NAN
        replicas = load / (room * replica.LOAD_TARGET)
        least = min(least, standing / replicas)
        needed += replicas * size
    if not needed:
        return NAN, NAN
    usable = sum(fleet.left_of(n, g) for n, g in topology.gpus_on.items())
    return float(least), max(float(least), usable / needed)


def _latency(engine: Frame) -> float:
    """Median time to the first token, the mean of replicas by their requests."""
    seen, weight = engine.column("ttft_p50_s"), engine.column("ttft_per_s")
    known = np.isfinite(seen) & (weight > 0)
    return float(np.average(seen[known], weights=weight[known])) if known.any() else NAN


def _money(meter: Meter, policy: Policy) -> float:
    found = bills(meter, policy.cost)
    tokens = sum(bill.tokens for bill in found if bill.tokens == bill.tokens)
    money = sum(bill.money for bill in found)
    return money / tokens * 1e6 if found and tokens > 0 else NAN


def _sum(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.sum()) if known.size else NAN
