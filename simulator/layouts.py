"""The meaning of every column that simulated exporters show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daemon.model import Entity, Fact, Layout, Series, Shape
from simulator import devices, drafts, fabric, gateway, histogram, serving, storage, switches
from simulator.fleet import Engine
from simulator.wiring import LB_TARGET, Indices

if TYPE_CHECKING:
    from simulator.world import World

ENGINE_GAUGES = (
    "running", "waiting", "waiting_deferred", "kv_used_ratio", "kv_blocks", "kv_block_tokens", "kv_capacity_tokens",
    "asleep", "rss_bytes", "start_time_s", "startup_s", "weights_load_s",
)  # fmt: skip
ENGINE_COUNTERS = serving.COUNTERS[:8]
LB_GAUGES = ("lb_sessions", "lb_queue", "lb_up", "lb_weight")
LB_COUNTERS = serving.COUNTERS[8:]
_HIDDEN = {
    "vllm": ("startup_s", "weights_load_s"),
    "sglang": ("waiting_deferred", "kv_blocks", "kv_block_tokens", "asleep", "rss_bytes", "start_time_s"),
}  # fmt: skip
"""Signals an engine family does not export."""


def _facts(entity: Entity, facts: dict[str, str]) -> list[Fact]:
    return [Fact(entity, key, value) for key, value in sorted(facts.items())]


def _columns(entity: Entity, gauges: tuple[str, ...], counters: tuple[str, ...]) -> list[Series]:
    shapes = {"xid_code": Shape.LAST_CODE}
    return [Series(g, entity, shapes.get(g, Shape.GAUGE), combine=_combine(g)) for g in gauges] + [
        Series(c, entity, Shape.COUNTER) for c in counters
    ]


_MAXIMA = frozenset(
    {"throttle_bits", "row_remap_failed", "row_remap_pending", "boot_time_s", "clock_s", "fs_size_bytes",
     "fs_avail_bytes", "fs_readonly", "pcie_stall_ratio", "module_hot", "kv_used_ratio", "kv_block_tokens", "asleep",
     "rss_bytes", "start_time_s", "startup_s", "weights_load_s", "lb_up", "lb_weight",
     "latency_s", "linked"}
)  # fmt: skip


def _combine(signal: str) -> str:
    return "max" if signal in _MAXIMA else "sum"


def gpu_layout(world: World, target: str) -> Layout:
    node = world.wiring.node(target[:-5])
    place = world.place_of(node)
    series: list[Series] = []
    facts = _facts(Entity("target", target), {"job": "dcgm", "node": place["node"]})
    facts += _facts(Entity("node", place["node"]), {"rack": place["rack"], "leaf": place["leaf"]})
    for gpu in world.wiring.gpus_of(node):
        if not world.ills.lost[gpu]:
            entity = Entity("gpu", world.wiring.gpus[gpu])
            series += _columns(entity, devices.GAUGES, devices.COUNTERS)
            facts += _facts(
                entity,
                {
                    "node": place["node"],
                    "sku": world.spec.sku_of(node),
                    "uuid": world.wiring.uuid(gpu),
                    "pci": f"0000{world.wiring.bus_id(gpu).upper()}",
                },
            )
    return Layout(target, tuple(series), tuple(facts))


def node_layout(world: World, target: str) -> Layout:
    node = world.wiring.node(target[:-5])
    place = world.place_of(node)
    entity = Entity("node", place["node"])
    series = _columns(entity, fabric.NODE_GAUGES, fabric.NODE_COUNTERS)
    facts = _facts(Entity("target", target), {"job": "node", "node": place["node"]})
    facts += _facts(entity, {"rack": place["rack"], "leaf": place["leaf"]})
    for store, source in zip(storage.PER_NODE, ("nvme", "nfs"), strict=True):
        name = Entity("store", f"{place['node']}/{store}")
        series += [Series(c, name, Shape.COUNTER) for c in storage.SHOWN[store]]
        facts += _facts(name, {"node": place["node"], "source": source})
    for port in world.wiring.ports_of(node):
        name = Entity("port", world.wiring.ports[port])
        series += _columns(name, fabric.PORT_GAUGES, fabric.PORT_COUNTERS)
        facts += _facts(name, {"node": place["node"]})
    return Layout(target, tuple(series), tuple(facts))


def switch_layout(world: World, target: str) -> Layout:
    """Every port of one leaf's switch, and what it faces."""
    leaf, own = target.partition(":")[0], world.switches.host[world.switches.rows_of(target)].tolist()
    series: list[Series] = []
    facts = _facts(Entity("target", target), {"job": "infiniband"})
    for number, port in enumerate(own, 1):
        entity = Entity("switchport", f"{switches.guid(leaf)}/{number}")
        series += _columns(entity, switches.GAUGES, switches.COUNTERS)
        host, _, rail = world.wiring.ports[port].partition("/mlx5_")
        far = {"far": f"{host} HCA-{int(rail) + 1}", "far_port": "1", "far_kind": "CA"}
        up = {"far": "spine", "far_port": str(number), "far_kind": "SW"}
        facts += _facts(entity, {"switch": leaf, **(far if port >= 0 else up)})
    return Layout(target, tuple(series), tuple(facts))


def lb_layout(world: World) -> Layout:
    series: list[Series] = []
    for slot in world.slots_in_use():
        entity = Entity("engine", world.fleet.engines[slot].address)
        series += _columns(entity, LB_GAUGES, LB_COUNTERS)
    for name in gateway.names_of([pool.name for pool in world.spec.pools]):
        series += _columns(Entity("class" if "/" in name else "pool", name), gateway.GAUGES, gateway.COUNTERS)
    return Layout(LB_TARGET, tuple(series), (Fact(Entity("target", LB_TARGET), "job", "haproxy"),))


def engine_layout(world: World, engine: Engine) -> Layout:
    family = world.spec.pools[engine.pool].engine
    entity = Entity("engine", engine.address)
    hidden = _HIDDEN[family]
    series = [s for s in _columns(entity, ENGINE_GAUGES, ENGINE_COUNTERS) if s.signal not in hidden]
    for name in histogram.shown_by(family):
        edges = (*histogram.EDGES[family][name], np.inf)
        series += [Series(name, entity, Shape.BUCKET, le=float(edge)) for edge in edges]
        series += [Series(name, entity, Shape.SUM), Series(name, entity, Shape.COUNT)]
    if world.spec.pools[engine.pool].accepted:
        series += [Series(name, entity, Shape.COUNTER) for name in drafts.SIGNALS]
    facts = world.facts_of(engine)
    rack, leaf = facts.pop("rack"), facts.pop("leaf")
    about = _facts(entity, facts) + _facts(Entity("node", facts["node"]), {"rack": rack, "leaf": leaf})
    about += _facts(Entity("target", engine.address), {"job": family, "node": facts["node"]})
    return Layout(engine.address, tuple(series), tuple(about))


def family_columns(family: str) -> Indices:
    """Columns of the engine rows that a page of the family shows, in the order of engine_layout."""
    names = (*ENGINE_GAUGES, *ENGINE_COUNTERS)
    picked = [k for k, name in enumerate(names) if name not in _HIDDEN[family]]
    sums = len(names) + histogram.WIDTH
    for k, name in enumerate(histogram.NAMES):
        if name not in histogram.shown_by(family):
            continue
        own = histogram.columns(family, name) + len(names) + histogram.BASE[name]
        picked += [*own, sums + k, own[-1]]
    return np.array(picked, dtype=np.intp)
