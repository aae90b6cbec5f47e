"""Tells what gateways say of pools and of classes of requests."""

from __future__ import annotations

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def gateway(client: Client, form: str) -> None:
    """Arrivals, failures, queues and latency as gateways see them, by pool and by class."""
    data = client.get("/api/v1/gateway")
    if form != "table":
        return show.as_data(data, form)
    columns: list[show.Column] = [
        ("NAME", show.text_of("name")),
        ("ARRIVE/S", show.text_of("arrivals_per_s")),
        ("FAIL/S", show.text_of("errors_per_s")),
        ("REFUSED/S", show.text_of("refused_per_s")),
        ("HELD", show.text_of("queue")),
        ("LATENCY", show.span_of("latency_s")),
        (
            "UP",
            lambda r: (
                f"{r['members_up']:g} of {r['members']:g}"
                if r.get("members") is not None and r.get("members_up") is not None
                else "-"
            ),
        ),
        ("LET IN", show.share_of("admitted")),
    ]
    if data["missing"]:
        print(data["missing"])
    rows = [*data["pools"], *data["classes"]]
    if rows:
        show.table(rows, columns)
    return None
