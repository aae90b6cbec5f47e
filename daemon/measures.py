"""What the live checklists measure at one moment, from frames to named numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from daemon.model import NAN, Array, Frame, Frames
from daemon.topology import Topology

LINK_BYTES_S = (("A800", 400e9), ("H800", 400e9), ("A100", 600e9), ("H100", 900e9), ("H200", 900e9), ("H20", 900e9), ("B200", 1800e9))  # fmt: skip
"""NVLink of a GPU, both directions, by what its model name holds. Source: data sheets; daemon/advice has them in full."""


def measured(frames: Frames, topology: Topology) -> Iterator[tuple[str, float]]:
    """(series, value) of everything that is summed up over the day; NaN = not measured now."""
    gpu, engine, port = frames["gpu"], frames["engine"], frames["port"]
    with np.errstate(invalid="ignore", divide="ignore"):
        yield from _of_gpus(gpu, topology)
        yield from _of_engines(engine, gpu)
        yield from _of_ports(port)
        running = engine.column("running")
        for name, value in zip(engine.entities, running.tolist(), strict=True):
            pool, node = topology.pool_of.get(name, ""), topology.node_of_engine.get(name, "")
            if pool and node:
                yield f"load\t{pool}\t{node}", value


def _of_gpus(gpu: Frame, topology: Topology) -> Iterator[tuple[str, float]]:
    serving = np.array(
        [bool(name) for name in gpu.facts.get("engine", ("",) * len(gpu.entities))], dtype=bool
    )
    used = gpu.column("hbm_used_bytes") / gpu.column("hbm_total_bytes")
    yield "memory_utilisation", _mean(used[serving])
    yield "gpu_utilisation", _mean(gpu.column("util_ratio"))
    yield "serving_gpus", float(serving.sum()) if serving.any() else NAN
    places = {name: i for i, name in enumerate(gpu.entities)}
    groups = [[places[g] for g in gpus if g in places] for gpus in topology.gpus_of.values()]
    wide = [group for group in groups if len(group) > 1]
    if not wide:
        return
    links = np.array([_link(sku) for sku in gpu.facts.get("sku", ("",) * len(gpu.entities))])
    busy = (gpu.column("nvlink_tx_bytes_s") + gpu.column("nvlink_rx_bytes_s")) / links
    members = np.concatenate(wide)
    share = _mean(busy[members])
    yield "communication_share", share
    tensor = gpu.column("tensor_active_ratio")
    even = _mean(np.array([_evenness(tensor[group]) for group in wide]))
    yield "tp_efficiency", (1.0 - share) * even
    busy_nodes = gpu.column("sm_active_ratio")
    busy_nodes = np.where(np.isfinite(busy_nodes), busy_nodes, gpu.column("util_ratio"))
    spans = [_stages(group, gpu, busy_nodes) for group in wide]
    yield "pp_bubble", 1.0 - _mean(np.array([_evenness(s) for s in spans if s.size > 1]))


def _stages(group: list[int], gpu: Frame, busy: Array) -> Array:
    """(stage,) activity of the stages of a replica, of the nodes it spans where nothing tells its stages."""
    told = gpu.facts.get("stage", ("",) * len(gpu.entities))
    stages: dict[str, list[float]] = {}
    for i in group:
        stages.setdefault(told[i] or gpu.entities[i].split("/", 1)[0], []).append(float(busy[i]))
    return np.array([_mean(np.array(values)) for values in stages.values()])


def _evenness(values: Array) -> float:
    """Mean over highest; NaN for a group that does nothing."""
    top = float(np.max(values, initial=0.0)) if np.isfinite(values).all() else NAN
    return float(values.mean()) / top if top > 0.01 else NAN


def _link(sku: str) -> float:
    return next((rate for word, rate in reversed(LINK_BYTES_S) if word in sku.upper()), NAN)


def _of_engines(engine: Frame, gpu: Frame) -> Iterator[tuple[str, float]]:
    kv, running = engine.column("kv_used_ratio"), engine.column("running")
    yield "kv_utilisation", _mean(kv)
    blocks, size = engine.column("kv_blocks"), engine.column("kv_block_tokens")
    tokens, held = engine.column("kv_used_tokens"), engine.column("kv_used_blocks")
    told = 1.0 - tokens / (held * size)
    # A paged cache wastes what is left of each request's last block: half of it on average.
    expected = running * size / 2.0 / (kv * blocks * size)
    lost = np.where(np.isfinite(told), told, np.where(kv > 0.01, expected, NAN))
    yield "fragmentation", _mean(np.clip(lost, 0.0, 1.0))
    made = engine.column("generation_tokens_s")
    cards = sum(bool(name) for name in gpu.facts.get("engine", ()))
    if cards and np.isfinite(made).any():
        yield "throughput", float(np.nansum(made)) / cards
    models = engine.facts.get("model", ("",) * len(engine.entities))
    small = np.array([6.0 <= billions(name) <= 9.0 for name in models], dtype=bool)
    if small.any():
        yield "ttft_7b", _mean(engine.column("ttft_p50_s")[small])
        yield "serves_7b", 1.0


def billions(model: str) -> float:
    """Parameters as a model's name has them, NaN where it does not say. Mixtures ("8x7b") count whole.

    >>> billions("meta-llama/Llama-3.1-8B-Instruct"), billions("mixtral-8x7b"), billions("chat")
    (8.0, 56.0, nan)
    """
    found = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", model.lower())
    return float(found[1] or 1) * float(found[2]) if found else NAN


def _of_ports(port: Frame) -> Iterator[tuple[str, float]]:
    moved = np.fmax(port.column("tx_bytes_s"), port.column("rx_bytes_s"))
    busy = np.sort((moved / port.column("rate_bytes_s"))[np.isfinite(moved)])
    busy = busy[np.isfinite(busy)]
    yield "link_utilisation", float(busy[math.ceil(0.95 * busy.size) - 1]) if busy.size else NAN
    signs = [port.column(s) for s in ("ecn_marked_per_s", "cnp_handled_per_s", "cnp_sent_per_s", "rx_pause_ratio", "tx_pause_ratio", "rx_pause_per_s")]  # fmt: skip
    known = [s[np.isfinite(s)] for s in signs]
    if any(k.size for k in known):
        yield "congestion_signs", float(sum(k.sum() for k in known))
    drops = port.column("rx_discards_phy_per_s")
    yield "congestion_drops", float(np.nansum(drops)) if np.isfinite(drops).any() else NAN


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else NAN
