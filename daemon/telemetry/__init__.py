"""Telemetry: everything the daemon learns about the world comes in through the sources registered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daemon.clock import Clock
from daemon.model import Scrape, SourceError
from daemon.telemetry.catalogue import Catalogue, load_catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.discovery import (
    Discovery,
    DnsDiscovery,
    FileDiscovery,
    Static,
    target_of,
)
from daemon.telemetry.fetch import Credentials
from daemon.telemetry.kernel_log import KernelLog
from daemon.telemetry.mqtt import MqttSettings, MqttSource
from daemon.telemetry.nvml import NvmlGpus
from daemon.telemetry.promql import PromqlSource
from daemon.telemetry.scrape import HttpScraper, ScrapeSettings
from daemon.telemetry.sysfs import SysfsPorts

__all__ = ["SOURCES", "Context", "RunningSource", "load_catalogue"]

T = TypeVar("T")


class RunningSource(Protocol):
    """A Source that may hold connections, files or threads."""

    async def read(self) -> Sequence[Scrape]: ...

    async def close(self) -> None: ...


class Context(Protocol):
    """What every source is given. node : name of this host. gpus : pci_key -> gpu name, engines : load-balancer server
    -> engine name; both are asked again whenever they are needed."""

    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def node(self) -> str: ...
    @property
    def gpus(self) -> Callable[[], Mapping[str, str]]: ...
    @property
    def engines(self) -> Callable[[], Mapping[str, str]]: ...


def _take(kind: type[T], settings: Mapping[str, Any], where: str, **more: Any) -> T:
    """A settings dataclass from plain values; lists become tuples. Raises SourceError naming an unknown key."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise SourceError(f"{where}: unknown setting {', '.join(unknown)}; allowed: {', '.join(known)}")
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return kind(**{**plain, **more})
    except TypeError as problem:
        raise SourceError(f"{where}: {problem}") from problem


def discoveries_of(settings: Mapping[str, Any]) -> list[Discovery]:
    """From ``static``: [{targets, labels, job}], ``files``: [patterns], ``dns``: [{name, port, kind, labels, job}]."""
    found: list[Discovery] = []
    for group in settings.get("static", ()):
        labels = {str(k): str(v) for k, v in (group.get("labels") or {}).items()}
        job = group.get("job", "")
        found.append(Static(tuple(target_of(address, labels, job) for address in group["targets"])))
    if settings.get("files"):
        found.append(FileDiscovery(tuple(settings["files"]), settings.get("job", "")))
    for entry in settings.get("dns", ()):
        labels = {str(k): str(v) for k, v in (entry.get("labels") or {}).items()}
        template = target_of("template:1", labels, entry.get("job", ""))
        own = {k: v for k, v in entry.items() if k not in ("labels", "job")}
        found.append(_take(DnsDiscovery, own, "dns", template=template))
    if not found:
        raise SourceError("http source: nothing to scrape; give static, files or dns")
    return found


def _http(settings: Mapping[str, Any], context: Context) -> HttpScraper:
    places = ("static", "files", "dns", "job")
    own = {k: v for k, v in settings.items() if k not in (*places, "credentials")}
    credentials = _take(Credentials, settings.get("credentials", {}), "http source: credentials")
    credentials.context()  # a wrong certificate file is told at start, not at the first scrape
    return HttpScraper(
        discoveries_of(settings),
        context.catalogue,
        context.clock,
        _take(ScrapeSettings, own, "http source", credentials=credentials),
        context.engines,
    )


def _promql(settings: Mapping[str, Any], context: Context) -> PromqlSource:
    own = {k: v for k, v in settings.items() if k != "credentials"}
    if not str(own.get("url", "")).startswith(("http://", "https://")):
        raise SourceError(
            f"promql source: url is {own.get('url')!r}, an http:// or https:// address is needed"
        )
    credentials = _take(Credentials, settings.get("credentials", {}), "promql source: credentials")
    return _take(
        PromqlSource,
        own,
        "promql source",
        catalogue=context.catalogue,
        clock=context.clock,
        credentials=credentials,
    )


def _nvml(settings: Mapping[str, Any], context: Context) -> NvmlGpus:
    columns = Columns(f"nvml:{context.node}", shapes_of(context.catalogue))
    return _take(NvmlGpus, settings, "nvml source", node=context.node, clock=context.clock, columns=columns)


def _sysfs(settings: Mapping[str, Any], context: Context) -> SysfsPorts:
    own = {k: v for k, v in settings.items() if k != "root"}
    columns = Columns(f"sysfs:{context.node}", shapes_of(context.catalogue))
    root = Path(settings.get("root", "/sys/class/infiniband"))
    return _take(
        SysfsPorts, own, "sysfs source", root=root, node=context.node, clock=context.clock, columns=columns
    )


def _kernel_log(settings: Mapping[str, Any], context: Context) -> KernelLog:
    return _take(
        KernelLog,
        {"path": "/dev/kmsg", **settings},
        "kernel_log source",
        node=context.node,
        clock=context.clock,
        gpus=context.gpus,
        port_of=context.catalogue.ports.port,
    )


def _mqtt(settings: Mapping[str, Any], context: Context) -> MqttSource:
    return MqttSource(_take(MqttSettings, settings, "mqtt source"), context.catalogue, context.clock)


SOURCES: dict[str, Callable[[Mapping[str, Any], Context], RunningSource]] = {
    "http": _http,
    "promql": _promql,
    "nvml": _nvml,
    "sysfs": _sysfs,
    "kernel_log": _kernel_log,
    "mqtt": _mqtt,
}
"""Name in the configuration -> how to make the source. Raises SourceError for settings that cannot work."""
