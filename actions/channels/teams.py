"""Microsoft Teams by a workflow that takes an adaptive card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actions.channel import Channel
from actions.texts import WORDS, Text, text_of
from actions.wire import Reply, Request, Vendor, Verdict, as_json, by_status
from daemon.alerts import Letter

COLOURS: Mapping[str, str] = {
    "good": "Good",
    "info": "Accent",
    "warning": "Warning",
    "critical": "Attention",
}
TEXT_MAX = 20_000
"""Bytes of text: the whole message may have about 28 KB, and JSON escapes take room."""


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": [
            {
                "type": "TextBlock",
                "text": text.title,
                "weight": "Bolder",
                "size": "Medium",
                "wrap": True,
                "color": COLOURS[text.mood],
            },
            *_rows(text, WORDS[channel.language]["more"]),
        ],
        "actions": [{"type": "Action.OpenUrl", "title": label, "url": url} for label, url in text.links],
        "msteams": {"width": "Full"},
    }
    content = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return as_json(channel.urls[letter.address], {"type": "message", "attachments": [content]}, letter)


def _rows(text: Text, more: str) -> list[dict[str, Any]]:
    """Labelled lines that follow each other as a table of facts, the others as paragraphs; cut to what Teams takes."""
    rows: list[dict[str, Any]] = []
    size = 0
    for number, (label, line) in enumerate(text.lines):
        size += len((label + line).encode())
        if size > TEXT_MAX:
            left = len(text.lines) - number
            return [*rows, {"type": "TextBlock", "text": more.format(n=left), "wrap": True}]
        if not label:
            rows.append({"type": "TextBlock", "text": line, "wrap": True})
        elif rows and rows[-1]["type"] == "FactSet":
            rows[-1]["facts"].append({"title": label, "value": line})
        else:
            rows.append({"type": "FactSet", "facts": [{"title": label, "value": line}]})
    return rows


def judge(reply: Reply) -> Verdict:
    """2xx; connectors of old answered 200 and put the failure into the text."""
    said = reply.text.strip()
    if 200 <= reply.status < 300 and "failed" in said.lower():
        is_busy = "429" in said
        return Verdict(f"Teams refuses: {said[:300]}", is_final=not is_busy, wait_s=60.0 if is_busy else 0.0)
    return by_status(reply)


TEAMS = Vendor(request, judge)
