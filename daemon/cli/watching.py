"""Commands for looking at the whole: top, report, completion."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks
from daemon.cli.trouble import Trouble

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

ROWS = 12
COLOURS = {"critical": "bold red", "warning": "yellow", "ok": "green", "info": "cyan"}
SIGNS = {"critical": "✖", "warning": "▲", "ok": "●", "info": "○"}


@click.command()
@click.option(
    "--every", type=click.FloatRange(0.5, 60.0), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look once and end; so does a pipe.")
@talks
def top(client: Client, every: float, once: bool) -> None:
    """A live view: health, pools, incidents, what waits, what changed. Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color="NO_COLOR" in os.environ)
    if once or not sys.stdout.isatty():
        console.print(_view(client.get("/api/v1/overview")))
        return
    with Live(
        _view(client.get("/api/v1/overview")), console=console, screen=True, auto_refresh=False
    ) as live:
        while True:
            time.sleep(every)
            try:
                live.update(_view(client.get("/api/v1/overview")), refresh=True)
            except Trouble as trouble:
                # A restart is no reason to end: it says so and goes on trying.
                live.update(str(trouble), refresh=True)


def _view(data: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    found, health = data["discovered"], data["health"]
    head = Text.assemble(
        (f"{SIGNS.get(health, '?')} {health}", COLOURS.get(health, "")),
        f"  {data['cluster']}  {data['mode']} mode  {data['targets_up']}/{found['targets']} targets  {found['nodes']} nodes  "
        f"{found['gpus']} GPUs  {found['engines']} engines  {show.when(data['at'])}",
    )
    if data["paused_until"] is not None:
        head.append("  actions paused", "yellow")
    return Group(
        head,
        Text(data["outlook"]["text"]),
        _table(
            "Pools",
            ["POOL", "READY", "IN FLIGHT", "WAITING", "LOAD", "KV", "OVER OBJECTIVE"],
            [
                [
                    r["name"],
                    f"{show.text_of('ready')(r)}/{show.text_of('replicas')(r)}",
                    show.text_of("concurrency_requests")(r),
                    show.text_of("waiting_requests")(r),
                    show.share_of("load_ratio")(r),
                    show.share_of("kv_used_mean_ratio")(r),
                    show.share_of("over_slo_ratio")(r),
                ]
                for r in data["pools"]
            ],
        ),
        _table(
            "Open incidents",
            ["", "ID", "WHAT", "WHERE", "OPENED"],
            [
                [
                    Text(f"{SIGNS[r['severity']]} {r['severity']}", COLOURS[r["severity"]]),
                    r["id"],
                    r["title"],
                    r["scope"],
                    show.when(r["opened"]),
                ]
                for r in data["incidents"]
            ],
        ),
        _table(
            "Waits for approval",
            ["ID", "WHAT", "WHY"],
            [[r["id"], r["text"], r["why"]] for r in data["approvals"]],
        ),
        _table(
            "Changed lately", ["WHEN", "WHAT"], [[show.when(r["at"]), r["sentence"]] for r in data["changes"]]
        ),
    )


def _table(title: str, heads: list[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", expand=False)
    for head in heads:
        made.add_column(head)
    for row in rows[:ROWS]:
        # What comes from the cluster is text, never markup.
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if not rows:
        made.add_row(*["none", *[""] * (len(heads) - 1)])
    elif len(rows) > ROWS:
        made.caption = f"and {len(rows) - ROWS} more"
    return made


@click.command()
@click.option("--last", default="7d", show_default=True, help="How far back, e.g. 24h, 30d.")
@click.option("--html", "file", type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@click.option("--lang", type=click.Choice(("en", "zh")), default="en", help="Language of the file.")
@talks
@output
def report(client: Client, form: str, last: str, file: Path | None, lang: str) -> None:
    """What happened, what was done, what was lent, how the forecasts did: an HTML file to pass on, or numbers."""
    from urllib.parse import quote

    if file is None:
        data = client.get(f"/api/v1/report?last={quote(last)}")
        return show.as_data(data, form) if form != "table" else _summary(data)
    page = client.text(f"/report?last={quote(last)}&lang={lang}")
    style = client.text("/static/style.css")
    try:
        file.write_text(alone(page, style), encoding="utf-8")
    except OSError as error:
        raise Trouble(f"{file}: {error.strerror}; name a file in a folder you may write to") from error
    print(f"{file} written")


def _summary(data: dict[str, Any]) -> None:
    """The report in a terminal: what it counts, the most frequent kinds, who offended."""
    done = sum(r["count"] for r in data["done"] if r["result"] == "done")
    print(
        f"{data['cluster']}, {show.when(data['since'])} to {show.when(data['until'])}: {data['opened']} incidents opened, "
        f"{data['open_now']} open now, {done} actions done, {data['gpu_hours_lent']:.1f} GPU-hours lent\n"
    )
    kinds: list[show.Column] = [
        ("KIND", show.text_of("kind")),
        ("SEVERITY", show.text_of("severity")),
        ("NUMBER", show.text_of("count")),
        ("STOOD", show.span_of("open_s")),
    ]
    show.table(data["kinds"], kinds, "no incident")
    print()
    offenders: list[show.Column] = [
        ("WHERE", show.text_of("name")),
        ("INCIDENTS", show.text_of("count")),
        ("KINDS", show.text_of("kinds")),
    ]
    show.table(data["offenders"], offenders, "no offender")
    print()
    pools: list[show.Column] = [
        ("POOL", show.text_of("name")),
        ("MEAN REQUESTS", show.text_of("mean_requests")),
        ("PEAK HOUR", show.text_of("peak_requests")),
        ("MET OBJECTIVE", show.share_of("slo_attained_ratio")),
        ("ASKED FOR", show.share_of("slo_target_ratio")),
        ("TIME MEASURED", show.share_of("slo_measured_ratio")),
    ]
    show.table(data["pools"], pools, "no pool")


def alone(page: str, style: str) -> str:
    """The page as a file that needs no server: its style inside, no script, no link that leads nowhere."""
    page = re.sub(r'<link rel="stylesheet"[^>]*>', lambda _: f"<style>{style}</style>", page)
    page = re.sub(r"<script\b[^>]*></script>|<link rel=\"icon\"[^>]*>", "", page)
    page = re.sub(r"<nav\b.*?</nav>|<footer\b.*?</footer>", "", page, flags=re.S)
    return re.sub(r' href="/[^"]*"', "", page)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script: source it, or put it where the shell looks."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    root = ctx.find_root().command
    print(found(root, {}, "tidewarden", "_TIDEWARDEN_COMPLETE").source())
