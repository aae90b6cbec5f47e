"""What people on call are shown beside an alert, and what they may say from afar."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from daemon.alerts import Deed
from daemon.loop import Daemon
from daemon.model import Step, Verb
from daemon.web import alerts, cases, orders
from daemon.web.errors import Conflict, Missing, Refused, Unusable
from daemon.web.sentences import in_chinese
from daemon.web.words import told

LOOKED = 200
"""Newest steps among which those of an incident are looked for: a page is about what happened just now."""


def deeds(daemon: Daemon, incident: str, approve_url: Callable[[str], str]) -> list[Deed]:
    """What was done about an incident and what waits for approval, oldest first. approve_url : step id -> URL or ""."""
    found = []
    for row in reversed(daemon.record.steps(limit=LOOKED, without=Verb.NOTIFY)):
        if row.step.incident != incident:
            continue
        if row.outcome is not None:
            found.append(Deed(_phrases(row.step), row.outcome.result.value, row.outcome.at))
        elif row.state == "awaiting" and cases.is_awaiting(daemon, row.step.id):
            found.append(Deed(_phrases(row.step), "awaiting", row.at, approve_url(row.step.id)))
    return found


def _phrases(step: Step) -> dict[str, str]:
    english = told(step)
    return {"en": english, "zh": in_chinese(english)}


def obey(daemon: Daemon, word: str, argument: str, by: str) -> str:
    """Do what somebody on call said: pause, resume, approve, reject, ack. Raises ValueError with the reason why not."""
    seconds = f'{{"seconds": {argument}}}' if argument else ""
    made: Mapping[str, Callable[[], object]] = {
        "ack": lambda: alerts.take(daemon, argument, by),
        "pause": lambda: orders.pause(daemon, seconds, by),
        "resume": lambda: orders.resume(daemon, by),
        "approve": lambda: orders.decide(daemon, argument, "approve", by),
        "reject": lambda: orders.decide(daemon, argument, "reject", by),
    }
    try:
        made[word]()
    except (Conflict, Missing, Refused, Unusable) as error:
        raise ValueError(str(error)) from error
    if word == "ack":
        return f"{argument} is acknowledged"
    return f"{word} counts at the next tick, within {daemon.pace.tick_s:.0f} s"
