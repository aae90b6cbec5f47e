"""Looks whether this host and this configuration can work, with a fix for what cannot."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from daemon import service
from daemon.clock import wall_clock
from daemon.config import ConfigError, load
from daemon.frame import FrameBuilder
from daemon.listening import holder_of
from daemon.model import Layout, Scrape, SourceError
from daemon.settings import Settings
from daemon.store import LOCK
from daemon.telemetry import RunningSource
from daemon.telemetry.catalogue import Catalogue
from daemon.telemetry.scrape import HttpScraper
from daemon.topology import Topology, picture

PACKAGES = ("aiohttp", "aiomqtt", "click", "jinja2", "msgspec", "numpy", "nvidia-ml-py", "prometheus-client",
            "pydantic", "pyyaml", "rich", "scikit-learn", "structlog")  # fmt: skip
PYTHON_MIN = (3, 11)
FREE_FAIL, FREE_WARN = 100e6, 2e9
"""Bytes. The journal of a month of 1,000 GPUs is a few hundred megabytes (judgement)."""
ROUND_S = 15.0
"""How long one round over all targets may take: the daemon's own interval."""
UNSYNCHRONISED = 5
"""What adjtimex(2) returns when nothing keeps the clock (TIME_ERROR)."""
NAMED_MAX = 8


class Row(NamedTuple):
    """state : OK, WARN or FAIL. fix : what to do, "" when nothing is to be done."""

    state: str
    what: str
    found: str
    fix: str = ""


def examine(config: Path | None) -> list[Row]:
    """Every check, in the order in which one would repair."""
    rows = [_python(), _packages(), _clock(), _driver(config is not None)]
    if config is None:
        return [
            *rows,
            Row(
                "WARN",
                "configuration",
                "none given",
                "tidewarden config init --file FILE, then doctor -c FILE",
            ),
        ]
    try:
        settings = load(config)
    except ConfigError as error:
        fix = f"correct it; tidewarden config check -c {config} says when it is right"
        return [*rows, *(Row("FAIL", "configuration", str(p), fix) for p in error.problems)]
    rows.append(
        Row("OK", "configuration", f"{config}, {settings.mode.value} mode, {len(settings.pools)} pools")
    )
    rows += [
        *_extras(settings),
        *_state_folder(settings.folder),
        *_web(settings),
        *_backends(settings),
        *_channels(settings),
    ]
    return [*rows, *asyncio.run(_sources(settings))]


# -- the host ------------------------------------------------------------------------------------------


def _python() -> Row:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= PYTHON_MIN:
        return Row("OK", "Python", found)
    return Row("FAIL", "Python", found, "install Python 3.11 or newer and make the virtual environment again")


def _packages() -> Row:
    missing = []
    for name in PACKAGES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Row(
            "FAIL",
            "packages",
            f"missing: {', '.join(missing)}",
            "install tidewarden again into its environment",
        )
    return Row(
        "OK", "packages", f"tidewarden {metadata.version('tidewarden')}, {len(PACKAGES)} dependencies present"
    )


def _extras(settings: Settings) -> Iterator[Row]:
    """What the configuration asks for beyond the packages that are always there."""
    kinds = {b.kind for b in settings.backends.values()} | {c.kind for c in settings.notify.channels}
    wanted = {
        "kubernetes": ("lightkube", "kubernetes" in kinds),
        "otlp": ("opentelemetry-exporter-otlp-proto-http", settings.traces is not None),
    }
    for extra, (package, is_wanted) in wanted.items():
        if not is_wanted:
            continue
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            fix = f"pip install 'tidewarden[{extra}]' into the same environment"
            yield Row(
                "FAIL", f"extra {extra}", f"{package} is not installed, and the configuration needs it", fix
            )
        else:
            yield Row("OK", f"extra {extra}", f"{package} {found}")


def _clock() -> Row:
    """Whether the kernel believes its clock is kept in time. Source: adjtimex(2); modes 0 only reads."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(256))
    except (OSError, AttributeError):
        state = -1
    if state == UNSYNCHRONISED:
        return Row(
            "WARN",
            "clock",
            "not synchronised",
            "run chrony or systemd-timesyncd: leases and staleness go by the clock",
        )
    if state < 0:
        return Row(
            "WARN", "clock", "cannot be asked here", "make sure the host runs chrony or systemd-timesyncd"
        )
    return Row("OK", "clock", "synchronised")


def _driver(is_configured: bool) -> Row:
    trouble = service.nvml_trouble()
    if not trouble:
        return Row("OK", "NVIDIA driver", "answers")
    return Row(
        "OK" if is_configured else "WARN",
        "NVIDIA driver",
        f"{trouble}; needed only to read GPUs of this very host",
    )


def _state_folder(folder: Path) -> Iterator[Row]:
    where = folder
    while not where.exists() and where != where.parent:
        where = where.parent
    if not where.is_dir() or not os.access(where, os.W_OK | os.X_OK):
        yield Row(
            "FAIL",
            "state folder",
            f"{folder}: {where} is not writable for this user",
            f"create it: install -d -o USER {folder}",
        )
        return
    yield Row("OK", "state folder", f"{folder} {'is' if folder.exists() else 'can be made'} writable")
    yield _lock(folder)
    free = shutil.disk_usage(where).free
    state = "FAIL" if free < FREE_FAIL else "WARN" if free < FREE_WARN else "OK"
    yield Row(
        state,
        "disk space",
        f"{free / 1e9:.1f} GB free at {where}",
        "" if state == "OK" else "free space, or move state_dir",
    )


def _lock(folder: Path) -> Row:
    """Who holds the folder. The lock goes with its process, so a pid left in the file by a dead one does no harm."""
    path = folder / LOCK
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read(32).decode(errors="replace").strip() or "unknown"
                return Row("OK", "state folder lock", f"held by a running daemon, pid {holder}")
    except FileNotFoundError:
        return Row("OK", "state folder lock", "free, never used")
    except OSError as error:
        return Row(
            "FAIL",
            "state folder lock",
            f"{path}: {error.strerror}",
            "make it readable and writable for the daemon's user",
        )
    return Row("OK", "state folder lock", "free")


def _web(settings: Settings) -> Iterator[Row]:
    host, _, port = settings.web.listen.rpartition(":")
    what = f"web address {settings.web.listen}"
    if not port.isdigit():
        yield Row("FAIL", what, "is not host:port", "write web.listen: 127.0.0.1:9095")
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]") or "0.0.0.0", int(port)))
            yield Row("OK", what, "free")
        except OSError as error:
            yield _taken(what, host, int(port), error)
    if not settings.web.token_file and not settings.web.tokens:
        yield Row(
            "WARN",
            "web token",
            "none: pages are read-only, approvals and pause are off",
            "put a secret into a file and name it in web.token_file",
        )


def _taken(what: str, host: str, port: int, error: OSError) -> Row:
    holder = holder_of(port)
    if holder and _is_ours(host, port):
        return Row("OK", what, f"served by a running tidewarden, {holder}")
    fix = "stop what holds it, or set web.listen to another port"
    return Row("FAIL", what, f"held by {holder}" if holder else str(error.strerror or error), fix)


def _is_ours(host: str, port: int) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{host}:{port}/api/v1/status", timeout=3
        ) as answer:
            return b'"ticks"' in answer.read(65536)
    except (OSError, ValueError):
        return False


def _backends(settings: Settings) -> Iterator[Row]:
    for name, backend in settings.backends.items():
        if backend.kind != "command":
            fix = "tidewarden config check --live asks it"
            yield Row("OK", f"backend {name}", f"{backend.kind}; {fix}")
            continue
        found = shutil.which(backend.argv[0])
        if found:
            yield Row("OK", f"backend {name}", f"{found} is executable")
        else:
            yield Row(
                "FAIL",
                f"backend {name}",
                f"{backend.argv[0]} is not an executable file",
                f"install it or correct backends.{name}.argv",
            )


def _channels(settings: Settings) -> Iterator[Row]:
    for channel in settings.notify.channels:
        # That files can be read and are not empty was checked with the configuration.
        urls = channel.addresses()
        wrong = [
            u for u in urls if not u.startswith(("http://", "https://", "smtp://", "mqtt:", "kubernetes:"))
        ]
        if wrong:
            yield Row(
                "FAIL",
                f"channel {channel.name}",
                f"{len(wrong)} of {len(urls)} lines are no http(s) address",
                "write one URL a line",
            )
        else:
            yield Row(
                "OK",
                f"channel {channel.name}",
                f"{channel.kind}, {len(urls)} address{'es' * (len(urls) != 1)}",
            )
    if not settings.notify.channels:
        yield Row("WARN", "channels", "none: nobody is told of incidents", "add notify.channels")


# -- telemetry -----------------------------------------------------------------------------------------


async def _sources(settings: Settings) -> list[Row]:
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
