"""Tidal leases: which idle nodes may go to offline work, until when, and when they must come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from daemon.fleet import Fleet
from daemon.jobs import Jobs
from daemon.model import Array, Frames
from daemon.policy import Policy
from daemon.topology import Topology

LAST_CALL_S = 120.0
"""Offline work is told so long before the lease ends by itself; the recall lead is already taken off `until`."""

RECALLS_KNOWN = 10
"""From so many recalls on, their own 95 % level is the lead; before, the operator's figure is."""
LEAD_MARGIN_S = 60.0
RECALL_S = 900.0
"""A recall that was begun so long ago and is not seen done no longer holds its place."""
SPARE_SHARE = 0.22
"""Of the GPUs that pools hold so many more stay idle for what no forecast has, in whole nodes and at least one: a burst is a
share of what is served, and at night little is. In 21 days of bursts the pools asked for no more than that before a recalled
node was back. Source: bench/README.md, Lending."""
FINER = 4
KEPT_LEAST = 0.8
"""Share of what stays idle at which leases are recalled to fill it up, before anybody waits."""


@dataclass(frozen=True, slots=True)
class Room:
    """GPUs now. held : pools have them, or are to get them. free : nobody holds them, those on their way back with them.
    short : what pools want and do not get."""

    held: float
    free: float
    short: float


@dataclass(frozen=True, slots=True)
class Loan:
    """A node that can be lent. until : end of the lease, before the demand needs it back."""

    node: str
    gpus: int
    until: float
    why: str


def loans(
    at: float,
    topology: Topology,
    fleet: Fleet,
    needed: Array,
    step_s: float,
    policy: Policy,
    is_idle: Mapping[str, bool],
    held: float,
) -> list[Loan]:
    """Nodes to lend now, longest-idle-looking first by name.

    is_idle : node -> True when nothing runs there and its telemetry is fresh; absent or False = do not touch. held : GPUs
    that pools hold. The reserve stays idle, on top of what the forecast needs.
    """
    if not needed.size or np.isnan(needed).any():
        return []
    whole = {n: len(g) for n, g in topology.gpus_on.items() if not fleet.is_isolated(n)}
    usable = sum(fleet.left_of(n, g) for n, g in topology.gpus_on.items())
    lent = sum(lease.gpus for lease in fleet.leases.values())
    budget = policy.budgets.lent_share_max * usable - lent
    free = usable - lent
    found: list[Loan] = []
    idle = [n for n in sorted(whole) if is_idle.get(n) and n not in fleet.leases]
    usual = whole[idle[0]] if idle else 1
    spare = round(reserve(held, usual) / max(usual, 1))
    lead_s = recall_lead_s(fleet, policy)
    for node in idle[: max(0, len(idle) - spare)]:
        size = whole[node]
        if size > budget:
            continue
        until = until_needed(needed, step_s, at, free - size, policy, lead_s)
        if until - at < policy.lease_min_s:
            break
        found.append(Loan(node, size, until, f"{size} GPUs idle, forecast leaves them free until then"))
        free -= size
        budget -= size
    return found


def reserve(held: float, size: float) -> float:
    """GPUs that stay idle beside those that pools hold, in whole nodes of `size`: a sudden need or a failure takes them first."""
    return max(1, math.ceil(SPARE_SHARE * held / max(size, 1.0))) * size


def until_needed(
    needed: Array, step_s: float, at: float, left: float, policy: Policy, lead_s: float
) -> float:
    """The latest end of a lease that leaves `left` GPUs: before the first step that needs more, minus the recall lead."""
    short = np.flatnonzero(needed > left)
    start = (
        at // step_s * step_s
    )  # the forecast's steps are full hours or parts of them: the first is under way
    end = start + (float(short[0]) * step_s if short.size else needed.size * step_s)
    return min(end - lead_s, at + policy.lease_max_s)


def held_bytes(frames: Frames, topology: Topology, node: str) -> float:
    """GPU memory in use on the GPUs of a node that no engine has, the most of any; NaN when none is measured."""
    gpu = frames["gpu"]
    free = [g for g in topology.gpus_on.get(node, ()) if g not in topology.engine_of]
    used = np.array([gpu.value(g, "hbm_used_bytes") for g in free])
    return float(np.nanmax(used)) if np.isfinite(used).any() else math.nan


def recall_lead_s(fleet: Fleet, policy: Policy) -> float:
    """How long before the need a recall begins: the 95 % level of those measured and a minute, else as configured."""
    if len(fleet.recall_s) < RECALLS_KNOWN:
        return policy.recall_lead_s
    return float(np.quantile(fleet.recall_s, 0.95)) + LEAD_MARGIN_S


def finer(needed: Array, step_s: float, at: float) -> tuple[Array, float]:
    """Means of full steps as a path between their middles, in parts of a step from the one that is under way.

    needed : (step,) from the step of `at` on. Returns (part,) from the part of `at` on and the length of a part.
    """
    part_s = step_s / FINER
    first = int(at % step_s // part_s)
    middles = (np.arange(needed.size) + 0.5) * step_s
    parts = (np.arange(first, needed.size * FINER) + 0.5) * part_s
    # A mean is no maximum: between two hours the path goes straight, at a peak it stays at the mean of the hour.
    return np.asarray(np.interp(parts, middles, needed)), part_s


NOTHING_LISTED = Jobs(math.nan)


def due(at: float, fleet: Fleet, room: Room, jobs: Jobs = NOTHING_LISTED) -> dict[str, str]:
    """Leases to recall now: node -> why. What ends, and as many more as are wanted, those first whose jobs lose least.

    What is being recalled is still a lease until it is seen free, so that nothing is asked for twice; and it stays chosen,
    whatever other jobs save meanwhile.
    """
    leases = fleet.leases
    kept = reserve(room.held, min(leases.items())[1].gpus) if leases else 0.0
    is_low = room.free < KEPT_LEAST * kept
    lacking = room.short + kept - room.free if room.short > 0 or is_low else 0.0
    why = (
        "a pool needs more GPUs than are free"
        if room.short > 0
        else f"only {room.free:.0f} GPUs are left idle"
    )
    reasons = {}
    for node, lease in sorted(leases.items(), key=lambda item: (item[1].until, item[0])):
        if at >= lease.until:
            reasons[node] = "the lease is over; what is left of it is cleared away"
        elif at >= lease.until - LAST_CALL_S:
            reasons[node] = f"the lease ends in {lease.until - at:.0f} s"
        else:
            continue
        lacking -= lease.gpus
    if lacking <= 0:
        return reasons
    rest = [node for node in leases if node not in reasons]
    begun = [node for node in rest if at - leases[node].recalled <= RECALL_S]
    ends = {node: leases[node].until for node in rest}
    chosen = [(node, jobs.loss(node)) for node in begun]
    for node, loss in [*chosen, *jobs.by_loss([n for n in rest if n not in begun], ends)]:
        if lacking <= 0:
            break
        told = loss.told(at)
        reasons[node] = f"{why}; {told}" if told else why
        lacking -= leases[node].gpus
    return reasons
