"""What on-call is told, and what is remembered of having told it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from daemon.model import NAN, Severity

LANGUAGES = ("en", "zh")
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}")
"""A label's name, as in Prometheus."""
RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


@dataclass(frozen=True, slots=True)
class Alert:
    """What happened, in words and labels, fixed at the time `at`.

    key : the same for a firing and its resolve, and when severity or pool change.
    labels : stable. annotations : text, numbers. ended : NaN while it fires. url : of the page about it.
    words : language -> {"summary", "description"}; English is always there.
    extra : what Alertmanager's format has no place for.
    """

    at: float
    key: str
    status: str
    severity: Severity
    labels: dict[str, str]
    annotations: dict[str, str]
    started: float
    ended: float = NAN
    url: str = ""
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deed:
    """Something the daemon did about an incident, or wants to.

    what : language -> a phrase. result : of the outcome, "awaiting" = a person must approve. url : where to do so.
    """

    what: dict[str, str]
    result: str
    at: float
    url: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message to one channel, vendor-neutral: everything a text needs, fixed when it was made.

    kind   : "news", "repeat", "flapping", "escalation", "acknowledged", "digest", "undelivered", "heartbeat" or "test".
    status : "resolved" only when nothing of it fires any more. key : what it is about, the vendor's dedup key.
    alerts : the worst first, at most ALERTS_MAX; firing, resolved : how many there are in all.
    links  : label -> URL, beside those of the alerts.
    """

    at: float
    kind: str
    status: str
    severity: Severity
    key: str
    labels: dict[str, str]
    alerts: tuple[Alert, ...]
    firing: int = 1
    resolved: int = 0
    deeds: tuple[Deed, ...] = ()
    links: dict[str, str] = field(default_factory=dict)


ALERTS_MAX = 50
"""Alerts written out in one message; the rest are counted. Judgement: nobody reads more on a phone."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to one address of one channel, as it stands in the outbox.

    id      : step id / channel / address number; putting the same id twice is putting it once.
    address : index into the channel's URLs; URLs are secrets and never stored. key : what it is about, the same
              for a firing and its resolve. status : "firing" or "resolved".
    heard   : the receiver may hold `key` as firing. perhaps : a try of this very letter may have arrived.
    repeat_until : sent again until then; NaN = once.
    state   : "queued", "sending", "standing" (delivered and repeated), then finished: "delivered", "cancelled",
              "given_up". tries : failures since the last success, the first at failing_since (NaN = none).
    told    : on-call was told elsewhere that this letter does not arrive.
    """

    id: str
    channel: str
    address: int
    key: str
    status: str
    severity: Severity
    at: float
    message: Message
    heard: bool = False
    perhaps: bool = False
    repeat_until: float = NAN
    state: str = "queued"
    next_at: float = 0.0
    tries: int = 0
    failing_since: float = NAN
    told: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Raised:
    """What is remembered of one alert.

    alert : its newest word. first : when it began to fire this time. changes : times at which its status changed, the
    newest last. steps : ids of the last notices about it. acked_by : who took it on, "" = nobody.
    """

    alert: Alert
    first: float
    changes: tuple[float, ...] = ()
    steps: tuple[str, ...] = ()
    acked_by: str = ""
    acked_at: float = NAN


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one address of a channel is told together: the alerts of one group.

    next_at : when to look at it again, inf = not before something happens. sent_at : of the last letter, NaN = none.
    letter  : id of the last letter. told : alert key -> "STATUS SEVERITY" as of that letter; heard : as before it.
    acked   : the last letter said that all of it is taken on.
    """

    channel: str
    address: int
    group: str
    labels: dict[str, str]
    next_at: float
    sent_at: float = NAN
    letter: str = ""
    count: int = 0
    told: dict[str, str] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    acked: bool = False

    @property
    def id(self) -> str:
        return f"{self.channel}\t{self.address}\t{self.group}"


@dataclass(frozen=True, slots=True)
class Silence:
    """Alerts that nobody wants to hear of for a while.

    match : label -> pattern with * and ?; every one must fit, none = all alerts. start, end : seconds since the epoch.
    """

    id: str
    match: dict[str, str]
    start: float
    end: float
    by: str = ""
    comment: str = ""


class OnCall(Protocol):
    """What people on call may do with alerts; `actions.desk.Desk` does it."""

    def ack(self, name: str, by: str) -> list[str]:
        """Take on what fires under this alert key, incident or group. Returns the keys; [] = there is none."""
        ...

    @property
    def troubles(self) -> Mapping[str, str]:
        """Channel name -> what is wrong with it beside its messages."""
        ...

    def names(self) -> list[str]:
        """Of the channels."""
        ...

    def silence(self, silence: Silence) -> None: ...

    def unsilence(self, id: str) -> bool:
        """End a silence now. False when there is none."""
        ...
