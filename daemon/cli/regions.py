"""Tells which region gets which share of the requests."""

from __future__ import annotations

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def regions(client: Client, form: str) -> int:
    """Regions with their shares of all requests. Exit code 1 while one is lost or requests fit nowhere."""
    data = client.get("/api/v1/regions")
    code = int(bool(data["short"]) or any(row["state"] == "lost" for row in data["regions"]))
    if form != "table":
        show.as_data(data, form)
        return code
    columns: list[show.Column] = [
        ("REGION", show.text_of("name")),
        ("STATE", show.text_of("state")),
        ("SHARE", lambda r: _percent(r["share"])),
        ("WANTED", lambda r: _percent(r["wanted"])),
        ("HEALTH", lambda r: _percent(r["health_ratio"])),
        ("REQUESTS/S", show.text_of("requests_per_s")),
        ("CARRIES/S", show.text_of("carries_per_s")),
        ("COULD CARRY/S", show.text_of("could_carry_per_s")),
        ("FIRST TOKEN", show.span_of("ttft_s")),
        ("HEARD", lambda r: "-" if r["heard_s"] is None else show.span(r["heard_s"]) + " ago"),
    ]
    own = {
        **data["own"],
        "name": data["own"]["region"],
        "state": "own",
        "share": None,
        "wanted": None,
        "heard_s": 0.0,
    }
    show.table(data["regions"] or [own], columns)
    if not data["regions"]:
        print("no view over regions is kept here: name the members under regions.members")
    if data["short"]:
        print(f"{data['short']:.0%} of all requests fit nowhere")
    if data["note"]:
        print(data["note"])
    return code


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
