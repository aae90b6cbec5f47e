"""Which split of a model over GPUs holds it, and what that should give."""

from __future__ import annotations

import math
from dataclasses import dataclass

from daemon.advice.footprint import (
    GIB,
    Model,
    Quant,
    activation_bytes,
    kv_bytes_per_token,
    touched_bytes,
    weight_bytes,
)

CONTEXT_BYTES = 1.2 * GIB
"""Driver context, kernels and captured graphs of one process on one GPU."""
COLLECTIVE_BYTES = 0.4 * GIB
"""Buffers of the collective library, where a replica spans GPUs."""
READ_SHARE = 0.75
"""Of the memory bandwidth on the data sheet, what decode kernels reach."""
MATH_SHARE = 0.5
"""Of the arithmetic on the data sheet, what prefill reaches."""
LINK_SHARE = 0.7
LAYER_S = 12e-6
"""Launches and small kernels of one layer with captured graphs."""
ALL_REDUCE_S = 9e-6
"""Latency of one all-reduce over NVLink; there are two a layer. PCIe takes about three times that."""
PCIE_GB_S = 50.0
HOP_S = 30e-6
"""From one pipeline stage to the next, over the network."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU as its data sheet has it. memory_mib : as the driver reports it. link_gb_s : 0 = PCIe only."""

    name: str
    memory_mib: float
    bandwidth_gb_s: float
    half_tflops: float
    eight_bit_tflops: float
    link_gb_s: float
    power_w: float
    names: tuple[str, ...] = ()

    @property
    def memory(self) -> float:
        return self.memory_mib * 2.0**20


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be served. context : tokens of a request, prompt and answer. concurrency : requests at once.

    utilization : share of the GPU memory the engine may take. batch_tokens : largest step. kv_bytes : of a cached number.
    """

    context: int
    concurrency: int
    kv_bytes: float = 2.0
    utilization: float = 0.9
    batch_tokens: int = 8192
    gpus_per_node: int = 8


@dataclass(frozen=True, slots=True)
class Split:
    """One way to place a replica, per GPU in bytes. kv : room for the cache, below 0 = it does not even load.

    sequences : requests of the asked context that a replica holds at once. replicas : for the asked concurrency.
    step_s : expected time of a decode step at that load. tokens_s : of all replicas. prefill_tokens_s : of one.
    """

    tp: int
    pp: int
    weights: float
    activations: float
    overhead: float
    kv: float
    sequences: int
    replicas: int
    step_s: float
    tokens_s: float
    prefill_tokens_s: float
    why: str

    @property
    def fits(self) -> bool:
        return self.replicas > 0

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.tp * self.pp


def splits(model: Model, quant: Quant, gpu: Accelerator, ask: Ask, gpus_max: int = 0) -> list[Split]:
    """Every sensible split, those that do not fit among them. gpus_max : GPUs there are, 0 = any number.

    Stages across nodes only where one node cannot hold the model: they cost GPUs and shorten no step.
    """
    widths = [tp for tp in (1, 2, 4, 8, 16) if tp <= ask.gpus_per_node and model.heads % tp == 0]
    found = [_split(model, quant, gpu, ask, tp, 1) for tp in widths]
    if not any(split.fits for split in found):
        stages = [pp for pp in (2, 4, 8, 16) if pp <= model.layers]
        found += [_split(model, quant, gpu, ask, widths[-1], pp) for pp in stages]
    return [split for split in found if not gpus_max or split.gpus <= gpus_max]


def best(found: list[Split], gpus_max: int = 0) -> Split | None:
    """The split that needs the fewest GPUs; among equals the fewest stages, then the narrowest. None when nothing fits."""
    fitting = [s for s in found if s.fits and (not gpus_max or s.gpus * s.replicas <= gpus_max)]
    return min(fitting, key=lambda s: (s.gpus * s.replicas, s.pp, s.tp), default=None)


def _split(model: Model, quant: Quant, gpu: Accelerator, ask: Ask, tp: int, pp: int) -> Split:
    gpus = tp * pp
    weights = weight_bytes(model, quant) / gpus
    activations = activation_bytes(model, ask.batch_tokens, min(ask.concurrency, 256), tp)
    overhead = CONTEXT_BYTES + (COLLECTIVE_BYTES if gpus > 1 else 0.0)
    kv = gpu.memory * ask.utilization - weights - activations - overhead
    ways = pp * min(tp, model.kv_ways)
    one = kv_bytes_per_token(model, ask.kv_bytes) * ask.context / ways
    sequences = int(kv // one) if kv > 0 else 0
    replicas = math.ceil(ask.concurrency / sequences) if sequences else 0
    load = ask.concurrency / replicas if replicas else 0.0
    step_s = _step_s(model, quant, gpu, ask, tp, pp, load) if replicas else math.nan
    return Split(
        tp=tp,
        pp=pp,
        weights=weights,
        activations=activations,
        overhead=overhead,
        kv=kv,
        sequences=sequences,
        replicas=replicas,
        step_s=step_s,
        tokens_s=ask.concurrency / step_s if replicas else 0.0,
        prefill_tokens_s=_prefill(model, quant, gpu, tp),
        why=_why(kv, one, sequences, ask),
    )


def _step_s(model: Model, quant: Quant, gpu: Accelerator, ask: Ask, tp: int, pp: int, load: float) -> float:
    """One decode step of every request: stages work in turn, so a pipeline shortens no step."""
    cached = load * kv_bytes_per_token(model, ask.kv_bytes) * ask.context / 2.0 / min(tp, model.kv_ways)
    reading = (touched_bytes(model, quant, load) / tp + cached) / (gpu.bandwidth_gb_s * 1e9 * READ_SHARE)
    maths = 2.0 * model.active * load / tp / (_tflops(quant, gpu) * 1e12 * MATH_SHARE)
    rest = model.layers * LAYER_S + (pp - 1) * HOP_S
    if tp > 1:
        link = gpu.link_gb_s or PCIE_GB_S
        latency = ALL_REDUCE_S * (1.0 if gpu.link_gb_s else 3.0)
        moved = 2.0 * (tp - 1) / tp * load * model.hidden * 2.0
        rest += 2.0 * model.layers * (latency + moved / (link / 2.0 * 1e9 * LINK_SHARE))
    return max(reading, maths) + rest


def _prefill(model: Model, quant: Quant, gpu: Accelerator, tp: int) -> float:
    return tp * _tflops(quant, gpu) * 1e12 * MATH_SHARE / (2.0 * (model.active - model.vocab * model.hidden))


def _tflops(quant: Quant, gpu: Accelerator) -> float:
    return gpu.eight_bit_tflops if quant.is_eight_bit_math else gpu.half_tflops


def _why(kv: float, one: float, sequences: int, ask: Ask) -> str:
    if kv <= 0:
        return f"does not load: {-kv / GIB:.1f} GiB a GPU too little"
    if not sequences:
        return f"loads, but {kv / GIB:.1f} GiB a GPU are left for KV and one request of {ask.context} tokens takes {one / GIB:.1f}"
    return f"{sequences} requests of {ask.context} tokens at once in {kv / GIB:.1f} GiB of KV a GPU"
