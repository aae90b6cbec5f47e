"""What a replica should hold before anything is measured: by its engine's word, else by the tables; grown by, never shrunk by."""

from __future__ import annotations

import math

import pytest
from small_frames import frame, frames

from daemon.model import Frames
from daemon.policy import PoolPolicy
from daemon.prior import Prior, prior
from daemon.replica import LOAD_TARGET, Learnt
from daemon.sizing import Need, need
from daemon.topology import Topology

GPUS = tuple(f"n0/gpu{k}" for k in range(2))
TOPOLOGY = Topology(
    nodes=("n0",),
    gpus_on={"n0": GPUS},
    engines_on={"n0": ("a:8000",)},
    gpus_of={"a:8000": GPUS},
    pool_of={"a:8000": "chat"},
)


def seen(
    model: str = "llama-3.1-70b-instruct-fp8", pool: dict[str, float] | None = None, **engine: float
) -> Frames:
    engines = frame(
        "engine", 0.0, {"a:8000": {"running": 0.0, **engine}}, {"a:8000": {"pool": "chat", "model": model}}
    )
    gpus = frame(
        "gpu",
        0.0,
        {g: {"util_ratio": 0.0} for g in GPUS},
        {g: {"sku": "NVIDIA H100 80GB HBM3"} for g in GPUS},
    )
    return frames(0.0, engines, gpus, frame("pool", 0.0, {"chat": pool or {"ready": 1.0}}))


def test_what_the_engine_says_of_its_cache_comes_first() -> None:
    found = prior(seen(kv_blocks=10_000.0, kv_block_tokens=16.0), TOPOLOGY, "chat")

    assert found is not None
    assert found.requests == pytest.approx(160_000 / 2048)
    assert "as its engines tell; nothing is measured yet" in found.text


def test_else_the_tables_say_it_for_the_model_its_weights_and_the_gpus() -> None:
    """`tidewarden size --model llama-3.1-70b --quant fp8 --context 2048 --sku h100-80g`: TP 2 holds 112."""
    found = prior(seen(), TOPOLOGY, "chat")

    assert found is not None
    assert found.requests == pytest.approx(112)
    assert "by the sizes of llama-3.1-70b in fp8 on 2 x h100-80g" in found.text


def test_requests_are_as_long_as_they_were_where_some_have_ended() -> None:
    lengths = {"requests_done_per_s": 2.0, "prompt_tokens_s": 7000.0, "generation_tokens_s": 1192.0}

    found = prior(seen(pool=lengths, kv_capacity_tokens=81_920.0), TOPOLOGY, "chat")

    assert found is not None
    assert found.requests == pytest.approx(20.0)


def test_a_large_cache_does_not_make_an_engine_run_more_than_it_does() -> None:
    found = prior(seen(kv_capacity_tokens=1e8), TOPOLOGY, "chat")

    assert found is not None
    assert found.requests == 256.0


@pytest.mark.parametrize("model", ["", "our-own-model", "llama-3.1-405b"])
def test_without_a_known_model_that_fits_nothing_is_said(model: str) -> None:
    assert prior(seen(model), TOPOLOGY, "chat") is None


def ask(learnt: Learnt, demand: float, standing: int, guess: Prior | None) -> Need:
    row = {
        "concurrency": demand, "running": demand, "waiting": 0.0, "requests_done_per_s": 1.0, "lb_sessions_per_s": math.nan,
        "replicas": float(standing), "ready": float(standing), "over_slo_ratio": 0.0,
    }  # fmt: skip
    return need(learnt, row, PoolPolicy("chat", replicas_max=9), None, 0.0, 1, standing, guess)


GUESS = Prior(40.0, "about 40 requests fit")


def test_a_guess_lets_a_pool_grow_and_says_that_it_is_one() -> None:
    found = ask(Learnt(), 100.0, 2, GUESS)

    assert found.wanted == math.ceil(100.0 / (40.0 * LOAD_TARGET))
    assert found.why == "100 requests in flight, about 40 requests fit"


def test_a_guess_never_shrinks_a_pool_and_keeps_the_operators_most() -> None:
    assert ask(Learnt(), 10.0, 6, GUESS).wanted == 6
    assert ask(Learnt(), 1e4, 6, GUESS).wanted == 9
    assert ask(Learnt(), 1e4, 12, GUESS).wanted == 12


def test_once_something_is_measured_the_guess_is_nothing_any_more() -> None:
    assert ask(Learnt(capacity=10.0), 100.0, 2, GUESS) == ask(Learnt(capacity=10.0), 100.0, 2, None)
    assert ask(Learnt(), 100.0, 2, None).wanted is None
