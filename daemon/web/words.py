"""Plain words for what the daemon does, refuses, measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from daemon.model import Reason, Result, Step, Verb, Verdict

UNKNOWN = "–"
"""Shown where nothing was measured: never a zero."""

REASONS: Mapping[Reason, str] = {
    Reason.ALLOWED: "every check let it pass",
    Reason.APPROVED: "an operator approved it",
    Reason.REJECTED: "an operator rejected it",
    Reason.MODE_OBSERVE: "this action is in observe mode: it is recorded and not done",
    Reason.MODE_ADVISE: "this action is in advise mode: it is recommended and not done",
    Reason.AWAITS_APPROVAL: "it waits for an operator's approval",
    Reason.PAUSED: "an operator paused all actions",
    Reason.MAINTENANCE: "a maintenance window covers it",
    Reason.STALE_DATA: "too much telemetry is stale to take anything away",
    Reason.BUDGET_CLUSTER: "the cluster's budget is used up",
    Reason.BUDGET_POOL: "the pool's budget is used up",
    Reason.BUDGET_DOMAIN: "too much of this rack or leaf is out already",
    Reason.BUDGET_RATE: "too many such actions within the hour",
    Reason.LAST_REPLICAS: "the pool would be left without a spare replica",
    Reason.COOL_DOWN: "the last try failed a moment ago",
    Reason.IN_FLIGHT: "another action on the same target is not finished",
    Reason.FOREIGN: "somebody else did this, so it is not ours to undo",
    Reason.NO_BACKEND: "no backend is configured that can do it",
    Reason.NO_JOURNAL: "the journal cannot be written, and nothing is done unrecorded",
    Reason.UNKNOWN_POOL: "the pool is not in the configuration",
    Reason.WAITS_FOR_SPARE: "it can be spared once a replica more is ready",
    Reason.WAITS_FOR_VALLEY: "it can be spared in a quieter hour",
    Reason.TOO_DEAR: "taking it out now would make too many requests late",
}

REMEDIES: Mapping[Reason, str] = {
    Reason.MODE_OBSERVE: "set mode: advise, approve or auto (or modes.<verb>) once you trust what it would have done",
    Reason.MODE_ADVISE: "do it by hand, or set modes.<verb>: approve",
    Reason.AWAITS_APPROVAL: "approve or reject it: tidewarden actions approve ID",
    Reason.PAUSED: "tidewarden resume",
    Reason.STALE_DATA: "see the targets page: bring the exporters back first",
    Reason.BUDGET_CLUSTER: "repair and release what is isolated, or raise budgets.isolated_nodes_max",
    Reason.BUDGET_POOL: "repair and release what is isolated, or raise budgets.isolated_pool_share_max",
    Reason.BUDGET_DOMAIN: "look for a common cause in the rack, or raise budgets.isolated_domain_max",
    Reason.BUDGET_RATE: "wait, or raise the budget per hour",
    Reason.LAST_REPLICAS: "add replicas first",
    Reason.NO_BACKEND: "name a backend for this verb under actions",
    Reason.NO_JOURNAL: "free space or repair the state folder; it resumes by itself",
    Reason.UNKNOWN_POOL: "add the pool to the configuration",
    Reason.WAITS_FOR_SPARE: "nothing: the replica is being started; approve the step to have it out at once",
    Reason.WAITS_FOR_VALLEY: "nothing, or free GPUs for one replica more; approve the step to have it out at once",
    Reason.TOO_DEAR: "free GPUs for one replica more, or approve the step and bear what is late",
}

STATES: Mapping[str, str] = {
    "allowed": "allowed, about to begin",
    "awaiting": "waits for approval",
    "withheld": "refused by the guard",
    "intent": "under way",
    "done": "done, seen in the world",
    "refused": "refused by the other side",
    "failed": "failed, nothing changed",
    "unknown": "nobody can tell: please look",
}

RESULTS: Mapping[Result, str] = {
    Result.DONE: "It was done, and the change was seen in the world",
    Result.REFUSED: "The other side said no",
    Result.FAILED: "It was tried and is known not to have happened",
    Result.UNKNOWN: "Nobody can tell whether it happened; a human has to look",
}


def told(step: Step) -> str:
    """What a step does, as a short phrase: "scale chat to 5 replicas"."""
    name = step.target.name
    if step.verb is Verb.SCALE:
        return f"scale {name} to {step.amount:g} replicas"
    if step.verb is Verb.REROUTE:
        return f"set the routing weight of {name} to {step.amount:.0%}"
    if step.verb is Verb.LIMIT:
        return f"let in {step.amount:.0%} of the requests of {name}"
    if step.verb is Verb.ROLLBACK:
        return f"take {name} back from version {step.arg('from')} to {step.arg('version')}"
    if step.verb is Verb.BALANCE:
        return f"give region {name} {step.amount:.0%} of all requests"
    if step.verb is Verb.LEND:
        return f"lend {step.amount:g} GPUs of {name} until {when(step.until)}"
    if step.verb is Verb.NOTIFY:
        return f"tell on-call about {name}: {'firing' if step.amount else 'resolved'}"
    return f"{step.verb.value} {step.target}"


def verdict_words(verdict: Verdict) -> str:
    """The guard's answer with its detail: "the pool's budget is used up (3 of 12 GPUs)"."""
    text = REASONS[verdict.reason]
    return f"{text} ({verdict.detail})" if verdict.detail else text


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, unit: str = "") -> str:
    """Three significant digits with the unit; a dash for what is not measured.

    >>> number(1234567.0, "B"), number(0.5), number(float("nan"), "s"), number(17)
    ('1.23 MB', '0.5', '–', '17')
    """
    if not is_number(value):
        return UNKNOWN
    size, prefix = abs(float(value)), ""
    if unit in ("B", "B/s", "tokens/s", "requests"):
        for step in ("k", "M", "G", "T", "P"):
            if size < 1000.0:
                break
            size, prefix = size / 1000.0, step
    text = f"{size:.0f}" if size >= 100.0 or size == int(size) else f"{size:.3g}"
    sign = "-" if value < 0 and float(text) != 0 else ""
    return f"{sign}{text} {prefix}{unit}".rstrip() if unit or prefix else f"{sign}{text}"


def percent(value: Any) -> str:
    """
    >>> percent(0.834), percent(0.004), percent(0.9996), percent(None)
    ('83 %', '0.4 %', '99.96 %', '–')
    """
    if not is_number(value):
        return UNKNOWN
    shown = float(value) * 100.0
    if 99.0 < shown < 100.0:  # between two nines and four lies the whole error budget
        return f"{shown:.2f} %"
    return f"{shown:.0f} %" if shown >= 1.0 or shown == 0.0 else f"{shown:.1f} %"


def span(seconds: Any) -> str:
    """A duration in the two largest units that matter.

    >>> span(0.0123), span(95), span(3700), span(200000), span(float("inf"))
    ('12 ms', '1 min 35 s', '1 h 1 min', '2 d 7 h', '–')
    """
    if not is_number(seconds):
        return UNKNOWN
    left = abs(float(seconds))
    if left < 1.0:
        return f"{left * 1000:.0f} ms" if left else "0 s"
    if left < 10.0:
        return f"{left:.1f} s".replace(".0 s", " s")
    whole = round(left)
    for size, unit, below, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"


def when(at: Any) -> str:
    """A time with its zone.

    >>> when(1_780_272_000.0), when(float("nan"))
    ('2026-06-01 00:00:00 UTC', '–')
    """
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if is_number(at) else UNKNOWN


def weekday(at: Any) -> str:
    """
    >>> weekday(1780304400.0), weekday(None)
    ('Mon 1 Jun', '–')
    """
    if not is_number(at):
        return UNKNOWN
    day = datetime.fromtimestamp(at, UTC)
    return f"{day:%a} {day.day} {day:%b}"


def iso(at: Any) -> str:
    """The same for machines, "" for an unknown time."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if is_number(at) else ""
