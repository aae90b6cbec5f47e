"""Serves the runbooks at /runbooks/NAME in the reader's language."""

from __future__ import annotations

from aiohttp import web

from daemon.web import pages
from daemon.web.language import language_of
from daemon.web.runbooks import NAMES, runbook
from daemon.web.site import SITE


def routes() -> list[web.RouteDef]:
    return [web.get("/runbooks", _index), web.get("/runbooks/{name}", _page)]


async def _page(request: web.Request) -> web.Response:
    data = runbook(request.match_info["name"], language_of(request))
    return pages.html(request.app[SITE], "runbook.html", request, data)


async def _index(request: web.Request) -> web.Response:
    language = language_of(request)
    rows = [{"name": n, "title": runbook(n, language)["title"]} for n in NAMES]
    data = {"language": language, "rows": rows}
    return pages.html(request.app[SITE], "runbooks.html", request, data)
