"""Follows the kernel's log for the sentences that mean a fault."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.clock import Clock
from daemon.model import NAN, Entity, Event, Scrape, SourceError

_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-9a-fA-F])?)[^)]*\): (\d+)(?:, (.*))?"
)
_APP = re.compile(r"\bname=([^,\s]+)")
_OOM_APP = re.compile(r"(?:Killed process \d+ \(([^)]+)\)|task=([^,\s]+))")
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("oom_kill", re.compile(r"Out of memory: Kill|oom-kill:|Memory cgroup out of memory: Kill")),
    ("hung_task", re.compile(r"INFO: task (\S+?):\d+ blocked for more than \d+ seconds")),
    (
        "fs_readonly",
        re.compile(
            r"[Rr]emounting filesystem read-only|Remounting (?:file)?system read-?only|shutting down filesystem"
        ),
    ),
    (
        "io_error",
        re.compile(
            r"I/O error|Medium Error|critical (?:medium|target) error|EXT4-fs error|nvme .*(?:timeout|controller is down)"
        ),
    ),
    ("mce", re.compile(r"\[Hardware Error\]|mce: .*(?:Machine check|Hardware Error)|EDAC .* UE ")),
    (
        "nvlink",
        re.compile(r"NVRM: .*NVLink.*(?:fatal|error|fail)|nvidia-nvswitch.*(?:Fatal|SXid)", re.IGNORECASE),
    ),
    (
        "reboot",
        re.compile(
            r"reboot: (?:Restarting system|Power down)|systemd-shutdown\[\d+\]: |systemd\[1\]: Shutting down"
        ),
    ),
    ("link_down", re.compile(r"(?:mlx\d_(?:core|ib)|bond|\S+): .*[Ll]ink (?:is )?[Dd]own|NIC Link is Down")),
)
_KMSG = re.compile(r"(\d+),(\d+),(\d+),[^;]*;(.*)", re.DOTALL)
_IFACE = re.compile(r"(\S+): (?:NIC )?[Ll]ink (?:is )?[Dd]own")

CHUNK = 1 << 16
READ_MAX = 64 * CHUNK
"""Bytes of one read: what a log storm adds beyond waits for the next. Judgement: 4 MiB a tick."""
POLL_S = 0.5
"""How often the log is looked at between two ticks: a plain file cannot be waited for."""


def pci_key(text: str) -> str:
    """One form for the driver's and the exporters' spellings of a PCI address.

    >>> pci_key("00000000:3B:00.0"), pci_key("0000:3b:00"), pci_key("PCI:0000:3B:00")
    ('0000:3b:00', '0000:3b:00', '0000:3b:00')
    """
    parts = text.lower().removeprefix("pci:").split(".")[0].split(":")
    return ":".join([parts[0][-4:].rjust(4, "0"), *parts[1:]])


def read_sentence(
    text: str, at: float, node: str, gpus: Mapping[str, str], port_of: Callable[[str], str] = str
) -> Event | None:
    """The event one log line tells of, None for the others.

    port_of : network device -> port name within the node, "" for devices whose links do not matter.
    gpus : pci_key -> gpu name, from the facts `pci`. A GPU that is not in it is blamed on its node, address in the text.
    """
    found = _XID.search(text)
    if found:
        pci, code, rest = found.groups()
        gpu = gpus.get(pci_key(pci))
        entity = Entity("gpu", gpu) if gpu else Entity("node", node)
        app = _APP.search(rest or "")
        name = app.group(1) if app and app.group(1) not in ("<unknown>", "'<unknown>'") else ""
        return Event(at, entity, "xid", float(code), "kernel_log", text.strip(), name)
    for kind, pattern in _PATTERNS:
        match = pattern.search(text)
        if match:
            blamed = _blamed(kind, text, node, port_of)
            program = _app_of(kind, text, match)
            return blamed and Event(at, blamed, kind, NAN, "kernel_log", text.strip(), program)
    return None


def _app_of(kind: str, text: str, match: re.Match[str]) -> str:
    if kind == "hung_task":
        return match.group(1)
    found = _OOM_APP.search(text) if kind == "oom_kill" else None
    return (found.group(1) or found.group(2)) if found else ""


def _blamed(kind: str, text: str, node: str, port_of: Callable[[str], str]) -> Entity | None:
    found = _IFACE.search(text) if kind == "link_down" else None
    if not found:
        return Entity("node", node)
    port = port_of(found.group(1))
    return Entity("port", f"{node}/{port}") if port else None


@dataclass(slots=True)
class KernelLog:
    """A Source over /dev/kmsg or a log file; only lines written after the start count.

    gpus : asked at every read for pci_key -> gpu name. lines_lost : records the kernel overwrote before they were read.
    """

    path: str
    node: str
    clock: Clock
    gpus: Callable[[], Mapping[str, str]] = dict
    port_of: Callable[[str], str] = str
    lines_lost: int = 0
    _file: int = -1
    _inode: int = -1
    _rest: bytes = b""
    _is_kmsg: bool = field(default=False)
    _heard: list[Event] = field(default_factory=list)
    _trouble: str = ""

    def __post_init__(self) -> None:
        self._open(at_end=True)

    def _open(self, at_end: bool) -> None:
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as problem:
            raise SourceError(
                f"kernel log {self.path}: {problem.strerror}; give the service read access (group adm, "
                "capability CAP_SYSLOG for /dev/kmsg) or name another file"
            ) from problem
        found = os.fstat(self._file)
        self._is_kmsg = stat.S_ISCHR(found.st_mode)
        self._inode = found.st_ino
        if at_end:
            os.lseek(self._file, 0, os.SEEK_END)

    async def read(self) -> Sequence[Scrape]:
        """One Scrape without values when something happened, none otherwise; non-blocking reads, no thread."""
        self._take()
        at, target = self.clock(), f"kernel_log:{self.node}"
        if self._trouble:
            return [Scrape(target, at, None, None, error=self._trouble)]
        events, self._heard = tuple(self._heard), []
        return [Scrape(target, at, None, None, events)] if events else []

    async def changed(self) -> None:
        """Return once there is an event to read: a line that means nothing wakes nobody."""
        while not self._heard:
            await asyncio.sleep(POLL_S)
            self._take()

    def _take(self) -> None:
        """Read what was written since the last time and keep the events of it."""
        at = self.clock()
        try:
            lines = self._records() if self._is_kmsg else self._lines()
        except OSError as problem:
            self._trouble = f"{self.path}: {problem.strerror}"
            return
        self._trouble = ""
        if lines:
            gpus = self.gpus()
            found = (read_sentence(line, at, self.node, gpus, self.port_of) for line in lines)
            self._heard += [event for event in found if event]

    def _records(self) -> list[str]:
        found: list[str] = []
        while len(found) < 10_000:
            try:
                raw = os.read(self._file, CHUNK)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno != errno.EPIPE:  # the ring has lapped us; the next read goes on
                    raise
                self.lines_lost += 1
                continue
            match = _KMSG.match(raw.decode("utf-8", "replace"))
            if match:
                found.append(match.group(4).split("\n")[0])
        return found

    def _lines(self) -> list[str]:
        data = self._rest + self._drain()
        if self._rotated():
            data += self._drain()
        *lines, self._rest = data.split(b"\n")
        if len(self._rest) > CHUNK:
            self._rest = b""  # no line is that long; do not grow without bound
        return [line.decode("utf-8", "replace") for line in lines]

    def _drain(self) -> bytes:
        parts: list[bytes] = []
        while sum(map(len, parts)) < READ_MAX and (part := os.read(self._file, CHUNK)):
            parts.append(part)
        return b"".join(parts)

    def _rotated(self) -> bool:
        """Whether the path is another file by now, or was cut short in place; then it is read from its start."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False  # between rename and create: the old file is still open
        if found.st_ino != self._inode:
            os.close(self._file)
            self._open(at_end=False)
            return True
        if found.st_size < os.lseek(self._file, 0, os.SEEK_CUR):
            os.lseek(self._file, 0, os.SEEK_SET)
            return True
        return False

    async def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
