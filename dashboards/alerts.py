"""Recording and alert rules for Prometheus, each with an example that promtool plays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from daemon.web.runbooks import TEXTS

RUNBOOKS = "http://{{ $labels.instance }}/runbooks"
"""The daemon serves them itself; `python -m dashboards.build --runbooks URL` names another place."""
GRAFANA = ""
"""What is put before /d/UID; a path alone is right for links inside Grafana."""
RECORDED = {
    "tidewarden:pool_slo_burn:ratio": "tidewarden_pool_over_slo_ratio / on (job, instance, pool) tidewarden_pool_slo_miss_allowed_ratio",
    "tidewarden:targets_down:ratio": 'sum by (job, instance) (tidewarden_targets{state="down"}) / (sum by (job, instance) (tidewarden_targets) > 0)',
    "tidewarden:scrapes_missed:ratio": "rate(tidewarden_scrapes_missed_total[10m]) / (rate(tidewarden_scrapes_total[10m]) > 0)",
    "tidewarden:gpus_out:ratio": '1 - tidewarden_gpus_usable / on (job, instance) (tidewarden_entities{kind="gpu"} > 0)',
    "tidewarden:forecast_age:seconds": "tidewarden_decision_timestamp_seconds - on (job, instance) group_right () tidewarden_forecast_timestamp_seconds",
}


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule. The words come from the runbook of the same name.

    example : series -> (value or growth a minute while all is well, the same while it is not); a name that ends in
    _total grows, others stand at the value, "_" = the series is
    absent (promtool knows no NaN; a number far off stands for it). settle_min : how long the expression looks
    back, on top of `hold`. board : uid of the dashboard that shows it. firing : how many fire while all is well, while it
    is not, and afterwards.
    """

    name: str
    expr: str
    hold_min: int
    severity: str
    board: str
    example: dict[str, tuple[str, str]]
    value: str = ""
    settle_min: int = 2
    firing: tuple[int, int, int] = (0, 1, 0)


ALERTS = (
    Alert("TidewardenHeartbeat", "vector(1)", 0, "info", "self", {'tidewarden_build_info{instance="d"}': ("1", "_")}, settle_min=7, firing=(1, 1, 1)),
    Alert("TidewardenDown", 'up{job=~".*tidewarden.*"} == 0', 2, "critical", "self", {'up{job="tidewarden",instance="d"}': ("1", "0")}),
    Alert("TidewardenAbsent", "absent(tidewarden_build_info)", 10, "critical", "self", {'tidewarden_build_info{instance="d"}': ("1", "_")}, settle_min=7),
    Alert("TidewardenNotDeciding", "rate(tidewarden_ticks_total[5m]) == 0", 2, "critical", "self", {'tidewarden_ticks_total{instance="d"}': ("4", "0")}, settle_min=7),
    Alert("TidewardenNotReady", "tidewarden_ready == 0", 10, "warning", "self", {'tidewarden_ready{instance="d"}': ("1", "0")}),
    Alert("TidewardenTicksMissed", "increase(tidewarden_ticks_missed_total[15m]) > 5", 5, "warning", "self", {'tidewarden_ticks_missed_total{instance="d"}': ("0", "1")}, "missed in 15 min: {{ $value | humanize }}", 17),
    Alert("TidewardenDecisionsSlow", "tidewarden_tick_seconds > 5", 10, "warning", "self", {'tidewarden_tick_seconds{instance="d"}': ("0.2", "8")}, "last decision took {{ $value | humanizeDuration }}"),
    Alert("TidewardenJournalUnwritable", "tidewarden_journal_healthy == 0", 2, "critical", "self", {'tidewarden_journal_healthy{instance="d"}': ("1", "0")}),
    Alert("TidewardenReloadFailed", "tidewarden_config_last_reload_successful == 0", 5, "warning", "self", {'tidewarden_config_last_reload_successful{instance="d"}': ("1", "0")}),
    Alert("TidewardenTargetsDown", "tidewarden:targets_down:ratio > 0.1", 10, "warning", "self", {'tidewarden_targets{instance="d",state="down"}': ("1", "8"), 'tidewarden_targets{instance="d",state="up"}': ("49", "42")}, "silent: {{ $value | humanizePercentage }}"),
    Alert("TidewardenTelemetryCollapsed", "tidewarden:targets_down:ratio > 0.5", 2, "critical", "self", {'tidewarden_targets{instance="d",state="down"}': ("1", "40"), 'tidewarden_targets{instance="d",state="up"}': ("49", "10")}, "silent: {{ $value | humanizePercentage }}"),
    Alert("TidewardenSourceFailing", "tidewarden_source_failures > 5", 10, "warning", "self", {'tidewarden_source_failures{instance="d",source="http"}': ("0", "9")}, "failed reads in a row: {{ $value }}"),
    Alert("TidewardenScrapesMissed", "tidewarden:scrapes_missed:ratio > 0.1", 15, "warning", "self", {'tidewarden_scrapes_missed_total{instance="d"}': ("0", "60"), 'tidewarden_scrapes_total{instance="d"}': ("200", "140")}, "missed: {{ $value | humanizePercentage }}", 12),
    Alert("TidewardenMessagesGivenUp", 'delta(tidewarden_outbox_letters{state="given_up"}[30m]) > 0', 1, "critical", "self", {'tidewarden_outbox_letters{instance="d",state="given_up"}': ("0", "3")}, "given up within 30 min: {{ $value | humanize }}"),
    Alert("TidewardenMessagesStuck", 'sum by (job, instance) (tidewarden_outbox_letters{state=~"queued|sending"}) > 0', 15, "warning", "self", {'tidewarden_outbox_letters{instance="d",state="queued"}': ("0", "4")}, "waiting: {{ $value }}"),
    Alert("TidewardenApprovalWaits", "tidewarden_steps_awaiting_approval > 0", 15, "warning", "actions", {'tidewarden_steps_awaiting_approval{instance="d"}': ("0", "2")}, "waiting: {{ $value }}"),
    Alert("TidewardenOutcomeUnknown", 'increase(tidewarden_steps_total{result="unknown"}[30m]) > 0', 1, "warning", "actions", {'tidewarden_steps_total{instance="d",verb="scale",result="unknown"}': ("0", "1")}, "within 30 min: {{ $value | humanize }}", 3),
    Alert("TidewardenActionsFailing", 'sum by (job, instance, verb) (increase(tidewarden_steps_total{result=~"failed|refused"}[30m])) > 3', 5, "warning", "actions", {'tidewarden_steps_total{instance="d",verb="scale",result="failed"}': ("0", "1")}, "within 30 min: {{ $value | humanize }}", 8),
    Alert("TidewardenPausedLong", "tidewarden_paused == 1", 240, "warning", "actions", {'tidewarden_paused{instance="d"}': ("0", "1")}),
    Alert("TidewardenManyIsolated", "tidewarden:gpus_out:ratio > 0.2", 10, "warning", "overview", {'tidewarden_gpus_usable{instance="d"}': ("128", "96"), 'tidewarden_entities{instance="d",kind="gpu"}': ("128", "128")}, "out: {{ $value | humanizePercentage }}"),
    Alert("TidewardenIncidentLingers", 'sum by (job, instance, kind) (tidewarden_incidents_open{severity="critical"}) > 0', 120, "warning", "overview", {'tidewarden_incidents_open{instance="d",kind="gpu_lost",severity="critical"}': ("0", "1")}),
    Alert("TidewardenPoolWithoutReplicas", "tidewarden_pool_ready_replicas == 0 and tidewarden_pool_replicas > 0", 2, "critical", "serving", {'tidewarden_pool_ready_replicas{instance="d",pool="chat"}': ("3", "0"), 'tidewarden_pool_replicas{instance="d",pool="chat"}': ("3", "3")}),
    Alert("TidewardenPoolOverloaded", "tidewarden_pool_load_ratio > 1", 10, "warning", "serving", {'tidewarden_pool_load_ratio{instance="d",pool="chat"}': ("0.6", "1.4")}, "load: {{ $value | humanizePercentage }}"),
    Alert("TidewardenSloBurnFast", "avg_over_time(tidewarden:pool_slo_burn:ratio[1h]) > 14.4 and tidewarden:pool_slo_burn:ratio > 14.4", 2, "critical", "serving", {'tidewarden_pool_over_slo_ratio{instance="d",pool="chat"}': ("0.001", "0.4"), 'tidewarden_pool_slo_miss_allowed_ratio{instance="d",pool="chat"}': ("0.01", "0.01")}, "budget burns {{ $value | humanize }} times too fast", 62),
    Alert("TidewardenSloBurnSlow", "avg_over_time(tidewarden:pool_slo_burn:ratio[6h]) > 3 and tidewarden:pool_slo_burn:ratio > 3", 30, "warning", "serving", {'tidewarden_pool_over_slo_ratio{instance="d",pool="chat"}': ("0.001", "0.08"), 'tidewarden_pool_slo_miss_allowed_ratio{instance="d",pool="chat"}': ("0.01", "0.01")}, "budget burns {{ $value | humanize }} times too fast", 240),
    Alert("TidewardenCapacityAhead", "tidewarden_capacity_short_seconds < 72 * 3600", 30, "warning", "capacity", {'tidewarden_capacity_short_seconds{instance="d"}': ("900000", "100000")}, "in {{ $value | humanizeDuration }}"),
    Alert("TidewardenCapacityNow", "tidewarden_capacity_short_seconds < 4 * 3600", 15, "critical", "capacity", {'tidewarden_capacity_short_seconds{instance="d"}': ("900000", "3600")}, "in {{ $value | humanizeDuration }}"),
    Alert("TidewardenForecastStale", "tidewarden:forecast_age:seconds > 3 * 3600", 30, "warning", "capacity", {'tidewarden_decision_timestamp_seconds{instance="d"}': ("20000", "40000"), 'tidewarden_forecast_timestamp_seconds{instance="d",pool="chat"}': ("19000", "19000")}, "age {{ $value | humanizeDuration }}"),
    Alert("TidewardenForecastPoor", "tidewarden_forecast_skill_ratio > 1.25", 360, "info", "capacity", {'tidewarden_forecast_skill_ratio{instance="d",pool="chat"}': ("0.9", "1.6")}, "error {{ $value | humanize }} times that of repeating last week"),
    Alert("TidewardenRequestsRefused", "tidewarden_admitted_ratio < 1", 0, "critical", "serving", {'tidewarden_admitted_ratio{instance="d",target="chat/batch"}': ("1", "0")}, "{{ $value | humanizePercentage }} let in"),
    Alert("TidewardenPostureRegressed", "max_over_time(tidewarden_posture_pass[1d]) == 1 and tidewarden_posture_pass == 0", 60, "info", "overview", {'tidewarden_posture_pass{instance="d",item="redundancy",tier="large"}': ("1", "0")}),
    Alert("TidewardenLeaseOverdue", "tidewarden_decision_timestamp_seconds - on (job, instance) group_right () tidewarden_lease_until_timestamp_seconds > 600", 5, "critical", "capacity", {'tidewarden_decision_timestamp_seconds{instance="d"}': ("20000", "30000"), 'tidewarden_lease_until_timestamp_seconds{instance="d",node="n01"}': ("25000", "25000")}, "overdue by {{ $value | humanizeDuration }}"),
)  # fmt: skip


def rule_groups(runbooks: str = RUNBOOKS, grafana: str = GRAFANA) -> dict[str, Any]:
    """The rule file. Alerts read the recorded series, so both stand in one file."""
    recorded = [{"record": name, "expr": expr} for name, expr in RECORDED.items()]
    return {
        "groups": [
            {"name": "tidewarden-recorded", "interval": "30s", "rules": recorded},
            {
                "name": "tidewarden",
                "interval": "30s",
                "rules": [_rule(a, runbooks, grafana) for a in ALERTS],
            },
        ]
    }


def _rule(alert: Alert, runbooks: str, grafana: str) -> dict[str, Any]:
    words = TEXTS[alert.name]["en"]
    labels = [name for name in ("pool", "node", "source", "verb", "kind") if _carries(alert, name)]
    where = "".join(f" {{{{ $labels.{name} }}}}" for name in labels)
    value = f" ({alert.value})" if alert.value else ""
    # What is absent has no address: neither to name nor to look up a runbook at.
    has_address = _carries(alert, "instance")
    runbook = f"{runbooks}/{alert.name}"
    if runbooks == RUNBOOKS and not has_address:
        runbook = f"docs/en/runbooks/{alert.name}.md"
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": f"{alert.hold_min}m",
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": f"{words['title']}:{where} on {{{{ $labels.instance }}}}"
            if has_address
            else words["title"],
            "description": f"{words['meaning']}{value}",
            "runbook_url": runbook,
            "dashboard_url": f"{grafana}/d/tidewarden-{alert.board}",
        },
    }


def _carries(alert: Alert, label: str) -> bool:
    """Whether the alert keeps a label, read off its example and its aggregation."""
    if alert.expr.startswith(("absent(", "vector(")):
        return False
    kept = re.search(r"by \(([^)]*)\)", alert.expr)
    if kept is not None:
        return label in kept[1].split(", ")
    return any(f'{label}="' in series for series in alert.example)


def promtool_tests() -> dict[str, Any]:
    """For each alert: quiet while all is well, firing once it has held, resolved afterwards; the heartbeat always fires."""
    return {
        "rule_files": ["tidewarden.yaml"],
        "evaluation_interval": "30s",
        "tests": [_story(a) for a in ALERTS],
    }


def _story(alert: Alert) -> dict[str, Any]:
    bad = alert.hold_min + alert.settle_min + 5
    after = max(40, alert.settle_min + 10)
    times = (19, 20 + bad - 1, 20 + bad + after - 1)
    return {
        "name": alert.name,
        "interval": "1m",
        "input_series": [
            {"series": series, "values": _values(series, good, wrong, bad, after)}
            for series, (good, wrong) in alert.example.items()
        ],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert.name}", alertstate="firing"}}) or vector(0)',
                "eval_time": f"{at}m",
                "exp_samples": [{"labels": "{}", "value": count}],
            }
            for at, count in zip(times, alert.firing, strict=True)
        ],
    }


def _values(series: str, good: str, wrong: str, bad_min: int, after_min: int) -> str:
    """20 minutes of the good, then the bad, then the good again, one sample a minute."""
    if series.partition("{")[0].endswith("_total"):
        first, second = 20 * int(good), 20 * int(good) + bad_min * int(wrong)
        return f"0+{good}x19 {first}+{wrong}x{bad_min - 1} {second}+{good}x{after_min - 1}"
    return " ".join(_steady(v, n) for v, n in ((good, 20), (wrong, bad_min), (good, after_min)))


def _steady(value: str, count: int) -> str:
    return f"_x{count}" if value == "_" else f"{value}x{count - 1}"
