"""How much one replica can serve."""

from __future__ import annotations

from simulator.spec import PoolSpec


def capacity_rps(pool: PoolSpec) -> float:
    """Requests per second one healthy replica serves with room to spare.

    The rate at which prefill takes half of the time, or decode reaches 60 % of its latency objective, 45 % of
    the KV cache or 80 % of the batch, whichever comes first. Source: the step model of `simulator.serving`.
    """
    low, high = 0.0, 1000.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_comfortable(pool, middle) else (low, middle)
    return low


def _is_comfortable(pool: PoolSpec, rps: float) -> bool:
    prefill = rps * pool.prompt_tokens * (1 - pool.prefix_hit_share) * pool.prefill_token_s
    if prefill > 0.5:
        return False
    context = pool.prompt_tokens + pool.output_tokens / 2
    per_seq = pool.step_seq_s + pool.step_context_s * context
    tokens_s = rps * pool.output_tokens / (1 - prefill)
    if tokens_s * per_seq >= 0.9:
        return False
    itl = pool.step_base_s / (1 - tokens_s * per_seq)
    batch = tokens_s * itl
    return (
        itl / (1 - prefill) <= 0.6 * pool.itl_slo_s
        and batch * context <= 0.45 * pool.kv_tokens
        and batch <= 0.8 * pool.max_num_seqs
    )
