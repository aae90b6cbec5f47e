"""Three real etcd members and real probes: N+1 is what is left beyond what is needed, not what answers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from conftest import Start, wait_for_port

from daemon.clock import wall_clock
from daemon.frame import FrameBuilder
from daemon.model import Frames, Target
from daemon.outlook import Outlook
from daemon.policy import Policy
from daemon.posture import Day, Score, assess
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.discovery import Static
from daemon.telemetry.scrape import HttpScraper, ScrapeSettings
from daemon.topology import picture

pytestmark = pytest.mark.integration
NAN = float("nan")


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Members:
    """Three etcd members that vote."""

    def __init__(self, folder: Path, etcd: str, start: Start) -> None:
        ports = free_ports(6)
        self.clients, peers = ports[:3], ports[3:]
        cluster = ",".join(f"m{k}=http://127.0.0.1:{port}" for k, port in enumerate(peers))
        self.processes: list[subprocess.Popen[bytes]] = []
        for k, (client, peer) in enumerate(zip(self.clients, peers, strict=True)):
            self.processes.append(
                start([
                    etcd, "--name", f"m{k}", "--data-dir", str(folder / f"m{k}"),
                    "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls", f"http://127.0.0.1:{client}",
                    "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                    "--initial-cluster", cluster, "--initial-cluster-state", "new", "--heartbeat-interval", "50",
                    "--election-timeout", "500", "--log-level", "error",
                ])
            )  # fmt: skip
        for client, process in zip(self.clients, self.processes, strict=True):
            wait_for_port(client, process)

    def stop(self, number: int) -> None:
        self.processes[number].terminate()
        self.processes[number].wait(10)


class Watch:
    """Scrapes the targets as the daemon does; what was known of one that has fallen silent stays known."""

    def __init__(self, *targets: Target) -> None:
        pace = ScrapeSettings(interval_s=0.2, timeout_s=3.0)
        self.source = HttpScraper([Static(targets)], load_catalogue(), wall_clock, pace)
        self.builder = FrameBuilder(Policy())
        self.wanted = len(targets)

    async def until(self, is_so: Callable[[Score], bool]) -> tuple[Score, Frames]:
        """The first look at which it is so, once every target has answered or failed."""
        async with asyncio.timeout(30):
            async for frames in self._looks():
                found = redundancy(frames)
                if len(frames["target"].entities) == self.wanted and is_so(found):
                    return found, frames
        raise AssertionError("never so")

    async def _looks(self) -> AsyncIterator[Frames]:
        while True:
            for scrape in await self.source.read():
                self.builder.absorb(scrape)
            yield self.builder.build(wall_clock())
            await asyncio.sleep(0.2)


def redundancy(frames: Frames) -> Score:
    outlook = Outlook(frames.at, NAN, {}, 0.0, NAN)
    return next(
        s for s in assess(Day(), frames, picture(frames), Policy(), outlook) if s.item == "redundancy"
    )


async def test_three_voting_members_are_n_plus_one_two_are_not_and_one_serves_nobody(
    tmp_path: Path, binary: Callable[[str], str], start: Start
) -> None:
    members = Members(tmp_path, binary("etcd"), start)
    etcd = tuple(Target(f"127.0.0.1:{p}") for p in members.clients)

    watch = Watch(*etcd)

    whole, _ = await watch.until(lambda s: "3 of 3 etcd" in s.missing)
    members.stop(2)
    two, _ = await watch.until(lambda s: s.state == "fail")
    members.stop(1)
    # The last one still answers its page, and has no leader.
    one, alone = await watch.until(lambda s: "0 of 3 etcd" in s.evidence)
    await watch.source.close()

    assert whole.state == "unknown"
    assert "no target of gateway or storage is known" in whole.missing
    assert (two.value, two.evidence) == (1.0, "2 of 3 etcd work; nothing is seen of gateway or storage")
    assert one.value == 0.0
    assert sorted(alone["target"].column("up").tolist()) == [0.0, 0.0, 1.0]


async def test_a_probe_that_fails_counts_for_nothing_though_its_exporter_answers(
    tmp_path: Path, binary: Callable[[str], str], start: Start
) -> None:
    web, gone, probes = free_ports(3)
    (tmp_path / "blackbox.yml").write_text("modules: {door: {prober: http, timeout: 2s}}\n")
    site = start(["python3", "-m", "http.server", str(web), "--bind", "127.0.0.1"])
    box = start(
        [
            binary("prometheus-blackbox-exporter"),
            f"--config.file={tmp_path}/blackbox.yml",
            f"--web.listen-address=127.0.0.1:{probes}",
        ]
    )
    wait_for_port(web, site)
    wait_for_port(probes, box)

    def probe(port: int) -> Target:
        path = f"/probe?module=door&target=http://127.0.0.1:{port}/"
        return Target(f"127.0.0.1:{probes}", path=path, labels=(("part", "gateway"),))

    watch = Watch(probe(web), probe(gone))
    found, frames = await watch.until(lambda s: s.state == "fail")
    await watch.source.close()

    assert frames["target"].column("up").tolist() == [1.0, 1.0]
    assert (found.state, found.value) == ("fail", 1.0)
    assert found.evidence.startswith("1 of 2 gateway work")
