"""Tells where replicas should rather stand."""

from __future__ import annotations

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def placement(client: Client, form: str) -> int:
    """Replicas across switches, pools in one rack, with what to tell the scheduler. Exit code 1 when there is a wish."""
    data = client.get("/api/v1/placement")
    code = int(bool(data["wishes"]))
    if form != "table":
        show.as_data(data, form)
        return code
    print(
        f"{data['leaves']} leaves and {data['racks']} racks are known; {len(data['unplaced'])} GPU nodes without a leaf"
    )
    for wish in data["wishes"]:
        print(f"\n{wish['text']}")
        for word in ("kubernetes", "slurm"):
            if wish[word]:
                print(f"  {word}: " + wish[word].replace("\n", "\n    "))
    if not data["wishes"]:
        print("nothing to wish for: every replica stands under one leaf, every pool in several racks")
    return code
