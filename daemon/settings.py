"""The configuration tree: every key an operator may set, its type, unit and default."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from daemon.almanac import Almanac, CalendarError, Event, holidays_of, read_ics
from daemon.model import NAN, Entity, Verb
from daemon.policy import Budgets, Maintenance, Mode, Policy, PoolKind, PoolPolicy
from daemon.rules import RULES, RuleState
from daemon.settings_backends import BackendTree
from daemon.settings_cost import CostTree
from daemon.settings_notify import Notify
from daemon.settings_power import PowerTree
from daemon.settings_regions import RegionsTree
from daemon.settings_sources import Sources
from daemon.units import Duration, Instant, Share, Tree, rule_state


class Replicas(Tree):
    min: int = Field(default=1, ge=0)
    max: int = Field(default=0, ge=0)
    """0 = as many as the GPUs allow."""

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.max and self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self


class Slo(Tree):
    ttft: Duration = 2.0
    itl: Duration = 0.2
    target: Share = 0.99


class Pool(Tree):
    name: str = Field(min_length=1)
    match: dict[str, str] = {}
    """Facts of the engines that belong here, e.g. {model: llama-70b}; by default the fact pool = name."""
    priority: int = 0
    """Higher is served first when GPUs are short, among pools of one kind."""
    kind: PoolKind = PoolKind.SERVING
    """serving, preprocessing or training: a higher kind may take GPUs from a lower one; see docs/en/pools.md."""
    replicas: Replicas = Replicas()
    gpus_per_replica: int = Field(default=0, ge=0)
    """0 = as discovered."""
    slo: Slo = Slo()
    cold_start: Duration = 120.0
    lendable: bool = False
    """Idle GPUs of this cluster may go to offline jobs."""
    classes: list[str] = []
    """Classes of requests as the gateway knows them, those that are refused first in front; see docs/en/gateway.md."""
    modes: dict[Verb, Mode] = {}
    actions: dict[Verb, str] = {}
    """Verb -> name of the backend that carries it out in this pool, over the actions of the cluster."""


class BudgetTree(Tree):
    isolated_nodes_max: int = Field(default=4, ge=0)
    isolated_share_max: Share = 0.15
    isolated_pool_share_max: Share = 0.25
    isolated_domain_max: int = Field(default=2, ge=0)
    """Isolated nodes in one rack."""
    isolations_per_hour_max: int = Field(default=4, ge=0)
    scale_step_max: int = Field(default=4, ge=1)
    scale_steps_per_hour_max: int = Field(default=30, ge=0)
    reroute_share_per_min_max: Share = 0.20
    lent_share_max: Share = 0.5
    cool_down: Duration = 300.0


class Window(Tree):
    start: Instant
    end: Instant
    scope: str = ""
    """Entity like "node n03", "rack r1", "pool chat"; empty = the whole cluster."""
    reason: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.end <= self.start:
            raise ValueError("end is not after start")
        if self.scope and len(self.scope.split()) != 2:
            raise ValueError(f"scope {self.scope!r}: write a kind and a name, like 'node n03'")
        return self


class Place(Tree):
    rack: str = ""
    """Nodes of one rack share power and cooling: they fail together."""
    leaf: str = ""
    """Nodes of one leaf switch share its uplinks."""
    region: str = ""
    """Site or zone."""


class TopologyTree(Tree):
    file: str = ""
    """A YAML or JSON table of nodes, as under nodes; Slurm's topology.conf; what ibnetdiscover prints; the ports as
    UFM lists them (GET /ufmRest/resources/ports); or a JSON object of node: what `lldpctl -f json` prints there. Read at the start and at every reload."""
    nodes: dict[str, Place] = {}
    """Where nodes sit, for what discovery labels do not say; it overrides them."""


class EventTree(Tree):
    name: str = Field(min_length=1)
    """Events of one name are expected to be alike: what demand did at one is expected at the next."""
    start: Instant
    """When it begins, with a time zone."""
    end: Instant
    """When it is over."""
    repeat: Literal["", "weekly", "yearly"] = ""
    """Whether it comes again every week or year."""
    factor: float = Field(default=0.0, ge=0.0, le=10.0)
    """Demand over the usual that is expected; 0 = learn it from the ones before."""

    @model_validator(mode="after")
    def _ordered(self) -> EventTree:
        if self.end <= self.start:
            raise ValueError("end is not after start")
        return self


class CalendarTree(Tree):
    countries: list[str] = []
    """Countries whose public holidays change demand, ISO codes like CN, DE or DE-BY."""
    zone: str = "UTC"
    """IANA time zone in which a holiday is a day."""
    events: list[EventTree] = []
    """The site's own: launches, exams, sales, planned load tests."""
    files: list[str] = []
    """iCalendar files with more of them; read at the start."""

    @model_validator(mode="after")
    def _known(self) -> CalendarTree:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(
                f"zone {self.zone!r} is not known; write an IANA name like Asia/Shanghai"
            ) from error
        for country in self.countries:
            try:
                holidays_of(country, [2026])
            except CalendarError as error:
                raise ValueError(str(error)) from error
        return self


class Token(Tree):
    name: str = Field(min_length=1, max_length=80)
    """Who holds it: stands in the journal beside everything that is done with it."""
    token_file: str
    """File with the secret, read at every use, so that it can be rotated."""
    scope: Literal["read", "approve", "admin"] = "read"
    """read: look. approve: also approve, reject, undo, pause, judge incidents. admin: also attest and reload."""


class Web(Tree):
    listen: str = "127.0.0.1:9095"
    token_file: str = ""
    """Bearer token of scope admin; without it and without `tokens` the pages and the API are read-only."""
    tokens: list[Token] = []
    """More bearer tokens, each with its own name and scope."""
    reads: Literal["open", "token"] = "open"
    """Who may look: open = whoever reaches the address, token = only with a token (health checks stay open)."""

    @model_validator(mode="after")
    def _joined(self) -> Web:
        names = [t.name for t in self.tokens]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"web.tokens: the name {twice[0]!r} stands twice; names are unique")
        if self.reads == "token" and not (self.token_file or self.tokens):
            raise ValueError(
                "web.reads is token, and there is none: name a file in web.token_file or web.tokens"
            )
        return self


class Tuning(Tree):
    tick: Duration = 15.0
    stale: Duration = 60.0
    stale_veto: Duration = 120.0
    slo_window: Duration = 60.0
    spare_min: int = Field(default=1, ge=0)
    lease_max: Duration = 8 * 3600.0
    lease_min: Duration = 3600.0
    recall_lead: Duration = 900.0
    forecast_every: Duration = 3600.0
    forecast_horizon: Duration = Field(default=168 * 3600.0, ge=3600.0, le=28 * 86400.0)
    forecaster: str = ""
    """A site's own forecaster (entry point of the group tidewarden.forecasters); used once its scores are better."""
    disabled: list[str] = []
    """Detectors that are switched off."""


class TracesTree(Tree):
    endpoint: str = Field(pattern=r"^https?://\S+$")
    """Of an OpenTelemetry collector, as `http://collector:4318/v1/traces`. Needs the extra: `pip install 'tidewarden[otlp]'`."""
    headers_file: str = ""
    """A file with `Name: value` lines that are sent along, such as a token."""


XidMeaning = Literal[
    "gpu_lost",
    "gpu_uncontained",
    "gpu_firmware",
    "gpu_memory",
    "gpu_contained",
    "nvlink_fault",
    "gpu_app",
    "gpu_notice",
    "ignore",
]


class Settings(Tree):
    cluster: str = "cluster"
    """Name of the cluster in messages, topics and ownership marks."""
    region: str = ""
    """What this cluster is called among the regions of a view; the name of the cluster when empty."""
    regions: RegionsTree = RegionsTree()
    """The view over several regions, kept by one daemon: docs/en/regions.md."""
    state_dir: str = "/var/lib/tidewarden"
    tier: Literal["", "small", "medium", "large"] = ""
    """Found from what is scraped when empty."""
    mode: Mode = Mode.OBSERVE
    modes: dict[Verb, Mode] = {}
    """Per action kind; a pool's own modes override them."""
    sources: Sources = Sources()
    topology: TopologyTree = TopologyTree()
    pools: list[Pool] = []
    budgets: BudgetTree = BudgetTree()
    maintenance: list[Window] = []
    backends: dict[str, Annotated[BackendTree, Field(discriminator="kind")]] = {}
    actions: dict[Verb, str] = {}
    """Verb -> name of the backend that carries it out."""
    notify: Notify = Notify()
    calendar: CalendarTree = CalendarTree()
    web: Web = Web()
    cost: CostTree = CostTree()
    power: PowerTree = PowerTree()
    """Caps of racks, which the planner keeps: docs/en/cost.md."""
    traces: TracesTree | None = None
    """A trace of every tick and of the steps it sets going, over OTLP/HTTP; none = off."""
    tuning: Tuning = Tuning()
    rules: dict[str, Annotated[RuleState, BeforeValidator(rule_state)]] = {}
    """Rule id (`tidewarden rules` lists them) -> on, shadow (watched, nothing follows from it) or off."""
    xid: dict[int, XidMeaning] = {}
    """Driver error code -> the pattern it means here, over the table of the XID page, or ignore."""

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: dict[str, RuleState]) -> dict[str, RuleState]:
        for name in rules:
            if name not in RULES:
                near = get_close_matches(name, RULES, 1) or ["tidewarden rules lists them"]
                raise ValueError(f"no rule {name!r}; did you mean {near[0]}?")
        return rules

    @model_validator(mode="after")
    def _joined(self) -> Settings:
        names = [p.name for p in self.pools]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"pools: the name {twice[0]!r} stands twice; names are unique")
        self._known_backends(self.actions, "actions")
        for name, tree in self.backends.items():
            helper = getattr(tree, "reroute", "")
            if helper and (helper not in self.backends or helper == name):
                known = ", ".join(sorted(set(self.backends) - {name})) or "none is configured"
                raise ValueError(f"backends {name}: reroute: no other backend {helper!r}; backends: {known}")
        for pool in self.pools:
            self._known_backends(pool.actions, f"pools {pool.name}: actions")
        return self

    def _known_backends(self, actions: Mapping[Verb, str], where: str) -> None:
        for verb, backend in actions.items():
            if verb is Verb.NOTIFY:
                raise ValueError(
                    f"{where}.notify: messages go through notify.channels, not through a backend"
                )
            if backend not in self.backends and backend != "simulated":
                known = ", ".join(sorted(self.backends)) or "none is configured"
                raise ValueError(f"{where}.{verb}: no backend {backend!r}; backends: {known}")

    def policy(self) -> Policy:
        """What the core is told."""
        tuning = self.tuning
        return Policy(
            cluster=self.cluster,
            tier=self.tier,
            tick_s=tuning.tick,
            stale_s=tuning.stale,
            stale_veto_s=tuning.stale_veto,
            slo_window_s=tuning.slo_window,
            modes=dict(self.modes),
            mode=self.mode,
            pools=tuple(_pool(p) for p in self.pools),
            budgets=_budgets(self.budgets),
            maintenance=tuple(_window(w) for w in self.maintenance),
            spare_min=tuning.spare_min,
            lease_max_s=tuning.lease_max,
            lease_min_s=tuning.lease_min,
            recall_lead_s=tuning.recall_lead,
            disabled=frozenset(tuning.disabled),
            places={name: _place(place) for name, place in self.topology.nodes.items()},
            rules=dict(self.rules),
            xid={str(code): meaning for code, meaning in self.xid.items()},
            cost=self.cost.cost(),
            region=self.region or self.cluster,
            federation=self.regions.federation(),
            rack_cap_w=self.power.rack_cap_w,
            rack_caps=dict(self.power.racks),
            host_factor=self.power.host_factor,
        )

    def almanac(self) -> Almanac:
        """Days unlike others. Raises CalendarError for a calendar file that cannot be read."""
        tree = self.calendar
        own = tuple(Event(e.name, e.start, e.end, e.repeat, e.factor or NAN) for e in tree.events)
        read = tuple(event for path in tree.files for event in read_ics(Path(path)))
        return Almanac(tuple(tree.countries), tree.zone, own + read)

    @property
    def folder(self) -> Path:
        return Path(self.state_dir)


def _pool(pool: Pool) -> PoolPolicy:
    return PoolPolicy(
        name=pool.name,
        match=dict(pool.match),
        priority=pool.priority,
        replicas_min=pool.replicas.min,
        replicas_max=pool.replicas.max,
        gpus_per_replica=pool.gpus_per_replica,
        ttft_slo_s=pool.slo.ttft,
        itl_slo_s=pool.slo.itl,
        slo_target=pool.slo.target,
        cold_start_s=pool.cold_start,
        lendable=pool.lendable,
        modes=dict(pool.modes),
        classes=tuple(pool.classes),
        kind=pool.kind,
    )


def _budgets(tree: BudgetTree) -> Budgets:
    values = tree.model_dump()
    return Budgets(cool_down_s=values.pop("cool_down"), **values)


def _place(place: Place) -> dict[str, str]:
    return {key: value for key, value in place.model_dump().items() if value}


def _window(window: Window) -> Maintenance:
    scope = Entity(*window.scope.split()) if window.scope else None
    return Maintenance(window.start, window.end, scope, window.reason)
