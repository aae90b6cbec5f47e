"""Finds the pages to scrape by what a Kubernetes cluster says of its pods, with the place of their nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.kubernetes_api import Api, Gone, Json, annotated, gpus_of, labels
from daemon.model import Hopeless, Target, TryAgain
from daemon.telemetry.discovery import target_of

PAUSE_S, PAUSE_MAX_S = 1.0, 30.0
GROUP_SIZE = "leaderworkerset.sigs.k8s.io/size"
"""Annotation of a LeaderWorkerSet's pods: how many make one replica."""


@dataclass(slots=True)
class Mirror:
    """All objects of one list, kept by a watch that goes on where it broke off. error : "" = it is current.

    path, query : of the list. listings : how often everything had to be read anew.
    """

    api: Api
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    listings: int = 0
    things: dict[str, Json] = field(default_factory=dict)
    _version: str = ""

    async def refresh(self) -> None:
        """Read everything. Raises TryAgain or Hopeless."""
        found, self._version = await self.api.listed(self.path, **self.query)
        self.things = {_key(thing): thing for thing in found}
        self.listings += 1
        self.error = ""

    async def run(self) -> None:
        """Until cancelled. What cannot be read now keeps its last state, and `error` says why."""
        pause_s = PAUSE_S
        while True:
            try:
                if not self._version:
                    await self.refresh()
                async for kind, thing in self.api.watch(self.path, self._version, **self.query):
                    self.error, pause_s = "", PAUSE_S
                    self._take(kind, thing)
                # The server ends a watch after some minutes; the next one goes on behind the last change.
                continue
            except Gone:
                self._version = ""
                continue
            except TryAgain as trouble:
                self.error = str(trouble)
            except Hopeless as trouble:
                # A right may be given at any time; until then everything is read anew.
                self.error, self._version = str(trouble), ""
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _take(self, kind: str, thing: Json) -> None:
        self._version = str(thing["metadata"]["resourceVersion"])
        if kind == "DELETED":
            self.things.pop(_key(thing), None)
        elif kind != "BOOKMARK":
            self.things[_key(thing)] = thing


@dataclass(frozen=True, slots=True)
class PodRule:
    """Which pods have a page, and where. pool_label : of the pod, its value is the pool; "" = no label says."""

    selector: str
    namespace: str
    template: Target
    port: int
    pool_label: str = ""


@dataclass(slots=True)
class KubernetesDiscovery:
    """Pods that run, by rules, each with node, rack, leaf and region of its node.

    places : "rack", "leaf", "region" -> labels of a node that may tell, the first that is there counts. gpu_resources : how
    the names of GPU resources begin.
    """

    api: Api
    rules: Sequence[PodRule]
    places: Mapping[str, Sequence[str]]
    gpu_resources: Sequence[str] = ("nvidia.com/", "amd.com/gpu")
    error: str = ""
    _nodes: Mirror | None = None
    _pods: list[Mirror] = field(default_factory=list)

    async def targets(self) -> tuple[Target, ...]:
        """What is known now; the first time everything is read."""
        if self._nodes is None:
            self._nodes = Mirror(self.api, "/api/v1/nodes")
            self._pods = [
                Mirror(self.api, _pods_path(rule), {"labelSelector": rule.selector}) for rule in self.rules
            ]
            for mirror in (self._nodes, *self._pods):
                try:
                    await mirror.refresh()
                except (TryAgain, Hopeless) as trouble:
                    mirror.error = str(trouble)
        found: list[Target] = []
        for rule, mirror in zip(self.rules, self._pods, strict=True):
            found += [
                t
                for pod in mirror.things.values()
                if (t := self._target(pod, rule, self._nodes.things)) is not None
            ]
        errors = dict.fromkeys(m.error for m in (self._nodes, *self._pods) if m.error)
        self.error = "; ".join(f"{error} (keeping {len(found)} targets)" for error in errors)
        return tuple(sorted(found, key=lambda t: t.address))

    async def run(self) -> None:
        """Keep the mirrors current, until cancelled."""
        await self.targets()
        mirrors = [m for m in (self._nodes, *self._pods) if m is not None]
        try:
            async with asyncio.TaskGroup() as group:
                for mirror in mirrors:
                    group.create_task(mirror.run())
        finally:
            await self.api.close()

    def _target(self, pod: Json, rule: PodRule, nodes: Mapping[str, Json]) -> Target | None:
        """None for a pod that has no address, or has ended."""
        status, meta = pod.get("status") or {}, pod["metadata"]
        host = str(status.get("podIP") or "")
        if not host or status.get("phase") != "Running" or meta.get("deletionTimestamp"):
            return None
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        own = {"node": node, **self._place(nodes.get(f"/{node}"))}
        if not any(o.get("kind") == "DaemonSet" for o in meta.get("ownerReferences") or []):
            # An exporter of a node tells the pods of others; its own name would hide them.
            own |= {"pod": str(meta["name"]), "gpu_count": self._gpus(pod)}
        if rule.pool_label and labels(pod).get(rule.pool_label):
            own["pool"] = labels(pod)[rule.pool_label]
        address = f"[{host}]:{rule.port}" if ":" in host else f"{host}:{rule.port}"
        known = tuple(sorted({**{k: v for k, v in own.items() if v}, **dict(rule.template.labels)}.items()))
        return replace(rule.template, address=address, labels=known)

    def _gpus(self, pod: Json) -> str:
        """GPUs the replica was given, as far as its pod asks for them; "" = it asks for none."""
        asked = gpus_of(pod.get("spec") or {}, self.gpu_resources)
        # A replica of several nodes is a group of pods that ask alike; the leader's page speaks for all.
        size = annotated(pod).get(GROUP_SIZE, "1")
        return str(asked * int(size if size.isdigit() else 1) or "")

    def _place(self, node: Json | None) -> dict[str, str]:
        if node is None:
            return {}
        has = labels(node)
        return {
            key: next((has[name] for name in names if has.get(name)), "")
            for key, names in self.places.items()
        }


def discovery_of(tree: Mapping[str, Any]) -> KubernetesDiscovery:
    """From the settings `sources.http.kubernetes`."""
    rules = tuple(
        PodRule(
            selector=rule["selector"],
            namespace=rule["namespace"],
            template=target_of("name:1", {**rule["labels"], "__metrics_path__": rule["path"]}, rule["job"]),
            port=rule["port"],
            pool_label=rule["pool_label"],
        )
        for rule in tree["pods"]
    )
    places = {key: tuple(tree[f"{key}_labels"]) for key in ("rack", "leaf", "region")}
    return KubernetesDiscovery(
        Api(tree["kubeconfig"], tree["context"]), rules, places, tuple(tree["gpu_resources"])
    )


def _pods_path(rule: PodRule) -> str:
    return f"/api/v1/namespaces/{rule.namespace}/pods" if rule.namespace else "/api/v1/pods"


def _key(thing: Json) -> str:
    meta = thing["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"
