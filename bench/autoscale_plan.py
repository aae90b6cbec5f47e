"""How long a plan takes for a hundred pools on 1,250 nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from daemon import outlook, plan
from daemon.fleet import Fleet
from daemon.model import Forecast, Frame, Frames
from daemon.policy import Policy, PoolPolicy
from daemon.pools import frame as pool_frame
from daemon.resize import Memory
from daemon.situation import Situation
from daemon.topology import Topology
from detectors.forecast import LEVELS

NODES, POOLS, SERVING = 1250, 100, 1000
"""Of the nodes, those that serve: two engines of four GPUs each. The others stand idle and can be lent."""
TICKS, WARM = 300, 60
"""Ticks of fifteen seconds; the first ones, in which nothing is learnt yet, are not timed."""
TICK_S, OUTLOOK_EVERY = 15.0, 20
BEGINS = 1_780_272_000.0
RANGES = {
    "running": (20.0, 40.0),
    "waiting": (0.0, 0.0),
    "kv_used_ratio": (0.3, 0.5),
    "itl_mean_s": (0.03, 0.05),
    "ttft_p95_s": (0.3, 0.6),
    "queue_p95_s": (0.0, 0.1),
    "requests_done_per_s": (1.0, 2.0),
    "prompt_tokens_s": (2000.0, 4000.0),
    "generation_tokens_s": (700.0, 1200.0),
    "ttft_over_ratio": (0.002, 0.002),
    "ttft_per_s": (1.0, 2.0),
}
"""Signal of an engine -> between what it is drawn each tick."""


def plan_time() -> dict[str, float]:
    """Milliseconds of `daemon.plan.propose` (median, p95, most), of a look ahead, and how many pools were sized by
    their own lateness, so that nobody times a plan that knew nothing."""
    policy, topology = _told(), _town()
    rng, memory, fleet = np.random.default_rng(1), Memory(), Fleet()
    forecasts = _forecasts(policy)
    ahead = outlook.look(BEGINS, topology, fleet, policy, forecasts, memory.learnt)
    plans_s, looks_s = [], []
    for tick in range(TICKS):
        at = BEGINS + tick * TICK_S
        frames = _frames(at, topology, policy, rng)
        if tick % OUTLOOK_EVERY == 0:
            begun = time.perf_counter()
            ahead = outlook.look(at, topology, fleet, policy, forecasts, memory.learnt)
            looks_s.append(time.perf_counter() - begun)
        situation = Situation(at, frames, topology, (), fleet, forecasts, ahead, policy)
        begun = time.perf_counter()
        plan.propose(situation, memory)
        plans_s.append(time.perf_counter() - begun)
    timed_ms = 1e3 * np.array(plans_s[WARM:])
    return {
        "median_ms": float(np.median(timed_ms)),
        "p95_ms": float(np.quantile(timed_ms, 0.95)),
        "most_ms": float(timed_ms.max()),
        "outlook_ms": 1e3 * float(np.median(looks_s)),
        "pools_known": float(sum(learnt.tails.is_known for learnt in memory.learnt.values())),
        "pools": float(POOLS),
        "nodes": float(NODES),
    }


def _told() -> Policy:
    pools = (
        PoolPolicy(f"p{k:03d}", replicas_max=40, gpus_per_replica=4, lendable=True) for k in range(POOLS)
    )
    return Policy(pools=tuple(pools))


def _town() -> Topology:
    nodes = tuple(f"n{k:04d}" for k in range(NODES))
    engines_on = {n: (f"{n}:8000", f"{n}:8004") for n in nodes[:SERVING]}
    node_of = {engine: node for node, engines in engines_on.items() for engine in engines}
    return Topology(
        nodes=nodes,
        gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(8)) for n in nodes},
        engines_on=engines_on,
        gpus_of={
            engine: tuple(f"{node}/gpu{g + 4 * engine.endswith('8004')}" for g in range(4))
            for engine, node in node_of.items()
        },
        pool_of={engine: f"p{k % POOLS:03d}" for k, engine in enumerate(node_of)},
        node_of_engine=node_of,
    )


def _frames(at: float, topology: Topology, policy: Policy, rng: np.random.Generator) -> Frames:
    names = tuple(topology.node_of_engine)
    values = np.column_stack([rng.uniform(low, high, len(names)) for low, high in RANGES.values()])
    values = np.column_stack((values, np.full(len(names), np.nan)))
    facts: Mapping[str, tuple[str, ...]] = {"pool": tuple(topology.pool_of[name] for name in names)}
    signals = (*RANGES, "lb_sessions_per_s")
    engines = Frame(at, "engine", names, signals, values, np.zeros(len(names)), facts, 1)
    nodes = Frame(at, "node", topology.nodes, ("up",), np.ones((NODES, 1)), np.zeros(NODES), {}, 1)
    return Frames(at, {"engine": engines, "node": nodes, "pool": pool_frame(engines, policy)})


def _forecasts(policy: Policy) -> dict[str, Forecast]:
    """A week of days for each pool, the levels 40 % apart at the ends."""
    day = 600.0 + 200.0 * np.sin(np.arange(168) / 24.0 * 2 * np.pi)
    paths = np.outer(np.interp(LEVELS, (0.0, 0.5, 1.0), (0.7, 1.0, 1.3)), day)
    return {p.name: Forecast(BEGINS, p.name, "concurrency", 3600.0, LEVELS, paths) for p in policy.pools}
