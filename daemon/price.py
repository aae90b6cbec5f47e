"""What taking something out of service costs those who are served, and when it would cost them nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from daemon import pace as paces
from daemon import replica, tails
from daemon.model import NAN, Entity, Verb
from daemon.policy import Mode, PoolPolicy
from daemon.situation import Situation

AHEAD_S = 86400.0
"""How far ahead a quieter hour is looked for: a day has one."""
FULL_SHARE = 0.95
"""Before lateness is known: of the requests a pool has room for, what it may hold afterwards."""
SPARE_LATE_S = 900.0
"""A spare that is not there so long after twice a cold start does not come by itself."""


@dataclass(frozen=True, slots=True)
class Price:
    """What one pool pays.

    replicas, of : that stop serving, out of how many; a replica at half its weight is half a replica. late, after : share
    of requests late now and afterwards, NaN = not known. wait : "" = it may go now; "spare" once a replica more is ready;
    "valley" in a quieter hour, at `until`; "person" = nothing that is forecast makes it cheaper. short : replicas that
    would lack at the worst hour of the next day on one path in ten, 0 = none or not known; short_at : when.
    """

    pool: str
    replicas: float
    of: float
    late: float = NAN
    after: float = NAN
    load: float = NAN
    wait: str = ""
    until: float = NAN
    short: float = 0.0
    short_at: float = NAN

    @property
    def text(self) -> str:
        cost = f"takes {self.replicas:g} of {self.of:g} replicas of {self.pool}"
        if self.after == self.after:
            cost += f": {self.late:.1%} of the requests are late now, {self.after:.1%} would be"
        elif self.load == self.load:
            cost += f": what is left would be {self.load:.0%} full"
        else:
            cost += ", at a price that is not known yet"
        if self.short > 0:
            cost += f"; {self.short:g} would lack at {_clock(self.short_at)} on one path in ten"
        if self.wait == "valley":
            return f"{cost}; waits for a quieter hour, about {_clock(self.until)}"
        return cost + WAITS[self.wait]


WAITS: Mapping[str, str] = {
    "": "",
    "spare": "; waits until a replica more is ready",
    "person": "; no spare and no quieter hour within a day: a person decides",
}


def prices(
    entity: Entity, opened: float, now: Situation, learnt: Mapping[str, replica.Learnt]
) -> list[Price]:
    """What each pool pays for the isolation of `entity`, the dearest first; [] when nobody is served by it.

    opened : when its incident began, for how long a spare has been waited for. learnt : what each pool taught us.
    """
    engines = now.frames["engine"]
    running = dict(zip(engines.entities, engines.column("running").tolist(), strict=True))
    found = []
    touched = set(now.topology.engines_touched(entity))
    for pool in sorted({now.topology.pool_of.get(e, "") for e in touched} - {""}):
        members = now.topology.engines_in(pool)
        # Who is silent or gets nothing serves nobody: taking it costs nothing.
        weight = {
            e: now.fleet.weights.get(e, 1.0) for e in members if running.get(e, NAN) == running.get(e, NAN)
        }
        gone = sum(weight.get(e, 0.0) for e in touched)
        if gone > 0 and pool in learnt:
            found.append(_price(pool, gone, sum(weight.values()), entity, opened, now, learnt[pool]))
    return sorted(found, key=lambda p: (not p.wait, -(p.after if p.after == p.after else 0.0)))


def _price(
    pool: str,
    gone: float,
    serving: float,
    entity: Entity,
    opened: float,
    now: Situation,
    learnt: replica.Learnt,
) -> Price:
    policy = now.policy.pool(pool) or PoolPolicy(pool)
    late, after, load, is_dear = _now(gone, serving, policy, now, learnt)
    left = serving - gone
    needed = _needed(pool, now)
    over = np.flatnonzero(needed > left)
    worst = int(needed.argmax()) if over.size else 0
    # The present hour is not the quiet one, whatever was forecast of it: it is dear now.
    calm = [_hour(now, int(k)) for k in np.flatnonzero(needed <= left) if _hour(now, int(k)) > now.at]
    wait, until = "", NAN
    if is_dear:
        started = now.at - opened <= 2.0 * policy.cold_start_s + SPARE_LATE_S
        if started and has_room(policy, entity, now):
            wait = "spare"
        elif calm:
            wait, until = "valley", calm[0]
        else:
            wait = "person"
    return Price(
        pool,
        gone,
        serving,
        late,
        after,
        load,
        wait,
        until,
        float(needed[worst] - left) if over.size else 0.0,
        _hour(now, worst) if over.size else NAN,
    )


def _now(
    gone: float, serving: float, policy: PoolPolicy, now: Situation, learnt: replica.Learnt
) -> tuple[float, float, float, bool]:
    """Share late now and afterwards, how full what is left would be, and whether that is more than the objective allows."""
    work, left, seen = learnt.pace.fast, serving - gone, learnt.tails
    if seen.is_known and work > 0:
        ahead_s = policy.cold_start_s + paces.FAST_TAU_S
        growth = paces.growth_of(now.forecasts.get(policy.name), now.at, ahead_s)
        # The demand of now or of the time until another could be ready, whichever is more.
        loads = [max(work, paces.expected(learnt.pace, growth)) * factor for factor in learnt.pace.factors]
        late = tails.lateness(seen, loads, serving)
        after = tails.lateness(seen, loads, left) if left > 0 else 1.0
        most = tails.bearable(seen, 1.0 - policy.slo_target)
        return late, after, NAN, after > max(most, late)
    demand = learnt.demand
    if demand == demand and learnt.capacity > 0:
        load = demand / (left * learnt.capacity) if left > 0 else math.inf
        return NAN, NAN, load, load > FULL_SHARE
    return NAN, NAN, NAN, False


def _needed(pool: str, now: Situation) -> np.ndarray:
    """(step,) replicas the pool needs on one path in ten within AHEAD_S; empty = not known."""
    part = now.outlook.pools.get(pool)
    if part is None or not part.needed.size:
        return np.empty(0)
    steps = max(1, math.ceil(AHEAD_S / now.outlook.step_s))
    return np.asarray(np.quantile(part.needed[:, :steps], 0.9, axis=0))


def _hour(now: Situation, step: int) -> float:
    """When a step of the outlook begins."""
    outlook = now.outlook
    return outlook.at - outlook.at % outlook.step_s + step * outlook.step_s


def has_room(pool: PoolPolicy, leaving: Entity, now: Situation) -> bool:
    """Whether one more replica would start by itself, on GPUs that nobody uses and that nothing speaks against."""
    if now.policy.mode_of(Verb.SCALE, pool.name) is not Mode.AUTO or not now.policy.can(
        Verb.SCALE, pool.name
    ):
        return False
    if pool.replicas_max and len(now.topology.engines_in(pool.name)) >= pool.replicas_max:
        return False
    size = pool.gpus_per_replica or now.topology.gpus_per_replica(pool.name)
    sick = now.sick_nodes() | {now.topology.node_of(leaving)}
    return any(_idle(node, sick, now) >= size for node in now.topology.gpus_on)


def _idle(node: str, sick: Collection[str], now: Situation) -> int:
    if node in sick or node in now.fleet.leases or now.fleet.is_isolated(node):
        return 0
    return sum(gpu not in now.topology.engine_of for gpu in now.topology.gpus_on[node])


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%a %H:%M UTC")
