"""Serves the report of the last days at /report?last=7d."""

from __future__ import annotations

from aiohttp import web

from daemon.web import pages
from daemon.web.language import language_of, words_in
from daemon.web.report import report, span_of
from daemon.web.site import SITE


def routes() -> list[web.RouteDef]:
    return [web.get("/report", _page)]


async def _page(request: web.Request) -> web.Response:
    site = request.app[SITE]
    words = words_in(language_of(request))
    data = report(site.daemon, span_of(request.query.get("last", "7d")), words)
    return pages.html(site, "report.html", request, data)
