"""What the exporters of a simulated cluster show, in canonical columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from daemon.model import Array, Entity, Fact, Layout, Scrape, Series, Shape, Target
from simulator import devices, fabric, histogram, serving
from simulator.fleet import Engine, State
from simulator.wiring import LB_TARGET

if TYPE_CHECKING:
    from simulator.world import World

ENGINE_GAUGES = (
    "running", "waiting", "waiting_deferred", "kv_used_ratio", "kv_blocks", "kv_block_tokens", "kv_capacity_tokens",
    "asleep", "rss_bytes", "start_time_s",
)  # fmt: skip
ENGINE_COUNTERS = serving.COUNTERS[:8]
LB_GAUGES = ("lb_sessions", "lb_queue", "lb_up", "lb_weight")
LB_COUNTERS = serving.COUNTERS[8:]
_HIDDEN = {
    "vllm": ("kv_capacity_tokens",),
    "sglang": ("waiting_deferred", "kv_blocks", "kv_block_tokens", "asleep", "rss_bytes", "start_time_s",
               "prefix_queries_s", "prefix_hits_s"),
}  # fmt: skip
"""Signals an engine family does not export."""
_WHOLE = {
    *serving.COUNTERS, "ecc_sbe_per_s", "ecc_dbe_per_s", "nvlink_crc_per_s", "nvlink_replay_per_s",
    "nvlink_recovery_per_s", "pcie_replay_per_s", *fabric.PORT_COUNTERS, "oom_kills_per_s", "net_rx_bytes_s",
    "net_tx_bytes_s", "net_errors_per_s", "net_drops_per_s",
} - {"rx_pause_ratio", "tx_pause_ratio"}  # fmt: skip
"""Counters of things, not of time or energy: exporters show whole numbers."""
PROBE_TIMEOUT_S = 10.0


class Unreachable(Exception):
    """A target gives no page. status : "refused", "hang", "error" or "loss"."""

    def __init__(self, target: str, status: str) -> None:
        super().__init__(f"{target}: {_ERRORS[status]}")
        self.status = status


_ERRORS = {
    "refused": "connection refused",
    "hang": f"no answer within {PROBE_TIMEOUT_S:.0f} s",
    "error": "HTTP 500",
    "loss": "connection reset",
}


class Exporters:
    """Pages of every target, interpolated between the last two steps of the physics.

    The physics runs up to one step ahead of what is asked, so that counters are monotone at any instant.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._layouts: dict[str, tuple[object, Layout]] = {}
        self._stale: dict[str, Array] = {}
        self._seen: dict[str, float] = {}
        self._targets: tuple[int, tuple[Target, ...]] = (-1, ())
        self._families = {f: _family_columns(f) for f in histogram.EDGES}
        slots = world.serving.slots
        self._gpu_zero = np.zeros_like(world.gpus.counters)
        self._node_zero = np.zeros_like(world.hosts.counters)
        self._port_zero = np.zeros_like(world.ports.counters)
        self._engine_zero = np.zeros_like(world.serving.totals)
        self._count_zero = np.zeros((slots, histogram.WIDTH))
        self._lb_zero = np.zeros((slots, len(LB_COUNTERS)))
        self._gpu_floor = np.array([name in _WHOLE for name in devices.COUNTERS])
        self._node_floor = np.array([name in _WHOLE for name in fabric.NODE_COUNTERS])
        self._port_floor = np.array([name in _WHOLE for name in fabric.PORT_COUNTERS])
        self.keep()

    # -- one step of the physics ----------------------------------------------------------------

    def keep(self) -> None:
        """Remember the totals before a step, to interpolate towards those after it."""
        world = self._world
        self._gpu_before = world.gpus.counters.copy()
        self._node_before = world.hosts.counters.copy()
        self._port_before = world.ports.counters.copy()
        self._engine_before = world.serving.totals.copy()
        self._count_before = world.serving.counts.copy()

    # -- resets -------------------------------------------------------------------------------------

    def process_started(self, slot: int, is_new_server: bool) -> None:
        """A fresh engine process counts from zero; the load balancer does only for a server it did not know."""
        totals, counts = self._world.serving.totals[slot], self._world.serving.counts[slot]
        self._engine_zero[slot] = self._engine_before[slot] = totals
        self._count_zero[slot] = self._count_before[slot] = counts
        if is_new_server:
            self._lb_zero[slot] = totals[8 : 8 + len(LB_COUNTERS)]

    def exporter_restarted(self, target: str) -> None:
        """Every counter of the target begins again at zero, as after a driver or process restart."""
        world = self._world
        host, _, port = target.partition(":")
        if port == "9400":
            rows = list(world.wiring.gpus_of(world.wiring.node(host)))
            self._gpu_zero[rows] = self._gpu_before[rows] = world.gpus.counters[rows]
        elif port == "9100":
            node = world.wiring.node(host)
            rows = list(world.wiring.ports_of(node))
            self._node_zero[node] = self._node_before[node] = world.hosts.counters[node]
            self._port_zero[rows] = self._port_before[rows] = world.ports.counters[rows]
        elif target == LB_TARGET:
            self._lb_zero[:] = world.serving.totals[:, 8 : 8 + len(LB_COUNTERS)]
            self._engine_before[:, 8 : 8 + len(LB_COUNTERS)] = self._lb_zero
        elif (engine := world.fleet.at(target)) is not None:
            self.process_started(engine.slot, False)
        else:
            raise KeyError(f"no target {target!r} whose counters could start again")

    # -- targets ------------------------------------------------------------------------------------

    def targets(self) -> tuple[Target, ...]:
        """What discovery shows now."""
        world = self._world
        if self._targets[0] != world.fleet.revision:
            wiring = world.wiring
            found = [Target(LB_TARGET, "haproxy", labels=(("instance", LB_TARGET), ("job", "haproxy")))]
            for node in range(len(wiring.nodes)):
                for port, job in (("9400", "dcgm"), ("9100", "node")):
                    found.append(_target(f"{wiring.nodes[node]}:{port}", job, world.place_of(node)))
            for engine in sorted(world.fleet.engines.values(), key=lambda e: e.address):
                found.append(_target(engine.address, world.spec.pools[engine.pool].engine, world.facts_of(engine)))
            self._targets = (world.fleet.revision, tuple(found))
        return self._targets[1]

    def status(self, target: str) -> str:
        """ "" when the target answers, otherwise "refused", "hang", "error" or "stale"."""
        world = self._world
        told = world.ills.outage.get(target, "") if world.ills.outage else ""
        if target == LB_TARGET:
            return told
        host, _, port = target.partition(":")
        if world.ills.hung[world.node_index[host]]:
            return "hang"
        if port not in ("9400", "9100"):
            engine = world.engine_at(target)
            if engine is None or engine.state in (State.STARTING, State.FAILED):
                return "refused"
        return told

    def misses(self) -> bool:
        """Draw whether the next reading fails for no reason."""
        return bool(self._world.telemetry_rng.random() < self._world.spec.telemetry_loss)

    # -- reading ----------------------------------------------------------------------------------

    def sweep(self) -> list[Scrape]:
        """One reading of every target, each a little late, some lost."""
        world = self._world
        targets = self.targets()
        draws = world.telemetry_rng.random((2, len(targets)))
        jitter = draws[0] * world.spec.scrape_jitter_s
        loss = world.spec.telemetry_loss
        nodes = len(world.wiring.nodes)
        # the order of targets(): the load balancer, then (gpus, node) of each node, then engines
        gpu_rows = self._gpu_rows(world.share_at(world.at - jitter[1 : 1 + 2 * nodes : 2])[world.wiring.gpu_node])
        node_share = world.share_at(world.at - jitter[2 : 2 + 2 * nodes : 2])
        node_rows, port_rows = self._node_rows(node_share), self._port_rows(node_share[world.wiring.port_node])
        slot_share = np.ones(world.serving.slots)
        engines = [world.engine_at(t.address) for t in targets[1 + 2 * nodes :]]
        for k, engine in enumerate(engines):
            assert engine is not None
            slot_share[engine.slot] = world.share_at(world.at - jitter[1 + 2 * nodes + k])
        engine_rows = self._engine_rows(slot_share)
        lb_rows = self._lb_rows(float(world.share_at(world.at - jitter[0])))

        def values(target: str) -> Array:
            return self._pick(target, gpu_rows, node_rows, port_rows, engine_rows, lb_rows)

        ats, lost = (world.at - jitter).tolist(), (draws[1] < loss).tolist()
        return [
            self._reading(target.address, ats[k], "loss" if lost[k] else self.status(target.address), values)
            for k, target in enumerate(targets)
        ]

    def scrape(self, target: str) -> Scrape:
        """A reading of one target at this very instant; never lost by chance."""
        return self._reading(target, self._world.at, self.status(target), self._values_now)

    def page_values(self, target: str) -> tuple[Layout, Array]:
        """What the exporter's page shows now. Raises Unreachable."""
        scrape = self.scrape(target)
        if scrape.layout is None or scrape.values is None:
            status = next(s for s, text in _ERRORS.items() if text == scrape.error)
            raise Unreachable(target, status)
        return scrape.layout, scrape.values

    def _values_now(self, target: str) -> Array:
        share = self._world.share_at(self._world.at)
        return self._pick(
            target,
            self._gpu_rows(share),
            self._node_rows(share),
            self._port_rows(share),
            self._engine_rows(share),
            self._lb_rows(float(share)),
        )

    def _reading(self, target: str, at: float, status: str, values_of: Callable[[str], Array]) -> Scrape:
        if status in _ERRORS:
            took = PROBE_TIMEOUT_S if status == "hang" else 0.002
            return Scrape(target, at, None, None, error=_ERRORS[status], took_s=took)
        layout = self._layout(target)
        if status == "stale":
            values = self._stale.get(target)
            if values is None or len(values) != len(layout.series):
                values = self._stale[target] = values_of(target)
        else:
            self._stale.pop(target, None)
            values = values_of(target)
        if self._world.ills.absent.get(target):
            gone = self._world.ills.absent[target]
            values = np.where([s.signal in gone for s in layout.series], np.nan, values)
        events = ()
        if target.endswith(":9100"):
            since = self._seen.get(target, -np.inf)
            events = self._world.node_events(target[:-5], since, at)
            self._seen[target] = at
        return Scrape(target, at, layout, values, events, took_s=0.004)

    def _pick(self, target: str, gpus: Array, nodes: Array, ports: Array, engines: Array, lb: Array) -> Array:
        world = self._world
        if target == LB_TARGET:
            return lb[world.slots_in_use()].ravel()
        host, _, port = target.partition(":")
        node = world.node_index[host]
        if port == "9400":
            first = node * world.spec.gpus_per_node
            rows = gpus[first : first + world.spec.gpus_per_node]
            lost = world.ills.lost[first : first + world.spec.gpus_per_node]
            return rows[~lost].ravel() if world.any_lost else rows.ravel()
        if port == "9100":
            first = node * world.spec.ports_per_node
            return np.concatenate((nodes[node], ports[first : first + world.spec.ports_per_node].ravel()))
        engine = world.engine_at(target)
        assert engine is not None
        row: Array = engines[engine.slot, self._families[world.spec.pools[engine.pool].engine]]
        return row

    def _between(self, before: Array, now: Array, zero: Array, share: Array | float, floor: Array | None) -> Array:
        part = share[:, None] if isinstance(share, np.ndarray) and share.ndim else share
        totals = before + (now - before) * part - zero
        if floor is not None:
            np.floor(totals, out=totals, where=floor)
        return np.asarray(np.maximum(totals, 0.0), dtype=float)

    def _gpu_rows(self, share: Array | float) -> Array:
        gpus = self._world.gpus
        counters = self._between(self._gpu_before, gpus.counters, self._gpu_zero, share, self._gpu_floor)
        return np.concatenate((gpus.gauges, counters), axis=1)

    def _node_rows(self, share: Array | float) -> Array:
        hosts = self._world.hosts
        hosts.gauges[:, 1] = self._world.at
        for name, skew_s in self._world.ills.skew_s.items():
            hosts.gauges[self._world.node_index[name], 1] += skew_s
        counters = self._between(self._node_before, hosts.counters, self._node_zero, share, self._node_floor)
        return np.concatenate((hosts.gauges, counters), axis=1)

    def _port_rows(self, share: Array | float) -> Array:
        ports = self._world.ports
        counters = self._between(self._port_before, ports.counters, self._port_zero, share, self._port_floor)
        return np.concatenate((ports.gauges, counters), axis=1)

    def _engine_rows(self, share: Array | float) -> Array:
        world = self._world
        totals = self._between(self._engine_before, world.serving.totals, self._engine_zero, share, None)
        counts = self._between(self._count_before, world.serving.counts, self._count_zero, share, None)
        cumulative = [
            np.floor(counts[:, first : first + len(histogram.UNION[name]) + 1].cumsum(axis=1) + 1e-6)
            for name, first in histogram.BASE.items()
        ]
        return np.concatenate(
            (world.engine_gauges, np.floor(totals[:, :8]), *cumulative, totals[:, serving.SUMS :]), axis=1
        )

    def _lb_rows(self, share: float) -> Array:
        world = self._world
        first, last = 8, 8 + len(LB_COUNTERS)
        before, now = self._engine_before[:, first:last], world.serving.totals[:, first:last]
        counters = np.floor(self._between(before, now, self._lb_zero, share, None))
        return np.concatenate((world.lb_gauges, counters), axis=1)

    # -- meaning ------------------------------------------------------------------------------------

    def _layout(self, target: str) -> Layout:
        """The layout of the target, the same object as long as its series are the same."""
        world = self._world
        key = world.layout_key(target)
        known = self._layouts.get(target)
        if known is not None and known[0] == key:
            return known[1]
        if target == LB_TARGET:
            layout = _lb_layout(world)
        elif target.endswith(":9400"):
            layout = _gpu_layout(world, target)
        elif target.endswith(":9100"):
            layout = _node_layout(world, target)
        else:
            engine = world.engine_at(target)
            assert engine is not None
            layout = _engine_layout(world, engine)
        self._layouts[target] = (key, layout)
        return layout


def _target(address: str, job: str, facts: dict[str, str]) -> Target:
    labels = {"instance": address, "job": job, **facts}
    return Target(address, job, labels=tuple(sorted(labels.items())))


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
     "rss_bytes", "start_time_s", "lb_up", "lb_weight"}
)  # fmt: skip


def _combine(signal: str) -> str:
    return "max" if signal in _MAXIMA else "sum"


def _gpu_layout(world: World, target: str) -> Layout:
    node = world.wiring.node(target[:-5])
    place = world.place_of(node)
    series: list[Series] = []
    facts = _facts(Entity("target", target), {"job": "dcgm", **place})
    facts += _facts(Entity("node", place["node"]), {"rack": place["rack"], "leaf": place["leaf"]})
    for gpu in world.wiring.gpus_of(node):
        if not world.ills.lost[gpu]:
            entity = Entity("gpu", world.wiring.gpus[gpu])
            series += _columns(entity, devices.GAUGES, devices.COUNTERS)
            own = {"sku": world.spec.sku, "uuid": world.wiring.uuid(gpu), "pci_bus_id": world.wiring.bus_id(gpu)}
            facts += _facts(entity, {**own, **place})
    return Layout(target, tuple(series), tuple(facts))


def _node_layout(world: World, target: str) -> Layout:
    node = world.wiring.node(target[:-5])
    place = world.place_of(node)
    entity = Entity("node", place["node"])
    series = _columns(entity, fabric.NODE_GAUGES, fabric.NODE_COUNTERS)
    facts = _facts(Entity("target", target), {"job": "node", **place})
    facts += _facts(entity, {"rack": place["rack"], "leaf": place["leaf"]})
    for port in world.wiring.ports_of(node):
        name = Entity("port", world.wiring.ports[port])
        series += _columns(name, fabric.PORT_GAUGES, fabric.PORT_COUNTERS)
        facts += _facts(name, place)
    return Layout(target, tuple(series), tuple(facts))


def _lb_layout(world: World) -> Layout:
    series: list[Series] = []
    for slot in world.slots_in_use():
        entity = Entity("engine", world.fleet.engines[slot].address)
        series += _columns(entity, LB_GAUGES, LB_COUNTERS)
    return Layout(LB_TARGET, tuple(series), (Fact(Entity("target", LB_TARGET), "job", "haproxy"),))


def _engine_layout(world: World, engine: Engine) -> Layout:
    family = world.spec.pools[engine.pool].engine
    entity = Entity("engine", engine.address)
    hidden = _HIDDEN[family]
    series = [s for s in _columns(entity, ENGINE_GAUGES, ENGINE_COUNTERS) if s.signal not in hidden]
    for name in histogram.NAMES:
        edges = (*histogram.EDGES[family][name], np.inf)
        series += [Series(name, entity, Shape.BUCKET, le=float(edge)) for edge in edges]
        series += [Series(name, entity, Shape.SUM), Series(name, entity, Shape.COUNT)]
    facts = world.facts_of(engine)
    about = _facts(entity, facts) + _facts(Entity("target", engine.address), {"job": family, **facts})
    return Layout(engine.address, tuple(series), tuple(about))


def _family_columns(family: str) -> np.ndarray:
    """Columns of the engine rows that a page of the family shows, in the order of _engine_layout."""
    names = (*ENGINE_GAUGES, *ENGINE_COUNTERS)
    picked = [k for k, name in enumerate(names) if name not in _HIDDEN[family]]
    sums = len(names) + histogram.WIDTH
    for k, name in enumerate(histogram.NAMES):
        own = histogram.columns(family, name) + len(names) + histogram.BASE[name]
        picked += [*own, sums + k, own[-1]]
    return np.array(picked, dtype=np.intp)
