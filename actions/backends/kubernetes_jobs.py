"""Plain Kubernetes Jobs as offline work: suspended until a node is lent, and suspended again when it is wanted back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.kubernetes_api import Api, Json, annotated
from daemon.model import Step, TryAgain

SUSPENDED = "tidewarden.io/suspended-by"
JOBS = "/apis/batch/v1/namespaces/{}/jobs"


@dataclass(frozen=True, slots=True)
class Jobs:
    """space : namespace of the Jobs. selector : label selector of those we may suspend and resume. clock : wall time."""

    api: Api
    owner: str
    space: str
    selector: str
    clock: Callable[[], float]

    async def start(self, step: Step, node: str, end: float) -> str:
        """Resume what waits for us, each with an end that holds even if this daemon is dead. end : of the first lease to end,
        as a Job may run on any node that is lent."""
        started = 0
        for job in await self.api.items(JOBS.format(self.space), labelSelector=self.selector):
            spec = job["spec"]
            if (
                not spec.get("suspend")
                or is_over(job)
                or annotated(job).get(SUSPENDED, self.owner) != self.owner
            ):
                continue
            patch = {
                "metadata": {
                    "annotations": {SUSPENDED: None},
                    "resourceVersion": job["metadata"]["resourceVersion"],
                },
                "spec": {"suspend": False, "activeDeadlineSeconds": left_s(end, self.clock())},
            }
            await self.api.patch(job_path(job), patch)
            started += 1
        return f"{started} Jobs of {self.space} started"

    async def stop(self, step: Step, node: str, pods: Sequence[Json]) -> str:
        names = {name for pod in pods for name in jobs_of(pod)}
        for name in sorted(names):
            job = await self.api.get(f"{JOBS.format(self.space)}/{name}")
            if not job["spec"].get("suspend"):
                patch = {"metadata": {"annotations": {SUSPENDED: self.owner}}, "spec": {"suspend": True}}
                await self.api.patch(job_path(job), patch)
        return f"{len(names)} offline Jobs suspended"


def left_s(end: float, now: float) -> int:
    """Whole seconds until the end. Raises TryAgain when there are none."""
    seconds = math.floor(end - now)
    if seconds <= 0:
        raise TryAgain("another lease of the offline Jobs is just ending")
    return seconds


def jobs_of(pod: Json) -> list[str]:
    owners = pod["metadata"].get("ownerReferences") or []
    return [owner["name"] for owner in owners if owner.get("kind") == "Job"]


def is_over(job: Json) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in conditions)


def job_path(job: Json) -> str:
    return f"{JOBS.format(job['metadata']['namespace'])}/{job['metadata']['name']}"
