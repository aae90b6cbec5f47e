"""The controllers that Kubernetes runs beside its API server, as far as a cordon, a scale or a suspend shows there."""

from __future__ import annotations

import copy
from typing import Any

from kubernetes_server.queueing import Queueing, gpus
from kubernetes_server.store import KINDS, Json, Store, at

POD = next(k for k in KINDS if k.plural == "pods")
_KIND = {k.plural: k for k in reversed(KINDS)}  # of two groups with Jobs the one of Kubernetes itself


class Controllers:
    """Run to the end after every write: what a real cluster does in milliseconds is done at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._busy = False
        self.queueing = Queueing(store, self._set, self._pod)
        store.changed = self.run

    def run(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            for _ in range(20):
                before = self.store.version
                self._autoscale()
                for plural in ("deployments", "statefulsets", "leaderworkersets"):
                    for thing in self.store.all(plural):
                        self._replicate(plural, thing)
                self.queueing.run()
                for job in self.store.all("jobs", group="batch"):
                    self._work(job)
                for pod in self.store.all("pods"):
                    self._schedule(pod)
                if self.store.version == before:
                    return
        finally:
            self._busy = False

    def _autoscale(self) -> None:
        for plural, least in (
            ("horizontalpodautoscalers", "minReplicas"),
            ("scaledobjects", "minReplicaCount"),
        ):
            for scaler in self.store.all(plural):
                ref, space = scaler["spec"]["scaleTargetRef"], scaler["metadata"]["namespace"]
                kind = next((k for k in KINDS if k.kind == ref.get("kind", "Deployment")), None)
                if kind is None or (kind, space, ref["name"]) not in self.store.objects:
                    continue
                thing = self.store.get(kind, space, ref["name"])
                floor = int(scaler["spec"].get(least, 1))
                if thing["spec"].get("replicas", 1) < floor:
                    self._set(plural, kind, thing, ("spec", "replicas"), floor)

    def _replicate(self, plural: str, thing: Json) -> None:
        space, name, spec = thing["metadata"]["namespace"], thing["metadata"]["name"], thing["spec"]
        if "template" not in spec:
            return
        pods = [p for p in self._of(thing) if "deletionTimestamp" not in p["metadata"]]
        wanted = int(spec.get("replicas", 1))
        for _ in range(wanted - len(pods)):
            taken = {p["metadata"]["name"] for p in self._of(thing)}
            number = next(i for i in range(1000) if f"{name}-{i}" not in taken)
            self._pod(thing, f"{name}-{number}", spec["template"])
        for pod in (
            sorted(pods, key=_last_to_go, reverse=True)[wanted:] if plural == "deployments" else pods[wanted:]
        ):
            self.store.delete(POD, space, pod["metadata"]["name"])
        pods = [p for p in self._of(thing) if "deletionTimestamp" not in p["metadata"]]
        ready = sum(is_ready(p) for p in pods)
        self._set(
            "controller", _KIND[plural], thing, ("status",), {"replicas": len(pods), "readyReplicas": ready}
        )

    def _work(self, job: Json) -> None:
        pods, spec = self._of(job), job["spec"]
        if spec.get("suspend"):
            for pod in pods:
                if "deletionTimestamp" not in pod["metadata"]:
                    self.store.delete(POD, job["metadata"]["namespace"], pod["metadata"]["name"])
            self._set("job-controller", _KIND["jobs"], job, ("status",), {"active": 0})
            return
        wanted = int(spec.get("parallelism", 1))
        for i in range(len(pods), wanted):
            self._pod(job, f"{job['metadata']['name']}-{i}", spec["template"])
        self._set("job-controller", _KIND["jobs"], job, ("status",), {"active": wanted})

    def _schedule(self, pod: Json) -> None:
        """The first node that may take it. GPUs are counted."""
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        for node in self.store.all("nodes"):
            wanted = pod["spec"].get("nodeSelector") or {}
            has = node["metadata"].get("labels") or {}
            if node.get("spec", {}).get("unschedulable") or any(has.get(k) != v for k, v in wanted.items()):
                continue
            tolerated = {(t.get("key"), t.get("effect")) for t in pod["spec"].get("tolerations") or []}
            taints = [
                t for t in node.get("spec", {}).get("taints") or [] if t["effect"] != "PreferNoSchedule"
            ]
            if any(
                (t["key"], t["effect"]) not in tolerated and (t["key"], None) not in tolerated for t in taints
            ):
                continue
            here = [
                p for p in self.store.all("pods") if p["spec"].get("nodeName") == node["metadata"]["name"]
            ]
            room = int((at(node, ("status", "allocatable")) or {}).get("nvidia.com/gpu", 0))
            if _gpus(pod) > room - sum(map(_gpus, here)):
                continue
            self._set("kube-scheduler", POD, pod, ("spec", "nodeName"), node["metadata"]["name"])
            return

    def _of(self, owner: Json) -> list[Json]:
        uid = owner["metadata"]["uid"]
        pods = self.store.all("pods", owner["metadata"]["namespace"])
        return [p for p in pods if any(o["uid"] == uid for o in p["metadata"].get("ownerReferences") or [])]

    def _pod(self, owner: Json, name: str, template: Json) -> None:
        meta = owner["metadata"]
        body = copy.deepcopy(template)
        body["metadata"] = {
            "name": name,
            "labels": (template.get("metadata") or {}).get("labels") or {},
            "ownerReferences": [
                {
                    "apiVersion": owner["apiVersion"],
                    "kind": owner["kind"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                    "controller": True,
                }
            ],
        }
        self.store.create(POD, meta["namespace"], body, "kube-controller-manager")

    def _set(self, manager: str, kind: Any, thing: Json, path: tuple[str, ...], value: Any) -> None:
        if at(thing, path) == value:
            return

        def change(now: Json) -> Json:
            here = now
            for part in path[:-1]:
                here = here.setdefault(part, {})
            here[path[-1]] = value
            return now

        self.store.update(
            kind, thing["metadata"].get("namespace", ""), thing["metadata"]["name"], change, manager
        )


def is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return (
        any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        and "deletionTimestamp" not in pod["metadata"]
    )


def _last_to_go(pod: Json) -> tuple[Any, ...]:
    """Order in which a ReplicaSet keeps pods: scheduled, ready, of high deletion cost, old."""
    cost = int(
        (pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", 0)
    )
    return bool(pod["spec"].get("nodeName")), is_ready(pod), cost, -int(pod["metadata"]["resourceVersion"])


def _gpus(pod: Json) -> int:
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    return gpus(pod["spec"])
