"""PagerDuty's Events API, version 2."""

from __future__ import annotations

from actions.channel import Channel, secret_of
from actions.gojson import rfc3339
from actions.texts import text_of
from actions.wire import Reply, Request, Vendor, Verdict, as_json, by_status, json_of
from daemon.alerts import Letter

EVENTS_URL = "https://events.pagerduty.com/v2/enqueue"
DEDUP_MAX = 255
SUMMARY_MAX = 1024


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    message = letter.message
    if message.kind == "acknowledged":
        taken_on = {
            "routing_key": secret_of(channel),
            "event_action": "acknowledge",
            "dedup_key": message.key[:DEDUP_MAX],
        }
        return as_json(channel.urls[letter.address], taken_on, letter)
    text = text_of(message, channel.language, channel.zone, letter.perhaps)
    first = message.alerts[0] if message.alerts else None
    payload = {
        "routing_key": secret_of(channel),
        "event_action": "resolve" if message.status == "resolved" else "trigger",
        "dedup_key": message.key[:DEDUP_MAX],
        "client": "tidewarden",
        "payload": {
            "summary": text.title[:SUMMARY_MAX],
            # Who is woken reads this first: the host, not the daemon.
            "source": (first.labels.get("node") if first else "")
            or str((first.extra if first else {}).get("scope", {}).get("name", ""))
            or "tidewarden",
            "severity": message.severity.value,
            "timestamp": rfc3339(first.started if first else message.at),
            "component": first.labels.get("pool", "") if first else "",
            "group": message.labels.get("cluster", ""),
            "class": message.labels.get("kind", ""),
            "custom_details": {"text": [f"{label}: {line}" if label else line for label, line in text.lines]},
        },
        "links": [{"href": url, "text": label} for label, url in text.links],
    }
    return as_json(channel.urls[letter.address], payload, letter)


def judge(reply: Reply) -> Verdict:
    """202 with ``status: success``; a refusal names what is wrong with the event."""
    found = json_of(reply)
    if reply.status == 202 and found.get("status", "success") == "success":
        return Verdict()
    if 200 <= reply.status < 300:
        return Verdict(f"PagerDuty answered {reply.status} and not 202: {reply.text[:300]}", is_final=True)
    if reply.status == 400 and found:
        errors = "; ".join(str(e) for e in found.get("errors", ()))
        return Verdict(
            f"PagerDuty refuses the event: {found.get('message', '')} {errors}".strip()
            + " (is the routing key that of an Events API v2 integration?)",
            is_final=True,
        )
    return by_status(reply)


PAGERDUTY = Vendor(request, judge, digests=False, acknowledges=True)
