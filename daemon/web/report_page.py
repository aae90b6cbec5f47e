"""Serves the report of the last days at /report?last=7d."""

from __future__ import annotations

from aiohttp import web

from daemon.web import pages
from daemon.web.language import language_of, plain_in
from daemon.web.report import report, span_of
from daemon.web.site import SITE


def routes() -> list[web.RouteDef]:
    return [web.get("/report", _page)]


async def _page(request: web.Request) -> web.Response:
    site = request.app[SITE]
    said = plain_in(language_of(request))
    data = report(site.daemon, span_of(request.query.get("last", "7d")), said)
    return pages.html(site, "report.html", request, data)
