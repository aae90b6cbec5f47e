"""Tells what storage shows, how long replicas took to start, and what to read in before a rise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


@click.command()
@talks
@output
def storage(client: Client, form: str) -> int:
    """Stores, starts by source, weights to read in before a forecast rise. Exit code 1 when something should be read in."""
    data = client.get("/api/v1/storage")
    code = int(bool(data["warm"]))
    if form != "table":
        show.as_data(data, form)
        return code
    columns: list[show.Column] = [
        ("STORE", lambda r: r["name"] or f"local {r['source']}"),
        ("KIND", show.text_of("source")),
        ("NODES", show.text_of("nodes")),
        ("READ", _rate("read_bytes_s")),
        ("WRITE", _rate("write_bytes_s")),
        ("A READ", lambda r: _millis(r["read_time_s"])),
        ("SLOWEST", lambda r: f"{r['slowest']} {_millis(r['slowest_s'])}" if r["slowest"] else "-"),
        ("TIMEOUTS/S", show.text_of("errors_per_s")),
        ("RESENT", show.share_of("resent_ratio")),
        ("FREE", show.share_of("free_ratio")),
        ("HITS", show.share_of("hit_ratio")),
    ]
    if data["stores"]:
        show.table(data["stores"], columns)
    rows = [{**pool, **source} for pool in data["starts"] for source in pool["sources"]]
    starts: list[show.Column] = [
        ("POOL", show.text_of("pool")),
        ("STARTS FROM", lambda r: r["source"] or "not known"),
        ("SEEN", show.text_of("count")),
        ("MEDIAN", show.span_of("p50_s")),
        ("95 %", show.span_of("p95_s")),
        ("WEIGHTS", show.span_of("weights_s")),
        ("PLANNED WITH", show.span_of("planned_s")),
        ("CONFIGURED", show.span_of("configured_s")),
    ]
    if rows:
        print()
        show.table(rows, starts)
    for text in data["missing"]:
        print(text)
    for wish in data["warm"]:
        print(f"\n{wish['text']}")
    if rows and not data["warm"]:
        print("\nnothing to read in: no rise is forecast onto nodes that would read from far away")
    return code


def _millis(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}ms"


def _rate(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(row: Mapping[str, Any]) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value / 1e6:.3g} MB/s"

    return cell
