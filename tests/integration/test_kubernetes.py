"""The Kubernetes backend against an API server: ours, or with TIDEWARDEN_TEST_KUBECONFIG=FILE a real one."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes_town import NOW, OWNER, REAL, Town, a_step, hpa, town

from daemon.model import Entity, Outcome, Result, Verb

pytestmark = pytest.mark.integration

needs_controllers = pytest.mark.skipif(
    bool(REAL), reason="needs KEDA, Gateway API or LeaderWorkerSet in the cluster"
)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Town]:
    async with town(tmp_path) as found:
        yield found


@asynccontextmanager
async def an_engine(requests: list[int]) -> AsyncIterator[int]:
    """A metrics page whose running requests are the first of the list, one less entry with every look."""

    async def page(request: web.Request) -> web.Response:
        count = requests.pop(0) if len(requests) > 1 else requests[0]
        return web.Response(
            text=f"vllm:num_requests_running {{}} {count}\nvllm:num_requests_waiting 0\n".replace(" {}", "")
        )

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


# -- nodes ---------------------------------------------------------------------------------------------------


async def test_an_isolated_node_is_cordoned_marked_and_emptied_and_comes_back(here: Town) -> None:
    sick, sound = await here.add_node(0), await here.add_node(1)
    await here.add_deployment("chat", 2)
    await here.add_pod("exporter", sick, 0, owner="DaemonSet", app="exporter")
    await here.add_pod("web", sick, 0, app="web")

    out = await here.run(a_step(Verb.ISOLATE, sick, id="s1"))
    pods = await here.until_running(2, app="chat")
    during = await here.node(sick)
    back = await here.run(a_step(Verb.RELEASE, sick, id="s2"))
    after = await here.node(sick)

    assert out.result is Result.DONE, out.detail
    assert f"node {sick} cordoned" in out.detail
    assert during["spec"]["unschedulable"] is True
    assert during["metadata"]["annotations"]["tidewarden.io/isolated-by"] == OWNER
    assert {p["spec"]["nodeName"] for p in pods} == {sound}
    assert len(await here.pods(app="exporter")) == len(await here.pods(app="web")) == 1
    assert back.result is Result.DONE, back.detail
    assert not after["spec"].get("unschedulable")
    assert not [k for k in after["metadata"].get("annotations") or {} if k.startswith("tidewarden.io")]
    assert len(await here.events("Isolated")) == len(await here.events("Released")) == 1


async def test_a_node_is_found_by_its_hostname_too(here: Town) -> None:
    name = await here.add_node(0)

    outcome = await here.run(a_step(Verb.ISOLATE, f"{name}.example"))

    assert outcome.result is Result.DONE, outcome.detail
    assert (await here.node(name))["spec"]["unschedulable"] is True


async def test_a_cordon_of_somebody_else_is_left_alone(here: Town) -> None:
    name = await here.add_node(0)
    await here.person("PATCH", f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True}}, "kubectl-cordon")
    before = await here.node(name)

    out = await here.run(a_step(Verb.ISOLATE, name, id="s1"))
    back = await here.run(a_step(Verb.RELEASE, name, id="s2"))

    assert [out.result, back.result] == [Result.REFUSED, Result.REFUSED]
    assert "already isolated by somebody else (kubectl-cordon)" in out.detail
    assert (await here.node(name))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_a_cordon_that_a_person_has_made_his_own_is_not_lifted(here: Town) -> None:
    name = await here.add_node(0)
    await here.run(a_step(Verb.ISOLATE, name, id="s1"))
    for value in (False, True):
        await here.person(
            "PATCH", f"/api/v1/nodes/{name}", {"spec": {"unschedulable": value}}, "kubectl-cordon"
        )

    back = await here.run(a_step(Verb.RELEASE, name, id="s2"))

    assert back.result is Result.REFUSED
    assert "somebody else (kubectl-cordon)" in back.detail
    assert (await here.node(name))["spec"]["unschedulable"] is True


async def test_what_a_person_has_uncordoned_is_not_cordoned_again_by_the_same_step(here: Town) -> None:
    name = await here.add_node(0)
    step = a_step(Verb.ISOLATE, name)
    await here.run(step)
    await here.person(
        "PATCH", f"/api/v1/nodes/{name}", {"spec": {"unschedulable": False}}, "kubectl-uncordon"
    )

    again = await here.run(step)
    later = await here.run(a_step(Verb.ISOLATE, name, id="s2"))

    assert again.result is Result.REFUSED
    assert "uncordoned by hand" in again.detail
    assert later.result is Result.DONE


async def test_gpus_of_a_node_share_one_cordon_that_ends_with_the_last(here: Town) -> None:
    name = await here.add_node(0)
    await here.add_deployment("chat", 1)
    first, second = f"{name}/gpu2", f"{name}/gpu5"

    results = [
        (await here.run(a_step(verb, gpu, id=f"s{i}"))).result
        for i, (verb, gpu) in enumerate(
            [(Verb.ISOLATE, first), (Verb.ISOLATE, second), (Verb.RELEASE, first)]
        )
    ]
    between = await here.node(name)
    last = await here.run(a_step(Verb.RELEASE, second, id="s9"))

    assert [*results, last.result] == [Result.DONE] * 4
    assert between["spec"]["unschedulable"] is True
    assert between["metadata"]["annotations"]["tidewarden.io/isolated-for"] == second
    assert not (await here.node(name))["spec"].get("unschedulable")
    assert len(await here.pods(app="chat")) == 1  # one sick GPU empties no node


async def test_a_disruption_budget_holds_pods_back_and_is_obeyed(here: Town) -> None:
    sick = await here.add_node(0)
    await here.add_deployment("chat", 2)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "chat-pdb"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "chat"}}},
    }
    await here.person("POST", here.path("poddisruptionbudgets", group="policy/v1"), budget)
    if REAL:
        await asyncio.sleep(3)  # the disruption controller counts first

    outcome = await here.run(a_step(Verb.ISOLATE, sick))

    assert outcome.result is Result.DONE, outcome.detail
    assert "2 stay" in outcome.detail
    assert "disruption budget" in outcome.detail
    assert len(await here.pods(app="chat")) == 2
    assert (await here.node(sick))["spec"]["unschedulable"] is True


async def test_a_taint_comes_and_goes_with_the_cordon_and_others_stay(here: Town) -> None:
    name = await here.add_node(0)
    other = {"key": "example.com/team", "value": "a", "effect": "NoSchedule"}
    await here.person("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": [other]}})

    await here.run(a_step(Verb.ISOLATE, name, id="s1"), taint="NoExecute")
    during = (await here.node(name))["spec"]["taints"]
    await here.run(a_step(Verb.RELEASE, name, id="s2"), taint="NoExecute")
    after = (await here.node(name))["spec"]["taints"]

    assert {"key": "tidewarden.io/isolated", "value": "true", "effect": "NoExecute"} in during
    keys = [t["key"] for t in after]
    assert "example.com/team" in keys
    assert "tidewarden.io/isolated" not in keys


# -- scale ---------------------------------------------------------------------------------------------------


async def test_where_an_autoscaler_stands_its_floor_is_moved(here: Town) -> None:
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 2)
    await here.person(
        "POST", here.path("horizontalpodautoscalers", group="autoscaling/v2"), hpa("chat", 1, 6)
    )
    pools = {"chat": "Deployment/chat"}

    up = await here.run(a_step(Verb.SCALE, "chat", 4), pools=pools)
    too_far = await here.run(a_step(Verb.SCALE, "chat", 9, id="s2"), pools=pools)

    floor = await here.api.get(here.path("horizontalpodautoscalers", "chat", group="autoscaling/v2"))
    assert up.result is Result.DONE, up.detail
    assert "the floor of HorizontalPodAutoscaler" in up.detail
    assert floor["spec"]["minReplicas"] == 4
    assert too_far.result is Result.REFUSED
    assert "at most 6" in too_far.detail
    if not REAL:
        await here.until_running(4, app="chat")


async def test_a_floor_that_others_move_is_adopted_and_not_fought_for(here: Town) -> None:
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 1)
    path = here.path("horizontalpodautoscalers", group="autoscaling/v2")
    await here.person("POST", path, hpa("chat", 2, 9))
    pools = {"chat": "Deployment/chat"}
    await here.run(a_step(Verb.SCALE, "chat", 4, id="s1"), pools=pools)

    await here.person("PATCH", f"{path}/chat", {"spec": {"minReplicas": 6}}, "kubectl-edit")
    below = await here.run(a_step(Verb.SCALE, "chat", 5, id="s2"), pools=pools)
    above = await here.run(a_step(Verb.SCALE, "chat", 7, id="s3"), pools=pools)
    await here.person("PATCH", f"{path}/chat", {"spec": {"minReplicas": 6}}, "argocd-controller")
    fight = await here.run(a_step(Verb.SCALE, "chat", 8, id="s4"), pools=pools)

    assert below.result is Result.REFUSED
    assert "kubectl-edit set minReplicas" in below.detail
    assert above.result is Result.DONE, above.detail
    assert fight.result is Result.REFUSED
    assert "argocd-controller took minReplicas" in fight.detail
    assert "ignoreDifferences" in fight.detail


@needs_controllers
async def test_keda_s_floor_goes_before_the_autoscaler_that_keda_writes(here: Town) -> None:
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 1)
    await here.person(
        "POST",
        here.path("horizontalpodautoscalers", group="autoscaling/v2"),
        hpa("chat", 1, 9) | {"metadata": {"name": "keda-hpa-chat"}},
    )
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "chat"},
        "spec": {"scaleTargetRef": {"name": "chat"}},
    }
    await here.person("POST", here.path("scaledobjects", group="keda.sh/v1alpha1"), scaled)

    outcome = await here.run(a_step(Verb.SCALE, "chat", 3), pools={"chat": "Deployment/chat"})

    assert outcome.result is Result.DONE, outcome.detail
    found = await here.api.get(here.path("scaledobjects", "chat", group="keda.sh/v1alpha1"))
    assert found["spec"]["minReplicaCount"] == 3
    await here.until_running(3, app="chat")


async def test_without_an_autoscaler_the_replicas_are_set(here: Town) -> None:
    await here.add_node(0, gpus=64)
    await here.add_deployment("chat", 1)
    pools = {"chat": f"{here.space}/Deployment/chat"}

    up = await here.run(a_step(Verb.SCALE, "chat", 3), pools=pools)
    await here.until_running(3, app="chat")
    await here.person(
        "PATCH", here.path("deployments", "chat") + "/scale", {"spec": {"replicas": 5}}, "kubectl"
    )
    below = await here.run(a_step(Verb.SCALE, "chat", 4, id="s2"), pools=pools)

    assert up.result is Result.DONE, up.detail
    assert below.result is Result.REFUSED
    assert "set replicas of Deployment" in below.detail
    assert len(await here.events("Scaled")) == 1


async def test_new_pods_rather_go_where_the_rack_can_feed_them(here: Town) -> None:
    """A soft taint while it is so: the scheduler prefers other nodes, and uses these when nothing else is free."""
    poor, rich = await here.add_node(0, gpus=4), await here.add_node(1, gpus=8)
    await here.add_deployment("chat", 1)
    settings: dict[str, Any] = {"pools": {"chat": "Deployment/chat"}, "label": "", "avoid": True}
    avoiding = (("avoid", poor), ("from", "1"))

    grown = await here.run(a_step(Verb.SCALE, "chat", 2, id="s1", args=avoiding), **settings)
    marked = (await here.node(poor))["spec"].get("taints")
    later = await here.run(a_step(Verb.SCALE, "chat", 3, id="s2"), **settings)
    taints = [(await here.node(name))["spec"].get("taints") for name in (poor, rich)]
    said = await here.run(
        a_step(Verb.SCALE, "chat", 4, id="s3", args=avoiding), **settings | {"avoid": False}
    )

    assert grown.result is later.result is said.result is Result.DONE, (grown.detail, later.detail)
    assert "1 nodes are avoided" in grown.detail
    assert marked == [{"key": "tidewarden.io/avoid", "value": "true", "effect": "PreferNoSchedule"}]
    assert taints == [None, None]
    assert f"kubectl taint nodes {poor} tidewarden.io/avoid=true:PreferNoSchedule" in said.detail
    assert (await here.node(poor))["spec"].get("taints") is None


@pytest.mark.parametrize("kind", ["StatefulSet", pytest.param("LeaderWorkerSet", marks=needs_controllers)])
async def test_other_workloads_scale_by_the_same_subresource(here: Town, kind: str) -> None:
    await here.add_node(0, gpus=64)
    group = "apps/v1" if kind == "StatefulSet" else "leaderworkerset.x-k8s.io/v1"
    body = {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": "big"},
        "spec": {
            "replicas": 1,
            "serviceName": "big",
            "selector": {"matchLabels": {"app": "big"}},
            "template": {"metadata": {"labels": {"app": "big"}}, "spec": here.pod_spec(8)},
        },
    }
    plural = f"{kind.lower()}s"
    await here.person("POST", here.path(plural, group=group), body)

    outcome = await here.run(a_step(Verb.SCALE, "big", 2), pools={"big": f"{kind}/big"})

    assert outcome.result is Result.DONE, outcome.detail
    assert (await here.api.get(here.path(plural, "big", group=group)))["spec"]["replicas"] == 2


async def test_on_the_way_down_the_one_on_the_cordoned_node_goes_and_is_drained_first(here: Town) -> None:
    sick, _ = await here.add_node(0), await here.add_node(1)
    await here.add_deployment("chat", 4, **{"serving": "true"})
    on_sick = [p["metadata"]["name"] for p in await here.pods(app="chat") if p["spec"]["nodeName"] == sick]
    await here.run(a_step(Verb.ISOLATE, sick, id="s0"), evict="none")

    outcome = await here.run(
        a_step(Verb.SCALE, "chat", 3), pools={"chat": "Deployment/chat"}, label="serving"
    )
    left = await here.until_running(3, app="chat")

    assert outcome.result is Result.DONE, outcome.detail
    assert sum(p["spec"]["nodeName"] == sick for p in left) == len(on_sick) - 1
    assert all(p["metadata"]["labels"]["serving"] == "true" for p in left)
    assert "goes, nobody can tell whether idle" in outcome.detail


@pytest.mark.skipif(bool(REAL), reason="a real API server may refuse a loopback address as podIP")
async def test_the_last_requests_of_a_leaving_pod_are_waited_for(here: Town) -> None:
    await here.add_node(0)
    requests = [9, 9, 2, 0]
    async with an_engine(requests) as port:
        here.addresses["chat-0"] = "127.0.0.1"
        await here.add_deployment("chat", 2, serving="true")

        outcome = await here.run(
            a_step(Verb.SCALE, "chat", 1),
            pools={"chat": "Deployment/chat"},
            label="serving",
            metrics_port=port,
            drain="10s",
        )

    left = await here.until_running(1, app="chat")
    assert outcome.result is Result.DONE, outcome.detail
    assert "chat-0 goes, idle" in outcome.detail
    assert requests == [0]
    assert left[0]["metadata"]["name"] == "chat-1"


async def test_pods_chosen_to_go_stay_when_the_scale_is_refused(here: Town) -> None:
    if here.server is None:
        pytest.skip("takes a right away")
    await here.add_node(0)
    await here.add_deployment("chat", 2, serving="true")
    rights = [f"{v} /{r}" for r in ("pods", "nodes", "services") for v in ("get", "list", "patch")]
    rights += [
        "get apps/deployments",
        "patch apps/deployments",
        "get apps/deployments/scale",
        "list autoscaling/horizontalpodautoscalers",
        "list keda.sh/scaledobjects",
    ]
    here.server.tokens["poor"] = rights
    poor = here.server.kubeconfig(Path(here.kubeconfig).parent, "poor")

    outcome = await here.run(
        a_step(Verb.SCALE, "chat", 1), kubeconfig=poor, pools={"chat": "Deployment/chat"}, label="serving"
    )

    assert outcome.result is Result.REFUSED
    assert "forbids PATCH" in outcome.detail
    pods = await here.pods(app="chat")
    assert [p["metadata"]["labels"]["serving"] for p in pods] == ["true", "true"]
    assert not any(
        "controller.kubernetes.io/pod-deletion-cost" in (p["metadata"].get("annotations") or {}) for p in pods
    )


# -- reroute -------------------------------------------------------------------------------------------------


def a_route(*weights: int) -> dict[str, object]:
    refs = [{"name": f"chat-{i}", "port": 8000, "weight": w} for i, w in enumerate(weights)]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "chat"},
        "spec": {"rules": [{"backendRefs": refs}]},
    }


@needs_controllers
async def test_route_weights_move_and_come_back(here: Town) -> None:
    group = "gateway.networking.k8s.io/v1"
    await here.person("POST", here.path("httproutes", group=group), a_route(100, 100))
    settings = {"routes": ["chat"], "services": {"10.0.0.7:8000": "chat-0", "10.0.0.8:8000": "chat-1"}}

    async def weights() -> list[int]:
        route = await here.api.get(here.path("httproutes", "chat", group=group))
        return [r["weight"] for r in route["spec"]["rules"][0]["backendRefs"]]

    quarter = await here.run(a_step(Verb.REROUTE, "10.0.0.7:8000", 0.25, id="s1"), **settings)
    at_quarter = await weights()
    none = await here.run(a_step(Verb.REROUTE, "10.0.0.7:8000", 0.0, id="s2"), **settings)
    last = await here.run(a_step(Verb.REROUTE, "10.0.0.8:8000", 0.0, id="s3"), **settings)
    full = await here.run(a_step(Verb.REROUTE, "10.0.0.7:8000", 1.0, id="s4"), **settings)
    await here.person(
        "PATCH", here.path("httproutes", "chat", group=group), a_route(0, 100) | {"metadata": {}}
    )
    foreign = await here.run(a_step(Verb.REROUTE, "10.0.0.7:8000", 0.5, id="s5"), **settings)

    assert [o.result for o in (quarter, none, full)] == [Result.DONE] * 3
    assert at_quarter == [25, 100]
    assert last.result is Result.REFUSED
    assert "every request would get a 500" in last.detail
    assert foreign.result is Result.REFUSED
    assert "set by somebody else" in foreign.detail
    assert await weights() == [0, 100]


@needs_controllers
async def test_shares_of_regions_are_weights_of_a_route(here: Town) -> None:
    group = "gateway.networking.k8s.io/v1"
    route = a_route(100, 100)
    route["spec"]["rules"][0]["backendRefs"][1] |= {"group": "multicluster.x-k8s.io", "kind": "ServiceImport"}  # type: ignore[index]
    await here.person("POST", here.path("httproutes", group=group), route)
    settings = {"routes": ["chat"], "services": {"east": "chat-0", "west": "chat-1"}}

    async def share(region: str, amount: float, id: str) -> Outcome:
        step = replace(a_step(Verb.BALANCE, region, amount, id=id), target=Entity("region", region))
        return await here.run(step, **settings)

    moved = [await share("east", 0.7, "s1"), await share("west", 0.3, "s2")]
    seen = await here.api.get(here.path("httproutes", "chat", group=group))
    lost = [await share("west", 1.0, "s3"), await share("east", 0.0, "s4")]
    nobody = await share("west", 0.0, "s5")
    unknown = await share("south", 0.2, "s6")
    after = await here.api.get(here.path("httproutes", "chat", group=group))

    assert [o.result for o in (*moved, *lost)] == [Result.DONE] * 4
    assert [r["weight"] for r in seen["spec"]["rules"][0]["backendRefs"]] == [70, 30]
    assert [r["weight"] for r in after["spec"]["rules"][0]["backendRefs"]] == [0, 100]
    assert nobody.result is Result.REFUSED
    assert "every request would get a 500" in nobody.detail
    assert unknown.result is Result.REFUSED
    assert "no way to set the share of region south" in unknown.detail


async def a_service(here: Town, **selector: str) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat"},
        "spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    await here.person("POST", here.path("services", group=""), body)


async def test_an_engine_leaves_and_enters_the_selector_of_its_service(here: Town) -> None:
    await here.add_node(0)
    await here.add_deployment("chat", 2, serving="true")
    await a_service(here, app="chat", serving="true")
    first, second = await here.pods(app="chat")
    address = f"{first['status']['podIP']}:8000"

    half = await here.run(a_step(Verb.REROUTE, address, 0.5, id="s0"), label="serving")
    out = await here.run(a_step(Verb.REROUTE, address, 0.0, id="s1"), label="serving")
    during = {p["metadata"]["name"]: p["metadata"]["labels"]["serving"] for p in await here.pods(app="chat")}
    last = await here.run(a_step(Verb.REROUTE, second["metadata"]["name"], 0.0, id="s2"), label="serving")
    back = [
        await here.run(a_step(Verb.REROUTE, address, share, id=f"b{share}"), label="serving")
        for share in (0.25, 0.5, 0.75, 1.0)
    ]

    assert half.result is Result.REFUSED
    assert "a Service has no weights" in half.detail
    assert out.result is Result.DONE, out.detail
    assert during == {first["metadata"]["name"]: "false", second["metadata"]["name"]: "true"}
    assert last.result is Result.REFUSED
    assert "last ready one of Service chat" in last.detail
    assert [o.result for o in back] == [Result.DONE] * 4, [o.detail for o in back]
    assert len(await here.pods(app="chat", serving="true")) == 2
    annotations = (await here.pods(app="chat"))[0]["metadata"].get("annotations") or {}
    assert not [k for k in annotations if k.startswith("tidewarden.io")]
    assert len(await here.events("Rerouted")) == 2


async def test_a_service_that_ignores_the_label_is_said(here: Town) -> None:
    await here.add_node(0)
    await here.add_deployment("chat", 2, serving="true")
    await a_service(here, app="chat")
    pod = (await here.pods(app="chat"))[0]["metadata"]["name"]

    outcome = await here.run(a_step(Verb.REROUTE, pod, 0.0), label="serving")

    assert outcome.result is Result.REFUSED
    assert 'add `serving: "true"` to its selector' in outcome.detail


# -- lend ----------------------------------------------------------------------------------------------------


async def test_a_lent_node_takes_offline_jobs_that_carry_their_own_end(here: Town) -> None:
    here.at = time.time()
    node = await here.add_node(0)
    template = {
        "metadata": {"labels": {"work": "batch"}},
        "spec": here.pod_spec(8, restartPolicy="Never")
        | {
            "nodeSelector": {"tidewarden.io/lent": "true", "tidewarden-test": here.prefix},
            "tolerations": [
                {"key": "tidewarden.io/lent", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
            ],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "labels": {"tidewarden.io/offline": "true"}},
        "spec": {"suspend": True, "parallelism": 1, "completions": 1, "template": template},
    }
    await here.person("POST", here.path("jobs", group="batch/v1"), job)
    settings = {"offline_namespace": here.space}
    until = here.at + 3600.0

    lent = await here.run(a_step(Verb.LEND, node, 8.0, id="s1", until=until), **settings)
    pods = await here.until_running(1, work="batch")
    during = (await here.api.get(here.path("jobs", "train", group="batch/v1")))["spec"]
    recalled = await here.run(a_step(Verb.RECALL, node, id="s2"), **settings)
    after = (await here.api.get(here.path("jobs", "train", group="batch/v1")))["spec"]

    assert lent.result is Result.DONE, lent.detail
    assert pods[0]["spec"]["nodeName"] == node
    assert during["suspend"] is False
    assert during["activeDeadlineSeconds"] == pytest.approx(3600, abs=2)
    assert recalled.result is Result.DONE, recalled.detail
    assert after["suspend"] is True
    assert await here.pods(work="batch") == []
    assert "tidewarden.io/lent" not in (await here.node(node))["metadata"]["labels"]
    assert not (await here.node(node))["spec"].get("taints") or REAL


async def test_a_job_that_somebody_deleted_does_not_stop_a_recall(here: Town) -> None:
    """Its pod is still there for a moment; the node is back when that is gone too."""
    here.at = time.time()
    node = await here.add_node(0)
    settings = {"offline_namespace": here.space}
    lent = await here.run(a_step(Verb.LEND, node, 8.0, id="s1", until=here.at + 3600.0), **settings)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "gone", "uid": str(uuid.uuid4())}
    await here.add_pod("gone-0", node, 8, work="batch")
    pod = here.path("pods", "gone-0", group="")
    await here.person("PATCH", pod, {"metadata": {"ownerReferences": [owner]}})
    await here.until_running(1, work="batch")

    recalling = asyncio.create_task(here.run(a_step(Verb.RECALL, node, id="s2"), **settings))
    await asyncio.sleep(0.3)
    is_early = recalling.done()
    await here.person("DELETE", pod)
    recalled = await recalling

    assert lent.result is recalled.result is Result.DONE, (lent.detail, recalled.detail)
    assert is_early is False


async def test_a_lease_that_ended_while_nobody_was_there_is_taken_off_at_the_next_one(here: Town) -> None:
    here.at = time.time()
    first, second = await here.add_node(0), await here.add_node(1)
    settings = {"offline_namespace": here.space}
    await here.run(a_step(Verb.LEND, first, 8.0, id="s1", until=here.at + 60.0), **settings)

    here.at += 120.0
    lent = await here.run(a_step(Verb.LEND, second, 8.0, id="s2", until=here.at + 3600.0), **settings)

    assert lent.result is Result.DONE, lent.detail
    assert "tidewarden.io/lent" not in (await here.node(first))["metadata"]["labels"]
    assert (await here.node(second))["metadata"]["labels"]["tidewarden.io/lent"] == "true"


# -- queues --------------------------------------------------------------------------------------------------


def offline_pod(here: Town, gpus: int) -> dict[str, Any]:
    """A template that runs on lent nodes alone."""
    spec = here.pod_spec(gpus, restartPolicy="Never")
    spec["nodeSelector"] |= {"tidewarden.io/lent": "true"}
    spec["tolerations"] = [*spec["tolerations"], {"key": "tidewarden.io/lent", "operator": "Exists"}]
    return {"metadata": {"labels": {"work": "batch"}}, "spec": spec}


async def add_kueue(here: Town, queue: str, gpus: int, jobs: int) -> None:
    resources = [{"name": "cpu", "nominalQuota": "999"}, {"name": "nvidia.com/gpu", "nominalQuota": gpus}]
    flavors = [{"name": "lent", "resources": resources}]
    covered = ["cpu", "nvidia.com/gpu"]
    spec = {"resourceGroups": [{"coveredResources": covered, "flavors": flavors}], "namespaceSelector": {}}
    body = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "ClusterQueue", "metadata": {"name": queue}}
    await here.person("POST", "/apis/kueue.x-k8s.io/v1beta1/clusterqueues", body | {"spec": spec})
    local = {"kind": "LocalQueue", "metadata": {"name": "batch"}, "spec": {"clusterQueue": queue}}
    await here.person("POST", here.path("localqueues", group="kueue.x-k8s.io/v1beta1"), local)
    for i in range(jobs):
        labels = {"tidewarden.io/offline": "true", "kueue.x-k8s.io/queue-name": "batch"}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"train{i}", "labels": labels},
            "spec": {"suspend": True, "parallelism": 1, "completions": 1, "template": offline_pod(here, 8)},
        }
        await here.person("POST", here.path("jobs", group="batch/v1"), job)


async def kueue_of(here: Town, queue: str) -> tuple[int, str, str]:
    """GPUs, stopPolicy and our note of a ClusterQueue."""
    found = await here.api.get(f"/apis/kueue.x-k8s.io/v1beta1/clusterqueues/{queue}")
    rows = found["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    marks = found["metadata"].get("annotations") or {}
    return int(rows[1]["nominalQuota"]), found["spec"].get("stopPolicy", "None"), marks.get(NOTE, "")


NOTE = "tidewarden.io/lent-gpus"
ONLY_OURS = pytest.mark.skipif(bool(REAL), reason="the real cluster may lack Kueue and Volcano")


@ONLY_OURS
async def test_a_kueue_queue_grows_with_the_nodes_lent_and_each_recall_gives_back_its_own(here: Town) -> None:
    here.at = time.time()
    first, second = await here.add_node(0), await here.add_node(1)
    queue = f"{here.prefix}-lent"
    await add_kueue(here, queue, 0, jobs=3)
    settings = {"offline_namespace": here.space, "offline_queue": f"ClusterQueue/{queue}"}
    until = here.at + 3600.0
    before = await here.pods(work="batch")

    for i, node in enumerate((first, second, second)):
        lent = await here.run(a_step(Verb.LEND, node, 8.0, id=f"s{i}", until=until), **settings)
        assert lent.result is Result.DONE, lent.detail
    grown = await kueue_of(here, queue)
    running = await here.until_running(2, work="batch")
    ends = [(await here.api.get(here.path("jobs", f"train{i}", group="batch/v1")))["spec"] for i in range(3)]
    one = await here.run(a_step(Verb.RECALL, first, id="s4", deadline_s=20.0), **settings)
    shrunk = await kueue_of(here, queue)
    left = await here.until_running(1, work="batch")
    workloads = await here.api.items(here.path("workloads", group="kueue.x-k8s.io/v1beta1"))
    two = await here.run(a_step(Verb.RECALL, second, id="s5"), **settings)
    over = await kueue_of(here, queue)

    assert before == []
    assert grown == (16, "None", f'{{"{first}": 8, "{second}": 8}}')
    assert {p["spec"]["nodeName"] for p in running} == {first, second}
    assert all(e["activeDeadlineSeconds"] == pytest.approx(3600, abs=2) for e in ends)
    assert one.result is Result.DONE, one.detail
    assert "1 workloads go back" in one.detail
    assert shrunk == (8, "None", f'{{"{second}": 8}}')
    assert left[0]["spec"]["nodeName"] == second
    assert [w["spec"]["active"] for w in workloads] == [True] * 3
    assert two.result is Result.DONE, two.detail
    assert over == (0, "HoldAndDrain", "")
    assert await here.pods(work="batch") == []


@ONLY_OURS
async def test_a_kueue_queue_with_gpus_of_its_own_keeps_them_and_what_others_change(here: Town) -> None:
    here.at = time.time()
    node = await here.add_node(0)
    queue = f"{here.prefix}-shared"
    await add_kueue(here, queue, 4, jobs=0)
    settings = {"offline_namespace": here.space, "offline_queue": f"ClusterQueue/{queue}"}

    await here.run(a_step(Verb.LEND, node, 8.0, id="s1", until=here.at + 3600), **settings)
    resources = [{"name": "cpu", "nominalQuota": "999"}, {"name": "nvidia.com/gpu", "nominalQuota": 14}]
    groups = [
        {
            "coveredResources": ["cpu", "nvidia.com/gpu"],
            "flavors": [{"name": "lent", "resources": resources}],
        }
    ]
    path = f"/apis/kueue.x-k8s.io/v1beta1/clusterqueues/{queue}"
    await here.person("PATCH", path, {"spec": {"resourceGroups": groups}})
    recalled = await here.run(a_step(Verb.RECALL, node, id="s2"), **settings)

    assert recalled.result is Result.DONE, recalled.detail
    assert await kueue_of(here, queue) == (6, "None", "")


@ONLY_OURS
async def test_a_kueue_queue_that_somebody_stopped_is_left_to_them(here: Town) -> None:
    here.at = time.time()
    node = await here.add_node(0)
    queue = f"{here.prefix}-held"
    await add_kueue(here, queue, 0, jobs=0)
    path = f"/apis/kueue.x-k8s.io/v1beta1/clusterqueues/{queue}"
    await here.person("PATCH", path, {"spec": {"stopPolicy": "Hold"}})

    lent = await here.run(
        a_step(Verb.LEND, node, 8.0, id="s1", until=here.at + 3600),
        offline_namespace=here.space,
        offline_queue=f"ClusterQueue/{queue}",
    )

    assert lent.result is Result.REFUSED
    assert "stopped by somebody else (stopPolicy Hold)" in lent.detail
    assert "kubectl patch clusterqueue" in lent.detail
    assert "tidewarden.io/lent" not in (await here.node(node))["metadata"]["labels"]


VOLCANO = "/apis/scheduling.volcano.sh/v1beta1/queues"


async def add_volcano(here: Town, queue: str, capability: dict[str, str], jobs: int) -> None:
    body = {"metadata": {"name": queue}, "spec": {"weight": 1, "capability": capability}}
    await here.person("POST", VOLCANO, body)
    for i in range(jobs):
        tasks = [{"name": "main", "replicas": 1, "template": offline_pod(here, 8)}]
        job = {"metadata": {"name": f"v{i}"}, "spec": {"queue": queue, "minAvailable": 1, "tasks": tasks}}
        await here.person("POST", here.path("jobs", group="batch.volcano.sh/v1alpha1"), job)


async def volcano_of(here: Town, queue: str) -> tuple[str, str]:
    found = await here.api.get(f"{VOLCANO}/{queue}")
    return found["spec"]["capability"]["nvidia.com/gpu"], found["status"]["state"]


@ONLY_OURS
async def test_a_volcano_queue_grows_and_its_jobs_are_aborted_and_resumed(here: Town) -> None:
    here.at = time.time()
    node = await here.add_node(0)
    queue = f"{here.prefix}-v"
    await add_volcano(here, queue, {"nvidia.com/gpu": "0", "cpu": "999"}, jobs=2)
    settings = {"offline_namespace": here.space, "offline_queue": f"Queue/{queue}"}
    until = here.at + 3600.0

    lent = await here.run(a_step(Verb.LEND, node, 8.0, id="s1", until=until), **settings)
    running = await here.until_running(1, work="batch")
    during = await volcano_of(here, queue)
    recalled = await here.run(a_step(Verb.RECALL, node, id="s2"), **settings)
    after = await volcano_of(here, queue)
    empty = await here.pods(work="batch")
    again = await here.run(a_step(Verb.LEND, node, 8.0, id="s3", until=until), **settings)
    await here.until_running(1, work="batch")
    job = await here.api.get(here.path("jobs", "v0", group="batch.volcano.sh/v1alpha1"))

    assert lent.result is Result.DONE, lent.detail
    assert during == ("8", "Open")
    assert recalled.result is Result.DONE, recalled.detail
    assert after == ("0", "Closed")
    assert empty == []
    assert again.result is Result.DONE, again.detail
    assert "1 jobs resumed" in again.detail
    assert running[0]["metadata"]["name"] == "v0-main-0"
    assert (job["status"]["state"]["phase"], job["metadata"].get("annotations")) == ("Pending", {})
    assert await volcano_of(here, queue) == ("8", "Open")


@ONLY_OURS
async def test_a_volcano_queue_without_a_limit_or_closed_by_somebody_is_refused(here: Town) -> None:
    here.at = time.time()
    node = await here.add_node(0)
    await add_volcano(here, f"{here.prefix}-open", {"cpu": "9"}, jobs=0)
    await add_volcano(here, f"{here.prefix}-shut", {"nvidia.com/gpu": "0"}, jobs=0)
    await here.person("PATCH", f"{VOLCANO}/{here.prefix}-shut/status", {"status": {"state": "Closed"}})
    step = a_step(Verb.LEND, node, 8.0, id="s1", until=here.at + 3600)

    unbounded, shut = [
        await here.run(step, offline_namespace=here.space, offline_queue=f"Queue/{here.prefix}-{name}")
        for name in ("open", "shut")
    ]

    assert unbounded.result is shut.result is Result.REFUSED
    assert "has 0 GPU limits under capability" in unbounded.detail
    assert "vcctl queue operate" in shut.detail


# -- leadership ----------------------------------------------------------------------------------------------


async def test_of_two_instances_one_acts_until_it_falls_silent(here: Town) -> None:
    first_node, second_node = await here.add_node(0), await here.add_node(1)
    one, two = (here.backend(identity, lease="lead", evict="none") for identity in ("one", "two"))

    begun = await here.run(a_step(Verb.ISOLATE, first_node, id="s1"), one)
    watched = await here.run(a_step(Verb.ISOLATE, second_node, id="s2"), two)
    here.at = NOW + 61.0
    taken = await here.run(a_step(Verb.ISOLATE, second_node, id="s3"), two)
    await one.close()
    await two.close()

    assert begun.result is Result.DONE, begun.detail
    assert watched.result is Result.REFUSED
    assert "one leads this cluster" in watched.detail
    assert taken.result is Result.DONE, taken.detail
    lease = await here.api.get(here.path("leases", "lead", group="coordination.k8s.io/v1"))
    assert lease["spec"]["holderIdentity"] == "two"
    assert lease["spec"]["leaseTransitions"] == 1
