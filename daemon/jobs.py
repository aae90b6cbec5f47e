"""Offline jobs: what runs where, and what would be lost if a node were taken back now."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from daemon.model import NAN, Frames

LISTER = "jobs"
"""Fact `job` of targets that list offline jobs: while one of them answers, a node without a job has none."""
SIGNALS = ("gpus", "running_s", "checkpoint_s", "ends_s", "restarts")


@dataclass(frozen=True, slots=True)
class Job:
    """One job that runs. Times are seconds since the epoch; NaN = not known.

    name : SYSTEM/ID. nodes : empty = not known. gpus : of all its nodes. checkpoint : when its state was last saved.
    saved_by : where that is known from, "" = it is not
    known. ends : when it ends by itself.
    """

    name: str
    title: str
    user: str
    queue: str
    nodes: tuple[str, ...]
    gpus: float
    begun: float
    checkpoint: float
    saved_by: str
    ends: float
    restarts: float

    def unsaved_s(self, at: float) -> float:
        """Seconds of work that would be lost: since the last checkpoint, or since it began when none is known (an upper bound)."""
        since = [t for t in (self.begun, self.checkpoint) if t == t]
        return max(0.0, at - max(since)) if since else NAN

    def loss_gpu_s(self, at: float) -> float:
        """GPU-seconds that would be lost; NaN when it is known neither when it began nor when it was saved, nor its GPUs."""
        return self.unsaved_s(at) * self.gpus


def jobs_of(frames: Frames) -> tuple[Job, ...]:
    """Every job that some list shows, by name."""
    frame = frames["job"]
    if not frame.entities:
        return ()
    blank = ("",) * len(frame.entities)
    keys = ("title", "user", "queue", "nodes", "saved_by")
    facts = zip(*(frame.facts.get(key, blank) for key in keys), strict=True)
    table = frame.columns(SIGNALS).tolist()
    return tuple(
        sorted(
            (
                Job(
                    name=name,
                    title=title,
                    user=user,
                    queue=queue,
                    nodes=tuple(filter(None, nodes.split(","))),
                    gpus=gpus,
                    begun=frames.at - running_s,
                    checkpoint=checkpoint,
                    saved_by=(saved_by or "pushed") if checkpoint == checkpoint else "",
                    ends=ends,
                    restarts=restarts,
                )
                for name, (title, user, queue, nodes, saved_by), (
                    gpus,
                    running_s,
                    checkpoint,
                    ends,
                    restarts,
                ) in zip(frame.entities, facts, table, strict=True)
            ),
            key=lambda job: job.name,
        )
    )


def is_listed(frames: Frames) -> bool:
    """Whether some list of jobs answers now."""
    target = frames["target"]
    jobs = target.facts.get("job", ("",) * len(target.entities))
    return any(job == LISTER and up == 1.0 for job, up in zip(jobs, target.column("up"), strict=True))


@dataclass(frozen=True, slots=True)
class Loss:
    """What taking a node back would cost. gpu_s : 0 = nothing runs there, NaN = not known, or more than is known.

    jobs : that would stop.
    """

    gpu_s: float
    jobs: tuple[Job, ...] = ()

    def told(self, at: float) -> str:
        """In words, "" when nothing is known of jobs there."""
        if not self.jobs:
            return "no job runs there" if self.gpu_s == 0 else ""
        names = ", ".join(f"{job.name}{f' {job.title}' if job.title else ''}" for job in self.jobs)
        saved = [job for job in self.jobs if job.saved_by]
        if self.gpu_s != self.gpu_s:
            return f"stops {names}, how much is lost is not known"
        if len(saved) == len(self.jobs):
            oldest = max(at - job.checkpoint for job in saved)
            return f"loses {self.gpu_s / 3600.0:.1f} GPU-hours of {names} (saved {oldest / 60.0:.0f} min ago)"
        return f"loses up to {self.gpu_s / 3600.0:.1f} GPU-hours of {names} (no checkpoint is known)"


@dataclass(frozen=True, slots=True)
class Jobs:
    """All that is known of offline jobs at a time. is_listed : a node without a job has none."""

    at: float
    running: tuple[Job, ...] = ()
    is_listed: bool = False

    def loss(self, node: str, stopped: Collection[str] = ()) -> Loss:
        """What taking `node` back costs on top of the jobs that are stopped already."""
        hit = tuple(j for j in self.running if node in j.nodes and j.name not in stopped)
        if not hit:
            was_hit = any(node in j.nodes for j in self.running)
            return Loss(0.0 if self.is_listed or was_hit else NAN)
        return Loss(sum(job.loss_gpu_s(self.at) for job in hit), hit)

    def by_loss(self, nodes: Sequence[str], ends: Mapping[str, float]) -> list[tuple[str, Loss]]:
        """Nodes in the order in which taking them back loses least, each with what it costs on top of those before it.

        What is not known comes after what is; equal losses by the end of the lease. A job on several nodes is lost once, and
        then its other nodes cost nothing more.
        """
        left, stopped, order = list(nodes), set[str](), list[tuple[str, Loss]]()
        while left:
            costs = {node: self.loss(node, stopped) for node in left}
            node = min(left, key=lambda n: (_unknown_last(costs[n].gpu_s), ends.get(n, math.inf), n))
            left.remove(node)
            order.append((node, costs[node]))
            stopped |= {job.name for job in costs[node].jobs}
        return order


def _unknown_last(value: float) -> float:
    return value if value == value else math.inf


def look(frames: Frames) -> Jobs:
    return Jobs(frames.at, jobs_of(frames), is_listed(frames))
