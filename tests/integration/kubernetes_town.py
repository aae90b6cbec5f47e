"""A namespace with nodes, pods and a kubelet of its own, on our protocol server or on the real one that the environment names."""

import asyncio
import contextlib
import itertools
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes_server import KubernetesServer

from actions import CONFIGURED, VERBS, Site
from actions.backends.kubernetes import Kubernetes
from actions.backends.metrics_page import Busy, busy_by
from daemon.act import Executor, Patience
from daemon.kubernetes_api import Api, NotFound
from daemon.model import Entity, Hopeless, Outcome, Step, TryAgain, Verb
from daemon.record import Record
from daemon.settings_backends import KubernetesBackend
from daemon.telemetry import load_catalogue
from daemon.telemetry.requests import requests_on

REAL = os.environ.get("TIDEWARDEN_TEST_KUBECONFIG", "")
QUICK = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)
OWNER = "tidewarden/prod"
NOW = 1_800_000_000.0
Json = dict[str, Any]

BUSY: Busy = busy_by(lambda page: requests_on(page, load_catalogue()))


def a_step(verb: Verb, target: str, amount: float = 1.0, id: str = "s1", **more: Any) -> Step:
    kinds = {Verb.SCALE: "pool", Verb.REROUTE: "engine"}
    kind = kinds.get(verb, "gpu" if "/gpu" in target else "node")
    args = (("node", target.partition("/")[0]), ("owner", OWNER)) if kind in ("node", "gpu") else ()
    return Step(
        id,
        verb,
        Entity(kind, target),
        amount,
        "slow since 09:00",
        **({"deadline_s": 20.0, "args": args} | more),
    )


@dataclass
class Town:
    """server : ours, None on a real one. clock : what the backend takes for the time."""

    api: Api
    kubeconfig: str
    server: KubernetesServer | None
    space: str
    prefix: str
    at: float = NOW
    addresses: dict[str, str] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(2))

    def backend(
        self, identity: str = "", verbs: frozenset[Verb] = frozenset(Verb), **settings: Any
    ) -> Kubernetes:
        tree = KubernetesBackend.model_validate(
            {
                "kind": "kubernetes",
                "kubeconfig": self.kubeconfig,
                "namespace": self.space,
                "evict_timeout": "1s",
            }
            | settings
        )
        site = Site(Path("unused"), OWNER, lambda: self.at, BUSY, verbs)
        built = CONFIGURED["kubernetes"](tree.model_dump(), site)
        assert isinstance(built, Kubernetes)
        if identity and built.leadership is not None:
            object.__setattr__(built.leadership, "identity", identity)
        return built

    async def run(
        self, step: Step, backend: Kubernetes | None = None, record: Record | None = None, **settings: Any
    ) -> Outcome:
        hands = backend or self.backend(**settings)
        try:
            action = VERBS[step.verb](hands)
            return await Executor(
                {step.verb: action}, record or Record.open(None), lambda: self.at, QUICK
            ).run(step)
        finally:
            if backend is None:
                await hands.close()

    # -- what people and other programs do -------------------------------------------------------------------

    async def person(
        self, method: str, path: str, body: Json | None = None, manager: str = "kubectl-edit"
    ) -> Json:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        return await self.api._ask(
            method, path, {"fieldManager": manager}, body, kind if body is not None else ""
        )

    def path(self, plural: str, name: str = "", group: str = "apps/v1") -> str:
        where = "/api/v1" if not group else f"/apis/{group}"
        return f"{where}/namespaces/{self.space}/{plural}" + (f"/{name}" if name else "")

    async def add_node(self, number: int, gpus: int = 8, **labels: str) -> str:
        name = f"{self.prefix}-{number}"
        capacity = {"nvidia.com/gpu": str(gpus), "cpu": "64", "memory": "512Gi", "pods": "110"}
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "test",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        has = {"kubernetes.io/hostname": f"{name}.example", "tidewarden-test": self.prefix} | labels
        await self.person(
            "POST",
            "/api/v1/nodes",
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": has}, "spec": {}},
        )
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [condition]}}
        await self.person("PATCH", f"/api/v1/nodes/{name}/status", status)
        return name

    async def node(self, name: str) -> Json:
        return await self.api.get(f"/api/v1/nodes/{name}")

    async def add_deployment(self, name: str, replicas: int, gpus: int = 4, **labels: str) -> None:
        pods = {"app": name} | labels
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.space},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": pods}, "spec": self.pod_spec(gpus)},
            },
        }
        await self.person("POST", self.path("deployments"), body)
        await self.until_running(replicas, app=name)

    def pod_spec(self, gpus: int, **more: Any) -> Json:
        resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
        container = {"name": "main", "image": "example/engine:1", "resources": resources}
        own = {"tidewarden-test": self.prefix}
        # A real cluster's control plane taints nodes whose heartbeat stops, as those of tests do.
        tolerations = [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
        ]
        return {"containers": [container], "nodeSelector": own, "tolerations": tolerations} | more

    async def add_pod(self, name: str, node: str, gpus: int, owner: str = "", **labels: str) -> None:
        meta: Json = {"name": name, "namespace": self.space, "labels": labels}
        if owner:
            meta["ownerReferences"] = [
                {"apiVersion": "apps/v1", "kind": owner, "name": "x", "uid": str(uuid.uuid4())}
            ]
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": self.pod_spec(gpus) | {"nodeName": node},
        }
        await self.person("POST", self.path("pods", group=""), body)

    async def pods(self, **labels: str) -> list[Json]:
        """Those that are not leaving."""
        text = ",".join(f"{k}={v}" for k, v in labels.items())
        found = await self.api.items(self.path("pods", group=""), labelSelector=text)
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    async def until_running(self, count: int, **labels: str) -> list[Json]:
        async with asyncio.timeout(15):
            while True:
                pods = await self.pods(**labels)
                running = [p for p in pods if (p.get("status") or {}).get("podIP")]
                if len(running) == count == len(pods):
                    return running
                await asyncio.sleep(0.02)

    async def events(self, reason: str) -> list[Json]:
        found = []
        for space in {"default", self.space}:
            found += await self.api.items(f"/apis/events.k8s.io/v1/namespaces/{space}/events")
        mine = [e for e in found if e["reason"] == reason]
        return [
            e
            for e in mine
            if self.prefix in e["regarding"]["name"] or e["regarding"].get("namespace") == self.space
        ]

    # -- the kubelet -----------------------------------------------------------------------------------------

    async def kubelet(self) -> None:
        """Starts what is bound to our nodes, ends what is to go."""
        while True:
            await asyncio.sleep(0.02)
            with contextlib.suppress(TryAgain, Hopeless):
                for pod in await self.api.items(self.path("pods", group="")):
                    await self._tend(pod)

    async def _tend(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        if "deletionTimestamp" in pod["metadata"]:
            await self.person("DELETE", self.path("pods", name, group=""), {"gracePeriodSeconds": 0})
        elif pod["spec"].get("nodeName") and not (pod.get("status") or {}).get("podIP"):
            address = self.addresses.get(name) or f"10.99.0.{next(self._numbers)}"
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            status = {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [ready],
            }
            await self.person("PATCH", self.path("pods", name, group="") + "/status", {"status": status})


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[Town]:
    async with contextlib.AsyncExitStack() as stack:
        server = None
        kubeconfig = REAL
        if not REAL:
            server = await stack.enter_async_context(KubernetesServer().running())
            kubeconfig = server.kubeconfig(folder)
        prefix = f"tw-{uuid.uuid4().hex[:6]}"
        api = Api(kubeconfig)
        stack.push_async_callback(api.close)
        here = Town(api, kubeconfig, server, f"{prefix}-ns", prefix)
        await here.person(
            "POST",
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": here.space}},
        )
        kubelet = asyncio.create_task(here.kubelet())
        try:
            yield here
        finally:
            await _remove(here)
            kubelet.cancel()
            await asyncio.wait([kubelet])


async def _remove(here: Town) -> None:
    if here.server is not None:
        return
    await here.person("DELETE", f"/api/v1/namespaces/{here.space}")
    for node in await here.api.items("/api/v1/nodes", labelSelector=f"tidewarden-test={here.prefix}"):
        with contextlib.suppress(NotFound):
            await here.person("DELETE", f"/api/v1/nodes/{node['metadata']['name']}")


def hpa(name: str, least: int, most: int) -> Json:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "minReplicas": least,
            "maxReplicas": most,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        },
    }
