"""Tells which GPUs a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks
from daemon.cli.trouble import Trouble

GB = 1e9
GIB = 2.0**30


@click.command()
@click.option(
    "--model", "model_name", default="", help="Name of a known model, e.g. llama-3.1-70b; see --list."
)
@click.option(
    "--hf-config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="config.json of any other model, as it lies beside its weights.",
)
@click.option("--quant", default="fp16", show_default=True, help="fp16, bf16, fp8, int8, int4 or nf4.")
@click.option("--kv-dtype", type=click.Choice(["fp16", "fp8"]), default="fp16", show_default=True)
@click.option(
    "--context", type=click.IntRange(1), default=8192, show_default=True, help="Tokens of a request in all."
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=32, show_default=True, help="Requests at once."
)
@click.option(
    "--sku", default="h100-80g", show_default=True, help="GPU, by its name here or as an exporter calls it."
)
@click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs there are; 0 = as many as it takes.")
@click.option("--gpus-per-node", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--utilization",
    type=click.FloatRange(0.1, 1.0),
    default=0.9,
    show_default=True,
    help="Share of GPU memory the engine takes.",
)
@click.option("--list", "as_list", is_flag=True, help="Name the models and GPUs that are known.")
@click.option("--live", is_flag=True, help="What the engines of a running daemon reserve and use instead.")
@talks
@output
def size(
    client: Client,
    model_name: str,
    hf_config: Path | None,
    as_list: bool,
    live: bool,
    form: str,
    **asked: Any,
) -> int:
    """Memory of a model, the splits over GPUs that hold it, and the rate to expect before anything is measured."""
    from daemon.advice import shelf
    from daemon.advice.footprint import ModelError

    if as_list:
        _list(form)
        return 0
    if live:
        _live(client.get("/api/v1/fit"), form)
        return 0
    if bool(model_name) == bool(hf_config):
        raise click.UsageError("give either --model NAME or --hf-config FILE; --list names the models")
    try:
        model = shelf.model_of_file(hf_config) if hf_config else shelf.model(model_name)
        found = advise(model, shelf.accelerator(asked["sku"]), asked)
    except ModelError as error:
        raise Trouble(str(error), 2) from error
    if form == "table":
        tell(found)
    else:
        show.as_data(found, form)
    return 0 if found["best"] else 1


def advise(model: Any, gpu: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer as data: sizes in bytes, times in seconds, rates in tokens a second. Raises ModelError."""
    from daemon.advice import fit, footprint

    quant = footprint.QUANTS.get(asked["quant"].lower())
    if quant is None:
        raise footprint.ModelError(
            f"quantisation {asked['quant']!r} is not known; allowed: {', '.join(footprint.QUANTS)}"
        )
    if model.context_max and asked["context"] > model.context_max:
        raise footprint.ModelError(
            f"--context {asked['context']} is beyond the {model.context_max} tokens of {model.name}; give at most that"
        )
    kv_bytes = {"fp16": 2.0, "fp8": 1.0}[asked["kv_dtype"]]
    ask = fit.Ask(
        context=asked["context"],
        concurrency=asked["concurrency"],
        kv_bytes=kv_bytes,
        utilization=asked["utilization"],
        gpus_per_node=asked["gpus_per_node"],
    )
    ways = fit.splits(model, quant, gpu, ask, asked["gpus"])
    chosen = fit.best(ways, asked["gpus"])
    per_token = footprint.kv_bytes_per_token(model, kv_bytes)
    return {
        "model": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active,
        "quant": asked["quant"].lower(),
        "weight_bytes": footprint.weight_bytes(model, quant),
        "kv_bytes_per_token": per_token,
        "kv_bytes": per_token * ask.context * ask.concurrency,
        "gpu": gpu.name,
        "gpu_memory_bytes": gpu.memory,
        "context": ask.context,
        "concurrency": ask.concurrency,
        "splits": [_row(way) for way in ways],
        "best": _row(chosen) if chosen else None,
        "advice": _advice(model, quant, gpu, ask, ways, chosen, asked["gpus"]),
        "basis": "data sheets and the architecture: a prior, not a measurement",
    }


def _row(way: Any) -> dict[str, Any]:
    return {
        "tp": way.tp,
        "pp": way.pp,
        "dp": way.replicas,
        "gpus": way.gpus * way.replicas,
        "fits": way.fits,
        "weight_bytes_per_gpu": way.weights,
        "activation_bytes_per_gpu": way.activations,
        "overhead_bytes_per_gpu": way.overhead,
        "kv_bytes_per_gpu": max(0.0, way.kv),
        "requests_per_replica": way.sequences,
        "itl_s": way.step_s if way.fits else None,
        "tokens_s": way.tokens_s if way.fits else None,
        "prefill_tokens_s": way.prefill_tokens_s,
        "why": way.why,
    }


def _advice(model: Any, quant: Any, gpu: Any, ask: Any, ways: list[Any], chosen: Any, gpus: int) -> list[str]:
    from daemon.advice import fit, footprint

    if chosen is None:
        said = [
            f"no split of {model.name} on {gpu.name} serves this"
            + (f" with {gpus} GPUs" if gpus else "")
            + "."
        ]
        for name, other in footprint.QUANTS.items():
            if other.bits < quant.bits and fit.best(fit.splits(model, other, gpu, ask, gpus), gpus):
                return [*said, f"With --quant {name} it fits."]
        return [
            *said,
            "Fewer requests at once, a shorter context, --kv-dtype fp8 or GPUs with more memory would help.",
        ]
    said = [
        f"TP {chosen.tp}, PP {chosen.pp}, {chosen.replicas} replica{'s' if chosen.replicas > 1 else ''}: "
        f"{chosen.gpus * chosen.replicas} GPUs, {chosen.why}."
    ]
    if chosen.pp > 1:
        said.append(
            "It needs stages across nodes: keep adjacent stages on adjacent leaves, and expect idle shares between them."
        )
    elif chosen.tp > 1 and not gpu.link_gb_s:
        said.append("This GPU has no NVLink: all-reduces go over PCIe and TP gains little speed.")
    wider = next(
        (w for w in ways if w.fits and w.pp == 1 and w.tp > chosen.tp and w.step_s < 0.8 * chosen.step_s),
        None,
    )
    if wider:
        said.append(
            f"TP {wider.tp} would give {1 / wider.step_s:.0f} instead of {1 / chosen.step_s:.0f} tokens/s a request, "
            f"for {wider.gpus * wider.replicas} GPUs."
        )
    if chosen.replicas > 1:
        said.append("Spread the replicas over racks, and keep each within a node.")
    else:
        said.append("One replica has no spare: a failure stops the service. N+1 takes a second one.")
    return said


def tell(found: Mapping[str, Any]) -> None:
    active = found["active_parameters"]
    mixture = f" ({active / 1e9:.1f}B active)" if active < 0.9 * found["parameters"] else ""
    print(f"{found['model']}: {found['parameters'] / 1e9:.1f}B parameters{mixture}, {found['quant']}")
    print(f"  weights        {found['weight_bytes'] / GB:.1f} GB")
    print(
        f"  KV cache       {found['kv_bytes_per_token'] / 1024:.0f} KiB a token, {found['kv_bytes'] / GB:.1f} GB for "
        f"{found['concurrency']} requests of {found['context']} tokens"
    )
    print(f"  on {found['gpu']}: {found['gpu_memory_bytes'] / GIB:.1f} GiB a GPU\n")
    columns: list[show.Column] = [
        ("TP", show.text_of("tp")),
        ("PP", show.text_of("pp")),
        ("REPLICAS", lambda r: str(r["dp"]) if r["fits"] else "-"),
        ("GPUS", lambda r: str(r["gpus"]) if r["fits"] else "-"),
        ("WEIGHTS/GPU", lambda r: f"{r['weight_bytes_per_gpu'] / GIB:.1f} GiB"),
        ("KV/GPU", lambda r: f"{r['kv_bytes_per_gpu'] / GIB:.1f} GiB"),
        ("ITL", lambda r: show.span(r["itl_s"])),
        ("TOKENS/S", lambda r: f"{r['tokens_s']:.0f}" if r["fits"] else "-"),
        ("", lambda r: "<- " + r["why"] if r == found["best"] else r["why"]),
    ]
    show.table(found["splits"], columns)
    print()
    for sentence in found["advice"]:
        print(sentence)
    print(f"Rates are {found['basis']}.")


def _live(found: Mapping[str, Any], form: str) -> None:
    if form != "table":
        return show.as_data(found, form)

    def gigabytes(key: str) -> Any:
        return lambda r: f"{r[key] / GB:.1f} GB" if r[key] is not None else "-"

    columns: list[show.Column] = [
        ("POOL", show.text_of("name")),
        ("MODEL", lambda r: r["model"] or "-"),
        ("REPLICAS", show.text_of("replicas")),
        ("GPUS EACH", show.text_of("gpus_per_replica")),
        ("RESERVED/GPU", gigabytes("reserved_bytes_per_gpu")),
        ("KV CACHE", gigabytes("kv_capacity_bytes")),
        ("USED AT MOST", gigabytes("kv_peak_bytes")),
        ("SHARE", show.share_of("kv_peak_ratio")),
    ]
    show.table(found["pools"], columns, "no engine has been seen yet")
    print()
    for row in found["pools"]:
        print(f"{row['name']}: {row['text']}")
    print(f"The busiest of the last {found['minutes']} minutes; bytes as of an fp16 cache.")


def _list(form: str) -> None:
    from daemon.advice import shelf

    models = [shelf.model(name) for name in shelf.model_names()]
    gpus = [shelf.accelerator(name) for name in shelf.accelerator_names()]
    rows = [{"kind": "model", "name": m.name, "size": f"{m.parameters / 1e9:.1f}B"} for m in models]
    rows += [{"kind": "gpu", "name": g.name, "size": f"{g.memory / GIB:.0f} GiB"} for g in gpus]
    if form != "table":
        show.as_data(rows, form)
        return
    show.table(
        rows, [("KIND", show.text_of("kind")), ("NAME", show.text_of("name")), ("SIZE", show.text_of("size"))]
    )
