"""Kueue: a ClusterQueue whose GPU quota rises with every node that is lent to it and is drained when it is wanted back."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actions.backends.kubernetes_jobs import JOBS, is_over, job_path, jobs_of, left_s
from actions.backends.kubernetes_quota import LENT, STOPPED, Quota, quota_of
from daemon.kubernetes_api import Api, Conflict, Json, annotated, version
from daemon.model import Hopeless, Step, TryAgain

QUEUES = "/apis/kueue.x-k8s.io/v1beta1/clusterqueues/"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta1/namespaces/{}/workloads"
HELD = "tidewarden.io/deactivated-by"
TRIES = 5
SHARE = 0.4
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Kueue:
    """Kueue itself suspends and resumes Jobs; we move its quota, never `suspend`.

    queue : name of the ClusterQueue. space, selector : offline Jobs, which get the end of a lease. resources : how names
    of GPU resources begin. A lowered quota evicts nobody: the last node's recall drains the queue (HoldAndDrain), an
    earlier one deactivates the workloads on that node until Kueue has evicted them, after which they queue again.
    Source: docs/en/backends/kubernetes.md.
    """

    api: Api
    owner: str
    queue: str
    space: str
    selector: str
    resources: tuple[str, ...]
    clock: Callable[[], float]

    async def start(self, step: Step, node: str, end: float) -> str:
        """Ends first: what is admitted with the new quota carries them already."""
        for job in await self.api.items(JOBS.format(self.space), labelSelector=self.selector):
            if job["spec"].get("suspend") and not is_over(job):
                ends = {"activeDeadlineSeconds": left_s(end, self.clock())}
                await self.api.patch(job_path(job), {"spec": ends})

        def change(queue: Json, quota: Quota) -> Quota:
            if _is_stopped(queue) and annotated(queue).get(STOPPED) != self.owner:
                policy = queue["spec"]["stopPolicy"]
                raise Hopeless(
                    f"ClusterQueue {self.queue} is stopped by somebody else (stopPolicy {policy}); left to them. "
                    f'To hand it over: kubectl patch clusterqueue {self.queue} --type merge -p \'{{"spec":{{"stopPolicy":"None"}}}}\''
                )
            return quota.plus(node, int(step.amount))

        quota = await self._moved(change)
        await self._free([w for w in await self._workloads() if HELD in annotated(w)])
        return f"ClusterQueue {self.queue} has {quota.gpus} GPUs"

    async def stop(self, step: Step, node: str, pods: Sequence[Json]) -> str:
        quota = await self._moved(lambda queue, quota: quota.minus(node))
        if quota.is_all_ours:
            return f"ClusterQueue {self.queue} has no GPUs and is drained"
        names = {name for pod in pods for name in jobs_of(pod)}
        owned = [w for w in await self._workloads() if names & set(jobs_of(w))]
        for workload in owned:
            held = {"metadata": {"annotations": {HELD: self.owner}}, "spec": {"active": False}}
            await self.api.patch(_workload_path(workload), held)
        await self._evicted({w["metadata"]["name"] for w in owned}, SHARE * step.deadline_s)
        return f"ClusterQueue {self.queue} has {quota.gpus} GPUs, {len(owned)} workloads go back into it"

    async def looked(self) -> str:
        """What stands there, for `config check --live`."""
        queue = await self.api.get(QUEUES + self.queue)
        quota = quota_of(queue, f"ClusterQueue {self.queue}", self._held(queue)["nominalQuota"])
        return f"{quota.gpus} GPUs, {len(quota.lent)} nodes lent to it"

    # -- the queue -----------------------------------------------------------------------------------------

    async def _moved(self, change: Callable[[Json, Quota], Quota]) -> Quota:
        """Read, decide, write; again when somebody else wrote in between."""
        for _ in range(TRIES):
            queue = await self.api.get(QUEUES + self.queue)
            spec = copy.deepcopy(queue["spec"])
            held = self._held({"spec": spec})
            before = quota_of(queue, f"ClusterQueue {self.queue}", held["nominalQuota"])
            after = change(queue, before)
            wants_stop = after.is_all_ours
            if after == before and wants_stop == _is_stopped(queue):
                return after
            held["nominalQuota"] = after.gpus
            patch = {
                "metadata": {
                    "annotations": {LENT: after.note, STOPPED: self.owner if wants_stop else None},
                    "resourceVersion": version(queue),
                },
                "spec": {
                    "resourceGroups": spec["resourceGroups"],
                    "stopPolicy": "HoldAndDrain" if wants_stop else "None",
                },
            }
            try:
                await self.api.patch(QUEUES + self.queue, patch)
            except Conflict:
                continue
            return after
        raise TryAgain(f"ClusterQueue {self.queue} is being changed by others without a pause")

    def _held(self, queue: Json) -> Json:
        """The row of the GPU quota, in place. Raises Hopeless where there is none, or a choice."""
        rows: list[Json] = [
            row
            for group in queue["spec"].get("resourceGroups") or []
            for flavor in group.get("flavors") or []
            for row in flavor.get("resources") or []
            if str(row.get("name", "")).startswith(self.resources)
        ]
        if len(rows) != 1:
            raise Hopeless(
                f"ClusterQueue {self.queue} has {len(rows)} GPU quotas, one is needed: give lent nodes a flavor and a queue of their own "
                '(nodeLabels tidewarden.io/lent: "true")'
            )
        return rows[0]

    # -- workloads -----------------------------------------------------------------------------------------

    async def _workloads(self) -> list[Json]:
        return await self.api.items(WORKLOADS.format(self.space))

    async def _evicted(self, names: set[str], within_s: float) -> None:
        """Let each go back into the queue as soon as Kueue has taken its quota away."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        while names:
            out = [
                w
                for w in await self._workloads()
                if w["metadata"]["name"] in names and not (w.get("status") or {}).get("admission")
            ]
            await self._free(out)
            names = names - {w["metadata"]["name"] for w in out}
            if not names or loop.time() > end:
                return
            await asyncio.sleep(POLL_S)

    async def _free(self, workloads: Sequence[Json]) -> None:
        for workload in workloads:
            if annotated(workload).get(HELD) == self.owner:
                free = {"metadata": {"annotations": {HELD: None}}, "spec": {"active": True}}
                await self.api.patch(_workload_path(workload), free)


def _is_stopped(queue: Json) -> bool:
    return bool(queue["spec"].get("stopPolicy", "None") != "None")


def _workload_path(workload: Json) -> str:
    return f"{WORKLOADS.format(workload['metadata']['namespace'])}/{workload['metadata']['name']}"
