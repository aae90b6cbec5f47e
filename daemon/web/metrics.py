"""The daemon's own metrics in Prometheus' words."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon import fragments, placement
from daemon.loop import Daemon, News
from daemon.model import Decision, Forecast, Outcome, Reason, Result, Verb
from daemon.regional import name_of_region, own_report, turned_away
from daemon.rules import RULES
from daemon.telemetry.scrape import HttpScraper
from daemon.web import metrics_ahead, metrics_estate
from daemon.web.ahead import LEADS_S, peak
from daemon.web.placing import all_wishes
from daemon.web.views import outlook_row, pool_rows, version

POOLS_MAX = 200
"""Pools that get labels of their own; a label must not grow without bound."""

LETTER_STATES = ("queued", "sending", "standing", "delivered", "cancelled", "given_up")


class Tally:
    """Counts what happens as it happens, since what is over is no longer to be seen in the state."""

    def __init__(self) -> None:
        self.opened: Counter[tuple[str, str]] = Counter()
        self.closed: Counter[tuple[str, str]] = Counter()
        self.steps: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.forecasts = 0

    def hear(self, news: News) -> None:
        if isinstance(news, Decision):
            self.opened.update((i.kind, i.severity.value) for i in news.opened)
            self.closed.update((i.kind, i.severity.value) for i in news.closed)
            self.refused.update((v.step.verb.value, v.reason.value) for v in news.verdicts if not v.allowed)
        elif isinstance(news, Outcome):
            self.steps[news.step.verb.value, news.result.value] += 1
        elif isinstance(news, Forecast):
            self.forecasts += 1


class DaemonMetrics(Collector):
    """Reads the daemon each time it is scraped; nothing is kept up to date in between."""

    def __init__(self, daemon: Daemon, tally: Tally) -> None:
        self.daemon, self.tally = daemon, tally

    def collect(self) -> Iterable[Metric]:
        yield from _own(self.daemon)
        yield from _telemetry(self.daemon)
        yield from _cases(self.daemon, self.tally)
        yield from _pools(self.daemon)
        yield from _regions(self.daemon)
        yield from _capacity(self.daemon)
        yield from metrics_ahead.pools(self.daemon)
        yield from metrics_ahead.tide(self.daemon)
        yield from metrics_ahead.suspects(self.daemon)
        yield from metrics_ahead.leases(self.daemon)
        yield from metrics_ahead.rules(self.daemon)
        yield from metrics_estate.posture(self.daemon)
        yield from metrics_estate.storage(self.daemon)
        yield from metrics_estate.offline(self.daemon)
        yield from metrics_estate.gateway(self.daemon)
        yield from metrics_estate.cost(self.daemon)

    def describe(self) -> Iterable[Metric]:
        return ()


def registry_of(daemon: Daemon) -> CollectorRegistry:
    """A registry of our own: whatever else lives in the process stays out."""
    tally = Tally()
    daemon.listeners.append(tally.hear)
    registry = CollectorRegistry()
    registry.register(DaemonMetrics(daemon, tally))
    ProcessCollector(namespace="tidewarden", registry=registry)
    return registry


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidewarden_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"tidewarden_{name}", text, value=value)


def _by(made: Any, rows: Mapping[Any, float]) -> Any:
    """The family with one sample for each tuple of label values."""
    for labels, value in sorted(rows.items()):
        made.add_metric(labels, value)
    return made


def _own(daemon: Daemon) -> Iterator[Metric]:
    own, policy = daemon.status, daemon.core.policy
    yield InfoMetricFamily(
        "tidewarden_build",
        "The running version.",
        {"version": version(), "python": platform.python_version()},
    )
    yield InfoMetricFamily(
        "tidewarden_cluster", "The cluster this daemon looks after.", {"cluster": policy.cluster}
    )
    mode = GaugeMetricFamily("tidewarden_mode_info", "How far the cluster's actions may go.", labels=["mode"])
    mode.add_metric([policy.mode.value], 1.0)
    yield mode
    yield _gauge("start_time_seconds", "When the loop began, since the epoch.", own.started)
    yield _gauge("ready", "1 once a first round of telemetry is in.", float(own.is_ready))
    yield _gauge(
        "paused",
        "1 while an operator has paused all actions.",
        float(daemon.clock() < daemon.core.state.paused_until),
    )
    yield _count("ticks", "Decisions made.", own.ticks)
    yield _count("ticks_missed", "Decisions skipped because the one before took too long.", own.missed)
    yield _gauge("tick_seconds", "How long the last decision took.", own.tick_s)
    yield _gauge(
        "decision_timestamp_seconds",
        "Time of the last decision, since the epoch.",
        daemon.frames.at or math.nan,
    )
    yield _gauge(
        "journal_healthy",
        "1 while the journal can be written; at 0 nothing is changed.",
        float(daemon.record.healthy),
    )
    yield _gauge(
        "config_last_reload_successful", "0 after a reload that was refused.", float(not own.reload_error)
    )
    yield _count("config_reloads", "Reloads that took effect.", own.reloads)
    counts = daemon.record.outbox.counts() if daemon.record.healthy else {}
    letters = GaugeMetricFamily(
        "tidewarden_outbox_letters", "Messages to people of the last 30 days by state.", labels=["state"]
    )
    yield _by(letters, {(s,): float(counts.get(s, 0)) for s in LETTER_STATES})


def _telemetry(daemon: Daemon) -> Iterator[Metric]:
    up = daemon.frames["target"].column("up")
    targets = GaugeMetricFamily("tidewarden_targets", "Scraped addresses by state.", labels=["state"])
    found = {"up": (up == 1.0).sum(), "down": (up == 0.0).sum(), "unknown": (up != up).sum()}
    yield _by(targets, {(s,): float(n) for s, n in found.items()})
    scrapers = [s for s in daemon.sources.values() if isinstance(s, HttpScraper)]
    yield _count("scrapes", "Scrapes that ended.", sum(s.counts.scrapes for s in scrapers))
    yield _count("scrape_failures", "Scrapes that failed.", sum(s.counts.failed for s in scrapers))
    yield _count(
        "scrapes_missed",
        "Scrapes not made because the last one had not ended or the loop stalled.",
        sum(s.counts.missed + s.counts.pending for s in scrapers),
    )
    sources = GaugeMetricFamily(
        "tidewarden_source_failures", "Failed reads in a row of a source.", labels=["source"]
    )
    yield _by(sources, {(n,): float(daemon.status.source_failures.get(n, 0)) for n in daemon.sources})
    entities = GaugeMetricFamily("tidewarden_entities", "Entities known by kind.", labels=["kind"])
    yield _by(entities, {(f.kind,): float(len(f.entities)) for f in daemon.frames})


KINDS = {(rule.kind, rule.severity.value): 0 for rule in RULES.values()}


def _from_zero(counts: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """With a zero for what rules may open: a series that begins at 1 hides its first event from rate()."""
    return {**KINDS, **counts}


def _cases(daemon: Daemon, tally: Tally) -> Iterator[Metric]:
    state = daemon.core.state
    now = Counter((i.kind, i.severity.value) for i in state.book.open.values())
    labels = ["kind", "severity"]
    yield _by(
        GaugeMetricFamily("tidewarden_incidents_open", "Open incidents.", labels=labels), _from_zero(now)
    )
    yield _by(
        CounterMetricFamily(
            "tidewarden_incidents_opened", "Incidents opened since the start.", labels=labels
        ),
        _from_zero(tally.opened),
    )
    yield _by(
        CounterMetricFamily(
            "tidewarden_incidents_closed", "Incidents closed since the start.", labels=labels
        ),
        _from_zero(tally.closed),
    )
    verbs = {(verb.value, result.value): 0 for verb in Verb for result in Result}
    steps = CounterMetricFamily(
        "tidewarden_steps", "Actions carried out since the start, by result.", labels=["verb", "result"]
    )
    yield _by(steps, {**verbs, **tally.steps})
    refusals = CounterMetricFamily(
        "tidewarden_refusals",
        "Actions the guard refused since the start, by reason.",
        labels=["verb", "reason"],
    )
    yield _by(refusals, tally.refused)
    awaiting = sum(s.reason is Reason.AWAITS_APPROVAL for s in state.standing.values())
    yield _gauge("steps_awaiting_approval", "Actions that wait for an operator.", float(awaiting))
    yield _gauge("steps_in_flight", "Actions under way.", float(len(state.in_flight)))


REGION_GAUGES = {
    "health_ratio": ("health_ratio", "Share of replicas that answer and get requests."),
    "requests_per_second": ("requests_per_s", "Requests finished."),
    "carries_per_second": (
        "carries_per_s",
        "Requests the ready replicas would carry within their objectives.",
    ),
    "could_carry_per_second": (
        "could_carry_per_s",
        "The same of all usable GPUs once replicas have started.",
    ),
    "ttft_seconds": ("ttft_s", "Median time to the first token."),
    "gpus_usable": ("gpus_usable", "GPUs that are not isolated."),
    "gpus_free": ("gpus_free", "GPUs that are usable and neither serve nor are lent."),
    "money_per_mtoken": ("money_per_mtoken", "Price of a million generated tokens of the last day."),
}


TURNED_AWAY = "turned_away_per_second"


def _regions(daemon: Daemon) -> Iterator[Metric]:
    """What this region says of itself, for the view over regions; that view's shares where it is kept; placement; limits."""
    name, said = name_of_region(daemon), own_report(daemon)
    for metric, (signal, text) in REGION_GAUGES.items():
        yield _by(
            GaugeMetricFamily(f"tidewarden_region_{metric}", text, labels=["region"]), {(name,): said[signal]}
        )
    admitted = GaugeMetricFamily(
        "tidewarden_admitted_ratio",
        "Share of a pool's or class's requests that is let in.",
        labels=["target"],
    )
    yield _by(admitted, {(target,): share for target, share in daemon.core.state.fleet.limits.items()})
    found = all_wishes(daemon)
    kinds = Counter((wish.kind,) for wish in found)
    wished = GaugeMetricFamily(
        "tidewarden_placement_wishes", "Replicas and pools that should stand elsewhere.", labels=["kind"]
    )
    yield _by(wished, {(kind,): float(kinds[(kind,)]) for kind in placement.KINDS})
    stranded = GaugeMetricFamily(
        "tidewarden_free_gpus_stranded", "Free GPUs a pool cannot use as they lie.", labels=["pool"]
    )
    core = daemon.core
    found_pieces = fragments.pieces(core.topology, core.state.fleet, core.policy)[:POOLS_MAX]
    yield _by(stranded, {(p.pool,): float(p.stranded) for p in found_pieces})
    yield _gauge(
        "placement_crossing_bytes_per_second",
        "Traffic of replicas that crosses leaf switches.",
        placement.crossing_bytes_s(found),
    )
    if daemon.core.policy.federation.members:
        shares = daemon.core.state.fleet.shares
        family = GaugeMetricFamily(
            "tidewarden_balance_share_ratio", "Share of all requests a region is given.", labels=["region"]
        )
        yield _by(family, {(region,): share for region, share in shares.items()})
        away = GaugeMetricFamily(
            f"tidewarden_region_{TURNED_AWAY}",
            "Requests that find no room anywhere and that this region could serve once it has grown.",
            labels=["region"],
        )
        yield _by(away, {(region,): rate for region, rate in turned_away(daemon).items()})


POOL_GAUGES = {
    "replicas": ("replicas", "Engines that exist."),
    "ready_replicas": ("ready", "Engines with fresh telemetry that serve."),
    "concurrency_requests": ("concurrency_requests", "Requests running and waiting."),
    "waiting_requests": ("waiting_requests", "Requests waiting."),
    "capacity_per_replica_requests": (
        "capacity_per_replica_requests",
        "Learnt requests a replica holds within its objective.",
    ),
    "load_ratio": ("load_ratio", "Requests over what the ready replicas hold."),
    "kv_used_ratio": ("kv_used_mean_ratio", "Mean share of KV blocks in use."),
    "over_slo_ratio": (
        "over_slo_ratio",
        "Share of requests that missed the objective of the first token or of the time between tokens.",
    ),
}


def _pools(daemon: Daemon) -> Iterator[Metric]:
    rows = pool_rows(daemon)[:POOLS_MAX]
    for name, (key, text) in POOL_GAUGES.items():
        family = GaugeMetricFamily(f"tidewarden_pool_{name}", text, labels=["pool"])
        yield _by(family, {(r["name"],): float(r[key]) for r in rows})
    ahead = GaugeMetricFamily(
        "tidewarden_forecast_peak_requests",
        "Highest demand expected within the lead.",
        labels=["pool", "lead", "quantile"],
    )
    made = GaugeMetricFamily(
        "tidewarden_forecast_timestamp_seconds", "When the forecast was made.", labels=["pool"]
    )
    skill = GaugeMetricFamily(
        "tidewarden_forecast_skill_ratio",
        "Past error over that of repeating the week before; below 1 is better.",
        labels=["pool"],
    )
    for row in rows:
        forecast = daemon.core.state.forecasts.get(row["name"])
        if forecast is None:
            continue
        made.add_metric([row["name"]], forecast.at)
        skill.add_metric([row["name"]], forecast.skill)
        for lead, lead_s in LEADS_S.items():
            found = peak(forecast, daemon.frames.at, lead_s)
            for key, quantile in (("q50_requests", "0.5"), ("q90_requests", "0.9")):
                ahead.add_metric([row["name"], lead, quantile], float(found.get(key, math.nan)))
    yield ahead
    yield made
    yield skill
    yield from _scores(daemon)


SCORES = {
    "error_ratio": (
        "ratio",
        "Mean absolute error of elapsed forecasts over that of repeating the week before.",
    ),
    "wql": ("wql", "Weighted quantile loss of elapsed forecasts."),
    "coverage80": ("coverage80", "Share of elapsed hours between the 10 % and the 90 % level."),
    "brier_skill": ("brier_skill", "Skill of the chance given for high demand; 0 = none, 1 = perfect."),
    "elapsed": ("number", "Forecasts whose time has come, of five weeks."),
}


def _scores(daemon: Daemon) -> Iterator[Metric]:
    found = list(daemon.foresight.standings.items())[:POOLS_MAX]
    for name, (key, text) in SCORES.items():
        family = GaugeMetricFamily(
            f"tidewarden_forecast_scored_{name}", text, labels=["pool", "signal", "forecaster"]
        )
        yield _by(
            family,
            {(p, s, who): float(getattr(how, key)) for (p, s), rows in found for who, how in rows.items()},
        )


def _capacity(daemon: Daemon) -> Iterator[Metric]:
    row, fleet = outlook_row(daemon), daemon.core.state.fleet
    yield _gauge("gpus_usable", "GPUs that are not isolated.", float(row["gpus_usable"]))
    needed = GaugeMetricFamily(
        "tidewarden_gpus_needed_peak", "Most GPUs needed within the horizon.", labels=["quantile"]
    )
    yield _by(needed, {("0.5",): float(row["gpus_needed_q50"]), ("0.9",): float(row["gpus_needed_q90"])})
    yield _gauge("gpus_lent", "GPUs with offline work now.", float(row["gpus_lent"]))
    yield _count("gpu_lent_seconds", "GPU time given to offline work in leases that ended.", fleet.lent_gpu_s)
    yield _gauge(
        "capacity_short_seconds",
        "Time until GPUs may run short, NaN = not within the horizon, or not known where the chance is NaN too.",
        float(row["short_in_s"]),
    )
    yield _gauge(
        "capacity_short_chance",
        "Share of sampled paths that run short within the horizon.",
        float(row["short_chance"]),
    )
    yield _gauge(
        "capacity_exhausted_seconds",
        "Time until running short is more likely than not, NaN = not within the horizon, or not known where the chance is NaN too.",
        float(row["exhausted_in_s"]),
    )
    yield _gauge(
        "capacity_deficit_gpu_hours", "GPU-hours short at the 90 % level.", float(row["short_gpu_hours"])
    )
    yield _gauge("entities_isolated", "Nodes and GPUs taken out by us.", float(len(fleet.isolated)))
