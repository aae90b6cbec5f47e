"""One round over everything that is to be read: who answers, who is joined to whom, and what nobody exports."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from daemon import service
from daemon.clock import wall_clock
from daemon.frame import FrameBuilder
from daemon.model import Layout, Scrape, SourceError
from daemon.settings import Settings
from daemon.telemetry import RunningSource
from daemon.telemetry.catalogue import Catalogue
from daemon.telemetry.scrape import HttpScraper
from daemon.topology import Topology, picture

ROUND_S = 15.0
"""How long one round over all targets may take: the daemon's own interval."""
NAMED_MAX = 8


class Row(NamedTuple):
    """state : OK, WARN or FAIL. fix : what to do, "" when nothing is to be done."""

    state: str
    what: str
    found: str
    fix: str = ""


async def first_round(settings: Settings) -> list[Row]:
    """One round over everything that is to be read, and what that leaves unseen."""
    try:
        catalogue, sources, history = service.sources_of(_hurried(settings), wall_clock)
    except SourceError as error:
        return [Row("FAIL", "sources", str(error), "see the message")]
    rows: list[Row] = []
    seen: dict[str, set[str]] = {}
    builder, pages = FrameBuilder(settings.policy()), []
    for name, source in sources.items():
        scrapes, trouble = await _round(source)
        rows += _judged(name, source, scrapes, trouble)
        for scrape in scrapes:
            builder.absorb(scrape)
            pages += [scrape.layout] if scrape.layout is not None else []
        await source.close()
    for layout in pages:
        for series in layout.series:
            seen.setdefault(series.entity.kind, set()).add(series.signal)
    rows += placed(picture(builder.build(wall_clock())), pages)
    if history is not None and settings.sources.prometheus is not None:
        rows.append(await asyncio.to_thread(_history, settings.sources.prometheus.url))
    return [*rows, *_coverage(catalogue, seen)]


def _hurried(settings: Settings) -> Settings:
    """The same settings with short intervals: one round is wanted now."""
    if settings.sources.http is None:
        return settings
    http = settings.sources.http.model_copy(update={"interval": 2.0})
    return settings.model_copy(update={"sources": settings.sources.model_copy(update={"http": http})})


async def _round(source: RunningSource) -> tuple[list[Scrape], str]:
    """Scrapes until every target has been tried once, with the error of the source itself."""
    scrapes: list[Scrape] = []
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout(ROUND_S):
            while True:
                scrapes += await source.read()
                tried = {s.target for s in scrapes}
                wanted = len(source.targets) if isinstance(source, HttpScraper) else 0
                if (wanted and len(tried) >= wanted) or (not wanted and loop.time() - begun > 1.5):
                    return scrapes, ""
                await asyncio.sleep(0.1)
    except SourceError as error:
        return scrapes, str(error)
    except TimeoutError:
        return scrapes, ""


def _judged(name: str, source: RunningSource, scrapes: list[Scrape], error: str) -> list[Row]:
    what = f"source {name}"
    if error:
        return [Row("FAIL", what, error, "see the message")]
    last = {s.target: s for s in scrapes}
    failed = [s for s in last.values() if s.error]
    rows = [
        Row(
            "FAIL",
            f"target {s.target}",
            s.error,
            "see that the exporter runs there and this host may reach it",
        )
        for s in failed[:NAMED_MAX]
    ]
    if len(failed) > NAMED_MAX:
        rows.append(
            Row(
                "FAIL",
                what,
                f"{len(failed) - NAMED_MAX} more targets failed",
                "see `tidewarden targets` once it runs",
            )
        )
    mute = [s.target for s in last.values() if not s.error and s.layout is not None and not s.layout.series]
    rows += [
        Row(
            "WARN",
            f"target {t}",
            "answers, and none of its series is known",
            "is it an exporter of GPUs, hosts or engines?",
        )
        for t in mute[:NAMED_MAX]
    ]
    if isinstance(source, HttpScraper):
        fix = "correct the file, the name or the address"
        rows += [Row("FAIL", f"{what} discovery", text, fix) for text in source.errors()]
        untried = len(source.targets) - len(last)
        if untried > 0:
            rows.append(
                Row(
                    "WARN",
                    what,
                    f"{untried} targets did not answer within {ROUND_S:g} s",
                    "see that they are not overloaded",
                )
            )
        if not source.targets:
            rows.append(Row("FAIL", what, "no target was found", "see sources.http: static, file_sd, dns"))
    good = len(last) - len(failed)
    if good or not isinstance(source, HttpScraper):
        rows.append(Row("OK", what, f"{good} target{'s' * (good != 1)} answered"))
    return rows


def placed(topology: Topology, pages: Sequence[Layout]) -> list[Row]:
    """Whether engines, GPUs and hosts find each other: what is not joined is watched, and cannot be acted for."""
    rows = []
    shown = {s.entity.name for layout in pages for s in layout.series if s.signal == "running"}
    told = sorted(set(topology.node_of_engine) - shown)
    homeless = sorted(e for e in shown if not topology.node_of_engine.get(e))
    unknown = sorted(e for e in shown if topology.node_of_engine.get(e) and not topology.gpus_of.get(e))
    for names, what, fix in (
        (
            told,
            "no page of their own, only a load balancer's word",
            "scrape them; where they are scraped under another name, give the load balancer's target the label "
            'engines ("SERVER=HOST:PORT,...")',
        ),
        (homeless, "no node", "give their targets the label node, as the exporters of that host name it"),
        (
            unknown,
            "a node and no GPUs",
            'give their targets the label gpus ("0,1,2,3"), or run dcgm-exporter with --kubernetes: a sick GPU '
            "else moves no traffic",
        ),
    ):
        if names:
            found = f"{len(names)} of {len(topology.node_of_engine)} have {what}: {_some(names)}"
            rows.append(Row("WARN", "engines", found, fix))
    if topology.node_of_engine and not rows:
        rows.append(Row("OK", "engines", f"{len(topology.node_of_engine)} with node and GPUs"))
    speakers: dict[tuple[str, str], set[str]] = {}
    for layout in pages:
        job = next((f.value for f in layout.facts if f.entity.kind == "target" and f.key == "job"), "")
        for node in {s.entity.name for s in layout.series if s.entity.kind == "node"}:
            speakers.setdefault((job, node), set()).add(layout.target)
    for (job, node), targets in sorted(speakers.items()):
        if len(targets) > 1:
            found = f"{len(targets)} exporters of kind {job} speak of it: {_some(sorted(targets))}"
            fix = "they are several hosts of one name: give each target the label node"
            rows.append(Row("WARN", f"node {node}", found, fix))
    return rows


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def _history(url: str) -> Row:
    from daemon.telemetry.fetch import redact

    what = f"history {redact(url)}"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query?query=1", timeout=10) as answer:
            if b'"success"' in answer.read(4096):
                return Row("OK", what, "answers")
    except (OSError, ValueError) as error:
        return Row(
            "FAIL",
            what,
            f"{getattr(error, 'reason', error)}",
            "correct sources.prometheus.url, or set history: false",
        )
    return Row("FAIL", what, "does not answer as Prometheus does", "correct sources.prometheus.url")


def _coverage(catalogue: Catalogue, seen: Mapping[str, Any]) -> list[Row]:
    """What no exporter gives, kind by kind: rules that need it cannot fire."""
    rows = []
    for kind in ("gpu", "engine", "node", "port"):
        if kind not in seen:
            rows.append(
                Row("WARN", f"coverage {kind}", "nothing is exported at all", _whole(catalogue, kind))
            )
            continue
        known = len(catalogue.signals[kind])
        spots = catalogue.blind_spots({kind: seen[kind]})
        # Several lines mean alternatives for one signal; the commonest line enables most.
        remedies = list(dict.fromkeys(s.remedy.split("; or ")[0] for s in spots if s.remedy))
        missing = _some([s.signal for s in spots])
        state = "OK" if not spots else "WARN"
        rows.append(
            Row(
                state,
                f"coverage {kind}",
                f"{known - len(spots)} of {known} signals" + (f"; missing {missing}" if spots else ""),
                " | ".join(remedies[:3]),
            )
        )
    return rows


def _whole(catalogue: Catalogue, kind: str) -> str:
    jobs = dict.fromkeys(f.job for f in catalogue.families.values() if f.kind == kind and not f.only_with)
    return f"scrape an exporter of it: {', '.join(jobs)}"
