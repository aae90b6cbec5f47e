"""What the service does around its loop: sources from settings, reload, reports to the service manager."""

from __future__ import annotations

import asyncio
import importlib
import math
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from daemon.almanac import CalendarError
from daemon.clock import Clock
from daemon.config import ConfigError, Problem, load
from daemon.loop import Daemon
from daemon.model import Scrape, SourceError
from daemon.settings import Settings
from daemon.settings_sources import Sources
from daemon.telemetry import SOURCES, Context, RunningSource, history_of, load_catalogue
from daemon.telemetry.catalogue import Catalogue
from daemon.telemetry.fetch import FetchError
from daemon.telemetry.history import History
from daemon.telemetry.kernel_log import KernelLog, pci_key
from daemon.telemetry.scrape import HttpScraper
from daemon.topology import node_of_name

log = structlog.get_logger("tidewarden")

REPORT_EVERY_S = 5.0
"""How often the service manager hears of us; the unit's WatchdogSec is a multiple of it."""
PATIENCE_S = 60.0
"""How long start-up waits for a first target: a service manager kills what is not ready after 90 s."""
PROBE_S = 5.0


def _nobody() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The telemetry Context of a service: everything that is the same for all of its sources."""

    catalogue: Catalogue
    clock: Clock
    node: str
    gpus: Callable[[], Mapping[str, str]] = _nobody
    engines: Callable[[], Mapping[str, str]] = _nobody


@dataclass(slots=True)
class Paced:
    """A source read no more often than every `interval_s`, whatever the pace of the ticks."""

    source: RunningSource
    interval_s: float
    due: float = -math.inf

    async def read(self) -> Sequence[Scrape]:
        now = asyncio.get_running_loop().time()
        # A tenth of slack: ticks are never to the millisecond, and a read skipped for one would come a tick late.
        if now < self.due - 0.1 * self.interval_s:
            return ()
        self.due = (self.due if now - self.due < self.interval_s else now) + self.interval_s
        return await self.source.read()

    async def close(self) -> None:
        await self.source.close()


# -- sources -------------------------------------------------------------------------------------------


def sources_of(
    settings: Settings, clock: Clock
) -> tuple[Catalogue, dict[str, RunningSource], History | None]:
    """Everything the settings say to read, by name, and where the past comes from (None = nowhere).

    Without any source in the settings this host's own GPUs, ports and kernel log are read as far as they are there.
    Raises SourceError when a source that is asked for cannot work, or when there is nothing to read at all.
    """
    tree = settings.sources
    context = Surroundings(load_catalogue(), clock, platform.node() or "localhost")
    sources = configured(tree, context)
    if not sources and not _names(tree):
        sources = found_here(context)
        if not sources:
            raise SourceError(
                "sources: none is configured and this host has no NVIDIA driver, no RDMA port and no readable kernel "
                "log; name exporters under sources.http, or let `tidewarden config init --prometheus URL` write them"
            )
    history = None
    if tree.prometheus is not None and tree.prometheus.history:
        try:
            history = history_of(tree.prometheus.model_dump(), context)
        except FetchError as problem:
            raise SourceError(f"sources.prometheus: {problem}; create it readable for this user") from problem
    if not sources:
        raise SourceError(
            "sources: nothing gives current values; add sources.http, or set sources.prometheus.live: true"
        )
    return context.catalogue, sources, history


def _names(tree: Sources) -> list[str]:
    return [name for name, value in tree if value]


def configured(tree: Sources, context: Context) -> dict[str, RunningSource]:
    """The sources that are asked for by name. Raises SourceError for one that cannot work."""
    found: dict[str, RunningSource] = {}
    if tree.http is not None:
        found["http"] = SOURCES["http"](tree.http.model_dump(), context)
    if tree.prometheus is not None and tree.prometheus.live:
        found["prometheus"] = _paced("prometheus", tree.prometheus.model_dump(), context)
    if tree.nvml is not None and tree.nvml.enabled:
        trouble = nvml_trouble()
        if trouble:
            raise SourceError(
                f"sources.nvml: {trouble}; install the NVIDIA driver on this host, or set sources.nvml.enabled: false"
            )
        found["nvml"] = _paced("nvml", tree.nvml.model_dump(), context)
    if tree.sysfs is not None:
        found["sysfs"] = _paced("sysfs", tree.sysfs.model_dump(), context)
    for number, entry in enumerate(tree.kernel_log):
        found[f"kernel_log:{entry.node or number}"] = SOURCES["kernel_log"](entry.model_dump(), context)
    if tree.jobs is not None:
        found["jobs"] = _paced("jobs", tree.jobs.model_dump(), context)
    if tree.spot is not None:
        found["spot"] = _paced("spot", tree.spot.model_dump(), context)
    if tree.mqtt is not None:
        found["mqtt"] = SOURCES["mqtt"](tree.mqtt.model_dump(), context)
    return found


def found_here(context: Context) -> dict[str, RunningSource]:
    """What this host itself offers. What it does not offer is logged and left out."""
    found: dict[str, RunningSource] = {}
    trouble = nvml_trouble()
    if trouble:
        log.info("source not used", source="nvml", reason=trouble)
    else:
        found["nvml"] = _paced("nvml", {"interval": 15.0}, context)
    for name in ("sysfs", "kernel_log"):
        try:
            found[name] = (
                _paced(name, {"interval": 15.0}, context) if name == "sysfs" else SOURCES[name]({}, context)
            )
        except SourceError as problem:
            log.info("source not used", source=name, reason=str(problem))
    return found


def _paced(name: str, settings: Mapping[str, Any], context: Context) -> Paced:
    return Paced(SOURCES[name](settings, context), float(settings["interval"]))


def nvml_trouble() -> str:
    """Why the NVIDIA driver cannot be used, "" when it can. A driver that hangs is left behind in its thread."""
    said: list[str] = []

    def probe() -> None:
        nvml = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
            said.append("" if count else "the driver sees 0 GPUs")
        except nvml.NVMLError as problem:
            said.append(str(problem))

    thread = threading.Thread(target=probe, name="nvml-probe", daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return said[0] if said else f"the driver did not answer within {PROBE_S:g} s"


def bind_gpu_names(sources: Mapping[str, RunningSource], daemon: Daemon) -> None:
    """Let sources that name things by another's word ask the daemon: GPUs by PCI address, engines by pod or name."""
    for source in sources.values():
        inner = source.source if isinstance(source, Paced) else source
        if isinstance(inner, KernelLog):
            inner.gpus = partial(gpu_names, daemon, inner.node)
        elif isinstance(inner, HttpScraper):
            inner.engines = _also(inner.engines, daemon)


def _also(known: Callable[[], Mapping[str, str]], daemon: Daemon) -> Callable[[], Mapping[str, str]]:
    return lambda: {**engine_names(daemon), **known()}


def gpu_names(daemon: Daemon, node: str) -> dict[str, str]:
    """PCI key -> GPU, of the GPUs of one node seen in the last tick: every host numbers its slots alike."""
    gpu = daemon.frames["gpu"]
    addresses = gpu.facts.get("pci", ("",) * len(gpu.entities))
    return {
        pci_key(pci): name
        for pci, name in zip(addresses, gpu.entities, strict=True)
        if pci and node_of_name(name) == node
    }


def engine_names(daemon: Daemon) -> dict[str, str]:
    """What a load balancer may call an engine -> its name: its pod, or its own name where that is no address."""
    engine = daemon.frames["engine"]
    blank = ("",) * len(engine.entities)
    pods, pages = engine.facts.get("pod", blank), engine.facts.get("target", blank)
    found = {}
    for name, pod, page in zip(engine.entities, pods, pages, strict=True):
        if not page:
            continue  # only a load balancer's word: it must not prove itself
        if pod:
            found[pod] = name
        if ":" not in name:
            found[name] = name
    return found


# -- reload --------------------------------------------------------------------------------------------


def reload(daemon: Daemon, config: Path | None) -> list[Problem]:
    """Read the configuration again and swap the policy at the next tick edge, channels, routes and calendar now; on any problem
    keep all of the old one.

    Returns the problems, which are also logged. Sources, backends and the web address need a restart.
    """
    if config is None:
        problems = [
            Problem("-", 0, "", "started without a configuration file: there is nothing to read again")
        ]
    else:
        try:
            settings = load(config)
            policy = settings.policy()
            days = settings.almanac()
            switches = [follow(settings) for follow in daemon.followers]
        except ConfigError as error:
            problems = error.problems
        except CalendarError as error:
            problems = [Problem(str(config), 0, "calendar", str(error))]
        except OSError as error:
            problems = [Problem(str(config), 0, "", f"{error.filename}: {error.strerror}")]
        else:
            # What can be carried out depends on the backends, which stay as they were at the start.
            now = daemon.core.policy
            policy = replace(policy, able=now.able, able_in=now.able_in)
            for switch in switches:
                policy = switch(policy)
            daemon.reload(policy)
            daemon.note_days(days)
            daemon.status.reload_error = ""
            log.info(
                "policy, channels, routes and calendar reloaded; sources, backends, broker, web and state folder change at a restart"
            )
            return []
    daemon.status.reload_error = "; ".join(str(p) for p in problems)
    for problem in problems:
        log.error("configuration not reloaded, the old one stays", problem=str(problem))
    return problems


def reload_and_tell(daemon: Daemon, config: Path | None, notify: Callable[[str], bool]) -> None:
    """Reload on SIGHUP, saying so before and after, so that `systemctl reload` returns when it is over.

    Source: sd_notify(3); MONOTONIC_USEC tells this reload from one that was under way before the signal.
    """
    now_us = int(asyncio.get_running_loop().time() * 1e6)
    notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
    problems = reload(daemon, config)
    # READY also after a refusal: the service runs on, and the status says that the old configuration is in force.
    line = status_line(daemon)
    notify(f"READY=1\nSTATUS={line}" if not problems else f"READY=1\nSTATUS={line}: {problems[0]}")


# -- reports -------------------------------------------------------------------------------------------


async def report(daemon: Daemon, notify: Callable[[str], bool]) -> None:
    """Tell the service manager how it goes, until cancelled: READY once, STATUS, WATCHDOG while the loop ticks."""
    loop = asyncio.get_running_loop()
    begun, said_ready, ticks, said = loop.time(), False, -1, ""
    while True:
        status = daemon.status
        waited = loop.time() - begun
        if not said_ready and (status.is_ready or waited > PATIENCE_S):
            said_ready = True
            tell_discovered(daemon, waited)
            notify("READY=1")
        line = status_line(daemon)
        if line != said:
            said = line
            notify(f"STATUS={line}")
        if status.ticks != ticks:
            ticks = status.ticks
            notify("WATCHDOG=1")
        await asyncio.sleep(0.2 if not said_ready else REPORT_EVERY_S)


def tell_discovered(daemon: Daemon, waited_s: float) -> None:
    """One log line of what was found without being told, or why nothing was."""
    found = daemon.discovered()
    if not found["targets"]:
        why = "; ".join(f"{n}: {e}" for n, e in source_errors(daemon).items()) or "the sources name none"
        log.warning("nothing discovered yet, going on looking", waited_s=round(waited_s), why=why)
        return
    log.info("discovered", **found, mode=daemon.core.policy.mode.value)


def source_errors(daemon: Daemon) -> dict[str, str]:
    """source -> what is wrong with it now, discoveries included."""
    errors = dict(daemon.status.source_errors)
    for name, source in daemon.sources.items():
        if isinstance(source, HttpScraper) and source.errors():
            errors[f"{name} discovery"] = "; ".join(source.errors())
    return errors


def status_line(daemon: Daemon) -> str:
    """One line for `systemctl status`."""
    target, book = daemon.frames["target"], daemon.core.state.book
    up = int((target.column("up") == 1.0).sum())
    pools, gpus = len(daemon.frames["pool"].entities), len(daemon.frames["gpu"].entities)
    parts = [
        f"{daemon.core.policy.mode.value} mode",
        f"{up}/{len(target.entities)} targets up",
        f"{gpus} GPUs, {pools} pools",
        f"{len(book.open)} open incidents",
    ]
    if daemon.status.reload_error:
        parts.append("last reload failed")
    if not daemon.record.healthy:
        parts.append("journal cannot be written: observing only")
    return ", ".join(parts)
