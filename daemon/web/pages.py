"""The HTML side: one template a page, filled from the same data as the API."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlencode

import yaml
from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from daemon import quantities
from daemon.config import given, masked
from daemon.model import NAN, Entity
from daemon.policy import Mode
from daemon.web import (
    ahead,
    alerts,
    cases,
    fleetmap,
    fronting,
    lanes,
    language,
    places,
    pool_story,
    pooling,
    regions,
    rulebook,
    standing,
    storing,
    thrift,
    traces,
    views,
    words,
    working,
)
from daemon.web.access import Scope, may_sign_in
from daemon.web.attainment import attained
from daemon.web.errors import Unusable
from daemon.web.plot import Band, Line, Plot
from daemon.web.runbooks import LANGUAGES, alert_name
from daemon.web.site import SESSION, SITE, Site

PAGES = (("/", "Overview"), ("/incidents", "Incidents"), ("/actions", "Actions"), ("/alerts", "Alerts"), ("/forecast", "Forecast"),
         ("/fleet", "Fleet"), ("/nodes", "Nodes"), ("/targets", "Targets"), ("/rules", "Rules"), ("/posture", "Posture"),
         ("/cost", "Cost"), ("/regions", "Regions"), ("/pools", "Pools"),
         ("/storage", "Storage"), ("/jobs", "Jobs"))  # fmt: skip
TWINS = {"/": "/overview", "/fleet": "/nodes", "/config": "", "/login": "", "/runbooks": ""}
"""Page -> its path in the API where that is another, "" where it has none."""
ROWS = {"targets": 150, "nodes": 40, "incidents": 100, "actions": 100, "pools": 4, "alerts": 60}
"""Rows of one page: it stays below 100 KB however large the fleet is."""
SPARKED = 16
"""GPUs, engines and ports of a node whose last hours are drawn."""
PICTURES = 10


@cache
def environment() -> Environment:
    env = Environment(
        loader=PackageLoader("daemon.web"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "number": quantities.number,
        "percent": quantities.percent,
        "span": quantities.span,
        "iso": words.iso,
        "when": words.when,
        "weekday": words.weekday,
        "decisions": words.decisions,
    }
    env.globals["pages"] = PAGES
    env.globals["twin"] = twin
    env.tests["known"] = quantities.is_number
    return env


WEEK_S = 7 * 86_400.0


def routes() -> list[web.RouteDef]:
    views_of: dict[str, tuple[str, Callable[[Site, web.Request], dict[str, Any]]]] = {
        "/": ("overview.html", lambda site, request: views.overview(site.daemon)),
        "/targets": ("targets.html", _targets),
        "/nodes": ("nodes.html", _nodes),
        "/nodes/{name}": ("node.html", _node),
        "/fleet": ("fleet.html", _fleet),
        "/incidents": ("incidents.html", _incidents),
        "/incidents/{id}": ("incident.html", _incident),
        "/actions": ("actions.html", _actions),
        "/actions/{id}": ("action.html", lambda s, r: cases.action(s.daemon, r.match_info["id"])),
        "/forecast": ("forecast.html", _forecast),
        "/rules": ("rules.html", _rules),
        "/alerts": ("alerts.html", _alerts),
        "/config": ("config.html", _config),
        "/cost": ("cost.html", lambda site, request: thrift.of(site.daemon)),
        "/pools/{name}": ("pool.html", _pool),
        "/pools": ("pools.html", _pools),
        "/jobs": ("jobs.html", lambda site, request: working.of(site.daemon)),
        "/storage": ("storage.html", lambda site, request: storing.of(site.daemon)),
        "/regions": ("regions.html", lambda site, request: regions.of(site.daemon)),
        "/posture": ("posture.html", lambda site, request: standing.of(site.daemon)),
    }

    def page(
        template: str, view: Callable[[Site, web.Request], dict[str, Any]]
    ) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            site = request.app[SITE]
            return html(site, template, request, view(site, request))

        return handle

    return [web.get(path, page(template, view)) for path, (template, view) in views_of.items()]


def html(
    site: Site, template: str, request: web.Request, data: dict[str, Any], status: int = 200
) -> web.Response:
    text = environment().get_template(template).render(d=data, path=request.path, **_frame(site, request))
    response = web.Response(text=text, status=status, content_type="text/html", charset="utf-8")
    response.enable_compression()
    response.headers["Vary"] = "Accept-Language, Cookie"
    if request.query.get("lang") in LANGUAGES:
        response.set_cookie(
            language.COOKIE, request.query["lang"], max_age=language.KEPT_S, httponly=True, samesite="Lax"
        )
    return response


def _frame(site: Site, request: web.Request) -> dict[str, Any]:
    """What head and foot of every page say. may : whether the forms that change something are shown."""
    session = request.get(SESSION)
    lang = language.language_of(request)
    daemon = site.daemon
    own = views.status(daemon)
    return {
        "lang": lang,
        "_": language.words_in(lang),
        "said": language.said_in(lang),
        "named": language.named_in(lang),
        "amount": language.amount_in(lang),
        "title_of": language.titles_in(lang),
        "own": own,
        "now": own["now"],
        "mode_text": views.MODE_WORDS[Mode(own["mode"])],
        "open_count": len(daemon.core.state.book.open),
        "awaiting_count": len(views.approvals(daemon)),
        "health": views.health(daemon),
        "session": session,
        "can_sign_in": may_sign_in(site.settings),
        "may": session is not None and session.caller.scope >= Scope.APPROVE,
    }


def part(rows: list[Any], size: int, request: web.Request) -> tuple[list[Any], dict[str, int]]:
    """One page of rows, with where it stands: page and pages count from 1. Raises Unusable."""
    text = request.query.get("page", "1")
    pages = max(1, math.ceil(len(rows) / size))
    if not text.isdigit() or not 1 <= int(text) <= pages:
        raise Unusable(f"page is {text!r}; give 1 to {pages}")
    number = int(text)
    return rows[(number - 1) * size : number * size], {"page": number, "pages": pages, "rows": len(rows)}


def _targets(site: Site, request: web.Request) -> dict[str, Any]:
    data = views.targets(site.daemon, site.catalogue)
    data["targets"], data["part"] = part(data["targets"], ROWS["targets"], request)
    return data


def _rules(site: Site, request: web.Request) -> dict[str, Any]:
    return rulebook.rules(site.daemon, site.catalogue) | rulebook.blindspots(site.daemon, site.catalogue)


def twin(path: str) -> str:
    """The API's path of the same data, "" when there is none."""
    first = "/" + path.split("/")[1]
    return f"/api/v1{TWINS[first]}" if TWINS.get(first) else "" if first in TWINS else f"/api/v1{path}"


def _nodes(site: Site, request: web.Request) -> dict[str, Any]:
    data = places.nodes(site.daemon)
    asked = {k: request.query[k] for k in ("rack", "leaf", "state") if k in request.query}
    chosen = [n for n in data["nodes"] if all(n[k] == v for k, v in asked.items())]
    data["nodes"], data["part"] = part(chosen, ROWS["nodes"], request)
    return data | {"asked": asked, "query": "".join(f"&{urlencode({k: v})}" for k, v in asked.items())}


def _node(site: Site, request: web.Request) -> dict[str, Any]:
    """A node's page: its row, its signals, the last two hours of its GPUs beside their peers."""
    daemon = site.daemon
    data = places.node(daemon, request.match_info["name"])
    lines = {}
    for kind in ("gpu", "engine", "port"):
        for row in data["measured"][kind][:SPARKED]:
            peers = daemon.recent.peers(Entity(kind, row["name"]))
            lines[row["name"]] = traces.sparks(daemon.recent.traces(kind, row["name"], peers))
    return data | {"lines": lines, "units": traces.UNITS}


def _pool(site: Site, request: web.Request) -> dict[str, Any]:
    """A pool's page: its objective over the last week and its demand, drawn."""
    daemon = site.daemon
    data = pool_story.of(daemon, request.match_info["name"])
    said = language.plain_in(language.language_of(request))
    until = daemon.frames.at or daemon.clock()
    met = attained(daemon.record, data["name"], until - WEEK_S, until)
    slo = pool_story.slo_plot(data["name"], met, data["now"]["slo_miss_allowed_ratio"])
    return data | {
        "slo_plot": slo.worded(said).svg(),
        "plot": pool_plot(data["ahead"], data["at"]).worded(said).svg(),
    }


def _fleet(site: Site, request: web.Request) -> dict[str, Any]:
    by = request.query.get("by", "busy")
    if by not in fleetmap.MEASURES:
        raise Unusable(f"by is {by!r}; one of {', '.join(fleetmap.MEASURES)}")
    data = places.nodes(site.daemon)
    return fleetmap.fleet(data["nodes"], by) | {"counts": data["counts"]}


def _incident(site: Site, request: web.Request) -> dict[str, Any]:
    found = cases.known(site.daemon, request.match_info["id"])
    data = cases.incident(site.daemon, found.id)
    shown = traces.of_incident(site.daemon, found)
    until = found.closed if found.closed == found.closed else site.daemon.frames.at
    words = language.words_in(language.language_of(request))
    span = (words("while it was open"), found.opened, until)
    pictures = [traces.drawn(t, [span], words) for t in shown[:PICTURES]]
    return data | {"alert": alert_name(data["kind"]), "pictures": [p for p in pictures if p]}


def _alerts(site: Site, request: web.Request) -> dict[str, Any]:
    data = alerts.alerts(site.daemon)
    shown = {"alerts": data["alerts"][: ROWS["alerts"]], "letters": data["letters"][: ROWS["alerts"]]}
    return data | shown | {"channels": alerts.channels(site.daemon)}


def _pools(site: Site, request: web.Request) -> dict[str, Any]:
    data = pooling.of(site.daemon)
    words = language.words_in(language.language_of(request))
    front = fronting.of(site.daemon)
    return (
        data
        | {"front": [*front["pools"], *front["classes"]]}
        | {"drawing": lanes.drawing(data["lanes"], data["takes"], data["gpus"], words)}
    )


def _config(site: Site, request: web.Request) -> dict[str, Any]:
    """What is configured, secrets hidden: what the file says, and everything with the defaults."""
    tree = masked(site.settings)
    said = given(tree, site.settings.model_dump(mode="json", exclude_unset=True))
    return {
        "file": str(site.config) if site.config else "",
        "said": yaml.safe_dump(said, sort_keys=False, allow_unicode=True) if said else "",
        "whole": yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
        "reload_error": site.daemon.status.reload_error,
        "reloads": site.daemon.status.reloads,
    }


def _incidents(site: Site, request: web.Request) -> dict[str, Any]:
    data = cases.incidents(site.daemon, 1000)
    data["open_total"] = len(data["open"])
    data["open"] = data["open"][: ROWS["incidents"]]
    data["closed"], data["part"] = part(data["closed"], ROWS["incidents"], request)
    return data


def _actions(site: Site, request: web.Request) -> dict[str, Any]:
    state = request.query.get("state") or None
    data = cases.actions(site.daemon, state, ROWS["actions"])
    return data | {"state": state or "", "states": words.STATES, "approvals": views.approvals(site.daemon)}


def _forecast(site: Site, request: web.Request) -> dict[str, Any]:
    data = ahead.forecast(site.daemon, request.query.get("pool", ""))
    data["pools"], data["part"] = part(data["pools"], ROWS["pools"], request)
    said = language.plain_in(language.language_of(request))
    for row in data["pools"]:
        row["plot"] = pool_plot(row, data["at"]).worded(said).svg()
        row["before_plot"] = before_plot(row, data["at"]).worded(said).svg() if row["before"] else ""
    data["plot"] = needed_plot(data).worded(said).svg()
    return data


def pool_plot(row: dict[str, Any], at: float) -> Plot:
    """A pool's week behind and the forecast with its bands."""
    past = row["history"]
    lines = [Line("measured", "past", list(zip(past["at"], past["concurrency_requests"], strict=True)))]
    bands = []
    found = row["forecast"]
    if found is not None:
        times = [found["made_at"] + k * found["step_s"] for k in range(len(found["quantiles"][0]))]
        at_level = {
            level: list(zip(times, values, strict=True))
            for level, values in zip(found["levels"], found["quantiles"], strict=True)
        }
        for low, high, css in ((0.05, 0.95, "wide"), (0.25, 0.75, "narrow")):
            if low in at_level and high in at_level:
                bands.append(Band(f"{low:.0%} to {high:.0%}", css, at_level[low], at_level[high]))
        lines.append(Line("forecast, median", "median", at_level[0.5]))
        if 0.9 in at_level:
            lines.append(Line("90 % level", "high", at_level[0.9]))
    planned = row["planned_requests"]
    levels = [("planned load of the ready replicas", "limit", planned)] if planned == planned else []
    return Plot(
        f"Demand of pool {row['name']}, past week and week ahead",
        "requests in flight",
        at,
        lines,
        bands,
        levels,
    )


def before_plot(row: dict[str, Any], at: float) -> Plot:
    """What was forecast three days ago against what came."""
    past, made = row["history"], row["before"]
    times = [made["made_at"] + k * made["step_s"] for k in range(len(made["quantiles"][0]))]
    elapsed = sum(t <= at for t in times)
    line = {
        level: list(zip(times, values, strict=True))[:elapsed]
        for level, values in zip(made["levels"], made["quantiles"], strict=True)
    }
    came = [p for p in zip(past["at"], past["concurrency_requests"], strict=True) if p[0] >= made["made_at"]]
    return Plot(
        f"Forecast of pool {row['name']} made three days ago against what came",
        "requests in flight",
        NAN,
        [Line("came", "past", came), Line("was forecast, median", "median", line[0.5])],
        [Band("10% to 90%", "wide", line[0.1], line[0.9])],
        [],
    )


def needed_plot(data: dict[str, Any]) -> Plot:
    """GPUs needed at two levels against what stands, with the leases."""
    needed, usable = data["needed"], data["outlook"]["gpus_usable"]
    lines = []
    for level, css, label in (("0.5", "median", "needed, median"), ("0.9", "high", "needed, 90 % level")):
        values = needed["gpus"].get(level, [])
        points = [(needed["from"] + k * needed["step_s"], v) for k, v in enumerate(values)]
        lines.append(Line(label, css, points))
    spans = [(f"{r['gpus']:g} GPUs of {r['node']} lent", r["since"], r["until"]) for r in data["leases"]]
    levels = [("usable", "limit", usable)] if usable == usable else []
    return Plot(
        "GPUs needed against usable GPUs", "GPUs", NAN, [x for x in lines if x.points], (), levels, spans
    )
