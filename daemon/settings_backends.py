"""Settings of the systems that carry actions out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from daemon.units import Duration, Tree


class CommandBackend(Tree):
    kind: Literal["command"]
    argv: list[str] = Field(min_length=1)
    """The program with its arguments; never run through a shell."""
    timeout: Duration = 30.0
    env: dict[str, str] = {}


class HAProxyProcess(Tree):
    socket: str
    """Path of a stats socket with level admin, or ADDRESS:PORT."""
    state_path: str = ""
    """Where a reload of this process finds the weights we set; its server-state-file. Empty = a reload forgets them."""


class HAProxyBackend(Tree):
    kind: Literal["haproxy"]
    processes: list[HAProxyProcess] = Field(min_length=1)
    """Every HAProxy process that serves the route."""
    engines: dict[str, str] = {}
    """Server name, or BACKEND/SERVER -> engine, where neither name nor address of the server is the engine's."""
    backends: list[str] = []
    """HAProxy backends that may be touched; empty = all."""
    zero: Literal["weight", "drain", "maint"] = "weight"
    """How a weight of 0 is set; drain and maint show on the status page."""
    timeout: Duration = 2.0


class NginxBackend(Tree):
    kind: Literal["nginx"]
    files: list[str] = Field(min_length=1)
    """Include files with the server lines of an upstream; nothing but their weights is touched."""
    test: list[str] = Field(default=["nginx", "-t"], min_length=1)
    """Run before every reload; what it refuses is taken back."""
    reload: list[str] = Field(default=["nginx", "-s", "reload"], min_length=1)
    """Makes nginx read the files."""
    pid_path: str = "/run/nginx.pid"
    """Of the master process: its workers show whether a reload has taken place."""
    engines: dict[str, str] = {}
    """Server address -> engine, where it is not the engine's own."""
    timeout: Duration = 10.0


BackendTree = CommandBackend | HAProxyBackend | NginxBackend
