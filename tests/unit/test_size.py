"""What a model needs, checked against the vendors' own counts, engines that were seen, and the white paper's tables."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from web_town import Town, lived, pages

from daemon.advice import shelf
from daemon.advice.fit import Ask, best, splits
from daemon.advice.footprint import GIB, QUANTS, ModelError, kv_bytes_per_token, read, weight_bytes
from daemon.cli import Roots, run
from daemon.cli.commands import tidewarden
from daemon.policy import Mode
from daemon.web.fitting import sentence

GB = 1e9


def size(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    nothing: Any = None
    code = run(Roots(*[nothing] * 8), ["size", *arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("name", shelf.model_names())
def test_an_architecture_adds_up_to_what_its_vendor_counts(name: str) -> None:
    model = shelf.model(name)

    assert model.parameters == pytest.approx(shelf.counted(name), rel=0.005)


@pytest.mark.parametrize(
    ("name", "active"),
    [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22.2), ("deepseek-v3", 37.5)],
)
def test_of_a_mixture_only_some_experts_are_active(name: str, active: float) -> None:
    assert shelf.model(name).active / 1e9 == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kib"),
    [("llama-2-7b", 512), ("llama-3.1-8b", 128), ("llama-3.1-70b", 320), ("deepseek-v3", 68.625)],
)
def test_cache_of_a_token_follows_from_heads_or_latent(name: str, kib: float) -> None:
    assert kv_bytes_per_token(shelf.model(name), 2.0) / 1024 == kib


@pytest.mark.parametrize(
    ("name", "quant", "paper_gb", "difference_gb"),
    [
        ("llama-2-7b", "fp16", 14, -0.5),  # 6.74 billion, not 7
        ("llama-2-7b", "int8", 8, -1.0),
        ("llama-3.1-70b", "fp16", 140, 1.1),
        ("llama-3.1-70b", "int8", 70, 2.7),  # embeddings and head stay in half precision
        ("llama-3.1-70b", "int4", 35, 4.8),  # and 4 bits come with scales: 4.16
        ("llama-3.1-405b", "int4", 200, 17.1),
        ("deepseek-v3", "int4", 150, 201.5),  # all 671 billion must be held, not the 37 active ones
    ],
)
def test_differences_from_the_white_paper_are_the_ones_the_page_explains(
    name: str, quant: str, paper_gb: float, difference_gb: float
) -> None:
    found = weight_bytes(shelf.model(name), QUANTS[quant]) / GB

    assert found - paper_gb == pytest.approx(difference_gb, abs=0.1)
    page = (Path(__file__).parents[2] / "docs/en/sizing.md").read_text("utf-8")
    assert f"{found:.1f} GB" in page


def test_a_70b_in_4_bits_loads_on_one_h100_and_two_serve_32_long_requests() -> None:
    model, gpu = shelf.model("llama-3.1-70b"), shelf.accelerator("h100-80g")

    found = splits(model, QUANTS["int4"], gpu, Ask(context=8192, concurrency=32))
    chosen = best(found)

    assert [s.fits for s in found if s.tp == 1] == [True]
    assert chosen is not None
    assert (chosen.tp, chosen.pp, chosen.replicas) == (2, 1, 1)


def test_what_no_node_holds_is_split_into_stages_across_nodes() -> None:
    model, gpu = shelf.model("llama-3.1-405b"), shelf.accelerator("h100-80g")

    chosen = best(splits(model, QUANTS["fp16"], gpu, Ask(context=8192, concurrency=8)))

    assert chosen is not None
    assert (chosen.tp, chosen.pp) == (8, 2)


def test_latent_cache_is_kept_by_every_gpu_of_a_group() -> None:
    gpu, ask = shelf.accelerator("h200-141g"), Ask(context=8192, concurrency=64)

    found = splits(shelf.model("deepseek-v3"), QUANTS["fp8"], gpu, ask)

    eight = next(s for s in found if s.tp == 8)
    assert eight.sequences == int(eight.kv // (68.625 * 1024 * 8192))


def test_more_requests_at_once_never_need_fewer_gpus() -> None:
    model, gpu = shelf.model("qwen2.5-32b"), shelf.accelerator("a100-80g")

    needed = []
    for concurrency in (1, 4, 16, 64, 256, 1024):
        chosen = best(splits(model, QUANTS["bf16"], gpu, Ask(context=4096, concurrency=concurrency)))
        assert chosen is not None
        needed.append(chosen.gpus * chosen.replicas)

    assert needed == sorted(needed)


def test_expected_step_is_near_what_a_data_sheet_allows() -> None:
    model, gpu = shelf.model("llama-3.1-8b"), shelf.accelerator("h100-80g")

    (one,) = [s for s in splits(model, QUANTS["bf16"], gpu, Ask(context=1024, concurrency=1)) if s.tp == 1]

    # 15 GB of weights at 3.35 TB/s are 4.5 ms; no engine is faster, and engines that were measured need 6 to 8
    assert 0.0045 < one.step_s < 0.009


def test_a_gpu_is_known_by_what_its_exporter_calls_it() -> None:
    assert shelf.accelerator("NVIDIA H100 80GB HBM3").name == "h100-80g"
    assert shelf.accelerator("NVIDIA A100-SXM4-80GB").name == "a100-80g"
    assert shelf.accelerator("NVIDIA A10").name == "a10"
    with pytest.raises(ModelError, match="did you mean h100-80g"):
        shelf.accelerator("h100-80gb")


def test_unknown_model_is_named_with_the_nearest_and_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = size(capsys, "--model", "lama-3.1-70b")

    assert code == 2
    assert "did you mean llama-3.1-70b?" in err
    assert "--hf-config" in err


def test_config_json_of_any_model_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = {
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5504,
        "vocab_size": 32000, "tie_word_embeddings": True,
    }  # fmt: skip
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(tree), "utf-8")

    code, out, _ = size(capsys, "--hf-config", str(path), "--sku", "l4", "-o", "json")

    found = json.loads(out)
    assert code == 0
    assert found["model"] == "mine"
    assert found["parameters"] == 24 * (4 * 2048**2 + 3 * 2048 * 5504) + 32000 * 2048 + 49 * 2048
    assert found["best"]["tp"] == 1


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"hidden_size": 8}, "num_hidden_layers is missing"),
        ({"hidden_size": "x"}, "hidden_size is 'x'"),
        ({"hidden_size": -8}, "hidden_size is -8"),
    ],
)
def test_what_is_wrong_in_a_config_json_is_said(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read("mine", tree)


def test_impossible_wish_says_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = size(capsys, "--model", "llama-3.1-70b", "--sku", "h100-80g", "--gpus", "1")

    assert code == 1
    assert "does not load: 62.3 GiB a GPU too little" in out
    assert (
        "With --quant int4 it fits"
        in size(capsys, "--model", "llama-3.1-70b", "--gpus", "1", "--concurrency", "4")[1]
    )


def test_context_beyond_the_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = size(capsys, "--model", "llama-2-7b", "--context", "8192")

    assert code == 2
    assert "beyond the 4096 tokens of llama-2-7b" in err


def test_memory_of_a_gpu_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = size(capsys, "--model", "qwen2.5-7b", "--sku", "l4", "--concurrency", "4", "-o", "json")

    row = json.loads(out)["splits"][0]
    parts = [row[f"{part}_bytes_per_gpu"] for part in ("weight", "activation", "overhead", "kv")]
    assert sum(parts) == pytest.approx(0.9 * 23034 * 2**20)
    assert row["activation_bytes_per_gpu"] < 2 * GIB


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.5, Mode.OBSERVE)
    yield found
    found.daemon.record.close()


async def test_live_engines_are_told_what_they_reserve_and_use(town: Town) -> None:
    async with pages(town) as client:
        url = str(client._base_url).rstrip("/")
        told = await asyncio.to_thread(CliRunner().invoke, tidewarden, ["size", "--live", "--url", url])
        async with client.get("/api/v1/fit") as answer:
            rows = {r["name"]: r for r in (await answer.json())["pools"]}

    chat, spec = rows["chat"], next(p for p in town.world.spec.pools if p.name == "chat")
    assert chat["kv_capacity_tokens"] == spec.kv_blocks * spec.block_tokens
    assert chat["gpus_per_replica"] == spec.tp
    assert 0.0 < chat["kv_peak_ratio"] <= 1.0
    used = max(e for e in town.world.serving.kv_used.tolist())
    assert chat["kv_peak_ratio"] >= 0.5 * used
    assert chat["kv_peak_bytes"] == pytest.approx(chat["kv_capacity_bytes"] * chat["kv_peak_ratio"])
    assert told.exit_code == 0, told.output
    assert chat["text"] in told.output
    # A name nobody knows has tokens and no bytes: nothing is made up.
    assert rows["code"]["kv_capacity_tokens"] > 0
    assert rows["code"]["kv_capacity_bytes"] is None


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.1, "serve with fewer replicas"),
        (0.95, "about to run out"),
        (0.6, "well sized"),
        (math.nan, "No engine"),
    ],
)
def test_advice_follows_the_busiest_minute(share: float, said: str) -> None:
    row = {
        "kv_peak_ratio": share,
        "kv_capacity_tokens": 1000.0,
        "kv_peak_bytes": 4e9,
        "kv_capacity_bytes": 62e9,
    }

    assert said in sentence(row)
