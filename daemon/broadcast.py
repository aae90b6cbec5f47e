"""What is published over MQTT: topics with JSON payloads, and how a command that comes back is checked."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from daemon import service
from daemon.codec import to_plain
from daemon.loop import Daemon, News
from daemon.model import Decision, Forecast, Frame, Incident, Outcome, Severity, Verb
from daemon.regional import readings

COMMANDS = ("pause", "resume", "approve", "reject", "ack")
SKEW_MAX_S = 60.0
"""How old a command may be, and how far ahead of our clock. Judgement: longer than any network, shorter than a mistake."""


class BadCommand(Exception):
    """A command that is not obeyed; the message says why."""


def name_of(text: str) -> str:
    """One level of a topic: + # / and control characters would mean something else.

    >>> name_of("n03/gpu5 #1")
    'n03_gpu5__1'
    """
    return re.sub(r"[+#/\s\x00-\x1f]", "_", text) or "_"


Payload = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def state_of(daemon: Daemon) -> dict[str, Payload]:
    """topic below the cluster's -> what stands there now, retained. An absent value was not measured.

    `region` is what the MQTT source of a daemon that keeps a view over regions reads.
    """
    found: dict[str, Payload] = {"state": _cluster(daemon), "region": readings(daemon)}
    pools = daemon.frames["pool"]
    for row, pool in enumerate(pools.entities):
        found[f"pools/{name_of(pool)}"] = {"pool": pool, **_measured(pools, row)}
    for incident in daemon.core.state.book.open.values():
        found[f"incidents/{name_of(incident.id)}"] = _incident(incident)
    return found


def _cluster(daemon: Daemon) -> dict[str, Any]:
    target, state = daemon.frames["target"], daemon.core.state
    open_ = list(state.book.open.values())
    return {
        "mode": daemon.core.policy.mode.value,
        "paused": daemon.clock() < state.paused_until,
        "targets": len(target.entities),
        "targets_up": int((target.column("up") == 1.0).sum()),
        "gpus": len(daemon.frames["gpu"].entities),
        "pools": len(daemon.frames["pool"].entities),
        "open_incidents": len(open_),
        "critical_incidents": sum(i.severity is Severity.CRITICAL for i in open_),
        "isolated": sorted(str(e) for e in state.fleet.isolated),
        "journal_is_healthy": daemon.record.healthy,
        "source_errors": sorted(service.source_errors(daemon)),
    }


def _measured(frame: Frame, row: int) -> dict[str, float]:
    return {
        signal: round(float(value), 6)
        for signal, value in zip(frame.signals, frame.values[row], strict=True)
        if math.isfinite(value)
    }


def _incident(incident: Incident) -> dict[str, Any]:
    return {
        "id": incident.id,
        "kind": incident.kind,
        "scope": str(incident.scope),
        "severity": incident.severity.value,
        "state": incident.state,
        "opened": incident.opened,
        "cause": incident.cause,
    }


def events_of(news: News) -> Iterator[tuple[str, dict[str, Any]]]:
    """(topic below the cluster's, event) of what just happened: incidents, actions, forecasts."""
    if isinstance(news, Decision):
        for word, incidents in (
            ("opened", news.opened),
            ("changed", news.changed),
            ("closed", news.closed),
        ):
            for incident in incidents:
                yield "events/incident", {"at": news.at, "event": word, **_incident(incident)}
    elif isinstance(news, Outcome):
        if news.step.verb is not Verb.NOTIFY:
            yield (
                "events/action",
                {
                    "at": news.at,
                    "id": news.step.id,
                    "verb": news.step.verb.value,
                    "target": str(news.step.target),
                    "amount": news.step.amount,
                    "result": news.result.value,
                    "detail": news.detail,
                    "incident": news.step.incident,
                },
            )
    elif isinstance(news, Forecast):
        high = news.at_level(0.9) if 0.9 in news.levels else news.quantiles[-1]
        yield (
            "events/forecast",
            {
                "at": news.at,
                "pool": news.target,
                "signal": news.signal,
                "peak": float(high.max()) if high.size else None,
                "model": news.model,
            },
        )


def as_json(value: Payload) -> str:
    return json.dumps(to_plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)


# -- commands ------------------------------------------------------------------------------------------


def signature(secret: str, id: str, at: float, word: str, argument: str, by: str) -> str:
    """Hex HMAC-SHA256 of the five fields, each on a line."""
    text = "\n".join((id, f"{at:.3f}", word, argument, by))
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def command_of(payload: bytes, is_retained: bool, secret: str, now: float) -> dict[str, str]:
    """id, do, argument and by of a command that may be obeyed.

    The payload is {"id": .., "at": seconds since the epoch, "do": .., "argument": .., "by": .., "sign": ..}.
    Raises BadCommand: no JSON, retained (a command stays true only while it is fresh), too old, signed wrongly, unknown.
    """
    if is_retained:
        raise BadCommand("it was retained: publish commands without the retain flag")
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError):
        raise BadCommand("it is no JSON") from None
    if not isinstance(body, dict):
        raise BadCommand("it is no JSON object")
    words = {key: body.get(key, "") for key in ("id", "do", "argument", "by", "sign")}
    at = body.get("at")
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        raise BadCommand("at is missing: seconds since the epoch")
    if any(not isinstance(value, str) or len(value) > 300 for value in words.values()) or not words["id"]:
        raise BadCommand("id, do, argument, by and sign are texts of up to 300 characters")
    wanted = signature(secret, words["id"], float(at), words["do"], words["argument"], words["by"])
    if not hmac.compare_digest(wanted.encode(), words["sign"].encode()):
        raise BadCommand("the signature is wrong")
    if abs(now - at) > SKEW_MAX_S:
        raise BadCommand(
            f"it is {now - at:.0f} s old, and may be {SKEW_MAX_S:.0f}: is the sender's clock right?"
        )
    if words["do"] not in COMMANDS:
        raise BadCommand(f"do is {words['do']!r}, one of {', '.join(COMMANDS)}")
    return words


# -- Home Assistant ------------------------------------------------------------------------------------

SENSORS: Mapping[str, tuple[str, str]] = {
    "open_incidents": ("sensor", "Open incidents"),
    "critical_incidents": ("sensor", "Critical incidents"),
    "gpus": ("sensor", "GPUs"),
    "targets_up": ("sensor", "Exporters that answer"),
    "mode": ("sensor", "Mode"),
    "paused": ("binary_sensor", "Paused"),
}


def discovery_of(prefix: str, base: str, cluster: str) -> dict[str, dict[str, Any]]:
    """Home Assistant's discovery topics with their payloads, for what stands in BASE/state."""
    node = f"tidewarden_{name_of(cluster)}"
    device = {"identifiers": [node], "name": f"tidewarden {cluster}", "manufacturer": "tidewarden"}
    found: dict[str, dict[str, Any]] = {}
    for key, (component, title) in SENSORS.items():
        is_binary = component == "binary_sensor"
        found[f"{prefix}/{component}/{node}/{key}/config"] = {
            "name": title,
            "unique_id": f"{node}_{key}",
            "state_topic": f"{base}/state",
            "value_template": f"{{{{ 'ON' if value_json.{key} else 'OFF' }}}}"
            if is_binary
            else f"{{{{ value_json.{key} }}}}",
            "availability_topic": f"{base}/status",
            "payload_available": "online",
            "payload_not_available": "offline",
            "device": device,
        }
    return found
