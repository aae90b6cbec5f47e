"""The daemon's web server: pages for people, an API for programs, metrics for Prometheus."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from urllib.parse import urlencode

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from daemon.listening import holder_of
from daemon.loop import Daemon
from daemon.model import SourceError
from daemon.settings import Settings
from daemon.telemetry.catalogue import Catalogue
from daemon.web import api, forms, health, link_pages, pages, report_page, runbook_pages
from daemon.web.access import Scope, identify, may_sign_in, require
from daemon.web.errors import Conflict, Missing, Refused, Unusable
from daemon.web.metrics import registry_of
from daemon.web.site import CALLER, SESSION, SITE, Feed, Site

__all__ = ["ListenError", "serving"]

log = structlog.get_logger("tidewarden")

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
STATIC = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
BODY_MAX = 64 * 1024


class ListenError(SourceError):
    """The web address cannot be bound: the message says what holds it and the remedy."""


@asynccontextmanager
async def serving(
    daemon: Daemon, settings: Settings, config: Path | None, catalogue: Catalogue
) -> AsyncIterator[str]:
    """Serve while the context lasts; gives the base URL. Port 0 takes any free one. Raises ListenError."""
    host, port = address_of(settings.web.listen)
    runner = web.AppRunner(
        application(daemon, settings, config, catalogue), access_log=None, shutdown_timeout=0.5
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ListenError(_cannot_listen(settings.web.listen, port, error)) from error
        bound = runner.addresses[0][1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        log.info("web pages", url=url, writes="with token" if may_sign_in(settings) else "off")
        yield url
    finally:
        await runner.cleanup()


def address_of(listen: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9095", "[::1]:9095" or ":9095" (all addresses). Raises ListenError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ListenError(f"web.listen is {listen!r}; write host:port, like 127.0.0.1:9095")
    return host.strip("[]") or "0.0.0.0", int(port)


def _cannot_listen(listen: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        return f"web.listen {listen}: held by {holder or 'another process'}; stop it, or set web.listen to another port"
    if error.errno == errno.EACCES:
        return f"web.listen {listen}: no right to bind it; take a port above 1023"
    return f"web.listen {listen}: {error.strerror or error}; give an address of this host"


def application(
    daemon: Daemon, settings: Settings, config: Path | None, catalogue: Catalogue
) -> web.Application:
    app = web.Application(middlewares=[troubles, guarded], client_max_size=BODY_MAX)
    feed = Feed()
    daemon.listeners.append(feed.hear)
    app[SITE] = Site(daemon, settings, config, catalogue, registry_of(daemon), feed)
    app.on_response_prepare.append(_add_headers)
    app.add_routes(
        [
            *pages.routes(),
            *runbook_pages.routes(),
            *report_page.routes(),
            *forms.routes(),
            *link_pages.routes(),
            *api.routes(),
            *health.routes(),
            *(_static(n, t) for n, t in STATIC.items()),
        ]
    )
    return app


OPEN = ("/healthz", "/livez", "/readyz", "/-/healthy", "/-/ready", "/static/", "/login", "/go/")
"""Paths that need no token even where looking does; a link under /go/ carries its own right."""


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who asks, and let look only who may."""
    site = request.app[SITE]
    caller, session = identify(site.door, site.settings, request, site.daemon.clock())
    if caller is not None:
        request[CALLER] = caller
    if session is not None:
        request[SESSION] = session
    if site.settings.web.reads == "token" and caller is None and not request.path.startswith(OPEN):
        if request.method == "GET" and _is_page(request):
            return web.Response(
                status=303, headers={"Location": f"/login?{urlencode({'next': request.path_qs})}"}
            )
        require(site.settings, caller, Scope.READ)
    return await handler(request)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.method == "GET" and not request.path.startswith("/static/"):
        response.headers.setdefault("Cache-Control", "no-store")


@web.middleware
async def troubles(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every trouble as an answer that says what was wrong: problem+json, or a page for a browser."""
    try:
        return await handler(request)
    except Refused as error:
        response = trouble(
            request, error.status, "not allowed" if error.status < 500 else "not now", str(error)
        )
        if error.status == 429:
            response.headers["Retry-After"] = "60"
        if error.status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="tidewarden"'
        return response
    except Conflict as error:
        return trouble(request, 409, error.title, str(error))
    except Missing as error:
        return trouble(request, 404, "not found", str(error))
    except Unusable as error:
        return trouble(request, 400, "bad request", str(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = trouble(request, error.status, error.reason, _words(request, error))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        log.exception("request failed", path=request.path)
        return trouble(request, 500, "internal error", "the daemon goes on; its log says what happened")


def _words(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"nothing is served at {request.path}"
    if error.status == 405:
        return (
            f"{request.method} is not possible at {request.path}; allowed: {error.headers.get('Allow', '')}"
        )
    return error.text or error.reason


def trouble(request: web.Request, status: int, title: str, detail: str) -> web.Response:
    if _is_page(request):
        data = {"status": status, "title": title, "detail": detail}
        return pages.html(request.app[SITE], "error.html", request, data, status)
    return api.problem(status, title, detail)


def _is_page(request: web.Request) -> bool:
    """Whether a person in a browser asks, as against a program."""
    is_data = request.path.startswith(("/api/", "/-/", "/metrics"))
    return "text/html" in request.headers.get("Accept", "") and not is_data


def _static(name: str, kind: str) -> web.RouteDef:
    body = resources.files("daemon.web").joinpath("static", name).read_bytes()

    async def handle(request: web.Request) -> web.Response:
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "max-age=300"}
        return web.Response(body=body, headers=headers)

    return web.get(f"/static/{name}", handle)
