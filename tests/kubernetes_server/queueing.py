"""What Kueue and Volcano do with queues, as far as a lent and a recalled node shows there.

Written from Kueue's concept pages (ClusterQueue: quotas, stopPolicy; Workload: active, admission) and Volcano's (Queue: capability,
state; Command as `vcctl` writes it). Both admit the oldest job that fits; a smaller quota ends nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubernetes_server.store import KINDS, Json, Store

QUEUE_NAME = "kueue.x-k8s.io/queue-name"


def kind_of(group: str, plural: str) -> Any:
    return next(k for k in KINDS if (k.group, k.plural) == (group, plural))


WORKLOAD = kind_of("kueue.x-k8s.io", "workloads")
JOB = kind_of("batch", "jobs")
VOLCANO_JOB = kind_of("batch.volcano.sh", "jobs")
QUEUE = kind_of("scheduling.volcano.sh", "queues")
COMMAND = kind_of("bus.volcano.sh", "commands")
POD = kind_of("", "pods")


class Queueing:
    """set : (manager, kind, object, path, value). pod : (owner, name, template)."""

    def __init__(
        self,
        store: Store,
        set: Callable[[str, Any, Json, tuple[str, ...], Any], None],
        pod: Callable[[Json, str, Json], None],
    ) -> None:
        self.store, self.set, self.pod = store, set, pod

    def run(self) -> None:
        self._kueue()
        self._volcano()

    # -- Kueue -----------------------------------------------------------------------------------------------

    def _kueue(self) -> None:
        for job in self.store.all("jobs", group="batch"):
            if QUEUE_NAME in (job["metadata"].get("labels") or {}):
                self._workload_of(job)
        queues = {q["metadata"]["name"]: q for q in self.store.all("clusterqueues")}
        homes = {
            (q["metadata"]["namespace"], q["metadata"]["name"]): q["spec"]["clusterQueue"]
            for q in self.store.all("localqueues")
        }
        workloads = self.store.all("workloads")
        for name, queue in queues.items():
            mine = [
                w
                for w in workloads
                if homes.get((w["metadata"]["namespace"], w["spec"]["queueName"])) == name
            ]
            self._admit(queue, mine)

    def _workload_of(self, job: Json) -> None:
        meta, name = job["metadata"], f"job-{job['metadata']['name']}"
        if (WORKLOAD, meta["namespace"], name) in self.store.objects:
            return
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
        }
        body = {
            "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": {"queueName": meta["labels"][QUEUE_NAME], "active": True},
        }
        self.store.create(WORKLOAD, meta["namespace"], body, "kueue")

    def _admit(self, queue: Json, workloads: list[Json]) -> None:
        policy = queue["spec"].get("stopPolicy", "None")
        rows = [
            r
            for group in queue["spec"]["resourceGroups"]
            for flavor in group["flavors"]
            for r in flavor["resources"]
        ]
        quota = sum(int(r["nominalQuota"]) for r in rows if r["name"] == "nvidia.com/gpu")
        used = 0
        for workload in sorted(workloads, key=lambda w: "admission" not in (w.get("status") or {})):
            job = self._job_of(workload)
            is_in = "admission" in (workload.get("status") or {})
            is_wanted = workload["spec"].get("active", True) and policy != "HoldAndDrain"
            if not is_in:
                fits = (
                    used + gpus(job["spec"]["template"]["spec"]) * job["spec"].get("parallelism", 1) <= quota
                )
                is_wanted = is_wanted and policy == "None" and fits
            if is_wanted:
                used += gpus(job["spec"]["template"]["spec"]) * job["spec"].get("parallelism", 1)
            if is_wanted != is_in:
                admission = {"clusterQueue": queue["metadata"]["name"]} if is_wanted else None
                status = {"admission": admission} if admission else {"conditions": [{"type": "Evicted"}]}
                self.set("kueue", WORKLOAD, workload, ("status",), status)
            self.set("kueue", JOB, job, ("spec", "suspend"), not is_wanted)

    def _job_of(self, workload: Json) -> Json:
        owner = workload["metadata"]["ownerReferences"][0]
        return self.store.get(JOB, workload["metadata"]["namespace"], owner["name"])

    # -- Volcano ---------------------------------------------------------------------------------------------

    def _volcano(self) -> None:
        for command in self.store.all("commands"):
            self._obey(command)
        for queue in self.store.all("queues"):
            if not (queue.get("status") or {}).get("state"):
                self.set("volcano", QUEUE, queue, ("status",), {"state": "Open"})
        for job in self.store.all("jobs", group="batch.volcano.sh"):
            self._schedule(job)

    def _obey(self, command: Json) -> None:
        target, space = command["target"], command["metadata"]["namespace"]
        self.store.delete(COMMAND, space, command["metadata"]["name"])
        if target["kind"] == "Queue":
            queue = self.store.get(QUEUE, "", target["name"])
            state = {"OpenQueue": "Open", "CloseQueue": "Closed"}[command["action"]]
            self.set("volcano", QUEUE, queue, ("status",), {"state": state})
            return
        job = self.store.get(VOLCANO_JOB, space, target["name"])
        phase = {"AbortJob": "Aborted", "ResumeJob": "Pending"}[command["action"]]
        self.set("volcano", VOLCANO_JOB, job, ("status",), {"state": {"phase": phase}})

    def _schedule(self, job: Json) -> None:
        meta, name = job["metadata"], job["metadata"]["name"]
        pods = [
            p
            for p in self.store.all("pods", meta["namespace"])
            if any(o["uid"] == meta["uid"] for o in p["metadata"].get("ownerReferences") or [])
        ]
        if ((job.get("status") or {}).get("state") or {}).get("phase") == "Aborted":
            for pod in pods:
                if "deletionTimestamp" not in pod["metadata"]:
                    self.store.delete(POD, meta["namespace"], pod["metadata"]["name"])
            return
        queue = self.store.get(QUEUE, "", job["spec"]["queue"])
        if pods or (queue.get("status") or {}).get("state") != "Open":
            return
        template = job["spec"]["tasks"][0]["template"]
        limit = int((queue["spec"].get("capability") or {}).get("nvidia.com/gpu", 1 << 30))
        if self._used(job["spec"]["queue"]) + gpus(template["spec"]) <= limit:
            self.pod(job, f"{name}-main-0", template)

    def _used(self, queue: str) -> int:
        uids = {
            j["metadata"]["uid"]
            for j in self.store.all("jobs", group="batch.volcano.sh")
            if j["spec"]["queue"] == queue
        }
        return sum(
            gpus(p["spec"])
            for p in self.store.all("pods")
            if any(o["uid"] in uids for o in p["metadata"].get("ownerReferences") or [])
        )


def gpus(spec: Json) -> int:
    """GPUs a pod's containers ask for."""
    return sum(
        int(((c.get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu", 0))
        for c in spec.get("containers", [])
    )
