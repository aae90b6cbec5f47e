"""Whether the daemon lives, works, may be relied on: the answers for probes."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from daemon.web import views
from daemon.web.site import SITE, Site


class Check(NamedTuple):
    name: str
    is_ok: bool
    detail: str


def live(site: Site) -> list[Check]:
    """What a restart would cure. Before the first tick the process counts as alive: a start may take its time."""
    daemon = site.daemon
    is_ok = not daemon.status.ticks or views.is_deciding(daemon)
    return [Check("loop ticks", is_ok, f"{daemon.status.ticks} ticks, {daemon.status.missed} missed")]


def ready(site: Site) -> list[Check]:
    """What must hold before others rely on the daemon."""
    daemon = site.daemon
    reload_error = daemon.status.reload_error
    return [
        *live(site),
        Check(
            "configuration loaded",
            True,
            f"last reload refused: {reload_error}" if reload_error else "as on disk at the last load",
        ),
        Check(
            "first round scraped", daemon.status.is_ready, f"{len(daemon.frames['target'].entities)} targets"
        ),
        Check(
            "storage open",
            daemon.record.healthy,
            daemon.record.trouble or str(daemon.record.path or "in memory"),
        ),
    ]


def routes() -> list[web.RouteDef]:
    return [
        *(web.get(path, alive) for path in ("/healthz", "/livez", "/-/healthy")),
        *(web.get(path, readiness) for path in ("/readyz", "/-/ready")),
    ]


def _said(checks: list[Check], is_verbose: bool) -> web.Response:
    is_ok = all(c.is_ok for c in checks)
    shown = checks if is_verbose else [c for c in checks if not c.is_ok]
    lines = [
        f"[{'+' if c.is_ok else '-'}] {c.name}: {'ok' if c.is_ok else 'failed'} ({c.detail})" for c in shown
    ]
    return web.Response(
        text="\n".join([*lines, "ok" if is_ok else "not ok", ""]), status=200 if is_ok else 503
    )


async def alive(request: web.Request) -> web.Response:
    return _said(live(request.app[SITE]), "verbose" in request.query)


async def readiness(request: web.Request) -> web.Response:
    return _said(ready(request.app[SITE]), "verbose" in request.query)
