"""Findings to incidents: opened with patience, merged by cause, closed only on evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from daemon.model import Entity, Finding, Incident, Severity
from daemon.topology import Topology


@dataclass(frozen=True, slots=True)
class Pattern:
    """How findings of one kind become an incident.

    title   : words for people. family : "fault", "straggler", "congestion", "serving", "telemetry", "capacity".
    patience_s : how long it must be claimed before an incident opens; 0 for what the hardware itself states.
    quiet_s : how long it must not be claimed, with fresh telemetry, before the incident closes.
    shared  : group whose members failing together are one incident, None = each for itself.
    explains: kinds that are consequences when they show on the same engine, node, rack or leaf.
    Source of the times: judgement, see docs/decisions/0004-incident-patience.md.
    """

    title: str
    family: str
    patience_s: float = 0.0
    quiet_s: float = 300.0
    shared: str | None = None
    explains: frozenset[str] = frozenset()


_SERVING = frozenset(
    {"engine_down", "engine_out", "engine_hung", "replica_slow", "imbalance", "slo_burn", "queue_growth"}
)
_SILENCE = frozenset({"target_down", "telemetry_frozen", "gpu_hang"})
_SLOW = frozenset({"gpu_slow", "replica_slow", "imbalance", "slo_burn", "gpu_throttle"})

PATTERNS: dict[str, Pattern] = {
    "gpu_lost": Pattern(
        "GPU fell off the bus", "fault", 0, 600, "rack", _SERVING | _SILENCE | {"gpu_slow", "gpu_app"}
    ),
    "gpu_uncontained": Pattern("Uncontained memory error", "fault", 0, 600, None, _SERVING | {"gpu_slow"}),
    "gpu_firmware": Pattern(
        "GPU firmware or controller fault", "fault", 0, 600, None, _SERVING | _SILENCE | {"gpu_slow"}
    ),
    "gpu_memory": Pattern("GPU memory needs repair", "fault", 0, 600, None),
    "gpu_contained": Pattern(
        "Contained memory error", "fault", 0, 600, None, frozenset({"engine_down", "engine_out"})
    ),
    "gpu_app": Pattern(
        "Application error on a GPU", "fault", 0, 900, None, frozenset({"engine_down", "engine_out"})
    ),
    "gpu_hang": Pattern("GPU or its driver hangs", "fault", 30, 600, None, _SERVING | {"gpu_slow"}),
    "gpu_throttle": Pattern("GPU clocks held down", "fault", 30, 300, "rack", _SERVING | {"gpu_slow"}),
    "pcie_downgrade": Pattern(
        "PCIe link below its width or generation", "fault", 60, 600, None, _SLOW - {"gpu_throttle"}
    ),
    "nvlink_fault": Pattern("NVLink errors", "fault", 0, 600, None, _SLOW - {"gpu_throttle"}),
    "node_hang": Pattern("Node does not answer", "fault", 0, 300, "rack", _SERVING | _SILENCE | {"gpu_lost"}),
    "host_fault": Pattern("Host fault", "fault", 0, 900, None),
    "gpu_slow": Pattern(
        "GPU slower than its peers",
        "straggler",
        60,
        600,
        "rack",
        frozenset({"replica_slow", "imbalance", "slo_burn"}),
    ),
    "replica_slow": Pattern(
        "Replica slower than its peers", "straggler", 60, 300, None, frozenset({"imbalance", "slo_burn"})
    ),
    "deploy_regression": Pattern(
        "A version is slower than the one before",
        "straggler",
        60,
        600,
        None,
        frozenset({"replica_slow", "slo_burn", "gpu_slow", "imbalance"}),
    ),
    "fleet_slow": Pattern(
        "Many replicas slower at once", "straggler", 60, 600, None, frozenset({"replica_slow", "gpu_slow"})
    ),
    "nic_downgrade": Pattern(
        "Network port below its rate", "congestion", 0, 300, "leaf", _SLOW - {"gpu_throttle"}
    ),
    "bad_cable": Pattern(
        "Bad cable or optic",
        "congestion",
        30,
        600,
        None,
        (_SLOW - {"gpu_throttle"}) | {"ack_timeouts", "optic_ageing"},
    ),
    "pfc_storm": Pattern(
        "PFC pause storm", "congestion", 0, 300, None, (_SLOW - {"gpu_throttle"}) | {"pause_victim", "incast"}
    ),
    "pause_victim": Pattern("Ports paused by the network", "congestion", 60, 180, "leaf"),
    "incast": Pattern("Incast at one receiver", "congestion", 60, 180, None, frozenset({"replica_slow"})),
    "uplink_congestion": Pattern(
        "Leaf uplink congested", "congestion", 60, 300, None, frozenset({"replica_slow", "slo_burn"})
    ),
    "optic_ageing": Pattern("Optic ageing", "congestion", 300, 3600, None),
    "lossy_fabric": Pattern("Packets lost without congestion marks", "congestion", 60, 600, "leaf"),
    "ack_timeouts": Pattern("Acknowledge time-outs", "congestion", 60, 300, None),
    "slow_receiver": Pattern("Receiving software too slow", "congestion", 60, 300, None),
    "engine_out": Pattern(
        "Engine taken out by its load balancer",
        "serving",
        15,
        60,
        None,
        frozenset({"target_down", "imbalance", "engine_down"}),
    ),
    "engine_down": Pattern(
        "Engine does not answer", "serving", 15, 120, None, frozenset({"target_down", "imbalance"})
    ),
    "engine_hung": Pattern(
        "Engine accepts requests and finishes none",
        "serving",
        0,
        180,
        None,
        frozenset({"telemetry_frozen", "imbalance", "slo_burn"}),
    ),
    "kv_saturated": Pattern("KV cache nearly full", "serving", 60, 300, None),
    "kv_thrash": Pattern(
        "Requests preempted for lack of KV cache",
        "serving",
        120,
        300,
        None,
        frozenset({"kv_saturated", "queue_growth", "slo_burn", "imbalance"}),
    ),
    "queue_growth": Pattern(
        "Requests queue faster than they are served", "serving", 60, 180, None, frozenset({"slo_burn"})
    ),
    "slo_burn": Pattern("Latency objective is being missed", "serving", 30, 300, None),
    "imbalance": Pattern("Load is spread unevenly", "serving", 120, 300, None),
    "target_down": Pattern("Exporter does not answer", "telemetry", 0, 60, "node"),
    "telemetry_lost": Pattern(
        "Much of the telemetry is gone",
        "telemetry",
        0,
        120,
        None,
        frozenset({"target_down", "telemetry_frozen"}),
    ),
    "telemetry_frozen": Pattern("Exporter repeats the same page", "telemetry", 0, 120, None),
    "clock_skew": Pattern("Node clock is off", "telemetry", 60, 600, None),
    "capacity_short": Pattern("Capacity will run short", "capacity", 0, 3600, None),
}


@dataclass(slots=True)
class Candidate:
    """A claim on its way to becoming an incident."""

    first: float
    last: float


@dataclass(slots=True)
class Book:
    """All that is remembered of incidents.

    candidates : claims that have not lasted long enough. offences : when a scope had an incident of a kind, for a day.
    """

    open: dict[str, Incident] = field(default_factory=dict)
    candidates: dict[tuple[str, Entity], Candidate] = field(default_factory=dict)
    closed: list[Incident] = field(default_factory=list)
    offences: dict[tuple[str, Entity], list[float]] = field(default_factory=dict)
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    opened: tuple[Incident, ...] = ()
    changed: tuple[Incident, ...] = ()
    closed: tuple[Incident, ...] = ()


CLOSED_KEPT = 200
DAY_S = 86400.0
RELAPSE_QUIET_MAX_S = 3600.0
CANDIDATE_GAP_S = 60.0
"""A claim that pauses longer than this starts again: three missed ticks of 15 s and a little."""


def update(
    book: Book, at: float, findings: Iterable[Finding], topology: Topology, is_fresh: Callable[[Entity], bool]
) -> Changes:
    """Take the findings of one tick in. is_fresh tells whether an entity's telemetry can show that it is well."""
    opened: dict[str, Incident] = {}
    changed: dict[str, Incident] = {}
    closed: list[Incident] = []
    for kind, scope, group in _scoped(findings, topology):
        home = _home(book, kind, scope, topology)
        if home is not None:
            merged = _merge(home, at, group, kind)
            book.open[home.id] = merged
            if merged.severity != home.severity or len(merged.findings) != len(home.findings):
                changed[home.id] = merged
            continue
        if not _patient(book, at, kind, scope):
            continue
        incident = _open(book, at, kind, scope, group)
        opened[incident.id] = incident
        for consequence in _explained(book, incident, topology):
            del book.open[consequence.id]
            opened.pop(consequence.id, None)
            changed.pop(consequence.id, None)
            closed.append(
                replace(consequence, state="closed", closed=at, cause=f"explained by {incident.id} ({kind})")
            )
    for incident in list(book.open.values()):
        quiet = at - incident.seen
        if quiet >= _quiet_s(book, incident, at) and is_fresh(incident.scope):
            del book.open[incident.id]
            changed.pop(incident.id, None)
            closed.append(
                replace(incident, state="closed", closed=at, cause=incident.cause or "no longer seen")
            )
    for key in [k for k, c in book.candidates.items() if at - c.last > CANDIDATE_GAP_S]:
        del book.candidates[key]
    book.closed = (book.closed + closed)[-CLOSED_KEPT:]
    still = {i: n for i, n in opened.items() if i in book.open}
    return Changes(tuple(still.values()), tuple(changed.values()), tuple(closed))


def _quiet_s(book: Book, incident: Incident, at: float) -> float:
    """Quiet time before it closes, doubled for each time it came back within a day, up to an hour.

    Once traffic has been taken away many faults show nothing: that they are gone is found out by trying, and each
    relapse makes the next try rarer.
    """
    times = book.offences.get((incident.kind, incident.scope), [])
    relapses = sum(1 for t in times if at - t < DAY_S) - 1
    base = PATTERNS[incident.kind].quiet_s
    return float(max(base, min(base * 2.0 ** max(0, relapses), RELAPSE_QUIET_MAX_S)))


def _scoped(findings: Iterable[Finding], topology: Topology) -> list[tuple[str, Entity, tuple[Finding, ...]]]:
    """Findings grouped by kind and scope; what fails together in one rack, leaf or node becomes one scope."""
    by_kind: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    scoped = []
    for kind, group in by_kind.items():
        rest = group
        shared = PATTERNS[kind].shared
        if shared is not None:
            together, rest = _together(group, shared, topology)
            scoped += [(kind, scope, members) for scope, members in together]
        own: defaultdict[Entity, list[Finding]] = defaultdict(list)
        for finding in rest:
            own[finding.entity].append(finding)
        scoped += [(kind, entity, tuple(members)) for entity, members in own.items()]
    # Roots first: what explains others opens before them, in the same tick.
    return sorted(scoped, key=lambda s: -len(PATTERNS[s[0]].explains))


def _together(
    group: list[Finding], shared: str, topology: Topology
) -> tuple[list[tuple[Entity, tuple[Finding, ...]]], list[Finding]]:
    """The sub-groups that fail as a whole, with the rest.

    A node is whole when two of its entities fail; a rack or leaf when at least two of its nodes and half of them do.
    """
    members: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in group:
        node = topology.node_of(finding.entity)
        name = node if shared == "node" else topology.place.get(node, {}).get(shared, "")
        members[name].append(finding)
    together, rest = [], []
    for name, found in members.items():
        nodes = {topology.node_of(f.entity) for f in found}
        if shared == "node":
            is_whole = bool(name) and len({f.entity for f in found}) >= 2
        else:
            size = sum(1 for n in topology.nodes if topology.place.get(n, {}).get(shared) == name)
            is_whole = bool(name) and len(nodes) >= max(2, size / 2)
        if is_whole:
            together.append((Entity(shared, name), tuple(found)))
        else:
            rest += found
    return together, rest


def _home(book: Book, kind: str, scope: Entity, topology: Topology) -> Incident | None:
    """The open incident a claim belongs to: the same kind there, one that contains it, or one that explains it."""
    around = topology.scopes(scope)
    explained = None
    for incident in book.open.values():
        if incident.kind == kind and (incident.scope == scope or incident.scope in around - _pools(around)):
            return incident
        if kind in PATTERNS[incident.kind].explains and _reaches(incident.scope, scope, topology):
            explained = incident
    return explained


def _pools(scopes: frozenset[Entity]) -> frozenset[Entity]:
    return frozenset(e for e in scopes if e.kind == "pool")


def _reaches(cause: Entity, effect: Entity, topology: Topology) -> bool:
    """Whether trouble at `cause` can show at `effect`: one contains the other, or they share an engine or a node."""
    if cause == effect or cause in topology.scopes(effect) or effect in topology.scopes(cause):
        return True
    mine, theirs = set(topology.engines_touched(cause)), set(topology.engines_touched(effect))
    if mine & theirs:
        return True
    if effect.kind == "pool":
        return any(topology.pool_of.get(e) == effect.name for e in mine)
    if cause.kind == "pool":
        return any(topology.pool_of.get(e) == cause.name for e in theirs)
    node, other = topology.node_of(cause), topology.node_of(effect)
    if cause.kind == effect.kind == "port":
        # What one port does wrong shows at the ports it talks to: those of its leaf first.
        leaf = topology.place.get(node, {}).get("leaf")
        return node == other or (bool(leaf) and topology.place.get(other, {}).get("leaf") == leaf)
    return bool(node) and node == other


def _patient(book: Book, at: float, kind: str, scope: Entity) -> bool:
    """Whether a claim has lasted long enough to open an incident; remembers it otherwise."""
    candidate = book.candidates.setdefault((kind, scope), Candidate(at, at))
    candidate.last = at
    if at - candidate.first < PATTERNS[kind].patience_s:
        return False
    del book.candidates[(kind, scope)]
    return True


def _open(book: Book, at: float, kind: str, scope: Entity, group: tuple[Finding, ...]) -> Incident:
    book.serial += 1
    since = min((f.since if f.since == f.since else f.at) for f in group)
    incident = Incident(
        id=f"i{book.serial:05d}",
        kind=kind,
        scope=scope,
        opened=at,
        seen=at,
        severity=max((f.severity for f in group), key=_RANK.__getitem__),
        findings=group,
        since=since,
    )
    book.open[incident.id] = incident
    times = book.offences.setdefault((kind, scope), [])
    times[:] = [t for t in times if at - t < DAY_S] + [at]
    return incident


_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


def _merge(incident: Incident, at: float, group: tuple[Finding, ...], kind: str) -> Incident:
    """Newest finding of each (detector, entity, kind). A consequence adds evidence but does not keep it open."""
    newest = {(f.detector, f.entity, f.kind): f for f in (*incident.findings, *group)}
    own = [f.severity for f in newest.values() if f.kind == incident.kind]
    return replace(
        incident,
        seen=at if kind == incident.kind else incident.seen,
        findings=tuple(newest.values()),
        severity=max((incident.severity, *own), key=_RANK.__getitem__),
    )


def _explained(book: Book, root: Incident, topology: Topology) -> list[Incident]:
    """Open incidents that turn out to be consequences of a new one."""
    kinds = PATTERNS[root.kind].explains
    found = [
        i
        for i in book.open.values()
        if i.id != root.id and i.kind in kinds and _reaches(root.scope, i.scope, topology)
    ]
    # Members of a group that now fails as a whole: the single incidents go into the common one.
    found += [
        i
        for i in book.open.values()
        if i.id != root.id
        and i.kind == root.kind
        and root.scope in topology.scopes(i.scope)
        and i not in found
    ]
    return found
