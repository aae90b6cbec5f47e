"""How many bytes a model takes: weights, KV cache, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2.0**30

MIXER_BYTES = 2.0
"""Embeddings, output head, norms and routers stay in half precision whatever the rest is quantised to."""


@dataclass(frozen=True, slots=True)
class Quant:
    """bits : of a quantised weight, its scales and zero points included. kv_bytes : of one cached number."""

    bits: float
    kv_bytes: float
    is_eight_bit_math: bool


QUANTS: dict[str, Quant] = {
    "fp16": Quant(16.0, 2.0, False),
    "bf16": Quant(16.0, 2.0, False),
    "fp8": Quant(8.0, 2.0, True),
    "int8": Quant(8.0, 2.0, True),
    # 4 bits, and a 16-bit scale and a 4-bit zero point a group of 128 (AWQ, GPTQ)
    "int4": Quant(4.0 + 20.0 / 128.0, 2.0, False),
    # 4 bits, doubly quantised scales: 0.127 bits a weight (QLoRA, section 3)
    "nf4": Quant(4.127, 2.0, False),
}


class ModelError(ValueError):
    """An architecture that cannot be read. Its text says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer, as far as memory and arithmetic are concerned. Counts are of one whole model.

    linear : weights that get quantised and are all used by every token. expert : weights of all routed experts.
    mixed : embeddings, head, routers, norms. kv_numbers : numbers cached a token. kv_ways : over how many GPUs of a
    tensor-parallel group the cache can be split; beyond, each keeps a copy. experts, per_token : 0 = dense.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_ways: int
    widest: int
    vocab: int
    linear: float
    expert: float
    mixed: float
    kv_numbers: float
    experts: int
    per_token: int
    context_max: int

    @property
    def parameters(self) -> float:
        return self.linear + self.expert + self.mixed

    @property
    def active(self) -> float:
        """Parameters one token meets."""
        share = self.per_token / self.experts if self.experts else 0.0
        return self.linear + self.expert * share + self.mixed


def read(name: str, tree: Mapping[str, Any]) -> Model:
    """A model from the fields of its config.json (nested text_config of multi-modal ones included). Raises ModelError."""
    tree = tree.get("text_config") or tree
    hidden, layers = _count(name, tree, "hidden_size"), _count(name, tree, "num_hidden_layers")
    heads, vocab = _count(name, tree, "num_attention_heads"), _count(name, tree, "vocab_size")
    kv_heads = int(tree.get("num_key_value_heads") or heads)
    head = int(tree.get("head_dim") or hidden // heads)
    experts = int(
        tree.get("n_routed_experts") or tree.get("num_experts") or tree.get("num_local_experts") or 0
    )
    if tree.get("kv_lora_rank"):
        attention, kv_layer = _latent(name, tree, hidden, heads)
    else:
        attention, kv_layer = 2.0 * hidden * head * (heads + kv_heads), 2.0 * kv_heads * head
    dense_layers = int(tree.get("first_k_dense_replace") or 0) if experts else layers
    linear, expert, router = layers * attention, 0.0, 0.0
    widest = 0
    if dense_layers:
        widest = _count(name, tree, "intermediate_size")
        linear += dense_layers * 3.0 * hidden * widest
    per_token = 0
    if experts:
        inner = int(tree.get("moe_intermediate_size") or _count(name, tree, "intermediate_size"))
        per_token = _count(name, tree, "num_experts_per_tok")
        sparse = layers - dense_layers
        shared = int(tree.get("n_shared_experts") or 0) * inner
        shared = int(tree.get("shared_expert_intermediate_size") or shared)
        linear += sparse * 3.0 * hidden * shared
        expert = sparse * 3.0 * hidden * inner * experts
        router = sparse * float(hidden * experts)
        widest = max(widest, shared + per_token * inner)
    tied = bool(tree.get("tie_word_embeddings"))
    return Model(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        # one latent serves all heads: every GPU keeps all of it
        kv_ways=1 if tree.get("kv_lora_rank") else kv_heads,
        widest=widest,
        vocab=vocab,
        linear=linear,
        expert=expert,
        mixed=float(vocab) * hidden * (1 if tied else 2) + router + (2.0 * layers + 1) * hidden,
        kv_numbers=layers * kv_layer,
        experts=experts,
        per_token=per_token,
        context_max=int(tree.get("max_position_embeddings") or 0),
    )


def _latent(name: str, tree: Mapping[str, Any], hidden: int, heads: int) -> tuple[float, float]:
    """Weights of one latent-attention layer, and what it caches a token: the latent and the rotary key, for all heads."""
    rank, rotary = _count(name, tree, "kv_lora_rank"), _count(name, tree, "qk_rope_head_dim")
    plain, value = _count(name, tree, "qk_nope_head_dim"), _count(name, tree, "v_head_dim")
    query = int(tree.get("q_lora_rank") or 0)
    wide = heads * (plain + rotary)
    queries = float(hidden * query + query * wide) if query else float(hidden * wide)
    keys = float(hidden * (rank + rotary) + rank * heads * (plain + value))
    return queries + keys + float(heads * value * hidden), float(rank + rotary)


def _count(name: str, tree: Mapping[str, Any], key: str) -> int:
    value = tree.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        found = "is missing" if value is None else f"is {value!r}"
        raise ModelError(
            f"model {name}: {key} {found}; a whole number above 0 is needed, as config.json of the model has it"
        )
    return value


def weight_bytes(model: Model, quant: Quant) -> float:
    """Bytes of the weights on the disk and, all GPUs together, in memory."""
    return (model.linear + model.expert) * quant.bits / 8.0 + model.mixed * MIXER_BYTES


def kv_bytes_per_token(model: Model, kv_bytes: float) -> float:
    """Bytes of KV cache one token takes, all GPUs together."""
    return model.kv_numbers * kv_bytes


def activation_bytes(model: Model, batch_tokens: int, sequences: int, tp: int) -> float:
    """Peak working memory of one GPU in a step of `batch_tokens` that ends `sequences` prompts.

    The widest moment of a layer (gate and up side by side, split over TP, beside residual and its copy), or the logits
    in 32 bits with one copy, whichever is more.
    """
    layer = batch_tokens * (2.0 * model.widest / tp + 4.0 * model.hidden) * 2.0
    logits = 2.0 * sequences * model.vocab * 4.0 / tp
    return max(layer, logits)


def touched_bytes(model: Model, quant: Quant, batch: float) -> float:
    """Weights one decode step reads: of a mixture, only the experts that `batch` tokens meet."""
    share = 1.0 - (1.0 - model.per_token / model.experts) ** batch if model.experts else 0.0
    # The embedding table is looked up, not read through.
    return (model.linear + model.expert * share) * quant.bits / 8.0 + (
        model.mixed - model.vocab * model.hidden
    ) * MIXER_BYTES
