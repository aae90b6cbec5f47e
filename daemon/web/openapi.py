"""The description of the API that is served at /api/v1/openapi.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from daemon.alerts import LABEL
from daemon.web import alerts, cases
from daemon.web.shapes import COUNT, SHAPES, Shape, ref
from daemon.web.standing import ATTESTABLE, LONGEST_S
from daemon.web.words import STATES

LIMIT: Shape = {"type": "integer", "minimum": 1, "maximum": 2000, "default": 200}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of a path. query : name -> shape. body : None = none is read. scope : "" = reading.

    errors : problems beside those of every operation.
    """

    id: str
    says: str
    answer: str
    query: Mapping[str, Shape]
    body: Shape | None = None
    scope: str = ""
    errors: tuple[int, ...] = ()


def _read(id: str, says: str, answer: str, errors: tuple[int, ...] = (), **query: Shape) -> Operation:
    return Operation(id, says, answer, query, errors=errors)


def _write(
    id: str, says: str, scope: str, errors: tuple[int, ...] = (), body: Shape | None = None
) -> Operation:
    return Operation(id, says, "Queued", {}, body, scope, errors)


PLACE: Shape = {
    "type": "string",
    "pattern": f"^{cases.CURSOR}$",
    "description": "the `next` of the answer before",
}
NUMBER: Shape = {
    "type": "string",
    "pattern": "^[0-9]{1,18}$",
    "description": "the `next` of the answer before",
}

READS: Mapping[str, Operation] = {
    "/status": _read("status", "The state of the daemon itself", "Status"),
    "/overview": _read("overview", "The whole cluster at a glance", "Overview"),
    "/targets": _read("targets", "Every scraped address, and what nobody exports", "Targets"),
    "/nodes": _read("nodes", "Every node with what sits on it", "Nodes"),
    "/nodes/{name}": _read("node", "One node, all its signals, the last two hours", "NodeStory", (404,)),
    "/incidents": _read(
        "incidents",
        "Open incidents, then the newest closed ones",
        "Incidents",
        (400,),
        limit=LIMIT,
        cursor=PLACE,
    ),
    "/incidents/{id}": _read("incident", "Why, what happened when, what was done", "IncidentStory", (404,)),
    "/actions": _read(
        "actions",
        "Steps that change the cluster, newest first",
        "Actions",
        (400,),
        state={"type": "string", "enum": list(STATES)},
        limit=LIMIT,
        cursor=PLACE,
    ),
    "/actions/{id}": _read("action", "One step with its whole story", "ActionStory", (404,)),
    "/alerts": _read("alerts", "What on-call was told, what is kept quiet", "Alerts"),
    "/audit": _read("audit", "Who said what when, newest first", "Audit", (400,), limit=LIMIT, cursor=NUMBER),
    "/rules": _read("rules", "Every rule with how often it was right", "Rules"),
    "/blindspots": _read("blindspots", "Rules that cannot fire, for want of telemetry", "BlindSpots"),
    "/cost": _read("cost", "Energy, money and carbon of the last day", "Cost"),
    "/posture": _read("posture", "The checklists against what is measured", "Posture"),
    "/pools": _read("pools", "Who holds which GPUs, who gives first", "Pools"),
    "/pools/{name}": _read(
        "pool", "Whether a pool keeps its objective, on which replicas", "PoolStory", (404,)
    ),
    "/gateway": _read("gateway", "What gateways say of pools and classes", "Gateway"),
    "/jobs": _read("jobs", "Offline jobs, what stopping each would lose, which lease goes first", "Jobs"),
    "/storage": _read("storage", "Stores, starts by source, weights to read in before a rise", "Storage"),
    "/placement": _read("placement", "Where replicas should rather stand", "Placement"),
    "/region": _read("region", "What this region tells a view over several regions", "Region"),
    "/regions": _read("regions", "Which region gets which share of all requests", "Regions"),
    "/fit": _read("fit", "What engines reserve against what they use", "Fit"),
    "/report": _read(
        "report",
        "What the last days brought",
        "Report",
        (400,),
        last={"type": "string", "pattern": "^[1-9][0-9]?d$", "default": "7d"},
    ),
    "/forecast": _read(
        "forecast", "Demand ahead, GPUs needed, leases", "Forecast", (404,), pool={"type": "string"}
    ),
}

WRITES: Mapping[str, Operation] = {
    "/actions/{id}/approve": _write("approve", "Let a step that waits go ahead", "approve", (404, 409)),
    "/actions/{id}/reject": _write("reject", "Leave a step that waits undone", "approve", (404, 409)),
    "/actions/{id}/undo": _write(
        "undo", "Take back what a step did, hands off for an hour", "approve", (404, 409)
    ),
    "/incidents/{id}/confirm": _write("confirm", "The incident was right", "approve", (404,)),
    "/incidents/{id}/refute": _write("refute", "The incident was wrong", "approve", (404,)),
    "/alerts/ack": _write(
        "ack",
        "Take on what fires: no repeats, no second line",
        "approve",
        (404,),
        {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "minLength": 1, "maxLength": alerts.TEXT_MAX}},
        },
    ),
    "/silences": _write(
        "silence",
        "Keep alerts quiet for a while",
        "approve",
        (),
        {
            "type": "object",
            "required": ["match", "seconds"],
            "properties": {
                "match": {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": {"pattern": f"^{LABEL.pattern}$"},
                    "additionalProperties": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": alerts.TEXT_MAX,
                    },
                },
                "seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": alerts.SILENCE_MAX_S},
                "comment": {"type": "string", "maxLength": alerts.TEXT_MAX},
            },
        },
    ),
    "/silences/{id}/end": _write("unsilence", "End a silence now", "approve", (404,)),
    "/pause": _write(
        "pause",
        "Stop all actions for a time, or until resumed",
        "approve",
        (400,),
        {
            "type": "object",
            "properties": {
                "seconds": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 30 * 86400}
            },
        },
    ),
    "/resume": _write("resume", "Let actions happen again", "approve"),
    "/attest": _write(
        "attest",
        "Take in a measurement that no exporter can make",
        "admin",
        (400,),
        {
            "type": "object",
            "required": ["item", "value", "valid_hours"],
            "properties": {
                "item": {"type": "string", "enum": list(ATTESTABLE)},
                "value": {"type": "number", "minimum": 0},
                "valid_hours": {"type": "number", "minimum": 0, "maximum": LONGEST_S / 3600.0},
            },
        },
    ),
}

SAID = {
    304: "You have it already",
    400: "The query or the body cannot be understood",
    401: "No token was given",
    403: "The token is wrong, or its scope is too small",
    404: "There is no such thing",
    409: "It does not fit what is the case now, or the Idempotency-Key was used for another request",
    413: "The body is too large",
    429: "Too many wrong tokens",
    503: "Not now",
}


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for method, operations in (("get", READS), ("post", WRITES)):
        for path, operation in operations.items():
            paths.setdefault(f"/api/v1{path}", {})[method] = _described(path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tidewarden",
            "version": metadata.version("tidewarden"),
            "description": "What the daemon sees, foresees, does and refuses. A number is null where nothing was "
            "measured; times are seconds since the epoch. Every error is an RFC 9457 problem with the remedy.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": dict(SHAPES),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of web.token_file (scope admin) or web.tokens (read, approve or admin)",
                }
            },
        },
    }


def _described(path: str, operation: Operation) -> dict[str, Any]:
    is_write = bool(operation.scope)
    parameters: list[dict[str, Any]] = [
        {"name": n, "in": "query", "required": False, "schema": s} for n, s in operation.query.items()
    ]
    for name in re.findall(r"\{(\w+)\}", path):
        parameters.append(
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        )
    header = ("Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"})
    parameters.append(
        {"name": header[0], "in": "header", "required": False, "schema": header[1]}
        if is_write
        else {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}}
    )
    errors = {401, 403, 429, 503, *operation.errors} | ({400, 409, 413} if is_write else {304})
    found: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.says,
        "parameters": parameters,
        "responses": {
            "202" if is_write else "200": _answer(operation, is_write),
            **{str(status): _error(status) for status in sorted(errors)},
        },
    }
    if is_write:
        found["security"] = [{"token": []}]
        found["description"] = (
            f"Needs a token of scope {operation.scope} or above. It counts at the next decision."
        )
    if operation.body is not None:
        found["requestBody"] = {
            "required": "required" in operation.body,
            "content": {"application/json": {"schema": operation.body}},
        }
    return found


def _answer(operation: Operation, is_write: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": "Queued for the next decision" if is_write else operation.says,
        "content": {"application/json": {"schema": ref(operation.answer)}},
    }
    if not is_write:
        answer["headers"] = {"ETag": {"schema": {"type": "string"}}}
    return answer


def _error(status: int) -> dict[str, Any]:
    if status == 304:
        return {"description": SAID[status], "headers": {"ETag": {"schema": {"type": "string"}}}}
    found: dict[str, Any] = {
        "description": SAID[status],
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }
    if status == 429:
        found["headers"] = {"Retry-After": {"schema": COUNT}}
    return found
