"""The exporters of a simulated cluster over real HTTP, one listening port a target."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import TracebackType

from aiohttp import web

from daemon.clock import Clock
from daemon.model import Event, Target
from simulator import offline
from simulator.telemetry import Unreachable
from simulator.world import World

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REFRESH_S = 5.0
_HANG_S = 120.0


class WorldServer:
    """Serves every target on 127.0.0.1 and writes a file_sd JSON file that lists them. Use as `async with`.

    clock : wall time of the world, e.g. daemon.clock.loop_clock of a rated loop. grain_s : readings closer together
    than this see the same instant. kernel_logs : folder in which NODE.log holds the kernel messages of a node,
    None = nowhere.
    """

    def __init__(
        self,
        world: World,
        clock: Clock,
        sd_file: Path,
        *,
        grain_s: float = 1.0,
        kernel_logs: Path | None = None,
    ) -> None:
        self._world, self._clock, self._grain_s = world, clock, grain_s
        self._sd_file, self._kernel_logs, self._logged = sd_file, kernel_logs, len(world.events)
        self._unwritten: list[Event] = []
        self._handler = web.Server(self._answer, access_log=None)
        self._listeners: dict[str, asyncio.Server] = {}
        self._target_of: dict[int, str] = {}
        self._listed: tuple[Target, ...] = ()
        self._known: tuple[tuple[Target, ...] | None, tuple[Target, ...]] = (None, ())
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> WorldServer:
        for node in self._world.wiring.nodes if self._kernel_logs is not None else ():
            assert self._kernel_logs is not None
            (self._kernel_logs / f"{node}.log").touch()
        await self.refresh()
        self._task = asyncio.create_task(self._keep_fresh(), name="simulated cluster")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for listener in self._listeners.values():
            listener.close()
        # waiting answers of hung targets end with their connections
        await self._handler.shutdown(timeout=0.1)

    def address_of(self, target: str) -> str:
        """127.0.0.1:port at which a target listens. Raises KeyError for one that does not exist."""
        ports = {name: port for port, name in self._target_of.items()}
        return f"127.0.0.1:{ports[target]}"

    async def refresh(self) -> None:
        """Let the world live until now, open and close ports as targets come and go, write the list of targets."""
        self._live()
        targets = self._targets()
        if targets is not self._listed:
            wanted = {target.address for target in targets}
            for name in [n for n in self._listeners if n not in wanted]:
                self._close(name)
            for target in targets:
                if target.address not in self._listeners:
                    await self._open(target.address)
            self._write(targets)
            self._listed = targets
        self._write_kernel_logs()

    def _targets(self) -> tuple[Target, ...]:
        """What the world shows, and the list of offline jobs; the same object until replicas come or go."""
        known = self._world.targets()
        if self._known[0] is not known:
            labels = (("instance", offline.TARGET), ("job", "jobs"))
            self._known = (known, (*known, Target(offline.TARGET, "jobs", labels=labels)))
        return self._known[1]

    def _live(self) -> None:
        now = self._clock()
        if now - self._world.at >= self._grain_s:
            self._world.advance(now)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self.refresh()

    async def _open(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self._handler, "127.0.0.1", 0)
        self._listeners[name] = listener
        self._target_of[listener.sockets[0].getsockname()[1]] = name

    def _close(self, name: str) -> None:
        listener = self._listeners.pop(name)
        del self._target_of[listener.sockets[0].getsockname()[1]]
        listener.close()

    def _write(self, targets: tuple[Target, ...]) -> None:
        entries = [
            {"targets": [self.address_of(target.address)], "labels": dict(target.labels)}
            for target in targets
        ]
        partial = self._sd_file.with_suffix(".partial")
        partial.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        # a reader sees the old list or the new one, never half of one
        os.replace(partial, self._sd_file)

    def _write_kernel_logs(self) -> None:
        """What has happened since the last time. By position and not by time: two events may share an instant."""
        world = self._world
        self._unwritten += world.events[self._logged :]
        self._logged = len(world.events)
        due = [event for event in self._unwritten if event.at <= world.at]
        self._unwritten = [event for event in self._unwritten if event.at > world.at]
        for event in due if self._kernel_logs is not None else ():
            assert self._kernel_logs is not None
            path = self._kernel_logs / f"{event.entity.name.split('/')[0]}.log"
            with path.open("a", encoding="utf-8") as log:
                log.write(f"[{event.at - world.epoch:12.6f}] {event.text}\n")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(status=404, text="only /metrics is served\n")
        transport = request.transport
        port = transport.get_extra_info("sockname")[1] if transport is not None else 0
        self._live()
        target = self._target_of.get(port, "")
        try:
            if not target or self._world.exporters.misses():
                raise Unreachable(target, "loss")
            text = offline.page(self._world) if target == offline.TARGET else self._world.exposition(target)
            return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})
        except Unreachable as trouble:
            return await self._refuse(request, trouble.status)

    async def _refuse(self, request: web.BaseRequest, status: str) -> web.StreamResponse:
        if status == "hang":
            await asyncio.sleep(_HANG_S)
        if status != "error" and request.transport is not None:
            request.transport.abort()
        return web.Response(status=500, text="the exporter failed\n")
