"""What live engines reserve against what they use: the sizing advisor on measured memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from daemon.advice import shelf
from daemon.advice.footprint import ModelError, kv_bytes_per_token
from daemon.loop import Daemon
from daemon.model import NAN, Array, Frame
from daemon.prior import cache_tokens
from daemon.web.views import Row

GB = 1e9
ROOMY, TIGHT = 0.4, 0.9
"""Share of the KV cache used at the busiest minute below which room stands idle, above which requests will wait."""
KV_BYTES = 2.0
"""Of a number in the cache, fp16: engines do not tell their cache's type. With fp8 the bytes are half as many."""


def of(daemon: Daemon) -> Row:
    """A row a pool: memory of its GPUs, what its KV cache holds, the most that was used in the last two hours."""
    engine, gpu = daemon.frames["engine"], daemon.frames["gpu"]
    pools = engine.facts.get("pool", ("",) * len(engine.entities))
    peak = busiest(daemon)
    rows = [_row(daemon, engine, gpu, name, pools, peak) for name in sorted({p for p in pools if p})]
    minutes = len(daemon.recent.minutes)
    return {"at": daemon.frames.at or NAN, "minutes": minutes, "pools": rows}


def busiest(daemon: Daemon) -> dict[str, float]:
    """engine -> highest share of its KV cache in use in the minutes that are remembered."""
    found: dict[str, float] = {}
    for minute in daemon.recent.minutes:
        values = minute.values.get("engine")
        if values is None:
            continue
        for name, value in zip(minute.entities["engine"], values[:, -1].tolist(), strict=True):
            if value == value:
                found[name] = max(found.get(name, 0.0), value)
    return found


def _row(
    daemon: Daemon, engine: Frame, gpu: Frame, pool: str, pools: tuple[str, ...], peak: dict[str, float]
) -> Row:
    members = [i for i, p in enumerate(pools) if p == pool]
    names = [engine.entities[i] for i in members]
    cards = [g for n in names for g in daemon.core.topology.gpus_of.get(n, ())]
    place = {g: i for i, g in enumerate(gpu.entities)}
    rows = [place[g] for g in cards if g in place]
    reserved = _mean(gpu.column("hbm_used_bytes")[rows])
    total = _mean(gpu.column("hbm_total_bytes")[rows])
    tokens = cache_tokens(engine)[members]
    most = [peak[n] for n in names if n in peak]
    used_share = max(most, default=NAN)
    capacity = _mean(tokens)
    model = next((m for m in (engine.fact(n, "model") for n in names) if m), "")
    per_token = _per_token(model)
    per_replica = len(cards) / len(names) if cards else NAN
    row: dict[str, Any] = {
        "name": pool,
        "model": model,
        "replicas": len(names),
        "gpus_per_replica": per_replica,
        "reserved_bytes_per_gpu": reserved,
        "memory_bytes_per_gpu": total,
        "kv_capacity_tokens": capacity,
        "kv_peak_ratio": used_share,
        "kv_capacity_bytes": capacity * per_token,
        "kv_peak_bytes": capacity * per_token * used_share,
    }
    return row | {"text": sentence(row)}


def sentence(row: Row) -> str:
    """What an operator may do about it."""
    share, tokens = row["kv_peak_ratio"], row["kv_capacity_tokens"]
    if not math.isfinite(share):
        return "No engine of it tells how full its KV cache is."
    held = f"{tokens:,.0f} tokens" if math.isfinite(tokens) else "its KV cache"
    told = f"A replica holds {held}, and at the busiest minute {share:.0%} of that was used"
    if math.isfinite(row["kv_peak_bytes"]):
        told += f": it reserves {row['kv_capacity_bytes'] / GB:.1f} GB for it and used {row['kv_peak_bytes'] / GB:.1f} GB"
    if share < ROOMY:
        return f"{told}. More requests at once fit: raise the batch limit, or serve with fewer replicas."
    if share > TIGHT:
        return f"{told}. It is about to run out: one more replica, a shorter context, or an fp8 cache."
    return f"{told}. That is well sized."


def _per_token(model: str) -> float:
    """Bytes one token takes in the cache of a whole replica, NaN for a model that is not known."""
    try:
        return kv_bytes_per_token(shelf.model(model), KV_BYTES) if model else NAN
    except ModelError:
        return NAN


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else NAN
