"""Telemetry: everything the daemon learns about the world comes in through the sources registered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from daemon.clock import Clock
from daemon.model import Scrape, SourceError
from daemon.telemetry.catalogue import Catalogue, load_catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.discovery import Discovery, DnsDiscovery, FileDiscovery, Static, target_of
from daemon.telemetry.fetch import Credentials
from daemon.telemetry.history import History
from daemon.telemetry.jobs import job_lists
from daemon.telemetry.kernel_log import KernelLog
from daemon.telemetry.kubernetes_discovery import discovery_of
from daemon.telemetry.mqtt import MqttSettings, MqttSource
from daemon.telemetry.nvml import NvmlGpus
from daemon.telemetry.promql import PromqlSource
from daemon.telemetry.scrape import HttpScraper, ScrapeSettings
from daemon.telemetry.spot import spot_notices
from daemon.telemetry.sysfs import SysfsPorts

__all__ = ["SOURCES", "Context", "RunningSource", "history_of", "load_catalogue"]


class RunningSource(Protocol):
    """A Source that may hold connections, files or threads."""

    async def read(self) -> Sequence[Scrape]: ...

    async def close(self) -> None: ...


class Context(Protocol):
    """What every source is given.

    node : name of this host. gpus : pci_key -> gpu name; engines : load-balancer server -> engine name, beyond what
    the settings say. Both are asked again whenever they are needed.
    """

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


def discoveries_of(settings: Mapping[str, Any]) -> list[Discovery]:
    """From static: [{targets, job, labels}], file_sd: [patterns], dns: [{name, type, port, job, labels, refresh}].

    Raises SourceError for an address that is none, and when there is nothing at all.
    """
    found: list[Discovery] = []
    for group in settings.get("static", ()):
        listed = (target_of(a, group.get("labels", {}), group.get("job", "")) for a in group["targets"])
        found.append(Static(tuple(listed)))
    if settings.get("file_sd"):
        found.append(FileDiscovery(tuple(settings["file_sd"])))
    for entry in settings.get("dns", ()):
        kind, port = entry.get("type", "A"), entry.get("port", 0)
        if kind == "A" and not port:
            raise SourceError(
                f"dns {entry['name']}: port is 0; A records carry none, give 1-65535 or use type: SRV"
            )
        template = target_of("name:1", entry.get("labels", {}), entry.get("job", ""))
        found.append(DnsDiscovery(entry["name"], port, kind, template, entry.get("refresh", 30.0)))
    if settings.get("kubernetes"):
        found.append(discovery_of(settings["kubernetes"]))
    if not found:
        raise SourceError("http source: nothing to scrape; give static, file_sd, dns or kubernetes")
    return found


def _credentials(settings: Mapping[str, Any]) -> Credentials:
    credentials = Credentials(
        bearer_token_file=settings.get("bearer_token_file", ""),
        user=settings.get("username", ""),
        password_file=settings.get("password_file", ""),
        ca_file=settings.get("ca_file", ""),
    )
    credentials.context()  # a wrong certificate file is told at start, not at the first scrape
    return credentials


def _http(settings: Mapping[str, Any], context: Context) -> HttpScraper:
    timeout_s = settings.get("timeout", 10.0)
    own = dict(settings.get("engines") or {})
    scrape = ScrapeSettings(
        interval_s=settings.get("interval", 15.0),
        timeout_s=timeout_s,
        engine_timeout_s=1.2 * timeout_s,
        burst=settings.get("burst", 32),
        credentials=_credentials(settings),
    )
    return HttpScraper(
        discoveries_of(settings),
        context.catalogue,
        context.clock,
        scrape,
        engines=lambda: {**context.engines(), **own},
    )


def _prometheus(settings: Mapping[str, Any], context: Context) -> PromqlSource:
    url = _url(settings)
    return PromqlSource(
        url,
        context.catalogue,
        context.clock,
        window_s=max(45.0, 2 * settings.get("interval", 30.0)),
        credentials=_credentials(settings),
    )


def history_of(settings: Mapping[str, Any], context: Context) -> History:
    """The back-fill of a `prometheus` source. Raises SourceError for an address that is none."""
    headers = _credentials(settings).headers()
    return History(_url(settings), context.catalogue, headers=headers)


def _url(settings: Mapping[str, Any]) -> str:
    url = str(settings.get("url", ""))
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"prometheus source: url is {url!r}, an http:// or https:// address is needed")
    return url


def _nvml(settings: Mapping[str, Any], context: Context) -> NvmlGpus:
    columns = Columns(f"nvml:{context.node}", shapes_of(context.catalogue))
    return NvmlGpus(context.node, context.clock, columns, deadline_s=settings.get("call_timeout", 5.0))


def _sysfs(settings: Mapping[str, Any], context: Context) -> SysfsPorts:
    columns = Columns(f"sysfs:{context.node}", shapes_of(context.catalogue))
    root = Path(settings.get("root", "/sys/class/infiniband"))
    return SysfsPorts(root, context.node, context.clock, columns)


def _kernel_log(settings: Mapping[str, Any], context: Context) -> KernelLog:
    return KernelLog(
        settings.get("path", "/dev/kmsg"),
        settings.get("node") or context.node,
        context.clock,
        gpus=context.gpus,
        port_of=context.catalogue.ports.port,
    )


def _mqtt(settings: Mapping[str, Any], context: Context) -> MqttSource:
    own = MqttSettings(
        settings["host"],
        settings.get("port", 1883),
        tuple(settings.get("topics", ("tidewarden-in/#",))),
        user=settings.get("username", ""),
        password_file=settings.get("password_file", ""),
        ca_file=settings.get("tls_ca_file", ""),
    )
    return MqttSource(own, context.catalogue, context.clock)


SOURCES: dict[str, Callable[[Mapping[str, Any], Context], RunningSource]] = {
    "http": _http,
    "prometheus": _prometheus,
    "nvml": _nvml,
    "sysfs": _sysfs,
    "kernel_log": _kernel_log,
    "mqtt": _mqtt,
    "jobs": lambda settings, context: job_lists(settings, context.clock, shapes_of(context.catalogue)),
    "spot": lambda settings, context: spot_notices(settings, context.clock, context.node),
}
"""Name under `sources` in the configuration -> how to make it from that section as a plain mapping.

Raises SourceError for settings that cannot work. `kernel_log` is made once for each entry of its list.
"""
