"""Telling on-call: a notify step rendered into the letters of every channel that takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from daemon.model import NAN, Hopeless, Letter, Outcome, Result, Severity, Step

LABEL_ARGS = ("severity", "cluster", "kind", "family", "pool", "rack", "leaf", "region")
"""Args that become labels. All others become annotations: a label that changes makes a new alert every time."""
NOT_ANNOTATIONS = {*LABEL_ARGS, "status", "scope", "scope_kind", "starts_at", "ends_at", "url"}
_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}
_NO_TIME = "0001-01-01T00:00:00Z"


class ChannelKind(StrEnum):
    WEBHOOK = "webhook"  # any receiver of Alertmanager's version 4 webhook format
    ALERTMANAGER = "alertmanager"  # API v2, every replica


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to reach on-call.

    urls           : webhook -> usually one; alertmanager -> the base URL of every replica. Secret: never logged.
    secret, secret_file : HMAC key of a webhook's signature; the file is read again for every letter.
    severity_min   : below it nothing is sent. per_min, burst : token bucket; a receiver that throttles drops pages.
    timeout_s      : for one request. repeat_s : an Alertmanager is told again while it fires; hold_s : its alert
    ends by itself that long after the last word; resolve_s : how long a resolve is repeated.
    Source of 60 s and 4 min: Prometheus resends each minute with an end four of them ahead.
    """

    name: str
    kind: ChannelKind
    urls: tuple[str, ...] = field(repr=False)
    secret: str = field(default="", repr=False)
    secret_file: str = ""
    severity_min: Severity = Severity.INFO
    per_min: float = 60.0
    burst: int = 20
    timeout_s: float = 10.0
    repeat_s: float = 60.0
    hold_s: float = 240.0
    resolve_s: float = 300.0

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError(f"channel {self.name!r} has no url")
        if self.per_min <= 0 or self.burst < 1:
            raise ValueError(f"channel {self.name!r}: per_min must be above 0 and burst at least 1")


class Outbox(Protocol):
    """Where letters wait until they are delivered; `daemon.outbox.Outbox` keeps them on disk."""

    def put(self, letter: Letter) -> None: ...

    def update(self, letter: Letter) -> None: ...

    def get(self, id: str) -> Letter | None: ...

    def live(self) -> list[Letter]: ...

    def last(self, channel: str, address: int, key: str) -> Letter | None: ...


@dataclass(frozen=True, slots=True)
class Notify:
    """Puts the letters of a notify step into the outbox; `actions.postman.Postman` carries them out.

    step.args : status ("firing" or "resolved"), kind, scope ("gpu n03/gpu5", or its name beside scope_kind),
    severity, summary are needed; description, cluster, family, pool, incident, starts_at (seconds since the epoch), url, runbook_url, dashboard_url and
    any other are optional. clock : wall time. wake : called when something was put, see Postman.wake.
    """

    channels: Sequence[Channel]
    outbox: Outbox
    clock: Callable[[], float]
    wake: Callable[[], None] = lambda: None

    async def apply(self, step: Step) -> Outcome:
        if not self.channels:
            raise Hopeless("no notification channel is configured; add one under channels")
        letters = self._letters(step)
        for letter in letters:
            if self.outbox.get(letter.id) is None:
                post(self.outbox, letter)
        self.wake()
        names = ", ".join(dict.fromkeys(letter.channel for letter in letters))
        return Outcome(
            step, Result.DONE, f"queued for {names}" if letters else "no channel takes this severity"
        )

    async def verify(self, step: Step) -> bool:
        """Every letter stands in the outbox. Whether it arrived is the outbox's own record."""
        return all(self.outbox.get(letter.id) is not None for letter in self._letters(step))

    def _letters(self, step: Step) -> list[Letter]:
        _check(step)
        alert = Alert.of(step, self.clock())
        return [
            letter_of(alert, channel, address, f"{step.id}/{channel.name}/{address}")
            for channel in self.channels
            if takes(channel, alert)
            for address in range(len(channel.urls))
        ]


@dataclass(frozen=True, slots=True)
class Alert:
    """What happened, in words and labels, fixed at the time `at`.

    key : the same for a firing and its resolve, and when severity or pool change.
    labels : stable. annotations : text, numbers. ended : NaN while it fires.
    extra : what Alertmanager's format has no place for.
    """

    at: float
    key: str
    status: str
    severity: Severity
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    started: float
    ended: float = NAN
    url: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Step, at: float) -> Alert:
        args = {"incident": step.incident, **dict(step.args)}
        scope_kind, scope_name = _scope(args)
        is_over = args["status"] == "resolved"
        return cls(
            at=at,
            key=" / ".join((args.get("cluster", ""), args["kind"], scope_kind, scope_name)),
            status=args["status"],
            severity=Severity(args["severity"]),
            labels=_labels(args, scope_kind, scope_name),
            annotations={k: v for k, v in sorted(args.items()) if k not in NOT_ANNOTATIONS and v},
            started=float(args.get("starts_at") or at),
            ended=float(args.get("ends_at") or at) if is_over else NAN,
            url=args.get("url", ""),
            extra={
                "version": 1,
                "step": step.id,
                "incident": args["incident"],
                "reason": step.reason,
                "scope": {"kind": scope_kind, "name": scope_name},
            },
        )


def _check(step: Step) -> None:
    """Raises Hopeless naming the first arg that is missing or has a value nobody knows."""
    for key, allowed in (
        ("status", ("firing", "resolved")),
        ("severity", tuple(Severity)),
        ("kind", ()),
        ("scope", ()),
        ("summary", ()),
    ):
        found = step.arg(key)
        if not found or (allowed and found not in allowed):
            wanted = " or ".join(allowed) or "any text"
            raise Hopeless(f"notify step {step.id}: args {key} is {found!r}, allowed: {wanted}")
    for key in ("starts_at", "ends_at"):
        try:
            is_time = math.isfinite(float(step.arg(key) or "0"))
        except ValueError:
            is_time = False
        if not is_time:
            raise Hopeless(
                f"notify step {step.id}: args {key} is {step.arg(key)!r}, allowed: seconds since the epoch"
            )


def _scope(args: Mapping[str, str]) -> tuple[str, str]:
    """Kind and name of what is to blame, from scope_kind and scope or from scope alone."""
    if args.get("scope_kind"):
        return args["scope_kind"], args["scope"]
    kind, _, name = args["scope"].partition(" ")
    return (kind, name) if name else ("scope", kind)


def _labels(args: Mapping[str, str], scope_kind: str, scope_name: str) -> dict[str, str]:
    """Alert name and the parts of the scope, so that silences and routes can match the host."""
    labels = {key: args[key] for key in LABEL_ARGS if args.get(key)}
    labels["alertname"] = alert_name(args["kind"])
    labels[scope_kind] = scope_name
    if scope_kind in ("gpu", "port") and "/" in scope_name:
        labels["node"] = scope_name.partition("/")[0]
    return dict(sorted(labels.items()))


def alert_name(kind: str) -> str:
    """
    >>> alert_name("gpu_lost")
    'TidewardenGpuLost'
    """
    return "Tidewarden" + "".join(part[:1].upper() + part[1:] for part in kind.replace("-", "_").split("_"))


def takes(channel: Channel, alert: Alert) -> bool:
    """A resolve goes wherever its firing went, however the severity has changed since."""
    return alert.status == "resolved" or _RANK[alert.severity] >= _RANK[channel.severity_min]


# -- the letters of a channel ------------------------------------------------------------------------


def letter_of(alert: Alert, channel: Channel, address: int, id: str) -> Letter:
    """Render for one address of one channel."""
    if channel.kind is ChannelKind.WEBHOOK:
        body, repeat_until = webhook_body(alert, channel.name), NAN
    else:
        body = alertmanager_body(alert)
        repeat_until = math.inf if alert.status == "firing" else alert.at + channel.resolve_s
    return Letter(
        id=id,
        channel=channel.name,
        address=address,
        key=alert.key,
        status=alert.status,
        severity=alert.severity,
        at=alert.at,
        body=body,
        repeat_until=repeat_until,
        next_at=alert.at,
    )


def post(outbox: Outbox, letter: Letter) -> None:
    """Put a letter; it takes the place of what still waits about the same thing at the same address.

    A resolve of something its receiver never heard of is cancelled together with its firing.
    """
    before = outbox.last(letter.channel, letter.address, letter.key)
    heard = before is not None and _has_heard(before)
    for old in outbox.live():
        if (old.channel, old.address, old.key) == (letter.channel, letter.address, letter.key):
            outbox.update(replace(old, state="cancelled", error=f"replaced by {letter.id}"))
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


def webhook_body(alert: Alert, receiver: str) -> str:
    """Alertmanager's webhook message, version 4, fields in its order, with ``tidewarden`` after them.

    Source: prometheus/alertmanager 0.25 notify/webhook and template.Data; compared with the real program's bytes
    in tests/integration/test_alertmanager.py.
    """
    group = {key: alert.labels[key] for key in ("alertname", "cluster", "pool") if key in alert.labels}
    labels = dict(sorted(alert.labels.items()))
    annotations = dict(sorted(alert.annotations.items()))
    message = {
        "receiver": receiver,
        "status": alert.status,
        "alerts": [
            {
                "status": alert.status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": rfc3339(alert.started),
                "endsAt": _NO_TIME if math.isnan(alert.ended) else rfc3339(alert.ended),
                "generatorURL": alert.url,
                "fingerprint": fingerprint(labels),
            }
        ],
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": alert.url,
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f"{k}={_go_quote(v)}" for k, v in group.items()) + "}",
        "truncatedAlerts": 0,
        "tidewarden": dict(alert.extra),
    }
    return _go_json(message) + "\n"


def alertmanager_body(alert: Alert) -> str:
    """The alert for ``POST /api/v2/alerts``; endsAt is set when it is sent, see `with_end`."""
    shown = {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": rfc3339(alert.started),
        "endsAt": "" if math.isnan(alert.ended) else rfc3339(alert.ended),
        "generatorURL": alert.url,
    }
    return _go_json([{key: value for key, value in shown.items() if value}])


def with_end(body: str, ends_at: float) -> str:
    """`alertmanager_body` of a firing alert that ends by itself at `ends_at` unless told again."""
    alerts = json.loads(body)
    for alert in alerts:
        alert.setdefault("endsAt", rfc3339(ends_at))
    return _go_json(alerts)


def rfc3339(at: float) -> str:
    """Microseconds at most, trailing zeros dropped, as Go writes times.

    >>> rfc3339(1_700_000_000.25), rfc3339(1_700_000_000.0)
    ('2023-11-14T22:13:20.25Z', '2023-11-14T22:13:20Z')
    """
    moment = datetime.fromtimestamp(round(at, 6), UTC)
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def fingerprint(labels: Mapping[str, str]) -> str:
    """Prometheus' identity of a label set: 64-bit FNV-1a over sorted names and values.

    Source: prometheus/common model/signature.go.

    >>> fingerprint({})
    'cbf29ce484222325'
    """
    value = 0xCBF29CE484222325
    for name in sorted(labels):
        for byte in name.encode() + b"\xff" + labels[name].encode() + b"\xff":
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def _go_json(value: Any) -> str:
    """JSON as Go's encoder writes it: no spaces, and <, > and & escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _go_quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
