"""Sizes of pools and what follows from them: replicas to start and to stop, idle nodes to lend, lent ones to have back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from daemon import jobs, power, replica, sharing, sizing
from daemon import lease as leases
from daemon.effects import Held
from daemon.model import Entity, Step, Verb
from daemon.packing import Growth, free_gpus, packed
from daemon.policy import PoolKind, PoolPolicy
from daemon.prior import Prior, prior
from daemon.situation import Situation
from daemon.victims import leaving
from daemon.worth import APART, Worth, kinds_of

DRAIN_S = 180.0
LEARN_TURNS = 4


@dataclass(slots=True)
class Memory:
    """What planning remembers between ticks.

    learnt : what each pool taught us. short_at : last time a pool wanted more GPUs than there were. holds : isolated
    entity -> last time something spoke against giving it back. held : pool -> what it is held to, since a growth did not come.
    priors : pool -> what a replica should hold, for those of which nothing has been measured.
    worth : what a token costs on each kind of GPU.
    """

    learnt: dict[str, replica.Learnt] = field(default_factory=dict)
    short_at: float = -np.inf
    holds: dict[Entity, float] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    priors: dict[str, Prior] = field(default_factory=dict)
    worth: Worth = field(default_factory=Worth)


@dataclass(frozen=True, slots=True)
class Capacity:
    """needs : (policy, need, GPUs of a replica, replicas standing) of each pool. granted : pool -> replicas.
    shut : node -> why no replica should start there."""

    needs: tuple[tuple[PoolPolicy, sizing.Need, int, int], ...]
    granted: Mapping[str, int]
    is_short: bool
    room: leases.Room
    shut: Mapping[str, str] = field(default_factory=dict)


def capacity(now: Situation, memory: Memory, spares: Mapping[str, int]) -> Capacity:
    """spares : pool -> replicas on top of its need, for those that are to be taken out once these are ready."""
    engines, pools = now.frames["engine"], now.frames["pool"]
    of = _pools_of(engines.facts.get("pool", ("",) * len(engines.entities)))
    needs, rows = [], pools.values.tolist()
    for index, name in enumerate(pools.entities):
        policy = now.policy.pool(name) or PoolPolicy(name)
        learnt = memory.learnt.get(name) or memory.learnt.setdefault(name, replica.Learnt())
        if replica.is_due(learnt, now.at):
            is_first = math.isnan(learnt.tried_at)
            replica.learn(learnt, engines, np.asarray(of == name), policy)
            memory.priors.pop(name, None)
            if math.isnan(learnt.capacity) and (guess := prior(now.frames, now.topology, name)) is not None:
                memory.priors[name] = guess
            if is_first:
                # Many pools take turns within the minute, so that no tick has to learn of them all.
                learnt.tried_at -= index % LEARN_TURNS * replica.LEARN_EVERY_S / LEARN_TURNS
        row = dict(zip(pools.signals, rows[index], strict=True))
        standing = _standing(now, policy, int(row["replicas"]))
        found = sizing.need(
            learnt,
            row,
            policy,
            now.forecasts.get(name),
            now.at,
            now.policy.spare_min,
            standing,
            memory.priors.get(name),
        )
        # What was ordered and is not ready yet is the spare that was asked for: asked again each tick, they would run away.
        lacking = spares.get(name, 0) - max(
            0, standing - round(row["ready"] if row["ready"] >= 0 else standing)
        )
        if lacking > 0:
            found = sizing.with_spares(found, lacking, policy)
        hold = memory.held.get(name)
        if hold is not None and now.at >= hold.until:
            del memory.held[name]
        elif hold is not None:
            # What was asked for and did not come is given back: it still stands as wanted in the system that starts it.
            standing = max(standing, int(now.fleet.replicas.get(name, 0)))
            ready = 0.0 if math.isnan(row["ready"]) else row["ready"]
            found = sizing.held_to(found, max(hold.replicas, ready), policy)
        size = policy.gpus_per_replica or now.topology.gpus_per_replica(name)
        needs.append((policy, found, size, standing))
    usable = sum(now.fleet.left_of(n, g) for n, g in now.topology.gpus_on.items())
    lent = sum(lease.gpus for lease in now.fleet.leases.values())
    shut = power.closed(now.frames, now.topology, now.policy)
    # What is free in a rack that cannot feed it is no room; what serves there goes on.
    usable -= sum(
        now.fleet.left_of(n, [g for g in now.topology.gpus_on[n] if g not in now.topology.engine_of])
        for n in shut
    )
    granted = _shared(now, needs, usable - lent, shut)
    is_short = any(
        need.wanted is not None and granted.get(p.name, 0) < need.wanted for p, need, _, _ in needs
    )
    given = {p.name: granted.get(p.name, standing) for p, _, _, standing in needs}
    held = sum(given[p.name] * size for p, _, size, _ in needs)
    # Who was held back from shrinking and gave to others lacks nothing: only growth that finds no GPUs is short.
    short = sum(
        (need.wanted - given[p.name]) * size
        for p, need, size, standing in needs
        if need.wanted is not None and need.wanted > max(standing, given[p.name])
    )
    room = leases.Room(held, max(0.0, usable - lent - held), short)
    return Capacity(tuple(needs), granted, is_short, room, shut)


def _shared(
    now: Situation, needs: Sequence[sharing.Claimant], gpus: float, shut: Mapping[str, str]
) -> dict[str, int]:
    """pool -> replicas it may have. What would find no room where it is free, or made free, is not asked for: then nobody gives way to it."""
    granted = sharing.share(needs, gpus)
    pools = now.frames["pool"]
    growths = [
        Growth(p.name, size, round(pools.value(p.name, "replicas")), standing, granted.get(p.name, standing))
        for p, _, size, standing in sorted(needs, key=lambda c: c[0].standing, reverse=True)
    ]
    cut = packed(growths, now.topology, now.fleet, shut)
    if not cut:
        return granted
    fitting = [
        (p, replace(need, wanted=min(need.wanted, cut.get(p.name, need.wanted))), size, standing)
        if need.wanted is not None
        else (p, need, size, standing)
        for p, need, size, standing in needs
    ]
    return sharing.share(fitting, gpus)


@lru_cache(maxsize=4)
def _pools_of(names: tuple[str, ...]) -> np.ndarray:
    """(engine,) the pools as an array to compare with; the facts are the same tuple for hours."""
    return np.array(names)


def _standing(now: Situation, policy: PoolPolicy, replicas: int) -> int:
    """Replicas there are; a change of ours that is still on its way counts as done, else asking would run away."""
    since = now.at - now.fleet.scaled.get(policy.name, -np.inf)
    if since < policy.cold_start_s + DRAIN_S:
        return int(now.fleet.replicas.get(policy.name, replicas))
    return replicas


def scale(now: Situation, memory: Memory, capacity: Capacity) -> list[Step]:
    steps = []
    memory.worth.watch(now.frames, now.topology)
    growing = (
        size for p, _, size, standing in capacity.needs if capacity.granted.get(p.name, standing) > standing
    )
    room = max(growing, default=0)
    for policy, found, size, standing in capacity.needs:
        wanted = capacity.granted.get(policy.name)
        if wanted is None or wanted == standing:
            continue
        amount = min(wanted, standing + now.policy.budgets.scale_step_max)
        args = [("from", str(standing)), ("pool", policy.name)]
        costs = memory.worth.costs(policy.name, now.policy.cost)
        avoided = dict(capacity.shut)
        if amount < standing:
            kinds = kinds_of(now.frames, now.topology.gpus_of) if costs else {}
            gone = leaving(
                policy.name,
                standing - amount,
                now.topology,
                now.fleet,
                now.frames["engine"],
                [i.scope for i in now.incidents],
                room,
                {engine: costs[kind] for engine, kind in kinds.items() if kind in costs},
            )
            args.insert(0, ("engine", ",".join(gone)))
        else:
            avoided |= _dearer(now, costs, size, avoided)
        if amount > standing and avoided:
            args.insert(0, ("avoid", ",".join(sorted(avoided))))
        steps.append(
            Step(
                id="",
                verb=Verb.SCALE,
                target=Entity("pool", policy.name),
                amount=float(amount),
                reason=f"{standing} -> {amount} replicas: {found.why}{_elsewhere(avoided, amount > standing)}"
                + _for_now(policy, found, standing, wanted, amount),
                expected=f"{amount} replicas ready within {policy.cold_start_s:.0f} s",
                deadline_s=max(120.0, 2 * policy.cold_start_s),
                args=tuple(args),
                gpus=float((standing - amount) * size),
                pool=policy.name,
            )
        )
    return steps


def _for_now(policy: PoolPolicy, found: sizing.Need, standing: int, granted: int, amount: int) -> str:
    """Why a pool gets fewer replicas than it wants."""
    if found.wanted is None or amount >= found.wanted:
        return ""
    if amount < granted:
        return f"; it wants {found.wanted}, one step adds no more"
    if policy.kind is PoolKind.SERVING:
        lacking = "there are no GPUs for more" if amount > standing else "others need the GPUs more"
        return f"; it wants {found.wanted}, {lacking}"
    return f"; it wants {found.wanted}, {policy.kind} gives way to a pool of a higher kind"


def _dearer(now: Situation, costs: Mapping[str, float], size: int, shut: Mapping[str, str]) -> dict[str, str]:
    """node -> why not there: on its GPUs a token costs more than on others that have room."""
    if not costs:
        return {}
    cheap = min(costs, key=lambda kind: costs[kind])
    kinds = kinds_of(now.frames, now.topology.gpus_on)
    free = free_gpus(now.topology, now.fleet)
    if not any(kinds[n] == cheap and room >= size and n not in shut for n, room in free.items()):
        return {}
    return {
        node: f"{kind}, where a token costs {costs[kind]:.2f} times that on {cheap}"
        for node, kind in kinds.items()
        if costs.get(kind, 1.0) >= APART
    }


def _elsewhere(avoided: Mapping[str, str], is_growing: bool) -> str:
    reasons = sorted(set(avoided.values()))
    return f"; not in {'; nor in '.join(reasons)}" if is_growing and reasons else ""


def recall(now: Situation, room: leases.Room) -> list[Step]:
    steps = []
    for node, why in leases.due(now.at, now.fleet, room, jobs.look(now.frames)).items():
        lease = now.fleet.leases[node]
        step = placed(now, Verb.RECALL, Entity("node", node), why, f"{node} serves again", -lease.gpus, "")
        steps.append(step)
    return steps


def lend(now: Situation, memory: Memory, capacity: Capacity) -> list[Step]:
    if not any(p.lendable for p in now.policy.pools):
        return []
    # Who was short a moment ago will be short again: what is recalled in haste is not lent out in haste.
    if now.at - memory.short_at < now.policy.lease_min_s:
        return []
    if not now.outlook.is_known or _is_growing(now, capacity) or not _are_watched(now, memory, capacity):
        return []
    busy = {n for n, engines in now.topology.engines_on.items() if engines}
    sick = now.sick_nodes()
    age = dict(zip(now.frames["node"].entities, now.frames["node"].age_s, strict=True))
    idle = {
        n: n not in busy
        and n not in sick
        and n not in capacity.shut
        and age.get(n, np.inf) <= now.policy.stale_s
        for n in now.topology.gpus_on
        if n not in now.fleet.leases
    }
    if not any(idle.values()):
        return []
    needed, step_s = leases.finer(now.outlook.needed[0.9], now.outlook.step_s, now.at)
    return [
        Step(
            id="",
            verb=Verb.LEND,
            target=Entity("node", loan.node),
            amount=float(loan.gpus),
            reason=f"{loan.why} ({(loan.until - now.at) / 3600:.1f} h)",
            expected=f"offline work on {loan.node}, back before it is needed",
            deadline_s=120.0,
            until=loan.until,
            args=(("node", loan.node), ("owner", f"tidewarden/{now.policy.cluster}")),
            gpus=float(loan.gpus),
        )
        for loan in leases.loans(
            now.at, now.topology, now.fleet, needed, step_s, now.policy, idle, capacity.room.held
        )
    ]


def _are_watched(now: Situation, memory: Memory, capacity: Capacity) -> bool:
    """Whether every pool that serves has been looked at for a while: what was just met may need more in a minute."""
    return all(
        policy.name in memory.learnt and sizing.is_watched(memory.learnt[policy.name], now.at)
        for policy, _, _, standing in capacity.needs
        if standing
    )


def _is_growing(now: Situation, capacity: Capacity) -> bool:
    """Whether a replica is on its way: where it will start nobody knows, so that no node is certain to stay idle."""
    pools = now.frames["pool"]
    return any(
        max(capacity.granted.get(policy.name, standing), standing) > pools.value(policy.name, "replicas")
        for policy, _, _, standing in capacity.needs
    )


def placed(
    now: Situation, verb: Verb, entity: Entity, reason: str, expected: str, gpus: float, pool: str
) -> Step:
    owner = f"tidewarden/{now.policy.cluster}"
    return Step(
        id="",
        verb=verb,
        target=entity,
        amount=1.0,
        reason=reason,
        expected=expected,
        deadline_s=300.0,
        args=(("node", now.topology.node_of(entity)), ("owner", owner), ("pool", pool)),
        gpus=gpus,
        pool=pool,
    )
