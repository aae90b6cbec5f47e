"""Tells who holds which GPUs and who gives his back first."""

from __future__ import annotations

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def pools(client: Client, form: str) -> None:
    """Pools by priority with their GPUs, what is lent, who gives first when one is short."""
    data = client.get("/api/v1/pools")
    if form != "table":
        return show.as_data(data, form)
    columns: list[show.Column] = [
        ("POOL", show.text_of("name")),
        ("KIND", show.text_of("kind")),
        ("PRIORITY", show.text_of("priority")),
        ("REPLICAS", show.text_of("replicas")),
        ("WANTED", show.text_of("wanted")),
        ("GPUS", show.text_of("gpus")),
        ("ON SPOT", show.text_of("gpus_spot")),
        ("LENDS", lambda r: "yes" if r["is_lendable"] else "no"),
    ]
    show.table(data["pools"], columns, "no pool has been seen yet")
    print(
        f"{data['gpus']} GPUs: {data['gpus_lent']:g} lent, {data['gpus_isolated']:g} isolated, {data['gpus_free']:g} free"
    )
    for take in data["takes"]:
        much = f"{take['gpus']:g} GPUs, " if take["gpus"] else ""
        print(
            f"{take['from']} -> {take['to']}: {much}{take['text']}{', under way' if take['is_now'] else ''}"
        )
    for text in data["spot_advice"]:
        print(text)
    for edge in data["flow"]:
        print(
            f"{edge['from']} -> {edge['to']}: {edge['gpus']:g} GPUs, {edge['kind'].replace('_', ' ')} ({edge['text']})"
        )
    print("gives first:")
    for number, sentence in enumerate(data["gives_first"], 1):
        print(f"  {number}. {sentence}")
    return None
