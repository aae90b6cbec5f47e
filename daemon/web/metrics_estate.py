"""What dashboards draw of the estate around the replicas: checklists, stores, starts, offline jobs, gateways, energy."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from daemon import energy, jobs
from daemon.coldstart import by_source, quantile
from daemon.loop import Daemon
from daemon.storage import stores
from daemon.web import fronting, standing, storing
from daemon.web.metrics_ahead import POOLS_MAX


def posture(daemon: Daemon) -> Iterator[Metric]:
    """The live checklists: what each item measures, and whether those of the cluster's own tier pass."""
    value = GaugeMetricFamily(
        "tidewarden_posture_value",
        "What an item of the checklists measures, in its own unit; NaN = not measured.",
        labels=["item", "tier"],
    )
    passes = GaugeMetricFamily(
        "tidewarden_posture_pass",
        "Whether an item of the cluster's own checklist passes; absent = unknown or not applicable.",
        labels=["item", "tier"],
    )
    found = standing.of(daemon)
    for row in found["posture"]:
        value.add_metric([row["item"], row["tier"]], row["value"])
        if row["tier"] == found["tier"] and row["state"] in ("pass", "fail"):
            passes.add_metric([row["item"], row["tier"]], float(row["state"] == "pass"))
    yield value
    yield passes


STORE_GAUGES = {
    "read_bytes_per_second": ("read_bytes_s", "Read from the store by all its nodes."),
    "write_bytes_per_second": ("write_bytes_s", "Written to the store by all its nodes."),
    "read_seconds": ("read_time_s", "Mean time of a read."),
    "timeouts_per_second": ("errors_per_s", "Requests that found no answer in time."),
    "resent_ratio": ("resent_ratio", "Requests sent again over requests."),
    "free_ratio": ("free_ratio", "Share of the store that is free."),
    "cache_hit_ratio": ("hit_ratio", "Share of loads that a cache answered."),
}


def storage(daemon: Daemon) -> Iterator[Metric]:
    """Stores, how long starts take from each source, weights to read in."""
    found = stores(daemon.frames)[:POOLS_MAX]
    for name, (key, text) in STORE_GAUGES.items():
        family = GaugeMetricFamily(f"tidewarden_store_{name}", text, labels=["store", "source"])
        for store in found:
            family.add_metric([store.name or "local", store.source], getattr(store, key))
        yield family
    starts = GaugeMetricFamily(
        "tidewarden_cold_start_seconds",
        "How long replicas of a pool took to start.",
        labels=["pool", "source", "quantile"],
    )
    for pool, kept in list(daemon.core.state.starts.kept.items())[:POOLS_MAX]:
        for source, group in by_source(kept).items():
            for level in (0.5, 0.95):
                starts.add_metric([pool, source or "unknown", f"{level:g}"], quantile(group, level))
    yield starts
    wished = GaugeMetricFamily(
        "tidewarden_weights_to_read_in_nodes",
        "Nodes that should read a pool's weights in before a forecast rise.",
        labels=["pool"],
    )
    for wish in storing.warm(daemon):
        wished.add_metric([wish.pool], float(len(wish.nodes)))
    yield wished


JOBS_MAX = 200


def offline(daemon: Daemon) -> Iterator[Metric]:
    """Offline jobs, and what stopping each would lose."""
    known = jobs.look(daemon.frames)
    yield GaugeMetricFamily(
        "tidewarden_offline_jobs",
        "Offline jobs that run.",
        value=float(len(known.running)) if known.is_listed or known.running else math.nan,
    )
    lost = GaugeMetricFamily(
        "tidewarden_offline_job_unsaved_gpu_seconds",
        "Work that would be lost if the job were stopped now; since it began where no checkpoint is known.",
        labels=["job"],
    )
    age = GaugeMetricFamily(
        "tidewarden_offline_job_checkpoint_age_seconds",
        "Time since the job last saved itself.",
        labels=["job"],
    )
    for job in known.running[:JOBS_MAX]:
        lost.add_metric([job.name], job.loss_gpu_s(known.at))
        age.add_metric([job.name], known.at - job.checkpoint)
    yield lost
    yield age


FRONT_GAUGES = {
    "arrivals_per_second": ("arrivals_per_s", "Requests that reach the gateway."),
    "errors_per_second": ("errors_per_s", "Requests the gateway answered with a failure of ours."),
    "queue_requests": ("queue", "Requests the gateway holds before any replica has them."),
    "latency_seconds": ("latency_s", "Mean time of a request as the gateway sees it."),
}


def gateway(daemon: Daemon) -> Iterator[Metric]:
    """Pools and classes as gateways see them; class "" = the whole pool."""
    front = fronting.of(daemon)
    rows = [(row["name"], "", row) for row in front["pools"][:POOLS_MAX]]
    rows += [(row["pool"], row["name"].partition("/")[2], row) for row in front["classes"][:POOLS_MAX]]
    for name, (key, text) in FRONT_GAUGES.items():
        family = GaugeMetricFamily(f"tidewarden_gateway_{name}", text, labels=["pool", "class"])
        for pool, word, row in rows:
            family.add_metric([pool, word], float(row[key]))
        yield family


BILL_GAUGES = {
    "energy_day_kwh": ("energy_kwh", "Drawn at the GPUs in the last day."),
    "energy_per_million_tokens_kwh": (
        "kwh_per_mtoken",
        "Of the facility, for a million generated tokens of the last day.",
    ),
    "cost_day": ("money", "Of the last day, in the configured currency; NaN without prices."),
    "cost_per_million_tokens": (
        "money_per_mtoken",
        "Of a million generated tokens of the last day, in the configured currency.",
    ),
    "carbon_day_kg": ("carbon_kg", "Of the last day; NaN without a carbon factor."),
    "saved_day_gpu_hours": ("saved_gpu_hours", "Against as many GPUs as in the busiest hour, all day."),
}


def cost(daemon: Daemon) -> Iterator[Metric]:
    """Energy and money by pool, what is lent and what stands idle among them; what racks draw."""
    found = energy.bills(daemon.core.state.meter, daemon.core.policy.cost)[:POOLS_MAX]
    for name, (key, text) in BILL_GAUGES.items():
        family = GaugeMetricFamily(f"tidewarden_{name}", text, labels=["pool"])
        for bill in found:
            family.add_metric([bill.name], getattr(bill, key))
        yield family
    racks = GaugeMetricFamily(
        "tidewarden_rack_gpu_power_watts", "Drawn by the GPUs of a rack now.", labels=["rack"]
    )
    for rack, watts in list(energy.power_by(daemon.frames, "rack").items())[:POOLS_MAX]:
        racks.add_metric([rack], watts)
    yield racks
