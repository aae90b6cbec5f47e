"""Claims against the truth of one fleet: what was found, where, by when, and what was said for nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.events import LOAD_KINDS, NEGATIVES, POSITIVES, cause_label, deadline_s, effect
from bench.fleets import Case, Fleet
from bench.watch import Claim, Isolation, Seen
from daemon.model import Entity
from daemon.patterns import PATTERNS
from simulator.trouble import victims
from simulator.wiring import Wiring
from simulator.world import World

TOLD = 20
LATE_S = 1800.0
"""What opens this long after a fault's end may still be its echo: queues drain, processes restart, windows empty."""
_GROUPS = ("rack", "leaf", "cluster", "pool", "version")
_HARD = ("gpu", "node", "port")


class Truth:
    """One case with everything that belongs to it."""

    def __init__(self, case: Case, world: World) -> None:
        self.case, self.fault = case, case.fault
        wiring = world.wiring
        hurt = victims(case.fault, world.fleet, wiring)
        self.sizes = {e.address: len(e.gpus) for e in hurt}
        self.engines = frozenset(self.sizes)
        self.pools = frozenset(world.spec.pools[e.pool].name for e in hurt)
        self.nodes = _nodes(case.fault.entity, wiring, frozenset(wiring.nodes[e.node] for e in hurt))
        self.groups = frozenset(
            name for n in self.nodes for name in (wiring.racks[wiring.node(n)], wiring.leaves[wiring.node(n)])
        )
        self.leaf = {wiring.leaves[wiring.node(n)] for n in self.nodes}
        self.rights = self._rights()
        self.until = case.fault.at + deadline_s(case.fault) if not case.is_negative else math.nan
        self.allowed = NEGATIVES.get(case.name, frozenset())

    def _rights(self) -> frozenset[Entity]:
        kind, name = self.fault.entity
        found = {self.fault.entity}
        if self.fault.kind == "slow-receiver":
            found.add(Entity("node", name.split("/")[0]))
        elif self.fault.kind == "cpu-contention":
            found |= {Entity("engine", e) for e in self.engines}
        elif self.fault.kind == "deploy-regression":
            version = self.fault.detail or "v2"
            found |= {Entity("version", version), Entity("version", f"{name}/{version}")}
        elif self.fault.kind == "memory-leak":
            found |= {Entity("node", n) for n in self.nodes}
        elif self.fault.kind == "prefix-collapse":
            found |= {Entity("engine", e) for e in self.engines}
        elif kind == "gpu":
            # A replica on one GPU is that GPU.
            found |= {Entity("engine", e) for e, size in self.sizes.items() if size == 1}
        elif kind == "target":
            found.add(Entity("engine", name))
        return frozenset(found)

    @property
    def felt_at(self) -> float:
        """When half of a ramp is there: delays count from then."""
        return self.fault.at + 0.5 * self.fault.ramp_s

    def lasts_over(self, at: float) -> bool:
        return self.fault.at <= at <= self.fault.end + LATE_S

    def names(self, claim: Claim) -> bool:
        return claim.scope in self.rights

    def is_near(self, scope: Entity) -> bool:
        """Whether the scope is what is sick, contains it, runs on it or feeds from it."""
        if scope in self.rights or scope.kind == "cluster" or scope.name in self.engines:
            return True
        if scope.kind == "pool":
            return scope.name in self.pools or self.fault.entity == scope
        if scope.kind in ("rack", "leaf"):
            return scope.name in self.groups
        return scope.name.split("/")[0].split(":")[0] in self.nodes

    def excuses(self, claim: Claim, world: World) -> bool:
        """Whether the claim is a plain consequence, which is neither a find nor a false alarm."""
        if not self.lasts_over(claim.opened):
            return False
        if self.case.is_negative:
            return claim.kind in self.allowed and self.is_near(claim.scope)
        family = PATTERNS[claim.kind].family if claim.kind in PATTERNS else "alarm"
        if self.fault.entity.kind in ("leaf", "port") and claim.severity == "info":
            # what the ports of the leaf show of it without blaming anybody
            leaf = world.wiring.leaves[world.wiring.node(claim.scope.name.split("/")[0])] if (
                claim.scope.kind == "port"
            ) else claim.scope.name  # fmt: skip
            if family == "congestion" and leaf in self.leaf:
                return True
        if not self.is_near(claim.scope):
            return False
        if claim.scope in self.rights or family in ("serving", "telemetry") or claim.kind == "host_fault":
            return True
        if claim.scope.kind == "engine" or claim.scope.kind in _GROUPS:
            return True
        # A whole node or rack that is sick: whatever stands in it may be named.
        return self.fault.kind in ("node-hang", "rack-power") or claim.scope in self._parts()

    def _parts(self) -> frozenset[Entity]:
        if self.fault.entity.kind in _HARD:
            return frozenset({Entity("node", n) for n in self.nodes})
        return frozenset()


def _nodes(entity: Entity, wiring: Wiring, hurt: frozenset[str]) -> frozenset[str]:
    kind, name = entity
    if kind in ("rack", "leaf"):
        names = wiring.racks if kind == "rack" else wiring.leaves
        return frozenset(n for n, g in zip(wiring.nodes, names, strict=True) if g == name)
    host = name.split("/")[0].split(":")[0]
    return hurt | {host} if host in wiring.nodes else hurt


def judge(fleet: Fleet, seen: Seen, world: World) -> dict[str, Any]:
    """One JSON-able record of a fleet: for each of "ours" and the baselines {cases, false, isolations}."""
    truths = [Truth(case, world) for case in fleet.cases]
    ours = _one(truths, list(seen.claims.values()), seen.isolations, world)
    ours |= _storms(truths, seen, world)
    record: dict[str, Any] = {
        "fleet": fleet.name,
        "part": fleet.part,
        "purpose": fleet.purpose,
        "gpus": fleet.spec.gpus,
        "gpu_days": fleet.spec.gpus * fleet.hours / 24.0,
        "cpu_s": {k: round(v, 3) for k, v in seen.cpu_s.items()},
        "loaded_replica_days": seen.loaded_replica_s / 86400.0,
        "replica_days": seen.replica_s / 86400.0,
        "ours": ours,
    }
    for name, claims in seen.alarms.items():
        blamed = [Isolation(c.opened, c.scope, c.id, c.kind) for c in claims if c.scope.kind in _HARD]
        record.setdefault("baselines", {})[name] = _one(truths, claims, blamed, world)
    return record


def _one(
    truths: Sequence[Truth], claims: Sequence[Claim], isolations: Sequence[Isolation], world: World
) -> dict[str, Any]:
    positives = [t for t in truths if not t.case.is_negative]
    false = [c for c in claims if not _is_excused(c, truths, world)]
    busy = [c for c in false if c.was_loaded and c.scope.kind == "engine" and _family(c) == "straggler"]
    return {
        "cases": [_case(t, claims) for t in positives],
        "negatives": [_negative(t, false) for t in truths if t.case.is_negative],
        "false": _counts((c.severity, c.kind) for c in false),
        "wrong_isolations": _counts(("isolation", i.kind) for i in isolations if not _is_right(i, positives)),
        "first_false": [_told(c, world) for c in sorted(false, key=lambda c: c.opened)[:TOLD]],
        "busy_flagged": len(busy),
    }


def _counts(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    return dict(sorted(Counter(f"{group} {kind}" for group, kind in pairs).items()))


def _told(claim: Claim, world: World) -> str:
    """For whoever wants to know which it was: run that fleet alone."""
    when = round(claim.opened - world.epoch)
    return f"{claim.severity} {claim.kind} {claim.scope} at {when} s" + (
        f": {claim.cause}" if claim.cause else ""
    )


def _family(claim: Claim) -> str:
    return PATTERNS[claim.kind].family if claim.kind in PATTERNS else "straggler"


def _is_excused(claim: Claim, truths: Iterable[Truth], world: World) -> bool:
    if claim.is_true_load or claim.cause.startswith("explained by"):
        return True
    return any(t.excuses(claim, world) for t in truths)


def _is_right(isolation: Isolation, positives: Sequence[Truth]) -> bool:
    """It takes out what is sick, or the node that carries it; of a sick node or rack any part."""
    node = isolation.target.name.split("/")[0]
    return any(
        t.lasts_over(isolation.at)
        and t.fault.entity.kind in ("gpu", "node", "port", "rack")
        and t.fault.kind not in _NEVER_ISOLATED
        and (isolation.target in t.rights or node in t.nodes)
        and (
            isolation.target in t.rights
            or isolation.target.kind == "node"
            or t.fault.entity.kind in ("node", "rack")
        )
        for t in positives
    )


_NEVER_ISOLATED = frozenset({"incast", "downlink", "software-receiver", "clock-skew"})
"""Real trouble at a port or node that taking it out does not help. Source: reference notes on congestion, section 4."""


def _case(truth: Truth, claims: Sequence[Claim]) -> dict[str, Any]:
    """found : the right entity was named in time. related : somebody near it was named in time."""
    known = POSITIVES[truth.fault.kind]
    inside = [
        c
        for c in claims
        if truth.fault.at <= c.opened <= truth.until and truth.is_near(c.scope) and c.kind not in _SILENT
    ]
    right = sorted((c for c in inside if truth.names(c)), key=lambda c: c.opened)
    kept = [c for c in right if not c.cause.startswith("explained by")] or right
    meant = [c for c in kept if c.kind in known.kinds] or kept
    first = right[0] if right else None
    loud = [
        c for c in inside if c.severity != "info" and _family(c) not in ("serving", "telemetry", "capacity")
    ]
    leaves = [c for c in inside if c.scope.kind == "leaf"]
    return {
        "kind": truth.fault.kind,
        "label": known.label,
        "group": known.group,
        "entity": str(truth.fault.entity),
        "at_s": round(truth.fault.at - truth.fault.at // 86400.0 * 86400.0),
        "size": truth.fault.size(math.nan),
        "effect": effect(truth.fault),
        "graded": known.graded,
        "onset": "ramp" if truth.fault.ramp_s else "intermittent" if truth.fault.period_s else "abrupt",
        "found": bool(right),
        "related": bool(right or loud),
        "delay_s": max(0.0, first.opened - truth.felt_at) if first else None,
        "said": cause_label(meant[0].kind) if meant else "missed",
        "is_cause": bool(meant) and meant[0].kind in known.kinds,
        "leaf_named": any(c.scope in truth.rights for c in leaves) if truth.fault.entity.kind == "leaf" else None,
        "leaf_related": bool(leaves or right or loud),
    }  # fmt: skip


_SILENT = LOAD_KINDS | {"pause_victim"}
"""Say that users suffer, or who suffers, not where the fault is."""


def _negative(truth: Truth, false: Sequence[Claim]) -> dict[str, Any]:
    blamed = [
        c for c in false if truth.lasts_over(c.opened) and c.severity != "info" and truth.is_near(c.scope)
    ]
    said = sorted({cause_label(c.kind) for c in blamed})
    return {"name": truth.case.name, "size": truth.fault.size(math.nan), "blamed": bool(blamed), "said": said}


def _storms(truths: Sequence[Truth], seen: Seen, world: World) -> dict[str, Any]:
    """Of every PFC storm: seconds until its root is named, and whether another port or host of the leaf is blamed."""
    storms = []
    for truth in (t for t in truths if t.fault.kind == "pfc-storm"):
        during = [c for c in seen.claims.values() if truth.fault.at <= c.opened <= truth.fault.end + 60.0]
        roots = [
            max(0.0, c.opened - truth.felt_at) for c in during if truth.names(c) and c.kind == "pfc_storm"
        ]
        others = [
            c
            for c in during
            if c.scope.kind in ("port", "node")
            and c.severity != "info"
            and c.scope.name.split("/")[0] not in truth.nodes
            and world.wiring.leaves[world.wiring.node(c.scope.name.split("/")[0])] in truth.leaf
        ]
        storms.append({"root_s": min(roots, default=None), "victims_blamed": bool(others)})
    return {"storms": storms}
