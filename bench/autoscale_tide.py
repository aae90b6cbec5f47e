"""A month of lending: idle nodes go to offline work and are back before the fleet serves again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.autoscale_engine import STEP_S, Array, Engines
from bench.autoscale_oracle import LATES, oracle
from bench.autoscale_ours import Ours, forecast_of, in_flight
from bench.autoscale_run import TARGET, Batch, batch, run, start_of
from bench.autoscale_traces import HOUR_S, case, generated
from daemon import lease as leases
from daemon import outlook, replica
from daemon.fleet import Fleet
from daemon.model import Entity, Outcome, Result, Step, Verb
from daemon.policy import Budgets, Policy
from daemon.topology import Topology

GPUS, NODE = 400, 8
COLD_S = 90.0
LOOK_S = 60.0
"""How often idle nodes are offered (the daemon does at every tick); what is due is looked for at every step."""
CHECKPOINT_S, CHECKPOINT_SPREAD = 300.0, 0.4
"""Median time from a recall to free GPUs (checkpoint, stop, memory seen free), and its spread as a logarithm."""

TOLD = Policy(budgets=Budgets(lent_share_max=0.8))
"""An operator who lends in earnest: the default lets half of the GPUs go."""


@dataclass
class Tide:
    """Nodes with offline work. back : node -> when a recalled one is free again. recall_s : how long each recall took."""

    fleet: Fleet = field(default_factory=Fleet)
    back: dict[str, float] = field(default_factory=dict)
    recall_s: list[float] = field(default_factory=list)
    lent_gpu_s: float = 0.0
    waited: list[float] = field(default_factory=list)
    emergencies: int = 0

    @property
    def gone(self) -> int:
        """Nodes that serve nobody online now."""
        return len(self.fleet.leases) + len(self.back)


def tide(days: int) -> dict[str, dict[str, Any]]:
    """Policy -> lent GPU-hours over the oracle's, late recalls, recalls, mean utilisation of all GPUs by day."""
    series = [generated(5 + days // 7 + 2, 20 + k) for k in range(3)]
    tune, score = (
        batch([case("tide", GPUS, COLD_S, series, part, 20, days=days)]) for part in ("tune", "score")
    )
    could = lendable(score)
    found = {}
    for name, foresees in (("ours", True), ("ours_reactive", False)):
        policy = Ours(tune, foresees)
        run(tune, np.arange(len(tune.cells)), policy, start_of(tune))
        found[name] = _month(score, policy.moved(score), could)
    return found


def lendable(given: Batch) -> float:
    """GPU-hours of whole nodes the oracle's fleet leaves idle for at least a shortest lease, less a recall each."""
    plans, first = oracle(given)
    policy, worlds = TOLD, np.arange(len(given.cells))
    results = [run(given, worlds, plan, begin) for plan, begin in zip(plans, first, strict=True)]
    every = np.ones(worlds.size, dtype=bool)
    kept = [k for k, r in enumerate(results) if r.of(every)["slo_attainment"] >= TARGET] or [0]
    assert len(LATES) == len(plans)
    size = np.array([c.spec.tp for c in given.cells])
    used = plans[kept[-1]].wanted @ size
    idle = np.floor((GPUS - used) / NODE).astype(int)
    total = 0.0
    for level in range(1, int(idle.max()) + 1):
        on = idle >= level
        edges = np.flatnonzero(np.diff(np.concatenate(([0], on.view(np.int8), [0]))))
        spans = (edges[1::2] - edges[::2]) * STEP_S
        total += float((spans[spans >= policy.lease_min_s] - CHECKPOINT_S).sum())
    return total * NODE / HOUR_S


def _month(given: Batch, policy: Ours, could: float) -> dict[str, Any]:
    rng = np.random.default_rng(30)
    told, state = TOLD, Tide()
    cells = given.cells
    topology = _nodes()
    cold = np.array([round(given.cases[c.case].cold_s / STEP_S) for c in cells], dtype=np.intp)
    engines = Engines([c.spec for c in cells], start_of(given), cold)
    size = np.array([float(c.spec.tp) for c in cells])
    most = np.array([float(c.most) for c in cells])
    used_s, waiting_since, short_at = 0.0, None, -np.inf
    for step in range(given.steps):
        at = given.cases[0].begins + step * STEP_S
        state.back = {n: t for n, t in state.back.items() if t > at}
        now = engines.ready + engines.starting
        wanted = np.clip(policy.decide(step, engines.seen, now), 1.0, most) if step else now
        held = float(engines.held @ size)
        free = GPUS - state.gone * NODE - held
        grows = float(np.maximum(wanted - now, 0.0) @ size)
        is_short = grows > free
        granted = _within(wanted, now, size, free)
        if is_short and state.gone and waiting_since is None:
            waiting_since = at
        elif not is_short and waiting_since is not None:
            state.waited.append(at - waiting_since)
            waiting_since = None
        short_at = at if is_short else short_at
        coming = free + len(state.back) * NODE
        room = leases.Room(
            held + min(grows, free), coming - min(grows, free), grows - free if is_short else 0.0
        )
        for node, why in leases.due(at, state.fleet, room).items():
            _recall(state, node, at, rng)
            state.emergencies += not why.startswith("the lease")
        # As daemon.resize.lend has it: nothing while a replica is on its way, nor soon after a shortage.
        is_calm = grows == 0 and not engines.starting.any() and at - short_at >= told.lease_min_s
        if step and at % LOOK_S == 0 and policy.foresees and is_calm:
            _lend(state, given, policy, topology, at, step, held, told)
        engines.resize(granted)
        engines.step(given.arrived[step])
        state.lent_gpu_s += len(state.fleet.leases) * NODE * STEP_S
        used_s += float(engines.ready @ size) * STEP_S
    lent = state.lent_gpu_s / HOUR_S
    total_s = given.steps * STEP_S * GPUS
    return {
        "lent_gpu_hours": lent,
        "lent_share_of_oracle": lent / could,
        "late_recalls": len(state.waited) + (waiting_since is not None),
        "late_recall_s": sum(state.waited),
        "emergency_recalls": state.emergencies,
        "recalls": len(state.recall_s),
        "tide_slo_attainment": float(engines.good.sum() / engines.asked.sum()),
        "gpu_utilisation": (used_s + state.lent_gpu_s) / total_s,
        "tide_days": given.days,
    }


def _nodes() -> Topology:
    names = tuple(f"n{k:02d}" for k in range(GPUS // NODE))
    return Topology(nodes=names, gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(NODE)) for n in names})


def _within(wanted: Array, now: Array, size: Array, free: float) -> Array:
    """What of the growth finds GPUs, pool after pool."""
    granted = wanted.copy()
    for k in np.flatnonzero(wanted > now):
        fits = max(0.0, min(wanted[k] - now[k], free // size[k]))
        granted[k], free = now[k] + fits, free - fits * size[k]
    return granted


def _recall(state: Tide, node: str, at: float, rng: np.random.Generator) -> None:
    took = CHECKPOINT_S * float(np.exp(CHECKPOINT_SPREAD * rng.standard_normal()))
    step = Step("", Verb.RECALL, Entity("node", node), 1.0, "")
    state.fleet.absorb(Outcome(step, Result.DONE, took_s=took, at=at), at)
    state.back[node] = at + took
    state.recall_s.append(took)


def _lend(
    state: Tide,
    given: Batch,
    policy: Ours,
    topology: Topology,
    at: float,
    step: int,
    held: float,
    told: Policy,
) -> None:
    needed = _needed(given, policy, step, told)
    if needed is None:
        return
    away = {*state.fleet.leases, *state.back}
    number = int((GPUS - held) // NODE) - len(away)
    idle = [n for n in reversed(topology.nodes) if n not in away][: max(0, number)]
    path, part_s = leases.finer(needed, HOUR_S, at)
    found = leases.loans(at, topology, state.fleet, path, part_s, told, dict.fromkeys(idle, True), held)
    for loan in found:
        lend = Step("", Verb.LEND, Entity("node", loan.node), float(loan.gpus), loan.why, until=loan.until)
        state.fleet.absorb(Outcome(lend, Result.DONE, at=at), at)


def _needed(given: Batch, policy: Ours, step: int, told: Policy) -> Array | None:
    """(hour,) GPUs all pools need at the 90 % level from the hour under way on, as daemon.outlook works it out."""
    case, hour = given.cases[0], int(step * STEP_S // HOUR_S)
    total: Array | float = 0.0
    for cell, which in enumerate(given.cells):
        forecast, learnt = forecast_of(case, which.pool, hour), policy.learnt[cell]
        if forecast is None or np.isnan(replica.room(learnt)):
            return None
        # The daemon's history holds what was in flight at the loads it really had.
        demand = outlook.paths_of(forecast) * (learnt.stay_s / in_flight(which.spec))
        replicas = outlook.replicas_for(demand, replica.room(learnt), policy.spare[cell], 1)
        total = total + replicas * which.spec.tp
    return np.asarray(np.quantile(total, 0.9, axis=0))
