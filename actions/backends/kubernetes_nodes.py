"""Kubernetes nodes: cordoned with our mark, emptied by eviction, given back only when ours."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from actions.backends.kubernetes_events import Events
from daemon.kubernetes_api import (
    MANAGER,
    Api,
    Conflict,
    Json,
    NotFound,
    Throttled,
    annotated,
    manager_of,
    version,
)
from daemon.model import Hopeless, Step, TryAgain

BY = "tidewarden.io/isolated-by"
FOR = "tidewarden.io/isolated-for"
STEP = "tidewarden.io/isolated-step"
WHY = "tidewarden.io/isolated-reason"
TAINT = "tidewarden.io/isolated"
MIRROR = "kubernetes.io/config.mirror"
TRIES = 4
EVICT_SHARE = 0.4
"""Of a step's deadline that evictions may take; the executor gives an apply half of it."""
BACKOFF_S, BACKOFF_MAX_S = 1.0, 10.0


@dataclass(frozen=True, slots=True)
class Nodes:
    """Takes nodes out of service and gives them back.

    names : node of the telemetry -> Kubernetes node, where neither its name nor its hostname label is the same.
    evict : pods that are asked to leave an isolated node: those that hold GPUs, all, or none. DaemonSet pods never are.
    taint : effect of a taint beside the cordon, "" = none. evict_s : how long a disruption budget is waited for.
    gpu_resources : how the names of GPU resources begin.
    """

    api: Api
    events: Events
    names: Mapping[str, str] = field(default_factory=dict)
    evict: Literal["gpu", "all", "none"] = "gpu"
    taint: Literal["", "NoSchedule", "NoExecute"] = ""
    evict_s: float = 60.0
    gpu_resources: Sequence[str] = ("nvidia.com/", "amd.com/gpu")

    async def isolate(self, step: Step) -> str:
        """The cordon first: nothing new comes while the old is asked to leave."""
        node = await self._marked(step, _cordon(step, self.taint))
        name = node["metadata"]["name"]
        if step.target.kind == "gpu":
            told = f"node {name} cordoned for {step.target.name}; Kubernetes gives out whole nodes, so its running pods stay"
        else:
            told = f"node {name} cordoned; {await self._empty(name, step)}"
        await self.events.tell(node, step, "Isolated", f"{step.reason}; {told}")
        return told

    async def release(self, step: Step) -> str:
        node = await self._marked(step, _uncordon(step))
        name = node["metadata"]["name"]
        left = scopes(node)
        told = (
            f"node {name} stays cordoned for {', '.join(left)}" if left else f"node {name} takes pods again"
        )
        await self.events.tell(node, step, "Released", f"{step.reason}; {told}")
        return told

    async def seen(self, step: Step) -> Mapping[str, Any]:
        """{"isolated", "owner"}; empty when there is no such node."""
        try:
            node = await self.find(step)
        except NotFound:
            return {}
        return seen_of(node, step.target.name)

    async def find(self, step: Step) -> Json:
        """The node of a step. Raises NotFound."""
        wanted = step.arg("node") or step.target.name.partition("/")[0]
        return await find_node(self.api, self.names.get(wanted, wanted))

    async def _marked(self, step: Step, change: Any) -> Json:
        """Read, decide, write; again when somebody else wrote in between."""
        for _ in range(TRIES):
            node = await self.find(step)
            patch = change(node)
            if not patch:
                return node
            patch["metadata"]["resourceVersion"] = version(node)
            try:
                return await self.api.patch(node_path(node["metadata"]["name"]), patch)
            except Conflict:
                continue
        raise TryAgain(f"node {step.target.name} is being changed by others without a pause")

    # -- eviction ----------------------------------------------------------------------------------------

    async def _empty(self, name: str, step: Step) -> str:
        """Ask the pods to leave; what disruption budgets hold back is asked again until the time is over."""
        if self.evict == "none":
            return "its pods stay, evict is none"
        loop = asyncio.get_running_loop()
        end = loop.time() + min(self.evict_s, EVICT_SHARE * step.deadline_s)
        pods = [
            p
            for p in await self.api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={name}")
            if self._leaves(p)
        ]
        left, why, pause_s, asked = pods, "", BACKOFF_S, 0
        while left:
            held: list[Json] = []
            for pod in left:
                try:
                    await self._ask_to_leave(pod)
                    asked += 1
                except (Throttled, TryAgain) as refusal:
                    held.append(pod)
                    why = str(refusal)
                    pause_s = max(pause_s, refusal.delay_s)
            left = held
            if not left or loop.time() + pause_s > end:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)
        told = f"{asked} pods evicted"
        if left:
            names = ", ".join(_full_name(p) for p in left[:4])
            told += f"; {len(left)} stay ({names}): {why}. They may leave once their replicas are ready elsewhere: kubectl drain {name}"
        return told

    async def _ask_to_leave(self, pod: Json) -> None:
        """Raises TryAgain when it may not leave now; a pod that is gone has left."""
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            # A pod of the same name that came meanwhile, as in a StatefulSet, is another one.
            "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
        }
        try:
            await self.api.post(path, body)
        except (NotFound, Conflict):
            return

    def _leaves(self, pod: Json) -> bool:
        meta, spec = pod["metadata"], pod.get("spec") or {}
        if meta.get("deletionTimestamp") or MIRROR in annotated(pod):
            return False
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return False
        if any(o.get("kind") == "DaemonSet" for o in meta.get("ownerReferences") or []):
            return False
        return self.evict == "all" or gpus_of(spec, self.gpu_resources) > 0


# -- deciding: pure ------------------------------------------------------------------------------------------


def seen_of(node: Json, target: str) -> dict[str, Any]:
    """What a node shows of one isolation: a cordon that is not ours concerns every target, ours only those it names."""
    is_out = bool((node.get("spec") or {}).get("unschedulable")) or any(
        t.get("key") == TAINT for t in _taints(node)
    )
    holder = owner_of(node)
    if not is_out:
        return {"isolated": False, "owner": ""}
    if holder == annotated(node).get(BY) and target not in scopes(node):
        return {"isolated": False, "owner": ""}
    return {"isolated": True, "owner": holder}


def owner_of(node: Json) -> str:
    """Who holds a node out of service: our mark where the cordon is ours, else the one who set it."""
    mark = annotated(node).get(BY, "")
    who = manager_of(node, "spec", "unschedulable")
    if mark and who in ("", MANAGER):
        return mark
    if not (node.get("spec") or {}).get("unschedulable"):
        return mark
    return f"somebody else ({who})" if who and who != MANAGER else "somebody else"


def scopes(node: Json) -> list[str]:
    """The targets a node is cordoned for: itself, or GPUs of it."""
    return [s for s in annotated(node).get(FOR, "").split(",") if s]


def gpus_of(spec: Json, resources: Sequence[str]) -> int:
    """GPUs a pod asks for: of its containers together, or of its largest init container.

    >>> gpus_of({"containers": [{"resources": {"requests": {"nvidia.com/gpu": "4", "cpu": "8"}}}]}, ("nvidia.com/",))
    4
    """

    def of(container: Json) -> int:
        limits = container.get("resources") or {}
        wanted = {**(limits.get("limits") or {}), **(limits.get("requests") or {})}
        return sum(
            int(count)
            for name, count in wanted.items()
            if name.startswith(tuple(resources)) and str(count).isdigit()
        )

    running = sum(of(c) for c in spec.get("containers") or [])
    return max([running, *(of(c) for c in spec.get("initContainers") or [])])


async def find_node(api: Api, name: str) -> Json:
    """The node of this name, or of this hostname where only one has it. Raises NotFound."""
    try:
        return await api.get(node_path(name))
    except NotFound:
        hosts = await api.items("/api/v1/nodes", labelSelector=f"kubernetes.io/hostname={name}")
        if len(hosts) == 1:
            return hosts[0] | {"apiVersion": "v1", "kind": "Node"}
    raise NotFound(
        f"Kubernetes has no node {name}, by name or by hostname; it was removed or renamed: map it under nodes of this backend"
    )


def node_path(name: str) -> str:
    return f"/api/v1/nodes/{quote(name, safe='')}"


def _full_name(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _taints(node: Json) -> list[Json]:
    return (node.get("spec") or {}).get("taints") or []


def _cordon(step: Step, effect: str) -> Any:
    owner = step.arg("owner")

    def change(node: Json) -> Json:
        marks, name = annotated(node), node["metadata"]["name"]
        is_cordoned = bool((node.get("spec") or {}).get("unschedulable"))
        holder = owner_of(node)
        if is_cordoned and holder != owner:
            raise Hopeless(
                f"node {name} is cordoned by {holder}; left to them. To hand it over: kubectl uncordon {name}"
            )
        if not is_cordoned and marks.get(STEP) == step.id:
            raise Hopeless(f"node {name} was uncordoned by hand since we cordoned it; left to them")
        # Marks of a cordon that somebody lifted mean nothing any more.
        known = scopes(node) if is_cordoned else []
        wanted = sorted({*known, step.target.name})
        tainted = any(t.get("key") == TAINT for t in _taints(node))
        if is_cordoned and wanted == known and (tainted or not effect):
            return {}
        spec: Json = {"unschedulable": True}
        if effect and not tainted:
            spec["taints"] = [*_taints(node), {"key": TAINT, "value": "true", "effect": effect}]
        notes = {BY: owner, FOR: ",".join(wanted), STEP: step.id, WHY: step.reason[:200]}
        return {"metadata": {"annotations": notes}, "spec": spec}

    return change


def _uncordon(step: Step) -> Any:
    owner = step.arg("owner")

    def change(node: Json) -> Json:
        marks, name = annotated(node), node["metadata"]["name"]
        if marks.get(BY) != owner:
            if step.target.name in scopes(node) or (node.get("spec") or {}).get("unschedulable"):
                raise Hopeless(f"node {name} is cordoned by {owner_of(node)}, not by {owner}; left to them")
            return {}
        left = [s for s in scopes(node) if s != step.target.name]
        if left:
            return (
                {"metadata": {"annotations": {FOR: ",".join(left), STEP: step.id}}}
                if left != scopes(node)
                else {}
            )
        patch: Json = {"metadata": {"annotations": dict.fromkeys((BY, FOR, STEP, WHY))}}
        spec: Json = {}
        if owner_of(node) == owner:
            spec["unschedulable"] = None
        if any(t.get("key") == TAINT for t in _taints(node)):
            spec["taints"] = [t for t in _taints(node) if t.get("key") != TAINT] or None
        return patch | ({"spec": spec} if spec else {})

    return change
