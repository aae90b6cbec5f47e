"""What the exporters of a simulated cluster show, in canonical columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array, Event, Layout, Scrape, Target
from simulator import devices, fabric, gateway, histogram, layouts, serving, storage
from simulator.fleet import State
from simulator.wiring import LB_TARGET

if TYPE_CHECKING:
    from simulator.world import World

_WHOLE = {
    *serving.COUNTERS, "ecc_sbe_per_s", "ecc_dbe_per_s", "nvlink_crc_per_s", "nvlink_replay_per_s",
    "nvlink_recovery_per_s", "pcie_replay_per_s", *fabric.PORT_COUNTERS, "oom_kills_per_s", "net_rx_bytes_s",
    "net_tx_bytes_s", "net_errors_per_s", "net_drops_per_s",
} - {"rx_pause_ratio", "tx_pause_ratio"}  # fmt: skip
"""Counters of things, not of time or energy: exporters show whole numbers."""
PROBE_TIMEOUT_S = 10.0
_STORE_COLUMNS = tuple(
    np.array(column)
    for column in zip(
        *(
            (s, storage.COUNTERS.index(c))
            for s, name in enumerate(storage.PER_NODE)
            for c in storage.SHOWN[name]
        ),
        strict=True,
    )
)
"""(column,) store of a node, and its counter, in the order of the node's page."""


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
        self._rows_now: tuple[object, dict[str, Array]] = (None, {})
        self._planned: tuple[object, list[tuple[str, Layout | None, str]]] = (None, [])
        self._seen: dict[str, float] = {}
        self._targets: tuple[int, tuple[Target, ...]] = (-1, ())
        self._slots: tuple[int, list[int]] = (-1, [])
        self._families = {f: layouts.family_columns(f) for f in histogram.EDGES}
        slots = world.serving.slots
        self._gpu_zero = np.zeros_like(world.gpus.counters)
        self._node_zero = np.zeros_like(world.hosts.counters)
        self._port_zero = np.zeros_like(world.ports.counters)
        self._store_zero = np.zeros_like(world.stores.counters[:, _STORE_COLUMNS[0], _STORE_COLUMNS[1]])
        self._switch_zero = np.zeros_like(world.switches.counters)
        self._engine_zero = np.zeros_like(world.serving.totals)
        self._count_zero = np.zeros((slots, histogram.WIDTH))
        self._draft_zero = np.zeros_like(world.drafts.counters)
        self._nothing = np.zeros((slots, 1))
        self._lb_zero = np.zeros((slots, len(layouts.LB_COUNTERS)))
        self._gateway_zero = np.zeros_like(world.gateway.counters)
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
        self._store_before = world.stores.counters[:, _STORE_COLUMNS[0], _STORE_COLUMNS[1]]
        self._switch_before = world.switches.counters.copy()
        self._engine_before = world.serving.totals.copy()
        self._gateway_before = world.gateway.counters.copy()
        self._count_before = world.serving.counts.copy()
        self._draft_before = world.drafts.counters.copy()

    # -- resets -------------------------------------------------------------------------------------

    def process_started(self, slot: int, is_new_server: bool) -> None:
        """A fresh engine process counts from zero; the load balancer does only for a server it did not know."""
        totals, counts = self._world.serving.totals[slot], self._world.serving.counts[slot]
        self._engine_zero[slot] = self._engine_before[slot] = totals
        self._count_zero[slot] = self._count_before[slot] = counts
        self._draft_zero[slot] = self._draft_before[slot] = self._world.drafts.counters[slot]
        if is_new_server:
            self._lb_zero[slot] = totals[8 : 8 + len(layouts.LB_COUNTERS)]

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
            counted = world.stores.counters[node, _STORE_COLUMNS[0], _STORE_COLUMNS[1]]
            self._store_zero[node] = self._store_before[node] = counted
        elif target in world.switches.targets:
            own = world.switches.rows_of(target)
            self._switch_zero[own] = self._switch_before[own] = world.switches.counters[own]
        elif target == LB_TARGET:
            self._lb_zero[:] = world.serving.totals[:, 8 : 8 + len(layouts.LB_COUNTERS)]
            self._engine_before[:, 8 : 8 + len(layouts.LB_COUNTERS)] = self._lb_zero
            self._gateway_zero = self._gateway_before = world.gateway.counters.copy()
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
            found = [_target(LB_TARGET, "haproxy", {"pools": gateway.route_map(world.spec)})]
            for node in range(len(wiring.nodes)):
                for port, job in (("9400", "dcgm"), ("9100", "node")):
                    found.append(_target(f"{wiring.nodes[node]}:{port}", job, world.place_of(node)))
            for engine in sorted(world.fleet.engines.values(), key=lambda e: e.address):
                found.append(
                    _target(engine.address, world.spec.pools[engine.pool].engine, world.facts_of(engine))
                )
            for leaf, address in zip(world.switches.leaves, world.switches.targets, strict=True):
                found.append(_target(address, "infiniband", {"leaf": leaf}))
            self._targets = (world.fleet.revision, tuple(found))
        return self._targets[1]

    def status(self, target: str) -> str:
        """ "" when the target answers, otherwise "refused", "hang", "error" or "stale"."""
        world = self._world
        told = world.ills.outage.get(target, "") if world.ills.outage else ""
        if target == LB_TARGET or target in world.switches.targets:
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
        at = world.at - draws[0] * world.spec.scrape_jitter_s
        rows = self._rows(world.share_at(at))
        lost = (draws[1] < world.spec.telemetry_loss).tolist()
        odd = self._odd()
        readings = []
        for (address, layout, status), when, gone in zip(self._plan(odd), at.tolist(), lost, strict=True):
            if address in odd:
                status = "loss" if gone else self.status(address)
                readings.append(self._reading(address, when, status, rows.__getitem__))
            elif gone or layout is None:
                readings.append(
                    Scrape(address, when, None, None, (), _ERRORS["loss" if gone else status], 0.002)
                )
            else:
                readings.append(Scrape(address, when, layout, rows[address], (), "", 0.004))
        return readings

    def _odd(self) -> frozenset[str]:
        """Targets that are out of order or have a kernel message to tell: all others read as planned."""
        world, ills = self._world, self._world.ills
        odd = {*ills.outage, *ills.absent, *self._stale}
        recent = (e for e in reversed(world.events) if e.at >= world.at - 3600.0)
        odd |= {f"{e.entity.name.split('/')[0]}:9100" for e in recent}
        for node in {*ills.hung.nonzero()[0].tolist(), *world.wiring.gpu_node[ills.lost].tolist()}:
            name = world.wiring.nodes[node]
            odd |= {f"{name}:9400", f"{name}:9100"}
            odd |= {e.address for e in world.fleet.engines.values() if e.node == node}
        return frozenset(odd)

    def _plan(self, odd: frozenset[str]) -> list[tuple[str, Layout | None, str]]:
        """(address, layout, why it does not answer) of every target that is not odd, made again when the fleet changes."""
        key = (self._world.fleet.revision, odd)
        if self._planned[0] != key:
            plan: list[tuple[str, Layout | None, str]] = []
            for target in self.targets():
                status = "" if target.address in odd else self.status(target.address)
                is_plain = not status and target.address not in odd
                plan.append((target.address, self._layout(target.address) if is_plain else None, status))
            self._planned = (key, plan)
        return self._planned[1]

    def _rows(self, share: Array) -> dict[str, Array]:
        """Values by target, each at its own `share` of the last physics step, in the order of targets()."""
        world, targets = self._world, self.targets()
        nodes = len(world.wiring.nodes)
        # the order of targets(): the load balancer, then (gpus, node) of each node, then engines, then switches
        gpus = self._gpu_rows(share[1 : 1 + 2 * nodes : 2][world.wiring.gpu_node]).reshape(nodes, -1)
        host = share[2 : 2 + 2 * nodes : 2]
        ports = self._port_rows(host[world.wiring.port_node]).reshape(nodes, -1)
        hosts = np.concatenate((self._node_rows(host), self._store_rows(host), ports), axis=1)
        last = len(targets) - len(world.switches.targets)
        engines = targets[1 + 2 * nodes : last]
        if self._slots[0] != world.fleet.revision:
            self._slots = (world.fleet.revision, [world.slot_of(t.address) for t in engines])
        slots = self._slots[1]
        slot_share = np.ones(world.serving.slots)
        slot_share[slots] = share[1 + 2 * nodes : last]
        rows = self._engine_rows(slot_share)
        families = {name: rows[:, columns] for name, columns in self._families.items()}
        servers = self._lb_rows(float(share[0]))[world.slots_in_use()].ravel()
        values: dict[str, Array] = {
            LB_TARGET: np.concatenate((servers, self._gateway_rows(float(share[0])).ravel()))
        }
        for node in range(nodes):
            values[targets[1 + 2 * node].address] = self._present(node, gpus[node])
            values[targets[2 + 2 * node].address] = hosts[node]
        for target, slot in zip(engines, slots, strict=True):
            values[target.address] = families[target.job][slot]
        if world.drafts.any:
            drafted = self._draft_rows(slot_share)
            for target, slot in zip(engines, slots, strict=True):
                if world.spec.pools[world.fleet.engines[slot].pool].accepted:
                    values[target.address] = np.concatenate((values[target.address], drafted[slot]))
        if world.switches.targets:
            page = self._switch_rows(share[last:][world.switches.leaf])
            for address in world.switches.targets:
                values[address] = page[world.switches.rows_of(address)].ravel()
        return values

    def _present(self, node: int, row: Array) -> Array:
        """The columns of the GPUs that are on the bus."""
        world = self._world
        if not world.any_lost:
            return row
        lost = world.ills.lost[list(world.wiring.gpus_of(node))]
        return row.reshape(len(lost), -1)[~lost].ravel()

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
        world = self._world
        key = (world.at, world.share_at(world.at), world.fleet.routes, world.any_lost)
        if self._rows_now[0] != key:
            self._rows_now = (key, self._rows(np.full(len(self.targets()), float(key[1]))))
        return self._rows_now[1][target]

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
        events: tuple[Event, ...] = ()
        if target.endswith(":9100"):
            since = self._seen.get(target, -np.inf)
            events = self._world.node_events(target[:-5], since, at)
            self._seen[target] = at
        return Scrape(target, at, layout, values, events, took_s=0.004)

    def _between(
        self, before: Array, now: Array, zero: Array, share: Array | float, floor: NDArray[np.bool_] | None
    ) -> Array:
        totals = now - before
        totals *= share[:, None] if isinstance(share, np.ndarray) and share.ndim else share
        totals += before
        # rounding must not carry a total beyond what the next step starts from
        np.minimum(totals, now, out=totals)
        totals -= zero
        if floor is not None:
            np.floor(totals, out=totals, where=floor)
        return np.maximum(totals, 0.0, out=totals)

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

    def _store_rows(self, share: Array | float) -> Array:
        now = self._world.stores.counters[:, _STORE_COLUMNS[0], _STORE_COLUMNS[1]]
        return self._between(self._store_before, now, self._store_zero, share, None)

    def _port_rows(self, share: Array | float) -> Array:
        ports = self._world.ports
        counters = self._between(self._port_before, ports.counters, self._port_zero, share, self._port_floor)
        return np.concatenate((ports.gauges, counters), axis=1)

    def _draft_rows(self, share: Array) -> Array:
        now = self._world.drafts.counters
        return np.floor(self._between(self._draft_before, now, self._draft_zero, share, None))

    def _switch_rows(self, share: Array | float) -> Array:
        own = self._world.switches
        counters = self._between(self._switch_before, own.counters, self._switch_zero, share, None)
        return np.concatenate((own.gauges, np.floor(counters)), axis=1)

    def _engine_rows(self, share: Array | float) -> Array:
        world = self._world
        totals = self._between(self._engine_before, world.serving.totals, self._engine_zero, share, None)
        counts = self._between(self._count_before, world.serving.counts, self._count_zero, share, None)
        # one running sum over all histograms; what stood before each one begins is taken off again
        cumulative = counts.cumsum(axis=1)
        cumulative -= np.concatenate((self._nothing, cumulative), axis=1)[:, histogram.START]
        cumulative += 1e-6
        np.floor(cumulative, out=cumulative)
        return np.concatenate(
            (world.engine_gauges, np.floor(totals[:, :8]), cumulative, totals[:, serving.SUMS :]), axis=1
        )

    def _lb_rows(self, share: float) -> Array:
        world = self._world
        first, last = 8, 8 + len(layouts.LB_COUNTERS)
        before, now = self._engine_before[:, first:last], world.serving.totals[:, first:last]
        counters = np.floor(self._between(before, now, self._lb_zero, share, None))
        return np.concatenate((world.lb_gauges, counters), axis=1)

    def _gateway_rows(self, share: float) -> Array:
        gateway = self._world.gateway
        counters = np.floor(
            self._between(self._gateway_before, gateway.counters, self._gateway_zero, share, None)
        )
        return np.concatenate((gateway.gauges, counters), axis=1)

    # -- meaning ------------------------------------------------------------------------------------

    def _layout(self, target: str) -> Layout:
        """The layout of the target, the same object as long as its series are the same."""
        world = self._world
        key = world.layout_key(target)
        known = self._layouts.get(target)
        if known is not None and known[0] == key:
            return known[1]
        if target == LB_TARGET:
            layout = layouts.lb_layout(world)
        elif target.endswith(":9400"):
            layout = layouts.gpu_layout(world, target)
        elif target.endswith(":9100"):
            layout = layouts.node_layout(world, target)
        elif target in world.switches.targets:
            layout = layouts.switch_layout(world, target)
        else:
            engine = world.engine_at(target)
            assert engine is not None
            layout = layouts.engine_layout(world, engine)
        self._layouts[target] = (key, layout)
        return layout


def _target(address: str, job: str, facts: dict[str, str]) -> Target:
    labels = {"instance": address, "job": job, **facts}
    return Target(address, job, labels=tuple(sorted(labels.items())))
