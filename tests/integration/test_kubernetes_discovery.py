"""Targets found by list and watch, on our protocol server or the real one that the environment names."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes_server import KubernetesServer
from kubernetes_server.store import KINDS
from kubernetes_town import REAL, Town, town
from test_vllm_sleep import Engine

from daemon.config import parse
from daemon.telemetry import load_catalogue
from daemon.telemetry.kubernetes_discovery import KubernetesDiscovery, Mirror, discovery_of
from daemon.telemetry.scrape import HttpScraper, ScrapeSettings

pytestmark = pytest.mark.integration

ours_only = pytest.mark.skipif(bool(REAL), reason="injects faults")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Town]:
    async with town(tmp_path) as found:
        yield found


def a_discovery(here: Town, **settings: Any) -> KubernetesDiscovery:
    pods = [
        {
            "selector": "app=chat",
            "namespace": here.space,
            "port": 8000,
            "pool_label": "pool",
            "labels": {"version": "v7"},
        },
        {"selector": "app=dcgm", "namespace": here.space, "port": 9400, "job": "dcgm"},
    ]
    tree = {"sources": {"http": {"kubernetes": {"kubeconfig": here.kubeconfig, "pods": pods} | settings}}}
    kubernetes = parse(json.dumps(tree)).sources.http
    assert kubernetes is not None
    assert kubernetes.kubernetes is not None
    return discovery_of(kubernetes.kubernetes.model_dump())


@asynccontextmanager
async def watching(discovery: KubernetesDiscovery) -> AsyncIterator[KubernetesDiscovery]:
    task = asyncio.create_task(discovery.run())
    try:
        yield discovery
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  # the other side is a server
            await asyncio.sleep(0.02)


async def test_pods_become_targets_with_the_place_of_their_node(here: Town) -> None:
    place = {
        "topology.kubernetes.io/zone": "a",
        "topology.kubernetes.io/rack": "r7",
        "network.topology.nvidia.com/leaf": "l3",
    }
    node = await here.add_node(0, **place)
    await here.add_deployment("chat", 1, pool="chat-70b")
    await here.add_pod("dcgm-x", node, 0, owner="DaemonSet", app="dcgm")
    await here.until_running(1, app="dcgm")

    discovery = a_discovery(here)
    targets = {t.address.rpartition(":")[2]: t for t in await discovery.targets()}
    await discovery.api.close()

    where = {"node": node, "rack": "r7", "leaf": "l3", "region": "a"}
    pod = (await here.pods(app="chat"))[0]["metadata"]["name"]
    assert dict(targets["8000"].labels) == where | {
        "pool": "chat-70b",
        "pod": pod,
        "version": "v7",
        "gpu_count": "4",
    }
    assert dict(targets["9400"].labels) == where
    assert targets["9400"].job == "dcgm"
    assert discovery.error == ""


async def test_what_a_pod_asks_for_is_the_size_of_its_replica_and_of_a_group_its_whole(here: Town) -> None:
    node = await here.add_node(0, gpus=64)
    await here.add_pod("cpu", node, 0, app="chat")
    group = {"metadata": {"annotations": {"leaderworkerset.sigs.k8s.io/size": "2"}}}
    await here.add_pod("big", node, 8, app="chat")
    await here.person("PATCH", here.path("pods", "big", group=""), group)
    await here.until_running(2, app="chat")

    discovery = a_discovery(here)
    found = {dict(t.labels)["pod"]: dict(t.labels).get("gpu_count") for t in await discovery.targets()}
    await discovery.api.close()

    assert found == {"cpu": None, "big": "16"}


async def test_targets_come_and_go_with_the_pods_without_reading_everything_again(here: Town) -> None:
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 1)
    async with watching(a_discovery(here)) as discovery:
        await until(lambda: discovery._pods and discovery._pods[0].things)
        one = len(await discovery.targets())
        await here.person("PATCH", here.path("deployments", "chat"), {"spec": {"replicas": 3}})
        await here.until_running(3, app="chat")
        await asyncio.sleep(0.3)
        three = len(await discovery.targets())
        await here.person("PATCH", here.path("deployments", "chat"), {"spec": {"replicas": 1}})
        await here.until_running(1, app="chat")
        await asyncio.sleep(0.3)
        again = len(await discovery.targets())

    assert (one, three, again) == (1, 3, 1)
    assert [m.listings for m in discovery._pods] == [1, 1]


@ours_only
async def test_a_watch_that_breaks_in_the_middle_of_a_line_goes_on_where_it_was(here: Town) -> None:
    assert here.server is not None
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 1)
    async with watching(a_discovery(here)) as discovery:
        await until(lambda: discovery._pods and discovery._pods[0].things)
        await asyncio.sleep(0.2)
        here.server.break_watches = 1
        await here.person("PATCH", here.path("deployments", "chat"), {"spec": {"replicas": 2}})
        await here.until_running(2, app="chat")
        await until(lambda: len(discovery._pods[0].things) == 2)
        await until(lambda: not discovery._pods[0].error)
        found = len(await discovery.targets())

    assert found == 2
    assert discovery._pods[0].listings == 1


@ours_only
async def test_what_the_server_has_forgotten_is_read_anew(here: Town) -> None:
    assert here.server is not None
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 1)
    mirror = Mirror(here.api, here.path("pods", group=""), {"labelSelector": "app=chat"})
    await mirror.refresh()
    await here.person("PATCH", here.path("deployments", "chat"), {"spec": {"replicas": 2}})
    await here.until_running(2, app="chat")
    here.server.store.forget()

    task = asyncio.create_task(mirror.run())
    await until(lambda: len(mirror.things) == 2)
    task.cancel()
    await asyncio.wait([task])

    assert mirror.listings == 2


@ours_only
async def test_bookmarks_carry_a_quiet_watch_over_what_is_forgotten(here: Town) -> None:
    """Changes of others pass by; a watch that only counted its own would find its place gone."""
    assert here.server is not None
    await here.add_node(0)
    mirror = Mirror(here.api, here.path("pods", group=""), {"labelSelector": "app=none"})
    task = asyncio.create_task(mirror.run())
    await until(lambda: mirror.listings == 1)
    await here.add_node(1)
    await until(lambda: mirror._version == str(here.server.store.version) if here.server else False)
    here.server.store.forget()
    task.cancel()
    await asyncio.wait([task])

    again = asyncio.create_task(mirror.run())
    await asyncio.sleep(0.4)
    again.cancel()
    await asyncio.wait([again])

    assert mirror.listings == 1


@ours_only
async def test_without_the_right_the_last_targets_are_kept_and_the_reason_is_said(
    here: Town, tmp_path: Path
) -> None:
    assert here.server is not None
    await here.add_node(0)
    await here.add_deployment("chat", 1)
    here.server.tokens["reader"] = ["list /nodes", "watch /nodes"]
    discovery = a_discovery(here, kubeconfig=here.server.kubeconfig(tmp_path, "reader"))

    async with watching(discovery):
        blind = await discovery.targets()
        said = discovery.error
        here.server.tokens["reader"] = ["list /nodes", "watch /nodes", "list /pods", "watch /pods"]
        await until(lambda: discovery._pods and discovery._pods[0].things)
        seen = await discovery.targets()

    assert blind == ()
    assert "403" in said
    assert "keeping 0 targets" in said
    assert len(seen) == 1


@ours_only
async def test_an_api_server_that_goes_away_takes_no_target_along(tmp_path: Path) -> None:
    server = KubernetesServer()
    async with server.running():
        kubeconfig = server.kubeconfig(tmp_path)
        here = Town(None, kubeconfig, server, "default", "n")  # type: ignore[arg-type]
        kind = next(k for k in KINDS if k.plural == "pods")
        status = {"phase": "Running", "podIP": "10.0.0.7"}
        server.store.create(
            kind,
            "default",
            {"metadata": {"name": "chat-0", "labels": {"app": "chat"}}, "spec": {}, "status": status},
        )
        discovery = a_discovery(here)
        before = await discovery.targets()
    async with watching(discovery):
        await until(lambda: discovery._pods[0].error)
        after = await discovery.targets()

    assert [t.address for t in before] == ["10.0.0.7:8000"]
    assert after == before
    assert "keeping 1 targets" in discovery.error


@ours_only
async def test_the_scraper_reads_the_pages_of_pods(here: Town) -> None:
    """From the API server to a sample of an engine, through the scraper as the service runs it."""
    async with Engine(stuck=3).up() as engine:
        await here.add_node(0)
        here.addresses["chat-0"] = "127.0.0.1"
        await here.add_deployment("chat", 1)
        discovery = a_discovery(
            here, pods=[{"selector": "app=chat", "namespace": here.space, "port": engine.port}]
        )
        scraper = HttpScraper([discovery], load_catalogue(), lambda: 1000.0, ScrapeSettings(interval_s=0.2))
        scrapes: list[Any] = []
        async with asyncio.timeout(10):
            while not [s for s in scrapes if s.layout]:
                scrapes += await scraper.read()
                await asyncio.sleep(0.05)
        await scraper.close()

    page = next(s for s in scrapes if s.layout)
    values = {s.signal: v for s, v in zip(page.layout.series, page.values, strict=True)}
    assert values["running"] == 3.0
    assert ("pod", "chat-0") in [(f.key, f.value) for f in page.layout.facts]
