"""Fleets as they are drawn: topology, pools, load, telemetry losses, and what goes wrong when."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from bench.events import HOUR, MIN, POSITIVES, deadline_s
from daemon.model import Entity
from simulator.faults import Fault
from simulator.load import peak_ratio
from simulator.sizing import capacity_rps
from simulator.spec import PoolSpec, WorldSpec
from simulator.wiring import Wiring

PARTS = {"tune": 1, "published": 2}
"""A part is the first word of every seed, so that no draw of one part can appear in the other."""
PURPOSES = ("healthy", "fast", "slow", "small", "clock")
TABLE = PURPOSES[:3]
"""What is run where nothing else is asked for; the small and clock ones are for looking at what is hardest to see in time."""
EPOCH = 1_780_272_000.0
"""2026-06-01 00:00 UTC, a Monday."""
SETTLE_S = HOUR
"""Nothing is injected before: a daemon that has just started knows nobody's usual."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that goes wrong, or looks so. is_negative : whoever is blamed for it is blamed wrongly.

    name : kind of the fault, or the name of the negative it plays.
    """

    name: str
    fault: Fault
    is_negative: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """One run: a world and what is injected into it. hours : simulated length. seed : of the world's own noise."""

    name: str
    part: str
    purpose: str
    spec: WorldSpec
    seed: int
    epoch: float
    hours: float
    cases: tuple[Case, ...]
    with_baselines: bool


@dataclass(frozen=True, slots=True)
class Ranges:
    """What a part may draw. The published part is wider on purpose."""

    nodes: tuple[int, int]
    big_nodes: tuple[int, int]
    gpus_per_node: tuple[int, ...]
    ports: tuple[int, ...]
    nodes_per_rack: tuple[int, int]
    racks_per_leaf: tuple[int, int]
    loss: tuple[float, float]
    load_noise: tuple[float, float]
    sticky: float
    device_spread: tuple[float, float]
    engine_noise: tuple[float, float]


RANGES = {
    "tune": Ranges(
        (8, 24),
        (126, 250),
        (8,),
        (2, 4),
        (2, 4),
        (1, 2),
        (0.001, 0.01),
        (0.05, 0.12),
        0.02,
        (0.012, 0.015),
        (0.010, 0.014),
    ),
    "published": Ranges(
        (6, 40),
        (126, 400),
        (4, 8),
        (1, 2, 4, 8),
        (2, 8),
        (1, 4),
        (0.001, 0.02),
        (0.04, 0.16),
        0.03,
        (0.012, 0.016),
        (0.008, 0.018),
    ),
}


USUAL_HOURS = {"healthy": 24.0, "fast": 8.0, "slow": 26.0, "small": 10.0, "clock": 10.0}


def draw(part: str, purpose: str, number: int, seed: int, hours: float | None = None) -> Fleet:
    """The fleet `number` of a part and purpose, with noise, load and faults of `seed`. Same arguments, same fleet.

    Raises ValueError for an unknown part or purpose.
    """
    if part not in PARTS or purpose not in PURPOSES:
        raise ValueError(f"no fleets {part!r} {purpose!r}; parts {list(PARTS)}, purposes {list(PURPOSES)}")
    word = (PARTS[part], PURPOSES.index(purpose), number)
    ranges = RANGES[part]
    spec = _spec(ranges, purpose, np.random.default_rng([*word, 0x5EC]))
    rng = np.random.default_rng([*word, 1 + seed])
    hours = USUAL_HOURS[purpose] if hours is None else hours
    epoch = (
        EPOCH + 86400.0 * float(rng.integers(7)) + (0.0 if hours >= 24 else HOUR * float(rng.integers(16)))
    )
    strike = {
        "healthy": _usual_day, "fast": _stress, "slow": _slow_stress, "small": _small_stress, "clock": _clock_stress
    }[purpose]  # fmt: skip
    cases = strike(spec, rng, hours)
    placed = tuple(replace(c, fault=replace(c.fault, at=epoch + c.fault.at)) for c in cases)
    return Fleet(
        name=f"{part}-{purpose}-{number}-{seed}" + ("" if hours == USUAL_HOURS[purpose] else f"-{hours:g}h"),
        part=part,
        purpose=purpose,
        spec=replace(spec, odd_nodes=_odd(placed, spec)),
        seed=int(rng.integers(2**31)),
        epoch=epoch,
        hours=hours,
        cases=placed,
        # What baselines say for nothing shows in far fewer days than ours has to be shown with.
        with_baselines=purpose != "healthy" or number % 8 == 0,
    )


# -- topology ---------------------------------------------------------------------------------------------


def _spec(ranges: Ranges, purpose: str, rng: Generator) -> WorldSpec:
    low, high = ranges.big_nodes if purpose == "healthy" else ranges.nodes
    nodes = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    per_node = int(rng.choice(ranges.gpus_per_node))
    pools = _pools(ranges, rng, nodes * per_node, per_node)
    return WorldSpec(
        nodes=nodes,
        gpus_per_node=per_node,
        nodes_per_rack=int(rng.integers(ranges.nodes_per_rack[0], ranges.nodes_per_rack[1] + 1)),
        racks_per_leaf=int(rng.integers(ranges.racks_per_leaf[0], ranges.racks_per_leaf[1] + 1)),
        ports_per_node=int(rng.choice(ranges.ports)),
        pools=pools,
        scrape_jitter_s=float(rng.uniform(0.2, 2.0)),
        device_spread=float(rng.uniform(*ranges.device_spread)),
        engine_noise=float(rng.uniform(*ranges.engine_noise)),
        telemetry_loss=float(np.exp(rng.uniform(*np.log(ranges.loss)))),
    )


def _pools(ranges: Ranges, rng: Generator, gpus: int, per_node: int) -> tuple[PoolSpec, ...]:
    """One to four pools on 60 to 85 % of the GPUs; now and then one of a single replica."""
    count = int(rng.integers(1, 5))
    room = gpus * rng.uniform(0.6, 0.85)
    shares = rng.dirichlet(np.full(count, 3.0))
    pools = []
    for k, share in enumerate(shares):
        sizes = [tp for tp in (1, 2, 4, 8) if tp <= per_node]
        tp = int(rng.choice(sizes))
        replicas = max(1, int(room * share // tp))
        if k == count - 1 and count > 1 and rng.random() < 0.3:
            replicas = 1
        pools.append(_pool(ranges, rng, f"pool{k}", tp, replicas))
    return tuple(pools)


def _pool(ranges: Ranges, rng: Generator, name: str, tp: int, replicas: int) -> PoolSpec:
    """A model served at 50 to 80 % of what its replicas can take at the daily peak."""
    family = str(rng.choice(["vllm", "sglang"]))
    pool = PoolSpec(
        name=name,
        model=f"model-{name}",
        engine=family,
        tp=tp,
        replicas=replicas,
        requests_per_s=0.0,
        prompt_tokens=float(np.exp(rng.uniform(np.log(600), np.log(6000)))),
        output_tokens=float(np.exp(rng.uniform(np.log(300), np.log(1200)))),
        replicas_max=replicas + 2,
        max_num_seqs=int(rng.choice([64, 128, 256])),
        kv_blocks=int(rng.choice([12000, 20000, 30000])),
        prefill_token_s=float(rng.uniform(6e-5, 1.2e-4)),
        step_base_s=float(rng.uniform(0.012, 0.026)),
        step_seq_s=float(rng.uniform(5e-5, 1.2e-4)),
        prefix_hit_share=float(rng.uniform(0.1, 0.6)),
        # one popular session in a large pool is many times a replica's share: keep it to about one share
        sticky_share=float(rng.uniform(0.0, ranges.sticky)) if rng.random() < 0.3 else 0.0,
        peak_hour=float(rng.uniform(9.0, 20.0)),
        night_ratio=float(rng.uniform(0.3, 0.7)),
        weekend_ratio=float(rng.uniform(0.6, 1.0)),
        load_noise=float(rng.uniform(*ranges.load_noise)),
    )
    rate = rng.uniform(0.5, 0.8) * replicas * capacity_rps(pool) / peak_ratio(pool)
    return replace(pool, requests_per_s=float(rate))


def _odd(cases: tuple[Case, ...], spec: WorldSpec) -> tuple[int, ...]:
    wiring = Wiring(spec)
    return tuple(wiring.node(c.fault.entity.name) for c in cases if c.name == "mixed-sku")


# -- where something may strike ---------------------------------------------------------------------------


class Places:
    """Entities that serve at the start, each handed out once: two faults on one node would be one story."""

    def __init__(self, spec: WorldSpec, rng: Generator) -> None:
        from simulator.world import World

        self.rng, self.wiring, self.spec = rng, Wiring(spec), spec
        self._engines = sorted(World(spec, 0, EPOCH).fleet.engines.values(), key=lambda e: e.address)
        self._free: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Every node may be struck again: for faults of which the one before is over."""
        self._free = sorted({e.node for e in self._engines})
        self.rng.shuffle(self._free)

    def take(self, kind: str) -> Entity | None:
        """An entity of a kind on a node that nothing has struck yet, None when there is none left.

        A GPU or engine has at least three peers half of the time or more: who has none is drawn too.
        """
        if kind in ("rack", "leaf"):
            return self._group(kind)
        if kind == "pool":
            index = int(self.rng.integers(len(self.spec.pools)))
            return Entity("pool", self.spec.pools[index].name)
        if kind == "cluster":
            return Entity("cluster", "all")
        if not self._free:
            return None
        node = self._free.pop()
        if kind == "node":
            return Entity("node", self.wiring.nodes[node])
        if kind == "port":
            return Entity("port", self.wiring.ports[int(self.rng.choice(list(self.wiring.ports_of(node))))])
        engines = [e for e in self._engines if e.node == node]
        engine = engines[int(self.rng.integers(len(engines)))]
        if kind == "gpu":
            return Entity("gpu", self.wiring.gpus[int(self.rng.choice(engine.gpus))])
        if kind == "engine":
            return Entity("engine", engine.address)
        return Entity("target", f"{self.wiring.nodes[node]}:{self.rng.choice([9400, 9100])}")

    def _group(self, kind: str) -> Entity | None:
        names = self.wiring.racks if kind == "rack" else self.wiring.leaves
        # A rack or leaf of a single node cannot be told from the node.
        usable = sorted({names[n] for n in self._free if names.count(names[n]) > 1})
        if kind == "leaf" and len(set(names)) < 2:
            return None  # with a single leaf there is no uplink, and nothing to tell it from
        if not usable:
            return None
        name = str(self.rng.choice(usable))
        self._free = [n for n in self._free if names[n] != name]
        return Entity(kind, name)


# -- what strikes -----------------------------------------------------------------------------------------

_FAST = tuple(k for k, c in POSITIVES.items() if c.runs == "fast")
_SLOW = ("slow-replica", "slow-replica", "slow-replica", "cpu-contention", "memory-leak")
_STALL = 540.0
"""Between the end of one fault and the next onset elsewhere in a fast fleet."""


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high)))) if high > low else low


def positive(kind: str, at: float, rng: Generator, places: Places) -> Case | None:
    """A fault of log-uniform magnitude, abrupt, ramping or intermittent, that outlives its deadline by a third."""
    known = POSITIVES[kind]
    entity = places.take(_entity_kind(kind))
    if entity is None:
        return None
    magnitude = _log_uniform(rng, *known.sizes)
    if kind in ("pcie-downgrade", "nic-downgrade"):
        magnitude = float(rng.choice([0.25, 0.5]))
    fault = Fault(kind, entity, at, 1.0, magnitude, repair_s=math.nan)
    onset = rng.random()
    if known.graded or known.group == "congestion":
        if onset < 0.2:
            fault = replace(fault, ramp_s=float(rng.uniform(120.0, 600.0)))
        elif onset < 0.35 and known.graded and known.runs == "fast":
            fault = replace(fault, period_s=float(rng.uniform(600.0, 1200.0)))
    return Case(kind, replace(fault, duration_s=deadline_s(fault) * 1.3 + 120.0), False)


def _entity_kind(kind: str) -> str:
    from simulator.faults import ENTITY_KINDS

    return ENTITY_KINDS[kind][0]


def negative(name: str, at: float, rng: Generator, places: Places) -> Case | None:
    """Something that must not be taken for a fault."""
    made = {
        "app-xid": ("app-xid", float(rng.choice([31, 13, 43])), 60.0, ""),
        "packet-spraying": ("packet-spraying", _log_uniform(rng, 500.0, 20000.0), 1800.0, ""),
        "counter-reset": ("counter-reset", math.nan, 60.0, ""),
        "absent-field": ("absent-field", math.nan, 1800.0, "tensor_active_ratio,dram_active_ratio"),
        "traffic-burst": ("traffic-burst", float(rng.uniform(1.3, 2.0)), 1800.0, ""),
        "kv-thrash": ("kv-thrash", float(rng.uniform(2.0, 6.0)), 1800.0, ""),
        "canary": ("canary", math.nan, 3600.0, f"canary{int(at)}"),
        "busy-replica": ("busy-replica", float(rng.uniform(1.5, 2.5)), 3600.0, ""),
        "mixed-sku": ("mixed-sku", float(rng.uniform(0.08, 0.22)), 1e7, ""),
        "fleet-slow": ("fleet-slow", float(rng.uniform(0.03, 0.2)), 1800.0, ""),
        "stale-page": ("exporter-outage", math.nan, 1200.0, "stale"),
        "tidal-drain": ("tidal-drain", float(rng.uniform(0.1, 0.5)), 2400.0, ""),
        "plain-deploy": ("deploy-regression", 0.0, 2 * HOUR, f"v{int(at)}"),
    }
    kind, size, lasts, detail = made[name]
    entity = places.take(_entity_kind(kind))
    if entity is None:
        return None
    ramp_s = 300.0 if kind in ("kv-thrash", "traffic-burst", "fleet-slow") else 0.0
    fault = Fault(kind, entity, at, lasts, size, repair_s=math.nan, ramp_s=ramp_s, detail=detail)
    return Case(name, fault, True)


QUICK_NEGATIVES = (
    "app-xid", "packet-spraying", "counter-reset", "absent-field", "traffic-burst", "kv-thrash", "canary",
    "busy-replica", "fleet-slow", "stale-page", "tidal-drain",
)  # fmt: skip


def _stress(spec: WorldSpec, rng: Generator, hours: float) -> list[Case]:
    """One after another, each on its own node, so that each is judged by itself."""
    places, cases, at = Places(spec, rng), [], SETTLE_S
    order = [*_FAST, *(str(n) for n in rng.choice(QUICK_NEGATIVES, 5, replace=False))]
    rng.shuffle(order)
    if rng.random() < 0.25 and (odd := negative("mixed-sku", 0.0, rng, places)) is not None:
        cases.append(odd)
    for name in order:
        strike = positive if name in POSITIVES else negative
        case = strike(name, at, rng, places)
        if case is None:
            places.refill()
            case = strike(name, at, rng, places)
        if case is None:
            continue  # the fleet has no such place, as a single leaf has no uplink
        if case.fault.end > hours * HOUR - 300.0:
            continue  # a shorter one may still fit
        cases.append(case)
        at = case.fault.end + _STALL + float(rng.uniform(0.0, 300.0))
    return cases


_SMALL = {"dram-slow": (0.08, 0.15), "power-cap": (0.05, 0.15), "slow-silicon": (0.03, 0.08)}
"""Kind -> sizes that cost a few percent of a step."""


def _small_stress(spec: WorldSpec, rng: Generator, hours: float) -> list[Case]:
    """GPUs a few percent slower, two at a time on different nodes, half of them by their memory: the smallest faults there are."""

    def small(case: Case) -> Case:
        fault = replace(case.fault, magnitude=_log_uniform(rng, *_SMALL[case.name]), ramp_s=0.0, period_s=0.0)
        return replace(case, fault=replace(fault, duration_s=1.1 * deadline_s(fault)))

    return _two_lanes(spec, rng, hours, ("dram-slow", "dram-slow", "power-cap", "slow-silicon"), small)


def _clock_stress(spec: WorldSpec, rng: Generator, hours: float) -> list[Case]:
    """Slow clocks and memories of a tenth and more with the sizes and onsets of the fast fleets, two at a time on different nodes."""

    def large(case: Case) -> Case:
        return replace(
            case,
            fault=replace(case.fault, magnitude=_log_uniform(rng, 0.1, POSITIVES[case.name].sizes[1])),
        )

    kinds = tuple(k for k, c in POSITIVES.items() if c.group == "clock")
    return _two_lanes(spec, rng, hours, kinds, large)


def _two_lanes(
    spec: WorldSpec, rng: Generator, hours: float, kinds: tuple[str, ...], sized: Callable[[Case], Case]
) -> list[Case]:
    """Faults of these kinds one after another, two at a time and never on one node, `sized` as the purpose wants them."""
    places, cases = Places(spec, rng), []
    for lane in range(2):
        at, tries = SETTLE_S + 600.0 * lane, 0
        while tries < 50:
            case = positive(str(rng.choice(kinds)), at, rng, places)
            if case is None:
                places.refill()
                tries += 1
                continue
            case = sized(case)
            if case.fault.end > hours * HOUR - 300.0:
                break
            if any(_meet(case.fault, other.fault) for other in cases):
                tries += 1
                continue
            cases.append(case)
            at, tries = case.fault.end + 900.0, 0
    return cases


def _meet(one: Fault, other: Fault) -> bool:
    """Whether two faults are on one node at about the same time: that would be one story."""
    node, its = one.entity.name.split("/")[0], other.entity.name.split("/")[0]
    return node == its and one.at < other.end + 900.0 and other.at < one.end + 900.0


def _slow_stress(spec: WorldSpec, rng: Generator, hours: float) -> list[Case]:
    """What takes hours to see: several at once, in different pools or on far nodes, for a day."""
    places = Places(spec, rng)
    cases: list[Case] = []
    for _ in range(max(1, min(4, spec.gpus // 48))):
        at = 2 * HOUR + float(rng.uniform(0.0, 4 * HOUR))
        while (case := positive(str(rng.choice(_SLOW)), at, rng, places)) is not None:
            if case.fault.end > hours * HOUR - 900.0:
                break
            cases.append(case)
            at = case.fault.end + HOUR
    for name in rng.choice(["plain-deploy", "busy-replica", "canary", "kv-thrash"], 2, replace=False):
        case = negative(str(name), 3 * HOUR + float(rng.uniform(0.0, 18 * HOUR)), rng, places)
        if case is not None:
            cases.append(case)
    if rng.random() < 0.5:
        at = 2 * HOUR + float(rng.uniform(0.0, 18 * HOUR))
        pool = Entity("pool", str(rng.choice([p.name for p in spec.pools])))
        cases = [c for c in cases if c.fault.kind != "deploy-regression"]
        size = _log_uniform(rng, *POSITIVES["deploy-regression"].sizes)
        fault = Fault("deploy-regression", pool, at, 5 * HOUR, size, repair_s=math.nan, detail="v2")
        cases.append(Case("deploy-regression", fault, False))
    return cases


def _some_time(rng: Generator, hours: float) -> float:
    return float(rng.uniform(SETTLE_S, max(SETTLE_S, (hours - 2) * HOUR)))


def _usual_day(spec: WorldSpec, rng: Generator, hours: float) -> list[Case]:
    """A day as most days are: now and then an exporter fails, a program crashes, a pool is deployed; faults at the
    rate of the field (about one in 2,000 GPU-days, Llama 3)."""
    places, cases = Places(spec, rng), []
    per_day = {
        "app-xid": 1.0, "counter-reset": 1.0, "stale-page": 0.2, "traffic-burst": 0.5, "canary": 0.2,
        "busy-replica": 0.5, "packet-spraying": 0.1, "kv-thrash": 0.1, "absent-field": 0.2, "fleet-slow": 0.05,
        "tidal-drain": 0.5,
    }  # fmt: skip
    for name, rate in per_day.items():
        for _ in range(int(rng.poisson(rate * hours / 24.0))):
            case = negative(name, _some_time(rng, hours), rng, places)
            if case is not None:
                cases.append(case)
    for _ in range(int(rng.poisson(spec.gpus * hours / 24.0 / 2000.0))):
        kind = str(rng.choice(_FAST))
        case = positive(kind, _some_time(rng, hours), rng, places)
        if case is not None:
            cases.append(case)
    return cases


def minutes(seconds: float) -> str:
    """How a delay is printed: seconds below two minutes, minutes below two hours, then hours."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 2 * MIN:
        return f"{seconds:.0f} s"
    return f"{seconds / MIN:.1f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
