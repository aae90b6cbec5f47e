"""How well somebody dealt with what the simulated cluster went through, judged by the truth alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from daemon.model import Entity, Incident, Outcome, Result, Verb
from simulator.faults import NEGATIVES
from simulator.trouble import Trouble
from simulator.world import World

_LATE_S = 900.0
"""An incident this long after a fault's end still belongs to it."""
_QUIET_S = 60.0
_REMEDIES = (Verb.ISOLATE, Verb.REROUTE, Verb.SCALE)


def score(world: World, incidents: Sequence[Incident], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Compare claims and deeds with what was injected.

    Returns faults: list of {kind, entity, at_s, found_entity, delay_s, action, recovered_s}, times in seconds after
    epoch or onset, None = never; false_isolations; false_findings; requests_total, requests_lost, requests_cut_off (of these, by replicas that were well and made to go), gpu_hours_lent,
    gpu_hours_lost_offline.
    A burst counts as found when its pool grew for it, if nobody felt it before.
    recovered_s : from onset to the last harm, 0 = never did any, None = still harming.
    """
    troubles = [t for t in world.troubles if t.begun]
    ledger = world.ledger()
    return {
        "faults": [_fault(world, t, troubles, incidents, outcomes) for t in troubles],
        "false_isolations": sum(_is_false_isolation(world, o, troubles) for o in outcomes),
        "false_findings": sum(not any(_explains(t, i, world) for t in troubles) for i in incidents),
        "requests_total": ledger["requests_total"],
        "requests_lost": ledger["requests_lost"],
        "requests_cut_off": ledger["requests_cut_off"],
        "gpu_hours_lent": ledger["gpu_hours_lent"],
        "gpu_hours_lost_offline": ledger["gpu_hours_lost_offline"],
    }


def _fault(
    world: World,
    trouble: Trouble,
    all_troubles: Sequence[Trouble],
    incidents: Sequence[Incident],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    fault = trouble.fault
    found = _found(world, trouble, all_troubles, incidents)
    told = (found.opened, str(found.scope)) if found else (math.inf, None)
    at, entity = min(told, _grown(world, trouble, outcomes), key=lambda t: t[0])
    return {
        "kind": fault.kind,
        "entity": str(fault.entity),
        "at_s": fault.at - world.epoch,
        "found_entity": entity,
        "delay_s": at - fault.at if entity else None,
        "action": _remedy(trouble, outcomes),
        "recovered_s": _recovered_s(world, trouble),
    }


def _ends(trouble: Trouble, world: World) -> float:
    return trouble.ended if trouble.is_over else world.at


def _concerns(trouble: Trouble, incident: Incident, world: World) -> bool:
    return trouble.fault.at <= incident.opened <= _ends(trouble, world) + _LATE_S


def _names(trouble: Trouble, incident: Incident) -> bool:
    if incident.scope in trouble.suspects:
        return True
    # an incident about a whole group names the culprit when a finding of it does
    return incident.scope.kind in ("rack", "leaf", "cluster", "pool") and any(
        finding.entity in trouble.suspects for finding in incident.findings
    )


def _explains(trouble: Trouble, incident: Incident, world: World) -> bool:
    return _concerns(trouble, incident, world) and _is_related(trouble, incident.scope, world)


def _is_related(trouble: Trouble, scope: Entity, world: World) -> bool:
    """Whether the scope is the culprit or may well suffer from it: then the incident is not out of the blue."""
    if scope in trouble.suspects or scope.kind in ("cluster",):
        return True
    if scope.kind == "pool":
        return trouble.fault.kind not in ("exporter-outage", "counter-reset", "absent-field", "clock-skew")
    places = {entity.name.split("/")[0].split(":")[0] for entity in trouble.suspects}
    here = scope.name.split("/")[0].split(":")[0]
    if scope.kind in ("rack", "leaf"):
        groups = world.wiring.racks if scope.kind == "rack" else world.wiring.leaves
        return any(groups[world.node_index[p]] == scope.name for p in places if p in world.node_index)
    return here in places


def _found(
    world: World, trouble: Trouble, all_troubles: Sequence[Trouble], incidents: Sequence[Incident]
) -> Incident | None:
    """The first incident that names it, else the first that no other fault explains."""
    after = sorted((i for i in incidents if _concerns(trouble, i, world)), key=lambda i: i.opened)
    for incident in after:
        if _names(trouble, incident):
            return incident
    others = [t for t in all_troubles if t is not trouble]
    return next((i for i in after if not any(_explains(t, i, world) for t in others)), None)


def _grown(world: World, trouble: Trouble, outcomes: Sequence[Outcome]) -> tuple[float, str | None]:
    """When a pool grew for a burst: where that was before anybody felt it, no incident had to tell of it."""
    if trouble.fault.kind != "traffic-burst":
        return math.inf, None
    times = [
        o.at
        for o in outcomes
        if o.step.verb is Verb.SCALE
        and o.result is Result.DONE
        and o.step.target in trouble.suspects
        and o.step.amount > float(o.step.arg("from") or math.inf)
        and trouble.fault.at <= o.at <= _ends(trouble, world)
    ]
    return (min(times), str(trouble.fault.entity)) if times else (math.inf, None)


def _remedy(trouble: Trouble, outcomes: Sequence[Outcome]) -> str | None:
    """The first verified deed on something that is to blame."""
    for outcome in sorted(outcomes, key=lambda o: o.at):
        step = outcome.step
        if step.verb not in _REMEDIES or outcome.result is not Result.DONE or outcome.at < trouble.fault.at:
            continue
        touches = step.target in trouble.suspects or (
            step.pool and Entity("pool", step.pool) in trouble.suspects
        )
        if touches:
            return f"{step.verb.value} {step.target}"
    return None


def _recovered_s(world: World, trouble: Trouble) -> float | None:
    last = trouble.harm_at
    if trouble.fault.entity.kind == "pool":
        names = [pool.name for pool in world.spec.pools]
        troubled = float(world.book.troubled_at[names.index(trouble.fault.entity.name)])
        last = troubled if troubled >= trouble.fault.at else math.nan
    if math.isnan(last):
        return 0.0
    return last - trouble.fault.at if world.at - last >= _QUIET_S else None


def _is_false_isolation(world: World, outcome: Outcome, troubles: Sequence[Trouble]) -> bool:
    step = outcome.step
    if step.verb is not Verb.ISOLATE or outcome.result is not Result.DONE:
        return False
    guilty = [t for t in troubles if t.fault.kind not in NEGATIVES]
    when = outcome.at
    return not any(
        step.target in t.suspects and t.fault.at <= when <= _ends(t, world) + _LATE_S for t in guilty
    )
