"""Offline jobs on lent GPUs: they save themselves now and then, and what is not saved is lost when they are stopped."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from daemon.model import Entity, Fact, Layout, Scrape, Series

if TYPE_CHECKING:
    from simulator.fleet import Lease
    from simulator.world import World

TARGET = "offline:9300"
PERIODS_S = (600.0, 1800.0, 3600.0, 7200.0)
"""How often jobs save themselves; the node tells which job it gets."""
SIGNALS = {
    "gpus": "offline_job_gpus",
    "running_s": "offline_job_running_seconds",
    "checkpoint_s": "offline_job_checkpoint_timestamp_seconds",
    "ends_s": "offline_job_end_timestamp_seconds",
}


def period_s(world: World, entity: Entity) -> float:
    """Nodes with the last period keep it to themselves: their job tells of no checkpoint."""
    return PERIODS_S[world.wiring.node(entity.name.split("/")[0]) % len(PERIODS_S)]


def saved(world: World, entity: Entity, lease: Lease, now: float) -> float:
    """When the job of a lease last saved itself; its beginning where it has not yet."""
    period = period_s(world, entity)
    return lease.begun + (now - lease.begun) // period * period


def lost_gpu_s(world: World, entity: Entity, lease: Lease, now: float) -> float:
    """What stopping the job now throws away. At the end of its lease it is prepared: it saves itself before."""
    return 0.0 if now >= lease.until else (now - saved(world, entity, lease, now)) * len(lease.gpus)


def rows(world: World) -> dict[str, tuple[dict[str, float], dict[str, str]]]:
    """Job -> its signals, its labels."""
    found = {}
    for entity, lease in sorted(world.fleet.lent.items()):
        node = entity.name.split("/")[0]
        told = {
            "gpus": float(len(lease.gpus)),
            "running_s": world.at - lease.begun,
            "checkpoint_s": saved(world, entity, lease, world.at),
            "ends_s": lease.until,
        }
        if period_s(world, entity) == PERIODS_S[-1] or told["checkpoint_s"] <= lease.begun:
            del told["checkpoint_s"]
        labels = {"title": f"pretrain-{node}", "user": "research", "queue": "offline", "nodes": node}
        found[f"sim/{node}-{lease.begun - world.epoch:.0f}"] = told, labels
    return found


def scrape(world: World) -> Scrape:
    """The list of jobs as a reading, at this instant."""
    series, values = [], []
    facts = [Fact(Entity("target", TARGET), "job", "jobs")]
    for name, (told, labels) in rows(world).items():
        entity = Entity("job", name)
        for signal, value in told.items():
            series.append(Series(signal, entity))
            values.append(value)
        facts += [Fact(entity, key, value) for key, value in labels.items()]
    return Scrape(TARGET, world.at, _layout(tuple(series), tuple(facts)), np.array(values), took_s=0.004)


@lru_cache(maxsize=16)
def _layout(series: tuple[Series, ...], facts: tuple[Fact, ...]) -> Layout:
    """The same object while the same jobs are listed: another layout would have every table of the daemon bound anew."""
    return Layout(TARGET, series, facts)


def page(world: World) -> str:
    """The same as an exporter's page."""
    lines = []
    for signal, metric in SIGNALS.items():
        lines.append(f"# TYPE {metric} gauge")
        for name, (told, labels) in rows(world).items():
            if signal in told:
                text = ",".join(f'{k}="{v}"' for k, v in {"job": name, **labels}.items())
                lines.append(f"{metric}{{{text}}} {told[signal]!r}")
    return "\n".join(lines) + "\n"
