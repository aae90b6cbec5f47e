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
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from daemon import service
from daemon.cli.first_round import Row, first_round
from daemon.config import ConfigError, load
from daemon.listening import holder_of
from daemon.settings import Settings
from daemon.store import LOCK

PACKAGES = ("aiohttp", "aiomqtt", "click", "jinja2", "msgspec", "numpy", "nvidia-ml-py", "prometheus-client",
            "pydantic", "pyyaml", "rich", "scikit-learn", "structlog")  # fmt: skip
PYTHON_MIN = (3, 11)
FREE_FAIL, FREE_WARN = 100e6, 2e9
"""Bytes. The journal of a month of 1,000 GPUs is a few hundred megabytes (judgement)."""
UNSYNCHRONISED = 5
"""What adjtimex(2) returns when nothing keeps the clock (TIME_ERROR)."""


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
    return [*rows, *asyncio.run(first_round(settings))]


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
