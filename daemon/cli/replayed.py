"""Plays recorded days again and tells what the daemon would have made of them."""

from __future__ import annotations

import asyncio
import html
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from daemon.cli import Roots, show
from daemon.cli.options import config_file, output
from daemon.cli.trouble import Trouble
from daemon.clock import SteadyClock, wall_clock
from daemon.model import SourceError, Verb
from daemon.policy import Mode, Policy, PoolPolicy, spare_of, tier_of
from daemon.replay import Replay
from daemon.rivals import RIVALS
from daemon.telemetry.recording import CHUNK_S, Run, Tape, cut, from_export, from_store, span_of

OURS = ("ours", "ours_reactive")
STEP_LEAST_S, STEP_MOST_S = 5.0, 300.0


@click.command("replay")
@click.option(
    "--from",
    "origin",
    required=True,
    metavar="URL|DIR",
    help="A Prometheus or VictoriaMetrics, or a folder of exports (*.jsonl).",
)
@click.option(
    "--days",
    type=click.FloatRange(0.01, 92.0),
    default=7.0,
    show_default=True,
    help="How much of it, counted back from --until.",
)
@click.option(
    "--until",
    default=None,
    metavar="TIME",
    help="End, ISO, UTC unless it has a zone (default: now, or the export's end).",
)
@click.option(
    "--policy",
    "chosen",
    multiple=True,
    type=click.Choice((*OURS, *RIVALS)),
    help="Controllers to compare (default: all); may be repeated.",
)
@click.option("--selector", default="", help='Label matchers for every query, e.g. cluster="a".')
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write replicas over time as an HTML page.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line.")
@config_file
@output
@click.pass_obj
def replay(
    roots: Roots,
    /,
    origin: str,
    days: float,
    until: str | None,
    chosen: tuple[str, ...],
    selector: str,
    plot_file: Path | None,
    as_json: bool,
    form: str,
    config: Path | None,
) -> int:
    """Play recorded days through the daemon: what it would have found, done and saved."""
    policy = _policy(config)
    begun = time.perf_counter()
    try:
        with show.progress(f"replay {origin}") as advance:
            played = _play(roots, origin, days, _time(until), selector, policy, advance)
    except SourceError as error:
        raise Trouble(str(error)) from error
    result = _result(played, policy, chosen or (*OURS, *RIVALS), time.perf_counter() - begun)
    if plot_file is not None:
        plot_file.write_text(_page(result), encoding="utf-8")
    for pool in result["pools"].values():
        for row in pool.get("policies", {}).values():
            row.pop("replicas")
        pool.pop("at", None)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=float))
    elif form != "table":
        show.as_data(json.loads(json.dumps(result, default=float)), form)
    else:
        _tell(result)
    return 0


def _policy(config: Path | None) -> Policy:
    """The operator's, where a configuration is given; in mode auto, since nothing can happen to a recording."""
    told = Policy()
    if config is not None:
        from daemon.config import ConfigError, load

        try:
            told = load(config).policy()
        except ConfigError as error:
            raise Trouble(str(error), 78) from error
    verbs = frozenset(Verb) - {Verb.NOTIFY}
    pools = tuple(replace(pool, modes={}) for pool in told.pools)
    return replace(told, mode=Mode.AUTO, modes={}, pools=pools, able=verbs, maintenance=())


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected a time like 2026-06-01T12:00") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _play(
    roots: Roots,
    origin: str,
    days: float,
    until: float | None,
    selector: str,
    policy: Policy,
    advance: Callable[[float, float], None],
) -> Replay:
    """advance : told (seconds played, seconds in all)."""
    from daemon.telemetry import load_catalogue
    from daemon.telemetry.promql import PromqlSource

    tape = Tape(load_catalogue())
    played: Replay | None = None

    async def ask() -> Replay | None:
        nonlocal played
        end = wall_clock() if until is None else until
        source = PromqlSource(origin, tape.catalogue, SteadyClock(), window_s=CHUNK_S, selector=selector)
        begin = end - days * 86400.0
        advance(0.0, end - begin)
        async for at, runs in from_store(source, begin, end):
            played = _feed(roots, tape, played, runs, at, policy)
            advance(at - begin, end - begin)
        return played

    if origin.startswith(("http://", "https://")):
        played = asyncio.run(ask())
    elif Path(origin).is_dir():
        chunks = list(_chunks(from_export(Path(origin)), days, until))
        for number, (at, runs) in enumerate(chunks):
            advance(number, len(chunks))
            played = _feed(roots, tape, played, runs, at, policy)
    else:
        raise SourceError(f"--from {origin}: neither http(s)://... nor a folder of exports")
    if played is None:
        raise SourceError(
            f"{origin}: nothing was recorded in those days that the catalogue knows; see --days, --until"
        )
    return played


def _chunks(runs: list[Run], days: float, until: float | None) -> Iterator[tuple[float, list[Run]]]:
    first, last = span_of(runs)
    last = min(last, until) if until is not None else last
    at = max(first - 1.0, last - days * 86400.0)
    while at < last:
        yield min(at + CHUNK_S, last), cut(runs, at, min(at + CHUNK_S, last))
        at += CHUNK_S


def _feed(
    roots: Roots, tape: Tape, played: Replay | None, runs: list[Run], until: float, policy: Policy
) -> Replay | None:
    scrapes = tape.scrapes(runs, until)
    if played is None:
        if not tape.step_s > 0:
            return None
        # The recording's own step: between its samples there is nothing to decide on.
        step_s = min(STEP_MOST_S, max(STEP_LEAST_S, round(tape.step_s)))
        paced = replace(
            policy,
            tick_s=step_s,
            stale_s=max(policy.stale_s, 3 * step_s),
            stale_veto_s=max(policy.stale_veto_s, 5 * step_s),
            slo_window_s=max(policy.slo_window_s, 4 * step_s),
        )
        played = roots.replay(paced, step_s)
    played.feed(scrapes, until)
    return played


def _result(played: Replay, policy: Policy, names: tuple[str, ...], wall_s: float) -> dict[str, Any]:
    from daemon.counterfactual import judge, recorded, totals

    span_s = played.ticks * played.step_s
    tier = policy.tier or tier_of(len(played.core.topology.nodes), played.gpus)
    pools: dict[str, dict[str, Any]] = {}
    judged = {}
    for name, tape in sorted(played.pools.items()):
        own = policy.pool(name) or PoolPolicy(name)
        learnt = played.core.state.memory.learnt.get(name)
        found = (
            "it was never seen at work"
            if learnt is None
            else recorded(name, tape, learnt, own, spare_of(tier), played.step_s)
        )
        if isinstance(found, str):
            pools[name] = {"not_judged": found}
            continue
        judged[name] = judge(found, names)
        pools[name] = {"at": tape.at, "requests_per_s_of_a_replica": found.profiled, "policies": judged[name]}
    fleet = played.core.state.fleet
    lent_s = fleet.lent_gpu_s + sum(
        lease.gpus * max(0.0, played.next_at - lease.at) for lease in fleet.leases.values()
    )
    sums = totals(judged, policy.cost.gpu_hour)
    for ours in OURS[:1]:
        if ours in sums:
            sums[ours] |= {"gpu_hours_lent": lent_s / 3600.0, "missed_recalls": played.missed_recalls}
    return {
        "from": played.next_at - span_s,
        "until": played.next_at,
        "step_s": played.step_s,
        "ticks": played.ticks,
        "gpus": played.gpus,
        "speed": span_s / max(wall_s, 1e-9),
        "wall_s": wall_s,
        "currency": policy.cost.currency,
        "policies": sums,
        "pools": pools,
        "incidents": played.found(),
    }


def _tell(result: dict[str, Any]) -> None:
    print(
        f"{show.when(result['from'])} to {show.when(result['until'])}: {result['ticks']} ticks of {result['step_s']:g} s, "
        f"{result['gpus']} GPUs, {result['speed']:.0f} times as fast as it happened"
    )
    price = result["currency"] or "COST"
    rows = [{"policy": name} | row for name, row in result["policies"].items()]
    show.table(
        rows,
        [
            ("CONTROLLER", show.text_of("policy")),
            ("IN TIME", lambda r: "?" if r["slo_attainment"] is None else f"{r['slo_attainment']:.3%}"),
            ("GPU-HOURS", lambda r: f"{r['gpu_hours']:.0f}"),
            (price, lambda r: "-" if r["cost"] is None else f"{r['cost']:.0f}"),
            ("FLAPS", lambda r: f"{r['flaps']:.0f}"),
            ("LENT GPU-HOURS", lambda r: f"{r['gpu_hours_lent']:.0f}" if "gpu_hours_lent" in r else "-"),
            ("MISSED RECALLS", lambda r: f"{r['missed_recalls']:.0f}" if "missed_recalls" in r else "-"),
        ],
        "no pool could be judged",
    )
    for name, pool in result["pools"].items():
        if "not_judged" in pool:
            print(f"pool {name} is not judged: {pool['not_judged']}")
    show.table(
        result["incidents"],
        [
            ("OPENED", show.time_of("opened_at")),
            ("KIND", show.text_of("kind")),
            ("ON", lambda r: f"{r['scope']} {r['entity']}"),
            ("CLOSED", show.time_of("closed_at")),
            (
                "WOULD HAVE",
                lambda r: ", ".join(f"{s['verb']} {s['target']}" for s in r["steps"]) or "told people",
            ),
        ],
        "no incident was found",
    )


COLOURS = {"recorded": "#777777", "ours": "#0b6bcb", "hpa": "#c2410c"}
WIDTH, HEIGHT = 960, 220


def _page(result: dict[str, Any]) -> str:
    """One drawing a pool: replicas as recorded and as the controllers would have had them."""
    drawings = [
        f"<h2>{html.escape(name)}</h2>{_drawing(pool)}"
        for name, pool in result["pools"].items()
        if "policies" in pool
    ]
    rows = "".join(
        f"<tr><td>{n}</td><td>{'?' if r['slo_attainment'] is None else format(r['slo_attainment'], '.3%')}</td>"
        f"<td>{r['gpu_hours']:.0f}</td><td>{r['flaps']:.0f}</td></tr>"
        for n, r in result["policies"].items()
    )
    head = "<tr><th>controller</th><th>in time</th><th>GPU-hours</th><th>flaps</th></tr>"
    legend = " ".join(f"<b style='color:{colour}'>{name}</b>" for name, colour in COLOURS.items())
    span = f"{show.when(result['from'])} to {show.when(result['until'])}"
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>tidewarden replay</title>"
        "<style>body{font:15px sans-serif;max-width:62rem;margin:2rem auto}td,th{padding:.2rem .8rem;text-align:right}"
        "svg{width:100%;border:1px solid #ccc}</style>"
        f"<h1>Replay</h1><p>{span}</p><table>{head}{rows}</table><p>Replicas: {legend}</p>{''.join(drawings)}</html>\n"
    )


def _drawing(pool: dict[str, Any]) -> str:
    at = np.array(pool["at"])
    shown = {n: np.nan_to_num(pool["policies"][n]["replicas"]) for n in COLOURS if n in pool["policies"]}
    top = max(float(values.max()) for values in shown.values()) or 1.0
    every = max(1, at.size // WIDTH)
    x = (at[::every] - at[0]) / max(float(at[-1] - at[0]), 1.0) * WIDTH
    lines = [
        f"<polyline fill='none' stroke='{COLOURS[n]}' stroke-width='1.5' points='"
        + " ".join(
            f"{a:.1f},{HEIGHT - b / top * (HEIGHT - 20):.1f}" for a, b in zip(x, values[::every], strict=True)
        )
        + "'/>"
        for n, values in shown.items()
    ]
    label = f"<text x='4' y='14' font-size='12'>{top:.0f} replicas</text>"
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{''.join(lines)}{label}</svg>"
