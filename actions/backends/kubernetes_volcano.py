"""Volcano: a queue whose GPU capability rises with every node that is lent to it; its jobs are aborted and resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actions.backends.kubernetes_jobs import SUSPENDED, jobs_of
from actions.backends.kubernetes_quota import LENT, STOPPED, Quota, quota_of
from daemon.kubernetes_api import Api, Conflict, Json, annotated, version
from daemon.model import Hopeless, Step, TryAgain

QUEUES = "/apis/scheduling.volcano.sh/v1beta1/queues/"
JOBS = "/apis/batch.volcano.sh/v1alpha1/namespaces/{}/jobs"
COMMANDS = "/apis/bus.volcano.sh/v1alpha1/namespaces/{}/commands"
HOME = "default"
"""Namespace of commands to queues, which have none themselves: where `vcctl` puts them."""
TRIES = 5


@dataclass(frozen=True, slots=True)
class Volcano:
    """A lowered capability ends nobody, and neither does a closed queue: jobs on the node are aborted by a Command, as
    `vcctl job suspend` does, and resumed with the next lease.

    queue : its name. space : namespace of its jobs. resources : how names of GPU resources begin. A Volcano job carries no
    end that could be written, so a lease is not over while this daemon is away. Source: docs/en/backends/kubernetes.md.
    """

    api: Api
    owner: str
    queue: str
    space: str
    resources: tuple[str, ...]

    async def start(self, step: Step, node: str, end: float) -> str:
        def change(queue: Json, quota: Quota) -> Quota:
            if _is_closed(queue) and annotated(queue).get(STOPPED) != self.owner:
                raise Hopeless(
                    f"queue {self.queue} is closed by somebody else; left to them. To hand it over: vcctl queue operate --name {self.queue} --action open"
                )
            return quota.plus(node, int(step.amount))

        quota, queue = await self._moved(change)
        if _is_closed(queue):
            # The mark of a queue we closed stays until it is seen open: who asks again must not take it for a person's.
            await self._command(step, queue, HOME, "OpenQueue")
        resumed = 0
        for job in await self.api.items(JOBS.format(self.space)):
            if job["spec"].get("queue") == self.queue and annotated(job).get(SUSPENDED) == self.owner:
                await self._command(step, job, self.space, "ResumeJob")
                await self._note(job, None)
                resumed += 1
        return f"queue {self.queue} has {quota.gpus} GPUs, {resumed} jobs resumed"

    async def stop(self, step: Step, node: str, pods: Sequence[Json]) -> str:
        quota, queue = await self._moved(lambda queue, quota: quota.minus(node))
        names = sorted({name for pod in pods for name in jobs_of(pod)})
        for name in names:
            job = await self.api.get(f"{JOBS.format(self.space)}/{name}")
            await self._note(job, self.owner)
            await self._command(step, job, self.space, "AbortJob")
        if quota.is_all_ours and not _is_closed(queue):
            await self._command(step, queue, HOME, "CloseQueue")
        return f"queue {self.queue} has {quota.gpus} GPUs, {len(names)} jobs aborted until the next lease"

    async def looked(self) -> str:
        """What stands there, for `config check --live`."""
        queue = await self.api.get(QUEUES + self.queue)
        quota = quota_of(queue, f"queue {self.queue}", queue["spec"]["capability"][self._resource(queue)])
        return f"{quota.gpus} GPUs, {len(quota.lent)} nodes lent to it; its jobs carry no end, a lease outlives this daemon"

    async def _moved(self, change: Callable[[Json, Quota], Quota]) -> tuple[Quota, Json]:
        """The quota afterwards, with the queue as it is then."""
        for _ in range(TRIES):
            queue = await self.api.get(QUEUES + self.queue)
            resource = self._resource(queue)
            before = quota_of(queue, f"queue {self.queue}", queue["spec"]["capability"][resource])
            after = change(queue, before)
            was_ours = annotated(queue).get(STOPPED) == self.owner
            mark = self.owner if after.is_all_ours or (was_ours and _is_closed(queue)) else None
            if after == before and annotated(queue).get(STOPPED) == mark:
                return after, queue
            patch = {
                "metadata": {
                    "annotations": {LENT: after.note, STOPPED: mark},
                    "resourceVersion": version(queue),
                },
                "spec": {"capability": {resource: str(after.gpus)}},
            }
            try:
                return after, await self.api.patch(QUEUES + self.queue, patch)
            except Conflict:
                continue
        raise TryAgain(f"queue {self.queue} is being changed by others without a pause")

    def _resource(self, queue: Json) -> str:
        limits: dict[str, object] = queue["spec"].get("capability") or {}
        names = [r for r in limits if r.startswith(self.resources)]
        if len(names) != 1:
            raise Hopeless(
                f"queue {self.queue} has {len(names)} GPU limits under capability, one is needed, else it is not bounded: "
                f'kubectl patch queue {self.queue} --type merge -p \'{{"spec":{{"capability":{{"nvidia.com/gpu":"0"}}}}}}\''
            )
        return names[0]

    async def _note(self, job: Json, owner: str | None) -> None:
        await self.api.patch(
            f"{JOBS.format(self.space)}/{job['metadata']['name']}",
            {"metadata": {"annotations": {SUSPENDED: owner}}},
        )

    async def _command(self, step: Step, thing: Json, space: str, action: str) -> None:
        """Ask Volcano's controllers for something, once a step."""
        is_queue = space == HOME and action.endswith("Queue")
        target = {
            "apiVersion": "scheduling.volcano.sh/v1beta1" if is_queue else "batch.volcano.sh/v1alpha1",
            "kind": "Queue" if is_queue else "Job",
            "name": thing["metadata"]["name"],
            "uid": thing["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        name = f"{thing['metadata']['name']}-{action}-{step.id}".lower()
        body = {
            "apiVersion": "bus.volcano.sh/v1alpha1",
            "kind": "Command",
            "metadata": {"name": name[:253], "namespace": space, "ownerReferences": [target]},
            "action": action,
            "target": target,
        }
        with contextlib.suppress(Conflict):  # it was asked for already and is not yet read
            await self.api.post(COMMANDS.format(space), body)


def _is_closed(queue: Json) -> bool:
    return (queue.get("status") or {}).get("state", "Open") in ("Closed", "Closing")
