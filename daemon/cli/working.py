"""Tells which offline jobs run, what stopping each would lose, which lease goes first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def jobs(client: Client, form: str) -> None:
    """Offline jobs with what would be lost if they were stopped now, and the order in which leases are recalled."""
    data = client.get("/api/v1/jobs")
    if form != "table":
        return show.as_data(data, form)
    columns: list[show.Column] = [
        ("JOB", show.text_of("name")),
        ("TITLE", show.text_of("title")),
        ("USER", show.text_of("user")),
        ("NODES", lambda r: ",".join(r["nodes"]) or "-"),
        ("GPUS", show.text_of("gpus")),
        ("RUNS FOR", show.span_of("running_s")),
        ("SAVED BEFORE", lambda r: show.span(r["unsaved_s"]) if r["saved_by"] else "not known"),
        ("LOST IF STOPPED", _loss),
        ("ENDS", show.time_of("ends")),
    ]
    if data["missing"]:
        print(data["missing"])
    if data["jobs"] or not data["missing"]:
        show.table(data["jobs"], columns, "no offline job runs")
    if data["recall_order"]:
        print("recalled first:")
    for number, row in enumerate(data["recall_order"], 1):
        print(
            f"  {number}. {row['node']} ({row['gpus']:g} GPUs, lent until {show.when(row['until'])}): {row['text']}"
        )
    return None


def _loss(row: Mapping[str, Any]) -> str:
    if row["loss_gpu_hours"] is None:
        return "not known"
    return f"{'up to ' if row['is_bound'] else ''}{row['loss_gpu_hours']:.1f} GPU-hours"
