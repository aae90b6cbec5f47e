"""Forms of the pages: signing in and out, approving, rejecting, taking back, pausing."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.web_request import FileField

from daemon.web import alerts, orders, pages
from daemon.web.access import COOKIE, SESSION_S, Scope, caller_of_token, check_form, may_sign_in, require
from daemon.web.errors import Unusable
from daemon.web.site import CALLER, SESSION, SITE

SILENCE_H = 2.0
"""How long the page's own button keeps an alert quiet; the command line takes any time."""


def routes() -> list[web.RouteDef]:
    return [
        web.get("/login", _login_page),
        web.post("/login", _login),
        web.post("/logout", _logout),
        web.post("/actions/{id}/{word:approve|reject|undo}", _decide),
        web.post("/incidents/{id}/{word:confirm|refute}", _judge),
        web.post("/alerts/{word:ack|silence}", _alert),
        web.post("/silences/{id}/end", _unsilence),
        web.post("/pause", _pause),
        web.post("/resume", _pause),
    ]


async def _login_page(request: web.Request) -> web.Response:
    site = request.app[SITE]
    data = {"next": _inside(request.query.get("next", "/")), "wrong": "", "can": may_sign_in(site.settings)}
    return pages.html(site, "login.html", request, data)


async def _login(request: web.Request) -> web.Response:
    """Trade a token for a session; the token itself never reaches the browser's store."""
    site = request.app[SITE]
    at, address = site.daemon.clock(), request.remote or ""
    site.door.check_tries(address, at)
    form = await request.post()
    caller = caller_of_token(site.settings, _text(form, "token"))
    target = _inside(_text(form, "next"))
    if caller is None:
        site.door.tried(address, at)
        data = {"next": target, "wrong": "This is none of the tokens.", "can": may_sign_in(site.settings)}
        return pages.html(site, "login.html", request, data, 403)
    answer = web.Response(status=303, headers={"Location": target})
    is_secure = request.headers.get("X-Forwarded-Proto", request.scheme) == "https"
    answer.set_cookie(
        COOKIE,
        site.door.open(caller, at),
        max_age=int(SESSION_S),
        httponly=True,
        samesite="Strict",
        secure=is_secure,
    )
    return answer


async def _logout(request: web.Request) -> web.Response:
    await _checked(request)
    request.app[SITE].door.close(request.cookies.get(COOKIE, ""))
    answer = web.Response(status=303, headers={"Location": "/"})
    answer.del_cookie(COOKIE)
    return answer


async def _decide(request: web.Request) -> web.Response:
    await _checked(request)
    site, id, word = request.app[SITE], request.match_info["id"], request.match_info["word"]
    by = _by(request)
    if word == "undo":
        orders.take_back(site.daemon, id, by)
    else:
        orders.decide(site.daemon, id, word, by)
    return _back(request, f"/actions/{id}")


async def _judge(request: web.Request) -> web.Response:
    await _checked(request)
    id, word = request.match_info["id"], request.match_info["word"]
    orders.judge(request.app[SITE].daemon, id, word, _by(request))
    return _back(request, f"/incidents/{id}")


async def _alert(request: web.Request) -> web.Response:
    form = await _checked(request)
    daemon, key = request.app[SITE].daemon, _text(form, "key")
    if request.match_info["word"] == "ack":
        alerts.take(daemon, key, _by(request))
    else:
        alerts.silence_like(daemon, key, SILENCE_H, _by(request))
    return _back(request, "/alerts")


async def _unsilence(request: web.Request) -> web.Response:
    await _checked(request)
    alerts.unsilence(request.app[SITE].daemon, request.match_info["id"], _by(request))
    return _back(request, "/alerts")


async def _pause(request: web.Request) -> web.Response:
    form = await _checked(request)
    daemon = request.app[SITE].daemon
    if request.path == "/resume":
        orders.resume(daemon, _by(request))
    else:
        seconds = _text(form, "seconds")
        if seconds and not seconds.isdigit():
            raise Unusable(f"seconds is {seconds!r}; give a whole number")
        orders.pause(daemon, f'{{"seconds": {int(seconds)}}}' if seconds else "", _by(request))
    return _back(request, "/")


async def _checked(request: web.Request) -> Any:
    """The form, once it is known to come from a page of ours and from somebody who may."""
    site, session = request.app[SITE], request.get(SESSION)
    scope = Scope.READ if request.path == "/logout" else Scope.APPROVE
    require(site.settings, session.caller if session else None, scope)
    form = await request.post()
    check_form(session, _text(form, "csrf"), request)
    return form


def _by(request: web.Request) -> str:
    caller = request[CALLER]
    return caller.name or f"web {request.remote or ''}".strip()


def _text(form: Any, name: str) -> str:
    value = form.get(name, "")
    return "" if isinstance(value, FileField) else str(value)


def _inside(path: str) -> str:
    """A path of this site; anything that could lead elsewhere becomes the first page."""
    is_plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_plain else "/"


def _back(request: web.Request, path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})
