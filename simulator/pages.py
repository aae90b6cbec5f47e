"""Exporter text pages with the vendors' names, made from canonical columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from daemon.model import Array, Entity, Layout, Series, Shape
from simulator import gateway, storage
from simulator.wiring import LB_TARGET

if TYPE_CHECKING:
    from simulator.world import World

_MIB = 2.0**20
# canonical signal -> (vendor name, type, what a canonical value is multiplied with). Units: reference notes on
# telemetry, section 2: energy in mJ, violations in ns, frame buffer in MiB, utilisation in percent.
DCGM = {
    "sm_clock_mhz": ("DCGM_FI_DEV_SM_CLOCK", "gauge", 1.0),
    "mem_clock_mhz": ("DCGM_FI_DEV_MEM_CLOCK", "gauge", 1.0),
    "mem_temp_c": ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", 1.0),
    "temp_c": ("DCGM_FI_DEV_GPU_TEMP", "gauge", 1.0),
    "power_w": ("DCGM_FI_DEV_POWER_USAGE", "gauge", 1.0),
    "energy_j_per_s": ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", 1e3),
    "pcie_replay_per_s": ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", 1.0),
    "util_ratio": ("DCGM_FI_DEV_GPU_UTIL", "gauge", 100.0),
    "xid_code": ("DCGM_FI_DEV_XID_ERRORS", "gauge", 1.0),
    "power_violation_ratio": ("DCGM_FI_DEV_POWER_VIOLATION", "counter", 1e9),
    "thermal_violation_ratio": ("DCGM_FI_DEV_THERMAL_VIOLATION", "counter", 1e9),
    "hbm_free_bytes": ("DCGM_FI_DEV_FB_FREE", "gauge", 1 / _MIB),
    "hbm_used_bytes": ("DCGM_FI_DEV_FB_USED", "gauge", 1 / _MIB),
    "hbm_total_bytes": ("DCGM_FI_DEV_FB_TOTAL", "gauge", 1 / _MIB),
    "ecc_sbe_per_s": ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "counter", 1.0),
    "ecc_dbe_per_s": ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "counter", 1.0),
    "nvlink_crc_per_s": ("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "counter", 1.0),
    "nvlink_replay_per_s": ("DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "counter", 1.0),
    "nvlink_recovery_per_s": ("DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "counter", 1.0),
    "rows_remapped_uncorrectable": ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", 1.0),
    "rows_remapped_correctable": ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", 1.0),
    "row_remap_failed": ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", 1.0),
    "row_remap_pending": ("DCGM_FI_DEV_ROW_REMAP_PENDING", "gauge", 1.0),
    "throttle_bits": ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "gauge", 1.0),
    "pcie_link_gen": ("DCGM_FI_DEV_PCIE_LINK_GEN", "gauge", 1.0),
    "pcie_link_gen_max": ("DCGM_FI_DEV_PCIE_MAX_LINK_GEN", "gauge", 1.0),
    "pcie_link_width": ("DCGM_FI_DEV_PCIE_LINK_WIDTH", "gauge", 1.0),
    "pcie_link_width_max": ("DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", "gauge", 1.0),
    "fabric_health": ("DCGM_FI_DEV_FABRIC_HEALTH_SUMMARY", "gauge", 1.0),
    "gr_active_ratio": ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", 1.0),
    "sm_active_ratio": ("DCGM_FI_PROF_SM_ACTIVE", "gauge", 1.0),
    "tensor_active_ratio": ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", 1.0),
    "dram_active_ratio": ("DCGM_FI_PROF_DRAM_ACTIVE", "gauge", 1.0),
    "pcie_tx_bytes_s": ("DCGM_FI_PROF_PCIE_TX_BYTES", "gauge", 1.0),
    "pcie_rx_bytes_s": ("DCGM_FI_PROF_PCIE_RX_BYTES", "gauge", 1.0),
    "nvlink_tx_bytes_s": ("DCGM_FI_PROF_NVLINK_TX_BYTES", "gauge", 1.0),
    "nvlink_rx_bytes_s": ("DCGM_FI_PROF_NVLINK_RX_BYTES", "gauge", 1.0),
}
NODE = {
    "boot_time_s": ("node_boot_time_seconds", "gauge", 1.0),
    "clock_s": ("node_time_seconds", "gauge", 1.0),
    "load1": ("node_load1", "gauge", 1.0),
    "mem_total_bytes": ("node_memory_MemTotal_bytes", "gauge", 1.0),
    "mem_available_bytes": ("node_memory_MemAvailable_bytes", "gauge", 1.0),
    "procs_blocked": ("node_procs_blocked", "gauge", 1.0),
    "oom_kills_per_s": ("node_vmstat_oom_kill", "untyped", 1.0),
}
_ROOT = {"device": "/dev/nvme0n1p2", "fstype": "ext4", "mountpoint": "/"}
FILESYSTEM = {
    "fs_size_bytes": ("node_filesystem_size_bytes", "gauge", 1.0),
    "fs_avail_bytes": ("node_filesystem_avail_bytes", "gauge", 1.0),
    "fs_readonly": ("node_filesystem_readonly", "gauge", 1.0),
}
NETDEV = {
    "net_rx_bytes_s": ("node_network_receive_bytes_total", "counter", 1.0),
    "net_tx_bytes_s": ("node_network_transmit_bytes_total", "counter", 1.0),
    "net_errors_per_s": ("node_network_receive_errs_total", "counter", 1.0),
    "net_drops_per_s": ("node_network_receive_drop_total", "counter", 1.0),
}
DISK = {
    "read_bytes_s": "read_bytes",
    "write_bytes_s": "written_bytes",
    "reads_per_s": "reads_completed",
    "writes_per_s": "writes_completed",
    "read_s_per_s": "read_time_seconds",
    "write_s_per_s": "write_time_seconds",
    "busy_ratio": "io_time_seconds",
}
# what the mountstats collector calls it, and the operation of its row
MOUNT = {
    "read_bytes_s": ("total_read_bytes", ""),
    "write_bytes_s": ("total_write_bytes", ""),
    "reads_per_s": ("operations_requests", "READ"),
    "writes_per_s": ("operations_requests", "WRITE"),
    "read_s_per_s": ("operations_request_time_seconds", "READ"),
    "write_s_per_s": ("operations_request_time_seconds", "WRITE"),
    "errors_per_s": ("operations_major_timeouts", "READ"),
    "resent_per_s": ("operations_transmissions", "READ"),
}
INFINIBAND = {
    "tx_bytes_s": ("port_data_transmitted_bytes_total", "counter"),
    "rx_bytes_s": ("port_data_received_bytes_total", "counter"),
    "rate_bytes_s": ("rate_bytes_per_second", "gauge"),
    "state_id": ("state_id", "gauge"),
    "phys_state_id": ("physical_state_id", "gauge"),
    "xmit_wait_per_s": ("port_transmit_wait_total", "counter"),
    "symbol_errors_per_s": ("symbol_error_total", "counter"),
    "link_recovery_per_s": ("link_error_recovery_total", "counter"),
    "link_downed_per_s": ("link_downed_total", "counter"),
    "rx_errors_per_s": ("port_errors_received_total", "counter"),
    "tx_discards_per_s": ("port_discards_transmitted_total", "counter"),
    "rx_discards_per_s": ("port_discards_received_total", "counter"),
    "remote_phys_errors_per_s": ("port_receive_remote_physical_errors_total", "counter"),
    "cnp_sent_per_s": ("np_cnp_packets_sent_total", "counter"),
    "ecn_marked_per_s": ("np_ecn_marked_roce_packets_received_total", "counter"),
    "cnp_handled_per_s": ("rp_cnp_packets_handled_total", "counter"),
    "cnp_ignored_per_s": ("rp_cnp_ignored_packets_received_total", "counter"),
    "out_of_sequence_per_s": ("out_of_sequence_packets_received_total", "counter"),
    "seq_errors_per_s": ("packet_sequence_errors_total", "counter"),
    "ack_timeouts_per_s": ("local_ack_timeout_errors_total", "counter"),
    "rnr_naks_per_s": ("rnr_nak_retry_packets_received_total", "counter"),
    "out_of_buffer_per_s": ("out_of_buffer_drops_total", "counter"),
}
# ethtool names of an RDMA NIC; pause durations are microseconds
ETHTOOL = {
    "rx_pause_per_s": ("received_prio3_pause", 1.0),
    "tx_pause_per_s": ("transmitted_prio3_pause", 1.0),
    "rx_pause_ratio": ("received_prio3_pause_duration", 1e6),
    "tx_pause_ratio": ("transmitted_prio3_pause_duration", 1e6),
    "pause_storm_per_s": ("tx_pause_storm_warning_events", 1.0),
    "rx_discards_phy_per_s": ("received_discards_phy", 1.0),
    "buffer_passed_per_s": ("rx_buffer_passed_thres_phy", 1.0),
    "crc_errors_per_s": ("rx_crc_errors_phy", 1.0),
    "corrected_bits_per_s": ("rx_corrected_bits_phy", 1.0),
    "phy_bits_per_s": ("rx_bits_phy", 1.0),
    "link_flaps_per_s": ("link_down_events_phy", 1.0),
    "pcie_stall_ratio": ("outbound_pci_stalled_rd", 100.0),
    "module_hot": ("module_high_temp", 1.0),
}
# infiniband_exporter asks the fabric for every port of every switch
SWITCH = {
    "rate_bytes_s": ("port_rate_bytes_per_second", "gauge"),
    "tx_bytes_s": ("port_transmit_data_bytes_total", "counter"),
    "rx_bytes_s": ("port_receive_data_bytes_total", "counter"),
    "xmit_wait_per_s": ("port_transmit_wait_total", "counter"),
    "discards_per_s": ("port_transmit_discards_total", "counter"),
    "linked": ("uplink_info", "gauge"),
}
VLLM = {
    "running": ("vllm:num_requests_running", "gauge"),
    "kv_used_ratio": ("vllm:kv_cache_usage_perc", "gauge"),
    "prefix_queries_s": ("vllm:prefix_cache_queries_total", "counter"),
    "prefix_hits_s": ("vllm:prefix_cache_hits_total", "counter"),
    "preemptions_per_s": ("vllm:num_preemptions_total", "counter"),
    "prompt_tokens_s": ("vllm:prompt_tokens_total", "counter"),
    "prompt_cached_tokens_s": ("vllm:prompt_tokens_cached_total", "counter"),
    "generation_tokens_s": ("vllm:generation_tokens_total", "counter"),
    "rss_bytes": ("process_resident_memory_bytes", "gauge"),
    "start_time_s": ("process_start_time_seconds", "gauge"),
}
DRAFTS = {
    "spec_drafted_tokens_s": "vllm:spec_decode_num_draft_tokens_total",
    "spec_accepted_tokens_s": "vllm:spec_decode_num_accepted_tokens_total",
}
SGLANG = {
    "startup_s": ("sglang:engine_startup_time", "gauge"),
    "weights_load_s": ("sglang:engine_load_weights_time", "gauge"),
    "running": ("sglang:num_running_reqs", "gauge"),
    "waiting": ("sglang:num_queue_reqs", "gauge"),
    "kv_used_ratio": ("sglang:token_usage", "gauge"),
    "kv_capacity_tokens": ("sglang:max_total_num_tokens", "gauge"),
    "prompt_tokens_s": ("sglang:prompt_tokens_total", "counter"),
    "prompt_cached_tokens_s": ("sglang:cached_tokens_total", "counter"),
    "generation_tokens_s": ("sglang:generation_tokens_total", "counter"),
    "preemptions_per_s": ("sglang:num_retracted_requests_total", "counter"),
    "requests_done_per_s": ("sglang:num_requests_total", "counter"),
    "requests_failed_per_s": ("sglang:num_aborted_requests_total", "counter"),
}
HISTOGRAMS = {
    "vllm": {
        "ttft_s": "vllm:time_to_first_token_seconds",
        "itl_s": "vllm:inter_token_latency_seconds",
        "tpot_s": "vllm:request_time_per_output_token_seconds",
        "e2e_s": "vllm:e2e_request_latency_seconds",
        "queue_s": "vllm:request_queue_time_seconds",
    },
    "sglang": {
        "ttft_s": "sglang:time_to_first_token_seconds",
        "itl_s": "sglang:inter_token_latency_seconds",
        "e2e_s": "sglang:e2e_request_latency_seconds",
        "queue_s": "sglang:queue_time_seconds",
    },
}
LB = {
    "lb_queue": ("haproxy_server_current_queue", "gauge"),
    "lb_sessions": ("haproxy_server_current_sessions", "gauge"),
    "lb_sessions_per_s": ("haproxy_server_sessions_total", "counter"),
    "lb_errors_per_s": ("haproxy_server_response_errors_total", "counter"),
    "lb_weight": ("haproxy_server_weight", "gauge"),
}
BACKEND = {
    "queue": ("haproxy_backend_current_queue", "gauge"),
    "latency_s": ("haproxy_backend_total_time_average_seconds", "gauge"),
    "arrivals_per_s": ("haproxy_backend_http_requests_total", "counter"),
    "refused_per_s": ("haproxy_backend_requests_denied_total", "counter"),
}


class _Draft:
    """Lines of a page, collected metric by metric."""

    def __init__(self) -> None:
        self.metrics: dict[str, tuple[str, list[tuple[str, int, float, float]]]] = {}

    def add(
        self,
        name: str,
        kind: str,
        labels: dict[str, str],
        slot: int,
        scale: float = 1.0,
        shift: float = 0.0,
        suffix: str = "",
    ) -> None:
        """One line: value = column `slot` * scale + shift; slot -1 makes the constant `shift`."""
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        line = f"{name}{suffix}{{{text}}} " if text else f"{name}{suffix} "
        self.metrics.setdefault(name, (kind, []))[1].append((line, slot, scale, shift))


class Template:
    """A page without its numbers."""

    def __init__(self, draft: _Draft) -> None:
        heads, slots, scales, shifts = [], [], [], []
        for name, (kind, lines) in draft.metrics.items():
            head = (
                f"# HELP {name} {name.replace('_', ' ').replace(':', ' ').lower()}.\n# TYPE {name} {kind}\n"
            )
            for line, slot, scale, shift in lines:
                heads.append(head + line)
                slots.append(slot)
                scales.append(scale)
                shifts.append(shift)
                head = ""
        self._heads = heads
        self._slots = np.array(slots, dtype=np.intp)
        self._is_constant = self._slots < 0
        self._scales, self._shifts = np.array(scales), np.array(shifts)

    def fill(self, values: Array) -> str:
        """The page; columns that are NaN leave no line."""
        shown = values[self._slots] * self._scales + self._shifts
        shown[self._is_constant] = self._shifts[self._is_constant]
        pairs = zip(self._heads, shown.tolist(), strict=True)
        if np.isnan(shown).any():
            return "".join(f"{head}{value!r}\n" for head, value in pairs if value == value)
        return "".join([f"{head}{value!r}\n" for head, value in pairs])


class Pages:
    """Text pages of a world's targets; templates are made again when a layout changes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._templates: dict[str, tuple[Layout, Template]] = {}

    def text(self, layout: Layout, values: Array) -> str:
        """The page of the target whose columns are `values`."""
        known = self._templates.get(layout.target)
        if known is None or known[0] is not layout:
            known = (layout, Template(_draft(self._world, layout)))
            self._templates[layout.target] = known
        return known[1].fill(values)


def _draft(world: World, layout: Layout) -> _Draft:
    draft = _Draft()
    if layout.target == LB_TARGET:
        _haproxy(world, layout, draft)
    elif layout.target.endswith(":9400"):
        _dcgm(world, layout, draft)
    elif layout.target.endswith(":9100"):
        _node(layout, draft)
    elif layout.target in world.switches.targets:
        _switch(layout, draft)
    else:
        _engine(world, layout, draft)
    return draft


def _numbered(layout: Layout, kind: str) -> Iterable[tuple[int, Series]]:
    return ((k, s) for k, s in enumerate(layout.series) if s.entity.kind == kind)


def _dcgm(world: World, layout: Layout, draft: _Draft) -> None:
    place = {(series.signal, series.entity): k for k, series in _numbered(layout, "gpu")}
    gpus = sorted({entity for _, entity in place}, key=lambda e: world.wiring.gpu(e.name))
    labels = {entity: _gpu_labels(world, entity) for entity in gpus}
    for signal, (name, kind, scale) in DCGM.items():
        for entity in gpus:
            draft.add(name, kind, labels[entity], place[signal, entity], scale)


def _gpu_labels(world: World, entity: Entity) -> dict[str, str]:
    gpu = world.wiring.gpu(entity.name)
    node, _, own = entity.name.partition("/gpu")
    return {
        "gpu": own, "UUID": world.wiring.uuid(gpu), "pci_bus_id": f"0000{world.wiring.bus_id(gpu).upper()}",
        "device": f"nvidia{own}", "modelName": world.spec.sku_of(world.wiring.node(node)), "Hostname": node,
        "DCGM_FI_DRIVER_VERSION": "550.90.07",
    }  # fmt: skip


def _node(layout: Layout, draft: _Draft) -> None:
    place = {series.signal: k for k, series in _numbered(layout, "node")}
    draft.add("node_exporter_build_info", "gauge", {"goos": "linux", "version": "1.8.2"}, -1, shift=1.0)
    cpus = 64
    for cpu in range(cpus):
        draft.add(
            "node_cpu_seconds_total",
            "counter",
            {"cpu": str(cpu), "mode": "idle"},
            place["cpu_idle_s_per_s"],
            1 / cpus,
        )
        draft.add("node_cpu_seconds_total", "counter", {"cpu": str(cpu), "mode": "iowait"}, -1, shift=0.0)
    for signal, (name, kind, scale) in NODE.items():
        draft.add(name, kind, {}, place[signal], scale)
    for signal, (name, kind, scale) in FILESYSTEM.items():
        draft.add(name, kind, _ROOT, place[signal], scale)
    for signal, (name, kind, scale) in NETDEV.items():
        draft.add(name, kind, {"device": "eth0"}, place[signal], scale)
        if signal in ("net_errors_per_s", "net_drops_per_s"):
            other = name.replace("receive", "transmit")
            draft.add(other, kind, {"device": "eth0"}, -1, shift=0.0)
    _stores(layout, draft)
    _ports(layout, draft)


def _stores(layout: Layout, draft: _Draft) -> None:
    for slot, series in _numbered(layout, "store"):
        where = series.entity.name.partition("/")[2]
        if where == storage.DISK:
            draft.add(f"node_disk_{DISK[series.signal]}_total", "counter", {"device": where}, slot)
        else:
            name, operation = MOUNT[series.signal]
            labels = {"export": where, "mountaddr": "10.0.0.9", "protocol": "tcp"}
            labels |= {"operation": operation} if operation else {}
            draft.add(f"node_mountstats_nfs_{name}_total", "counter", labels, slot)


def _ports(layout: Layout, draft: _Draft) -> None:
    for slot, series in _numbered(layout, "port"):
        device = series.entity.name.split("/")[1]
        if series.signal in INFINIBAND:
            name, kind = INFINIBAND[series.signal]
            draft.add(f"node_infiniband_{name}", kind, {"device": device, "port": "1"}, slot)
        else:
            # the Ethernet device of the same card has its own name
            name, scale = ETHTOOL[series.signal]
            draft.add(f"node_ethtool_{name}", "untyped", {"device": f"rdma{device[-1]}"}, slot, scale)


def _switch(layout: Layout, draft: _Draft) -> None:
    faces: dict[Entity, dict[str, str]] = {}
    for fact in layout.facts:
        faces.setdefault(fact.entity, {})[fact.key] = fact.value
    for slot, series in _numbered(layout, "switchport"):
        name, kind = SWITCH[series.signal]
        guid, _, number = series.entity.name.rpartition("/")
        labels = {"guid": guid, "port": number}
        if series.signal == "linked":
            far = faces[series.entity]
            labels |= {
                "switch": far["switch"],
                "uplink": far["far"],
                "uplink_port": far["far_port"],
                "uplink_type": far["far_kind"],
            }
        draft.add(f"infiniband_switch_{name}", kind, labels, slot)


def _engine(world: World, layout: Layout, draft: _Draft) -> None:
    engine = world.engine_at(layout.target)
    assert engine is not None
    pool = world.spec.pools[engine.pool]
    base = (
        {"engine": "0", "model_name": pool.model}
        if pool.engine == "vllm"
        else {"model_name": pool.model, "tp_rank": "0"}
    )
    place = {
        series.signal: k
        for k, series in enumerate(layout.series)
        if series.shape in (Shape.GAUGE, Shape.COUNTER)
    }
    if pool.engine == "vllm":
        _vllm(base, place, draft, pool.kv_blocks, pool.block_tokens)
        if pool.accepted:
            for signal, name in DRAFTS.items():
                draft.add(name, "counter", base, place[signal])
    else:
        # prefix queries and hits are read off the prompt and cached tokens
        for signal, (name, kind) in SGLANG.items():
            draft.add(name, kind, base, place[signal])
    for slot, series in enumerate(layout.series):
        if series.shape in (Shape.BUCKET, Shape.SUM, Shape.COUNT):
            name = HISTOGRAMS[pool.engine][series.signal]
            labels = dict(base)
            if series.shape is Shape.BUCKET:
                labels["le"] = "+Inf" if np.isinf(series.le) else repr(series.le)
            draft.add(name, "histogram", labels, slot, suffix=f"_{series.shape.value}")


def _vllm(base: dict[str, str], place: dict[str, int], draft: _Draft, blocks: int, block_tokens: int) -> None:
    for signal, (name, kind) in VLLM.items():
        draft.add(name, kind, base if name.startswith("vllm") else {}, place[signal])
    draft.add("vllm:num_requests_waiting", "gauge", base, place["waiting"])
    by_reason = "vllm:num_requests_waiting_by_reason"
    draft.add(by_reason, "gauge", {**base, "reason": "capacity"}, place["waiting"])
    draft.add(by_reason, "gauge", {**base, "reason": "deferred"}, place["waiting_deferred"])
    for state, value in (("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)):
        draft.add("vllm:engine_sleep_state", "gauge", {**base, "sleep_state": state}, -1, shift=value)
    for reason, signal in (("length", "requests_done_per_s"), ("abort", "requests_failed_per_s")):
        draft.add("vllm:request_success_total", "counter", {**base, "finished_reason": reason}, place[signal])
    for reason in ("stop", "error"):
        draft.add("vllm:request_success_total", "counter", {**base, "finished_reason": reason}, -1, shift=0.0)
    info = {"block_size": str(block_tokens), "cache_dtype": "auto", "enable_prefix_caching": "True", "engine": "0",
            "gpu_memory_utilization": "0.92", "num_gpu_blocks": str(blocks)}  # fmt: skip
    draft.add("vllm:cache_config_info", "gauge", info, -1, shift=1.0)


def _backend(series: Series, slot: int, draft: _Draft) -> None:
    labels = {"proxy": gateway.backend(series.entity.name)}
    if series.signal == "errors_per_s":
        draft.add("haproxy_backend_http_responses_total", "counter", {**labels, "code": "5xx"}, slot)
    else:
        name, kind = BACKEND[series.signal]
        draft.add(name, kind, labels, slot)


def _haproxy(world: World, layout: Layout, draft: _Draft) -> None:
    draft.add("haproxy_process_start_time_seconds", "gauge", {}, -1, shift=float(int(world.epoch - 86400)))
    for slot, series in enumerate(layout.series):
        engine = world.engine_at(series.entity.name)
        if engine is None:
            _backend(series, slot, draft)
            continue
        labels = {"proxy": world.spec.pools[engine.pool].name, "server": series.entity.name}
        if series.signal == "lb_up":
            draft.add("haproxy_server_status", "gauge", {**labels, "state": "UP"}, slot)
            draft.add("haproxy_server_status", "gauge", {**labels, "state": "DOWN"}, slot, -1.0, 1.0)
            for state in ("MAINT", "DRAIN", "NOLB"):
                draft.add("haproxy_server_status", "gauge", {**labels, "state": state}, -1)
        elif series.signal == "lb_done_per_s":
            draft.add("haproxy_server_http_responses_total", "counter", {**labels, "code": "2xx"}, slot)
            draft.add("haproxy_server_http_responses_total", "counter", {**labels, "code": "5xx"}, -1)
        else:
            name, kind = LB[series.signal]
            draft.add(name, kind, labels, slot)
