"""What each injected fault is called in the tables, what it may be found as, and by when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.faults import Fault

MIN, HOUR = 60.0, 3600.0

LOAD_KINDS = frozenset(
    {"slo_burn", "queue_growth", "kv_saturated", "kv_thrash", "imbalance", "capacity_short"}
)
"""Incidents that state what load does. They are true while requests really wait or miss their objective."""


@dataclass(frozen=True, slots=True)
class Class:
    """How one kind of fault is scored.

    label : row of the tables. group : "deterministic", "clock", "replica", "congestion", "telemetry" or "version".
    kinds : incident kinds that name the cause. sizes : log-uniform range of the magnitude, as in the reference notes.
    deadline_s : after that a detection is late. runs : "fast" fleets last hours, "slow" ones a day.
    graded : the magnitude is a share of speed, so that "10 % and more" means something.
    """

    label: str
    group: str
    kinds: frozenset[str]
    sizes: tuple[float, float] = (1.0, 1.0)
    deadline_s: float = 2 * MIN
    runs: str = "fast"
    graded: bool = False


def _class(
    label: str, group: str, kinds: str, sizes: tuple[float, float] = (1.0, 1.0), deadline_s: float = 2 * MIN,
    runs: str = "fast", graded: bool = False,
) -> Class:  # fmt: skip
    return Class(label, group, frozenset(kinds.split()), sizes, deadline_s, runs, graded)


POSITIVES: Mapping[str, Class] = {
    "xid79": _class("lost GPU", "deterministic", "gpu_lost", (15.0, 25.0)),
    "pcie-downgrade": _class("PCIe downgrade", "deterministic", "pcie_downgrade", (0.25, 0.5), 3 * MIN),
    "nvlink-degraded": _class("sick NVLink", "deterministic", "nvlink_fault", (0.06, 0.5), 3 * MIN),
    "ecc-storm": _class("ECC storm", "deterministic", "gpu_memory gpu_uncontained", (50.0, 5000.0), 10 * MIN),
    "rack-power": _class("rack power brake", "deterministic", "gpu_throttle gpu_slow", (0.1, 0.5), 3 * MIN),
    "node-hang": _class("node hang", "deterministic", "node_hang", deadline_s=3 * MIN),
    "engine-hang": _class("hung engine", "deterministic", "engine_hung requests_stuck", deadline_s=2 * MIN),
    "thermal-throttle": _class(
        "thermal throttle", "clock", "gpu_throttle gpu_slow", (0.1, 0.5), 15 * MIN, graded=True
    ),
    "power-cap": _class("power cap", "clock", "gpu_slow gpu_throttle", (0.05, 0.4), 15 * MIN, graded=True),
    "slow-silicon": _class("slow clock", "clock", "gpu_slow", (0.03, 0.22), 15 * MIN, graded=True),
    "dram-slow": _class("slow memory", "clock", "gpu_slow", (0.05, 0.3), 30 * MIN, graded=True),
    "slow-replica": _class("slow replica", "replica", "replica_slow requests_stuck", (0.08, 1.0), 0.0, "slow", graded=True),
    "cpu-contention": _class(
        "CPU contention", "replica", "replica_slow requests_stuck host_cpu prefill_slow", (0.1, 2.0), 0.0, "slow", graded=True
    ),
    "nic-downgrade": _class("rate downgrade", "congestion", "nic_downgrade", (0.25, 0.5)),
    "pfc-storm": _class("PFC storm", "congestion", "pfc_storm", (0.3, 0.95)),
    "slow-receiver": _class(
        "host cannot drain", "congestion", "host_drain", (0.15, 0.6), 5 * MIN
    ),
    "software-receiver": _class("slow software", "congestion", "slow_receiver", (5.0, 500.0), 5 * MIN),
    "bad-cable": _class("bad cable", "congestion", "bad_cable", (2.0, 200.0), 5 * MIN),
    "incast": _class("incast", "congestion", "incast", (0.88, 1.0), 5 * MIN),
    "downlink": _class("downlink congestion", "congestion", "downlink_congestion", (0.9, 1.0), 5 * MIN),
    "optic-ageing": _class("ageing optic", "congestion", "optic_ageing", (1500.0, 5e4), 30 * MIN),
    "lossy-leaf": _class("lossy fabric", "congestion", "lossy_fabric", (10.0, 200.0), 5 * MIN),
    "uplink-congestion": _class("oversubscribed uplink", "congestion", "uplink_congestion", (0.3, 1.0), 5 * MIN),
    "deploy-regression": _class(
        "version regression", "version", "deploy_regression", (0.1, 0.5), 3 * HOUR, "slow", graded=True
    ),
    "memory-leak": _class("memory leak", "serving", "memory_leak", (3e5, 3e6), 6 * HOUR, "slow"),
    "prefix-collapse": _class("prefix collapse", "serving", "prefix_collapse", (0.5, 0.9), 15 * MIN),
    "exporter-outage": _class("exporter silent", "telemetry", "target_down", deadline_s=2 * MIN),
    "clock-skew": _class("clock skew", "telemetry", "clock_skew", (40.0, 300.0), 3 * MIN),
}  # fmt: skip

NEGATIVES: Mapping[str, frozenset[str]] = {
    "app-xid": frozenset({"gpu_app", "gpu_notice", "engine_down", "engine_out"}),
    "packet-spraying": frozenset(),
    "counter-reset": frozenset(),
    "absent-field": frozenset({"field_lost"}),
    "traffic-burst": LOAD_KINDS,
    "kv-thrash": LOAD_KINDS,
    "canary": frozenset(),
    "plain-deploy": frozenset(),
    "tidal-drain": LOAD_KINDS,
    "busy-replica": LOAD_KINDS,
    "mixed-sku": frozenset(),
    "fleet-slow": LOAD_KINDS | {"fleet_slow"},
    "stale-page": frozenset({"telemetry_frozen", "gauge_stuck"}),
}
"""Kind -> incidents that are right to say about it. Whatever else opens because of it is a false alarm."""

CONGESTION = tuple(c.label for c in POSITIVES.values() if c.group == "congestion") + (
    "sick NVLink",
    "thermal throttle",
)
"""Classes of the cause confusion matrix: the rows of the reference's pattern table."""


def deadline_s(fault: Fault) -> float:
    """Seconds after the onset by which a detection counts; a ramp and an off period are added."""
    known = POSITIVES[fault.kind]
    usual = known.deadline_s
    if known.group == "replica":
        size = fault.size(1.0)
        usual = 30 * MIN if size >= 0.4 else 3 * HOUR if size >= 0.15 else 12 * HOUR
    elif known.group == "clock" and fault.size(1.0) < 0.1:
        usual = 30 * MIN
    return usual + fault.ramp_s + fault.period_s


def effect(fault: Fault) -> float:
    """How much slower the GPU itself works: what its clock loses, or its share of a decode step gains.

    Source: the step model of simulator.devices: power goes with the square of the clock here, half of a step is memory.
    """
    size = fault.size(0.0) if POSITIVES[fault.kind].graded else 0.0
    if fault.kind == "power-cap":
        return float(1 - math.sqrt(1 - size))
    return 0.5 * (1 / (1 - size) - 1) if fault.kind == "dram-slow" else size


def cause_label(kind: str) -> str:
    """The class an incident kind claims, the kind itself where no class has it."""
    return _LABELS.get(kind, kind)


_LABELS = {
    "gpu_throttle": "thermal throttle", "gpu_slow": "slow clock", "nvlink_fault": "sick NVLink",
    "nic_downgrade": "rate downgrade", "pfc_storm": "PFC storm", "host_drain": "host cannot drain",
    "slow_receiver": "slow software", "bad_cable": "bad cable", "incast": "incast",
    "downlink_congestion": "downlink congestion", "optic_ageing": "ageing optic", "lossy_fabric": "lossy fabric",
    "uplink_congestion": "oversubscribed uplink",
}  # fmt: skip
