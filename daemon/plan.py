"""Incidents, forecasts and the fleet to proposed steps: what should change, before anyone asks whether it may."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from daemon import jobs, power, sharing, sizing
from daemon import lease as leases
from daemon.effects import Held
from daemon.model import Entity, Incident, Step, Verb
from daemon.packing import Growth, packed
from daemon.policy import PoolKind, PoolPolicy
from daemon.price import prices
from daemon.prior import Prior, prior
from daemon.situation import Situation
from daemon.victims import leaving


@dataclass(frozen=True, slots=True)
class Rung:
    """One answer to an incident: after it has stood for `after_s`, do `verb` with `amount` on `on`.

    on : "engines" those that the scope touches; "node" the scope's node; "scope" the scope itself.
    """

    verb: Verb
    on: str
    amount: float = 1.0
    after_s: float = 0.0


def _avoid(weight: float, after_s: float = 0.0) -> Rung:
    return Rung(Verb.REROUTE, "engines", weight, after_s)


def _isolate(on: str, after_s: float = 0.0) -> Rung:
    return Rung(Verb.ISOLATE, on, 1.0, after_s)


LADDER: dict[str, tuple[Rung, ...]] = {
    # The routing weight goes first, then the drain: a request not sent cannot be lost.
    # The node must be rebooted; until that is certain, and where the pool cannot spare it, the GPU alone goes.
    "gpu_lost": (_avoid(0.0), _isolate("scope"), _isolate("node", 120)),
    "gpu_uncontained": (_avoid(0.0), _isolate("scope")),
    "gpu_firmware": (_avoid(0.0), _isolate("scope", 30)),
    "gpu_hang": (_avoid(0.0), _isolate("scope", 120)),
    "gpu_throttle": (_avoid(0.5), _isolate("scope", 300)),
    "pcie_downgrade": (_avoid(0.7), _isolate("scope", 900)),
    "nvlink_fault": (_avoid(0.5), _isolate("scope", 300)),
    "node_hang": (_avoid(0.0), _isolate("node", 60)),
    # Nothing new for who has two minutes; the drain at once, so that replicas start elsewhere before it goes.
    "node_reclaimed": (_avoid(0.0), _isolate("node")),
    "gpu_slow": (_avoid(0.5), _isolate("scope", 600)),
    "replica_slow": (_avoid(0.5), _avoid(0.25, 600)),
    "nic_downgrade": (_avoid(0.5), _isolate("node", 60)),
    "bad_cable": (_avoid(0.5), _isolate("node", 60)),
    "pfc_storm": (_avoid(0.0), _isolate("node")),
    "engine_down": (_avoid(0.0),),
    "engine_hung": (_avoid(0.0),),
    # What takes three times as long carries a third at most: little is lost without it.
    "requests_stuck": (_avoid(0.0),),
}
"""Kinds without an entry only tell people: nothing the daemon can do would help, or it could do harm."""

GROUPS = ("rack", "leaf", "cluster", "pool", "version")
"""Scopes that are a common cause: they get routing weights at most, never an isolation. No mass drain."""


@dataclass(slots=True)
class Memory:
    """What planning remembers between ticks.

    learnt : what each pool taught us. short_at : last time a pool wanted more GPUs than there were. holds : isolated
    entity -> last time something spoke against giving it back. held : pool -> what it is held to, since a growth did not come.
    priors : pool -> what a replica should hold, for those of which nothing has been measured.
    """

    learnt: dict[str, sizing.Learnt] = field(default_factory=dict)
    short_at: float = -np.inf
    holds: dict[Entity, float] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    priors: dict[str, Prior] = field(default_factory=dict)


RAMP_STEP = 0.25
RAMP_EVERY_S = 60.0
"""Weights rise by a quarter a minute: prefix caches are cold and a relapse should meet little traffic."""
DRAIN_S = 180.0
ISOLATE_SCORE = 0.6
"""Below this a claim is a guess, as against a GPU's own past alone: it may cost traffic, never the hardware."""
SEEN_S = 120.0
"""A later rung of the ladder needs a claim this fresh."""
LEARN_TURNS = 4
HOLD_S = 1800.0
"""An isolation lasts this long after its incident closed: idle hardware looks well, so time must pass for the repair."""


def propose(now: Situation, memory: Memory) -> list[Step]:
    """Every step that would bring the world to where it should be, most urgent first. Ids are left empty."""
    weights = _weights_wanted(now)
    isolations = _isolations_wanted(now)
    isolate = _isolate_steps(now, isolations, memory)
    steps = [*_reroute(now, weights), *isolate, *_release(now, isolations, memory)]
    capacity = _capacity(now, memory, _spares(now, isolate))
    if capacity.is_short:
        memory.short_at = now.at
    steps += _recall(now, capacity.room)
    steps += _scale(now, capacity)
    steps += _lend(now, memory, capacity)
    return steps


# -- answers to incidents --------------------------------------------------------------------------------


def _rungs(now: Situation, verb: Verb) -> list[tuple[Incident, Rung]]:
    return [
        (incident, rung)
        for incident in now.incidents
        for rung in LADDER.get(incident.kind, ())
        if rung.verb is verb
        and now.at - incident.opened >= rung.after_s
        # An incident outlives its last claim by its quiet time; nothing harder is begun on what has stopped showing.
        and (rung.after_s == 0 or now.at - incident.seen <= SEEN_S)
    ]


def _weights_wanted(now: Situation) -> dict[str, tuple[float, Incident]]:
    """engine -> lowest weight any incident asks for, with that incident."""
    wanted: dict[str, tuple[float, Incident]] = {}
    for incident, rung in _rungs(now, Verb.REROUTE):
        for engine in _engines_of(incident, now):
            weight = _bearable(incident, rung, now.fleet.weights.get(engine))
            if engine not in wanted or weight < wanted[engine][0]:
                wanted[engine] = (weight, incident)
    return wanted


def _engines_of(incident: Incident, now: Situation) -> tuple[str, ...]:
    """Engines that suffer from it. A common cause in a rack or leaf is shown by some of its members: the others are well."""
    if incident.scope.kind not in ("rack", "leaf"):
        return now.topology.engines_touched(incident.scope)
    touched = (e for f in incident.findings for e in now.topology.engines_touched(f.entity))
    return tuple(dict.fromkeys(touched))


MILD_SHARE = 0.8
"""A replica that still does four fifths of the work of its peers gets as much less as it is slower, and no less than that:
to halve its load would burden the others with more than it ails."""
SLOWER = ("slower_at_equal_load", "slower_by")
"""Evidence that says by which share longer a step takes."""
SAME_WEIGHT = 0.1
"""Measured paces wander: a weight that is right within a tenth stays."""


def _bearable(incident: Incident, rung: Rung, standing: float | None) -> float:
    """The weight a rung asks for, by what was measured of how much slower it is. standing : its weight now, None = 1."""
    slower = max(
        (e.value for f in incident.findings for e in f.evidence if e.name in SLOWER and e.value > 0.0),
        default=0.0,
    )
    share = 1.0 / (1.0 + slower)
    if not slower or share < MILD_SHARE or rung.amount <= 0.0:
        return rung.amount
    if standing is not None and abs(standing - share) <= SAME_WEIGHT:
        return standing
    return round(share, 2)


def _reroute(now: Situation, wanted: Mapping[str, tuple[float, Incident]]) -> list[Step]:
    steps = []
    for engine, (weight, incident) in wanted.items():
        if weight < now.fleet.weights.get(engine, 1.0) - 0.01:
            why = f"{incident.kind} at {incident.scope} ({incident.id})"
            steps.append(_weigh(now, engine, weight, why, incident))
    for engine, current in now.fleet.weights.items():
        allowed = wanted[engine][0] if engine in wanted else 1.0
        is_due = now.at - now.fleet.weighed.get(engine, 0.0) >= RAMP_EVERY_S
        if current < allowed - 0.01 and is_due and engine in now.topology.pool_of:
            # A restarted engine has no cache to protect; a healed one is trusted by degrees.
            step = 1.0 if now.fleet.causes.get(engine) == "engine_down" else RAMP_STEP
            steps.append(
                _weigh(now, engine, min(allowed, current + step), "nothing speaks against it any more", None)
            )
    return steps


def _weigh(now: Situation, engine: str, weight: float, why: str, incident: Incident | None) -> Step:
    pool = now.topology.pool_of.get(engine, "")
    return Step(
        id="",
        verb=Verb.REROUTE,
        target=Entity("engine", engine),
        amount=weight,
        reason=f"weight {weight:.2f}: {why}",
        incident=incident.id if incident else "",
        expected=f"new requests to {engine} at {weight:.0%} of its share within 15 s",
        deadline_s=60.0,
        args=(("cause", incident.kind if incident else ""), ("pool", pool)),
        pool=pool,
    )


def _isolations_wanted(now: Situation) -> dict[Entity, Incident]:
    wanted: dict[Entity, Incident] = {}
    for incident, rung in _rungs(now, Verb.ISOLATE):
        if incident.scope.kind in GROUPS or max(f.score for f in incident.findings) < ISOLATE_SCORE:
            continue
        scope = incident.scope
        if rung.on == "node" or scope.kind == "port":
            scope = Entity("node", now.topology.node_of(scope))
        if scope.name:
            wanted.setdefault(scope, incident)
    return {
        e: i
        for e, i in wanted.items()
        if e.kind == "node" or Entity("node", now.topology.node_of(e)) not in wanted
    }


def _isolate_steps(now: Situation, wanted: Mapping[Entity, Incident], memory: Memory) -> list[Step]:
    """One step an entity, with what it costs. What still serves at a lower weight goes when it can be spared."""
    steps = []
    for entity, incident in wanted.items():
        node = Entity("node", now.topology.node_of(entity))
        if entity in now.fleet.isolated or node in now.fleet.isolated:
            continue
        engines = now.topology.engines_touched(entity)
        gpus = len(now.topology.gpus_on.get(entity.name, ())) if entity.kind == "node" else 1
        pool = now.topology.pool_of.get(engines[0], "") if engines else ""
        reason = f"{incident.kind} at {incident.scope} since {now.at - incident.opened:.0f} s ({incident.id})"
        step = _place(
            now, Verb.ISOLATE, entity, reason, f"no request on {entity}, its replicas elsewhere", gpus, pool
        )
        steps.append(_priced(replace(step, incident=incident.id), incident, now, memory))
    return steps


def _priced(step: Step, incident: Incident, now: Situation, memory: Memory) -> Step:
    """The step with its price. What serves nobody in safety any more (its ladder takes all traffic away) never waits."""
    found = prices(step.target, incident.opened, now, memory.learnt)
    if not found:
        return step
    dearest = found[0]
    is_urgent = any(r.verb is Verb.REROUTE and r.amount <= 0.0 for r in LADDER.get(incident.kind, ()))
    told = replace(dearest, wait="") if is_urgent else dearest
    args = [*step.args, ("price", told.text), *([("wait", told.wait)] if told.wait else [])]
    return replace(step, args=tuple(sorted(args)), expected=f"{step.expected}; {told.text}")


def _spares(now: Situation, isolate: Sequence[Step]) -> Mapping[str, int]:
    """pool -> replicas that isolations wait for."""
    found: dict[str, int] = {}
    for step in isolate:
        if step.arg("wait") == "spare":
            for engine in now.topology.engines_touched(step.target):
                pool = now.topology.pool_of.get(engine, "")
                found[pool] = found.get(pool, 0) + 1
    return found


def _release(now: Situation, wanted: Mapping[Entity, Incident], memory: Memory) -> list[Step]:
    """Give back what is isolated by us once its incident has been closed for HOLD_S."""
    steps = []
    for entity, mark in now.fleet.isolated.items():
        still = entity in wanted or any(i.id == mark.incident for i in now.incidents)
        if still:
            memory.holds[entity] = now.at
            continue
        quiet = now.at - memory.holds.setdefault(entity, now.at)
        if quiet >= HOLD_S:
            reason = f"{mark.incident} closed, quiet for {quiet:.0f} s"
            steps.append(
                _place(now, Verb.RELEASE, entity, reason, f"{entity} takes work again", -mark.gpus, mark.pool)
            )
    return steps


def _place(
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


# -- capacity --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capacity:
    """needs : (policy, need, GPUs of a replica, replicas standing) of each pool. granted : pool -> replicas.
    shut : node -> why no replica should start there."""

    needs: tuple[tuple[PoolPolicy, sizing.Need, int, int], ...]
    granted: Mapping[str, int]
    is_short: bool
    room: leases.Room
    shut: Mapping[str, str] = field(default_factory=dict)


def _capacity(now: Situation, memory: Memory, spares: Mapping[str, int]) -> Capacity:
    """spares : pool -> replicas on top of its need, for those that are to be taken out once these are ready."""
    engines, pools = now.frames["engine"], now.frames["pool"]
    of = _pools_of(engines.facts.get("pool", ("",) * len(engines.entities)))
    needs, rows = [], pools.values.tolist()
    for index, name in enumerate(pools.entities):
        policy = now.policy.pool(name) or PoolPolicy(name)
        learnt = memory.learnt.get(name) or memory.learnt.setdefault(name, sizing.Learnt())
        if sizing.is_due(learnt, now.at):
            is_first = math.isnan(learnt.tried_at)
            sizing.learn(learnt, engines, np.asarray(of == name), policy)
            memory.priors.pop(name, None)
            if math.isnan(learnt.capacity) and (guess := prior(now.frames, now.topology, name)) is not None:
                memory.priors[name] = guess
            if is_first:
                # Many pools take turns within the minute, so that no tick has to learn of them all.
                learnt.tried_at -= index % LEARN_TURNS * sizing.LEARN_EVERY_S / LEARN_TURNS
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
        if name in spares:
            found = sizing.with_spares(found, spares[name], policy)
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
    out = now.fleet.isolated and {n for n in now.topology.gpus_on if now.fleet.is_isolated(n)}
    usable = sum(len(g) for n, g in now.topology.gpus_on.items() if n not in out)
    lent = sum(lease.gpus for lease in now.fleet.leases.values())
    shut = power.closed(now.frames, now.topology, now.policy)
    # What is free in a rack that cannot feed it is no room; what serves there goes on.
    usable -= sum(
        g not in now.topology.engine_of for n in shut if n not in out for g in now.topology.gpus_on[n]
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
    room = leases.Room(usable, max(0.0, usable - lent - held), short)
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


def _scale(now: Situation, capacity: Capacity) -> list[Step]:
    steps = []
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
        if amount < standing:
            blamed = [i.scope for i in now.incidents]
            gone = leaving(
                policy.name, standing - amount, now.topology, now.fleet, now.frames["engine"], blamed, room
            )
            args.insert(0, ("engine", ",".join(gone)))
        elif capacity.shut:
            args.insert(0, ("avoid", ",".join(sorted(capacity.shut))))
        steps.append(
            Step(
                id="",
                verb=Verb.SCALE,
                target=Entity("pool", policy.name),
                amount=float(amount),
                reason=f"{standing} -> {amount} replicas: {found.why}{_elsewhere(capacity, amount > standing)}"
                + _given_way(policy, found, amount),
                expected=f"{amount} replicas ready within {policy.cold_start_s:.0f} s",
                deadline_s=max(120.0, 2 * policy.cold_start_s),
                args=tuple(args),
                gpus=float((standing - amount) * size),
                pool=policy.name,
            )
        )
    return steps


def _given_way(policy: PoolPolicy, found: sizing.Need, amount: int) -> str:
    """Why a pool gets fewer replicas than it wants, where that is by its kind."""
    if found.wanted is None or amount >= found.wanted or policy.kind is PoolKind.SERVING:
        return ""
    return f"; it wants {found.wanted}, {policy.kind} gives way to a pool of a higher kind"


def _elsewhere(capacity: Capacity, is_growing: bool) -> str:
    reasons = sorted(set(capacity.shut.values()))
    return f"; not in {'; nor in '.join(reasons)}" if is_growing and reasons else ""


def _recall(now: Situation, room: leases.Room) -> list[Step]:
    steps = []
    for node, why in leases.due(now.at, now.fleet, room, jobs.look(now.frames)).items():
        lease = now.fleet.leases[node]
        step = _place(now, Verb.RECALL, Entity("node", node), why, f"{node} serves again", -lease.gpus, "")
        steps.append(step)
    return steps


def _lend(now: Situation, memory: Memory, capacity: Capacity) -> list[Step]:
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
        for loan in leases.loans(now.at, now.topology, now.fleet, needed, step_s, now.policy, idle)
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
