"""What a channel is told next about one group of alerts, decided from what it was told before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actions.routing import Pacing, Seat, muted_until
from daemon.alerts import ALERTS_MAX, RANK, Alert, Bundle, Letter, Message, Raised, Silence
from daemon.model import NAN, Severity

STEPS_KEPT = 8
ACK_WAIT_S = 5.0
"""How soon it is asked again whether the letter has arrived that an acknowledgement must follow. Judgement."""
UNSURE = "?"
"""Status of an alert of which nobody knows whether the channel has heard it."""


@dataclass(frozen=True, slots=True)
class Flap:
    """An alert whose status changes this often within this time is told once as flapping. Source: reference, 3 in 30 min."""

    changes: int = 3
    within_s: float = 1800.0


def raise_(before: Raised | None, alert: Alert, step: str, flap: Flap) -> Raised:
    """What is remembered of an alert after its newest word. An acknowledgement lasts until it fires anew."""
    if before is None:
        return Raised(alert, alert.at, (alert.at,), (step,))
    steps = (*before.steps, step)[-STEPS_KEPT:]
    if before.alert.status == alert.status:
        return replace(before, alert=alert, steps=steps)
    changes = (*(t for t in before.changes if alert.at - t < flap.within_s), alert.at)
    if alert.status == "firing":
        return Raised(alert, alert.at, changes, steps)
    return replace(before, alert=alert, changes=changes, steps=steps)


def shown_status(raised: Raised, at: float, flap: Flap) -> tuple[str, float]:
    """ "firing", "resolved" or "flapping", with the time until which it holds by itself (inf = until it changes)."""
    recent = [t for t in raised.changes if at - t < flap.within_s]
    if len(recent) >= flap.changes:
        return "flapping", recent[-flap.changes] + flap.within_s
    return raised.alert.status, math.inf


def known(bundle: Bundle, letter: Letter | None) -> dict[str, str]:
    """alert key -> "STATUS SEVERITY" as the channel has it, "?" where its last letter may or may not have arrived.

    letter : the bundle's last one, None when there was none or it is long forgotten.
    """
    if letter is None or letter.state == "delivered":
        return bundle.told
    if letter.perhaps or letter.state == "sending":
        keys = {**bundle.heard, **bundle.told}
        return {
            key: told if bundle.heard.get(key) == bundle.told.get(key) else f"{UNSURE} {told.split()[1]}"
            for key, told in keys.items()
        }
    return bundle.heard


@dataclass(frozen=True, slots=True)
class Draft:
    """A letter to be written: what is in it, and what it takes the place of."""

    bundle: Bundle
    kind: str
    firing: tuple[Raised, ...]
    resolved: tuple[Raised, ...]
    step: str


@dataclass(frozen=True, slots=True)
class Looked:
    """bundle : as it is now. draft : what is to be told, None = nothing. withdraws : its last letter is out of date."""

    bundle: Bundle
    draft: Draft | None = None
    withdraws: bool = False


def look(
    bundle: Bundle,
    letter: Letter | None,
    members: Sequence[tuple[Raised, Seat | None]],
    silences: Sequence[Silence],
    flap: Flap,
    sends_resolved: bool,
    at: float,
    acknowledges: bool = False,
) -> Looked:
    """What the bundle's channel must hear at the time `at`.

    members : the alerts of the group with the channel's interest in each, None = it has none any more.
    acknowledges : it wants to hear that all that fires is taken on, once it has heard that it fires.
    """
    was = known(bundle, letter)
    is_pending = letter is not None and letter.state in ("queued", "sending")
    told: dict[str, str] = {}
    firing: list[Raised] = []
    standing: list[Raised] = []  # what the channel holds as firing, or is about to
    resolved: list[Raised] = []
    news: list[Raised] = []
    wakes: list[float] = []
    is_flapping = False
    for raised, seat in members:
        key, alert = raised.alert.key, raised.alert
        status, until = shown_status(raised, at, flap)
        wakes.append(until)
        if status == "resolved":
            if key in was:
                resolved.append(raised)
                news += [raised] if sends_resolved else []
            continue
        muted = muted_until(alert.labels, silences, at)
        if muted > at:
            wakes.append(muted)
        if seat is None or seat.from_at > at or muted > at or (seat.is_second and raised.acked_by):
            wakes += [seat.from_at] if seat is not None and seat.from_at > at else []
            # Not to be told now; what was told before stays told, so that its end is.
            if key in was:
                told[key] = was[key]
                standing.append(raised)
            continue
        firing.append(raised)
        standing.append(raised)
        told[key] = f"{status} {alert.severity.value}"
        if _is_news(told[key], was.get(key, "")):
            news.append(raised)
            is_flapping = is_flapping or status == "flapping"
    is_taken = bool(standing) and all(raised.acked_by for raised in standing)
    if acknowledges and is_taken and (is_pending or news):
        wakes.append(at + ACK_WAIT_S)
    seat = next((s for _, s in members if s is not None), None)
    repeat_s = seat.pacing.repeat_s if seat else Pacing().repeat_s
    if is_pending and told == bundle.told and not (resolved and news and letter_is_behind(letter, resolved)):
        return Looked(replace(bundle, next_at=_next(bundle.sent_at + repeat_s, wakes, at)))
    if acknowledges and is_taken and not news and not is_pending and not bundle.acked:
        taken = replace(
            bundle,
            count=bundle.count + 1,
            told=told,
            heard=told,
            next_at=_next(math.nan, wakes, at),
            acked=True,
        )
        newest = max(standing, key=lambda raised: raised.acked_at)
        return Looked(taken, Draft(taken, "acknowledged", tuple(standing), (), newest.steps[-1]))
    if not news:
        is_due = not math.isnan(bundle.sent_at) and at - bundle.sent_at >= repeat_s
        unacked = [raised for raised in firing if not raised.acked_by]
        if not (is_due and unacked):
            later = bundle.sent_at + repeat_s if unacked and not math.isnan(bundle.sent_at) else math.inf
            still = replace(
                bundle,
                told=told,
                heard=told,
                next_at=_next(later, wakes, at),
                acked=bundle.acked and is_taken,
            )
            return Looked(still, withdraws=is_pending)
    kind = "news" if news else "repeat"
    if is_flapping:
        kind = "flapping"
    elif news and seat is not None and seat.is_second:
        kind = "escalation"
    newest = max(news or firing, key=lambda raised: raised.alert.at)
    sent = replace(
        bundle,
        sent_at=at,
        count=bundle.count + 1,
        told=told,
        heard=was,
        next_at=_next(at + repeat_s, wakes, at),
        acked=False,
    )
    shown = tuple(resolved) if sends_resolved else ()
    draft = Draft(sent, kind, tuple(firing), shown, newest.steps[-1])
    return Looked(sent, draft, withdraws=is_pending)


def letter_is_behind(letter: Letter | None, resolved: Sequence[Raised]) -> bool:
    """Whether a letter under way does not tell the end of what is over."""
    over = {a.key for a in letter.message.alerts if a.status == "resolved"} if letter else set()
    return any(raised.alert.key not in over for raised in resolved)


def _is_news(now: str, before: str) -> bool:
    if not before or before.startswith(UNSURE):
        return True
    (status, severity), (was, was_severity) = now.split(), before.split()
    worse = RANK[Severity(severity)] > RANK[Severity(was_severity)]
    return worse or (status == "flapping" and was != "flapping")


def _next(repeat_at: float, wakes: Sequence[float], at: float) -> float:
    return min([math.inf if math.isnan(repeat_at) else repeat_at, *(w for w in wakes if w > at)])


def touched(
    bundle: Bundle | None, blank: Bundle, raised: Raised, seat: Seat, is_pending: bool, at: float
) -> Bundle:
    """The bundle after something of its group has changed. blank : a new one. is_pending : its last letter waits."""
    pacing = seat.pacing
    is_critical = raised.alert.severity is Severity.CRITICAL
    wait_s = min(pacing.wait_s, pacing.wait_critical_s) if is_critical else pacing.wait_s
    if bundle is None or math.isnan(bundle.sent_at):
        due = max(at, seat.from_at) + (0.0 if seat.is_second else wait_s)
    elif is_pending:
        due = at  # the channel does not know yet: what waits is brought up to date before it goes
    elif is_critical and not any(told.endswith("critical") for told in bundle.told.values()):
        due = at + wait_s
    else:
        due = max(at + (min(wait_s, 1.0) if bundle.told else wait_s), bundle.sent_at + pacing.interval_s)
    due = max(due, seat.from_at)
    return replace(bundle or blank, next_at=min(due, bundle.next_at if bundle else math.inf))


def message_of(draft: Draft) -> Message:
    """The draft as one message, without what was done and without links."""
    alerts = sorted(
        (raised.alert for raised in (*draft.firing, *draft.resolved)),
        key=lambda a: (a.status == "resolved", -RANK[a.severity], -a.at, a.key),
    )
    at = {
        "repeat": draft.bundle.sent_at,
        "acknowledged": max((raised.acked_at for raised in draft.firing), default=math.nan),
    }
    return Message(
        at=at.get(draft.kind, max(a.at for a in alerts)),
        kind=draft.kind,
        status="firing" if draft.firing else "resolved",
        severity=worst([raised.alert for raised in draft.firing or draft.resolved]),
        key=draft.bundle.group,
        labels=draft.bundle.labels,
        alerts=tuple(alerts[:ALERTS_MAX]),
        firing=len(draft.firing),
        resolved=len(draft.resolved),
    )


def digest_of(messages: Sequence[Message], at: float) -> Message:
    """Many messages to one channel as a single one."""
    alerts = sorted(
        (alert for message in messages for alert in message.alerts),
        key=lambda a: (a.status == "resolved", -RANK[a.severity], -a.at, a.key),
    )
    return Message(
        at=at,
        kind="digest",
        status="firing" if any(m.status == "firing" for m in messages) else "resolved",
        severity=max((m.severity for m in messages), key=lambda s: RANK[s]),
        key="digest",
        labels={**_common([m.labels for m in messages]), "groups": str(len(messages))},
        alerts=tuple(alerts[:ALERTS_MAX]),
        firing=sum(m.firing for m in messages),
        resolved=sum(m.resolved for m in messages),
        deeds=tuple(deed for m in messages for deed in m.deeds)[:ALERTS_MAX],
    )


def letter_of(message: Message, channel: str, address: int, id: str, repeat_until: float = NAN) -> Letter:
    return Letter(
        id=id,
        channel=channel,
        address=address,
        key=message.key,
        status=message.status,
        severity=message.severity,
        at=message.at,
        message=message,
        repeat_until=repeat_until,
        next_at=message.at,
    )


def worst(alerts: Sequence[Alert]) -> Severity:
    return max((alert.severity for alert in alerts), key=lambda severity: RANK[severity])


def _common(sets: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {k: v for k, v in sets[0].items() if all(other.get(k) == v for other in sets[1:])}
