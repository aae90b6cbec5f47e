"""The eighteen items of the live checklists: what each asks, how it is measured, what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a checklist.

    is_floor : the value must be at least `target`; else at most. over : "day" for the mean of 24 h, "peak" for the mean
    of the busiest hour, "now" for what stands now, "month" for the cases of 30 days. needs : what must be scraped.
    """

    tier: str
    title: str
    target: float
    unit: str
    is_floor: bool
    over: str
    how: str
    needs: str
    remedy: str


_ITEMS = {
    "memory_utilisation": Item(
        "small", "GPU memory in use", 0.85, "ratio", True, "day",
        "used / total memory, mean over GPUs with an engine",
        "gpu.hbm_used_bytes and gpu.hbm_total_bytes (dcgm-exporter)",
        "raise the engines' share of GPU memory, or put a second model on the GPUs; see tidewarden size",
    ),
    "kv_utilisation": Item(
        "small", "KV blocks in use", 0.80, "ratio", True, "peak",
        "used / all KV blocks, mean over engines",
        "engine.kv_used_ratio (the engines' own pages)",
        "more requests at once fit: raise the batch limit, or run fewer replicas and lend the rest",
    ),
    "fragmentation": Item(
        "small", "Memory lost to fragments", 0.10, "ratio", False, "day",
        "tokens reserved and not used / tokens reserved: as engines tell it, else half a block a running request",
        "engine.kv_used_ratio with kv_blocks and kv_block_tokens, or kv_used_tokens with kv_used_blocks",
        "smaller KV blocks; a paged cache where there is none",
    ),
    "ttft_7b": Item(
        "small", "Time to first token of a 7B model", 0.100, "s", False, "day",
        "median time to first token of engines whose model has 6 to 9 billion parameters",
        "engine.ttft_s (the engines' own pages)",
        "prefix caching, smaller prefill chunks, one replica more at the busy hour",
    ),
    "throughput": Item(
        "small", "Tokens a second and GPU", 100.0, "tokens/s", True, "peak",
        "generated tokens / GPUs with an engine",
        "engine.generation_tokens_s (the engines' own pages) and GPUs of the engines",
        "larger batches, quantised weights, speculative decoding; or fewer replicas: the load may be too small",
    ),
    "quantisation_loss": Item(
        "small", "Quality lost by quantisation", 0.02, "ratio", False, "now",
        "attested by an evaluation job: no exporter can show it",
        "POST /api/v1/attest from the job that evaluates the quantised model, see docs/en/posture.md",
        "a milder quantisation (int8, fp8) or one calibrated on own data",
    ),
    "tp_efficiency": Item(
        "medium", "Tensor-parallel efficiency", 0.90, "ratio", True, "day",
        "(1 - communication share) x mean / highest tensor activity of the ranks, mean over replicas of several GPUs",
        "gpu.tensor_active_ratio, gpu.nvlink_tx_bytes_s and gpu.nvlink_rx_bytes_s (dcgm-exporter profiling fields)",
        "narrower TP within NVLink; look for a slow rank on the incidents page",
    ),
    "pp_bubble": Item(
        "medium", "Pipeline bubble", 0.10, "ratio", False, "day",
        "1 - mean / highest activity of the nodes of a replica that spans nodes",
        "gpu.sm_active_ratio or util_ratio, and the engines' GPUs on several nodes",
        "more micro-batches, stages of equal weight, or TP within a node instead",
    ),
    "communication_share": Item(
        "medium", "Communication share", 0.20, "ratio", False, "day",
        "NVLink bytes / NVLink bandwidth, mean over GPUs of replicas of several GPUs: the time links are busy",
        "gpu.nvlink_tx_bytes_s and gpu.nvlink_rx_bytes_s (dcgm-exporter profiling fields) and a known GPU model",
        "overlap of communication and computation, narrower TP",
    ),
    "load_deviation": Item(
        "medium", "Load deviation between nodes", 0.05, "ratio", False, "day",
        "(highest - mean) / mean of the nodes' running requests a replica, hour by hour, in the pool where it is worst",
        "engine.running (the engines' own pages)",
        "route by load instead of in turn; look at the routing weights on the actions page",
    ),
    "recovery_30s": Item(
        "medium", "Traffic moved after a node's failure", 30.0, "s", False, "month",
        "from a failure's onset, as its findings date it, to the first verified answer, the slowest of nine in ten",
        "an incident that was answered; a drill shows it without one (tidewarden drill --scenario xid79)",
        "mode auto for reroute; see what refused on the actions page",
    ),
    "link_utilisation": Item(
        "medium", "Link utilisation", 0.80, "ratio", False, "peak",
        "the busier direction / rate of a port, the busiest of twenty ports",
        "port.tx_bytes_s, rx_bytes_s and rate_bytes_s (node_exporter with infiniband or ethtool)",
        "spread replicas over leaves; see the congestion incidents",
    ),
    "redundancy": Item(
        "large", "Gateway, etcd and storage N+1", 2.0, "", True, "now",
        "the fewest instances of any of them that answer",
        "a target of each: HAProxy or nginx, etcd, a storage exporter",
        "one more instance of the part that has one",
    ),
    "recovery_60s": Item(
        "large", "Service back after a node's failure", 60.0, "s", False, "month",
        "as the medium line",
        "an incident that was answered; a drill shows it without one (tidewarden drill --scenario xid79)",
        "mode auto for reroute and scale, a warm spare",
    ),
    "congestion_control": Item(
        "large", "ECN or PFC on", 1.0, "yes", True, "day",
        "marks, notification packets or pause frames were counted; packets dropped without any say it is off",
        "port.ecn_marked_per_s, cnp_handled_per_s or rx_pause_ratio (node_exporter ethtool, infiniband)",
        "switch on ECN and PFC on hosts and switches for the RDMA class",
    ),
    "gpu_utilisation": Item(
        "large", "Daily mean GPU utilisation", 0.60, "ratio", True, "day",
        "mean over all GPUs, lent ones included",
        "gpu.util_ratio (dcgm-exporter)",
        "lend idle GPUs at night (pools: lendable), scale pools down",
    ),
    "stragglers_isolated": Item(
        "large", "Stragglers found and isolated by themselves", 1.0, "yes", True, "now",
        "the straggler detector runs and reroute and isolate are in mode auto",
        "nothing: it is a setting",
        "modes: {reroute: auto, isolate: auto} once the rules page shows a precision you trust",
    ),
    "capacity_warning": Item(
        "large", "Capacity warned three days ahead", 72.0, "h", True, "now",
        "how far ahead the GPUs of every pool are known",
        "three days of history of every pool; sources.prometheus gives it at the first start",
        "let the daemon see Prometheus' history, or wait",
    ),
}  # fmt: skip

ITEMS: Mapping[str, Item] = MappingProxyType(_ITEMS)
"""Source: the checklists of the white paper, sections 2.2 to 2.4."""
