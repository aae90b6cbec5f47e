"""A generic webhook that gets Alertmanager's message, version 4, signed."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence

from actions.channel import Channel, secret_of
from actions.gojson import NO_TIME, fingerprint, go_json, go_quote, rfc3339
from actions.wire import Request, Vendor, by_status
from daemon.alerts import Alert, Letter, Message


def webhook_body(message: Message, receiver: str, language: str = "en", again: bool = False) -> str:
    """Alertmanager's webhook message, version 4, fields in its order, with ``tidewarden`` after them.

    Source: prometheus/alertmanager 0.25 notify/webhook and template.Data; compared with the real program's bytes
    in tests/integration/test_alertmanager.py.
    """
    alerts = message.alerts
    shown = [(dict(sorted(a.labels.items())), annotations_of(a, language)) for a in alerts]
    body = {
        "receiver": receiver,
        "status": message.status,
        "alerts": [
            {
                "status": alert.status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": rfc3339(alert.started),
                "endsAt": NO_TIME if math.isnan(alert.ended) else rfc3339(alert.ended),
                "generatorURL": alert.url,
                "fingerprint": fingerprint(labels),
            }
            for alert, (labels, annotations) in zip(alerts, shown, strict=True)
        ],
        "groupLabels": message.labels,
        "commonLabels": common([labels for labels, _ in shown]),
        "commonAnnotations": common([annotations for _, annotations in shown]),
        "externalURL": alerts[0].url if alerts else "",
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f"{k}={go_quote(v)}" for k, v in message.labels.items()) + "}",
        "truncatedAlerts": message.firing + message.resolved - len(alerts),
        "tidewarden": {
            **(alerts[0].extra if alerts else {}),
            "message": message.kind,
            "perhaps_repeated": again,
            "deeds": [{"what": deed.what, "result": deed.result, "at": deed.at} for deed in message.deeds],
            "links": message.links,
        },
    }
    return go_json(body) + "\n"


def annotations_of(alert: Alert, language: str) -> dict[str, str]:
    """Summary and description in the language where it has them, the others as they are; sorted."""
    return dict(sorted({**alert.annotations, **alert.words.get(language, {})}.items()))


def common(sets: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all have alike."""
    if not sets:
        return {}
    return {k: v for k, v in sets[0].items() if all(other.get(k) == v for other in sets[1:])}


def signature(secret: str, at: int, body: bytes) -> str:
    """``t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">``: a receiver checks it and refuses an old t.

    >>> signature("s", 1, b"{}")[:10]
    't=1,v1=b25'
    """
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    body = webhook_body(letter.message, channel.name, channel.language, letter.perhaps).encode()
    headers = {"Content-Type": "application/json", "X-Tidewarden-Delivery": letter.id}
    secret = secret_of(channel)
    if secret:
        headers["X-Tidewarden-Signature"] = signature(secret, int(now), body)
    return Request(channel.urls[letter.address], body, headers)


WEBHOOK = Vendor(request, by_status, digests=False)
