"""The Kubernetes backend when the API server, the network or the people around it misbehave: on our protocol server only."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kubernetes_server import Fault, KubernetesServer
from kubernetes_server.store import KINDS
from kubernetes_town import OWNER, Town, a_step, hpa, town

from actions import VERBS
from daemon.act import Executor, Patience
from daemon.fleet import Fleet
from daemon.guard import Guarded, judge
from daemon.model import Check, Frame, Frames, Hopeless, Result, TryAgain, Verb
from daemon.policy import Mode, Policy, PoolPolicy
from daemon.record import Record
from daemon.topology import Topology

pytestmark = pytest.mark.integration

TOKEN = "sesame-token-1234567890"


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr("kubernetes_town.REAL", "")
    async with town(tmp_path) as found:
        yield found


def server_of(here: Town) -> KubernetesServer:
    assert here.server is not None
    return here.server


@pytest.mark.parametrize(
    ("fault", "result", "said"),
    [
        (Fault("PATCH", "/nodes/", 500, times=2), Result.DONE, "cordoned"),
        (Fault("PATCH", "/nodes/", 429, times=1, retry_after=1), Result.DONE, "cordoned"),
        (Fault("PATCH", "/nodes/", 409, times=2), Result.DONE, "cordoned"),
        (Fault("PATCH", "/nodes/", 409, times=99), Result.UNKNOWN, "changed by others without a pause"),
        (Fault("PATCH", "/nodes/", 0, times=1), Result.DONE, "cordoned"),
        (Fault("PATCH", "/nodes/", times=1, after=True), Result.DONE, "cordoned"),
        (Fault("GET", "/nodes/", 503, times=1), Result.DONE, "cordoned"),
        (Fault("PATCH", "/nodes/", 422, message="spec.x: Invalid value"), Result.REFUSED, "refused PATCH"),
        (Fault("PATCH", "/nodes/", 403, message="not you"), Result.REFUSED, "config check --live"),
        (Fault("*", "/nodes/", 401, times=99, message="Unauthorized"), Result.REFUSED, "renew the token"),
        (Fault("*", "/nodes/", 503, times=99), Result.UNKNOWN, "failed with 503"),
    ],
    ids=lambda value: (
        f"{value.method}-{value.code}x{value.times}{'-after' * value.after}"
        if isinstance(value, Fault)
        else ""
    ),
)
async def test_every_trouble_ends_in_one_change_or_in_a_sentence(
    here: Town, fault: Fault, result: Result, said: str
) -> None:
    name = await here.add_node(0)
    server = server_of(here)
    server.requests.clear()
    server.faults.append(replace(fault))

    outcome = await here.run(
        a_step(Verb.ISOLATE, name, deadline_s=2.0 if result is Result.UNKNOWN else 10.0),
        evict="none",
        events=False,
    )
    server.faults.clear()

    assert outcome.result is result, outcome.detail
    assert said in outcome.detail
    assert bool((await here.node(name))["spec"].get("unschedulable")) is (result is Result.DONE)
    managers = [m["manager"] for m in (await here.node(name))["metadata"]["managedFields"]]
    assert managers.count("tidewarden") == int(result is Result.DONE)


async def test_a_slow_answer_ends_with_the_time_limit_and_the_world_decides(here: Town) -> None:
    name = await here.add_node(0)
    server_of(here).faults.append(Fault("PATCH", "/nodes/", times=1, delay_s=0.6))

    outcome = await here.run(a_step(Verb.ISOLATE, name), timeout="0.2s", evict="none", events=False)

    assert outcome.result is Result.DONE, outcome.detail
    assert (await here.node(name))["spec"]["unschedulable"] is True


async def test_an_api_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    server = KubernetesServer()
    async with server.running():
        kubeconfig = server.kubeconfig(tmp_path)
    step = a_step(Verb.ISOLATE, "n1", deadline_s=20.0)
    here = Town(None, kubeconfig, server, "default", "n")  # type: ignore[arg-type]
    running = asyncio.create_task(here.run(step, evict="none", events=False))
    await asyncio.sleep(0.1)

    async with server.running():
        node = {"metadata": {"name": "n1"}, "spec": {}}
        server.store.create(next(k for k in KINDS if k.plural == "nodes"), "", node)
        outcome = await running

    assert outcome.result is Result.DONE, outcome.detail


async def test_a_half_open_connection_is_given_up_in_time(tmp_path: Path) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    server = KubernetesServer(port=silent.sockets[0].getsockname()[1])
    here = Town(None, server.kubeconfig(tmp_path), server, "default", "n")  # type: ignore[arg-type]

    outcome = await here.run(a_step(Verb.ISOLATE, "n1", deadline_s=1.5), timeout="0.2s")
    silent.close()

    assert outcome.result is Result.UNKNOWN
    assert "gave no answer within 0.2 s" in outcome.detail


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>proxy</html>", "answered no JSON object; is this address an API server"),
        (b"[1, 2]", "answered no JSON object"),
    ],
)
async def test_what_is_no_api_server_is_said(tmp_path: Path, body: bytes, said: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(answer, "127.0.0.1", 0)
    server = KubernetesServer(port=proxy.sockets[0].getsockname()[1])
    here = Town(None, server.kubeconfig(tmp_path), server, "default", "n")  # type: ignore[arg-type]
    backend = here.backend()

    with pytest.raises(TryAgain, match=said):
        await backend.observe(a_step(Verb.ISOLATE, "n1"))
    await backend.close()
    proxy.close()


async def test_names_that_are_gone_are_said_with_the_remedy(here: Town) -> None:
    await here.add_node(0)
    settings: dict[str, Any] = {"pools": {"chat": "Deployment/chat"}, "label": "serving"}

    node = await here.run(a_step(Verb.ISOLATE, "gone"), **settings)
    pool = await here.run(a_step(Verb.SCALE, "chat", 3), **settings)
    unmapped = await here.run(a_step(Verb.SCALE, "code", 3), **settings)
    engine = await here.run(a_step(Verb.REROUTE, "10.9.9.9:8000", 0.0), **settings)

    details = [o.detail for o in (node, pool, unmapped, engine)]
    assert [o.result for o in (node, pool, unmapped, engine)] == [Result.REFUSED] * 4
    assert "map it under nodes of this backend" in details[0]
    assert "somebody removed or renamed it" in details[1]
    assert "no workload stands for pool code" in details[2]
    assert "no pod with the address 10.9.9.9" in details[3]


async def test_a_node_removed_while_it_is_being_isolated_is_said(here: Town) -> None:
    name = await here.add_node(0)
    server_of(here).faults.append(Fault("PATCH", "/nodes/", times=1, delay_s=0.3))
    running = asyncio.create_task(here.run(a_step(Verb.ISOLATE, name)))
    await asyncio.sleep(0.1)

    await here.person("DELETE", f"/api/v1/nodes/{name}")
    outcome = await running

    assert outcome.result is Result.REFUSED
    assert "removed or renamed" in outcome.detail


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (None, "not found; set kubeconfig"),
        ("nonsense", "it is not a kubeconfig"),
        ("{clusters: [], contexts: [], users: []}", "No current context"),
    ],
)
async def test_a_kubeconfig_that_cannot_be_used_is_said(tmp_path: Path, write: str | None, said: str) -> None:
    path = tmp_path / "config.yaml"
    if write is not None:
        path.write_text(write)
    here = Town(None, str(path), None, "default", "n")  # type: ignore[arg-type]

    with pytest.raises(Hopeless, match=said):
        await here.backend().apply(a_step(Verb.ISOLATE, "n1"))


async def test_no_credential_shows_in_any_outcome_journal_or_log(
    here: Town, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name = await here.add_node(0)
    jwt = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"
    spill = f"Bearer {TOKEN} was sent, and {jwt}, and {TOKEN}"
    record = Record.open(tmp_path)
    backend = here.backend(evict="none")
    said = []
    for i, code in enumerate((400, 401, 403, 404, 409, 422, 429, 500)):
        server_of(here).faults[:] = [Fault("*", "/nodes", code, times=99, message=spill)]
        outcome = await here.run(a_step(Verb.ISOLATE, name, id=f"s{i}", deadline_s=0.5), backend, record)
        said.append(outcome.detail)
    checks = await backend.check()
    await backend.close()
    journal = json.dumps([str(e) for e in record.events()])
    record.close()

    everything = " ".join([*said, repr(checks), repr(backend), journal, caplog.text])
    assert len(said) == 8
    assert "***" in everything
    assert TOKEN not in everything
    assert jwt not in everything


# -- rights --------------------------------------------------------------------------------------------------


def rights_in(manifest: str) -> list[str]:
    """What a manifest grants, in the words of the server."""
    return [
        f"{verb} {group}/{resource}"
        for role in yaml.safe_load_all(manifest)
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


async def test_the_rights_that_are_printed_are_enough_and_each_is_needed(here: Town, tmp_path: Path) -> None:
    """With exactly what `config check --live` prints every verb is carried out; without any one right the check says so."""
    server = server_of(here)
    node, other = await here.add_node(0, gpus=64), await here.add_node(1)
    await here.add_deployment("chat", 2, serving="true")
    await here.add_deployment("code", 1)
    await here.person(
        "POST", here.path("horizontalpodautoscalers", group="autoscaling/v2"), hpa("code", 1, 5)
    )
    selector = {"app": "chat", "serving": "true"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat"},
        "spec": {"selector": selector},
    }
    await here.person("POST", here.path("services", group=""), service)
    settings: dict[str, Any] = {
        "pools": {"chat": "Deployment/chat", "code": "Deployment/code"},
        "label": "serving",
        "offline_namespace": here.space,
        "lease": "lead",
    }
    rights = rights_in(here.backend(**settings).rights)
    server.tokens["least"] = rights
    settings["kubeconfig"] = server.kubeconfig(tmp_path, "least")
    pods = await here.pods(app="chat")
    steps = [
        a_step(Verb.REROUTE, pods[0]["metadata"]["name"], 0.0, id="s1"),
        a_step(Verb.REROUTE, pods[0]["metadata"]["name"], 1.0, id="s2"),
        a_step(Verb.SCALE, "chat", 3, id="s3"),
        a_step(Verb.SCALE, "code", 2, id="s4"),
        a_step(Verb.SCALE, "chat", 1, id="s5"),
        a_step(Verb.ISOLATE, node, id="s6"),
        a_step(Verb.RELEASE, node, id="s7"),
        a_step(Verb.LEND, other, 8.0, id="s8", until=here.at + 3600),
        a_step(Verb.RECALL, other, id="s9"),
    ]
    backend = here.backend(**settings)

    fine = await backend.check()
    outcomes = [await here.run(step, backend) for step in steps]
    missing = []
    for right in rights:
        server.tokens["least"] = [r for r in rights if r != right]
        missing.append(any(not c.is_right for c in await backend.check()))
    await backend.close()

    assert [c for c in fine if not c.is_right] == []
    assert [(o.step.id, o.detail) for o in outcomes if o.result is not Result.DONE] == []
    assert all(missing)
    assert not any(r.startswith(("delete", "deletecollection")) or " */" in r for r in rights)


@pytest.mark.parametrize("queue", ["ClusterQueue/lent", "Queue/lent"])
async def test_the_rights_printed_for_a_queue_are_enough(here: Town, tmp_path: Path, queue: str) -> None:
    server, node = server_of(here), await here.add_node(0)
    kind = next(k for k in KINDS if k.kind == queue.partition("/")[0])
    row = {"name": "nvidia.com/gpu", "nominalQuota": 0}
    groups = [{"coveredResources": ["nvidia.com/gpu"], "flavors": [{"name": "x", "resources": [row]}]}]
    spec = {"resourceGroups": groups, "capability": {"nvidia.com/gpu": "0"}}
    server.store.create(kind, "", {"metadata": {"name": "lent"}, "spec": spec})
    settings: dict[str, Any] = {"offline_namespace": here.space, "offline_queue": queue}
    settings["verbs"] = frozenset({Verb.LEND, Verb.RECALL})
    server.tokens["least"] = rights_in(here.backend(**settings).rights)
    backend = here.backend(kubeconfig=server.kubeconfig(tmp_path, "least"), **settings)

    checks = await backend.check()
    lent = await here.run(a_step(Verb.LEND, node, 8.0, id="s1", until=here.at + 3600), backend)
    recalled = await here.run(a_step(Verb.RECALL, node, id="s2"), backend)
    server.store.delete(kind, "", "lent")
    gone = await here.run(a_step(Verb.LEND, node, 8.0, id="s3", until=here.at + 3600), backend)
    missing = await backend.check()
    await backend.close()

    assert [c for c in checks if not c.is_right] == []
    assert checks[-1].found.startswith("0 GPUs, 0 nodes lent to it")
    assert lent.result is recalled.result is Result.DONE, (lent.detail, recalled.detail)
    assert gone.result is Result.REFUSED
    assert "somebody removed or renamed it" in gone.detail
    assert "removed or renamed" in missing[-1].fix


async def test_a_right_that_is_taken_away_mid_run_is_named(here: Town, tmp_path: Path) -> None:
    server = server_of(here)
    name = await here.add_node(0)
    rights = rights_in(here.backend(verbs=frozenset({Verb.ISOLATE})).rights)
    server.tokens["least"] = rights
    backend = here.backend(kubeconfig=server.kubeconfig(tmp_path, "least"), verbs=frozenset({Verb.ISOLATE}))

    before = await here.run(a_step(Verb.ISOLATE, name, id="s1"), backend)
    server.tokens["least"] = [r for r in rights if r != "patch /nodes"]
    after = await here.run(a_step(Verb.RELEASE, name, id="s2"), backend)
    checks = await backend.check()
    await backend.close()

    assert before.result is Result.DONE, before.detail
    assert after.result is Result.REFUSED
    assert 'cannot patch resource "nodes"' in after.detail
    assert checks == [
        Check(False, backend.api.kubeconfig, "not allowed: patch nodes in the cluster", checks[0].fix)
    ]
    assert "kubectl apply" in checks[0].fix


# -- many at once --------------------------------------------------------------------------------------------


async def test_a_hundred_isolations_each_once_and_soon(here: Town) -> None:
    """Bound with a wide margin; the measured figures stand in docs/en/backends/kubernetes.md."""
    names = [await here.add_node(i) for i in range(100)]
    backend = here.backend()
    record = Record.open(None)
    took: list[float] = []

    async def one(name: str, id: str) -> Result:
        begun = time.perf_counter()
        outcome = await here.run(a_step(Verb.ISOLATE, name, id=id), backend, record)
        took.append(time.perf_counter() - begun)
        return outcome.result

    results = [await one(name, f"s{i}") for i, name in enumerate(names)]
    patches = [
        path
        for method, path in server_of(here).requests
        if method == "PATCH" and "/nodes/" in path and not path.endswith("/status")
    ]
    await backend.close()

    assert results == [Result.DONE] * 100
    assert sorted(patches) == sorted(f"/api/v1/nodes/{name}" for name in names)
    print(
        f"isolation end to end: p50 {np.quantile(took, 0.5) * 1e3:.0f} ms, p99 {np.quantile(took, 0.99) * 1e3:.0f} ms"
    )
    assert OWNER in json.dumps(await here.node(names[0]))
    assert Patience().in_flight_max == 16


def fleet_of(nodes: Sequence[str]) -> tuple[Topology, Frames]:
    """Eight GPUs and one engine a node, four nodes a rack, all of it fresh."""
    engines = tuple(f"e{i}" for i in range(len(nodes)))
    gpus = {n: tuple(f"{n}/gpu{k}" for k in range(8)) for n in nodes}
    topology = Topology(
        nodes=tuple(nodes),
        gpus_on=gpus,
        engines_on={n: (e,) for n, e in zip(nodes, engines, strict=True)},
        engine_of={g: e for n, e in zip(nodes, engines, strict=True) for g in gpus[n]},
        gpus_of={e: gpus[n] for n, e in zip(nodes, engines, strict=True)},
        node_of_engine=dict(zip(engines, nodes, strict=True)),
        pool_of=dict.fromkeys(engines, "chat"),
        place={n: {"rack": f"r{i // 4}", "leaf": f"l{i // 32}"} for i, n in enumerate(nodes)},
        node_of_target={f"{n}:9400": n for n in nodes},
    )
    count = len(nodes)
    engine = Frame(1000.0, "engine", engines, ("running",), np.full((count, 1), 3.0), np.zeros(count))
    pages = tuple(topology.node_of_target)
    target = Frame(1000.0, "target", pages, ("silent_s",), np.zeros((count, 1)), np.zeros(count))
    return topology, Frames(1000.0, {"engine": engine, "target": target})


async def test_a_storm_over_500_nodes_stays_inside_the_budget(here: Town) -> None:
    names = [await here.add_node(i) for i in range(500)]
    topology, frames = fleet_of(names)
    policy = Policy(mode=Mode.AUTO, pools=(PoolPolicy("chat"),), able=frozenset(Verb))
    now = Guarded(at=1000.0, frames=frames, topology=topology, fleet=Fleet(), policy=policy)
    backend, record = here.backend(), Record.open(None)
    hands = Executor({Verb.ISOLATE: VERBS[Verb.ISOLATE](backend)}, record, lambda: 1000.0)

    for i, name in enumerate(names):
        step = a_step(Verb.ISOLATE, name, id=f"s{i}", pool="chat", gpus=8.0)
        if judge(step, now).allowed:
            now.tentative.append(step)
    outcomes = await asyncio.gather(*(hands.run(step) for step in now.tentative))
    cordoned = await here.api.items("/api/v1/nodes", fieldSelector="spec.unschedulable=true")
    await backend.close()

    assert [o.result for o in outcomes] == [Result.DONE] * policy.budgets.isolated_nodes_max
    assert len(cordoned) == policy.budgets.isolated_nodes_max == 4
