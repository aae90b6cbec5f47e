"""Grafana's JSON for panels, variables, annotations; what it needs and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA = 39
"""Of Grafana 10.4; newer ones migrate it by themselves when they load it."""
WIDTH = 24


@dataclass(frozen=True, slots=True)
class Words:
    """The same words in both languages."""

    en: str
    zh: str

    def in_language(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel as it is meant. unit : Grafana's id. about : what it shows, what to make of it.

    form : "timeseries", "stat", "table", "matrix" (a table of weekday by hour). quiet : why a healthy or small
    cluster has no data here, None = there always is some. limits : value -> colour from there on.
    """

    title: Words
    about: Words
    unit: str
    queries: tuple[Query, ...]
    form: str = "timeseries"
    width: int = 12
    quiet: Words | None = None
    limits: tuple[tuple[float, str], ...] = ()
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. exporters : metric whose instances the `target` variable offers, "" = none is asked."""

    uid: str
    title: Words
    about: Words
    panels: tuple[Panel, ...]
    exporters: str = ""


def board_json(board: Board, language: str) -> Json:
    """The dashboard as Grafana imports it with no edit: no __inputs, no ids of a data source."""
    suffix = "" if language == "en" else f"-{language}"
    return {
        "uid": f"{board.uid}{suffix}",
        "title": board.title.in_language(language),
        "description": board.about.in_language(language),
        "tags": ["tidewarden", language],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables(board, language)},
        "annotations": {"list": [_actions(language), _incidents(language)]},
        "links": [_links(language)],
        "panels": _laid_out(board.panels, language),
    }


def _variables(board: Board, language: str) -> list[Json]:
    zh = language == "zh"
    found: list[Json] = [
        {
            "name": "datasource",
            "label": "数据源" if zh else "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
        },
        _variable("job", "作业" if zh else "Job", "label_values(tidewarden_build_info, job)"),
        _variable(
            "instance",
            "守护进程" if zh else "Daemon",
            'label_values(tidewarden_build_info{job=~"$job"}, instance)',
        ),
    ]
    if board.exporters:
        label = "采集目标" if zh else "Exporter"
        found.append(_variable("target", label, f"label_values({board.exporters}, instance)"))
    return found


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": "All", "value": "$__all"},
        "hide": 0,
    }


def _actions(language: str) -> Json:
    expr = 'sum by (verb, result) (increase(tidewarden_steps_total{job=~"$job", instance=~"$instance", verb!="notify"}[$__rate_interval])) > 0'
    return _annotation(
        "动作" if language == "zh" else "Actions", expr, "{{verb}}: {{result}}", "verb,result", "blue"
    )


def _incidents(language: str) -> Json:
    expr = 'sum by (kind, severity) (increase(tidewarden_incidents_opened_total{job=~"$job", instance=~"$instance"}[$__rate_interval])) > 0'
    return _annotation(
        "事件" if language == "zh" else "Incidents", expr, "{{kind}} ({{severity}})", "kind,severity", "red"
    )


def _annotation(name: str, expr: str, title: str, tags: str, colour: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "step": "30s",
        "titleFormat": title,
        "textFormat": "{{instance}}",
        "tagKeys": tags,
        "useValueForTime": False,
    }


def _links(language: str) -> Json:
    return {
        "title": "tidewarden",
        "type": "dashboards",
        "tags": ["tidewarden", language],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _laid_out(panels: Sequence[Panel], language: str) -> list[Json]:
    """Left to right, a new line where the next one does not fit; the tallest of a line decides its height."""
    found: list[Json] = []
    x = y = tall = 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.form == "stat" else 9 if panel.form == "matrix" else 8
        if x + panel.width > WIDTH:
            x, y, tall = 0, y + tall, 0
        place = {"x": x, "y": y, "w": panel.width, "h": height}
        found.append(_panel_json(panel, number, place, language))
        x, tall = x + panel.width, max(tall, height)
    return found


def _panel_json(panel: Panel, number: int, place: Json, language: str) -> Json:
    is_now = panel.form != "timeseries"
    about = panel.about.in_language(language)
    if panel.quiet is not None:
        head = "可能没有数据：" if language == "zh" else "May be empty: "
        about += f"\n\n{head}{panel.quiet.in_language(language)}"
    return {
        "id": number,
        "type": "table" if panel.form == "matrix" else panel.form,
        "title": panel.title.in_language(language),
        "description": about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": is_now,
                "range": not is_now,
                "format": "table" if panel.form in ("table", "matrix") else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "transformations": _transformations(panel),
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in panel.limits]
    custom: Json = {}
    if panel.form == "timeseries":
        custom = {
            "lineWidth": 1,
            "fillOpacity": 15 if panel.stacked else 0,
            "showPoints": "never",
            # A gap is unknown and stays a gap.
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
        }
    if panel.form == "matrix":
        custom = {"cellOptions": {"type": "color-background"}}
    mode = "palette-classic" if panel.form == "timeseries" else "thresholds"
    found: Json = {
        "unit": panel.unit,
        "color": {"mode": mode},
        "custom": custom,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.unit == "percentunit":
        found["min"] = 0
    return found


def _options(panel: Panel) -> Json:
    if panel.form == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "value_and_name" if "{{" in panel.queries[0].legend else "auto",
        }
    if panel.form == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {"showHeader": True, "cellHeight": "sm"}


def _transformations(panel: Panel) -> list[Json]:
    if panel.form == "matrix":
        names = {"columnField": "hour", "rowField": "weekday", "valueField": "Value"}
        return [{"id": "groupingToMatrix", "options": names}]
    if panel.form == "table":
        hidden = {"Time": True, "__name__": True, "job": True}
        return [{"id": "organize", "options": {"excludeByName": hidden, "renameByName": {}}}]
    return []
