"""The service as a process on a Kubernetes cluster: pods found by watch, a killed engine out of the selector."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from kubernetes_town import REAL, Town, town
from test_service_process import Service
from test_vllm_sleep import Engine

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(REAL), reason="its pods answer on loopback addresses"),
]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Town]:
    async with town(tmp_path) as found:
        yield found


async def until(is_so: Callable[[], bool], within_s: float = 30.0) -> float:
    begun = time.monotonic()
    async with asyncio.timeout(within_s):
        while True:
            # A daemon that just begins listens to nobody yet.
            with suppress(OSError):
                if await asyncio.to_thread(is_so):
                    break
            await asyncio.sleep(0.05)
    return time.monotonic() - begun


async def test_a_killed_engine_leaves_the_selector(
    here: Town, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    server = here.server
    assert server is not None
    port = free_port()
    hosts = {f"chat-{i}": f"127.0.0.{i + 2}" for i in range(3)}
    here.addresses.update(hosts)
    await here.add_node(0, gpus=64, **{"topology.kubernetes.io/rack": "r7"})
    async with AsyncExitStack() as stack:
        kills = {}
        for name, host in hosts.items():
            own = await stack.enter_async_context(AsyncExitStack())
            await own.enter_async_context(Engine(port=port, host=host).up())
            kills[name] = own
        await here.add_deployment("chat", 3, serving="true")
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "chat"},
            "spec": {"selector": {"app": "chat", "serving": "true"}},
        }
        await here.person("POST", here.path("services", group=""), service)
        daemon = Service(
            tmp_path,
            f"  http:\n    interval: 500ms\n    timeout: 400ms\n    kubernetes:\n      kubeconfig: {here.kubeconfig}\n"
            f"      pods: [{{selector: app=chat, namespace: {here.space}, port: {port}, pool_label: app}}]",
            f"mode: auto\npools: [{{name: chat}}]\nbackends:\n  kube: {{kind: kubernetes, kubeconfig: {here.kubeconfig}, namespace: {here.space}, label: serving}}\n"
            "actions: {reroute: kube}\n",
        )
        daemon.start()
        try:
            await until(lambda: daemon.get("/api/v1/targets")["counts"].get("up") == 3)
            nodes = daemon.get("/api/v1/nodes")["nodes"]
            await kills["chat-1"].aclose()

            def serving() -> dict[str, str]:
                return {
                    p["metadata"]["name"]: p["metadata"]["labels"]["serving"]
                    for p in server.store.all("pods")
                }

            took_s = await until(lambda: serving()["chat-1"] == "false")
            others = serving()
            journal = daemon.get("/api/v1/actions")
        finally:
            code, _, said = await asyncio.to_thread(daemon.end)

    assert code == 0
    assert "sesame" not in said + json.dumps(journal)
    assert [n["name"] for n in nodes] == [f"{here.prefix}-0"]
    assert others == {"chat-0": "true", "chat-1": "false", "chat-2": "true"}
    assert took_s < 25.0
    events = await here.events("Rerouted")
    assert {e["regarding"]["name"] for e in events} == {"chat-1"}
    print(f"killed to out of the selector: {took_s:.1f} s")
