"""Plain words for what the daemon does, refuses, measures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from daemon.model import Reason, Result, Step, Verb, Verdict
from daemon.quantities import UNKNOWN, is_number

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


_BEGINS = re.compile(r"\S+ \S+ (?:opened|closed) on |lease of |\w+ \w+ \S+ (?:starts: |refused \()")


def decisions(sentence: str) -> list[str]:
    """The decisions of one tick's sentence, each with the whole of its reason, which may have semicolons of its own.

    >>> decisions("lease of n01 ended; scale pool chat starts: 3 -> 4 replicas: 4 needed; 3 would be late")
    ['lease of n01 ended', 'scale pool chat starts: 3 -> 4 replicas: 4 needed; 3 would be late']
    """
    found: list[str] = []
    for part in sentence.split("; "):
        if found and not _BEGINS.match(part):
            found[-1] += f"; {part}"
        else:
            found.append(part)
    return found


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
