"""Lists of offline jobs: Slurm's queue, Jobs of Kubernetes, Ray's jobs; and when each was last saved."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from daemon.cabling import CablingError, expanded
from daemon.clock import Clock
from daemon.kubernetes_api import Api, NotFound
from daemon.model import NAN, Entity, Fact, Hopeless, Scrape, SourceError, TryAgain
from daemon.program import run
from daemon.telemetry.columns import Columns, Shapes
from daemon.telemetry.fetch import Credentials, FetchError

LISTER = "jobs"
JOB_LABELS = ("batch.kubernetes.io/job-name", "training.kubeflow.org/job-name", "volcano.sh/job-name")
"""Labels that pods of a batch job carry: the Job controller's, the training operator's, Volcano's."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
GPU_RESOURCE = re.compile(r".+/(gpu|mig-.+)")
CHECKPOINT = "tidewarden.io/checkpoint"
_SAID = re.compile(r"\bcheckpoint=(\S+)")
_GPUS = re.compile(r"gres/gpu(?::[^=,]+)?=(\d+)")
_DETAIL = re.compile(r"gpu(?::[^:(,]+)?:(\d+)")
LAST_FILES = 200
"""Entries of a folder that are looked at for the newest."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A running job as its scheduler shows it. Times since the epoch, NaN or "" = not told. saved_by : "comment", "annotation",
    "metadata" or "file"."""

    system: str
    id: str
    title: str
    user: str = ""
    queue: str = ""
    nodes: tuple[str, ...] = ()
    gpus: float = NAN
    begun: float = NAN
    checkpoint: float = NAN
    saved_by: str = ""
    ends: float = NAN
    restarts: float = NAN


class Lister(Protocol):
    """One scheduler. Raises TryAgain or Hopeless when it gives no list."""

    async def list(self) -> list[Seen]: ...

    async def close(self) -> None: ...


def instant(text: str) -> float:
    """Seconds since the epoch of a number or an ISO time with a zone; NaN for anything else.

    >>> instant("1780272000"), instant("2026-06-01T00:00:00Z"), instant("yesterday")
    (1780272000.0, 1780272000.0, nan)
    """
    with contextlib.suppress(ValueError):
        return float(text)
    with contextlib.suppress(ValueError):
        when = datetime.fromisoformat(text)
        return when.timestamp() if when.tzinfo else NAN
    return NAN


# -- Slurm ---------------------------------------------------------------------------------------------------


def slurm_jobs(text: str) -> list[Seen]:
    """Running jobs of `squeue --json`, of Slurm 21.08 to 25.05. Raises ValueError for what is no such list."""
    rows = json.loads(text).get("jobs")
    if not isinstance(rows, list):
        raise ValueError("no list of jobs in it")
    return [_slurm_job(row) for row in rows if "RUNNING" in _states(row.get("job_state"))]


def _states(told: Any) -> list[str]:
    return [told] if isinstance(told, str) else list(told or ())


def _slurm_job(row: Mapping[str, Any]) -> Seen:
    said = " ".join(str(row.get(key) or "") for key in ("comment", "admin_comment", "system_comment"))
    found = _SAID.search(said)
    checkpoint = instant(found[1]) if found else NAN
    return Seen(
        system="slurm",
        id=str(row.get("job_id", "")),
        title=str(row.get("name") or ""),
        user=str(row.get("user_name") or ""),
        queue=str(row.get("partition") or ""),
        nodes=tuple(expanded(str(row.get("nodes") or ""))),
        gpus=_slurm_gpus(row),
        begun=_number(row.get("start_time")),
        checkpoint=checkpoint,
        saved_by="comment" if checkpoint == checkpoint else "",
        ends=_number(row.get("end_time")),
        restarts=_number(row.get("restart_cnt")),
    )


def _slurm_gpus(row: Mapping[str, Any]) -> float:
    """From what was allocated; a kind of GPU (gpu:h100) is counted once, beside or without the plain line."""
    allocated = str(row.get("tres_alloc_str") or "")
    plain = re.search(r"gres/gpu=(\d+)", allocated)
    if plain:
        return float(plain[1])
    typed = _GPUS.findall(allocated)
    if typed:
        return float(sum(map(int, typed)))
    detail = row.get("gres_detail") or []
    counts = [int(n) for line in detail for n in _DETAIL.findall(str(line))]
    return float(sum(counts)) if detail else NAN


def _number(told: Any) -> float:
    """Plain in old versions, {"set": .., "infinite": .., "number": ..} in new ones; 0 = none."""
    if isinstance(told, Mapping):
        told = told.get("number") if told.get("set") and not told.get("infinite") else None
    return float(told) if isinstance(told, int | float) and told > 0 else NAN


@dataclass(slots=True)
class SlurmQueue:
    """partitions : whose jobs are offline, empty = all. nodes : Slurm -> telemetry. prefix, conf : as for the backend."""

    partitions: Sequence[str] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    conf: str = ""
    timeout_s: float = 10.0

    async def list(self) -> list[Seen]:
        env = {"TZ": "UTC"} | ({"SLURM_CONF": self.conf} if self.conf else {})
        command = [
            "squeue",
            "--json",
            *([f"--partition={','.join(self.partitions)}"] if self.partitions else []),
        ]
        if self.prefix:
            command = [*self.prefix, "env", *(f"{k}={v}" for k, v in env.items()), *command]
        ran = await run(command, self.timeout_s, env)
        if ran.code:
            raise TryAgain(f"`squeue --json`: {ran.said}; is slurmctld up, and munge?")
        try:
            found = slurm_jobs(ran.out)
        except (ValueError, TypeError, KeyError, AttributeError, CablingError) as error:
            raise Hopeless(
                f"`squeue --json` gave no list of jobs ({error}); Slurm 21.08 or newer with its JSON plug-in"
            ) from None
        # Old versions know no --partition beside --json: they list everything.
        return [
            replace(job, nodes=tuple(self.nodes.get(n, n) for n in job.nodes))
            for job in found
            if not self.partitions or set(job.queue.split(",")) & set(self.partitions)
        ]

    async def close(self) -> None:
        pass


# -- Kubernetes ------------------------------------------------------------------------------------------------


def kubernetes_jobs(
    pods: Iterable[Mapping[str, Any]],
    jobs: Iterable[Mapping[str, Any]],
    workloads: Iterable[Mapping[str, Any]],
    annotation: str,
) -> list[Seen]:
    """Jobs with running pods that hold GPUs. jobs : of batch/v1; workloads : of Kueue; both add what pods do not tell."""
    of_job = {_full(job): job for job in jobs}
    queue_of = {
        (w["metadata"].get("namespace", ""), owner["name"]): str(w.get("spec", {}).get("queueName") or "")
        for w in workloads
        for owner in w["metadata"].get("ownerReferences") or ()
    }
    members: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pod in pods:
        marks = pod["metadata"].get("labels") or {}
        name = next((marks[label] for label in JOB_LABELS if marks.get(label)), "")
        if name and (pod.get("status") or {}).get("phase") == "Running" and _pod_gpus(pod) > 0:
            members.setdefault((pod["metadata"].get("namespace", ""), name), []).append(pod)
    return [
        _kubernetes_job(full, found, of_job.get(full, {}), queue_of.get(full, ""), annotation)
        for full, found in sorted(members.items())
    ]


def _full(thing: Mapping[str, Any]) -> tuple[str, str]:
    return thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def _pod_gpus(pod: Mapping[str, Any]) -> float:
    return sum(
        float(count)
        for container in (pod.get("spec") or {}).get("containers") or ()
        for name, count in ((container.get("resources") or {}).get("limits") or {}).items()
        if GPU_RESOURCE.fullmatch(name)
    )


def _kubernetes_job(
    full: tuple[str, str],
    pods: Sequence[Mapping[str, Any]],
    job: Mapping[str, Any],
    queue: str,
    annotation: str,
) -> Seen:
    # The newest word counts: pods may write it themselves, a controller writes it on the Job.
    said = [(t["metadata"].get("annotations") or {}).get(annotation, "") for t in (*pods, job) if t]
    known = [when for when in map(instant, said) if when == when]
    starts = [when for pod in pods if (when := instant(str(pod["status"].get("startTime", "")))) == when]
    spec, status = job.get("spec") or {}, job.get("status") or {}
    began = instant(str(status.get("startTime", "")))
    limit = spec.get("activeDeadlineSeconds")
    marks = (job.get("metadata") or {}).get("labels") or {}
    return Seen(
        system="kubernetes",
        id="/".join(filter(None, full)),
        title=full[1],
        queue=queue or marks.get(QUEUE_LABEL, ""),
        nodes=tuple(sorted({str(p["spec"]["nodeName"]) for p in pods if p["spec"].get("nodeName")})),
        gpus=sum(map(_pod_gpus, pods)),
        # Pods that were started again have lost what the ones before them did.
        begun=max(starts) if starts else began,
        checkpoint=max(known) if known else NAN,
        saved_by="annotation" if known else "",
        ends=began + float(limit) if limit else NAN,
        restarts=float(status.get("failed") or 0),
    )  # fmt: skip


@dataclass(slots=True)
class KubernetesJobs:
    """annotation : of Jobs or their pods, an ISO time or seconds since the epoch."""

    api: Api
    annotation: str = CHECKPOINT

    async def list(self) -> list[Seen]:
        pods: list[Any] = []
        for label in JOB_LABELS:
            pods += await self.api.items("/api/v1/pods", labelSelector=label)
        jobs = await self.api.items("/apis/batch/v1/jobs")
        try:
            workloads = await self.api.items("/apis/kueue.x-k8s.io/v1beta1/workloads")
        except NotFound:
            workloads = []
        return kubernetes_jobs(pods, jobs, workloads, self.annotation)

    async def close(self) -> None:
        await self.api.close()


# -- Ray -------------------------------------------------------------------------------------------------------


def ray_jobs(rows: Any) -> list[Seen]:
    """Running jobs of GET /api/jobs/. Ray does not tell where a job runs nor on how many GPUs: its metadata may, as
    {"nodes": "n01,n02", "gpus": "16", "checkpoint": time}. Raises ValueError for what is no such list."""
    if not isinstance(rows, list):
        raise ValueError("no list of jobs")
    found = []
    for row in rows:
        if row.get("status") != "RUNNING":
            continue
        told = row.get("metadata") or {}
        checkpoint = instant(str(told.get("checkpoint", "")))
        found.append(
            Seen(
                system="ray",
                id=str(row.get("submission_id") or row.get("job_id") or ""),
                title=str(told.get("name") or row.get("entrypoint") or "")[:80],
                user=str(told.get("user", "")),
                nodes=tuple(filter(None, str(told.get("nodes", "")).split(","))),
                gpus=_told_number(told.get("gpus")),
                begun=float(row["start_time"]) / 1000.0 if row.get("start_time") else NAN,
                checkpoint=checkpoint,
                saved_by="metadata" if checkpoint == checkpoint else "",
            )
        )
    return found


def _told_number(told: Any) -> float:
    try:
        return float(told)
    except (TypeError, ValueError):
        return NAN


@dataclass(slots=True)
class RayJobs:
    """url : of the dashboard, such as http://127.0.0.1:8265. the secret's file is read at every use."""

    url: str
    credentials: Credentials = field(default_factory=Credentials)
    timeout_s: float = 10.0
    _session: aiohttp.ClientSession | None = None

    async def list(self) -> list[Seen]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout_s))
        address = f"{self.url.rstrip('/')}/api/jobs/"
        try:
            headers = {**self.credentials.headers(), "Accept": "application/json"}
            async with self._session.get(address, headers=headers) as answer:
                if answer.status != 200:
                    raise TryAgain(f"{address} answered {answer.status}; is it Ray's dashboard?")
                return ray_jobs(await answer.json())
        except FetchError as error:
            raise Hopeless(str(error)) from None
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise TryAgain(f"{address}: {error or type(error).__name__}; is the Ray head up?") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


# -- the source ----------------------------------------------------------------------------------------------


def saved_at(template: str, job: Seen) -> float:
    """When the newest file under the template was written, NaN when there is none. Blocks: a mount may hang.

    template : a path with {id}, {name} and {user}; a folder stands for the newest of its entries.
    """
    safe = {"id": job.id, "name": job.title, "user": job.user}
    if any(
        "/" in value or value in ("", ".", "..") for key, value in safe.items() if f"{{{key}}}" in template
    ):
        return NAN
    path = Path(template.format(**safe))
    try:
        if not path.is_dir():
            return path.stat().st_mtime
        entries = sorted(path.iterdir())[-LAST_FILES:]
        return max((entry.stat().st_mtime for entry in entries), default=NAN)
    except OSError:
        return NAN


@dataclass(slots=True)
class JobList:
    """A Source of one scheduler's jobs. file : template of `saved_at`, "" = none."""

    name: str
    lister: Lister
    clock: Clock
    columns: Columns
    file: str = ""
    file_timeout_s: float = 5.0
    _asked: asyncio.Task[dict[str, float]] | None = None
    _saved: dict[str, float] = field(default_factory=dict)

    async def read(self) -> Sequence[Scrape]:
        at = self.clock()
        try:
            found = await self.lister.list()
        except (TryAgain, Hopeless) as trouble:
            return [Scrape(self.columns.target, at, None, None, error=str(trouble))]
        if self.file:
            found = await self._with_files(found)
        return [scrape_of(self.columns, found, at, self.clock() - at)]

    async def _with_files(self, found: list[Seen]) -> list[Seen]:
        """Jobs that say nothing of a checkpoint, with the time of their file. A mount that hangs keeps one thread, not many."""
        if self._asked is None or self._asked.done():
            silent = [job for job in found if job.checkpoint != job.checkpoint]
            self._asked = asyncio.ensure_future(
                asyncio.to_thread(lambda: {job.id: saved_at(self.file, job) for job in silent})
            )
        with contextlib.suppress(TimeoutError):
            self._saved = await asyncio.wait_for(asyncio.shield(self._asked), self.file_timeout_s)
        return [
            replace(job, checkpoint=when, saved_by="file")
            if job.checkpoint != job.checkpoint and (when := self._saved.get(job.id, NAN)) == when
            else job
            for job in found
        ]

    async def close(self) -> None:
        await self.lister.close()


def scrape_of(columns: Columns, found: Iterable[Seen], at: float, took_s: float) -> Scrape:
    """Jobs as entities of kind "job". What is not known is left out, so that what others push of it stands."""
    readings: dict[tuple[Entity, str], float] = {}
    facts = [Fact(Entity("target", columns.target), "job", LISTER)]
    for job in found:
        entity = Entity("job", f"{job.system}/{job.id}")
        told = {
            "gpus": job.gpus,
            "running_s": at - job.begun,
            "checkpoint_s": job.checkpoint,
            "ends_s": job.ends,
            "restarts": job.restarts,
        }
        readings |= {(entity, signal): value for signal, value in told.items() if not math.isnan(value)}
        about = {
            "title": job.title, "user": job.user, "queue": job.queue, "nodes": ",".join(job.nodes), "saved_by": job.saved_by,
        }  # fmt: skip
        facts += [Fact(entity, key, value) for key, value in about.items() if value]
    return columns.scrape(at, readings, facts, took_s=took_s)


@dataclass(slots=True)
class JobLists:
    """Several of them as one source; one that fails does not silence the others."""

    lists: Sequence[JobList]

    async def read(self) -> Sequence[Scrape]:
        return [scrape for each in self.lists for scrape in await each.read()]

    async def close(self) -> None:
        for each in self.lists:
            await each.close()


def job_lists(settings: Mapping[str, Any], clock: Clock, shapes: Shapes) -> JobLists:
    """From settings of `daemon.settings_sources.JobsSource`. Raises SourceError when none is named."""
    listers: dict[str, tuple[Lister, str]] = {}
    if told := settings.get("slurm"):
        nodes = {theirs: ours for ours, theirs in told["nodes"].items()}
        queue = SlurmQueue(told["partitions"], nodes, told["prefix"], told["conf"], told["timeout"])
        listers["slurm"] = queue, told["checkpoint_file"]
    if told := settings.get("kubernetes"):
        api = Api(told["kubeconfig"], told["context"], told["timeout"])
        listers["kubernetes"] = KubernetesJobs(api, told["annotation"]), told["checkpoint_file"]
    if told := settings.get("ray"):
        listers["ray"] = (
            RayJobs(told["url"], Credentials(told["token_file"]), told["timeout"]),
            told["checkpoint_file"],
        )
    if not listers:
        raise SourceError(
            "sources.jobs: nothing to list; give slurm: {}, kubernetes: {} or ray: {url: http://127.0.0.1:8265}"
        )
    return JobLists(
        [
            JobList(name, lister, clock, Columns(f"jobs:{name}", shapes), file)
            for name, (lister, file) in listers.items()
        ]
    )
