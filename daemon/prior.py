"""What a replica should hold by the memory of its GPUs, for a pool of which nothing has been measured yet."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from daemon.advice import shelf
from daemon.advice.fit import Ask, splits
from daemon.advice.footprint import QUANTS, ModelError
from daemon.model import NAN, Array, Frame, Frames
from daemon.topology import Topology

REQUEST_TOKENS = 2048.0
"""Prompt and answer of a request while no request has ended. Judgement: chat traces lie between one and three thousand."""
SEQUENCES_MAX = 256.0
"""Requests that engines run at once by default, however much memory there is."""
HINTS = {
    "fp8": "fp8",
    "int8": "int8",
    "w8a8": "int8",
    "awq": "int4",
    "gptq": "int4",
    "int4": "int4",
    "w4a16": "int4",
}
"""What the name of a model says of its weights."""


@dataclass(frozen=True, slots=True)
class Prior:
    """requests : that a replica holds at once by memory alone. text : how that was reckoned."""

    requests: float
    text: str


def prior(frames: Frames, topology: Topology, pool: str) -> Prior | None:
    """None where neither the engines nor the catalogue say how large the cache is."""
    engine, members = frames["engine"], topology.engines_in(pool)
    rows = [i for i, name in enumerate(engine.entities) if name in set(members)]
    tokens, of = _told(engine, rows), "as its engines tell"
    if math.isnan(tokens):
        tokens, of = _by_tables(frames, topology, pool, rows)
    if not tokens > 0:
        return None
    each = _tokens_of_a_request(frames["pool"], pool)
    requests = min(tokens / each, SEQUENCES_MAX)
    return Prior(
        requests,
        f"about {requests:.0f} requests of {each:,.0f} tokens fit a replica's cache of {tokens:,.0f}, {of}; nothing is measured yet",
    )


def cache_tokens(engine: Frame) -> Array:
    """(engine,) tokens a KV cache holds, as the engine says or blocks times their size; NaN where it tells neither."""
    told = engine.column("kv_capacity_tokens")
    blocks = engine.column("kv_blocks") * engine.column("kv_block_tokens")
    return np.where(np.isfinite(told), told, blocks)


def _told(engine: Frame, rows: list[int]) -> float:
    known = cache_tokens(engine)[rows]
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else NAN


def _by_tables(frames: Frames, topology: Topology, pool: str, rows: list[int]) -> tuple[float, str]:
    """Tokens by the architecture of the model and the data sheet of the GPU, and from what; NaN where one is not known."""
    engine, gpu = frames["engine"], frames["gpu"]
    name = next(
        (m for m in (engine.facts.get("model", ("",) * len(engine.entities))[i] for i in rows) if m), ""
    )
    cards = {g for i in rows for g in topology.gpus_of.get(engine.entities[i], ())}
    skus = gpu.facts.get("sku", ("",) * len(gpu.entities))
    sku = next((s for g, s in zip(gpu.entities, skus, strict=True) if s and (g in cards or not cards)), "")
    size = topology.gpus_per_replica(pool)
    if not (name and sku and size):
        return NAN, ""
    quant, plain = _quant(name)
    try:
        model, card = shelf.model(plain), shelf.accelerator(sku)
    except ModelError:
        return NAN, ""
    ask = Ask(context=int(REQUEST_TOKENS), concurrency=1)
    found = next((s for s in splits(model, QUANTS[quant], card, ask) if s.gpus == size), None)
    if found is None or not found.fits:
        return NAN, ""
    return (
        found.sequences * REQUEST_TOKENS,
        f"by the sizes of {model.name} in {quant} on {size} x {card.name}",
    )


def _quant(name: str) -> tuple[str, str]:
    """The quantisation that a model's name tells, and the name without it."""
    words = name.lower().replace("_", "-").split("-")
    told = next((HINTS[w] for w in words if w in HINTS), "fp16")
    return told, "-".join(w for w in words if w not in HINTS)


def _tokens_of_a_request(pools: Frame, pool: str) -> float:
    done = pools.value(pool, "requests_done_per_s")
    tokens = pools.value(pool, "prompt_tokens_s") + pools.value(pool, "generation_tokens_s")
    each = tokens / done if done > 0 else NAN
    return each if each > 0 else REQUEST_TOKENS
