"""Tells what the last day took in energy and money."""

from __future__ import annotations

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def cost(client: Client, form: str) -> None:
    """Energy, money and carbon of the last day, by pool; what stood idle, what was lent."""
    data = client.get("/api/v1/cost")
    if form != "table":
        return show.as_data(data, form)
    money = data["currency"] or "MONEY"
    columns: list[show.Column] = [
        ("POOL", show.text_of("name")),
        ("GPU-HOURS", show.text_of("gpu_hours")),
        ("KWH", show.text_of("facility_kwh")),
        ("M TOKENS", lambda r: "-" if r["tokens"] is None else f"{r['tokens'] / 1e6:.3g}"),
        ("KWH/M", show.text_of("kwh_per_mtoken")),
        (money, show.text_of("money")),
        (f"{money}/M", show.text_of("money_per_mtoken")),
        ("KG CO2", show.text_of("carbon_kg")),
        ("SAVED GPU-HOURS", show.text_of("saved_gpu_hours")),
    ]
    print(f"the last {data['hours']} h")
    show.table([*data["pools"], {"name": "all", "saved_gpu_hours": None, **data["total"]}], columns)
    for rack in data["racks"]:
        if rack["why"]:
            print(f"rack {rack['name']} gets no more work: {rack['why']}")
    for sentence in [*data["missing"], *data["advice"]]:
        print(sentence)
    return None
