"""Incidents, forecasts and the fleet to proposed steps: what should change, before anyone asks whether it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from daemon.model import Entity, Incident, Step, Verb
from daemon.price import prices
from daemon.resize import Memory, capacity, lend, placed, recall, scale
from daemon.situation import Situation


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


RAMP_STEP = 0.25
RAMP_EVERY_S = 60.0
"""Weights rise by a quarter a minute: prefix caches are cold and a relapse should meet little traffic."""
ISOLATE_SCORE = 0.6
"""Below this a claim is a guess, as against a GPU's own past alone: it may cost traffic, never the hardware."""
SEEN_S = 120.0
"""A later rung of the ladder needs a claim this fresh."""
HOLD_S = 1800.0
"""An isolation lasts this long after its incident closed: idle hardware looks well, so time must pass for the repair."""


def propose(now: Situation, memory: Memory) -> list[Step]:
    """Every step that would bring the world to where it should be, most urgent first. Ids are left empty."""
    weights = _weights_wanted(now)
    isolations = _isolations_wanted(now)
    isolate = _isolate_steps(now, isolations, memory)
    steps = [*_reroute(now, weights), *isolate, *_release(now, isolations, memory)]
    room = capacity(now, memory, _spares(now, isolate))
    if room.is_short:
        memory.short_at = now.at
    steps += recall(now, room.room)
    steps += scale(now, memory, room)
    steps += lend(now, memory, room)
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
            weight = bearable(incident, rung, now.fleet.weights.get(engine))
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
MILDER = 0.05
"""By so much milder it must be before a weight that was taken down for what is not mild rises again."""
SLOWER = ("slower_at_equal_load", "slower_by")
"""Evidence that says by which share longer a step takes."""
SAME_WEIGHT = 0.1
"""Measured paces wander: a weight that is right within a tenth stays."""


def bearable(incident: Incident, rung: Rung, standing: float | None) -> float:
    """The weight a rung asks for, by what was measured of how much slower it is. standing : its weight now, None = 1."""
    slower = max(
        (e.value for f in incident.findings for e in f.evidence if e.name in SLOWER and e.value > 0.0),
        default=0.0,
    )
    share = 1.0 / (1.0 + slower)
    is_down = standing is not None and standing <= rung.amount
    if not slower or share < MILD_SHARE + (MILDER if is_down else 0.0) or rung.amount <= 0.0:
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
        if _is_set_aside(engine, now):
            continue  # it is drained: its weight is nobody's business until it is back
        if current < allowed - 0.01 and is_due and engine in now.topology.pool_of:
            # A restarted engine has no cache to protect; a healed one is trusted by degrees.
            step = 1.0 if now.fleet.causes.get(engine) == "engine_down" else RAMP_STEP
            why = "nothing speaks against it any more"
            if engine in wanted:
                incident = wanted[engine][1]
                why = f"{incident.kind} at {incident.scope} ({incident.id}) has become milder: it bears {allowed:.2f}"
            steps.append(_weigh(now, engine, min(allowed, current + step), why, None))
    return steps


def _is_set_aside(engine: str, now: Situation) -> bool:
    node = now.topology.node_of(Entity("engine", engine))
    gpus = now.topology.gpus_of.get(engine, ())
    return any(e in now.fleet.isolated for e in (Entity("node", node), *(Entity("gpu", g) for g in gpus)))


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
        if incident.scope.kind in GROUPS or sureness(incident) < ISOLATE_SCORE:
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


def sureness(incident: Incident) -> float:
    """How sure it is that the scope is sick, by what is said of it. What is said of others that suffer from it does not add: a slow replica, seen
    clearly, makes a suspicion of one of its GPUs no surer."""
    own = [f.score for f in incident.findings if f.kind == incident.kind or f.entity == incident.scope]
    return max(own, default=0.0)


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
        step = placed(
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
                placed(now, Verb.RELEASE, entity, reason, f"{entity} takes work again", -mark.gpus, mark.pool)
            )
    return steps
