"""Custom robots of Feishu, Lark abroad."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

from actions.channel import Channel, secret_of
from actions.texts import WORDS, fit, text_of
from actions.wire import Reply, Request, Vendor, Verdict, as_json, by_status, json_of
from daemon.alerts import Letter

COLOURS: Mapping[str, str] = {"good": "green", "info": "blue", "warning": "orange", "critical": "red"}
TEXT_MAX = 18_000
"""Bytes: a request may have 20 KB."""
BUSY: Mapping[int, float] = {9499: 60.0, 11232: 60.0, 11233: 60.0}
"""Codes that say "later", with the seconds to wait. Limit: 100 a minute, 5 a second."""
REFUSALS: Mapping[int, str] = {
    19001: "the address is not that of a robot; copy it again",
    19021: "the signature is wrong or this host's clock is off by more than an hour: check secret_file",
    19022: "this host's address is not on the robot's list of allowed ones",
    19024: "the robot wants a keyword that the message does not contain: add tidewarden as one",
    9499: "too many messages",
    11232: "too many messages",
    11246: "the card could not be read",
}


def signature(secret: str, at: int) -> str:
    """
    >>> signature("demo-secret", 1700000000)
    'mYHw2R2SOm8Rw/sne3lQdmz4sOfntKR+1P/8RKKTwmA='
    """
    digest = hmac.new(f"{at}\n{secret}".encode(), b"", hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def request(channel: Channel, letters: list[Letter], now: float) -> Request:
    (letter,) = letters
    text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
    rows = [f"**{label}** {escaped(line)}" if label else escaped(line) for label, line in text.lines]
    elements: list[dict[str, object]] = [
        {
            "tag": "div",
            "text": {
                "tag": "lark_md",
                "content": fit(rows or [text.title], TEXT_MAX, WORDS[channel.language]["more"]),
            },
        }
    ]
    if text.links:
        elements.append(
            {
                "tag": "action",
                "actions": [
                    {
                        "tag": "button",
                        "text": {"tag": "plain_text", "content": label},
                        "url": url,
                        "type": "default",
                    }
                    for label, url in text.links
                ],
            }
        )
    payload: dict[str, object] = {
        "msg_type": "interactive",
        "card": {
            "config": {"wide_screen_mode": True},
            "header": {
                "title": {"tag": "plain_text", "content": text.title},
                "template": COLOURS[text.mood],
            },
            "elements": elements,
        },
    }
    secret = secret_of(channel)
    if secret:
        payload = {"timestamp": str(int(now)), "sign": signature(secret, int(now)), **payload}
    return as_json(channel.urls[letter.address], payload, letter)


def escaped(text: str) -> str:
    """Tags would be read as markup: <at id=all> wakes everybody."""
    return text.replace("<", "&#60;").replace(">", "&#62;")


def judge(reply: Reply) -> Verdict:
    """200 and ``code`` 0 (``StatusCode`` 0 of robots of old)."""
    if reply.status != 200:
        return by_status(reply)
    found = json_of(reply)
    code = found.get("code", found.get("StatusCode"))
    if code == 0:
        return Verdict()
    said = f"Feishu refuses: code {code}, {str(found.get('msg', reply.text))[:300]}"
    hint = REFUSALS.get(code, "") if isinstance(code, int) else ""
    wait_s = BUSY.get(code, 0.0) if isinstance(code, int) else 0.0
    return Verdict(f"{said} ({hint})" if hint else said, is_final=not wait_s, wait_s=wait_s)


FEISHU = Vendor(request, judge)
