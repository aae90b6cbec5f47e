"""Group robots of WeCom."""

from __future__ import annotations

from collections.abc import Mapping

from actions.channel import Channel
from actions.texts import WORDS, fit, text_of
from actions.wire import Reply, Request, Vendor, Verdict, as_json, by_errcode
from daemon.alerts import Letter

TEXT_MAX = 4096
"""Bytes, not characters."""
COLOURS: Mapping[str, str] = {"good": "info", "info": "comment", "warning": "warning", "critical": "warning"}
"""The three colours WeCom has: green, grey, orange."""
BUSY: Mapping[int, float] = {45009: 60.0, 45033: 60.0, -1: 0.0}
"""Codes that say "later". Limit: 20 a minute."""
REFUSALS: Mapping[int, str] = {
    93000: "the key of the address is wrong or the robot was removed; copy the whole address again",
    40008: "the message could not be read",
    40058: "the message is too long",
    45009: "too many messages",
    45033: "too many messages at once",
}


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
    rows = [f"> **{label}** {escaped(line)}" if label else f"> {escaped(line)}" for label, line in text.lines]
    title = f'### <font color="{COLOURS[text.mood]}">{escaped(text.title)}</font>'
    links = " | ".join(f"[{label}]({url})" for label, url in text.links)
    room = TEXT_MAX - len(links.encode()) - 1
    body = fit([title, *rows], room, WORDS[channel.language]["more"])
    payload = {"msgtype": "markdown", "markdown": {"content": f"{body}\n{links}" if links else body}}
    return as_json(channel.urls[letter.address], payload, letter)


def escaped(text: str) -> str:
    """Tags would be read as markup: <@all> wakes everybody."""
    return text.replace("<", "&lt;").replace(">", "&gt;")


def judge(reply: Reply) -> Verdict:
    """200 and ``errcode`` 0."""
    return by_errcode(reply, "WeCom", REFUSALS, BUSY)


WECOM = Vendor(request, judge)
