"""Links in messages that let whoever holds one do one thing for a while, signed so that nobody can make one up."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FILE = "links.key"
KEY_BYTES = 32


class Order(NamedTuple):
    """word : "ack", or "approve" of a step. argument : an alert group, or a step's id. until : the link ends then."""

    word: str
    argument: str
    until: int


class BadLink(Exception):
    """A link that is not, or no longer, good; the message says which."""


def key_of(folder: Path) -> bytes:
    """The signing key of a state folder, made at the first use, readable for its owner only.

    Where it cannot be kept it lives as long as the process: its links end with it.
    """
    path = folder / FILE
    with suppress(OSError):
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
    key = secrets.token_bytes(KEY_BYTES)
    with suppress(OSError):
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
    return key


def sign(key: bytes, order: Order) -> str:
    """The order as one segment of a URL.

    >>> check(bytes(32), sign(bytes(32), Order("ack", "i1", 100)), at=99.0)
    Order(word='ack', argument='i1', until=100)
    """
    body = _plain("\n".join((order.word, str(order.until), order.argument)).encode())
    return f"{body}.{_mac(key, body)}"


def check(key: bytes, token: str, at: float) -> Order:
    """The order of a link. Raises BadLink when it was not signed with this key, or is over. key : b"" = no link is good."""
    body, _, mac = token.partition(".")
    if not key or not hmac.compare_digest(_mac(key, body).encode(), mac.encode()):
        raise BadLink("this link was not made by this daemon, or was cut short; open the incident instead")
    word, until, argument = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode().split("\n", 2)
    if at >= int(until):
        raise BadLink("this link is over; open the incident instead")
    return Order(word, argument, int(until))


def _mac(key: bytes, body: str) -> str:
    return _plain(hmac.new(key, body.encode(), hashlib.sha256).digest()[:18])


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
