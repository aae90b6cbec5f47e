"""The central types: what is measured, what is claimed, what is decided, what happened.

Everything here is data. numpy and the standard library only, no clock, no I/O.
Times are seconds since the Unix epoch (float) unless a name ends in ``_s``, which is a duration.
NaN means "not measured", never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NAN = math.nan

KINDS = (
    "gpu",
    "node",
    "port",
    "switchport",
    "store",
    "engine",
    "pair",
    "pool",
    "class",
    "job",
    "part",
    "target",
    "region",
)
"""Entity kinds that have a Frame. Groups (rack, leaf, cluster) are entities of findings and incidents only."""


class Entity(NamedTuple):
    """One thing in the cluster, for example ``Entity("gpu", "n03/gpu5")``.

    Names: node ``n03``; gpu ``n03/gpu5``; port ``n03/mlx5_0``; store ``n03/nvme0n1``, a mount ``n03/nas:/models``, a
    shared store by itself is ``Entity("storage", "nas:/models")``; engine its address ``10.0.0.7:8000``;
    pool its name; class ``POOL/CLASS``; job ``SYSTEM/ID``; part an instance of a gateway,
    of etcd or of storage, its address; target its address; rack, leaf, version their label value; cluster its name; region what its own
    daemon calls itself.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


# -- telemetry ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One value as an exporter wrote it, before the catalogue has seen it.

    target : address of the exporter. metric : vendor name. at : seconds since the epoch.
    """

    target: str
    metric: str
    labels: Mapping[str, str]
    value: float
    at: float


class Shape(StrEnum):
    """How the values of a series are to be read."""

    GAUGE = "gauge"  # the value itself
    COUNTER = "counter"  # only its increase means anything; becomes a rate per second
    BUCKET = "bucket"  # cumulative histogram bucket, upper edge in `le`
    SUM = "sum"  # sum of a histogram
    COUNT = "count"  # count of a histogram
    LAST_CODE = "last_code"  # a gauge that keeps the last event's code: only a change counts


@dataclass(frozen=True, slots=True)
class Series:
    """The meaning of one slot of a Layout, in canonical words.

    signal : catalogue name; for histogram parts the stem, e.g. ``ttft_s``.
    combine: what to do when several series of a target land on one (entity, signal): "sum" or "max".
    """

    signal: str
    entity: Entity
    shape: Shape = Shape.GAUGE
    le: float = NAN
    combine: str = "sum"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something known about an entity that is not a number over time, e.g. model, sku, rack, uuid, gpus."""

    entity: Entity
    key: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What one target exports. Built when its series change and shared by every Scrape until then.

    Compared by identity: a new object means "learn again".
    """

    target: str
    series: tuple[Series, ...]
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at an instant: an XID from the kernel log, an OOM kill, an NVML time-out.

    kind : "xid", "oom_kill", "nvml_hang", "gpu_lost", "io_error", "fs_readonly", "hung_task", "mce",
           "link_down", "nvlink", "reboot", "spot_reclaim". code : the XID; of spot_reclaim the seconds left; NaN = none. origin : "kernel_log" > "nvml" > "gauge".
    app  : process or container the driver names, "" if unknown; it tells one crashing program from a sick GPU.
    """

    at: float
    entity: Entity
    kind: str
    code: float = NAN
    origin: str = ""
    text: str = ""
    app: str = ""


# Not frozen, and changed by nobody: one is made for each target and tick, and freezing takes five times as long.
@dataclass(slots=True, eq=False)
class Scrape:
    """One reading of one target.

    values : (slot,), canonical units, NaN where the target had no value; None when the scrape failed.
    layout : meaning of the slots; None when the scrape failed. error : why it failed, "" when it did not.
    took_s : how long the target took to answer. dropped : lines that could not be read.
    facts of the target itself (node, rack, pool, ...) stand in layout.facts.
    """

    target: str
    at: float
    layout: Layout | None
    values: Array | None
    events: tuple[Event, ...] = ()
    error: str = ""
    took_s: float = NAN
    dropped: int = 0


GONE = "no longer discovered"
"""The `error` of the last Scrape a source gives of a target that left discovery: it is to be forgotten, not down."""


class Source(Protocol):
    """Somewhere telemetry comes from. Raises nothing for a sick target: that is a Scrape with `error`."""

    async def read(self) -> Sequence[Scrape]: ...


# -- frames ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """All entities of one kind at one tick.

    values : (entity, signal), catalogue units, counters as rates per second; NaN = missing or stale.
    age_s  : (entity,), since the newest sample of the entity; inf = never seen in this run.
    facts  : key -> one string an entity ("" = unknown). revision : changes when entities, signals or facts do.
    """

    at: float
    kind: str
    entities: tuple[str, ...]
    signals: tuple[str, ...]
    values: Array
    age_s: Array
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    revision: int = 0

    def column(self, signal: str) -> Array:
        """(entity,) of one signal; all NaN when nothing exports it."""
        try:
            return self.values[:, self.signals.index(signal)]
        except ValueError:
            return np.full(len(self.entities), NAN)

    def columns(self, signals: tuple[str, ...]) -> Array:
        """(entity, signal) of several signals; a column nobody exports is all NaN."""
        if not self.signals:
            return np.full((len(self.entities), len(signals)), NAN)
        found, absent = _places(self.signals, signals)
        values: Array = self.values.take(found, axis=1)
        if absent:
            values[:, absent] = NAN
        return values

    def value(self, entity: str, signal: str) -> float:
        """One value, NaN when the entity or the signal is unknown."""
        if entity not in self.entities or signal not in self.signals:
            return NAN
        return float(self.values[self.entities.index(entity), self.signals.index(signal)])

    def fact(self, entity: str, key: str) -> str:
        """One fact, "" when unknown."""
        column = self.facts.get(key)
        if column is None or entity not in self.entities:
            return ""
        return column[self.entities.index(entity)]


@lru_cache(maxsize=256)
def _places(signals: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[NDArray[np.intp], list[int]]:
    """Columns of the wanted signals (0 where absent), and which of the wanted are absent."""
    place = {name: i for i, name in enumerate(signals)}
    found = np.array([place.get(name, 0) for name in wanted], dtype=np.intp)
    return found, [i for i, name in enumerate(wanted) if name not in place]


def empty_frame(kind: str, at: float) -> Frame:
    """A Frame with no entities: what a kind looks like when nothing exports it."""
    return Frame(at, kind, (), (), np.empty((0, 0)), np.empty(0))


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """One Frame a kind of this tick, and the events since the last one. A kind nobody exports is empty.

    told : what the operator says that detectors obey, e.g. told["xid"]["43"] = "ignore".
    """

    at: float
    by_kind: Mapping[str, Frame]
    events: tuple[Event, ...] = ()
    told: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __getitem__(self, kind: str) -> Frame:
        return self.by_kind.get(kind) or empty_frame(kind, self.at)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.by_kind.values())


# -- claims ------------------------------------------------------------------------------------------


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Evidence(NamedTuple):
    """One measured reason. peer : what comparable entities show, NaN if there are none."""

    name: str
    value: float
    unit: str
    peer: float = NAN


@dataclass(frozen=True, slots=True)
class Finding:
    """A detector's claim about one entity at one time.

    kind  : the pattern, a key of `daemon.patterns.PATTERNS`, e.g. "gpu_lost". score : 0..1, how sure.
    since : when it began as far as the detector can tell (<= at).
    rule  : id in `daemon.rules.RULES`; "" = the detector has one rule for this kind, "<detector>.<kind>".
    p     : chance of such a claim on a sound entity, where the rule is a test of many; NaN = nothing is left to chance.
    rejected : what else it could have been, with the measurement that speaks against it.
    """

    at: float
    detector: str
    entity: Entity
    kind: str
    score: float
    severity: Severity
    evidence: tuple[Evidence, ...] = ()
    since: float = NAN
    text: str = ""
    rule: str = ""
    p: float = NAN
    rejected: tuple[str, ...] = ()

    @property
    def rule_id(self) -> str:
        return self.rule or f"{self.detector}.{self.kind}"


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Demand of one target ahead.

    target : the pool. signal : what is forecast, e.g. "concurrency".
    quantiles : (quantile, step), rows in the order of `levels`; step k covers
    [at + k*step_s, at + (k+1)*step_s). model : which forecaster, skill : its error against weekly naive.
    ranks  : (path, step) sampled ways through the bands, 0.5 = the median; beyond 0 and 1 outside of all levels. Pools
    forecast together share where they stem from. Empty = none.
    rivals : other forecasters' quantiles by name, in the same rows: what they said is scored as well.
    note   : what a reader must know of it, or why all quantiles are NaN; "" = nothing.
    """

    at: float
    target: str
    signal: str
    step_s: float
    levels: tuple[float, ...]
    quantiles: Array
    model: str = ""
    skill: float = NAN
    ranks: Array = field(default_factory=lambda: np.empty((0, 0)))
    rivals: Mapping[str, Array] = field(default_factory=dict)
    note: str = ""

    def at_level(self, level: float) -> Array:
        """(step,) of one quantile level. Raises ValueError for a level that was not forecast."""
        row: Array = self.quantiles[self.levels.index(level)]
        return row


@dataclass(frozen=True, slots=True)
class Occasion:
    """A stretch of time unlike others: a holiday, a launch.

    group  : occasions of one group are expected to be alike. factor : demand over the usual, NaN = to be learnt.
    """

    start: float
    end: float
    group: str
    factor: float = NAN


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """All that is known of one demand series when it is forecast.

    at, values : (row,) times and means, NaN = missing; any order. until : now, NaN = the last row.
    masked  : stretches that say nothing of demand (outages, incidents). sibling : times and means of a like series,
    whose shape is borrowed while its own is young; sibling_name "" = none. plugin : a site's own forecaster, "" = none.
    """

    target: str
    at: Array
    values: Array
    signal: str = "concurrency"
    until: float = NAN
    masked: tuple[tuple[float, float], ...] = ()
    occasions: tuple[Occasion, ...] = ()
    sibling_name: str = ""
    sibling_at: Array = field(default_factory=lambda: np.empty(0))
    sibling_values: Array = field(default_factory=lambda: np.empty(0))
    plugin: str = ""


class Detector(Protocol):
    """A dataclass: its fields are its settings and its persisted state."""

    def update(self, frames: Frames) -> list[Finding]: ...


class Forecaster(Protocol):
    def update(self, at: Array, values: Array) -> None: ...

    def forecast(self, horizon_s: float) -> Forecast: ...


# -- decisions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Incident:
    """Findings with one cause and scope.

    kind : the pattern. scope : what is to blame. seen : last time a finding supported it.
    state : "open", "mitigated" (its steps are verified), "closed". findings : the newest a (rule, entity).
    """

    id: str
    kind: str
    scope: Entity
    opened: float
    seen: float
    severity: Severity
    findings: tuple[Finding, ...]
    cause: str = ""
    state: str = "open"
    closed: float = NAN
    since: float = NAN


class Word(StrEnum):
    """What can be said of an incident's rules."""

    FIRED = "fired"  # they opened it
    CONFIRMED = "confirmed"  # the claim was right
    REFUTED = "refuted"  # the claim was wrong


@dataclass(frozen=True, slots=True)
class Judgement:
    """One word on one incident's rules, as the journal keeps it.

    rules : ids in `daemon.rules.RULES`. by : "operator NAME", or what showed it. An operator's word stands over others.
    """

    at: float
    incident: str
    rules: tuple[str, ...]
    word: Word
    by: str = ""


class Verb(StrEnum):
    SCALE = "scale"
    REROUTE = "reroute"
    ISOLATE = "isolate"
    RELEASE = "release"
    LEND = "lend"
    RECALL = "recall"
    NOTIFY = "notify"
    BALANCE = "balance"
    LIMIT = "limit"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Step:
    """A proposed change of the world.

    id     : idempotency key; the same id is never applied twice.
    target : scale -> pool; reroute -> engine; isolate, release, lend, recall -> node or gpu; notify -> incident;
             balance -> region; limit -> pool, or class as POOL/CLASS; rollback -> pool.
    amount : scale -> replicas wanted; reroute -> routing weight 0..1; lend -> GPUs; balance -> share of all requests
             0..1; limit -> share let in 0..1; otherwise 1.
    until  : lend -> when the lease ends whoever is alive, NaN otherwise.
    args   : what a backend needs beside it (pool, engine address, reason code), strings, sorted by key.
    gpus   : usable GPUs this takes away (+) or gives back (-); the guard counts them.
    """

    id: str
    verb: Verb
    target: Entity
    amount: float
    reason: str
    incident: str = ""
    expected: str = ""
    deadline_s: float = 60.0
    until: float = NAN
    args: tuple[tuple[str, str], ...] = ()
    gpus: float = 0.0
    pool: str = ""

    def arg(self, key: str) -> str:
        return dict(self.args).get(key, "")


class Reason(StrEnum):
    """Why a step was allowed or refused. Every value is shown to operators: see docs/en/reference/verdicts.md."""

    ALLOWED = "allowed"
    APPROVED = "approved_by_operator"
    REJECTED = "rejected_by_operator"
    MODE_OBSERVE = "mode_observe"
    MODE_ADVISE = "mode_advise"
    AWAITS_APPROVAL = "awaits_approval"
    PAUSED = "paused"
    MAINTENANCE = "maintenance"
    STALE_DATA = "stale_data"
    BUDGET_CLUSTER = "budget_cluster"
    BUDGET_POOL = "budget_pool"
    BUDGET_DOMAIN = "budget_failure_domain"
    BUDGET_RATE = "budget_rate"
    LAST_REPLICAS = "n_plus_one"
    COOL_DOWN = "cool_down"
    IN_FLIGHT = "in_flight"
    FOREIGN = "not_ours"
    NO_BACKEND = "no_backend"
    NO_JOURNAL = "journal_unavailable"
    UNKNOWN_POOL = "pool_not_configured"
    WAITS_FOR_SPARE = "waits_for_spare"
    WAITS_FOR_VALLEY = "waits_for_valley"
    TOO_DEAR = "price_too_high"


@dataclass(frozen=True, slots=True)
class Verdict:
    step: Step
    allowed: bool
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of the expectation of a step that was done.

    state : "seen", "missing", "late" (seen after it was missed) or "unknown". took_s : since it was done.
    """

    at: float
    step: str
    state: str
    text: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What one tick decided.

    opened, changed, closed : incidents that did so in this tick. sentence : "" when nothing changed.
    shadowed : incidents of rules in shadow that opened or closed; nothing is done for them. judged : news of the rules.
    effects : what became of expectations.
    """

    at: float
    opened: tuple[Incident, ...] = ()
    changed: tuple[Incident, ...] = ()
    closed: tuple[Incident, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    findings: tuple[Finding, ...] = ()
    sentence: str = ""
    shadowed: tuple[Incident, ...] = ()
    judged: tuple[Judgement, ...] = ()
    effects: tuple[Effect, ...] = ()


class Result(StrEnum):
    DONE = "done"  # applied and seen in the world
    REFUSED = "refused"  # the other side said no
    FAILED = "failed"  # tried, and it is known not to have happened
    UNKNOWN = "unknown"  # nobody can tell; a human is asked


@dataclass(frozen=True, slots=True)
class Outcome:
    step: Step
    result: Result
    detail: str = ""
    took_s: float = NAN
    at: float = NAN


class TryAgain(Exception):
    """An action could not be done now; it may be tried again after `delay_s`."""

    def __init__(self, why: str, delay_s: float = 1.0) -> None:
        super().__init__(why)
        self.delay_s = delay_s


class Hopeless(Exception):
    """An action can never succeed as asked: wrong name, no rights, refused by the other side."""


class RecordError(Exception):
    """The journal cannot be opened or written: the message says which file, what happened and the remedy."""


class RecordBusy(RecordError):
    """Another daemon writes the journal."""


class SourceError(Exception):
    """A source cannot be set up at all: the message says what, where, the value found and the remedy."""


class Action(Protocol):
    async def apply(self, step: Step) -> Outcome:
        """Do it. Idempotent by step.id. Raises TryAgain or Hopeless."""
        ...

    async def verify(self, step: Step) -> bool:
        """Look at the world, not at memory. Raises TryAgain when it cannot be told now."""
        ...


class Backend(Protocol):
    """One system that can change the world: the simulator, an operator's program, later Kubernetes and others."""

    async def apply(self, step: Step) -> str:
        """Do it and return one sentence of detail. Raises TryAgain or Hopeless."""
        ...

    async def observe(self, step: Step) -> Mapping[str, Any]:
        """What the system shows for step.target now.

        scale -> {"replicas": int, "ready": int}; reroute, balance -> {"weight": 0..1}; isolate, release ->
        {"isolated": bool, "owner": str}; lend, recall -> {"lent": bool, "until": float}; limit ->
        {"admitted": 0..1}; rollback -> {"version": str}.
        A key that cannot be told is absent. Raises TryAgain when the system does not answer.
        """
        ...


class Check(NamedTuple):
    """One thing a backend looked at before it is enabled. fix : what to do, "" when nothing is to be done."""

    is_right: bool
    what: str
    found: str
    fix: str = ""


@runtime_checkable
class Checked(Protocol):
    """A backend that can say beforehand whether it would work. It changes nothing."""

    @property
    def rights(self) -> str:
        """The least it needs: a sudoers line, a socket's mode, a role."""
        ...

    async def check(self) -> Sequence[Check]:
        """Reachability, rights, names. Raises nothing for a sick system: that is a Check."""
        ...


@runtime_checkable
class Closing(Protocol):
    """A backend that holds connections open."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """An address to scrape.

    address : host:port. job : what kind of exporter, "" = find out from the page. labels : from discovery
    (node, rack, leaf, pool, role, gpus, ...), applied to every series of the target.
    """

    address: str
    job: str = ""
    path: str = "/metrics"
    scheme: str = "http"
    labels: tuple[tuple[str, str], ...] = ()
