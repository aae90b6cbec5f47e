"""Alertmanager's API, version 2."""

from __future__ import annotations

import math
from typing import Any

from actions.channel import Channel
from actions.channels.webhook import annotations_of
from actions.gojson import go_json, rfc3339
from actions.wire import Request, Vendor, by_status
from daemon.alerts import Alert, Letter

BATCH_MAX = 1000
"""Alerts in one request: a storm must not need a request for each. About 2 MB."""


def alert_object(alert: Alert, ends_at: float, language: str = "en") -> dict[str, Any]:
    """One entry of ``POST /api/v2/alerts``; one that fires ends by itself at `ends_at` unless told again, NaN = says nothing."""
    end = ends_at if math.isnan(alert.ended) else alert.ended
    shown = {
        "labels": dict(alert.labels),
        "annotations": annotations_of(alert, language),
        "startsAt": rfc3339(alert.started),
        "endsAt": "" if math.isnan(end) else rfc3339(end),
        "generatorURL": alert.url,
    }
    return {key: value for key, value in shown.items() if value}


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    url = channel.urls[letters[0].address].rstrip("/") + "/api/v2/alerts"
    body = go_json(
        [
            alert_object(alert, now + channel.hold_s, channel.language)
            for letter in letters
            for alert in letter.message.alerts
        ]
    )
    headers = {"Content-Type": "application/json", "X-Tidewarden-Delivery": letters[0].id}
    return Request(url, body.encode(), headers)


ALERTMANAGER = Vendor(request, by_status, digests=False, batch_max=BATCH_MAX)
