"""Eight nodes of four GPUs behind a gateway, on the real path: scrapes, frames, every detector, incidents, plan, guard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from daemon.core import Core
from daemon.frame import FrameBuilder
from daemon.model import (
    GONE,
    Decision,
    Entity,
    Event,
    Fact,
    Incident,
    Layout,
    Outcome,
    Result,
    Scrape,
    Series,
    Shape,
    Step,
    Verb,
)
from daemon.policy import Budgets, Mode, Policy, PoolPolicy
from detectors import DETECTORS

TICK = 15.0
NODES = tuple(f"n{k}" for k in range(8))
ABLE = frozenset(v for v in Verb if v is not Verb.NOTIFY)
AUTO = Policy(
    mode=Mode.AUTO,
    pools=(PoolPolicy("chat", replicas_min=8, replicas_max=8, gpus_per_replica=4),),
    budgets=Budgets(isolated_share_max=0.5, isolated_pool_share_max=0.5),
    able=ABLE,
)
GAUGES = {
    "gpu": {"sm_clock_mhz": 1900.0, "util_ratio": 0.95, "power_w": 600.0, "temp_c": 60.0, "tensor_active_ratio": 0.3,
            "throttle_bits": 0.0, "pcie_link_width": 16.0, "pcie_link_width_max": 16.0, "row_remap_failed": 0.0,
            "row_remap_pending": 0.0, "nvml_hang": 0.0, "gpu_lost": 0.0, "fabric_health": 1.0, "banks_no_rows": 0.0,
            "pages_retired_pending": 0.0, "recovery_action": 0.0, "fabric_manager_status": 3.0},
    "node": {"clock_s": 0.0, "mem_total_bytes": 2e12, "mem_available_bytes": 1e12, "fs_size_bytes": 1e12,
             "fs_avail_bytes": 5e11, "fs_readonly": 0.0, "procs_blocked": 0.0, "boot_time_s": 0.0},
    "engine": {"running": 20.0, "waiting": 0.0, "kv_used_ratio": 0.5},
    "lb": {"lb_sessions": 20.0, "lb_up": 1.0, "lb_weight": 100.0},
}  # fmt: skip
RATES = {
    "gpu": {"ecc_sbe_per_s": 0.0, "ecc_dbe_per_s": 0.0, "nvlink_crc_per_s": 0.0, "nvlink_replay_per_s": 0.0,
            "nvlink_recovery_per_s": 0.0, "pcie_replay_per_s": 0.0},
    "node": {"oom_kills_per_s": 0.0},
    "engine": {"generation_tokens_s": 900.0, "prompt_tokens_s": 4000.0, "preemptions_per_s": 0.0,
               "requests_done_per_s": 2.0},
    "lb": {"lb_sessions_per_s": 2.0, "lb_done_per_s": 2.0},
}  # fmt: skip


@dataclass
class Cluster:
    """gauges, rates : (entity, signal) -> what it shows now. down : target -> error. absent : entities their page
    leaves out. instant : every allowed step is done by the next tick."""

    policy: Policy = AUTO
    at: float = 100_000.0
    instant: bool = True
    gauges: dict[tuple[Entity, str], float] = field(default_factory=dict)
    rates: dict[tuple[Entity, str], float] = field(default_factory=dict)
    totals: dict[tuple[Entity, str], float] = field(default_factory=dict)
    xids: dict[Entity, float] = field(default_factory=dict)
    down: dict[str, str] = field(default_factory=dict)
    absent: set[Entity] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    decisions: list[Decision] = field(default_factory=list)
    opened: list[Incident] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    queue: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = Core(self.policy, {name: make() for name, make in DETECTORS.items()})
        self.builder = FrameBuilder(self.policy)
        self.layouts: dict[str, tuple[tuple[Entity, ...], Layout]] = {}
        self.under_way: list[Step] = []

    # -- what the pages say ------------------------------------------------------------------------------

    def pages(self) -> dict[str, tuple[str, list[Entity]]]:
        """target -> (what it is, entities it speaks of)."""
        found: dict[str, tuple[str, list[Entity]]] = {}
        for node in NODES:
            found[f"{node}:9400"] = ("gpu", [Entity("gpu", f"{node}/gpu{k}") for k in range(4)])
            found[f"{node}:9100"] = ("node", [Entity("node", node)])
            found[f"{node}:8000"] = ("engine", [Entity("engine", f"{node}:8000")])
        found["lb:8404"] = (
            "lb",
            [Entity("engine", f"{n}:8000") for n in NODES if f"{n}:8000" not in self.gone],
        )
        return found

    def _layout(self, target: str, what: str, entities: list[Entity]) -> Layout:
        shown = tuple(e for e in entities if e not in self.absent)
        known = self.layouts.get(target)
        if known is not None and known[0] == shown:
            return known[1]
        series = [Series(s, e, combine="max") for e in shown for s in GAUGES[what]]
        series += [Series(s, e, Shape.COUNTER) for e in shown for s in RATES[what]]
        if what == "gpu":
            series += [Series("xid_code", e, Shape.LAST_CODE) for e in shown]
        node = target.split(":")[0]
        facts = [] if what == "lb" else [Fact(Entity("target", target), "node", node)]
        for entity in shown:
            if what == "engine":
                facts += [
                    Fact(entity, "node", node),
                    Fact(entity, "pool", "chat"),
                    Fact(entity, "gpus", "0,1,2,3"),
                ]
            if what == "gpu":
                facts.append(Fact(entity, "sku", "H100"))
            if what == "node":
                facts.append(Fact(entity, "rack", f"r{int(node[1:]) // 2}"))
        layout = Layout(target, tuple(series), tuple(facts))
        self.layouts[target] = (shown, layout)
        return layout

    def _value(self, series: Series, what: str, beat: int) -> float:
        key = (series.entity, series.signal)
        if series.shape is Shape.COUNTER:
            rate = self.rates.get(key, RATES[what][series.signal])
            if series.signal == "lb_sessions_per_s" and self.weights.get(series.entity.name) == 0.0:
                rate = 0.0  # the gateway does as it was told
            self.totals[key] = self.totals.get(key, 1000.0) + rate * TICK
            return self.totals[key]
        if series.shape is Shape.LAST_CODE:
            return self.xids.get(series.entity, 0.0)
        if series.signal == "clock_s":
            return self.at
        value = self.gauges.get(key, GAUGES[what][series.signal])
        wobble = {"power_w": 1.0, "mem_available_bytes": 1e6}.get(series.signal, 0.0)
        return value + wobble * (beat % 7)

    # -- living ------------------------------------------------------------------------------------------

    def tick(self) -> Decision:
        """One round of scrapes and one decision; what was allowed is done by the next."""
        if self.instant:
            for step in self.under_way:
                self.settle(step)
            self.under_way = []
        beat = int(self.at // TICK)
        for target, (what, entities) in self.pages().items():
            if target in self.gone:
                continue
            if target in self.down:
                scrape = Scrape(target, self.at, None, None, error=self.down[target], took_s=10.0)
            else:
                layout = self._layout(target, what, entities)
                values = np.array([self._value(s, what, beat) for s in layout.series])
                scrape = Scrape(target, self.at, layout, values, took_s=0.01)
            self.builder.absorb(scrape)
        if self.queue:
            events, self.queue = tuple(self.queue), []
            self.builder.absorb(Scrape("kernel_log", self.at, None, None, events))
        decision = self.core.tick(self.builder.build(self.at))
        self.under_way += [v.step for v in decision.verdicts if v.allowed and v.step.verb is not Verb.NOTIFY]
        self.decisions.append(decision)
        self.opened += decision.opened
        self.at += TICK
        return decision

    def settle(self, step: Step) -> None:
        if step.verb is Verb.REROUTE:
            self.weights[step.target.name] = step.amount
        self.core.absorb(Outcome(step, Result.DONE, at=self.at))

    def run(self, minutes: float) -> None:
        for _ in range(round(minutes * 60.0 / TICK)):
            self.tick()

    # -- what happens to it --------------------------------------------------------------------------------

    def log(self, entity: Entity, code: float, text: str = "", app: str = "") -> None:
        """A line of the kernel log with an XID."""
        self.queue.append(Event(self.at, entity, "xid", code, "kernel_log", text, app))

    def happens(self, entity: Entity, kind: str, text: str = "") -> None:
        self.queue.append(Event(self.at, entity, kind, origin="kernel_log", text=text))

    def show(self, entity: Entity, **values: float) -> None:
        """What the entity shows from now on, gauges and rates alike."""
        for signal, value in values.items():
            of = self.rates if any(signal in r for r in RATES.values()) else self.gauges
            of[entity, signal] = value

    def reset(self, entities: Iterable[Entity]) -> None:
        """Their counters begin again at zero."""
        for entity in entities:
            for key in [k for k in self.totals if k[0] == entity]:
                self.totals[key] = 0.0

    def leave(self, target: str) -> None:
        """It is no longer discovered."""
        self.gone.add(target)
        self.builder.absorb(Scrape(target, self.at, None, None, error=GONE))

    # -- what came of it ---------------------------------------------------------------------------------

    def done(self, verb: Verb) -> list[tuple[float, Step]]:
        return [
            (d.at, v.step) for d in self.decisions for v in d.verdicts if v.allowed and v.step.verb is verb
        ]

    def isolated(self) -> list[Entity]:
        return [step.target for _, step in self.done(Verb.ISOLATE)]

    def kinds(self) -> set[tuple[str, str]]:
        """(kind, scope) of every incident that was opened."""
        return {(i.kind, str(i.scope)) for i in self.opened}


def gpu(node: int, index: int = 0) -> Entity:
    return Entity("gpu", f"n{node}/gpu{index}")


def node(number: int) -> Entity:
    return Entity("node", f"n{number}")


def engine(number: int) -> Entity:
    return Entity("engine", f"n{number}:8000")


def settled(policy: Policy = AUTO) -> Cluster:
    """A cluster that has been well for a quarter of an hour."""
    cluster = Cluster(policy)
    cluster.run(15)
    assert cluster.kinds() == set()
    return cluster
