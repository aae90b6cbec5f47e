"""Findings to incidents: opened with patience, merged by cause, closed only on evidence."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from daemon.model import Entity, Finding, Incident, Severity
from daemon.patterns import PATTERNS
from daemon.topology import Topology


@dataclass(slots=True)
class Candidate:
    """A claim on its way to becoming an incident."""

    first: float
    last: float


@dataclass(slots=True)
class Book:
    """All that is remembered of incidents.

    candidates : claims that have not lasted long enough. offences : when a scope had an incident of a kind, for a day.
    mark : what ids of its incidents begin with.
    """

    open: dict[str, Incident] = field(default_factory=dict)
    candidates: dict[tuple[str, Entity], Candidate] = field(default_factory=dict)
    closed: list[Incident] = field(default_factory=list)
    offences: dict[tuple[str, Entity], list[float]] = field(default_factory=dict)
    serial: int = 0
    mark: str = "i"


@dataclass(frozen=True, slots=True)
class Changes:
    opened: tuple[Incident, ...] = ()
    changed: tuple[Incident, ...] = ()
    closed: tuple[Incident, ...] = ()


EXPLAINED = "explained by "
"""How the cause of an incident begins that another one has taken in; the other's id follows."""
CLOSED_KEPT = 200
DAY_S = 86400.0
RELAPSE_QUIET_MAX_S = 3600.0
CANDIDATE_GAP_S = 60.0
"""A claim that pauses longer than this starts again: three missed ticks of 15 s and a little."""
NEWS_S = 120.0
"""What is critical and begins so long after its cause was last seen is told by itself: a restart is over by then. Judgement."""
DECIDE_S = 300.0
"""One decision on an entity in five minutes: what several statistics say of it meanwhile is one matter."""
SAME_TIME_S = 600.0
"""What begins further apart in a rack or leaf has no cause in common: a GPU that nobody has mended for days makes no rack sick when a second one slows."""
SHARED_SHARE = 0.05
SHARED_NODES = 4
"""More of all GPUs, engines or nodes than this, on so many nodes at once, have a cause in common."""
STATISTICS = frozenset({"straggler", "congestion", "serving"})
ALIKE = frozenset({"gpu_throttle", "gpu_contained", "gpu_notice", "pcie_downgrade", "pcie_errors", "gpu_slow",
                   "replica_slow", "gpu_hang", "clock_skew", "host_fault", "gpu_app"})  # fmt: skip
"""Kinds that do not strike many entities at once by themselves. A lost GPU is lost, however many are."""


def update(
    book: Book, at: float, findings: Iterable[Finding], topology: Topology, is_fresh: Callable[[Entity], bool]
) -> Changes:
    """Take the findings of one tick in. is_fresh tells whether an entity's telemetry can show that it is well."""
    opened: dict[str, Incident] = {}
    changed: dict[str, Incident] = {}
    closed: list[Incident] = []
    for kind, scope, group in _scoped(findings, topology):
        home = _home(book, at, kind, scope, group, topology)
        if home is not None:
            merged = _merge(home, at, group, kind)
            book.open[home.id] = merged
            if merged.severity != home.severity or len(merged.findings) != len(home.findings):
                changed[home.id] = merged
            continue
        if not _patient(book, at, kind, scope) or _decided(book, at, kind, scope, group):
            continue
        incident = _open(book, at, kind, scope, group)
        opened[incident.id] = incident
        for consequence in _explained(book, incident, topology):
            del book.open[consequence.id]
            opened.pop(consequence.id, None)
            changed.pop(consequence.id, None)
            closed.append(
                replace(consequence, state="closed", closed=at, cause=f"{EXPLAINED}{incident.id} ({kind})")
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
        if kind in ALIKE and (common := _common(rest, topology)) is not None:
            scoped.append((kind, common, tuple(rest)))
            continue
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

    A node is whole when two of its entities fail, a pool when three do (one program runs on all of its GPUs); a rack
    or leaf when at least two of its nodes and half of them do within SAME_TIME_S.
    """
    members: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in group:
        members[_group_of(finding.entity, shared, topology)].append(finding)
    together, rest = [], []
    for name, found in members.items():
        entities = {f.entity for f in found}
        if shared in ("node", "pool"):
            is_whole = bool(name) and len(entities) >= (2 if shared == "node" else 3)
            if shared == "node" and all(e.kind == "engine" for e in entities):
                # Two of many replicas may be chance, and all on the node would be treated for it.
                is_whole = is_whole and 2 * len(entities) > len(topology.engines_on.get(name, ()))
        else:
            inside = _at_once(found, topology)
            rest += [f for f in found if f not in inside]
            found = [f for f in found if f in inside]
            nodes = {topology.node_of(f.entity) for f in found}
            size = sum(1 for n in topology.nodes if topology.place.get(n, {}).get(shared) == name)
            is_whole = bool(name) and len(nodes) >= max(2, size / 2)
        if is_whole:
            together.append((Entity(shared, name), tuple(found)))
        else:
            rest += found
    return together, rest


def _at_once(found: list[Finding], topology: Topology) -> list[Finding]:
    """Those that began within SAME_TIME_S of one another, where most nodes did."""
    order = sorted(found, key=_began)
    begun = [_began(f) for f in order]
    best: list[Finding] = []
    most = 0
    for first, start in enumerate(begun):
        inside = order[first : bisect_right(begun, start + SAME_TIME_S)]
        nodes = len({topology.node_of(f.entity) for f in inside})
        if nodes > most:
            best, most = inside, nodes
        if first + len(inside) == len(order):
            break  # those that begin later can only be fewer
    return best


def _began(finding: Finding) -> float:
    return finding.since if finding.since == finding.since else finding.at


def _group_of(entity: Entity, shared: str, topology: Topology) -> str:
    """Name of the node, pool, rack or leaf an entity belongs to, "" when unknown."""
    if shared == "pool":
        return next((topology.pool_of.get(e, "") for e in topology.engines_touched(entity)), "")
    node = topology.node_of(entity)
    return node if shared == "node" else topology.place.get(node, {}).get(shared, "")


def _common(group: list[Finding], topology: Topology) -> Entity | None:
    """The smallest group that all of too many equal claims share; None when they are few enough to be chance."""
    entities = {f.entity for f in group}
    kind = next(iter(entities)).kind if entities else ""
    sizes = {"gpu": topology.gpu_count, "node": len(topology.nodes), "engine": len(topology.pool_of)}
    nodes = {topology.node_of(e) for e in entities}
    if len(nodes) < SHARED_NODES or not len(entities) > SHARED_SHARE * sizes.get(kind, 0) > 0:
        return None
    for shared in ("rack", "leaf", "pool"):
        names = {_group_of(e, shared, topology) for e in entities}
        if len(names) == 1 and "" not in names:
            return Entity(shared, names.pop())
    return Entity("cluster", "shared cause")


def _home(
    book: Book, at: float, kind: str, scope: Entity, group: tuple[Finding, ...], topology: Topology
) -> Incident | None:
    """The open incident a claim belongs to: the same kind there, one that contains it, or one that explains it."""
    around = topology.scopes(scope)
    explained = None
    for incident in book.open.values():
        if incident.kind == kind and (incident.scope == scope or _contains(incident, scope, around)):
            return incident
        pattern = PATTERNS[incident.kind]
        is_known = kind in pattern.explains - pattern.apart and _reaches(incident.scope, scope, topology)
        if is_known and (kind in pattern.foretold or not _is_news(incident, at, group)):
            explained = incident
    return explained


def _is_news(cause: Incident, at: float, group: tuple[Finding, ...]) -> bool:
    """Whether people must hear of something critical although a known cause may be behind it.

    Under a cause that is not critical nobody is woken: a program that failed, told as information, hides no dead engine, and a replica
    a little slow no pool that misses its objective. And what begins once its cause has not been seen for NEWS_S is no consequence
    of it: an engine that hangs after its GPU has come back.
    """
    if not any(f.severity is Severity.CRITICAL for f in group):
        return False
    stood = {(f.rule_id, f.entity) for f in cause.findings if at - f.at <= CANDIDATE_GAP_S}
    is_old = any((f.rule_id, f.entity) in stood for f in group)
    return cause.severity is not Severity.CRITICAL or (at - cause.seen > NEWS_S and not is_old)


def _contains(incident: Incident, scope: Entity, around: frozenset[Entity]) -> bool:
    """Whether the incident of a group speaks of this member too. A pool does only where pools fail as a whole."""
    if incident.scope.kind == "cluster":
        return any(f.entity == scope for f in incident.findings)
    if incident.scope.kind == "pool" and PATTERNS[incident.kind].shared != "pool":
        return False
    return incident.scope in around


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
    """Whether a claim has lasted long enough to open an incident; remembers it otherwise. What the hardware of most nodes of a
    rack states in one scrape has as many witnesses as a second scrape of one would be."""
    candidate = book.candidates.setdefault((kind, scope), Candidate(at, at))
    candidate.last = at
    is_sure = PATTERNS[kind].family == "fault" and scope.kind == "rack"
    if not is_sure and at - candidate.first < PATTERNS[kind].patience_s:
        return False
    del book.candidates[(kind, scope)]
    return True


def _decided(book: Book, at: float, kind: str, scope: Entity, group: tuple[Finding, ...]) -> bool:
    """Whether something was decided about this scope a moment ago, so that a further statistic of it can wait.

    What explains the earlier decision does not wait, nor what is critical: that is no statistic any more.
    """
    pattern = PATTERNS[kind]
    is_sure = pattern.patience_s == 0 or any(f.severity is Severity.CRITICAL for f in group)
    if is_sure or pattern.family not in STATISTICS:
        return False
    if any(at - t < DECIDE_S for t in book.offences.get((kind, scope), ())):
        waits = True
    else:
        waits = any(
            i.scope == scope
            and PATTERNS[i.kind].family == pattern.family
            and i.kind not in pattern.explains
            and at - i.opened < DECIDE_S
            for i in book.open.values()
        )
    if waits:
        # It has lasted long enough already: once the time is up it opens without waiting anew.
        book.candidates[(kind, scope)] = Candidate(at - pattern.patience_s, at)
    return waits


def _open(book: Book, at: float, kind: str, scope: Entity, group: tuple[Finding, ...]) -> Incident:
    book.serial += 1
    since = min(_began(f) for f in group)
    incident = Incident(
        id=f"{book.mark}{book.serial:05d}",
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
    """Newest finding of each rule and entity, in the order in which they came: what a lost GPU's log said stays first
    when its silence says the same. A consequence adds evidence but does not keep it open."""
    newest = {(f.rule_id, f.entity, f.kind): f for f in (*incident.findings, *group)}
    own = [f.severity for f in newest.values() if f.kind == incident.kind]
    return replace(
        incident,
        seen=at if kind == incident.kind else incident.seen,
        findings=tuple(newest.values()),
        severity=max((incident.severity, *own), key=_RANK.__getitem__),
    )


def _explained(book: Book, root: Incident, topology: Topology) -> list[Incident]:
    """Open incidents that turn out to be consequences of a new one; what is critical only of what is critical."""
    kinds = PATTERNS[root.kind].explains
    found = [
        i
        for i in book.open.values()
        if i.id != root.id
        and i.kind in kinds
        and (
            i.severity is not Severity.CRITICAL
            or root.severity is Severity.CRITICAL
            or i.kind in PATTERNS[root.kind].foretold
        )
        and _reaches(root.scope, i.scope, topology)
    ]
    # Members of a group that now fails as a whole: the single incidents go into the common one.
    found += [
        i
        for i in book.open.values()
        if i.id != root.id
        and i.kind == root.kind
        and (root.scope in topology.scopes(i.scope) or any(f.entity == i.scope for f in root.findings))
        and i not in found
    ]
    return found
