"""Custom robots of DingTalk."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import quote_plus

from actions.channel import Channel, secret_of
from actions.texts import WORDS, fit, text_of
from actions.wire import Reply, Request, Vendor, Verdict, as_json, by_errcode
from daemon.alerts import Letter

TEXT_MAX = 18_000
"""Bytes: the body may have 20,000."""
BUSY: Mapping[int, float] = {130101: 600.0, 410100: 600.0, -1: 0.0}
"""Codes that say "later". More than 20 messages in a minute block the robot for 10 minutes."""
REFUSALS: Mapping[int, str] = {
    310000: "signature, keyword or address list of the robot: check secret_file, add tidewarden as a keyword",
    300001: "the access token is wrong; copy the whole address again",
    400013: "the group is gone",
    400101: "the access token is wrong; copy the whole address again",
    400102: "the robot is disabled",
    430101: "unsafe link in the message",
    430104: "the message holds words that are not allowed",
    130101: "too many messages: the robot is blocked for 10 minutes",
    410100: "too many messages: the robot is blocked for 10 minutes",
}


def signature(secret: str, at_ms: int) -> str:
    """Ready for the query.

    >>> signature("SEC" + "0" * 60 + "test", 1700000000000)
    'bCcJiIKqyObgdvB5UiIbViJlixojz9bQW5dnZbgLAd8%3D'
    """
    digest = hmac.new(secret.encode(), f"{at_ms}\n{secret}".encode(), hashlib.sha256).digest()
    return quote_plus(base64.b64encode(digest))


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
    # Two spaces and a newline break a line in DingTalk's markdown; a blank line between is safer on phones.
    rows = [f"**{label}** {line}\n" if label else f"{line}\n" for label, line in text.lines]
    links = " | ".join(f"[{label}]({url})" for label, url in text.links)
    more = WORDS[channel.language]["more"]
    body = fit([f"### {text.title}\n", *rows], TEXT_MAX - len(links.encode()), more)
    payload = {
        "msgtype": "markdown",
        "markdown": {"title": text.title, "text": f"{body}\n{links}" if links else body},
    }
    url = channel.urls[letter.address]
    secret = secret_of(channel)
    if secret:
        at_ms = int(now * 1000)
        url += f"{'&' if '?' in url else '?'}timestamp={at_ms}&sign={signature(secret, at_ms)}"
    return as_json(url, payload, letter)


def judge(reply: Reply) -> Verdict:
    """200 and ``errcode`` 0."""
    return by_errcode(reply, "DingTalk", REFUSALS, BUSY)


DINGTALK = Vendor(request, judge)
