"""Finds the addresses to scrape: a fixed list, Prometheus file_sd files, DNS names; pods in kubernetes_discovery.py.

A discovery answers with what it last knew when it cannot look again; `error` then says why ("" = all well).
"""

from __future__ import annotations

import asyncio
import glob
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from daemon.model import SourceError, Target
from daemon.telemetry.dns import ask_srv

PLAIN = Target("")
META = {"__scheme__": "scheme", "__metrics_path__": "path"}


class Discovery(Protocol):
    """error : why the last look failed, "" when it did not."""

    error: str

    async def targets(self) -> tuple[Target, ...]: ...


@runtime_checkable
class Watching(Protocol):
    """A discovery that is kept current by a task of the scraper's."""

    async def run(self) -> None: ...


def target_of(address: str, labels: Mapping[str, str], job: str = "") -> Target:
    """A Target from an address with Prometheus-style labels; `job`, `__scheme__`, `__metrics_path__` become fields.

    Raises SourceError for an address that carries a user or a path, or that has no port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "@" in address or "/" in address:
        shown = "***@" + address.rpartition("@")[2] if "@" in address else address
        raise SourceError(
            f"target {shown!r} is not host:port (port 1-65535, no user, no path); put a path in "
            "__metrics_path__ and credentials into the scrape settings"
        )
    known = {META[k]: v for k, v in labels.items() if k in META}
    own = {k: v for k, v in labels.items() if not k.startswith("__") and k != "job"}
    if known.get("scheme", "http") not in ("http", "https"):
        raise SourceError(f"target {address}: __scheme__ is {known['scheme']!r}, allowed: http, https")
    return Target(
        address,
        labels.get("job", job),
        known.get("path", "/metrics"),
        known.get("scheme", "http"),
        tuple(sorted(own.items())),
    )


@dataclass(slots=True)
class Static:
    """A fixed list."""

    listed: tuple[Target, ...]
    error: str = ""

    async def targets(self) -> tuple[Target, ...]:
        return self.listed


@dataclass(slots=True)
class FileDiscovery:
    """Prometheus file_sd: JSON or YAML lists of {targets, labels}; patterns may hold wildcards.

    A file is read again when its time or size changes. One that cannot be read keeps its last good targets;
    one that is gone takes its targets along.
    """

    patterns: tuple[str, ...]
    job: str = ""
    error: str = ""
    _known: dict[str, tuple[tuple[int, int, int], tuple[Target, ...]]] = field(default_factory=dict)

    async def targets(self) -> tuple[Target, ...]:
        return self.look()

    def look(self) -> tuple[Target, ...]:
        """The same without a loop: local files of a few kilobytes need no thread."""
        errors = []
        paths = sorted({path for pattern in self.patterns for path in glob.glob(pattern)})
        if not paths:
            errors.append(f"no file matches {', '.join(self.patterns)}")
        for path in paths:
            problem = self._read(path)
            if problem:
                errors.append(problem)
        for gone in set(self._known) - set(paths):
            del self._known[gone]
        self.error = "; ".join(errors)
        return tuple(dict.fromkeys(t for path in sorted(self._known) for t in self._known[path][1]))

    def _read(self, path: str) -> str:
        """Why the file is not used as it stands, "" when it is."""
        try:
            stat = Path(path).stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if path in self._known and self._known[path][0] == mark:
                return ""
            self._known[path] = (mark, parse_file_sd(Path(path).read_text("utf-8"), path, self.job))
        except (OSError, UnicodeDecodeError, SourceError) as problem:
            return f"{problem} (keeping {len(self._known.get(path, (0, ()))[1])} targets of the last good reading)"
        return ""


def parse_file_sd(text: str, path: str, job: str = "") -> tuple[Target, ...]:
    """Targets of one file_sd document. Raises SourceError saying where it is wrong."""
    try:
        groups = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as problem:
        raise SourceError(f"{path}: not readable as file_sd: {problem}") from problem
    if groups is None and not path.endswith(".json"):
        raise SourceError(f"{path}: empty; write [] to mean no targets")
    if not isinstance(groups, list):
        raise SourceError(f"{path}: found {type(groups).__name__}, a list of {{targets, labels}} is needed")
    return tuple(
        t for number, group in enumerate(groups) for t in _group(group, f"{path}: entry {number}", job)
    )


def _group(group: Any, where: str, job: str) -> list[Target]:
    if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
        raise SourceError(f"{where}: needs a mapping with a list `targets`, found {group!r:.80}")
    labels = group.get("labels") or {}
    if not isinstance(labels, dict):
        raise SourceError(f"{where}: `labels` must be a mapping, found {labels!r:.80}")
    own = {str(k): str(v) for k, v in labels.items()}
    try:
        return [target_of(str(address), own, job) for address in group["targets"]]
    except SourceError as problem:
        raise SourceError(f"{where}: {problem}") from problem


@dataclass(slots=True)
class DnsDiscovery:
    """One target an address behind a DNS name, looked up again every refresh_s.

    name : host for A and AAAA records (then `port` is needed), or a service name for SRV (kind="SRV").
    labels : for every target; `node` is not guessed.
    """

    name: str
    port: int = 0
    kind: str = "A"
    template: Target = PLAIN
    refresh_s: float = 30.0
    timeout_s: float = 5.0
    error: str = ""
    _known: tuple[Target, ...] = ()
    _next: float = 0.0

    async def targets(self) -> tuple[Target, ...]:
        loop = asyncio.get_running_loop()
        if self._known and loop.time() < self._next:
            return self._known
        self._next = loop.time() + self.refresh_s
        try:
            async with asyncio.timeout(self.timeout_s):
                found = await self._resolve()
        except (OSError, TimeoutError, SourceError) as problem:
            why = str(problem) or f"no answer within {self.timeout_s:g} s"
            self.error = f"DNS {self.kind} {self.name}: {why} (keeping {len(self._known)} targets)"
            return self._known
        self.error = ""
        self._known = tuple(replace(self.template, address=address) for address in found)
        return self._known

    async def _resolve(self) -> Sequence[str]:
        if self.kind == "SRV":
            return await ask_srv(self.name)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        return sorted({_join(info[4][0], self.port) for info in found})


def _join(host: Any, port: int) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
