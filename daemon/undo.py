"""Takes back what the daemon did when an operator asks for it, then keeps its hands off for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from daemon.fleet import Fleet
from daemon.model import Entity, Step, Verb
from daemon.topology import Topology

HANDS_OFF_S = 3600.0
"""What an operator has taken back is not proposed again for this long, whatever the evidence says."""

INVERSE: Mapping[Verb, Verb] = {
    Verb.ISOLATE: Verb.RELEASE,
    Verb.REROUTE: Verb.REROUTE,
    Verb.LEND: Verb.RECALL,
    Verb.SCALE: Verb.SCALE,
    Verb.LIMIT: Verb.LIMIT,
}
"""Verb that can be taken back -> verb that does it."""


@dataclass(frozen=True, slots=True)
class Undone:
    """An operator's order to take something back. amount : replicas to return to, for a scaling. by : who said so."""

    verb: Verb
    target: Entity
    amount: float
    by: str
    until: float


def order(argument: str, by: str, at: float) -> Undone:
    """The order in a command's argument, "isolate node gpu-07" or "scale pool chat 4". Raises ValueError."""
    verb, kind, name, *rest = argument.split(" ")
    if Verb(verb) not in INVERSE:
        raise ValueError(f"{verb} cannot be taken back; {', '.join(INVERSE)} can")
    return Undone(Verb(verb), Entity(kind, name), float(rest[0]) if rest else 1.0, by, at + HANDS_OFF_S)


def argument_of(step: Step) -> str:
    """The command argument that takes a step back, see `order`."""
    amount = f" {step.arg('from')}" if step.verb is Verb.SCALE else ""
    return f"{step.verb} {step.target.kind} {step.target.name}{amount}"


def is_in_effect(step: Step, fleet: Fleet) -> bool:
    """Whether what a step did still stands, so that there is something to take back."""
    name = step.target.name
    if step.verb is Verb.ISOLATE:
        return step.target in fleet.isolated
    if step.verb is Verb.REROUTE:
        return step.amount < 1.0 and fleet.weights.get(name, 1.0) < 1.0
    if step.verb is Verb.LEND:
        return name in fleet.leases
    if step.verb is Verb.LIMIT:
        return step.amount < 1.0 and fleet.limits.get(name, 1.0) < 1.0
    return step.verb is Verb.SCALE and step.arg("from") != "" and fleet.replicas.get(name) == step.amount


def applied(
    proposed: Sequence[Step],
    undone: Mapping[str, Undone],
    at: float,
    fleet: Fleet,
    topology: Topology,
    owner: str,
) -> list[Step]:
    """The proposals without those an operator has taken back, and before them the steps that take back.

    undone : key -> order. owner : the mark that our isolations carry.
    """
    orders = [u for u in undone.values() if at < u.until]
    if not orders:
        return list(proposed)
    barred = {(v, u.target) for u in orders for v in (u.verb, INVERSE[u.verb])}
    kept = [s for s in proposed if (s.verb, s.target) not in barred]
    back = [step for u in orders if (step := _back(u, fleet, topology, owner)) is not None]
    return [*back, *kept]


def key(undone: Undone) -> str:
    return f"{undone.verb}\t{undone.target.kind}\t{undone.target.name}"


def _back(undone: Undone, fleet: Fleet, topology: Topology, owner: str) -> Step | None:
    """The step that takes it back, None when nothing of it is left."""
    target, name = undone.target, undone.target.name
    step = Step(
        id="",
        verb=INVERSE[undone.verb],
        target=target,
        amount=1.0,
        reason=f"{undone.by} took {undone.verb} {target} back",
        expected=f"{target} as it was before",
        deadline_s=300.0,
        args=(("node", topology.node_of(target)), ("ordered_by", undone.by), ("owner", owner)),
    )
    if undone.verb is Verb.ISOLATE and target in fleet.isolated:
        mark = fleet.isolated[target]
        return _of_pool(replace(step, gpus=-mark.gpus), mark.pool)
    if undone.verb is Verb.REROUTE and fleet.weights.get(name, 1.0) < 1.0:
        return _of_pool(step, topology.pool_of.get(name, ""))
    if undone.verb is Verb.LIMIT and fleet.limits.get(name, 1.0) < 1.0:
        return _of_pool(step, name.partition("/")[0])
    if undone.verb is Verb.LEND and name in fleet.leases:
        return _of_pool(replace(step, gpus=-fleet.leases[name].gpus), "")
    if undone.verb is Verb.SCALE and fleet.replicas.get(name, undone.amount) != undone.amount:
        now = fleet.replicas[name]
        size = topology.gpus_per_replica(name)
        scaled = replace(step, amount=undone.amount, gpus=float((now - undone.amount) * size))
        return _of_pool(replace(scaled, args=(*step.args, ("from", f"{now:g}"))), name)
    return None


def _of_pool(step: Step, pool: str) -> Step:
    return replace(step, pool=pool, args=(*step.args, ("pool", pool)))
