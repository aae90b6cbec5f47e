"""What detectors may claim, as data: how long each claim must last, what it takes in, when it is over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """How findings of one kind become an incident.

    title   : words for people. family : "fault", "straggler", "congestion", "serving", "storage", "telemetry",
    "capacity".
    patience_s : how long it must be claimed before an incident opens; 0 for what the hardware itself states.
    quiet_s : how long it must not be claimed, with fresh telemetry, before the incident closes.
    shared  : group whose members failing together are one incident, None = each for itself.
    explains: kinds that are consequences when they show on the same engine, node, rack or leaf.
    apart   : of those, kinds that the detector itself tells apart from it once it is open.
    foretold: of those, kinds that are no news however grave they are: what is lost was given up before.
    Source of the times: judgement, see docs/decisions/0004-incident-patience.md.
    """

    title: str
    family: str
    patience_s: float = 0.0
    quiet_s: float = 300.0
    shared: str | None = None
    explains: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    foretold: frozenset[str] = frozenset()


_SERVING = frozenset(
    {
        "engine_down",
        "engine_out",
        "engine_hung",
        "requests_stuck",
        "replica_slow",
        "imbalance",
        "slo_burn",
        "queue_growth",
    }
)
_SILENCE = frozenset({"target_down", "telemetry_frozen", "gpu_hang", "field_lost"})
_SLOW = frozenset({"gpu_slow", "requests_stuck", "replica_slow", "imbalance", "slo_burn", "gpu_throttle"})

PATTERNS: dict[str, Pattern] = {
    "gpu_lost": Pattern(
        "GPU fell off the bus", "fault", 0, 600, "rack", _SERVING | _SILENCE | {"gpu_slow", "gpu_app"}
    ),
    "gpu_uncontained": Pattern("Uncontained memory error", "fault", 0, 600, None, _SERVING | {"gpu_slow"}),
    "gpu_firmware": Pattern(
        "GPU firmware or controller fault", "fault", 0, 600, None, _SERVING | _SILENCE | {"gpu_slow"}
    ),
    "driver_wedged": Pattern(
        "GPU driver is wedged", "fault", 0, 600, None, _SERVING | _SILENCE | {"gpu_slow", "gpu_firmware"}
    ),
    "gpu_repeat": Pattern(
        "GPU fails again and again", "fault", 0, 600, None, frozenset({"gpu_uncontained", "gpu_firmware"})
    ),
    "gpu_memory": Pattern("GPU memory needs repair", "fault", 0, 600, None),
    "gpu_notice": Pattern("Driver notice", "fault", 0, 600, "pool"),
    "gpu_contained": Pattern(
        "Contained memory error", "fault", 0, 600, None, frozenset({"engine_down", "engine_out"})
    ),
    "gpu_app": Pattern(
        "Application error on a GPU", "fault", 0, 900, "pool", frozenset({"engine_down", "engine_out"})
    ),
    "gpu_hang": Pattern("GPU or its driver hangs", "fault", 30, 600, None, _SERVING | {"gpu_slow"}),
    "gpu_throttle": Pattern("GPU clocks held down", "fault", 30, 300, "rack", _SERVING | {"gpu_slow"}),
    "pcie_downgrade": Pattern(
        "PCIe link below its width or generation", "fault", 0, 600, None, _SLOW - {"gpu_throttle"}
    ),
    "pcie_errors": Pattern("PCIe packets sent again", "fault", 0, 900, None),
    "nvlink_fault": Pattern("NVLink errors", "fault", 0, 600, None, _SLOW - {"gpu_throttle"}),
    "node_hang": Pattern("Node does not answer", "fault", 0, 300, "rack", _SERVING | _SILENCE | {"gpu_lost"}),
    "host_fault": Pattern("Host fault", "fault", 0, 900, None),
    "gpu_slow": Pattern(
        "GPU slower than its peers",
        "straggler",
        0,
        600,
        "rack",
        frozenset({"requests_stuck", "replica_slow", "imbalance", "slo_burn", "stage_slow"}),
    ),
    "replica_slow": Pattern(
        "Replica slower than its peers",
        "straggler",
        0,
        300,
        "node",
        frozenset({"imbalance", "slo_burn", "stage_slow"}),
    ),
    "stage_slow": Pattern("A pipeline stage holds up the others", "straggler", 0, 600, None),
    "repeat_offender": Pattern("Node is slow again and again", "straggler", 0, 3600),
    "deploy_regression": Pattern(
        "A version is slower than the one before",
        "straggler",
        60,
        600,
        None,
        frozenset({"replica_slow", "slo_burn", "gpu_slow", "imbalance"}),
        frozenset({"replica_slow", "gpu_slow"}),
    ),
    "fleet_slow": Pattern(
        "Many replicas slower at once", "straggler", 60, 600, None, frozenset({"replica_slow", "gpu_slow"})
    ),
    "nic_downgrade": Pattern(
        "Network port below its rate", "congestion", 0, 300, "leaf", _SLOW - {"gpu_throttle"}
    ),
    "bad_cable": Pattern(
        "Bad cable or optic",
        "congestion",
        30,
        600,
        None,
        (_SLOW - {"gpu_throttle"}) | {"ack_timeouts", "optic_ageing"},
    ),
    "pfc_storm": Pattern(
        "PFC pause storm", "congestion", 0, 300, None, (_SLOW - {"gpu_throttle"}) | {"pause_victim", "incast"}
    ),
    "pause_victim": Pattern("Ports paused by the network", "congestion", 60, 180, "leaf"),
    "incast": Pattern("Incast at one receiver", "congestion", 30, 180, None, frozenset({"replica_slow"})),
    "uplink_congestion": Pattern(
        "Leaf uplink congested", "congestion", 60, 300, None, frozenset({"replica_slow", "slo_burn"})
    ),
    "host_drain": Pattern(
        "Host cannot drain its port",
        "congestion",
        30,
        300,
        None,
        (_SLOW - {"gpu_throttle"}) | {"pause_victim"},
    ),
    "downlink_congestion": Pattern("Receiver's link is full", "congestion", 30, 180, None),
    "kv_transfer_slow": Pattern("KV transfers are slow", "congestion", 0, 300, None),
    "optic_ageing": Pattern("Optic ageing", "congestion", 300, 3600, None),
    "lossy_fabric": Pattern("Packets lost without congestion marks", "congestion", 60, 600, "leaf"),
    "ack_timeouts": Pattern("Acknowledge time-outs", "congestion", 60, 300, None),
    "slow_receiver": Pattern("Receiving software too slow", "congestion", 60, 300, None),
    "engine_out": Pattern(
        "Engine taken out by its load balancer",
        "serving",
        15,
        60,
        None,
        frozenset({"target_down", "imbalance", "engine_down"}),
        foretold=frozenset({"engine_down"}),
    ),
    # Its detector waits where only the page says so: what the gateway confirms is believed at once.
    "engine_down": Pattern(
        "Engine does not answer",
        "serving",
        0,
        120,
        None,
        frozenset({"target_down", "imbalance", "requests_stuck"}),
    ),
    "engine_hung": Pattern(
        "Engine accepts requests and finishes none",
        "serving",
        0,
        180,
        None,
        frozenset(
            {
                "telemetry_frozen",
                "imbalance",
                "slo_burn",
                "target_down",
                "engine_down",
                "engine_out",
                "requests_stuck",
            }
        ),
    ),
    "requests_stuck": Pattern(
        "Requests pile up at one replica",
        "serving",
        0,
        180,
        None,
        frozenset({"replica_slow", "imbalance", "slo_burn", "queue_growth", "exporter_slow", "target_down"}),
    ),
    "kv_filling": Pattern("KV cache fills up", "serving", 120, 600, None),
    "kv_saturated": Pattern("KV cache nearly full", "serving", 60, 300, None, frozenset({"kv_filling"})),
    "kv_fragmented": Pattern("KV blocks reserved and not used", "serving", 0, 900, None),
    "prefix_collapse": Pattern("Prompt prefixes are no longer found in the cache", "serving", 120, 900, None),
    "spec_drop": Pattern("Speculative decoding guesses worse", "serving", 120, 900, None),
    "memory_leak": Pattern("Memory only ever grows", "serving", 0, 1800, None),
    "kv_thrash": Pattern(
        "Requests preempted for lack of KV cache",
        "serving",
        120,
        300,
        None,
        frozenset({"kv_saturated", "kv_filling", "queue_growth", "slo_burn", "imbalance"}),
    ),
    "queue_growth": Pattern(
        "Requests queue faster than they are served", "serving", 60, 180, None, frozenset({"slo_burn"})
    ),
    "slo_burn": Pattern("Latency objective is being missed", "serving", 30, 300, None),
    "imbalance": Pattern("Load is spread unevenly", "serving", 120, 300, None),
    "target_down": Pattern("Exporter does not answer", "telemetry", 0, 60, "node"),
    "telemetry_lost": Pattern(
        "Much of the telemetry is gone",
        "telemetry",
        0,
        120,
        None,
        frozenset({"target_down", "telemetry_frozen"}),
    ),
    "telemetry_frozen": Pattern("Exporter repeats the same page", "telemetry", 0, 120, None),
    "field_lost": Pattern("Fields are no longer exported", "telemetry", 0, 600, None),
    "gauge_stuck": Pattern("Gauge repeats one value", "telemetry", 0, 600, None),
    "exporter_slow": Pattern("Exporter answers late", "telemetry", 0, 600, None),
    "page_broken": Pattern("Page has lines that cannot be read", "telemetry", 0, 600, None),
    "clock_skew": Pattern("Node clock is off", "telemetry", 60, 600, None),
    "capacity_short": Pattern("Capacity will run short", "capacity", 0, 3600, None),
    "no_effect": Pattern("What was done has no effect", "serving", 0, 600, None),
    "node_reclaimed": Pattern(
        "Node is about to be taken back",
        "fault",
        0,
        120,
        None,
        _SERVING | _SILENCE | frozenset({"node_hang", "gpu_lost"}),
        foretold=frozenset({"node_hang", "gpu_lost", "gpu_hang", "engine_down", "engine_out", "engine_hung"}),
    ),
    "region_lost": Pattern("Region is lost", "serving", 0, 120, None, frozenset({"target_down"})),
    "store_slow": Pattern("Storage answers late", "storage", 60, 300, None, frozenset({"start_slow"})),
    "store_errors": Pattern("Storage loses requests", "storage", 30, 600, None, frozenset({"store_slow"})),
    "start_slow": Pattern("Replicas start late", "storage", 0, 600),
    "running_out": Pattern("Disk, memory or KV cache will be full within days", "capacity", 0, 7200, None),
}
