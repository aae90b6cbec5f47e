"""Offline jobs as the Kubernetes API lists them, over the protocol server: pods of Jobs, Kueue's workloads, or none of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes_server import KubernetesServer
from kubernetes_server.store import KINDS

from daemon.kubernetes_api import Api
from daemon.model import Hopeless
from daemon.settings_sources import KubernetesJobs as Told
from daemon.telemetry.catalogue import load_catalogue, shapes_of
from daemon.telemetry.jobs import KubernetesJobs, job_lists

pytestmark = pytest.mark.integration
Json = dict[str, Any]


def kind(plural: str) -> Any:
    return next(k for k in KINDS if k.plural == plural)


def fill(server: KubernetesServer) -> None:
    """A Job of two pods that hold eight GPUs each, its workload in a queue, and a pod that serves."""
    server.store.create(kind("namespaces"), "", {"metadata": {"name": "research"}})
    annotations = {"tidewarden.io/checkpoint": "2027-01-15T07:30:00Z"}
    job = {
        "metadata": {"name": "train", "namespace": "research", "annotations": annotations},
        "spec": {"parallelism": 0, "template": {"spec": {"containers": [{"name": "m", "image": "train"}]}}},
    }
    server.store.create(kind("jobs"), "research", job)
    for name, node, labels in (
        ("train-a", "n1", {"batch.kubernetes.io/job-name": "train"}),
        ("train-b", "n2", {"batch.kubernetes.io/job-name": "train"}),
        ("serve", "n3", {"app": "chat"}),
    ):
        limits = {"nvidia.com/gpu": "8"}
        pod = {
            "metadata": {"name": name, "namespace": "research", "labels": labels},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "m", "image": "m", "resources": {"limits": limits}}],
            },
            "status": {"phase": "Running", "startTime": "2027-01-15T06:00:00Z"},
        }
        server.store.create(kind("pods"), "research", pod)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "1"}
    workload = {
        "metadata": {"name": "job-train", "namespace": "research", "ownerReferences": [owner]},
        "spec": {"queueName": "night"},
    }
    server.store.create(kind("workloads"), "research", workload)


async def test_a_job_is_its_pods_with_its_queue_and_its_checkpoint(tmp_path: Path) -> None:
    async with KubernetesServer().running() as server:
        fill(server)
        told = Told(kubeconfig=server.kubeconfig(tmp_path))
        lists = job_lists(
            {"kubernetes": told.model_dump()}, lambda: 1_800_000_000.0, shapes_of(load_catalogue())
        )

        (scrape,) = await lists.read()
        await lists.close()

    assert scrape.error == ""
    assert scrape.layout is not None
    assert scrape.values is not None
    assert {s.entity.name for s in scrape.layout.series} == {"kubernetes/research/train"}
    values = {s.signal: v for s, v in zip(scrape.layout.series, scrape.values.tolist(), strict=True)}
    assert (values["gpus"], values["running_s"], values["checkpoint_s"]) == (16.0, 7200.0, 1_799_998_200.0)
    facts = {f.key: f.value for f in scrape.layout.facts if f.entity.kind == "job"}
    assert (facts["nodes"], facts["queue"], facts["saved_by"]) == ("n1,n2", "night", "annotation")


async def test_a_cluster_without_kueue_lists_its_jobs_all_the_same(tmp_path: Path) -> None:
    async with KubernetesServer(absent={"Workload"}).running() as server:
        fill(server)
        lister = KubernetesJobs(Api(server.kubeconfig(tmp_path)))
        (job,) = await lister.list()
        await lister.close()

    assert (job.id, job.nodes, job.queue) == ("research/train", ("n1", "n2"), "")


async def test_a_token_that_may_not_list_jobs_is_told_and_nothing_is_made_up(tmp_path: Path) -> None:
    rights = {"poor-token-1234567890": ["list /pods"]}
    async with KubernetesServer(tokens=dict(rights)).running() as server:
        fill(server)
        lister = KubernetesJobs(Api(server.kubeconfig(tmp_path, "poor-token-1234567890")))
        with pytest.raises(Hopeless, match="jobs"):
            await lister.list()
        await lister.close()
