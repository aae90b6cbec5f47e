"""The simulated exporters answer over real sockets as real ones do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from daemon.model import Entity, Step, Target, Verb
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.discovery import parse_file_sd
from daemon.telemetry.exposition import Page
from simulator import offline
from simulator.faults import Fault
from simulator.http import WorldServer
from simulator.spec import WorldSpec
from simulator.world import World, default_spec

EPOCH = 1_754_300_000.0


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def world() -> World:
    return World(WorldSpec(nodes=2, pools=default_spec(16).pools, telemetry_loss=0.0), 1, EPOCH)


async def get(address: str, timeout_s: float = 5.0) -> tuple[int, str]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"http://{address}/metrics") as answer,
    ):
        return answer.status, await answer.text()


async def test_every_listed_target_answers_with_its_page(world: World, tmp_path: Path) -> None:
    clock = Hand()
    async with WorldServer(world, clock, tmp_path / "sd.json") as server:
        clock.now += 60.0
        listed = parse_file_sd((tmp_path / "sd.json").read_text(), "sd.json")
        assert len(listed) == len(world.targets()) + 1
        for target in listed:
            status, page = await get(target.address)
            assert status == 200
            instance = dict(target.labels)["instance"]
            assert page == (offline.page(world) if instance == offline.TARGET else world.exposition(instance))
            assert server.address_of(instance) == target.address
    assert world.at == EPOCH + 60.0


async def test_list_follows_the_fleet(world: World, tmp_path: Path) -> None:
    clock = Hand()
    async with WorldServer(world, clock, tmp_path / "sd.json") as server:
        before = json.loads((tmp_path / "sd.json").read_text())
        await world.apply(Step("s1", Verb.SCALE, Entity("pool", "chat"), 3, "test"))
        await server.refresh()
        after = json.loads((tmp_path / "sd.json").read_text())
        new = {e["targets"][0] for e in after} - {e["targets"][0] for e in before}

        assert len(new) == 1
        with pytest.raises(aiohttp.ClientError):
            await get(new.pop())  # it still loads its weights


async def test_failing_exporters_fail_as_real_ones(world: World, tmp_path: Path) -> None:
    clock = Hand()
    world.inject(Fault("exporter-outage", Entity("target", "n00:9400"), EPOCH + 10.0, 600.0, detail="error"))
    world.inject(Fault("exporter-outage", Entity("target", "n01:9400"), EPOCH + 10.0, 600.0, detail="hang"))
    async with WorldServer(world, clock, tmp_path / "sd.json") as server:
        clock.now += 30.0

        assert (await get(server.address_of("n00:9400")))[0] == 500
        with pytest.raises(asyncio.TimeoutError):
            await get(server.address_of("n01:9400"), timeout_s=0.2)


async def test_kernel_messages_go_to_the_nodes_log(world: World, tmp_path: Path) -> None:
    clock = Hand()
    world.inject(Fault("xid79", Entity("gpu", "n01/gpu0"), EPOCH + 10.0, 600.0))
    async with WorldServer(world, clock, tmp_path / "sd.json", kernel_logs=tmp_path) as server:
        clock.now += 30.0
        await server.refresh()

    assert "NVRM: Xid (PCI:0000:0f:00): 79" in (tmp_path / "n01.log").read_text()
    assert (tmp_path / "n00.log").read_text() == ""


async def test_the_page_of_offline_jobs_says_what_the_reading_says(world: World) -> None:
    await world.apply(Step("s1", Verb.LEND, Entity("node", "n01"), 1, "test", until=world.at + 9e3))
    world.advance(world.at + 2000.0)
    catalogue = load_catalogue()

    reading = Page(catalogue.wanted, catalogue.keep).parse(offline.page(world).encode())
    identity = catalogue.identify(Target(offline.TARGET), reading.keys)
    read = offline.scrape(world)

    assert read.layout is not None
    assert read.values is not None
    told = {
        (s.entity, s.signal): v
        for s, v in zip(identity.layout.series, identity.values(reading.values), strict=True)
    }
    assert told == {(s.entity, s.signal): v for s, v in zip(read.layout.series, read.values, strict=True)}
    assert {f for f in read.layout.facts if f.entity.kind == "job"} <= set(identity.layout.facts)
