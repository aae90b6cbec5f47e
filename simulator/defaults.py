"""Clusters of a given size with a sensible mix of pools."""

from __future__ import annotations

from dataclasses import replace

from simulator.load import peak_ratio
from simulator.sizing import capacity_rps
from simulator.spec import PoolSpec, WorldSpec

_PEAK_USE = 0.8
"""Share of the capacity that the mean peak uses; noise and bursts need the rest."""


def _sized(pool: PoolSpec, replicas: int) -> PoolSpec:
    """The pool with a load whose daily peak needs `replicas` of them."""
    rate = _PEAK_USE * replicas * capacity_rps(pool) / peak_ratio(pool)
    return replace(
        pool, replicas=replicas, replicas_max=max(replicas + 1, round(replicas * 1.7)), requests_per_s=rate
    )


_CHAT = PoolSpec("chat", "llama-3.3-70b", "vllm", 4, 0, 0.0, 2400, 640, 0, priority=10, kv_blocks=16000)
_CODE = PoolSpec(
    "code", "deepseek-coder-236b", "vllm", 8, 0, 0.0, 6000, 480, 0, priority=5,
    max_num_seqs=128, kv_blocks=30000, prefill_token_s=6e-5, step_base_s=0.02, prefix_hit_share=0.55, peak_hour=13.0,
)  # fmt: skip
_SMALL = PoolSpec(
    "small", "qwen3-32b", "sglang", 2, 0, 0.0, 2000, 420, 0, priority=1,
    kv_blocks=11000, prefill_token_s=1.2e-4, step_base_s=0.014, step_seq_s=1e-4, prefix_hit_share=0.3,
    cold_start_min_s=40.0, cold_start_max_s=70.0, peak_hour=15.0, itl_slo_s=0.06,
)  # fmt: skip


def default_spec(gpus: int, *, gpus_per_node: int = 8) -> WorldSpec:
    """A mixed cluster of about `gpus` GPUs: the daily peak needs about 75 % of them, the night about 30 %.

    Three pools (chat tp=4 vLLM, code tp=8 vLLM, small tp=2 SGLang); a cluster below 32 GPUs has no code pool, below 4 only small.
    Raises ValueError below one GPU.
    """
    if gpus < 1:
        raise ValueError(f"a cluster needs at least one GPU, got {gpus}")
    per_node = min(gpus_per_node, gpus)
    nodes = max(1, round(gpus / per_node))
    total = nodes * per_node
    if total < 4 or per_node < 4:
        pools = [_sized(replace(_SMALL, tp=1), max(1, round(0.75 * total)))]
    elif total < 32 or per_node < 8:
        pools = [_sized(_CHAT, max(1, total // 8)), _sized(_SMALL, max(1, total // 8))]
    else:
        # 3/8 of the GPUs for chat, 2/8 for code, 1/8 for small: together 75 %.
        pools = [
            _sized(_CHAT, max(1, round(total * 0.375 / 4))),
            _sized(_CODE, max(1, round(total * 0.25 / 8))),
            _sized(_SMALL, max(1, round(total * 0.125 / 2))),
        ]
    return WorldSpec(
        nodes=nodes,
        gpus_per_node=per_node,
        nodes_per_rack=4 if nodes >= 16 else 2,
        racks_per_leaf=2,
        pools=tuple(pools),
    )
