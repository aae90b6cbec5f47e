"""The whole loop on real parts: live HAProxy, live engine-shaped servers, the daemon as a process, real faults."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actions.backends.haproxy import Server, servers_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

Binary = Callable[[str], str]
FreePort = Callable[[], int]
PROGRAM = Path(__file__).with_name("engine_program.py")
SCRAPE_S = 2.0
WITHIN_S = 2 * SCRAPE_S + 1.0
RATE = 40.0
TIMEOUT_S = 8.0


@dataclass
class Loop:
    """Three engines, one HAProxy, one daemon, and clients that never pause."""

    folder: Path
    ports: tuple[int, ...]
    front: int
    stats: int
    web: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    failed: list[tuple[float, str]] = field(default_factory=list)
    served: int = 0

    def run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path.cwd())

    def start(self, haproxy: str) -> None:
        for index, port in enumerate(self.ports):
            self.run(f"e{index}", sys.executable, str(PROGRAM), str(port))
        servers = "\n".join(f"  server e{i} 127.0.0.1:{p} check" for i, p in enumerate(self.ports))
        (self.folder / "h.cfg").write_text(
            f"global\n  stats socket {self.folder}/h.sock mode 600 level admin\n"
            "defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n"
            "  default-server weight 100 inter 5s\n"
            f"frontend front\n  bind 127.0.0.1:{self.front}\n  default_backend chat\n"
            f"frontend stats\n  bind 127.0.0.1:{self.stats}\n"
            "  http-request use-service prometheus-exporter if { path /metrics }\n"
            f"backend chat\n  balance roundrobin\n  option redispatch\n  retry-on conn-failure\n{servers}\n"
        )
        self.run("haproxy", haproxy, "-f", str(self.folder / "h.cfg"))
        engines = json.dumps([f"127.0.0.1:{p}" for p in self.ports])
        names = json.dumps({f"e{i}": f"127.0.0.1:{p}" for i, p in enumerate(self.ports)})
        (self.folder / "tidewarden.yaml").write_text(
            f"cluster: loop\nstate_dir: {self.folder}/state\nmode: auto\n"
            "sources:\n  http:\n"
            f"    interval: {SCRAPE_S}s\n    timeout: 1500ms\n    engines: {names}\n"
            f"    static:\n      - {{targets: {engines}, labels: {{pool: chat}}}}\n"
            f"      - {{targets: ['127.0.0.1:{self.stats}'], job: haproxy}}\n"
            "pools: [{name: chat}]\n"
            f"backends:\n  lb: {{kind: haproxy, processes: [{{socket: {self.folder}/h.sock}}], engines: {names}}}\n"
            "actions: {reroute: lb}\n"
            f"web: {{listen: '127.0.0.1:{self.web}'}}\n"
            f"tuning: {{tick: {SCRAPE_S}s, stale: 10s}}\n"
        )

    def start_daemon(self) -> None:
        self.run("daemon", sys.executable, "-m", "daemon", "run", "-c", str(self.folder / "tidewarden.yaml"))

    def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- the world ---------------------------------------------------------------------------------------

    async def socket(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(f"{self.folder}/h.sock")
        writer.write(command.encode() + b"\n")
        answer = (await reader.read()).decode()
        writer.close()
        return answer

    async def servers(self) -> list[Server]:
        return servers_of(await self.socket("show servers state"))

    async def fault(self, engine: int, kind: str) -> None:
        if kind in ("killed", "frozen"):
            self.processes[f"e{engine}"].send_signal(signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
            return
        url = f"http://127.0.0.1:{self.ports[engine]}/fault"
        async with aiohttp.ClientSession() as session, session.post(url, params={"kind": kind}) as answer:
            assert answer.status == 200

    async def api(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.web}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.json()

    async def until(self, check: Callable[[], Any], within_s: float) -> float:
        """Seconds until `check` holds. Fails the test when it does not."""
        begun = time.monotonic()
        while time.monotonic() - begun < within_s:
            with contextlib.suppress(OSError, aiohttp.ClientError):
                if await check():
                    return time.monotonic() - begun
            await asyncio.sleep(0.05)
        said = (self.folder / "daemon.log").read_text() if (self.folder / "daemon.log").exists() else ""
        pytest.fail(f"did not happen within {within_s:g} s; the daemon said:\n{said[-3000:]}")

    async def is_lowered(self, engine: int) -> bool:
        return (await self.servers())[engine].weight < 100

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """RATE requests a second, whether or not earlier ones were answered."""
        url = f"http://127.0.0.1:{self.front}/v1/completions"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def request() -> None:
                begun = time.monotonic()
                try:
                    async with session.post(url) as answer:
                        await answer.read()
                        if answer.status == 200:
                            self.served += 1
                        else:
                            self.failed.append((begun, str(answer.status)))
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.failed.append((begun, repr(error)))

            async def clients() -> None:
                async with asyncio.TaskGroup() as group:
                    while True:
                        group.create_task(request())
                        await asyncio.sleep(1 / RATE)

            task = asyncio.create_task(clients())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def loop(tmp_path: Path, binary: Binary, free_port: FreePort) -> AsyncIterator[Loop]:
    loop = Loop(tmp_path, tuple(free_port() for _ in range(3)), free_port(), free_port(), free_port())
    loop.start(binary("haproxy"))

    async def is_serving() -> bool:
        url = f"http://127.0.0.1:{loop.front}/v1/completions"
        async with aiohttp.ClientSession() as session:
            for _ in range(6):
                async with session.post(url) as answer:
                    if answer.status != 200:
                        return False
        return True

    async def sees_engines() -> bool:
        frames = await loop.api("/api/v1/targets")
        return bool(frames["counts"].get("up") == 4)

    try:
        await loop.until(is_serving, 15)
        loop.start_daemon()
        async with loop.load():
            await loop.until(sees_engines, 40)
            yield loop
    finally:
        loop.stop()


@pytest.mark.parametrize("kind", ["killed", "frozen", "hung"])
async def test_an_engine_that_stopped_serving_gets_no_more_requests(loop: Loop, kind: str) -> None:
    await asyncio.sleep(10)
    assert loop.failed == []
    begun = time.monotonic()

    await loop.fault(0, kind)
    try:
        took_s = await loop.until(lambda: loop.is_lowered(0), 25)
    finally:
        print(json.dumps(await loop.api("/api/v1/incidents"))[:3000])
        print(json.dumps(await loop.api("/api/v1/actions"))[:3000])
    moved = time.monotonic()
    await asyncio.sleep(TIMEOUT_S + 1)

    lost = [(round(at - begun, 2), why) for at, why in loop.failed]
    print(
        f"{kind}: weight moved after {took_s:.2f} s, {len(lost)} of {loop.served} requests lost: {lost[:3]}"
    )
    assert (await loop.servers())[0].weight == 0
    assert [at for at, _ in loop.failed if at > moved + 0.5] == []
    assert took_s <= WITHIN_S
