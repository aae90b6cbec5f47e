"""Annotations in Grafana, so that dashboards show when something happened."""

from __future__ import annotations

from actions.channel import Channel, secret_of
from actions.texts import text_of
from actions.wire import Request, Vendor, as_json, by_status
from daemon.alerts import Letter


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    """``POST /api/annotations`` at the base URL, with the token of a service account that may write annotations."""
    (letter,) = letters
    message = letter.message
    text = text_of(message, channel.language, channel.zone, letter.perhaps)
    first = message.alerts[0] if message.alerts else None
    begun = first.started if first else message.at
    over = [alert.ended for alert in message.alerts if alert.status == "resolved"]
    payload: dict[str, object] = {
        "time": int(begun * 1000),
        "tags": ["tidewarden", message.status, *(f"{k}:{v}" for k, v in message.labels.items() if v)],
        "text": "\n".join([text.title, *(f"{label} {line}".strip() for label, line in text.lines)]),
    }
    if message.status == "resolved" and over:
        payload["timeEnd"] = int(max(over) * 1000)
    made = as_json(channel.urls[letter.address].rstrip("/") + "/api/annotations", payload, letter)
    return Request(made.url, made.body, {**made.headers, "Authorization": f"Bearer {secret_of(channel)}"})


GRAFANA = Vendor(request, by_status)
