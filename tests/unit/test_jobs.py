"""Offline jobs: as schedulers show them, what stopping them would lose, and whose lease goes first."""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from small_frames import frame, frames

from daemon.frame import FrameBuilder
from daemon.jobs import Job, Jobs, jobs_of, look
from daemon.model import NAN, Entity, Frames, Hopeless, Layout, Scrape, Series, SourceError, Target, TryAgain
from daemon.policy import Policy
from daemon.telemetry.catalogue import load_catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.exposition import Page
from daemon.telemetry.jobs import (
    JobList,
    RayJobs,
    Seen,
    SlurmQueue,
    job_lists,
    kubernetes_jobs,
    ray_jobs,
    saved_at,
    slurm_jobs,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CATALOGUE = load_catalogue()
NOW = 1_800_000_000.0
HOUR = 3600.0


# -- what schedulers show ----------------------------------------------------------------------------------------


def test_slurms_own_list_is_read() -> None:
    found = {job.id: job for job in slurm_jobs((GOLDEN / "squeue-22.05.json").read_text())}

    first = found["1"]
    assert (first.nodes, first.gpus, first.queue, first.user) == (("n1",), 2.0, "offline", "root")
    assert (first.checkpoint, first.saved_by) == (1796022000.0, "comment")
    assert first.ends - first.begun == 1800.0
    assert math.isnan(found["2"].checkpoint)


def test_newer_slurm_wraps_its_numbers_and_states() -> None:
    row = {
        "job_id": 77, "name": "pretrain", "user_name": "kim", "partition": "offline", "job_state": ["RUNNING", "CONFIGURING"],
        "nodes": "n[01-02],login", "start_time": {"set": True, "infinite": False, "number": 1796000000},
        "end_time": {"set": True, "infinite": True, "number": 0}, "tres_alloc_str": "cpu=8,gres/gpu=16,gres/gpu:h100=16",
        "restart_cnt": 2,
    }  # fmt: skip
    waiting = {**row, "job_id": 78, "job_state": ["PENDING"]}

    (job,) = slurm_jobs(json.dumps({"jobs": [row, waiting]}))

    assert (job.nodes, job.gpus, job.begun, job.restarts) == (
        ("n01", "n02", "login"),
        16.0,
        1796000000.0,
        2.0,
    )
    assert math.isnan(job.ends)
    assert job.saved_by == ""


def test_gpus_that_slurm_does_not_tell_are_not_zero() -> None:
    row = {"job_id": 1, "job_state": "RUNNING", "nodes": "n1", "tres_alloc_str": "cpu=4"}

    assert math.isnan(slurm_jobs(json.dumps({"jobs": [row]}))[0].gpus)


def pod(
    name: str,
    node: str,
    gpus: int,
    *,
    job: str = "train",
    label: str = "batch.kubernetes.io/job-name",
    **more: Any,
) -> Any:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {"cpu": "4"}
    return {
        "metadata": {
            "name": name,
            "namespace": "research",
            "labels": {label: job},
            "annotations": more.get("annotations", {}),
        },
        "spec": {"nodeName": node, "containers": [{"resources": {"limits": limits}}]},
        "status": {"phase": more.get("phase", "Running"), "startTime": "2027-01-15T06:00:00Z"},
    }


def test_jobs_of_kubernetes_are_their_running_pods_with_gpus() -> None:
    pods = [
        pod("a", "n1", 8, annotations={"tidewarden.io/checkpoint": "2027-01-15T07:30:00Z"}),
        pod("b", "n2", 8),
        pod("c", "n3", 8, phase="Pending"),
        pod("d", "n4", 0, job="crawl"),
        pod("e", "n5", 4, job="tune", label="volcano.sh/job-name"),
    ]
    job = {
        "metadata": {
            "name": "train",
            "namespace": "research",
            "annotations": {"tidewarden.io/checkpoint": "1799998000"},
        },
        "spec": {"activeDeadlineSeconds": 7200},
        "status": {"startTime": "2027-01-15T05:59:00Z", "failed": 1},
    }
    workload = {
        "metadata": {"namespace": "research", "ownerReferences": [{"kind": "Job", "name": "train"}]},
        "spec": {"queueName": "night"},
    }

    train, tune = kubernetes_jobs(pods, [job], [workload], "tidewarden.io/checkpoint")

    assert (train.id, train.nodes, train.gpus, train.queue) == ("research/train", ("n1", "n2"), 16.0, "night")
    # The pod's word is the newer one.
    assert (train.checkpoint, train.saved_by) == (NOW - 1800.0, "annotation")
    assert (NOW - train.begun, train.ends, train.restarts) == (7200.0, NOW - 60.0, 1.0)
    assert (tune.nodes, tune.gpus, tune.saved_by) == (("n5",), 4.0, "")


def test_ray_tells_what_its_metadata_tells() -> None:
    rows = [
        {"submission_id": "raysubmit_1", "status": "RUNNING", "entrypoint": "python train.py", "start_time": 1799996400000,
         "metadata": {"nodes": "n1,n2", "gpus": "16", "checkpoint": "1799999000", "user": "kim"}},
        {"submission_id": "raysubmit_2", "status": "RUNNING", "entrypoint": "python x.py", "start_time": 1799996400000, "metadata": None},
        {"submission_id": "raysubmit_3", "status": "SUCCEEDED"},
    ]  # fmt: skip

    one, two = ray_jobs(rows)

    assert (one.nodes, one.gpus, NOW - one.begun, NOW - one.checkpoint) == (
        ("n1", "n2"),
        16.0,
        3600.0,
        1000.0,
    )
    assert (two.nodes, two.saved_by) == ((), "")
    assert math.isnan(two.gpus)


def test_a_file_tells_when_a_job_was_saved_and_no_name_leads_out_of_its_folder(tmp_path: Path) -> None:
    for k, name in enumerate(("step-100", "step-200")):
        (tmp_path / "42").mkdir(exist_ok=True)
        (tmp_path / "42" / name).write_text("weights")
        os.utime(tmp_path / "42" / name, (NOW - 500 + k, NOW - 500 + k))
    template = str(tmp_path / "{id}")

    assert saved_at(template, Seen("slurm", "42", "train")) == NOW - 499
    assert math.isnan(saved_at(template, Seen("slurm", "43", "train")))
    assert math.isnan(saved_at(template, Seen("slurm", "..", "train")))
    assert math.isnan(saved_at(str(tmp_path / "{name}"), Seen("slurm", "42", "../42")))


# -- as a source ------------------------------------------------------------------------------------------------


class Told:
    """A scheduler of the test: what it lists, or the trouble it is in."""

    def __init__(self, *found: Seen, trouble: Exception | None = None) -> None:
        self.found, self.trouble = list(found), trouble

    async def list(self) -> list[Seen]:
        if self.trouble:
            raise self.trouble
        return self.found

    async def close(self) -> None:
        pass


TRAIN = Seen("slurm", "42", "train", "kim", "offline", ("n1", "n2"), 16.0, NOW - 2 * HOUR, ends=NOW + HOUR)


def listing(lister: Any, file: str = "") -> JobList:
    return JobList("slurm", lister, lambda: NOW, Columns("jobs:slurm", shapes_of(CATALOGUE)), file)


async def framed(*lists: JobList, pushed: Scrape | None = None) -> Frames:
    builder = FrameBuilder(Policy())
    for each in lists:
        for scrape in await each.read():
            builder.absorb(scrape)
    if pushed is not None:
        builder.absorb(pushed)
    return builder.build(NOW)


async def test_a_list_becomes_jobs_and_the_list_is_known_to_answer() -> None:
    known = look(await framed(listing(Told(TRAIN))))

    (job,) = known.running
    assert known.is_listed
    assert (job.name, job.title, job.nodes, job.gpus, job.begun) == (
        "slurm/42",
        "train",
        ("n1", "n2"),
        16.0,
        NOW - 2 * HOUR,
    )
    assert (job.saved_by, job.loss_gpu_s(NOW)) == ("", 16 * 2 * HOUR)


async def test_an_empty_list_is_knowledge_and_a_silent_one_is_not() -> None:
    assert look(await framed(listing(Told()))) == Jobs(NOW, (), True)
    assert look(await framed(listing(Told(trouble=TryAgain("slurmctld is down"))))) == Jobs(NOW, (), False)


async def test_what_a_job_pushes_of_its_checkpoint_stands_beside_the_list() -> None:
    entity = Entity("job", "slurm/42")
    pushed = Scrape("push", NOW, Layout("push", (Series("checkpoint_s", entity),)), np.array([NOW - 60.0]))

    (job,) = jobs_of(await framed(listing(Told(TRAIN)), pushed=pushed))

    assert (job.saved_by, job.unsaved_s(NOW), job.nodes) == ("pushed", 60.0, ("n1", "n2"))


async def test_a_file_speaks_only_where_the_job_is_silent(tmp_path: Path) -> None:
    (tmp_path / "42").write_text("")
    os.utime(tmp_path / "42", (NOW - 300, NOW - 300))
    told = replace(TRAIN, id="43", checkpoint=NOW - 10.0, saved_by="comment")

    found = {j.name: j for j in jobs_of(await framed(listing(Told(TRAIN, told), str(tmp_path / "{id}"))))}

    assert (found["slurm/42"].saved_by, found["slurm/42"].unsaved_s(NOW)) == ("file", 300.0)
    assert (found["slurm/43"].saved_by, found["slurm/43"].unsaved_s(NOW)) == ("comment", 10.0)


def test_an_exporter_of_any_scheduler_may_tell_the_same() -> None:
    text = (
        'offline_job_gpus{job="pbs/9",nodes="n3,n4",title="tune"} 8\n'
        'offline_job_running_seconds{job="pbs/9",nodes="n3,n4",title="tune"} 600\n'
        'offline_job_checkpoint_timestamp_seconds{job="pbs/9",nodes="n3,n4",title="tune"} 1799999900\n'
    )
    reading = Page(CATALOGUE.wanted, CATALOGUE.keep).parse(text.encode())
    identity = CATALOGUE.identify(Target("pbs:9300"), reading.keys)
    builder = FrameBuilder(Policy())
    builder.absorb(Scrape("pbs:9300", NOW, identity.layout, identity.values(reading.values)))

    known = look(builder.build(NOW))

    assert known.is_listed
    assert [(j.name, j.nodes, j.loss_gpu_s(NOW)) for j in known.running] == [("pbs/9", ("n3", "n4"), 800.0)]


@pytest.fixture
async def ray_head() -> AsyncIterator[tuple[str, list[Any]]]:
    answers: list[Any] = []

    async def jobs(request: web.Request) -> web.Response:
        said = answers[-1]
        return web.Response(status=said) if isinstance(said, int) else web.json_response(said)

    app = web.Application()
    app.add_routes([web.get("/api/jobs/", jobs)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", answers
    await runner.cleanup()


async def test_ray_is_asked_over_http_and_its_troubles_are_told(ray_head: tuple[str, list[Any]]) -> None:
    url, answers = ray_head
    ray = RayJobs(url)

    answers.append([{"submission_id": "r1", "status": "RUNNING", "entrypoint": "x", "start_time": 1}])
    found = await ray.list()
    answers.append(503)
    with pytest.raises(TryAgain, match="answered 503; is it Ray's dashboard"):
        await ray.list()
    answers.append({"detail": "not a list"})
    with pytest.raises(TryAgain, match="no list of jobs"):
        await ray.list()
    await ray.close()

    assert [job.id for job in found] == ["r1"]


async def test_a_squeue_that_cannot_be_run_says_so() -> None:
    with pytest.raises(Hopeless, match="cannot be run"):
        await SlurmQueue(prefix=["/no/such/program"]).list()


def test_a_source_without_a_scheduler_is_refused_with_the_remedy() -> None:
    with pytest.raises(SourceError, match="nothing to list; give slurm"):
        job_lists({}, lambda: NOW, shapes_of(CATALOGUE))


# -- who goes first ---------------------------------------------------------------------------------------------


def job(name: str, nodes: str, unsaved_s: float, *, gpus: float = 8.0, is_saved: bool = True) -> Job:
    begun = NOW - 5 * HOUR if is_saved else NOW - unsaved_s
    saved = NOW - unsaved_s if is_saved else NAN
    return Job(
        name, "", "", "", tuple(nodes.split(",")), gpus, begun, saved, "comment" if is_saved else "", NAN, NAN
    )


def order(
    *running: Job, nodes: str = "n1,n2,n3", is_listed: bool = True, ends: dict[str, float] | None = None
) -> list[str]:
    return [node for node, _ in Jobs(NOW, running, is_listed).by_loss(nodes.split(","), ends or {})]


def test_who_saved_last_goes_first() -> None:
    assert order(job("a", "n1", 3000.0), job("b", "n2", 60.0), job("c", "n3", 900.0)) == ["n2", "n3", "n1"]


def test_a_node_without_a_job_costs_nothing_and_one_that_nobody_lists_is_not_known() -> None:
    one = job("a", "n1", 60.0)

    assert order(one) == ["n2", "n3", "n1"]
    assert order(one, is_listed=False) == ["n1", "n2", "n3"]


def test_without_a_checkpoint_all_since_the_beginning_counts() -> None:
    assert order(job("a", "n1", 300.0, is_saved=False), job("b", "n2", 4000.0), job("c", "n3", 9.0)) == [
        "n3",
        "n1",
        "n2",
    ]


def test_a_job_on_several_nodes_is_lost_once_and_then_all_of_it_goes() -> None:
    wide = job("wide", "n1,n2", 600.0, gpus=16.0)

    found = Jobs(NOW, (wide, job("c", "n3", 1300.0)), True).by_loss(["n1", "n2", "n3"], {})

    assert [(node, loss.gpu_s) for node, loss in found] == [("n1", 9600.0), ("n2", 0.0), ("n3", 10400.0)]


def test_equal_losses_go_by_the_end_of_the_lease() -> None:
    assert order(ends={"n1": 30.0, "n2": 10.0, "n3": 20.0}) == ["n2", "n3", "n1"]


def test_a_loss_is_told_with_how_sure_it_is() -> None:
    known = Jobs(NOW, (job("a", "n1", 450.0), job("b", "n2", 3600.0, is_saved=False)), True)

    assert known.loss("n1").told(NOW) == "loses 1.0 GPU-hours of a (saved 8 min ago)"
    assert known.loss("n2").told(NOW) == "loses up to 8.0 GPU-hours of b (no checkpoint is known)"
    assert known.loss("n3").told(NOW) == "no job runs there"
    assert Jobs(NOW).loss("n3").told(NOW) == ""


def test_a_job_whose_gpus_are_not_told_is_not_free() -> None:
    unknown = job("a", "n1", 60.0, gpus=NAN)

    assert order(unknown, job("b", "n2", 9000.0), job("c", "n3", 9000.0)) == ["n2", "n3", "n1"]
    assert Jobs(NOW, (unknown,), True).loss("n1").told(NOW) == "stops a, how much is lost is not known"


def test_frames_without_jobs_have_none() -> None:
    assert look(frames(NOW)) == Jobs(NOW, (), False)
    target = frame("target", NOW, {"jobs:slurm": {"up": 0.0}}, {"jobs:slurm": {"job": "jobs"}})
    assert not look(frames(NOW, target)).is_listed
