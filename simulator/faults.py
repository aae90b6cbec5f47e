"""Faults as changes of the physics, one function a kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from daemon.model import NAN, Entity
from simulator.conditions import Conditions
from simulator.wiring import Wiring


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    entity : what is sick. at : onset, seconds since the epoch. duration_s : it heals then at the latest.
    magnitude : NaN = the kind's usual size, see its function. repair_s : heals after that long in isolation, NaN =
    only time heals it. ramp_s : grows linearly from nothing. period_s : on and off again, half a period each.
    detail : what the kind needs beside it, e.g. the mode of an outage or the version of a deploy.
    """

    kind: str
    entity: Entity
    at: float
    duration_s: float
    magnitude: float = NAN
    repair_s: float = 1200.0
    ramp_s: float = 0.0
    period_s: float = 0.0
    detail: str = ""

    def __post_init__(self) -> None:
        if self.kind not in EFFECTS:
            raise ValueError(f"unknown fault kind {self.kind!r}; use one of {sorted(EFFECTS)}")
        if self.entity.kind not in ENTITY_KINDS[self.kind]:
            wanted = " or ".join(ENTITY_KINDS[self.kind])
            raise ValueError(f"fault {self.kind}: the entity is {self.entity}; it must be a {wanted}")

    @property
    def end(self) -> float:
        return self.at + self.duration_s

    def size(self, usual: float) -> float:
        return usual if math.isnan(self.magnitude) else self.magnitude

    def strength(self, now: float) -> float:
        """How much of the fault is there, 0..1."""
        age = now - self.at
        if age < 0 or now >= self.end:
            return 0.0
        if self.period_s > 0 and (age % self.period_s) >= self.period_s / 2:
            return 0.0
        return min(1.0, age / self.ramp_s) if self.ramp_s > 0 else 1.0


Effect = Callable[[Conditions, Fault, Wiring, float, float], None]
"""(conditions, fault, wiring, strength 0..1, age in seconds) -> None"""


def xid79(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The GPU falls off the bus: the gauge shows 79 for `magnitude` seconds (20), then its series are gone."""
    gpu = wiring.gpu(fault.entity.name)
    ills.xid[gpu] = 79
    ills.lost[gpu] = age_s >= fault.size(20.0)


def thermal_throttle(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Cooling fails: once hot, the clock falls by `magnitude` (0.3)."""
    ills.cooling[wiring.gpu(fault.entity.name)] = strength * fault.size(0.3)


def power_cap(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The power limit is `magnitude` (0.3) lower than its peers'."""
    ills.power_cap[wiring.gpu(fault.entity.name)] = 1 - strength * fault.size(0.3)


def slow_silicon(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The clock is `magnitude` (0.12) low without a reason shown."""
    ills.clock[wiring.gpu(fault.entity.name)] = 1 - strength * fault.size(0.12)


def dram_slow(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Memory bandwidth falls by `magnitude` (0.2)."""
    ills.dram[wiring.gpu(fault.entity.name)] = 1 - strength * fault.size(0.2)


def pcie_downgrade(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The PCIe link trains at `magnitude` (0.5) of its width, with replays."""
    gpu = wiring.gpu(fault.entity.name)
    ills.pcie[gpu] = fault.size(0.5)
    ills.pcie_replays[gpu] = 0.5


def nvlink_degraded(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """NVLink loses `magnitude` (0.3) of its bandwidth to replays."""
    gpu = wiring.gpu(fault.entity.name)
    ills.nvlink[gpu] = 1 - strength * fault.size(0.3)
    ills.nvlink_errors[gpu] = 40.0 * strength


def ecc_storm(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """`magnitude` (200) corrected memory errors a second; a row waits for its remap."""
    gpu = wiring.gpu(fault.entity.name)
    ills.ecc_sbe[gpu] = strength * fault.size(200.0)
    ills.remap_pending[gpu] = age_s > 300
    ills.dram[gpu] = 1 - 0.04 * strength


def app_xid(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """A program's own mistake: the gauge shows code `magnitude` (31), the hardware is well. A negative."""
    ills.xid[wiring.gpu(fault.entity.name)] = fault.size(31.0)


def rack_power(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The rack's power brake: every GPU in it slows by `magnitude` (0.5) and says so (bit 0x80)."""
    for node in wiring.nodes_in_rack(fault.entity.name):
        gpus = list(wiring.gpus_of(node))
        ills.clock[gpus] = 1 - strength * fault.size(0.5)
        ills.power_cap[gpus] = 0.6
        ills.bits[gpus] |= 0x80 | 0x8


def node_hang(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The node stops: exporters, engines and ports answer nobody."""
    ills.hung[wiring.node(fault.entity.name)] = strength > 0


def spot_reclaim(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The owner of the node gives notice and takes it `magnitude` (120) seconds later."""
    ills.hung[wiring.node(fault.entity.name)] = strength > 0 and age_s >= fault.size(120.0)


def cpu_contention(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The host's processors are shared with something else: prefill scheduling takes `magnitude` (0.6) longer."""
    ills.cpu[wiring.node(fault.entity.name)] = 1 + strength * fault.size(0.6)


def slow_replica(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """One engine takes `magnitude` (0.5) longer for every step, its hardware looks well."""
    ills.engine_slow[fault.entity.name] = 1 + strength * fault.size(0.5)


def slow_stage(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """One pipeline stage of an engine (`detail`, 0) takes `magnitude` (0.3) longer for its layers; the others wait for it."""
    ills.stage_slow[fault.entity.name] = int(fault.detail or 0), 1 + strength * fault.size(0.3)


def engine_hang(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The engine core hangs behind a living API server: it looks idle, the load balancer's sessions grow."""
    if strength > 0:
        ills.engine_hung.add(fault.entity.name)


def kv_thrash(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """A long-context tenant: prompts `magnitude` (6) times and answers twice as long fill the KV cache."""
    pool = _pool(wiring, fault)
    ills.pool_prompt[pool] = 1 + strength * (fault.size(6.0) - 1)
    ills.pool_output[pool] = 1 + strength


def traffic_burst(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Arrivals are `magnitude` (2.2) times the usual."""
    ills.pool_rate[_pool(wiring, fault)] = 1 + strength * (fault.size(2.2) - 1)


def nic_downgrade(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The link trains at `magnitude` (0.5) of its rate, without errors."""
    ills.port_rate[wiring.port(fault.entity.name)] = fault.size(0.5)


def pfc_storm(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The port holds the network `magnitude` (0.85) of the time; seconds later its leaf is held in turn."""
    port = wiring.port(fault.entity.name)
    a = ills.port
    a["tx_pause_ratio"][port] = strength * fault.size(0.85)
    a["pause_storm_per_s"][port] = 0.4 * strength
    a["buffer_passed_per_s"][port] = 300.0 * strength
    if age_s >= 10.0:
        victims = (wiring.port_leaf == wiring.port_leaf[port]) & (np.arange(len(wiring.ports)) != port)
        a["rx_pause_ratio"][victims] = strength * 0.4 * fault.size(0.85)


def slow_receiver(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The host cannot drain its port: pause out, discards, PCIe stalls, throughput below the line rate."""
    port = wiring.port(fault.entity.name)
    a = ills.port
    a["drain_ratio"][port] = strength * fault.size(0.3)
    a["pcie_stall_ratio"][port] = 0.4 * strength
    a["rx_discards_phy_per_s"][port] = 80.0 * strength
    a["buffer_passed_per_s"][port] = 500.0 * strength


def software_receiver(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The receiving process is too slow: `magnitude` (50) times a second it is not ready; links are clean."""
    ills.port["rnr_naks_per_s"][wiring.port(fault.entity.name)] = strength * fault.size(50.0)


def bad_cable(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Symbol errors (`magnitude` 50/s), a minute later retraining, then flaps; the peers see time-outs."""
    port = wiring.port(fault.entity.name)
    a = ills.port
    a["symbol_errors_per_s"][port] = strength * fault.size(50.0)
    a["corrected_bits_per_s"][port] = 3000.0 * strength
    a["link_recovery_per_s"][port] = 0.1 * strength if age_s > 60 else 0.0
    a["link_downed_per_s"][port] = 0.02 * strength if age_s > 180 else 0.0
    for peer in _peers(wiring, port):
        a["ack_timeouts_per_s"][peer] = 2.0 * strength
        a["seq_errors_per_s"][peer] = 5.0 * strength
    a["ack_timeouts_per_s"][port] = 0.2 * strength


def incast(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Many senders fill one receiver's link: ECN there, congestion notices handled by the senders."""
    port = wiring.port(fault.entity.name)
    ills.port["incast_bytes_s"][port] = strength * fault.size(0.95) * 50e9
    for peer in _senders(wiring, port):
        ills.port["cnp_handled_per_s"][peer] = 600.0 * strength


def downlink(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Incast on a fabric that marks nothing, as InfiniBand: the receiver is at line rate, senders wait for credit."""
    port = wiring.port(fault.entity.name)
    ills.port["incast_bytes_s"][port] = strength * fault.size(0.95) * 50e9
    ills.port["unmarked"][:] = 1.0
    for peer in _senders(wiring, port):
        ills.port["xmit_wait_per_s"][peer] = 4e6 * strength


def credit_stall(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The port gives its switch no credit for `magnitude` (0.5) of the time: only the switch counts what waits for it."""
    ills.port["credit_stall"][wiring.port(fault.entity.name)] = strength * fault.size(0.5)


def optic_ageing(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The optic corrects ever more bits (up to `magnitude` 20,000/s) and loses none."""
    ills.port["corrected_bits_per_s"][wiring.port(fault.entity.name)] = strength * fault.size(2e4)


def lossy_leaf(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Flow control is misconfigured on a leaf: sequence errors and time-outs without ECN or pause."""
    ports = _leaf_ports(wiring, fault)
    ills.port["seq_errors_per_s"][ports] = strength * fault.size(60.0)
    ills.port["ack_timeouts_per_s"][ports] = strength * 1.0


def uplink_congestion(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The leaf's uplinks are full: receivers behind other leaves see ECN, senders behind this one slow down."""
    mine = _leaf_ports(wiring, fault)
    ills.port["cnp_handled_per_s"][mine] = 400.0 * strength
    ills.port["ecn_share"][~mine] = strength * fault.size(1.0)
    ills.uplinks_full[fault.entity.name] = 0.5 * strength * fault.size(1.0)


def packet_spraying(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Packets take many paths and arrive out of order; nothing is lost. A negative."""
    ills.port["out_of_sequence_per_s"][_leaf_ports(wiring, fault)] = strength * fault.size(5000.0)


def deploy_regression(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """A new version is rolled out and is `magnitude` (0.3) slower: see simulator.fleet for the roll-out."""


def memory_leak(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The engine process grows by `magnitude` (1e6) bytes a second of host memory."""
    leaked = fault.size(1e6) * age_s if strength > 0 else 0.0
    ills.leaked[fault.entity.name] = leaked
    ills.host_used[wiring.node(fault.entity.name.split(":")[0])] += leaked


def prefix_collapse(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Prompts no longer share prefixes: `magnitude` (0.8) of the cache hits are gone. Nobody's hardware is to blame."""
    ills.pool_hits[_pool(wiring, fault)] = 1 - strength * fault.size(0.8)


def tidal_drain(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Somebody takes `magnitude` (0.3) of the pool's replicas out in an orderly way: see simulator.onset. A negative."""


def canary(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """One replica of the pool runs another version, just as fast: see simulator.onset. A negative."""


def busy_replica(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Sessions that stick give one replica `magnitude` (2) times its share: see simulator.onset. A negative."""


def mixed_sku(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The node's GPUs are of another kind, `magnitude` (0.15) lower in clock by design. A negative."""
    ills.clock[list(wiring.gpus_of(wiring.node(fault.entity.name)))] = 1 - fault.size(0.15)


def fleet_slow(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Every GPU of the cluster loses `magnitude` (0.1) of its clock at once, as on a hot day. A negative."""
    ills.clock *= 1 - strength * fault.size(0.1)


def cross_leaf(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """Half of the replica's ranks stand on a node under another leaf, `magnitude` (0.15) longer for every step; where: see
    simulator.onset. Nothing is broken: who isolates anything is wrong."""
    ills.engine_slow[fault.entity.name] = 1 + strength * fault.size(0.15)


def slow_store(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The shared store takes `magnitude` (8) times longer for every read, a start that reads from it likewise; detail "errors":
    requests time out as well. Isolating anything for it is wrong."""
    ills.share_slow = 1 + strength * (fault.size(8.0) - 1)
    ills.share_errors = 0.2 * strength if fault.detail == "errors" else 0.0


def slow_disk(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The node's local disk takes `magnitude` (30) times longer for every read. Nothing that serves feels it."""
    ills.disk_slow[wiring.node(fault.entity.name)] = 1 + strength * (fault.size(30.0) - 1)


def exporter_outage(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """One exporter fails while what it watches is well. detail : refused (default), hang, error or stale."""
    if strength > 0:
        ills.outage[fault.entity.name] = fault.detail or "refused"


def counter_reset(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The exporter restarts and its counters begin at zero: done once at onset, see simulator.telemetry."""


def absent_field(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The exporter leaves fields out. detail : canonical signal names, comma-separated."""
    ills.absent[fault.entity.name] = tuple((fault.detail or "tensor_active_ratio").split(","))


def clock_skew(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The node's clock is `magnitude` (90) seconds off."""
    ills.skew_s[fault.entity.name] = strength * fault.size(90.0)


def _pool(wiring: Wiring, fault: Fault) -> int:
    names = [pool.name for pool in wiring.spec.pools]
    if fault.entity.name not in names:
        raise KeyError(f"no pool {fault.entity.name!r}; there are {names}")
    return names.index(fault.entity.name)


def draft_drop(ills: Conditions, fault: Fault, wiring: Wiring, strength: float, age_s: float) -> None:
    """The draft model fits the requests no more: `magnitude` (0.6) of the accepted tokens are lost. The hardware is well."""
    ills.pool_accept[_pool(wiring, fault)] = 1 - strength * fault.size(0.6)


def _leaf_ports(wiring: Wiring, fault: Fault) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    numbers = np.unique(wiring.port_leaf)
    if fault.entity.name not in {f"l{k}" for k in numbers}:
        raise KeyError(f"no leaf {fault.entity.name!r}; there are {[f'l{k}' for k in numbers]}")
    return np.asarray(wiring.port_leaf == int(fault.entity.name[1:]))


def _peers(wiring: Wiring, port: int) -> list[int]:
    """Ports that talk to this one: the same rail of up to three other nodes behind the same leaf."""
    rails = wiring.spec.ports_per_node
    same = [
        p
        for p in range(len(wiring.ports))
        if p % rails == port % rails and p != port and wiring.port_leaf[p] == wiring.port_leaf[port]
    ]
    return same[:3]


def _senders(wiring: Wiring, port: int) -> list[int]:
    """Three ports that fill this one: its peers behind the leaf first, then the same rail elsewhere. One sender is no incast."""
    rails = wiring.spec.ports_per_node
    near = _peers(wiring, port)
    far = [p for p in range(port % rails, len(wiring.ports), rails) if p != port and p not in near]
    return [*near, *far][:3]


EFFECTS: Mapping[str, Effect] = {
    "xid79": xid79, "thermal-throttle": thermal_throttle, "power-cap": power_cap, "slow-silicon": slow_silicon,
    "dram-slow": dram_slow, "pcie-downgrade": pcie_downgrade, "nvlink-degraded": nvlink_degraded,
    "ecc-storm": ecc_storm, "app-xid": app_xid, "rack-power": rack_power, "node-hang": node_hang,
    "cpu-contention": cpu_contention, "slow-replica": slow_replica, "slow-stage": slow_stage, "credit-stall": credit_stall, "engine-hang": engine_hang,
    "kv-thrash": kv_thrash, "traffic-burst": traffic_burst, "nic-downgrade": nic_downgrade, "pfc-storm": pfc_storm,
    "slow-receiver": slow_receiver, "software-receiver": software_receiver, "downlink": downlink, "bad-cable": bad_cable, "incast": incast, "optic-ageing": optic_ageing,
    "lossy-leaf": lossy_leaf, "uplink-congestion": uplink_congestion, "packet-spraying": packet_spraying,
    "deploy-regression": deploy_regression, "memory-leak": memory_leak, "prefix-collapse": prefix_collapse, "draft-drop": draft_drop,
    "tidal-drain": tidal_drain, "canary": canary, "busy-replica": busy_replica, "mixed-sku": mixed_sku,
    "fleet-slow": fleet_slow, "cross-leaf": cross_leaf, "spot-reclaim": spot_reclaim, "slow-store": slow_store, "slow-disk": slow_disk, "exporter-outage": exporter_outage, "counter-reset": counter_reset,
    "absent-field": absent_field, "clock-skew": clock_skew,
}  # fmt: skip
_GPU = dict.fromkeys(
    ("xid79", "thermal-throttle", "power-cap", "slow-silicon", "dram-slow", "pcie-downgrade", "nvlink-degraded",
     "ecc-storm", "app-xid"), ("gpu",)
)  # fmt: skip
_PORT = dict.fromkeys(
    ("nic-downgrade", "pfc-storm", "slow-receiver", "software-receiver", "bad-cable", "incast", "downlink",
     "optic-ageing", "credit-stall"), ("port",)
)  # fmt: skip
ENTITY_KINDS: Mapping[str, tuple[str, ...]] = {
    **_GPU,
    **_PORT,
    "rack-power": ("rack",),
    "node-hang": ("node",),
    "spot-reclaim": ("node",),
    "cpu-contention": ("node",),
    "slow-replica": ("engine",),
    "slow-stage": ("engine",),
    "engine-hang": ("engine",),
    "kv-thrash": ("pool",),
    "traffic-burst": ("pool",),
    "lossy-leaf": ("leaf",),
    "uplink-congestion": ("leaf",),
    "packet-spraying": ("leaf",),
    "deploy-regression": ("pool",),
    "canary": ("pool",),
    "prefix-collapse": ("pool",),
    "draft-drop": ("pool",),
    "tidal-drain": ("pool",),
    "memory-leak": ("engine",),
    "busy-replica": ("engine",),
    "mixed-sku": ("node",),
    "fleet-slow": ("cluster",),
    "cross-leaf": ("engine",),
    "slow-store": ("storage",),
    "slow-disk": ("node",),
    "exporter-outage": ("target",),
    "counter-reset": ("target",),
    "absent-field": ("target",),
    "clock-skew": ("node",),
}
NEGATIVES = frozenset(
    {"app-xid", "packet-spraying", "deploy-regression", "exporter-outage", "counter-reset", "absent-field",
     "traffic-burst", "kv-thrash", "clock-skew", "prefix-collapse", "draft-drop", "tidal-drain", "canary", "busy-replica", "mixed-sku", "fleet-slow", "cross-leaf", "slow-store", "slow-disk"}
)  # fmt: skip
"""Kinds for which isolating anything is wrong."""
