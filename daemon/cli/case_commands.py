"""Commands about incidents, the rules that open them, the rules that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from daemon.cli import show
from daemon.cli.client import Client
from daemon.cli.options import output, talks


class _Cases(click.Group):
    """`incidents i00007` is `incidents show i00007`, and `incidents` alone lists them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            named = bool(args) and not args[0].startswith("-")
            args = ["show" if named else "list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Cases)
def incidents() -> None:
    """What is wrong and what was: list, show ID, confirm ID, refute ID."""


@incidents.command("list")
@talks
@output
def incidents_list(client: Client, form: str) -> None:
    """Open incidents, worst first, then past ones."""
    data = client.get("/api/v1/incidents")
    if form != "table":
        return show.as_data(data, form)
    columns = [
        ("ID", show.text_of("id")),
        ("STATE", show.text_of("state")),
        ("SEVERITY", show.text_of("severity")),
        ("WHAT", show.text_of("title")),
        ("WHERE", show.text_of("scope")),
        ("OPENED", show.time_of("opened")),
        ("CLOSED", show.time_of("closed")),
        ("CAUSE", show.text_of("cause")),
    ]
    return show.table([*data["open"], *data["closed"]], columns, "no incident yet")


@incidents.command("show")
@click.argument("id")
@talks
@output
def incidents_show(client: Client, form: str, id: str) -> None:
    """One incident's case file and its whole story."""
    data = client.get(f"/api/v1/incidents/{id}")
    if form != "table":
        return show.as_data(data, form)
    print(data["text"])
    _tell_case(data["case"])
    verdict = data["verdict"]
    said = f"{verdict['word']}, by {verdict['by']}" if verdict["word"] else "nobody has said"
    print(f"Was it right: {said} ({', '.join(verdict['rules']) or 'rules not remembered'})")
    for row in data["timeline"]:
        print(f"{show.when(row['at'])}  {row['text']}" + (f" [{row['step']}]" if row["step"] else ""))
    return None


def _tell_case(case: Mapping[str, Any]) -> None:
    print(f"Hypothesis: {case['hypothesis']}")
    for text in case["evidence"]:
        print(f"Evidence: {text}")
    for text in case["at_first"]:
        print(f"When it opened: {text}")
    for text in case["rejected"]:
        print(f"Ruled out: {text}")
    print(f"Response: {case['response']}")
    if case["to_do"]:
        print(f"To do: {case['to_do']}")


@incidents.command("confirm")
@click.argument("id")
@talks
def incidents_confirm(client: Client, id: str) -> None:
    """Say that an incident was right: it counts for its rules."""
    client.post(f"/api/v1/incidents/{id}/confirm")
    print(f"{id} confirmed")


@incidents.command("refute")
@click.argument("id")
@talks
def incidents_refute(client: Client, id: str) -> None:
    """Say that an incident was a false alarm: it counts against its rules."""
    client.post(f"/api/v1/incidents/{id}/refute")
    print(f"{id} refuted")


@click.command()
@click.option("--all", "all_rules", is_flag=True, help="Also rules that have never fired.")
@talks
@output
def rules(client: Client, form: str, all_rules: bool) -> None:
    """How often each rule was right, which are in shadow."""
    data = client.get("/api/v1/rules")
    if form != "table":
        return show.as_data(data, form)
    columns = [
        ("RULE", show.text_of("id")),
        ("STATE", lambda r: r["state"] + (", blind" if r["is_blind"] else "")),
        ("FIRED", show.text_of("fired")),
        ("CONFIRMED", show.text_of("confirmed")),
        ("REFUTED", show.text_of("refuted")),
        ("PRECISION", show.share_of("precision_ratio")),
        ("95% INTERVAL", _interval),
        ("WHAT", show.text_of("text")),
    ]
    shown = [r for r in data["rules"] if all_rules or r["fired"] or r["state"] != "on"]
    show.table(shown, columns)
    rest = len(data["rules"]) - len(shown)
    if rest:
        print(f"and {rest} more that are on and have not fired; --all shows them")
    return None


def _interval(row: Mapping[str, Any]) -> str:
    if row["precision_ratio"] is None:
        return "-"
    return f"{100 * row['precision_low_ratio']:.0f}..{100 * row['precision_high_ratio']:.0f}%"


@click.command()
@talks
@output
def blindspots(client: Client, form: str) -> None:
    """Rules that cannot fire with what is scraped, and the line that would enable each."""
    data = client.get("/api/v1/blindspots")
    if form != "table":
        return show.as_data(data, form)
    columns = [
        ("RULE", show.text_of("rule")),
        ("FINDS", show.text_of("text")),
        ("MISSING", lambda r: "; ".join(r["missing"])),
        ("HOW TO GET IT", show.text_of("remedy")),
    ]
    found = data["blindspots"]
    show.table(found, columns, f"none: all {data['rules_total']} rules can fire")
    if found:
        print(f"{len(found)} of {data['rules_total']} rules are blind; deploy/exporters has the settings")
    return None
