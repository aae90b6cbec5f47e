"""What the links in messages lead to: a page that says what will be done, with one button."""

from __future__ import annotations

from aiohttp import web

from daemon import links
from daemon.web import oncall, pages
from daemon.web.errors import Conflict, Missing
from daemon.web.site import SITE

WORDS = {"ack": "Acknowledge", "approve": "Approve"}


def routes() -> list[web.RouteDef]:
    return [web.get("/go/{token}", _ask), web.post("/go/{token}", _do)]


async def _ask(request: web.Request) -> web.Response:
    """Nothing is done yet: chat programs fetch every link they see."""
    order = _order(request)
    return pages.html(request.app[SITE], "go.html", request, _data(order, ""))


async def _do(request: web.Request) -> web.Response:
    order = _order(request)
    site = request.app[SITE]
    try:
        said = oncall.obey(site.daemon, order.word, order.argument, f"link {request.remote or ''}".strip())
    except ValueError as error:
        raise Conflict("not possible now", str(error)) from error
    return pages.html(site, "go.html", request, _data(order, said))


def _order(request: web.Request) -> links.Order:
    site = request.app[SITE]
    try:
        return links.check(site.daemon.link_key, request.match_info["token"], site.daemon.clock())
    except links.BadLink as error:
        raise Missing(str(error)) from error


def _data(order: links.Order, said: str) -> dict[str, object]:
    return {"word": WORDS[order.word], "argument": order.argument, "until": float(order.until), "said": said}
