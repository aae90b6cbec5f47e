"""Whether a proposed step may happen: budgets, blast radius, cool-downs, maintenance, pause, stale data, modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from daemon.fleet import Fleet
from daemon.model import Entity, Frames, Reason, Step, Verb, Verdict
from daemon.policy import Mode, Policy
from daemon.topology import Topology


@dataclass(frozen=True, slots=True)
class Guarded:
    """All that the guard looks at. tentative : steps allowed earlier in this tick, which already count.

    in_flight : steps whose outcome is not known yet; they count as done for budgets. can_journal : False while
    nothing can be written down. approved, rejected : ids an operator decided on. paused_until : -inf = not paused.
    """

    at: float
    frames: Frames
    topology: Topology
    fleet: Fleet
    policy: Policy
    in_flight: tuple[Step, ...] = ()
    tentative: list[Step] = field(default_factory=list)
    failed_at: dict[tuple[Verb, Entity], float] = field(default_factory=dict)
    approved: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    paused_until: float = -np.inf
    can_journal: bool = True

    def pending(self) -> list[Step]:
        return [*self.in_flight, *self.tentative]


Check = Callable[[Step, Guarded], tuple[Reason, str] | None]

TAKES = (Verb.ISOLATE, Verb.LEND)
GIVES_BACK = (Verb.RELEASE, Verb.RECALL)


def judge(step: Step, now: Guarded) -> Verdict:
    """The first check that refuses gives the reason; the mode speaks last, so that a dry run shows the real answer."""
    for check in CHECKS:
        refusal = check(step, now)
        if refusal is not None:
            return Verdict(step, False, *refusal)
    allowed = Reason.APPROVED if step.id in now.approved else Reason.ALLOWED
    return Verdict(step, True, allowed)


def _busy(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    for other in now.pending():
        if other.target == step.target and other.verb is not Verb.NOTIFY and step.verb is not Verb.NOTIFY:
            return Reason.IN_FLIGHT, f"{other.verb} {other.id} on {other.target} is not finished"
    return None


def _rejected(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    return (Reason.REJECTED, "an operator said no") if step.id in now.rejected else None


def _journal(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    if now.can_journal or step.verb is Verb.NOTIFY:
        return None
    return Reason.NO_JOURNAL, "nothing is changed while it cannot be written down"


def _paused(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    if now.at < now.paused_until and step.verb is not Verb.NOTIFY:
        return Reason.PAUSED, "an operator paused all actions"
    return None


def _maintenance(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    if step.verb in (*GIVES_BACK, Verb.NOTIFY):
        return None
    window = now.policy.in_maintenance(now.at, now.topology.scopes(step.target))
    return (Reason.MAINTENANCE, window.reason or "maintenance window") if window else None


def _known_pool(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    if step.verb is Verb.SCALE and now.policy.pool(step.pool) is None:
        return Reason.UNKNOWN_POOL, f"pool {step.pool} is not in the configuration"
    return None


def _stale(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    """A collapse of telemetry is no ground to take anything away. Growing and giving back stay allowed."""
    takes = step.verb in TAKES
    shrinks = step.verb is Verb.SCALE and float(step.arg("from") or 0) > step.amount
    lowers = step.verb in (Verb.REROUTE, Verb.LIMIT) and step.amount < 1.0
    if not (takes or shrinks or lowers):
        return None
    silent = now.frames["target"].column("silent_s")
    lost = int((silent > now.policy.stale_veto_s).sum())
    if silent.size and lost > 0.3 * silent.size and lost > _expected_silence(now):
        return (
            Reason.STALE_DATA,
            f"{lost} of {silent.size} targets silent for more than {now.policy.stale_veto_s:.0f} s",
        )
    return None


def _expected_silence(now: Guarded) -> int:
    """Targets on nodes that we took out ourselves: their silence is no surprise."""
    return sum(1 for node in now.topology.node_of_target.values() if node and now.fleet.is_isolated(node))


def _cool_down(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    last = now.failed_at.get((step.verb, step.target))
    if last is not None and now.at - last < now.policy.budgets.cool_down_s:
        return Reason.COOL_DOWN, f"the last try failed {now.at - last:.0f} s ago"
    return None


def _rate(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    budgets = now.policy.budgets
    limit = {Verb.ISOLATE: budgets.isolations_per_hour_max, Verb.SCALE: budgets.scale_steps_per_hour_max}.get(
        step.verb
    )
    if limit is None:
        return None
    count = now.fleet.recent(step.verb, now.at) + sum(1 for s in now.pending() if s.verb is step.verb)
    if count >= limit:
        return Reason.BUDGET_RATE, f"{count} of {limit} {step.verb} steps in the last hour"
    return None


def _isolation_budget(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    """Absolute and relative limits on nodes out of service, for the cluster, the rack and the pool."""
    if step.verb is not Verb.ISOLATE:
        return None
    budgets, topology = now.policy.budgets, now.topology
    ours = [e for e in now.fleet.isolated] + [s.target for s in now.pending() if s.verb is Verb.ISOLATE]
    node = topology.node_of(step.target)
    nodes = {topology.node_of(e) for e in ours} | {node}
    limit = max(1, min(budgets.isolated_nodes_max, int(budgets.isolated_share_max * len(topology.nodes))))
    if len(nodes) > limit:
        return (
            Reason.BUDGET_CLUSTER,
            f"{len(nodes) - 1} nodes are out, {limit} of {len(topology.nodes)} may be",
        )
    rack = topology.place.get(node, {}).get("rack", "")
    in_rack = {n for n in nodes if rack and topology.place.get(n, {}).get("rack") == rack}
    if len(in_rack) > budgets.isolated_domain_max:
        return Reason.BUDGET_DOMAIN, f"{len(in_rack) - 1} nodes of rack {rack} are out already"
    return _pool_budget(step, now, ours)


def _pool_budget(step: Step, now: Guarded, ours: list[Entity]) -> tuple[Reason, str] | None:
    topology = now.topology
    touched = set(topology.engines_touched(step.target))
    for pool in {topology.pool_of.get(e, "") for e in touched} - {""}:
        members = set(topology.engines_in(pool))
        out = {e for entity in ours for e in topology.engines_touched(entity)} & members
        limit = max(1.0, now.policy.budgets.isolated_pool_share_max * len(members))
        # A replica that is alone on the node counts as one, however many GPUs it has.
        if len(out | (touched & members)) > max(limit, len(touched & members) if not out else 0.0):
            return Reason.BUDGET_POOL, f"{len(out)} of {len(members)} replicas of {pool} are out already"
    return None


def _last_replicas(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    """A pool keeps somebody who serves. What serves nobody any more may always be taken out."""
    if step.verb is Verb.ISOLATE:
        touched = set(now.topology.engines_touched(step.target))
    elif step.verb is Verb.REROUTE and step.amount <= 0.0:
        touched = {step.target.name}
    else:
        return None
    engines = now.frames["engine"]
    alive = {
        e
        for e, running in zip(engines.entities, engines.column("running"), strict=True)
        if running == running
    }
    out = {n for n, w in now.fleet.weights.items() if w <= 0.0}
    out |= {s.target.name for s in now.pending() if s.verb is Verb.REROUTE and s.amount <= 0.0}
    for pool in sorted({now.topology.pool_of.get(e, "") for e in touched & alive} - {""}):
        serving = (set(now.topology.engines_in(pool)) & alive) - out
        if touched & serving and not serving - touched:
            return Reason.LAST_REPLICAS, f"nobody else serves {pool}"
    return None


WAITS = {
    "spare": Reason.WAITS_FOR_SPARE,
    "valley": Reason.WAITS_FOR_VALLEY,
    "person": Reason.TOO_DEAR,
}
"""What planning would rather wait for, see `daemon.price`; an operator's word stands over the price."""


def _price(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    wait = step.arg("wait")
    return (WAITS[wait], step.arg("price")) if wait and step.id not in now.approved else None


def _lend_budget(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    if step.verb is not Verb.LEND:
        return None
    lent = sum(lease.gpus for lease in now.fleet.leases.values())
    lent += sum(s.gpus for s in now.pending() if s.verb is Verb.LEND)
    limit = now.policy.budgets.lent_share_max * now.topology.gpu_count
    if lent + step.gpus > limit:
        return Reason.BUDGET_CLUSTER, f"{lent:.0f} GPUs are lent, {limit:.0f} may be"
    return None


def _shift(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    """Moving traffic too fast loses prefix caches. Taking a sick replica out (weight 0) is not held back."""
    if step.verb is not Verb.REROUTE or step.amount <= 0.0:
        return None
    members = now.topology.engines_in(step.pool)
    recent = [
        e for e in members if now.at - now.fleet.weighed.get(e, -np.inf) < 60.0 and e != step.target.name
    ]
    moving = [s for s in now.pending() if s.verb is Verb.REROUTE and s.pool == step.pool]
    limit = max(1.0, now.policy.budgets.reroute_share_per_min_max * len(members))
    if len(recent) + len(moving) + 1 > limit:
        return (
            Reason.BUDGET_RATE,
            f"{len(recent) + len(moving)} of {len(members)} replicas of {step.pool} moved within a minute",
        )
    return None


def _backend(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    """Said last but the mode, and in observe mode not at all: there nothing would be carried out anyway."""
    mode = now.policy.mode_of(step.verb, step.pool)
    if now.policy.can(step.verb, step.pool) or mode in (Mode.OBSERVE, Mode.ADVISE):
        return None
    return Reason.NO_BACKEND, f"no backend for {step.verb}; name one under actions"


def _mode(step: Step, now: Guarded) -> tuple[Reason, str] | None:
    if step.verb is Verb.NOTIFY:
        return None
    mode = now.policy.mode_of(step.verb, step.pool)
    if mode is Mode.AUTO or (mode is Mode.APPROVE and step.id in now.approved):
        return None
    reason = {
        Mode.OBSERVE: Reason.MODE_OBSERVE,
        Mode.ADVISE: Reason.MODE_ADVISE,
        Mode.APPROVE: Reason.AWAITS_APPROVAL,
    }
    return reason[mode], f"{step.verb} is in mode {mode}"


CHECKS: tuple[Check, ...] = (
    _busy,
    _rejected,
    _journal,
    _paused,
    _maintenance,
    _known_pool,
    _stale,
    _cool_down,
    _isolation_budget,
    _last_replicas,
    _price,
    _lend_budget,
    _rate,
    _shift,
    _backend,
    _mode,
)
