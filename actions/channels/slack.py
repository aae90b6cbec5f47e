"""Slack's incoming webhooks."""

from __future__ import annotations

from collections.abc import Mapping

from actions.channel import Channel
from actions.texts import WORDS, fit, text_of
from actions.wire import Reply, Request, Vendor, Verdict, as_json, by_status, json_of
from daemon.alerts import Letter

COLOURS: Mapping[str, str] = {
    "good": "#2e7d32",
    "info": "#1565c0",
    "warning": "#ef6c00",
    "critical": "#c62828",
}
TEXT_MAX = 3900
"""Bytes of the attachment: Slack cuts longer ones behind a link."""
REFUSALS: Mapping[str, str] = {
    "no_service": "the webhook was removed or disabled; make a new one",
    "no_active_hooks": "the webhook was disabled; make a new one",
    "no_team": "the workspace is gone; make a new webhook",
    "no_text": "the message was empty",
    "invalid_payload": "the message could not be read",
    "invalid_token": "the webhook's token is wrong; copy the whole address again",
    "channel_not_found": "the channel is gone; make a new webhook",
    "channel_is_archived": "the channel is archived; unarchive it or choose another",
    "action_prohibited": "an administrator forbids posting to this channel",
    "posting_to_general_channel_denied": "an administrator forbids posting to #general",
}


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
    rows = [f"*{escaped(label)}* {escaped(line)}" if label else escaped(line) for label, line in text.lines]
    links = "  ".join(f"<{url}|{escaped(label)}>" for label, url in text.links)
    more = WORDS[channel.language]["more"]
    body = fit(rows, TEXT_MAX - len(links.encode()) - 1, more) + (f"\n{links}" if links else "")
    payload = {
        "text": escaped(text.title),
        "attachments": [
            {
                "color": COLOURS[text.mood],
                "text": body,
                "mrkdwn_in": ["text"],
                "fallback": escaped(text.title),
                "ts": int(letter.message.at),
            }
        ],
    }
    return as_json(channel.urls[letter.address], payload, letter)


def escaped(text: str) -> str:
    """Source: api.slack.com, formatting: these three and no others."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def judge(reply: Reply) -> Verdict:
    """The body is ``ok``, or ``ok: true`` where the address is one of the Web API."""
    said = reply.text.strip()
    found = json_of(reply)
    if 200 <= reply.status < 300:
        if said == "ok" or found.get("ok") is True:
            return Verdict()
        said = str(found.get("error", said))
        return Verdict(f"Slack refuses: {said}{_hint(said)}", is_final=said not in ("ratelimited",))
    if said in REFUSALS:
        return Verdict(f"Slack refuses: {said}{_hint(said)}", is_final=True)
    return by_status(reply)


def _hint(said: str) -> str:
    return f" ({REFUSALS[said]})" if said in REFUSALS else ""


SLACK = Vendor(request, judge)
