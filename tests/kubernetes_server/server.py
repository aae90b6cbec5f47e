"""The HTTP side: paths, verbs, selectors, watches, rights, faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from kubernetes_server.control import Controllers, is_ready
from kubernetes_server.store import (
    KINDS,
    Json,
    Kind,
    Refused,
    Store,
    at,
    json_patch,
    merge,
    strategic,
)

FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "status.podIP",
    "status.phase",
    "spec.unschedulable",
)
_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<space>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)


@dataclass
class Fault:
    """What happens to the next `times` requests that match. code 0 = the connection is closed without an answer.

    delay_s : before anything is done. after : done first, and then the answer is lost.
    """

    method: str
    path: str
    code: int = 0
    times: int = 1
    message: str = "injected"
    retry_after: int = 0
    delay_s: float = 0.0
    after: bool = False


@dataclass
class KubernetesServer:
    """tokens : token -> rights, None = all. A right is "verb group/resource", "*" stands for any."""

    store: Store = field(default_factory=Store)
    tokens: dict[str, list[str] | None] = field(default_factory=lambda: {"sesame-token-1234567890": None})
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    bookmark_s: float = 0.2
    break_watches: int = 0
    absent: set[str] = field(default_factory=set)
    port: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        Controllers(self.store)
        self.store.wake = self._wake
        self.store.create(_kind("", "v1", "namespaces"), "", {"metadata": {"name": "default"}})

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[KubernetesServer]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = int(runner.addresses[0][1])
        try:
            yield self
        finally:
            await runner.cleanup()

    def kubeconfig(self, folder: Path, token: str = "sesame-token-1234567890") -> str:
        path = folder / "kubeconfig.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "us", "user": {"token": token}}],
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": "us", "namespace": "default"}}
                    ],
                }
            )
        )
        return str(path)

    def changes(self) -> list[tuple[str, str]]:
        return [
            r
            for r in self.requests
            if r[0] != "GET" and "selfsubject" not in r[1] and not r[1].endswith("/events")
        ]

    # -- one request ---------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        fault = next(
            (
                f
                for f in self.faults
                if f.times and f.method in ("*", request.method) and re.search(f.path, request.path)
            ),
            None,
        )
        if fault is not None:
            fault.times -= 1
            await asyncio.sleep(fault.delay_s)
        try:
            if fault is not None and fault.code and not fault.after:
                raise Refused(fault.code, "Injected", fault.message, retry_after=fault.retry_after)
            if fault is not None and not fault.code and not fault.delay_s and not fault.after:
                return self._hang_up(request)
            answer = await self._serve(request)
            if fault is not None and fault.after:
                return self._hang_up(request)
            return answer
        except Refused as refusal:
            return _status(refusal)

    def _hang_up(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        rights = self._rights(request)
        if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return await self._review(request, rights)
        found = _PATH.match(request.path)
        kind = (
            _kind(found["group"] or "", found["core"] or found["version"], found["plural"]) if found else None
        )
        if found is None or kind is None or kind.kind in self.absent:
            return web.Response(status=404, text="404 page not found\n", content_type="text/plain")
        space, name, sub = found["space"] or "", found["name"] or "", found["sub"] or ""
        if kind.plural == "namespaces":
            space = ""
        verb = _verb(request, name)
        _allow(rights, verb, kind, sub, name, space)
        if request.method == "GET" and not name:
            if request.query.get("watch") == "true":
                return await self._watch(request, kind, space)
            return web.json_response(self._list(request, kind, space))
        body = await _body(request)
        manager = request.query.get("fieldManager") or "unknown"
        if request.method == "POST" and sub == "eviction":
            return web.json_response(self._evict(space, name, body), status=201)
        if request.method == "POST":
            return web.json_response(self.store.create(kind, space, body, manager), status=201)
        if request.method == "GET":
            thing = self.store.get(kind, space, name)
            return web.json_response(_scale(thing) if sub == "scale" else thing)
        if request.method == "DELETE":
            grace = request.query.get("gracePeriodSeconds") or body.get("gracePeriodSeconds")
            return web.json_response(
                self.store.delete(kind, space, name, None if grace is None else int(grace))
            )
        changed = self.store.update(kind, space, name, _change(request, kind, sub, body), manager)
        return web.json_response(_scale(changed) if sub == "scale" else changed)

    def _rights(self, request: web.Request) -> list[str] | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or token not in self.tokens:
            raise Refused(401, "Unauthorized", "Unauthorized")
        return self.tokens[token]

    async def _review(self, request: web.Request, rights: list[str] | None) -> web.Response:
        body = await _body(request)
        asked = body["spec"]["resourceAttributes"]
        resource = asked["resource"] + (f"/{asked['subresource']}" if asked.get("subresource") else "")
        allowed = rights is None or f"{asked['verb']} {asked.get('group', '')}/{resource}" in rights
        return web.json_response(body | {"status": {"allowed": allowed}}, status=201)

    # -- lists and watches -----------------------------------------------------------------------------------

    def _list(self, request: web.Request, kind: Kind, space: str) -> Json:
        found = [o for o in self.store.all(kind.plural, space, kind.group) if selected(o, request)]
        start = int(request.query.get("continue") or 0)
        limit = int(request.query.get("limit") or len(found) or 1)
        meta: Json = {"resourceVersion": str(self.store.version)}
        if start + limit < len(found):
            meta |= {"continue": str(start + limit), "remainingItemCount": len(found) - start - limit}
        # As the real one: items of a list carry neither apiVersion nor kind.
        items = [
            {k: v for k, v in o.items() if k not in ("apiVersion", "kind")}
            for o in found[start : start + limit]
        ]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": items}

    async def _watch(self, request: web.Request, kind: Kind, space: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or self.store.version)
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        if since < self.store.forgotten:
            gone = Refused(410, "Expired", f"too old resource version: {since} ({self.store.forgotten})")
            await _send(answer, "ERROR", _status_body(gone))
            return answer
        sent = since
        with contextlib.suppress(ConnectionError):
            while True:
                for version, type, its, thing in list(self.store.history):
                    if (
                        version <= sent
                        or its is not kind
                        or space not in ("", thing["metadata"].get("namespace", ""))
                    ):
                        continue
                    if not selected(thing, request):
                        continue
                    if self.break_watches:
                        self.break_watches -= 1
                        await answer.write(json.dumps({"type": type, "object": thing})[:40].encode())
                        assert request.transport is not None
                        request.transport.abort()
                        return answer
                    await _send(answer, type, thing)
                sent = max(sent, self.store.version)
                news = self._news
                try:
                    async with asyncio.timeout(self.bookmark_s):
                        await news.wait()
                except TimeoutError:
                    if request.query.get("allowWatchBookmarks") == "true":
                        mark = {
                            "kind": kind.kind,
                            "apiVersion": kind.api_version,
                            "metadata": {"resourceVersion": str(sent)},
                        }
                        await _send(answer, "BOOKMARK", mark)
        return answer

    # -- eviction --------------------------------------------------------------------------------------------

    def _evict(self, space: str, name: str, body: Json) -> Json:
        """429 when a disruption budget would be violated, 500 when two budgets match. Source: API-initiated eviction."""
        pods = _kind("", "v1", "pods")
        pod = self.store.get(pods, space, name)
        has = pod["metadata"].get("labels") or {}
        budgets = [
            b
            for b in self.store.all("poddisruptionbudgets", space)
            if _matches(b["spec"]["selector"]["matchLabels"], has)
        ]
        if len(budgets) > 1:
            raise Refused(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )
        for budget in budgets:
            wanted = budget["spec"]["selector"]["matchLabels"]
            healthy = sum(
                is_ready(p)
                for p in self.store.all("pods", space)
                if _matches(wanted, p["metadata"].get("labels") or {})
            )
            least = int(budget["spec"].get("minAvailable", 0))
            if is_ready(pod) and healthy - 1 < least:
                cause = {
                    "reason": "DisruptionBudget",
                    "message": f"The disruption budget {budget['metadata']['name']} needs {least} healthy pods and has {healthy} currently",
                }
                raise Refused(
                    429,
                    "TooManyRequests",
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    [cause],
                )
        uid = (body.get("deleteOptions") or {}).get("preconditions", {}).get("uid", "")
        self.store.delete(pods, space, name, uid=uid)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}


def selected(thing: Json, request: web.Request) -> bool:
    has = thing["metadata"].get("labels") or {}
    for part in filter(None, (request.query.get("labelSelector") or "").split(",")):
        key, op, value = re.match(r"^([^=!]+?)(==|=|!=|$)(.*)$", part.strip()).groups()  # type: ignore[union-attr]
        if (
            (op == "" and key not in has)
            or (op in ("=", "==") and has.get(key) != value)
            or (op == "!=" and has.get(key) == value)
        ):
            return False
    for part in filter(None, (request.query.get("fieldSelector") or "").split(",")):
        key, _, value = part.partition("=")
        if key not in FIELDS:
            raise Refused(400, "BadRequest", f'Unable to find "{key}" that matches a field selector')
        if str(at(thing, tuple(key.split("."))) or "").lower() != value.lower():
            return False
    return True


def _matches(wanted: Json, has: Json) -> bool:
    return all(has.get(k) == v for k, v in wanted.items())


def _kind(group: str, version: str, plural: str) -> Any:
    return next((k for k in KINDS if (k.group, k.version, k.plural) == (group, version, plural)), None)


def _verb(request: web.Request, name: str) -> str:
    if request.method == "GET":
        return "get" if name else "watch" if request.query.get("watch") == "true" else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def _allow(rights: list[str] | None, verb: str, kind: Kind, sub: str, name: str, space: str) -> None:
    resource = kind.plural + (f"/{sub}" if sub else "")
    if rights is not None and f"{verb} {kind.group}/{resource}" not in rights:
        where = f'in the namespace "{space}"' if space else "at the cluster scope"
        raise Refused(
            403,
            "Forbidden",
            f'{resource} "{name}" is forbidden: User "system:serviceaccount:ops:tidewarden" cannot {verb} resource "{resource}" in API group "{kind.group}" {where}',
        )


def _change(request: web.Request, kind: Kind, sub: str, body: Any) -> Any:
    type = request.headers.get("Content-Type", "").partition(";")[0]
    if request.method == "PUT":
        ways = {"put": lambda old: body}
        type = "put"
    else:
        ways = {
            "application/merge-patch+json": lambda old: merge(old, body),
            "application/strategic-merge-patch+json": lambda old: strategic(old, body),
            "application/json-patch+json": lambda old: json_patch(old, body),
        }
    if type not in ways or (
        type.startswith("application/strategic")
        and "." in kind.group
        and kind.group not in ("events.k8s.io", "coordination.k8s.io")
    ):
        raise Refused(
            415,
            "UnsupportedMediaType",
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(ways)}",
        )

    def change(old: Json) -> Json:
        if sub == "scale":
            new = ways[type](_scale(old))
            replicas = (new.get("spec") or {}).get("replicas", 0)
            return old | {
                "metadata": old["metadata"] | {"resourceVersion": new["metadata"].get("resourceVersion")},
                "spec": old["spec"] | {"replicas": replicas},
            }
        new = ways[type](old)
        if sub == "status":
            return old | {"status": new.get("status")}
        if "status" in kind.subresources and old.get("status") is not None:
            new["status"] = old["status"]
        return new

    return change


def _scale(thing: Json) -> Json:
    meta = {k: thing["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion")}
    now = (thing.get("status") or {}).get("replicas", 0)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": meta,
        "spec": {"replicas": thing["spec"].get("replicas", 1)},
        "status": {"replicas": now},
    }


async def _body(request: web.Request) -> Any:
    text = await request.text()
    try:
        return json.loads(text) if text else {}
    except ValueError:
        raise Refused(
            400, "BadRequest", "the object provided is unrecognized (must be of type ...)"
        ) from None


def _status_body(refusal: Refused) -> Json:
    body: Json = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": refusal.message,
    }
    return body | {"reason": refusal.reason, "code": refusal.code, "details": {"causes": refusal.causes}}


def _status(refusal: Refused) -> web.Response:
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
    return web.json_response(_status_body(refusal), status=refusal.code, headers=headers)


async def _send(answer: web.StreamResponse, type: str, thing: Json) -> None:
    await answer.write(json.dumps({"type": type, "object": thing}).encode() + b"\n")
