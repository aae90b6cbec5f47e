"""Kubernetes leases: a node opened to offline Jobs by label and taint until a time that the Jobs carry themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actions.backends.kubernetes_events import Events, micro_time, seconds_of
from actions.backends.kubernetes_jobs import jobs_of
from actions.backends.kubernetes_nodes import Nodes, node_path
from daemon.kubernetes_api import Api, Json, NotFound, annotated, labels
from daemon.model import Hopeless, Step

LENT = "tidewarden.io/lent"
BY = "tidewarden.io/lent-by"
UNTIL = "tidewarden.io/lent-until"
STEP = "tidewarden.io/lent-step"


class Work(Protocol):
    """Offline work of one kind: plain Jobs, a queue of Kueue, a queue of Volcano. Both may be called again."""

    async def start(self, step: Step, node: str, end: float) -> str:
        """Let it come to the node. end : until when it may stay, seconds since the epoch. Returns what was done."""
        ...

    async def stop(self, step: Step, node: str, pods: Sequence[Json]) -> str:
        """Take it off the node. pods : of offline work that are there now. Returns what was done."""
        ...


@dataclass(frozen=True, slots=True)
class Lending:
    """Label and taint `tidewarden.io/lent` on a node while it is lent; the offline work comes and goes with it.

    space : namespace of the offline work. clock : wall time, to tell which leases are over.
    """

    api: Api
    events: Events
    nodes: Nodes
    owner: str
    space: str
    work: Work
    clock: Callable[[], float]

    async def lend(self, step: Step) -> str:
        """The work gets its end before it gets the node."""
        if step.until <= self.clock():
            raise Hopeless(
                f"the lease of {step.target.name} would have ended before it began, at {micro_time(step.until)}"
            )
        await self._end_overdue(step)
        node = await self.nodes.find(step)
        _refuse_foreign(node, self.owner)
        name = node["metadata"]["name"]
        if (node.get("spec") or {}).get("unschedulable"):
            raise Hopeless(
                f"node {name} is cordoned: nothing could run there; kubectl uncordon {name} when it is sound"
            )
        started = await self.work.start(step, name, await self._first_end(step.until))
        spec = node.get("spec") or {}
        taints = [
            *[t for t in spec.get("taints") or [] if t.get("key") != LENT],
            {"key": LENT, "value": "true", "effect": "NoSchedule"},
        ]
        marks = {BY: self.owner, UNTIL: micro_time(step.until), STEP: step.id}
        if annotated(node).get(STEP) != step.id or labels(node).get(LENT) != "true":
            patch = {
                "metadata": {
                    "labels": {LENT: "true"},
                    "annotations": marks,
                    "resourceVersion": node["metadata"]["resourceVersion"],
                },
                "spec": {"taints": taints},
            }
            await self.api.patch(node_path(name), patch)
        told = f"node {name} open to offline work of {self.space} until {marks[UNTIL]}; {started}"
        await self.events.tell(node, step, "Lent", f"{step.reason}; {told}")
        return told

    async def recall(self, step: Step) -> str:
        """No new pods first, then what holds the node stops, to go on at the next lease."""
        await self._end_overdue(step)
        node = await self.nodes.find(step)
        name = node["metadata"]["name"]
        if labels(node).get(LENT) == "true":
            _refuse_foreign(node, self.owner)
            await self._shut(node)
        stopped = await self.work.stop(step, name, await self._pods_on(name))
        told = f"node {name} is back; {stopped}"
        await self.events.tell(node, step, "Recalled", f"{step.reason}; {told}")
        return told

    async def _shut(self, node: Json) -> None:
        """Take label, taint and marks of a lease off a node."""
        taints = [t for t in (node.get("spec") or {}).get("taints") or [] if t.get("key") != LENT]
        patch = {
            "metadata": {
                "labels": {LENT: None},
                "annotations": dict.fromkeys((BY, UNTIL, STEP)),
                "resourceVersion": node["metadata"]["resourceVersion"],
            },
            "spec": {"taints": taints or None},
        }
        await self.api.patch(node_path(node["metadata"]["name"]), patch)

    async def _end_overdue(self, step: Step) -> None:
        """Give back nodes whose lease ended while nobody was there to recall them."""
        for node in await self.api.items("/api/v1/nodes", labelSelector=f"{LENT}=true"):
            try:
                is_over = seconds_of(annotated(node).get(UNTIL, "")) <= self.clock()
            except ValueError:
                continue
            if is_over and annotated(node).get(BY) == self.owner:
                name = node["metadata"]["name"]
                await self._shut(node)
                await self.work.stop(step, name, await self._pods_on(name))

    async def seen(self, step: Step) -> Mapping[str, Any]:
        """{"lent", "until"}: lent also while an offline pod is still there, whatever the label says."""
        try:
            node = await self.nodes.find(step)
        except NotFound:
            return {}
        if labels(node).get(LENT) != "true":
            return {"lent": bool(await self._pods_on(node["metadata"]["name"])), "until": 0.0}
        try:
            return {"lent": True, "until": seconds_of(annotated(node).get(UNTIL, ""))}
        except ValueError:
            return {"lent": True}

    async def _first_end(self, until: float) -> float:
        """When the first of all leases ends, this one included: offline work may run on any of the nodes."""
        found = [until]
        for node in await self.api.items("/api/v1/nodes", labelSelector=f"{LENT}=true"):
            with contextlib.suppress(ValueError):
                found.append(seconds_of(annotated(node).get(UNTIL, "")))
        return min(end for end in found if end > self.clock())

    async def _pods_on(self, node: str) -> list[Json]:
        """Pods of offline Jobs on a node that have not ended."""
        where = f"/api/v1/namespaces/{self.space}/pods"
        pods = await self.api.items(where, fieldSelector=f"spec.nodeName={node}")
        return [
            p
            for p in pods
            if jobs_of(p) and (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        ]


def _refuse_foreign(node: Json, owner: str) -> None:
    holder = annotated(node).get(BY, "")
    if labels(node).get(LENT) == "true" and holder != owner:
        name = node["metadata"]["name"]
        raise Hopeless(
            f"node {name} is lent by {holder or 'somebody else'}; left to them. To hand it back: kubectl label node {name} {LENT}-"
        )
