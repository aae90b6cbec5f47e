"""What the jobs page says: offline jobs, what stopping each would lose, which lease goes first."""

from __future__ import annotations

import math

from daemon import jobs
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.web.views import Row

NEEDS = "no list of offline jobs answers: give sources.jobs (slurm, kubernetes or ray), or export offline_job_* metrics; until then leases are recalled by their end"


def order(daemon: Daemon) -> list[tuple[str, jobs.Loss]]:
    """Leases in the order in which they would be recalled now."""
    leases = daemon.core.state.fleet.leases
    return jobs.look(daemon.frames).by_loss(
        list(leases), {node: lease.until for node, lease in leases.items()}
    )


def of(daemon: Daemon) -> Row:
    now, leases = daemon.frames.at, daemon.core.state.fleet.leases
    known = jobs.look(daemon.frames)
    return {
        "at": now or NAN,
        "is_listed": known.is_listed,
        "missing": "" if known.is_listed else NEEDS,
        "jobs": [
            {
                "name": job.name,
                "title": job.title,
                "user": job.user,
                "queue": job.queue,
                "nodes": list(job.nodes),
                "gpus": job.gpus,
                "running_s": now - job.begun,
                "saved_by": job.saved_by,
                "checkpoint": job.checkpoint,
                "unsaved_s": job.unsaved_s(now),
                "loss_gpu_hours": job.loss_gpu_s(now) / 3600.0,
                "is_bound": not job.saved_by,
                "ends": job.ends,
                "restarts": job.restarts,
                "is_lent": any(node in leases for node in job.nodes),
            }
            for job in sorted(known.running, key=lambda job: _known_first(job.loss_gpu_s(now)))
        ],
        "recall_order": [
            {
                "node": node,
                "gpus": leases[node].gpus,
                "until": leases[node].until,
                "loss_gpu_hours": loss.gpu_s / 3600.0,
                "jobs": [job.name for job in loss.jobs],
                "text": loss.told(now) or "nothing is known of jobs there",
            }
            for node, loss in order(daemon)
        ],
    }


def _known_first(value: float) -> float:
    return value if value == value else math.inf
