"""The JSON side: reads for everyone, writes for holders of the token."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from daemon import service
from daemon.codec import to_plain
from daemon.core import Command
from daemon.web import ahead, cases, places, rulebook, standing, thrift, views
from daemon.web.errors import Missing, Refused, Unusable
from daemon.web.site import READERS_MAX, SITE, Site, check_token
from daemon.web.words import STATES

LIMIT_MAX = 2000
PAUSE_MAX_S = 30 * 86400.0
BEAT_S = 15.0


def answer(value: Any, status: int = 200) -> web.Response:
    text = json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False)
    return web.Response(text=text, status=status, content_type="application/json")


def problem(status: int, title: str, detail: str) -> web.Response:
    """RFC 9457."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return web.Response(text=json.dumps(body), status=status, content_type="application/problem+json")


def limit_of(request: web.Request) -> int:
    """The query's `limit`. Raises Unusable."""
    text = request.query.get("limit", str(cases.SHOWN))
    if not text.isdigit() or not 1 <= int(text) <= LIMIT_MAX:
        raise Unusable(f"limit is {text!r}; give 1 to {LIMIT_MAX}")
    return int(text)


def state_of(request: web.Request) -> str | None:
    """The query's `state`. Raises Unusable."""
    state = request.query.get("state")
    if state and state not in STATES:
        raise Unusable(f"state is {state!r}; one of {', '.join(STATES)}")
    return state or None


READS: dict[str, Callable[[Site, web.Request], Any]] = {
    "/status": lambda site, request: views.status(site.daemon),
    "/overview": lambda site, request: views.overview(site.daemon),
    "/targets": lambda site, request: views.targets(site.daemon, site.catalogue),
    "/nodes": lambda site, request: places.nodes(site.daemon),
    "/incidents": lambda site, request: cases.incidents(site.daemon, limit_of(request)),
    "/incidents/{id}": lambda site, request: cases.incident(site.daemon, request.match_info["id"]),
    "/actions": lambda site, request: cases.actions(site.daemon, state_of(request), limit_of(request)),
    "/actions/{id}": lambda site, request: cases.action(site.daemon, request.match_info["id"]),
    "/rules": lambda site, request: rulebook.rules(site.daemon, site.catalogue),
    "/blindspots": lambda site, request: rulebook.blindspots(site.daemon, site.catalogue),
    "/cost": lambda site, request: thrift.of(site.daemon),
    "/posture": lambda site, request: standing.of(site.daemon),
    "/forecast": lambda site, request: ahead.forecast(site.daemon, request.query.get("pool", "")),
}
"""Path under /api/v1 -> what it answers. Raises Missing, Unusable."""


def routes() -> list[web.RouteDef]:
    def read(view: Callable[[Site, web.Request], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            return answer(view(request.app[SITE], request))

        return handle

    return [
        *(web.get(f"/api/v1{path}", read(view)) for path, view in READS.items()),
        web.get("/api/v1/stream", stream),
        web.post("/api/v1/actions/{id}/{word:approve|reject}", decide),
        web.post("/api/v1/incidents/{id}/{word:confirm|refute}", judge),
        web.post("/api/v1/attest", attest),
        web.post("/api/v1/pause", pause),
        web.post("/api/v1/resume", resume),
        web.post("/-/reload", reload),
        web.get("/metrics", metrics),
    ]


# -- writes --------------------------------------------------------------------------------------------


def _order(request: web.Request, kind: str, argument: str = "") -> web.Response:
    """Queue an operator's word; it counts at the next tick."""
    daemon = request.app[SITE].daemon
    by = request.headers.get("X-Operator", "").strip()[:80] or f"api {request.remote or ''}".strip()
    try:
        daemon.command(Command(kind, argument, by, daemon.clock()))
    except asyncio.QueueFull:
        raise Refused(503, "too many commands are waiting for the next tick; try again in a moment") from None
    return answer({"queued": kind, "argument": argument, "by": by, "within_s": daemon.pace.tick_s}, 202)


async def decide(request: web.Request) -> web.Response:
    """Approve or reject a step that waits for it."""
    site, id, word = request.app[SITE], request.match_info["id"], request.match_info["word"]
    check_token(site, request.headers.get("Authorization", ""))
    row = site.daemon.record.step(id)
    if row is None:
        raise Missing(f"no action {id}; GET /api/v1/actions lists those there are")
    if not cases.is_awaiting(site.daemon, id):
        said = cases.step_row(row)
        why = said["state_text"] + (f": {said['verdict_text']}" if said["state"] == "withheld" else "")
        if row.state == "awaiting":
            why = "the need for it has passed"
        return problem(
            409, "not waiting for approval", f"{id} ({said['text']}) does not wait for approval: {why}"
        )
    return _order(request, word, id)


async def judge(request: web.Request) -> web.Response:
    """Say whether an incident was right. It counts for the rules that opened it; the last word stands."""
    site, id, word = request.app[SITE], request.match_info["id"], request.match_info["word"]
    check_token(site, request.headers.get("Authorization", ""))
    if id not in site.daemon.core.state.ledger.cases:
        raise Missing(f"no incident {id} is remembered; GET /api/v1/incidents and /api/v1/rules list them")
    return _order(request, word, id)


async def attest(request: web.Request) -> web.Response:
    """Take in a measurement that no exporter can make, with an expiry: {"item": .., "value": .., "valid_hours": ..}."""
    site = request.app[SITE]
    check_token(site, request.headers.get("Authorization", ""))
    return _order(request, "attest", standing.attestation(await request.text(), site.daemon.clock()))


async def pause(request: web.Request) -> web.Response:
    """Stop all actions for {"seconds": N}, or until `resume` without it."""
    check_token(request.app[SITE], request.headers.get("Authorization", ""))
    text = await request.text()
    try:
        body = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise Unusable(f'the body is no JSON ({error}); send {{"seconds": 1800}} or nothing') from None
    seconds = body.get("seconds") if isinstance(body, dict) else body
    if seconds is None:
        return _order(request, "pause")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not is_number or not 0 < seconds <= PAUSE_MAX_S:
        raise Unusable(f"seconds is {seconds!r}; give a number above 0 and up to {PAUSE_MAX_S:.0f}")
    return _order(request, "pause", f"{float(seconds):g}")


async def resume(request: web.Request) -> web.Response:
    check_token(request.app[SITE], request.headers.get("Authorization", ""))
    return _order(request, "resume")


async def reload(request: web.Request) -> web.Response:
    """Read the configuration again; every problem is listed when it is not usable."""
    site = request.app[SITE]
    check_token(site, request.headers.get("Authorization", ""))
    problems = service.reload(site.daemon, site.config)
    if problems:
        return problem(
            422, "configuration not usable, the old one stays", "\n".join(str(p) for p in problems)
        )
    return answer({"reloaded": str(site.config), "within_s": site.daemon.pace.tick_s}, 202)


# -- streams and metrics -------------------------------------------------------------------------------


async def stream(request: web.Request) -> web.StreamResponse:
    """Server-sent events: `decision` with its sentence when something changed, `tick` otherwise."""
    site = request.app[SITE]
    if len(site.feed.readers) >= READERS_MAX:
        raise Refused(
            503, f"{READERS_MAX} readers follow the stream already; close one, or poll /api/v1/overview"
        )
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    # A reader that leaves is no trouble: there is nobody left to tell.
    with site.feed.reading() as queue, suppress(ConnectionResetError):
        await response.write(b"retry: 3000\n\n")
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    decision = await queue.get()
            except TimeoutError:
                await response.write(b": still here\n\n")
                continue
            word = "decision" if decision.sentence else "tick"
            data = json.dumps({"at": decision.at, "sentence": decision.sentence})
            await response.write(f"event: {word}\ndata: {data}\n\n".encode())
    return response


async def metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[SITE].registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
