"""The rule book: every rule a detector may claim by, with the signals it needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from daemon.model import Severity


class RuleState(StrEnum):
    """What becomes of a rule's claims."""

    ON = "on"  # incidents, steps, pages
    SHADOW = "shadow"  # incidents that nobody sees but `tidewarden rules`, to measure its precision
    OFF = "off"  # nothing


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to recognise one pattern.

    id     : "<detector>.<name>", as findings carry it. kind : the pattern, a key of daemon.patterns.PATTERNS.
    needs  : signals as "kind.signal"; "a|b" = either is enough; "event.kernel_log" = lines of a kernel log.
             All of them are needed, else the rule cannot fire.
    state  : what it starts as. precision : lower bound of the measured precision from which a shadow rule is promoted.
    """

    id: str
    kind: str
    needs: tuple[str, ...]
    severity: Severity
    text: str
    state: RuleState = RuleState.ON
    precision: float = 0.9


LOG = "event.kernel_log"
SPOT = "event.spot"
UNASKED = ("region.", SPOT, "store.", "pair.", "engine.kv_transfer")
"""What a cluster may do without: it is not blind for want of other regions, of nodes that are taken back, of stores, or of KV
transfers between engines."""
XID = f"gpu.xid_code|{LOG}"
INFO, WARNING, CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL
SHADOW = RuleState.SHADOW
_GATEWAY = ("engine.lb_sessions", "engine.lb_done_per_s")
_STEP = ("engine.itl_s", "engine.running")
_SWITCH = (
    "switchport.tx_bytes_s", "switchport.rate_bytes_s",
    "switchport.xmit_wait_per_s|switchport.ecn_marked_per_s|switchport.discards_per_s",
)  # fmt: skip
_PAIRS = ("pair.kv_transfer_s_per_s", "pair.kv_transfer_bytes_s")

_BOOK = (
    # -- faults -----------------------------------------------------------------------------------------
    Rule("fault.xid_lost", "gpu_lost", (XID,), CRITICAL, "XID 79: the GPU fell off the bus"),
    Rule("fault.lost_again", "gpu_lost", (XID,), CRITICAL, "the same GPU lost twice within 30 days"),
    Rule("fault.xid_uncontained", "gpu_uncontained", (XID,), CRITICAL, "XIDs of uncontained memory errors"),
    Rule(
        "fault.xid_contained_again", "gpu_uncontained", (XID,), CRITICAL, "XID 94 twice in 24 h on one GPU"
    ),
    Rule("fault.xid_firmware", "gpu_firmware", (XID,), CRITICAL, "XIDs of firmware and controllers"),
    Rule("fault.xid_wedged", "driver_wedged", (XID,), CRITICAL, "XID 119 or 120 twice within 5 min"),
    Rule("fault.xid_repeat", "gpu_repeat", (XID,), CRITICAL, "one fatal XID in five bursts within 24 h"),
    Rule("fault.xid_memory", "gpu_memory", (XID,), WARNING, "XIDs of row remapping and page retirement"),
    Rule("fault.xid_contained", "gpu_contained", (XID,), WARNING, "XID 94: contained memory error"),
    Rule("fault.xid_nvlink", "nvlink_fault", (XID,), CRITICAL, "XIDs of NVLink; the first reporter is blamed"),
    Rule("fault.xid_app", "gpu_app", (XID,), INFO, "XIDs of a program's own mistake"),
    Rule("fault.xid_app_hardware", "gpu_app", (LOG,), WARNING, "two programs in two bursts within 24 h"),
    Rule("fault.xid_notice", "gpu_notice", (XID,), INFO, "XIDs without immediate action"),
    Rule("fault.xid_action", "gpu_firmware", (LOG,), CRITICAL, "XID 154: the driver states what is needed"),
    Rule(
        "fault.recovery_action", "gpu_firmware", ("gpu.recovery_action",), CRITICAL, "the same as a gauge"
    ),
    Rule("fault.gpu_vanished", "gpu_lost", ("gpu.util_ratio|gpu.power_w",), CRITICAL, "a GPU silent beside its siblings"),
    Rule("fault.nvml_lost", "gpu_lost", ("gpu.gpu_lost",), CRITICAL, "the driver says the GPU is lost"),
    Rule("fault.nvml_hang", "gpu_hang", ("gpu.nvml_hang",), CRITICAL, "a driver call past its deadline"),
    Rule("fault.hang_power", "gpu_hang", ("gpu.util_ratio", "gpu.power_w"), CRITICAL, "busy, near idle by power, no tokens"),
    Rule("fault.thermal", "gpu_throttle", ("gpu.throttle_bits", "gpu.sm_clock_mhz"), WARNING, "heat holds the clock down"),
    Rule("fault.power_brake", "gpu_throttle", ("gpu.throttle_bits", "gpu.sm_clock_mhz"), WARNING, "a power brake holds the clock down"),
    Rule("fault.hw_slowdown", "gpu_throttle", ("gpu.throttle_bits", "gpu.sm_clock_mhz"), WARNING, "hardware slowdown without a cause named"),
    Rule("fault.ecc_uncorrectable", "gpu_uncontained", ("gpu.ecc_dbe_per_s",), CRITICAL, "volatile uncorrectable ECC count rises"),
    Rule("fault.ecc_storm", "gpu_memory", ("gpu.ecc_sbe_per_s",), WARNING, "corrected errors by the hundred for 5 min"),
    Rule("fault.remap_failed", "gpu_memory", ("gpu.row_remap_failed",), CRITICAL, "a row could not be remapped"),
    Rule("fault.remap_pending", "gpu_memory", ("gpu.row_remap_pending",), INFO, "a remap waits for a reset"),
    Rule("fault.retire_pending", "gpu_memory", ("gpu.pages_retired_pending",), INFO, "a page waits to be retired"),
    Rule("fault.rows_exhausted", "gpu_memory", ("gpu.banks_no_rows",), WARNING, "a bank without a spare row"),
    Rule(
        "fault.rows_slope", "gpu_memory", ("gpu.rows_remapped_correctable", "gpu.rows_remapped_uncorrectable"), INFO,
        "spare rows run out within a fortnight",
    ),
    Rule(
        "fault.nvlink_errors", "nvlink_fault",
        ("gpu.nvlink_crc_per_s|gpu.nvlink_replay_per_s|gpu.nvlink_recovery_per_s",), WARNING,
        "NVLink errors in most minutes of half an hour",
    ),
    Rule("fault.fabric_health", "nvlink_fault", ("gpu.fabric_health",), WARNING, "the GPU calls its fabric unhealthy"),
    Rule("fault.fabric_manager", "nvlink_fault", ("gpu.fabric_manager_status",), WARNING, "Fabric Manager failed for a GPU"),
    Rule(
        "fault.pcie_downtrain", "pcie_downgrade",
        ("gpu.util_ratio", "gpu.pcie_link_width|gpu.pcie_link_gen", "gpu.pcie_link_width_max|gpu.pcie_link_gen_max"),
        WARNING, "PCIe below its width or generation under load",
    ),
    Rule("fault.pcie_replay", "pcie_errors", ("gpu.pcie_replay_per_s",), INFO, "PCIe replays for 10 min"),
    Rule("fault.node_silent", "node_hang", ("target.silent_s",), CRITICAL, "every exporter of a node silent, nothing served"),
    Rule("fault.host_oom_kill", "host_fault", (f"node.oom_kills_per_s|{LOG}",), WARNING, "OOM kill"),
    Rule("fault.host_fs_readonly", "host_fault", (f"node.fs_readonly|{LOG}",), CRITICAL, "filesystem read-only"),
    Rule("fault.host_hung_task", "host_fault", (LOG,), WARNING, "a task stuck in the kernel"),
    Rule("fault.host_io_error", "host_fault", (LOG,), WARNING, "disk errors"),
    Rule("fault.host_mce", "host_fault", (LOG,), WARNING, "machine check"),
    Rule("fault.host_nvlink", "nvlink_fault", (LOG,), WARNING, "fatal NVSwitch error in the log"),
    Rule("fault.host_disk_full", "host_fault", ("node.fs_avail_bytes", "node.fs_size_bytes"), WARNING, "root filesystem nearly full"),
    Rule("fault.host_memory_short", "host_fault", ("node.mem_available_bytes", "node.mem_total_bytes"), WARNING, "host memory used up"),
    Rule("fault.host_blocked", "host_fault", ("node.procs_blocked",), WARNING, "many processes stuck in the kernel"),
    Rule("fault.host_fabric_manager", "host_fault", ("node.fabric_manager_up",), WARNING, "Fabric Manager does not run"),
    # -- stragglers -------------------------------------------------------------------------------------
    Rule("straggler.gpu_slow", "gpu_slow", ("gpu.sm_clock_mhz", "gpu.util_ratio|gpu.tensor_active_ratio"), WARNING, "clock below busy peers"),
    Rule("straggler.lockstep", "gpu_slow", ("gpu.tensor_active_ratio|gpu.dram_active_ratio", "gpu.util_ratio|gpu.tensor_active_ratio"), WARNING, "the rank its lock-step group waits for"),
    Rule("straggler.together_gpu", "gpu_slow", (*_STEP, "gpu.tensor_active_ratio|gpu.dram_active_ratio"), INFO, "small signs of one GPU that agree"),
    Rule("straggler.together_replica", "replica_slow", _STEP, INFO, "small signs of one replica that agree"),
    Rule("straggler.repeat_offender", "repeat_offender", ("gpu.sm_clock_mhz|engine.itl_s",), INFO, "slow again and again within a week"),
    Rule("straggler.stage", "stage_slow", ("gpu.tensor_active_ratio|gpu.dram_active_ratio", "gpu.util_ratio"), INFO, "a pipeline stage busier than the same stage elsewhere"),
    Rule("straggler.node_replicas", "replica_slow", _STEP, WARNING, "all replicas of a node are a little slower"),
    Rule("straggler.replica_slow", "replica_slow", _STEP, WARNING, "slower a step at equal load"),
    Rule("straggler.deploy_regression", "deploy_regression", _STEP, WARNING, "a version slower than the one before"),
    Rule("straggler.fleet_slow", "fleet_slow", _STEP, WARNING, "much of a pool slower at once"),
    # -- congestion -------------------------------------------------------------------------------------
    Rule("congestion.nic_downgrade", "nic_downgrade", ("port.rate_bytes_s",), WARNING, "negotiated rate below the usual"),
    Rule("congestion.bad_cable", "bad_cable", ("port.symbol_errors_per_s|port.crc_errors_per_s|port.link_recovery_per_s|port.link_downed_per_s",), WARNING, "physical errors, flaps"),
    Rule("congestion.pfc_storm", "pfc_storm", ("port.tx_pause_ratio|port.pause_storm_per_s",), CRITICAL, "a port pauses the network"),
    Rule("congestion.pause_victim", "pause_victim", ("port.rx_pause_ratio",), INFO, "a port paused by the network"),
    Rule("congestion.incast", "incast", ("port.cnp_sent_per_s|port.ecn_marked_per_s", "port.cnp_handled_per_s", "port.rx_bytes_s"), INFO, "many senders, one receiver"),
    Rule("congestion.uplink_congestion", "uplink_congestion", ("port.cnp_sent_per_s|port.ecn_marked_per_s", "port.cnp_handled_per_s"), WARNING, "senders of one leaf slowed"),
    Rule("congestion.optic_ageing", "optic_ageing", ("port.corrected_bits_per_s",), WARNING, "corrected bits a decade above peers"),
    Rule("congestion.lossy_fabric", "lossy_fabric", ("port.seq_errors_per_s", "port.ack_timeouts_per_s"), WARNING, "loss without marks"),
    Rule("congestion.ack_timeouts", "ack_timeouts", ("port.seq_errors_per_s", "port.ack_timeouts_per_s"), INFO, "time-outs at one port"),
    Rule("congestion.slow_receiver", "slow_receiver", ("port.rnr_naks_per_s|port.out_of_buffer_per_s",), INFO, "the receiving software is slow"),
    Rule("congestion.host_drain", "host_drain", ("port.tx_pause_ratio", "port.rx_bytes_s"), WARNING, "the host does not drain its port"),
    Rule("congestion.downlink_congestion", "downlink_congestion", ("port.cnp_sent_per_s|port.ecn_marked_per_s|port.xmit_wait_per_s", "port.rx_bytes_s"), INFO, "a receiver at line rate, senders unseen"),
    Rule("congestion.downlink_switch", "downlink_congestion", _SWITCH, INFO, "the switch sends a host its line rate and more waits"),
    Rule("congestion.uplink_switch", "uplink_congestion", _SWITCH, WARNING, "half of a leaf's uplinks full while more waits"),
    Rule("congestion.host_drain_switch", "host_drain", ("switchport.tx_bytes_s", "switchport.xmit_wait_per_s"), WARNING, "the switch waits for credit of a host below line rate"),
    Rule("congestion.kv_slow_sender", "kv_transfer_slow", _PAIRS, WARNING, "KV transfers from one sender slow to all"),
    Rule("congestion.kv_slow_receiver", "kv_transfer_slow", _PAIRS, WARNING, "KV transfers to one receiver slow from all"),
    Rule("congestion.kv_slow_pair", "kv_transfer_slow", _PAIRS, INFO, "KV transfers of one pair slow, both ends well"),
    Rule("congestion.kv_slow_end", "kv_transfer_slow", ("engine.kv_transfer_s_per_s", "engine.kv_transfer_bytes_s"), INFO, "KV transfers of one engine slow, the other end unknown"),
    # -- serving ----------------------------------------------------------------------------------------
    Rule("serving.engine_hung", "engine_hung", _GATEWAY, CRITICAL, "sessions at the gateway, nothing completed"),
    Rule("serving.engine_hung_page", "engine_hung", ("engine.running", "engine.generation_tokens_s"), WARNING, "running and no token, without a gateway"),
    Rule("serving.requests_stuck", "requests_stuck", (*_GATEWAY, "engine.generation_tokens_s"), WARNING, "sessions pile up at one replica that does no more than its peers"),
    Rule("serving.engine_down", "engine_down", ("engine.running",), CRITICAL, "page gone and nothing completed"),
    Rule("serving.engine_out", "engine_out", ("engine.lb_up",), WARNING, "taken out by its load balancer"),
    Rule("serving.kv_saturated", "kv_saturated", ("engine.kv_used_ratio", "engine.waiting|engine.preemptions_per_s"), WARNING, "cache full and requests wait"),
    Rule("serving.kv_thrash", "kv_thrash", ("engine.kv_used_ratio", "engine.preemptions_per_s"), WARNING, "requests preempted at a full cache"),
    Rule("serving.kv_filling", "kv_filling", ("engine.kv_used_ratio",), INFO, "time until the cache is full", SHADOW),
    Rule("serving.kv_fragmented", "kv_fragmented", ("engine.kv_used_tokens", "engine.kv_used_blocks", "engine.kv_block_tokens"), INFO, "blocks reserved and not used", SHADOW),
    Rule("serving.prefix_collapse", "prefix_collapse", ("engine.prefix_hits_s", "engine.prefix_queries_s"), WARNING, "share of prefix hits halves"),
    Rule("serving.spec_drop", "spec_drop", ("engine.spec_accepted_tokens_s", "engine.spec_drafted_tokens_s"), WARNING, "share of accepted drafts halves", SHADOW),
    Rule("serving.queue_growth", "queue_growth", ("engine.waiting", "engine.running", "engine.ttft_s"), WARNING, "a queue that clients feel"),
    Rule("serving.burn_fast", "slo_burn", ("engine.ttft_s",), CRITICAL, "14.4 times the budget over 5 min and 1 h"),
    Rule("serving.burn_slow", "slo_burn", ("engine.ttft_s",), WARNING, "6 times the budget over 30 min and 6 h"),
    Rule("serving.load_replicas", "imbalance", ("engine.running",), INFO, "load uneven over replicas"),
    Rule("serving.load_nodes", "imbalance", ("engine.running",), INFO, "load uneven over nodes", SHADOW),
    Rule("serving.memory_leak", "memory_leak", ("engine.rss_bytes",), INFO, "a process grows for an hour"),
    Rule("serving.memory_leak_host", "memory_leak", ("node.mem_available_bytes", "node.mem_total_bytes"), WARNING, "a host runs out of memory within hours"),
    # -- storage ----------------------------------------------------------------------------------------
    Rule("storage.shared_slow", "store_slow", ("store.reads_per_s", "store.read_s_per_s"), WARNING, "a shared store slower than usual for most of its nodes"),
    Rule("storage.mount_slow", "store_slow", ("store.reads_per_s", "store.read_s_per_s"), WARNING, "a shared store slow for one node alone"),
    Rule("storage.disk_slow", "store_slow", ("store.reads_per_s", "store.read_s_per_s"), WARNING, "a local disk slower than those like it"),
    Rule("storage.errors", "store_errors", ("store.errors_per_s|store.resent_per_s",), WARNING, "requests to a store time out or are sent again"),
    Rule("storage.unhealthy", "store_errors", ("store.health",), CRITICAL, "a storage cluster calls itself in error"),
    Rule("storage.start_slow", "start_slow", ("engine.start_time_s|engine.startup_s",), INFO, "a replica took twice the usual time to serve"),
    # -- telemetry --------------------------------------------------------------------------------------
    Rule("integrity.target_down", "target_down", ("target.silent_s",), WARNING, "exporter silent"),
    Rule("integrity.telemetry_lost", "telemetry_lost", ("target.silent_s",), CRITICAL, "much of the telemetry silent"),
    Rule("integrity.page_frozen", "telemetry_frozen", ("target.unchanged_s",), WARNING, "a page that never changes"),
    Rule("integrity.counter_frozen", "telemetry_frozen", ("engine.lb_done_per_s", "engine.generation_tokens_s"), WARNING, "tokens stand still while requests complete"),
    Rule("integrity.field_lost", "field_lost", ("target.series",), INFO, "a field renamed, left out or saturated"),
    Rule("integrity.gauge_stuck", "gauge_stuck", ("gpu.power_w",), INFO, "a gauge that repeats one value", SHADOW),
    Rule("integrity.exporter_slow", "exporter_slow", ("target.took_s",), INFO, "answers take seconds"),
    Rule("integrity.page_broken", "page_broken", ("target.dropped",), WARNING, "malformed lines, duplicate labels"),
    Rule("integrity.clock_skew", "clock_skew", ("node.clock_s",), WARNING, "a node's clock is off"),
    # -- capacity ---------------------------------------------------------------------------------------
    Rule("capacity.capacity_short", "capacity_short", ("engine.running",), WARNING, "demand ahead exceeds the GPUs"),
    Rule("capacity.pool_short", "capacity_short", ("engine.running",), INFO, "demand ahead exceeds what a pool may have"),
    Rule("effects.no_effect", "no_effect", ("engine.running|engine.lb_sessions_per_s",), WARNING, "what was done shows no effect in time"),
    Rule("canary.errors", "deploy_regression", ("engine.lb_errors_per_s|engine.requests_failed_per_s",), WARNING, "the newest version fails more requests than the others"),
    Rule("spot.notice", "node_reclaimed", (SPOT,), WARNING, "a spot or preemptible node is about to be taken back"),
    Rule("regions.silent", "region_lost", ("region.health_ratio",), CRITICAL, "nothing is heard of a region for two minutes, and no probe of it is answered"),
    Rule("regions.front_down", "region_lost", ("region.front_up",), CRITICAL, "the front door of a region does not answer a probe"),
    Rule("capacity.disk_filling", "running_out", ("node.fs_avail_bytes", "node.fs_size_bytes"), WARNING, "root filesystem full within three days"),
    Rule("capacity.memory_filling", "running_out", ("node.mem_available_bytes", "node.mem_total_bytes"), WARNING, "host memory gone within three days", SHADOW),
    Rule("capacity.kv_filling", "running_out", ("engine.kv_used_ratio",), WARNING, "a pool's KV cache full within three days", SHADOW),
)  # fmt: skip
RULES: Mapping[str, Rule] = {rule.id: rule for rule in _BOOK}


class Blind(NamedTuple):
    """A rule that cannot fire with what is scraped. missing : needs without a signal, each with its alternatives."""

    rule: Rule
    missing: tuple[tuple[str, ...], ...]


def blind(seen: Mapping[str, Collection[str]], has_kernel_log: bool) -> list[Blind]:
    """Rules that cannot fire. seen : kind -> canonical names with at least one value."""
    found = []
    for rule in RULES.values():
        needs = [tuple(need.split("|")) for need in rule.needs]
        missing = tuple(n for n in needs if not any(_is_there(s, seen, has_kernel_log) for s in n))
        if missing:
            found.append(Blind(rule, missing))
    return found


def _is_there(signal: str, seen: Mapping[str, Collection[str]], has_kernel_log: bool) -> bool:
    if signal == LOG:
        return has_kernel_log
    if signal.startswith(UNASKED):
        return True
    kind, _, name = signal.partition(".")
    return name in seen.get(kind, ())
