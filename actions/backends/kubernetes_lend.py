"""Kubernetes leases: a node opened to offline Jobs by label and taint until a time that the Jobs carry themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actions.backends.kubernetes_events import Events, micro_time, seconds_of
from actions.backends.kubernetes_nodes import Nodes, node_path
from daemon.kubernetes_api import Api, Json, NotFound, annotated, labels
from daemon.model import Hopeless, Step, TryAgain

LENT = "tidewarden.io/lent"
BY = "tidewarden.io/lent-by"
UNTIL = "tidewarden.io/lent-until"
STEP = "tidewarden.io/lent-step"
SUSPENDED = "tidewarden.io/suspended-by"
JOBS = "/apis/batch/v1/namespaces/{}/jobs"


@dataclass(frozen=True, slots=True)
class Lending:
    """Label and taint `tidewarden.io/lent` on a node while it is lent; Jobs of the offline namespace run and stop with it.

    space    : namespace of the offline Jobs. selector : label selector of those we may suspend and resume.
    clock    : wall time, to write a lease's end as a Job's activeDeadlineSeconds.
    """

    api: Api
    events: Events
    nodes: Nodes
    owner: str
    space: str
    selector: str
    clock: Callable[[], float]

    async def lend(self, step: Step) -> str:
        """The Jobs get their end before they get the node."""
        if step.until <= self.clock():
            raise Hopeless(
                f"the lease of {step.target.name} would have ended before it began, at {micro_time(step.until)}"
            )
        await self._end_overdue()
        node = await self.nodes.find(step)
        _refuse_foreign(node, self.owner)
        name = node["metadata"]["name"]
        if (node.get("spec") or {}).get("unschedulable"):
            raise Hopeless(
                f"node {name} is cordoned: nothing could run there; kubectl uncordon {name} when it is sound"
            )
        started = await self._start_jobs(step.until)
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
        told = f"node {name} open to offline Jobs of {self.space} until {marks[UNTIL]}, {started} of them started"
        await self.events.tell(node, step, "Lent", f"{step.reason}; {told}")
        return told

    async def recall(self, step: Step) -> str:
        """No new pods first, then the Jobs that hold the node stop, to be resumed at the next lease."""
        await self._end_overdue()
        node = await self.nodes.find(step)
        name = node["metadata"]["name"]
        if labels(node).get(LENT) == "true":
            _refuse_foreign(node, self.owner)
            await self._shut(node)
        stopped = await self._stop_jobs(await self._pods_on(name))
        told = f"node {name} is back, {stopped} offline Jobs suspended"
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

    async def _end_overdue(self) -> None:
        """Give back nodes whose lease ended while nobody was there to recall them; their Jobs have ended by themselves."""
        for node in await self.api.items("/api/v1/nodes", labelSelector=f"{LENT}=true"):
            try:
                is_over = seconds_of(annotated(node).get(UNTIL, "")) <= self.clock()
            except ValueError:
                continue
            if is_over and annotated(node).get(BY) == self.owner:
                await self._shut(node)

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

    # -- Jobs ----------------------------------------------------------------------------------------------

    async def _start_jobs(self, until: float) -> int:
        """Resume what waits for us, each with an end that holds even if this daemon is dead. The end is only ever moved nearer."""
        end = min([until, *await self._ends()])
        left_s = math.floor(end - self.clock())
        if left_s <= 0:
            raise TryAgain("another lease of the offline Jobs is just ending")
        started = 0
        for job in await self.api.items(JOBS.format(self.space), labelSelector=self.selector):
            spec = job["spec"]
            if (
                not spec.get("suspend")
                or _is_over(job)
                or annotated(job).get(SUSPENDED, self.owner) != self.owner
            ):
                continue
            patch = {
                "metadata": {
                    "annotations": {SUSPENDED: None},
                    "resourceVersion": job["metadata"]["resourceVersion"],
                },
                "spec": {"suspend": False, "activeDeadlineSeconds": left_s},
            }
            await self.api.patch(_path(job), patch)
            started += 1
        return started

    async def _ends(self) -> list[float]:
        """Ends of the other leases: a Job may run on any of the nodes."""
        found = []
        for node in await self.api.items("/api/v1/nodes", labelSelector=f"{LENT}=true"):
            try:
                end = seconds_of(annotated(node).get(UNTIL, ""))
            except ValueError:
                continue
            if end > self.clock():
                found.append(end)
        return found

    async def _stop_jobs(self, pods: Sequence[Json]) -> int:
        names = {name for pod in pods for name in _jobs_of(pod)}
        for name in sorted(names):
            job = await self.api.get(f"{JOBS.format(self.space)}/{name}")
            if not job["spec"].get("suspend"):
                patch = {"metadata": {"annotations": {SUSPENDED: self.owner}}, "spec": {"suspend": True}}
                await self.api.patch(_path(job), patch)
        return len(names)

    async def _pods_on(self, node: str) -> list[Json]:
        """Pods of offline Jobs on a node that have not ended."""
        where = f"/api/v1/namespaces/{self.space}/pods"
        pods = await self.api.items(where, fieldSelector=f"spec.nodeName={node}")
        return [
            p
            for p in pods
            if _jobs_of(p) and (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        ]


def _jobs_of(pod: Json) -> list[str]:
    owners = pod["metadata"].get("ownerReferences") or []
    return [owner["name"] for owner in owners if owner.get("kind") == "Job"]


def _refuse_foreign(node: Json, owner: str) -> None:
    holder = annotated(node).get(BY, "")
    if labels(node).get(LENT) == "true" and holder != owner:
        name = node["metadata"]["name"]
        raise Hopeless(
            f"node {name} is lent by {holder or 'somebody else'}; left to them. To hand it back: kubectl label node {name} {LENT}-"
        )


def _is_over(job: Json) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in conditions)


def _path(job: Json) -> str:
    return f"{JOBS.format(job['metadata']['namespace'])}/{job['metadata']['name']}"
