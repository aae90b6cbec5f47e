"""Tells how the cluster stands against the checklists."""

from __future__ import annotations

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@click.option("--all", "is_all", is_flag=True, help="The checklists of the other tiers too.")
@talks
@output
def posture(client: Client, form: str, is_all: bool) -> int:
    """The live checklist of the cluster's tier: pass, fail or unknown, with evidence. Exit code 1 when an item fails."""
    data = client.get("/api/v1/posture")
    own = [row for row in data["posture"] if is_all or not data["tier"] or row["tier"] == data["tier"]]
    code = int(any(row["state"] == "fail" and row["tier"] == data["tier"] for row in data["posture"]))
    if form != "table":
        show.as_data(data, form)
        return code
    print(f"tier: {data['tier'] or 'not known'} ({data['tier_why']})")
    columns: list[show.Column] = [
        ("TIER", show.text_of("tier")),
        ("ITEM", show.text_of("title")),
        ("STATE", lambda r: f"{r['sign']} {r['state'].replace('_', ' ')}"),
        ("NOW", show.text_of("value_text")),
        ("ASKED", show.text_of("target_text")),
        (
            "WHY",
            lambda r: (r["evidence"] or r["missing"]) + (f"; what helps: {r['todo']}" if r["todo"] else ""),
        ),
    ]
    show.table(own, columns)
    for sentence in data["advice"]:
        print(sentence)
    return code
