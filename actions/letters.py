"""Letters that stand for themselves, and where letters and alerts are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from actions.channel import Channel, ChannelKind
from actions.gojson import alert_name
from daemon.alerts import Alert, Bundle, Letter, Message, Raised, Silence
from daemon.model import Severity

HEARTBEAT = "heartbeat"


class Book(Protocol):
    """What is remembered; `daemon.alertbook.AlertBook` keeps it on disk."""

    @property
    def raised(self) -> dict[str, Raised]: ...

    @property
    def bundles(self) -> dict[str, Bundle]: ...

    @property
    def silences(self) -> dict[str, Silence]: ...

    def keep(self, *items: Raised | Bundle | Silence) -> None: ...

    def drop(self, *items: Bundle | Silence) -> None: ...

    def commit(self) -> None: ...


class Outbox(Protocol):
    """Where letters wait until they are delivered; `daemon.outbox.Outbox` keeps them on disk."""

    @property
    def book(self) -> Book: ...

    def put(self, letter: Letter) -> None: ...

    def update(self, *letters: Letter) -> None: ...

    def get(self, id: str) -> Letter | None: ...

    def live(self) -> list[Letter]: ...

    def last(self, channel: str, address: int, key: str) -> Letter | None: ...


def single(alert: Alert, kind: str = "news") -> Message:
    """A message about one alert alone."""
    names: tuple[str, ...] = ("alertname", "cluster", "pool")
    labels = {name: alert.labels[name] for name in names if name in alert.labels}
    is_over = alert.status == "resolved"
    return Message(
        alert.at,
        kind,
        alert.status,
        alert.severity,
        alert.key,
        labels,
        (alert,),
        int(not is_over),
        int(is_over),
    )


def plain_message(kind: str, channel: Channel, now: float) -> Message:
    """A test or a heartbeat: about nothing that happened."""
    labels = {
        "alertname": "TidewardenWatchdog" if kind == HEARTBEAT else alert_name(kind),
        "channel": channel.name,
        "kind": kind,
        "severity": "info",
    }
    alert = Alert(now, kind, "firing", Severity.INFO, labels, {"summary": f"tidewarden: {kind}"}, now)
    is_alert = channel.kind in (ChannelKind.ALERTMANAGER, ChannelKind.WEBHOOK, ChannelKind.MQTT)
    shown = (alert,) if is_alert else ()
    return Message(
        now, kind, "firing", Severity.INFO, kind, {"channel": channel.name}, shown, firing=len(shown)
    )


def post(outbox: Outbox, letter: Letter) -> None:
    """Put a letter that stands for itself; it takes the place of what still waits about the same thing there.

    A resolve of something its receiver never heard of is cancelled together with its firing.
    """
    before = outbox.last(letter.channel, letter.address, letter.key)
    heard = before is not None and _has_heard(before)
    if before is not None and before.state in ("queued", "sending", "standing"):
        outbox.update(replace(before, state="cancelled", error=f"replaced by {letter.id}"))
    if letter.status == "resolved" and not heard:
        outbox.put(replace(letter, state="cancelled", error="its firing was never sent"))
    else:
        outbox.put(replace(letter, heard=heard))


def _has_heard(letter: Letter) -> bool:
    """Whether the receiver may hold the letter's key as firing."""
    has_arrived = letter.state in ("standing", "delivered")
    if letter.status == "firing":
        return letter.heard or has_arrived or letter.state == "sending"
    return letter.heard and not has_arrived
