"""Operators' words on their way to the loop: what may be said now, and what is queued for the next tick."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from daemon import undo
from daemon.core import Command
from daemon.loop import Daemon
from daemon.web import cases, standing
from daemon.web.errors import Conflict, Missing, Refused, Unusable

PAUSE_MAX_S = 30 * 86400.0


def queue(daemon: Daemon, kind: str, argument: str, by: str) -> dict[str, Any]:
    """Queue a word; it counts at the next tick. Raises Refused when too many wait."""
    try:
        daemon.command(Command(kind, argument, by, daemon.clock()))
    except asyncio.QueueFull:
        raise Refused(503, "too many commands are waiting for the next tick; try again in a moment") from None
    return {"queued": kind, "argument": argument, "by": by, "within_s": daemon.pace.tick_s}


def decide(daemon: Daemon, id: str, word: str, by: str) -> dict[str, Any]:
    """Approve or reject a step that waits for it. Raises Missing, Conflict, Refused."""
    row = daemon.record.step(id)
    if row is None:
        raise Missing(f"no action {id}; GET /api/v1/actions lists those there are")
    if not cases.is_awaiting(daemon, id):
        said = cases.step_row(row)
        why = said["state_text"] + (f": {said['verdict_text']}" if said["state"] == "withheld" else "")
        if row.state == "awaiting":
            why = "the need for it has passed"
        raise Conflict("not waiting for approval", f"{id} ({said['text']}) does not wait for approval: {why}")
    return queue(daemon, word, id, by)


def take_back(daemon: Daemon, id: str, by: str) -> dict[str, Any]:
    """Undo a step that was done and still stands. Raises Missing, Conflict, Refused."""
    row = daemon.record.step(id)
    if row is None:
        raise Missing(f"no action {id}; GET /api/v1/actions lists those there are")
    if not cases.can_be_undone(daemon, row):
        said = cases.step_row(row)
        why = "it no longer stands" if row.state == "done" else said["state_text"]
        raise Conflict("nothing to take back", f"{id} ({said['text']}) cannot be taken back: {why}")
    return queue(daemon, "undo", undo.argument_of(row.step), by) | {"undoes": id}


def judge(daemon: Daemon, id: str, word: str, by: str) -> dict[str, Any]:
    """Say whether an incident was right: it counts for the rules that opened it; the last word stands. Raises Missing."""
    if id not in daemon.core.state.ledger.cases:
        raise Missing(f"no incident {id} is remembered; GET /api/v1/incidents and /api/v1/rules list them")
    return queue(daemon, word, id, by)


def attest(daemon: Daemon, text: str, by: str) -> dict[str, Any]:
    """Take in a measurement that no exporter can make: {"item": .., "value": .., "valid_hours": ..}. Raises Unusable."""
    return queue(daemon, "attest", standing.attestation(text, daemon.clock()), by)


def pause(daemon: Daemon, text: str, by: str) -> dict[str, Any]:
    """Stop all actions for {"seconds": N}, or until `resume` without it. Raises Unusable."""
    try:
        body = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise Unusable(f'the body is no JSON ({error}); send {{"seconds": 1800}} or nothing') from None
    if not isinstance(body, dict):
        raise Unusable(f'the body is {body!r}; send {{"seconds": 1800}} or nothing')
    seconds = body.get("seconds")
    if seconds is None:
        return queue(daemon, "pause", "", by)
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not is_number or not 0 < seconds <= PAUSE_MAX_S:
        raise Unusable(f"seconds is {seconds!r}; give a number above 0 and up to {PAUSE_MAX_S:.0f}")
    return queue(daemon, "pause", f"{float(seconds):g}", by)


def resume(daemon: Daemon, by: str) -> dict[str, Any]:
    """Let actions happen again."""
    return queue(daemon, "resume", "", by)
