"""What is left when nothing else helps: refusing requests by class, by rate, or all at once; taking a version back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from daemon.fleet import Fleet
from daemon.model import Entity, Frame, Frames, Incident, Step, Verb
from daemon.policy import Policy, PoolPolicy

AFTER_S = 180.0
"""A queue has grown for so long before anybody is refused: scaling gets its chance first."""
STARTING_S = 600.0
"""While replicas start a queue may last so long."""
FRESH_S = 60.0
LEVEL_S = 60.0
"""Between one class refused and the next: what the first one gave must show."""
HOLD_S = 300.0
"""Nothing queues for so long before one class is let in again."""
DEAD_S = 30.0
ADMIT_MIN = 0.3
ADMIT_STEP = 0.25
TRIAL = 0.1
"""After a break a tenth is let through first."""


@dataclass(slots=True)
class Resort:
    """What is remembered. late_at, dead_at : pool -> when it last queued; since when its balancer reaches no replica.

    versions : pool -> version -> when it was first seen.
    """

    late_at: dict[str, float] = field(default_factory=dict)
    dead_at: dict[str, float] = field(default_factory=dict)
    versions: dict[str, dict[str, float]] = field(default_factory=dict)


def propose(
    frames: Frames, incidents: Iterable[Incident], fleet: Fleet, policy: Policy, memory: Resort
) -> list[Step]:
    """Limits to set or to lift, versions to take back; nothing for a pool that is not configured."""
    at, standing = frames.at, {(i.kind, i.scope.name): i for i in incidents}
    steps: list[Step] = []
    dead = _dead(frames["engine"], frames["pool"])
    for pool in policy.pools:
        queue = standing.get(("queue_growth", pool.name))
        if queue is not None and at - queue.seen <= FRESH_S:
            memory.late_at[pool.name] = at
        if pool.name not in dead:
            memory.dead_at.pop(pool.name, None)
        elif at - memory.dead_at.setdefault(pool.name, at) >= DEAD_S:
            steps += _break(pool, fleet)
            continue
        step = _next(frames, queue, pool, fleet, memory)
        steps += [step] if step is not None else []
    _note_versions(frames["engine"], memory, at)
    for (kind, name), incident in standing.items():
        if kind == "deploy_regression":
            steps += _rollback(name, incident, fleet, memory, at)
    return steps


# -- refusing ----------------------------------------------------------------------------------------------


def _dead(engine: Frame, pool: Frame) -> frozenset[str]:
    """Pools of which the balancer itself says that no replica answers: silence of exporters is no such word."""
    counted = pool.columns(("members", "members_up"))
    empty = frozenset(
        name
        for name, (all_, up) in zip(pool.entities, counted.tolist(), strict=True)
        if all_ > 0 and up == 0.0
    )
    up = engine.column("lb_up")
    if not (up == 0.0).any():
        return empty
    pools = engine.facts.get("pool", ("",) * len(engine.entities))
    alive = {pool for pool, value in zip(pools, up.tolist(), strict=True) if value != 0.0}
    return (frozenset(pools) - alive - {""}) | empty


def _break(pool: PoolPolicy, fleet: Fleet) -> list[Step]:
    if fleet.limits.get(pool.name, 1.0) <= 0.0:
        return []
    why = "no replica answers its balancer: requests are refused at once rather than after a time-out"
    return [_limit(Entity("pool", pool.name), pool.name, 0.0, "break", why, "")]


def _next(
    frames: Frames, queue: Incident | None, pool: PoolPolicy, fleet: Fleet, memory: Resort
) -> Step | None:
    """One step down or up the stairs: classes in their order, then a share of all; back the other way round.

    A class of which the gateway says that nothing comes is left alone: refusing nobody helps nobody.
    """
    at = frames.at
    places = [Entity("class", f"{pool.name}/{c}") for c in pool.classes]
    changed = max(fleet.limited_at.get(n, -math.inf) for n in (pool.name, *(p.name for p in places)))
    if queue is not None and memory.late_at.get(pool.name) == at:
        waited_s = AFTER_S
        if at - fleet.scaled.get(pool.name, -math.inf) < pool.cold_start_s:
            waited_s = STARTING_S
        if at - queue.opened < waited_s or at - changed < LEVEL_S:
            return None
        why = f"requests of {pool.name} have queued for {at - queue.opened:.0f} s and more replicas do not help ({queue.id})"
        for place in places:
            rate = frames["class"].value(place.name, "arrivals_per_s")
            if fleet.limits.get(place.name, 1.0) > 0.0 and rate != 0.0:
                told = f"{rate:.2g} requests/s of it come; {why}" if rate == rate else why
                return _limit(place, pool.name, 0.0, "shed", told, queue.id)
        share = _fits(frames["pool"], pool.name, fleet.limits.get(pool.name, 1.0))
        if share < fleet.limits.get(pool.name, 1.0) - 0.04:
            return _limit(Entity("pool", pool.name), pool.name, share, "rate", why, queue.id)
        return None
    return _back(pool, places, fleet, memory, at, changed)


def _back(
    pool: PoolPolicy, places: list[Entity], fleet: Fleet, memory: Resort, at: float, changed: float
) -> Step | None:
    admitted = fleet.limits.get(pool.name, 1.0)
    calm_s = min(at - memory.late_at.get(pool.name, -math.inf), at - changed)
    why = f"nothing of {pool.name} has queued for {min(calm_s, 86400.0):.0f} s"
    if admitted < 1.0 and calm_s >= (LEVEL_S if admitted < ADMIT_MIN else HOLD_S):
        share = TRIAL if admitted < TRIAL else min(1.0, admitted + ADMIT_STEP)
        return _limit(Entity("pool", pool.name), pool.name, share, "lift", why, "")
    if admitted < 1.0 or calm_s < HOLD_S:
        return None
    for place in reversed(places):
        if fleet.limits.get(place.name, 1.0) < 1.0:
            return _limit(place, pool.name, 1.0, "lift", why, "")
    return None


def _fits(frame: Frame, pool: str, admitted: float) -> float:
    """Share of the requests that runs instead of waiting, in twentieths."""
    running, waiting = frame.value(pool, "running"), frame.value(pool, "waiting")
    if not running + waiting > 0:
        return admitted
    return max(ADMIT_MIN, math.floor(20.0 * admitted * running / (running + waiting)) / 20.0)


def _limit(target: Entity, pool: str, share: float, how: str, why: str, incident: str) -> Step:
    return Step(
        id="",
        verb=Verb.LIMIT,
        target=target,
        amount=share,
        reason=f"admit {share:.0%} of {target}: {why}",
        incident=incident,
        expected=f"{1.0 - share:.0%} of {target} is answered 429 at the gateway within 15 s" if share < 1.0 else f"all of {target} is let in again",
        deadline_s=60.0,
        args=(("how", how), ("pool", pool)),
        pool=pool,
    )  # fmt: skip


# -- versions ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _present(pools: tuple[str, ...], versions: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """The facts are the same tuples for hours."""
    return frozenset(zip(pools, versions, strict=True))


def _note_versions(engine: Frame, memory: Resort, at: float) -> None:
    blank = ("",) * len(engine.entities)
    for pool, version in _present(engine.facts.get("pool", blank), engine.facts.get("version", blank)):
        if pool and version:
            memory.versions.setdefault(pool, {}).setdefault(version, at)


def _rollback(pool: str, incident: Incident, fleet: Fleet, memory: Resort, at: float) -> list[Step]:
    """Back to the version before the newest; once for each version, and only while the claim is fresh."""
    known = sorted(memory.versions.get(pool, {}), key=lambda v: memory.versions[pool][v])
    if len(known) < 2 or at - incident.seen > FRESH_S:
        return []
    bad, before = known[-1], known[-2]
    if fleet.rolled_back.get(pool) == bad:
        return []
    return [
        Step(
            id="",
            verb=Verb.ROLLBACK,
            target=Entity("pool", pool),
            amount=1.0,
            reason=f"version {bad} of {pool} is worse than {before} at equal load ({incident.id})",
            incident=incident.id,
            expected=f"{pool} wants version {before} again",
            deadline_s=120.0,
            args=(("from", bad), ("pool", pool), ("version", before)),
            pool=pool,
        )
    ]


def limited(fleet: Fleet) -> dict[str, float]:
    """pool or pool/class -> share that is let in, of those that are not let in whole."""
    return {name: share for name, share in sorted(fleet.limits.items()) if share < 1.0}
