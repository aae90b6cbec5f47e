"""What on-call was told and what is kept quiet, and the words that change either."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from typing import Any

from daemon.alerts import LABEL, Letter, OnCall, Raised, Silence
from daemon.core import Command
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.web.errors import Conflict, Missing, Unusable

SHOWN = 200
SILENCE_MAX_S = 30 * 86400.0
TEXT_MAX = 300


def alerts(daemon: Daemon) -> dict[str, Any]:
    """Alerts, those that fire first; silences that are not over; the newest messages."""
    book, now = daemon.record.outbox.book, daemon.clock()
    found = sorted(book.raised.values(), key=lambda r: (r.alert.status == "resolved", -r.alert.at))
    return {
        "at": now,
        "alerts": [_alert(r) for r in found[:SHOWN]],
        "silences": [_silence(s) for s in book.silences.values() if s.end > now],
        "letters": [_letter(letter) for letter in daemon.record.outbox.letters(limit=SHOWN)],
    }


def channels(daemon: Daemon) -> list[dict[str, Any]]:
    """How each channel fares, by its newest messages; one that never sent is shown too."""
    rows: dict[str, dict[str, Any]] = {}
    for name in daemon.oncall.names() if daemon.oncall is not None else ():
        rows[name] = {"name": name, "sent": 0, "waiting": 0, "given_up": 0, "last": NAN, "error": ""}
    for letter in reversed(daemon.record.outbox.letters(limit=1000)):
        blank = {"name": letter.channel, "sent": 0, "waiting": 0, "given_up": 0, "last": NAN, "error": ""}
        row = rows.setdefault(letter.channel, blank)
        if letter.state == "delivered":
            row["sent"] += 1
            row["last"], row["error"] = letter.at, ""
        elif letter.state == "given_up":
            row["given_up"] += 1
            row["error"] = letter.error
        elif letter.state in ("queued", "sending"):
            row["waiting"] += 1
            row["error"] = letter.error or row["error"]
    for name, trouble in (daemon.oncall.troubles if daemon.oncall is not None else {}).items():
        rows[name]["error"] = rows[name]["error"] or trouble
    return list(rows.values())


def silence_like(daemon: Daemon, key: str, hours: float, by: str) -> dict[str, Any]:
    """Keep one alert quiet, by all its labels. Raises Missing, Unusable, Conflict."""
    raised = daemon.record.outbox.book.raised.get(key)
    if raised is None:
        raise Missing(f"no alert {key!r}; GET /api/v1/alerts lists those there are")
    # Severity and pool change while an alert lives; what it is about does not.
    match = {k: v for k, v in raised.alert.labels.items() if k not in ("severity", "pool")}
    return silence(daemon, json.dumps({"match": match, "seconds": hours * 3600.0}), by)


def _alert(raised: Raised) -> dict[str, Any]:
    alert = raised.alert
    return {
        "key": alert.key,
        "status": alert.status,
        "severity": alert.severity.value,
        "summary": alert.words.get("en", alert.annotations).get("summary", ""),
        "incident": alert.annotations.get("incident", ""),
        "labels": alert.labels,
        "started": alert.started,
        "ended": alert.ended,
        "changes": len(raised.changes),
        "acked_by": raised.acked_by,
        "acked_at": raised.acked_at,
    }


def _silence(silence: Silence) -> dict[str, Any]:
    return {
        "id": silence.id,
        "match": silence.match,
        "start": silence.start,
        "end": silence.end,
        "by": silence.by,
        "comment": silence.comment,
    }


def _letter(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "channel": letter.channel,
        "kind": letter.message.kind,
        "status": letter.status,
        "severity": letter.severity.value,
        "about": letter.key,
        "alerts": letter.message.firing + letter.message.resolved,
        "state": letter.state,
        "at": letter.at,
        "tries": letter.tries,
        "error": letter.error,
    }


# -- words ---------------------------------------------------------------------------------------------


def ack(daemon: Daemon, text: str, by: str) -> dict[str, Any]:
    """Take on what fires: {"name": an alert's key, an incident or a group}. Raises Unusable, Missing, Conflict."""
    name = _text(_body(text), "name")
    if not name:
        raise Unusable('name is missing; send {"name": "i00007"}, an incident, an alert\'s key or a group')
    return take(daemon, name, by)


def take(daemon: Daemon, name: str, by: str) -> dict[str, Any]:
    """Take on what fires under an alert's key, an incident or a group. Raises Missing, Conflict."""
    if not _desk(daemon).ack(name, by):
        raise Missing(f"nothing fires under {name!r}; GET /api/v1/alerts lists what does")
    return _done(daemon, "ack", name, by)


def silence(daemon: Daemon, text: str, by: str) -> dict[str, Any]:
    """Keep alerts quiet for a while: {"match": {label: pattern}, "seconds": N, "comment": ..}. Raises Unusable, Conflict."""
    body = _body(text)
    match, seconds = body.get("match"), body.get("seconds")
    if not isinstance(match, dict) or not match:
        raise Unusable(
            'match is missing; send {"match": {"node": "n03"}, ..}, patterns with * and ? by label'
        )
    for label, pattern in match.items():
        if not LABEL.fullmatch(label) or not isinstance(pattern, str) or not 1 <= len(pattern) <= TEXT_MAX:
            raise Unusable(
                f"match {label!r}: {pattern!r}; a label's name, and a pattern of 1 to {TEXT_MAX} characters"
            )
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not is_number or not 0 < float(seconds) <= SILENCE_MAX_S:  # type: ignore[arg-type]
        raise Unusable(f"seconds is {seconds!r}; give a number above 0 and up to {SILENCE_MAX_S:.0f}")
    now = daemon.clock()
    made = Silence(secrets.token_hex(4), match, now, now + float(seconds), by, _text(body, "comment"))  # type: ignore[arg-type]
    _desk(daemon).silence(made)
    return _done(daemon, "silence", made.id, by)


def unsilence(daemon: Daemon, id: str, by: str) -> dict[str, Any]:
    """End a silence now; what it held back and still fires is told. Raises Missing, Conflict."""
    if not _desk(daemon).unsilence(id):
        raise Missing(f"no silence {id} is in force; GET /api/v1/alerts lists those that are")
    return _done(daemon, "unsilence", id, by)


def _desk(daemon: Daemon) -> OnCall:
    if daemon.oncall is None:
        raise Conflict("nobody is told", "this daemon tells nobody: add notify.channels and reload it")
    return daemon.oncall


def _done(daemon: Daemon, word: str, argument: str, by: str) -> dict[str, Any]:
    now = daemon.clock()
    daemon.record.event(now, "command", Command(word, argument, by, now))
    return {"queued": word, "argument": argument, "by": by, "within_s": daemon.pace.tick_s}


def _body(text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"the body is no JSON ({error})") from None
    if not isinstance(body, dict):
        raise Unusable("the body is no JSON object")
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise Unusable(f"{name} is no text of up to {TEXT_MAX} characters")
    return value
