"""Serves the report of the last days at /report?last=7d."""

from __future__ import annotations

from aiohttp import web

from daemon.units import duration_s
from daemon.web import pages
from daemon.web.errors import Unusable
from daemon.web.report import report
from daemon.web.site import SITE

LONGEST_S = 366 * 86400.0


def routes() -> list[web.RouteDef]:
    return [web.get("/report", _page)]


async def _page(request: web.Request) -> web.Response:
    site = request.app[SITE]
    data = report(site.daemon, span_of(request.query.get("last", "7d")))
    return pages.html(site, "report.html", request, data)


def span_of(text: str) -> float:
    """Seconds of "7d". Raises Unusable."""
    try:
        span_s = duration_s(text)
    except ValueError as error:
        raise Unusable(f"last: {error}") from error
    if not 60.0 <= span_s <= LONGEST_S:
        raise Unusable(f"last is {text!r}; give 1m to 366d")
    return span_s
