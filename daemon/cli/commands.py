"""The commands as the operator types them."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import Any

import click

from daemon.cli import Roots, show
from daemon.cli.alert_commands import alerts
from daemon.cli.case_commands import blindspots, incidents, rules
from daemon.cli.client import Client
from daemon.cli.config_commands import config
from daemon.cli.fronting import gateway
from daemon.cli.options import config_file, config_of, duration, output, talks
from daemon.cli.placing import placement
from daemon.cli.pooling import pools
from daemon.cli.regions import regions
from daemon.cli.replayed import replay
from daemon.cli.size import size
from daemon.cli.standing import posture
from daemon.cli.storing import storage
from daemon.cli.thrift import cost
from daemon.cli.watching import completion, report, top
from daemon.cli.working import jobs

DEMO_PORT = 9095
HORIZON_MIN_S, HORIZON_MAX_S = 3600.0, 28 * 86400.0
"""Of a forecast: by the hour, and no further than the weeks it is learnt from."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tidewarden", prog_name="tidewarden")
def tidewarden() -> None:
    """Watches an LLM-inference GPU cluster, warns days ahead, acts within bounds."""


@tidewarden.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    print(f"tidewarden {metadata.version('tidewarden')}")


tidewarden.add_command(config)
tidewarden.add_command(replay)


# -- running -------------------------------------------------------------------------------------------


@tidewarden.command("run")
@config_file
@click.pass_obj
def run_service(roots: Roots, config: Path | None) -> int:
    """Run the daemon until SIGTERM; SIGHUP reads the configuration again."""
    from daemon.cli.logs import to_stderr

    to_stderr()
    with show.progress("reading the history") as advance:
        return roots.serve(config_of(config), advance)


@tidewarden.command()
@click.option("--for", "for_s", type=duration, default=None, help="End by itself after this long, e.g. 120s.")
@click.option("--json", "as_json", is_flag=True, help="Print the score as one JSON line at the end.")
@click.option(
    "--script",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Faults to inject: lines like `20s dead-gpu`.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    help=f"Of the pages (default: the first free from {DEMO_PORT}).",
)
@click.option("--seed", type=int, default=7, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(1.0, 600.0),
    default=60.0,
    show_default=True,
    help="How many times as fast as real time.",
)
@click.option("--nodes", type=click.IntRange(1, 512), default=16, show_default=True, help="Nodes of 8 GPUs.")
@click.pass_obj
def demo(roots: Roots, /, port: int | None, **options: Any) -> int:
    """Show a simulated cluster under care; needs no GPU, no root, no network."""
    from daemon.cli.logs import to_stderr

    # The demo tells its own story on stdout; the log would only repeat it.
    to_stderr(logging.WARNING)
    return roots.demo(port=free_port(DEMO_PORT) if port is None else port, **options)


def free_port(base: int) -> int:
    """The first free TCP port of 127.0.0.1 from `base`, 0 (any) when the next fifty are taken."""
    for port in range(base, base + 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    return 0


@tidewarden.command()
@click.option("--scenario", default=None, help="Which day; see --list.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--gpus", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option(
    "--hours",
    type=click.FloatRange(0.1, 24 * 60.0),
    default=None,
    help="How long (default: as the scenario says).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line.")
@click.option("--list", "as_list", is_flag=True, help="Name the scenarios.")
@output
@click.pass_obj
def drill(
    roots: Roots, /, scenario: str | None, as_json: bool, as_list: bool, form: str, **options: Any
) -> int:
    """Play a day of a simulated cluster in seconds and score the daemon by the truth."""
    from daemon.cli import drilled
    from daemon.cli.logs import to_stderr

    to_stderr(logging.ERROR)

    if as_list:
        names = drilled.scenario_names(roots)
        print("\n".join(names)) if form == "table" else show.as_data(names, form)
        return 0
    if not scenario:
        raise click.UsageError("give --scenario NAME; --list names them")
    try:
        with show.busy(f"drill {scenario}"):
            result = roots.drill(scenario=scenario, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    elif form != "table":
        show.as_data(result, form)
    else:
        drilled.tell(result)
    return 0


# -- setting up --------------------------------------------------------------------------------------


@tidewarden.command()
@config_file
@click.option("--json", "as_json", is_flag=True, help="As -o json.")
@output
def doctor(config: Path | None, form: str, as_json: bool) -> int:
    """Check this host and the configuration; a fix with every finding, exit 1 when something must be fixed."""
    from daemon.cli.doctor import examine

    with show.busy("looking around"):
        rows = examine(config_of(config) if config is not None or _has_config() else None)
    if as_json or form != "table":
        show.as_data([row._asdict() for row in rows], "json" if as_json else form)
    else:
        for row in rows:
            print(f"{row.state:<5} {row.what}: {row.found}" + (f"\n      fix: {row.fix}" if row.fix else ""))
    return 1 if any(row.state == "FAIL" for row in rows) else 0


def _has_config() -> bool:
    from daemon.cli.options import CONFIG

    return CONFIG.is_file()


# -- asking the daemon ---------------------------------------------------------------------------------


@tidewarden.command()
@talks
@output
def status(client: Client, form: str) -> None:
    """How the cluster and the daemon are."""
    data = client.get("/api/v1/overview")
    if form != "table":
        return show.as_data(data, form)
    found = data["discovered"]
    print(f"{data['cluster']}: {data['health']}, {data['mode']} mode, last decision {show.when(data['at'])}")
    print(
        f"{data['targets_up']} of {found['targets']} targets up, {found['nodes']} nodes, {found['gpus']} GPUs, "
        f"{found['engines']} engines, {len(data['incidents'])} open incidents, {len(data['approvals'])} approvals waiting"
    )
    for reason in data["health_reasons"]:
        print(f"- {reason}")
    print(data["outlook"]["text"])


@tidewarden.command()
@talks
@output
def targets(client: Client, form: str) -> None:
    """What is scraped, with the last error."""
    data = client.get("/api/v1/targets")
    if form != "table":
        return show.as_data(data, form)
    columns = [
        ("STATE", show.text_of("state")),
        ("TARGET", show.text_of("name")),
        ("EXPORTER", show.text_of("exporter")),
        ("NODE", show.text_of("node")),
        ("ANSWERED", lambda r: show.span(r["silent_s"]) + " ago" if r["silent_s"] is not None else "-"),
        ("TOOK", show.span_of("took_s")),
        ("SERIES", show.text_of("series")),
        ("ERROR", show.text_of("error")),
    ]
    show.table(data["targets"], columns, "no target has been seen yet")


@tidewarden.command()
@talks
@output
def nodes(client: Client, form: str) -> None:
    """Every node with its place, GPUs, engines, trouble."""
    data = client.get("/api/v1/nodes")
    if form != "table":
        return show.as_data(data, form)
    columns = [
        ("STATE", show.text_of("state")),
        ("NODE", show.text_of("name")),
        ("RACK", show.text_of("rack")),
        ("LEAF", show.text_of("leaf")),
        ("GPUS", lambda r: str(len(r["gpus"]))),
        ("ENGINES", lambda r: ", ".join(f"{e['name']} ({e['pool']})" for e in r["engines"]) or "-"),
        ("INCIDENTS", lambda r: " ".join(r["incidents"]) or "-"),
    ]
    show.table(data["nodes"], columns, "no node has been seen yet")


tidewarden.add_command(top)
tidewarden.add_command(report)
tidewarden.add_command(completion)
tidewarden.add_command(alerts)
tidewarden.add_command(incidents)
tidewarden.add_command(rules)
tidewarden.add_command(blindspots)
tidewarden.add_command(size)
tidewarden.add_command(posture)
tidewarden.add_command(cost)
tidewarden.add_command(regions)
tidewarden.add_command(placement)
tidewarden.add_command(storage)
tidewarden.add_command(jobs)
tidewarden.add_command(gateway)
tidewarden.add_command(pools)


@tidewarden.group()
def actions() -> None:
    """What was done, what was refused, what waits."""


@actions.command("list")
@click.option("--state", default="", help="Only this state, e.g. awaiting.")
@talks
@output
def actions_list(client: Client, form: str, state: str) -> None:
    """Actions, newest first."""
    data = client.get("/api/v1/actions" + (f"?state={state}" if state else ""))
    if form != "table":
        return show.as_data(data, form)
    columns = [
        ("ID", show.text_of("id")),
        ("STATE", show.text_of("state")),
        ("WHAT", show.text_of("text")),
        ("WHY", show.text_of("why")),
        ("INCIDENT", show.text_of("incident")),
        ("VERDICT OR RESULT", lambda r: r["detail"] or r["verdict_text"] or "-"),
        ("WHEN", lambda r: show.when(r["ended"] if r["ended"] is not None else r["at"])),
    ]
    show.table(data["actions"], columns, "no action yet")


@actions.command("explain")
@click.argument("id")
@talks
@output
def actions_explain(client: Client, form: str, id: str) -> None:
    """Why an action was proposed, allowed or refused, and what became of it."""
    data = client.get(f"/api/v1/actions/{id}")
    if form != "table":
        return show.as_data(data, form)
    for sentence in data["explanation"]:
        print(sentence)
    for row in data["timeline"]:
        print(f"{show.when(row['at'])}  {row['text']}")


@actions.command("approve")
@click.argument("id")
@talks
def actions_approve(client: Client, id: str) -> None:
    """Let an action that waits go ahead."""
    said = client.post(f"/api/v1/actions/{id}/approve")
    print(f"{id} approved; it begins at the next decision, within {show.span(said['within_s'])}")


@actions.command("reject")
@click.argument("id")
@talks
def actions_reject(client: Client, id: str) -> None:
    """Refuse an action that waits."""
    client.post(f"/api/v1/actions/{id}/reject")
    print(f"{id} rejected")


@actions.command("undo")
@click.argument("id")
@talks
def actions_undo(client: Client, id: str) -> None:
    """Take back what an action did; it is not proposed again for an hour."""
    said = client.post(f"/api/v1/actions/{id}/undo")
    print(f"{id} is taken back ({said['argument']}), counts within {said['within_s']:.0f} s")


@tidewarden.command()
@click.argument("duration", type=duration, required=False)
@talks
def pause(client: Client, duration: float | None) -> None:
    """Stop all actions, for a DURATION like 30m or until resume."""
    client.post("/api/v1/pause", {} if duration is None else {"seconds": duration})
    print("all actions paused " + (f"for {show.span(duration)}" if duration else "until `tidewarden resume`"))


@tidewarden.command()
@talks
def resume(client: Client) -> None:
    """Let actions happen again."""
    client.post("/api/v1/resume")
    print("actions resumed")


@tidewarden.command()
@talks
def reload(client: Client) -> None:
    """Have the daemon read its configuration again."""
    print(f"{client.post('/-/reload')['reloaded']} reloaded")


@tidewarden.command()
@click.argument("pool", required=False)
@click.option(
    "--csv",
    "csv",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Forecast this two-column CSV (time, value) instead.",
)
@click.option("--horizon", type=duration, default="168h", show_default=True, help="How far ahead, for --csv.")
@click.option("--backtest", is_flag=True, help="Score the forecaster on the past of the CSV instead.")
@talks
@output
@click.pass_obj
def forecast(
    roots: Roots,
    client: Client,
    form: str,
    pool: str | None,
    csv: Path | None,
    horizon: float,
    backtest: bool,
) -> None:
    """Demand and capacity ahead, of the running daemon or of a CSV file."""
    from urllib.parse import quote

    from daemon.cli import ahead

    if backtest and csv is None:
        raise click.UsageError("--backtest needs --csv FILE")
    if pool is not None and csv is not None:
        raise click.UsageError(f"either the pool {pool} of the running daemon or --csv {csv}, not both")
    if not HORIZON_MIN_S <= horizon <= HORIZON_MAX_S:
        raise click.UsageError(
            f"--horizon {horizon / 3600.0:g}h is not within 1h and {HORIZON_MAX_S / 3600.0:g}h: past four weeks "
            "nothing measured says how wide a band must be"
        )
    if csv is not None and backtest:
        return ahead.backtest_csv(roots, csv, form)
    if csv is not None:
        return ahead.of_csv(roots, csv, horizon, form)
    data = client.get("/api/v1/forecast" + (f"?pool={quote(pool)}" if pool else ""))
    if form != "table":
        return show.as_data(data, form)
    return ahead.tell(data)
