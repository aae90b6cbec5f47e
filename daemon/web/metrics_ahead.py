"""What dashboards draw beyond states and counts: demand and GPUs ahead, suspects, leases, rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily, Metric

from daemon.ledger import Tally
from daemon.loop import Daemon
from daemon.model import Forecast
from daemon.outlook import pool_frame
from daemon.rules import RULES
from daemon.web.ahead import before
from daemon.web.views import open_incidents, pool_rows

POOLS_MAX = 200
SUSPECTS_MAX = 100
LEASES_MAX = 200
"""Rows of one family: a label must not grow without bound."""
LEADS_S = {"0h": 0.0, "1h": 3600.0, "6h": 6 * 3600.0, "24h": 86400.0, "48h": 2 * 86400.0, "72h": 3 * 86400.0}
LEVELS = {"0.1": 0.1, "0.5": 0.5, "0.9": 0.9}
HOUR_S = 3600.0
WEEK_H = 168

POOL_GAUGES = {
    "ttft_p95_seconds": ("ttft_p95_max_s", "Time to first token, 95 %, of the slowest replica."),
    "ttft_objective_seconds": ("ttft_slo_s", "Objective of the time to first token."),
    "slo_miss_allowed_ratio": ("slo_miss_allowed_ratio", "Share of requests that may miss the objective."),
    "generation_tokens_per_second": ("generation_tokens_per_s", "Tokens generated, all replicas."),
    "kv_used_max_ratio": ("kv_used_max_ratio", "Share of KV blocks in use at the fullest replica."),
}


def pools(daemon: Daemon) -> Iterator[Metric]:
    """Service levels of each pool, and demand expected at fixed leads."""
    rows = pool_rows(daemon)[:POOLS_MAX]
    for name, (key, text) in POOL_GAUGES.items():
        family = GaugeMetricFamily(f"tidewarden_pool_{name}", text, labels=["pool"])
        for row in rows:
            family.add_metric([row["name"]], float(row[key]))
        yield family
    ahead = GaugeMetricFamily(
        "tidewarden_forecast_requests",
        "Demand expected at the lead from now.",
        labels=["pool", "lead", "quantile"],
    )
    made = GaugeMetricFamily(
        "tidewarden_forecast_made_72h_ago_requests",
        "Demand of this hour as it was forecast 72 hours ago.",
        labels=["pool", "quantile"],
    )
    for row in rows:
        found = daemon.core.state.forecasts.get(row["name"])
        for lead, lead_s in LEADS_S.items() if found is not None else ():
            assert found is not None
            for label, level in LEVELS.items():
                ahead.add_metric([row["name"], lead, label], at_time(found, level, daemon.frames.at + lead_s))
        then = before(daemon, row["name"])
        if then is not None:
            step = int((daemon.frames.at - then["made_at"]) / then["step_s"])
            for level, line in zip(then["levels"], then["quantiles"], strict=True):
                if f"{level:g}" in LEVELS and step < len(line):
                    made.add_metric([row["name"], f"{level:g}"], line[step])
    yield ahead
    yield made
    chance = GaugeMetricFamily(
        "tidewarden_pool_short_chance",
        "Share of sampled paths on which the pool runs short within the horizon, NaN = not known.",
        labels=["pool"],
    )
    part = pool_frame(daemon.core.outlook)
    for row in rows:
        chance.add_metric([row["name"]], part.value(row["name"], "short_chance"))
    yield chance


def at_time(found: Forecast, level: float, when: float) -> float:
    """The forecast's value at a time; NaN outside its horizon or for a level it does not have."""
    step = int((when - found.at) / found.step_s)
    if level not in found.levels or not 0 <= step < found.quantiles.shape[1]:
        return math.nan
    return float(found.at_level(level)[step])


def tide(daemon: Daemon) -> Iterator[Metric]:
    """GPUs that stay free at the 90 % level, for each hour of the week ahead, in UTC."""
    outlook = daemon.core.outlook
    family = GaugeMetricFamily(
        "tidewarden_tide_free_gpus",
        "GPUs expected to stay free at the 90 % level in this hour of the coming week (UTC).",
        labels=["weekday", "hour"],
    )
    needed = outlook.needed.get(0.9)
    if needed is not None and outlook.is_known:
        most: dict[tuple[str, str], float] = {}
        steps = min(len(needed), int(WEEK_H * HOUR_S / outlook.step_s))
        for step in range(steps):
            at = datetime.fromtimestamp(outlook.at + step * outlook.step_s, UTC)
            hour = (f"{at.isoweekday()} {at:%a}", f"{at:%H}")
            most[hour] = max(most.get(hour, 0.0), float(needed[step]))
        for (weekday, hour_of_day), value in sorted(most.items()):
            family.add_metric([weekday, hour_of_day], outlook.usable - value)
    yield family


def suspects(daemon: Daemon) -> Iterator[Metric]:
    """What open incidents claim about whom, the surest first; bounded, so that a storm makes no flood of series."""
    sure: dict[tuple[str, str, str], float] = {}
    for incident in open_incidents(daemon):
        for finding in incident.findings:
            key = (incident.kind, finding.entity.kind, finding.entity.name)
            sure[key] = max(sure.get(key, 0.0), finding.score)
    family = GaugeMetricFamily(
        "tidewarden_suspect_score_ratio",
        "How sure an open incident is of an entity.",
        labels=["kind", "entity_kind", "entity"],
    )
    for key, score in sorted(sure.items(), key=lambda item: (-item[1], item[0]))[:SUSPECTS_MAX]:
        family.add_metric(key, score)
    yield family


def leases(daemon: Daemon) -> Iterator[Metric]:
    """When each lent node is due back."""
    family = GaugeMetricFamily(
        "tidewarden_lease_until_timestamp_seconds", "When a lent node is due back.", labels=["node"]
    )
    for node, lease in sorted(daemon.core.state.fleet.leases.items())[:LEASES_MAX]:
        family.add_metric([node], lease.until)
    yield family


def rules(daemon: Daemon) -> Iterator[Metric]:
    """How often each rule fired and was right."""
    ledger = daemon.core.state.ledger
    fired = GaugeMetricFamily("tidewarden_rule_fired", "Incidents a rule took part in.", labels=["rule"])
    right = GaugeMetricFamily(
        "tidewarden_rule_precision_ratio",
        "Share of a rule's judged claims that were right, NaN = none was judged.",
        labels=["rule"],
    )
    for rule in RULES:
        tally = ledger.tallies.get(rule, Tally())
        fired.add_metric([rule], tally.fired)
        right.add_metric([rule], tally.precision())
    yield fired
    yield right
