"""What goes over the wire to a channel, and how its answer is to be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from actions.channel import Channel
from daemon.alerts import Letter


class NotSent(Exception):
    """The request cannot have arrived: refused, unresolvable, malformed."""


class PerhapsSent(Exception):
    """The request may have arrived and no answer came back: time-out, connection lost."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered. retry_after_s : as it asked for, 0 = it did not."""

    status: int
    text: str
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means. failure : "" = taken, otherwise a sentence with the remedy where there is one.

    is_final : trying again is useless. has_arrived : in spite of the failure it may have taken effect. wait_s : not before that long.
    """

    failure: str = ""
    is_final: bool = False
    has_arrived: bool = False
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One POST. Everything in it may be secret."""

    url: str = field(repr=False)
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)


class Http(Protocol):
    """One POST. Raises NotSent or PerhapsSent; `timeout_s` bounds all of it."""

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Reply: ...


class Rest(Protocol):
    """Any request, its whole answer. Raises NotSent or PerhapsSent; `timeout_s` bounds all of it."""

    async def ask(
        self, method: str, url: str, body: bytes, headers: dict[str, str], timeout_s: float
    ) -> Reply: ...


class Carrier(Protocol):
    """A way to deliver that is no HTTP. Raises NotSent or PerhapsSent."""

    async def carry(self, channel: Channel, letter: Letter) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Vendor:
    """One kind of receiver over HTTP.

    request : (channel, letters, now) -> what to post; more than one letter only where batch_max says so.
    judge   : what its answer means. digests : many groups may be told in one message. acknowledges : it keeps incidents
    of its own, and must hear that somebody here has taken one on.
    """

    request: Callable[[Channel, list[Letter], float], Request]
    judge: Callable[[Reply], Verdict]
    digests: bool = True
    batch_max: int = 1
    acknowledges: bool = False


def by_status(reply: Reply) -> Verdict:
    """The meaning of the status alone: 5xx, 408 and 429 may be tried again, other refusals not."""
    if 200 <= reply.status < 300:
        return Verdict()
    is_final = reply.status < 500 and reply.status not in (408, 429)
    failure = f"HTTP {reply.status}: {reply.text.strip()[:300]}{HINTS.get(reply.status, '')}"
    return Verdict(failure, is_final, reply.status == 504, reply.retry_after_s)


def by_errcode(reply: Reply, vendor: str, refusals: Mapping[int, str], busy: Mapping[int, float]) -> Verdict:
    """The meaning of a 200 whose ``errcode`` says whether it was taken, 0 = it was.

    refusals : code -> what to do about it. busy : code -> seconds to wait before it may be tried again.
    """
    if reply.status != 200:
        return by_status(reply)
    found = json_of(reply)
    code = found.get("errcode")
    if code == 0:
        return Verdict()
    said = f"{vendor} refuses: errcode {code}, {str(found.get('errmsg', reply.text))[:300]}"
    known = code if isinstance(code, int) else 0
    hint = f" ({refusals[known]})" if known in refusals else ""
    return Verdict(f"{said}{hint}", is_final=known not in busy, wait_s=busy.get(known, 0.0))


HINTS = {
    401: " (the secret or token is not accepted)",
    403: " (the secret or token is not accepted)",
    404: " (no such address: was the webhook removed? make a new one)",
    410: " (the address was removed: make a new webhook)",
    429: " (too many messages: it is tried again later)",
}


def json_of(reply: Reply) -> dict[str, Any]:
    """The answer's JSON object, {} when it is none."""
    try:
        found = json.loads(reply.text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def as_json(url: str, payload: Any, letter: Letter) -> Request:
    # So that a receiver can drop what it got twice.
    headers = {"Content-Type": "application/json; charset=utf-8", "X-Tidewarden-Delivery": letter.id}
    return Request(url, json.dumps(payload, ensure_ascii=False).encode(), headers)
