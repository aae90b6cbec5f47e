"""The numbers an operator sets and the core obeys. Built by `daemon.config`, changed only by a reload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from daemon.model import NAN, Entity, Verb
from daemon.rules import RuleState


class Mode(StrEnum):
    """How far an action kind may go on its own, from least to most."""

    OBSERVE = "observe"  # decide and record, tell nobody but the journal
    ADVISE = "advise"  # and say what it would do
    APPROVE = "approve"  # and do it once an operator approves
    AUTO = "auto"  # and do it


LAST_RESORT = frozenset({Verb.LIMIT, Verb.ROLLBACK})
"""Verbs that need a mode of their own to be more than advice."""


class PoolKind(StrEnum):
    """What a pool's GPUs are for, from what goes last to what goes first when they are short."""

    SERVING = "serving"  # customers wait for it
    PREPROCESSING = "preprocessing"  # somebody waits for it, and can wait longer
    TRAINING = "training"  # nobody waits: fine-tuning, evaluation, batches


RANK = {PoolKind.SERVING: 3, PoolKind.PREPROCESSING: 2, PoolKind.TRAINING: 1}


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """One pool: replicas of one model behind one route.

    match : facts an engine must have to belong here (e.g. {"model": "llama-70b"}); empty = fact pool == name.
    gpus_per_replica : 0 = as discovered. ttft_slo_s, itl_slo_s : latency objectives; slo_target : share that must
    meet them. cold_start_s : prior until a start has been measured. lendable : idle GPUs may go to offline jobs. classes : of requests, those refused first in front. kind : what
    it is for; a higher one may take from a lower one what that needs itself.
    """

    name: str
    match: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    replicas_min: int = 1
    replicas_max: int = 0
    gpus_per_replica: int = 0
    ttft_slo_s: float = 2.0
    itl_slo_s: float = 0.2
    slo_target: float = 0.99
    cold_start_s: float = 120.0
    lendable: bool = False
    modes: Mapping[Verb, Mode] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    kind: PoolKind = PoolKind.SERVING

    @property
    def standing(self) -> tuple[int, int]:
        """Who comes first: the kind before the priority."""
        return RANK[self.kind], self.priority

    def gives_way(self, other: PoolPolicy) -> bool:
        """Whether this pool is cut down to its least replicas for `other`: to a higher kind."""
        return RANK[self.kind] < RANK[other.kind]


@dataclass(frozen=True, slots=True)
class Cost:
    """Prices. NaN = not given. gpu_hour : of one GPU for an hour; kwh : of energy, paid on top. spot_gpu_hour : of
    a GPU that may be taken back. gpu_hour_by_kind : (part of a GPU's name, price), for fleets of several kinds. pue : facility over IT energy.

    carbon_g_per_kwh : of the energy. revenue_per_day : what the inference earns.
    """

    currency: str = ""
    gpu_hour: float = NAN
    kwh: float = NAN
    spot_gpu_hour: float = NAN
    pue: float = 1.0
    carbon_g_per_kwh: float = NAN
    revenue_per_day: float = NAN
    gpu_hour_by_kind: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits that no decision may exceed. Absolute **and** relative: a third of three nodes is too much.

    Source of the defaults: judgement, see docs/decisions/0003-default-budgets.md.
    """

    isolated_nodes_max: int = 4
    isolated_share_max: float = 0.15
    isolated_pool_share_max: float = 0.25
    isolated_domain_max: int = 2
    isolations_per_hour_max: int = 4
    scale_step_max: int = 4
    scale_steps_per_hour_max: int = 30
    reroute_share_per_min_max: float = 0.20
    lent_share_max: float = 0.5
    cool_down_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Member:
    """A region as the view over regions knows it. round_trip_s : from most clients. share_max : of all requests."""

    round_trip_s: float = 0.0
    share_max: float = 1.0


@dataclass(frozen=True, slots=True)
class Federation:
    """How requests are shared among regions, see daemon.settings_regions. No members = this daemon balances nothing."""

    members: Mapping[str, Member] = field(default_factory=dict)
    load_max: float = 0.85
    step_min: float = 0.05
    rise_per_minute: float = 0.1
    settle_s: float = 120.0
    lost_after_s: float = 120.0
    hold_s: float = 300.0
    latency_span_s: float = 1.0
    overflow: str = ""


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A window in which nothing is isolated, scaled or lent within the scope (None = whole cluster)."""

    start: float
    end: float
    scope: Entity | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the core may be told. The defaults observe and never act.

    tick_s : pace of decisions. stale_s : a value older than this is NaN. slo_window_s : short window of latency
    quantiles. verdict of a step on telemetry older than stale_veto_s is a refusal.
    places : node -> {"rack": .., "leaf": .., "region": ..} from the operator; it overrides what discovery says.
    able : verbs that some backend can carry out; the others are refused with that reason. able_in : pool -> verbs that
    only a backend of its own can, on top.
    rules : rule id -> on, shadow or off, over what the rule book says. xid : driver error code -> pattern, or "ignore".
    rack_cap_w, rack_caps : most any rack, and a rack by name, may draw, 0 = no cap; host_factor : node over its GPUs.
    region : what this cluster is called among others, "" = as the cluster. federation : the view over regions.
    lease_max_s : longest lease of GPUs to offline work. spare_min : replicas kept beyond the forecast (N+1).
    """

    cluster: str = "cluster"
    tier: str = ""
    tick_s: float = 15.0
    stale_s: float = 60.0
    stale_veto_s: float = 120.0
    slo_window_s: float = 60.0
    modes: Mapping[Verb, Mode] = field(default_factory=dict)
    mode: Mode = Mode.OBSERVE
    pools: tuple[PoolPolicy, ...] = ()
    budgets: Budgets = Budgets()
    maintenance: tuple[Maintenance, ...] = ()
    spare_min: int = 1
    lease_max_s: float = 8 * 3600.0
    lease_min_s: float = 3600.0
    recall_lead_s: float = 900.0
    disabled: frozenset[str] = frozenset()
    able: frozenset[Verb] = frozenset()
    able_in: Mapping[str, frozenset[Verb]] = field(default_factory=dict)
    places: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rules: Mapping[str, RuleState] = field(default_factory=dict)
    xid: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = Cost()
    region: str = ""
    federation: Federation = Federation()
    rack_cap_w: float = 0.0
    rack_caps: Mapping[str, float] = field(default_factory=dict)
    host_factor: float = 1.25

    @property
    def told(self) -> Mapping[str, Mapping[str, str]]:
        """What detectors hear of the operator's wishes, see `daemon.model.Frames`."""
        return {"xid": self.xid}

    def pool(self, name: str) -> PoolPolicy | None:
        return next((p for p in self.pools if p.name == name), None)

    def mode_of(self, verb: Verb, pool: str) -> Mode:
        """The mode of an action kind in a pool: the pool's own word, else the verb's, else the cluster's.

        What refuses customers or takes a version back is never done on the word of the cluster alone.
        """
        own = self.pool(pool)
        if own is not None and verb in own.modes:
            return own.modes[verb]
        if verb in LAST_RESORT and verb not in self.modes:
            return Mode.OBSERVE if self.mode is Mode.OBSERVE else Mode.ADVISE
        return self.modes.get(verb, self.mode)

    def can(self, verb: Verb, pool: str) -> bool:
        """Whether some backend carries out this verb in this pool."""
        return verb in self.able or verb in self.able_in.get(pool, ())

    def in_maintenance(self, at: float, scopes: frozenset[Entity]) -> Maintenance | None:
        """The first window that covers `at` and one of `scopes`, None if there is none."""
        for window in self.maintenance:
            if window.start <= at < window.end and (window.scope is None or window.scope in scopes):
                return window
        return None


def spare_of(tier: str) -> int:
    """Replicas a pool can lose and still hold, by the availability its tier promises: 99.5 % needs none, 99.9 % one.

    >>> spare_of("small"), spare_of("medium"), spare_of("large"), spare_of("")
    (0, 1, 1, 1)
    """
    return 0 if tier == "small" else 1


def tier_of(nodes: int, gpus: int) -> str:
    """The white paper's cluster tier. Source: docs/decisions, section 2.1 of the white paper.

    >>> tier_of(8, 64), tier_of(16, 128), tier_of(60, 480), tier_of(0, 0)
    ('small', 'medium', 'large', '')
    """
    if gpus <= 0 and nodes <= 0:
        return ""
    if gpus > 400 or nodes > 50:
        return "large"
    if gpus > 64 or nodes > 8:
        return "medium"
    return "small"
