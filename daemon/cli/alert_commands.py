"""Commands about alerts: what people were told, what is taken on, what is kept quiet, whether a channel works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from daemon.cli import Roots, show
from daemon.cli.client import Client
from daemon.cli.options import config_file, config_of, duration, output, talks
from daemon.cli.trouble import Trouble


class _Alerts(click.Group):
    """`alerts` alone lists them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Alerts)
def alerts() -> None:
    """What people were told: list, letters, ack, silence, silences, unsilence, test."""


@alerts.command("list")
@click.option("--all", "is_all", is_flag=True, help="Also those that are over.")
@talks
@output
def alerts_list(client: Client, form: str, is_all: bool) -> None:
    """Alerts that fire, who has taken them on, and what is silenced."""
    data = client.get("/api/v1/alerts")
    rows = [a for a in data["alerts"] if is_all or a["status"] == "firing"]
    if form != "table":
        return show.as_data({**data, "alerts": rows}, form)
    columns = [
        ("STATUS", show.text_of("status")),
        ("SEVERITY", show.text_of("severity")),
        ("WHAT", show.text_of("summary")),
        ("INCIDENT", show.text_of("incident")),
        ("SINCE", show.time_of("started")),
        ("TAKEN ON BY", show.text_of("acked_by")),
    ]
    return show.table(rows, columns, "nothing fires")


@alerts.command("letters")
@talks
@output
def alerts_letters(client: Client, form: str) -> None:
    """The newest messages, whether they arrived, and why not."""
    rows = client.get("/api/v1/alerts")["letters"]
    if form != "table":
        return show.as_data(rows, form)
    columns = [
        ("AT", show.time_of("at")),
        ("CHANNEL", show.text_of("channel")),
        ("STATE", show.text_of("state")),
        ("KIND", show.text_of("kind")),
        ("STATUS", show.text_of("status")),
        ("ABOUT", show.text_of("about")),
        ("ALERTS", show.text_of("alerts")),
        ("TRIES", show.text_of("tries")),
        ("ERROR", show.text_of("error")),
    ]
    return show.table(rows, columns, "no message yet")


@alerts.command("ack")
@click.argument("name")
@talks
def alerts_ack(client: Client, name: str) -> None:
    """Take on what fires under an incident, an alert's key or a group: no repeats, no second line."""
    client.post("/api/v1/alerts/ack", {"name": name})
    print(f"{name} is yours")


def _pair(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        label, sign, pattern = value.partition("=")
        if not sign or not label or not pattern:
            raise click.BadParameter(f"{value!r}: write LABEL=PATTERN, like node=n03 or pool='chat*'")
        found[label] = pattern
    return found


@alerts.command("silence")
@click.argument("match", nargs=-1, required=True, callback=_pair)
@click.option("--for", "for_s", type=duration, required=True, help="How long, e.g. 2h.")
@click.option("--comment", default="", help="Why, for the others.")
@talks
def alerts_silence(client: Client, match: dict[str, str], for_s: float, comment: str) -> None:
    """Keep alerts quiet whose labels fit MATCH, like node=n03 kind='gpu_*'. What still fires at the end is told then."""
    done = client.post("/api/v1/silences", {"match": match, "seconds": for_s, "comment": comment})
    print(f"silence {done['argument']} is in force; tidewarden alerts unsilence {done['argument']} ends it")


@alerts.command("silences")
@talks
@output
def alerts_silences(client: Client, form: str) -> None:
    """Silences that are not over."""
    rows = client.get("/api/v1/alerts")["silences"]
    if form != "table":
        return show.as_data(rows, form)
    columns = [
        ("ID", show.text_of("id")),
        ("MATCH", lambda row: " ".join(f"{k}={v}" for k, v in row["match"].items())),
        ("UNTIL", show.time_of("end")),
        ("BY", show.text_of("by")),
        ("COMMENT", show.text_of("comment")),
    ]
    return show.table(rows, columns, "nothing is silenced")


@alerts.command("unsilence")
@click.argument("id")
@talks
def alerts_unsilence(client: Client, id: str) -> None:
    """End a silence now; what it held back and still fires is told."""
    client.post(f"/api/v1/silences/{id}/end")
    print(f"silence {id} is over")


@alerts.command("test")
@click.argument("channel")
@config_file
@output
@click.pass_obj
def alerts_test(roots: Roots, channel: str, config: Path | None, form: str) -> int:
    """Send a message marked as a test through CHANNEL and say what its receiver answered. Needs no running daemon."""
    from daemon.config import EXIT_CONFIG, ConfigError, load

    try:
        settings = load(config_of(config))
    except ConfigError as error:
        raise Trouble(str(error), EXIT_CONFIG) from error
    names = [c.name for c in settings.notify.channels]
    if channel not in names:
        known = ", ".join(names) or "none is configured; add notify.channels"
        raise Trouble(f"no channel {channel!r}; channels: {known}", 2)
    with show.busy(f"asking {channel}"):
        tried = roots.try_channel(settings, channel)
    rows: list[dict[str, Any]] = [
        {"where": t.where, "ok": not t.failure, "failure": t.failure, "is_final": t.is_final} for t in tried
    ]
    if form != "table":
        show.as_data(rows, form)
    else:
        for row in rows:
            print(f"{channel} ({row['where']}): {_said(row)}")
    return 0 if all(row["ok"] for row in rows) else 1


def _said(row: dict[str, Any]) -> str:
    if row["ok"]:
        return "taken; look whether a message marked TEST has arrived"
    again = "trying again is useless" if row["is_final"] else "it would be tried again for an hour"
    return f"NOT taken: {row['failure']}; {again}"
