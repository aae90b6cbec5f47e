"""The JSON side: reads, and writes for holders of a token with the scope."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from daemon import service
from daemon.codec import to_plain
from daemon.model import Entity
from daemon.web import (
    ahead,
    alerts,
    cases,
    fitting,
    fronting,
    openapi,
    orders,
    places,
    placing,
    pool_story,
    pooling,
    regions,
    report,
    rulebook,
    standing,
    storing,
    thrift,
    traces,
    views,
    working,
)
from daemon.web.access import Caller, Scope, require
from daemon.web.errors import Refused, Unusable
from daemon.web.replies import Reply
from daemon.web.site import CALLER, READERS_MAX, SITE, Site
from daemon.web.words import STATES

LIMIT_MAX = 2000
BEAT_S = 15.0


def answer(value: Any, status: int = 200) -> web.Response:
    text = json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False)
    return web.Response(text=text, status=status, content_type="application/json")


def tagged(request: web.Request, response: web.Response) -> web.Response:
    """The response with its ETag; 304 without a body when the asker has just that."""
    body = response.body
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"' if isinstance(body, bytes) else ""
    asked = [t.strip().removeprefix("W/") for t in request.headers.get("If-None-Match", "").split(",")]
    if tag in asked or "*" in asked:
        return web.Response(status=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return response


def problem(status: int, title: str, detail: str) -> web.Response:
    """RFC 9457."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return web.Response(text=json.dumps(body), status=status, content_type="application/problem+json")


# -- queries -------------------------------------------------------------------------------------------


def limit_of(request: web.Request) -> int:
    """The query's `limit`. Raises Unusable."""
    text = request.query.get("limit", str(cases.SHOWN))
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= LIMIT_MAX:
        raise Unusable(f"limit is {text!r}; give 1 to {LIMIT_MAX}")
    return int(text)


def state_of(request: web.Request) -> str | None:
    """The query's `state`. Raises Unusable."""
    state = request.query.get("state")
    if state is not None and state not in STATES:
        raise Unusable(f"state is {state!r}; one of {', '.join(STATES)}")
    return state


def after_of(request: web.Request) -> cases.Place | None:
    """The query's `cursor` of a list of incidents or actions. Raises Unusable."""
    text = request.query.get("cursor")
    if text is None:
        return None
    if not re.fullmatch(cases.CURSOR, text):
        raise _no_cursor(text)
    at, _, id = text.partition("~")
    return float(at), id


def before_of(request: web.Request) -> int | None:
    """The query's `cursor` of the audit. Raises Unusable."""
    text = request.query.get("cursor")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise _no_cursor(text)
    return int(text)


def _no_cursor(text: str) -> Unusable:
    return Unusable(f"cursor is {text!r}; give the `next` of the answer before, or none")


def _node(site: Site, request: web.Request) -> Any:
    """A node with what is remembered of the last two hours."""
    daemon, data = site.daemon, places.node(site.daemon, request.match_info["name"])
    found = [
        t
        for kind in ("gpu", "engine", "port")
        for row in data["measured"][kind]
        for t in daemon.recent.traces(kind, row["name"], daemon.recent.peers(Entity(kind, row["name"])))
    ]
    return data | {"traces": traces.as_rows(found)}


def _incident(site: Site, request: web.Request) -> Any:
    known = cases.known(site.daemon, request.match_info["id"])
    shown = traces.as_rows(traces.of_incident(site.daemon, known))
    return cases.incident(site.daemon, known.id) | {"traces": shown}


READS: dict[str, Callable[[Site, web.Request], Any]] = {
    "/status": lambda site, request: views.status(site.daemon),
    "/overview": lambda site, request: views.overview(site.daemon),
    "/targets": lambda site, request: views.targets(site.daemon, site.catalogue),
    "/nodes": lambda site, request: places.nodes(site.daemon),
    "/nodes/{name}": _node,
    "/incidents": lambda site, request: cases.incidents(site.daemon, limit_of(request), after_of(request)),
    "/incidents/{id}": _incident,
    "/actions": lambda site, request: cases.actions(
        site.daemon, state_of(request), limit_of(request), after_of(request)
    ),
    "/actions/{id}": lambda site, request: cases.action(site.daemon, request.match_info["id"]),
    "/alerts": lambda site, request: alerts.alerts(site.daemon),
    "/audit": lambda site, request: cases.audit(site.daemon, limit_of(request), before_of(request)),
    "/rules": lambda site, request: rulebook.rules(site.daemon, site.catalogue),
    "/blindspots": lambda site, request: rulebook.blindspots(site.daemon, site.catalogue),
    "/cost": lambda site, request: thrift.of(site.daemon),
    "/posture": lambda site, request: standing.of(site.daemon),
    "/pools": lambda site, request: pooling.of(site.daemon),
    "/pools/{name}": lambda site, request: pool_story.of(site.daemon, request.match_info["name"]),
    "/gateway": lambda site, request: fronting.of(site.daemon),
    "/jobs": lambda site, request: working.of(site.daemon),
    "/storage": lambda site, request: storing.of(site.daemon),
    "/placement": lambda site, request: placing.of(site.daemon),
    "/region": lambda site, request: regions.own(site.daemon),
    "/regions": lambda site, request: regions.of(site.daemon),
    "/fit": lambda site, request: fitting.of(site.daemon),
    "/report": lambda site, request: report.without_drawings(
        report.report(site.daemon, report.span_of(request.query.get("last", "7d")))
    ),
    "/forecast": lambda site, request: ahead.forecast(site.daemon, request.query.get("pool", "")),
}
"""Path under /api/v1 -> what it answers. Raises Missing, Unusable."""


# -- writes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """scope : who may. do(site, id or "", word or "", body, by) -> what is answered. status : of a success."""

    scope: Scope
    do: Callable[[Site, str, str, str, str], Any]


WRITES: dict[str, Write] = {
    "/actions/{id}/{word:approve|reject}": Write(
        Scope.APPROVE, lambda site, id, word, body, by: orders.decide(site.daemon, id, word, by)
    ),
    "/actions/{id}/undo": Write(
        Scope.APPROVE, lambda site, id, word, body, by: orders.take_back(site.daemon, id, by)
    ),
    "/incidents/{id}/{word:confirm|refute}": Write(
        Scope.APPROVE, lambda site, id, word, body, by: orders.judge(site.daemon, id, word, by)
    ),
    "/alerts/ack": Write(Scope.APPROVE, lambda site, id, word, body, by: alerts.ack(site.daemon, body, by)),
    "/silences": Write(Scope.APPROVE, lambda site, id, word, body, by: alerts.silence(site.daemon, body, by)),
    "/silences/{id}/end": Write(
        Scope.APPROVE, lambda site, id, word, body, by: alerts.unsilence(site.daemon, id, by)
    ),
    "/pause": Write(Scope.APPROVE, lambda site, id, word, body, by: orders.pause(site.daemon, body, by)),
    "/resume": Write(Scope.APPROVE, lambda site, id, word, body, by: orders.resume(site.daemon, by)),
    "/attest": Write(Scope.ADMIN, lambda site, id, word, body, by: orders.attest(site.daemon, body, by)),
}
"""Path under /api/v1 -> what a POST does there, answered by 202. Raises Missing, Unusable, Conflict, Refused."""


def routes() -> list[web.RouteDef]:
    def read(view: Callable[[Site, web.Request], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            return tagged(request, answer(view(request.app[SITE], request)))

        return handle

    def write(found: Write) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            return await _write(request, found)

        return handle

    return [
        *(web.get(f"/api/v1{path}", read(view)) for path, view in READS.items()),
        *(web.post(f"/api/v1{path}", write(found)) for path, found in WRITES.items()),
        web.get("/api/v1/openapi.json", description),
        web.get("/api/v1/stream", stream),
        web.post("/-/reload", reload),
        web.get("/metrics", metrics),
    ]


async def _write(request: web.Request, write: Write) -> web.Response:
    site = request.app[SITE]
    caller = require(site.settings, request.get(CALLER), write.scope)
    text = await _text(request)
    key, asked = request.headers.get("Idempotency-Key"), (request.method, request.path, text)
    at = site.daemon.clock()
    known = site.replies.find(caller.name, key, asked, at)
    if known is None:
        id, word = request.match_info.get("id", ""), request.match_info.get("word", "")
        done = answer(write.do(site, id, word, text, who(request, caller)), 202)
        known = Reply(at, asked, done.status, done.text or "")
        site.replies.keep(caller.name, key, known)
    return web.Response(text=known.text, status=known.status, content_type="application/json")


async def _text(request: web.Request) -> str:
    try:
        return await request.text()
    except (UnicodeDecodeError, LookupError) as error:
        raise Unusable(f"the body is no UTF-8 text ({error})") from None


def who(request: web.Request, caller: Caller) -> str:
    """Whom the journal names: the token's name, else what the client says, else where it came from."""
    said = request.headers.get("X-Operator", "").strip()[:80]
    return caller.name or said or f"api {request.remote or ''}".strip()


async def reload(request: web.Request) -> web.Response:
    """Read the configuration again; every problem is listed when it is not usable."""
    site = request.app[SITE]
    require(site.settings, request.get(CALLER), Scope.ADMIN)
    problems = service.reload(site.daemon, site.config)
    if problems:
        return problem(
            422, "configuration not usable, the old one stays", "\n".join(str(p) for p in problems)
        )
    return answer({"reloaded": str(site.config), "within_s": site.daemon.pace.tick_s}, 202)


# -- streams and metrics -------------------------------------------------------------------------------


async def description(request: web.Request) -> web.Response:
    return tagged(request, answer(openapi.document()))


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
