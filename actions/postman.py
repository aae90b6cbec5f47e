"""Delivering the letters of the outbox over HTTP, each at least once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from actions.notify import Alert, Channel, ChannelKind, Outbox, alert_name, letter_of, post, with_end
from daemon.model import NAN, Letter, Severity

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 300.0
GIVE_UP_S = 3600.0
GIVE_UP_TRIES_MIN = 10
"""Both must have passed before on-call is told on another channel: a wall clock set forward is not an hour of failures.
Source: judgement."""
IDLE_S = 60.0
"""A look at the outbox although nobody woke us: a letter put by another way must not wait for ever."""
WORD_KIND = "notification_undelivered"
_SEVERITIES = [*Severity]


class NotSent(Exception):
    """The request cannot have arrived: refused, unresolvable, malformed."""


class PerhapsSent(Exception):
    """The request may have arrived and no answer came back: time-out, connection lost."""


class Http(Protocol):
    """One POST. Raises NotSent or PerhapsSent; `timeout_s` bounds all of it."""

    async def post(
        self, url: str, body: bytes, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, str]: ...


class AiohttpClient:
    """`Http` over an aiohttp session. Redirects are not followed: a page goes where it was sent."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> tuple[int, str]:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return response.status, (await response.content.read(1000)).decode(errors="replace")
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise NotSent(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise PerhapsSent(f"no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise PerhapsSent(f"{type(error).__name__}: {error}") from error


class Postman:
    """Carries the letters of `outbox` to their channels, one request at a time for each address.

    5xx, 408, 429 and lost connections are tried again after 1 s to 5 min for an hour, any other refusal is final.
    A letter given up is told of on another channel. What an Alertmanager must keep hearing is never given up while
    it fires: it is only told of. clock : wall time.
    """

    def __init__(
        self, channels: Sequence[Channel], outbox: Outbox, http: Http, clock: Callable[[], float]
    ) -> None:
        self._channels = {channel.name: channel for channel in channels}
        self._outbox = outbox
        self._http = http
        self._clock = clock
        self._wake = [asyncio.Event() for channel in channels for _ in channel.urls]

    def wake(self) -> None:
        """Something was put into the outbox."""
        for event in self._wake:
            event.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        self._sort_leftovers()
        lanes = [
            (channel, address) for channel in self._channels.values() for address in range(len(channel.urls))
        ]
        async with asyncio.TaskGroup() as group:
            for (channel, address), event in zip(lanes, self._wake, strict=True):
                group.create_task(self._lane(channel, address, event))

    def _sort_leftovers(self) -> None:
        for letter in self._outbox.live():
            if letter.state == "sending":
                # Under way when the last postman stopped: whether it arrived, nobody knows, so it goes again.
                self._outbox.update(replace(letter, state="queued", heard=True))
            channel = self._channels.get(letter.channel)
            if channel is None or letter.address >= len(channel.urls):
                self._end(letter, "given_up", f"channel {letter.channel} is not configured any more")

    async def _lane(self, channel: Channel, address: int, woken: asyncio.Event) -> None:
        bucket = Bucket(channel.per_min / 60, channel.burst)
        while True:
            woken.clear()
            now = self._clock()
            due = [
                letter
                for letter in self._outbox.live()
                if (letter.channel, letter.address) == (channel.name, address)
            ]
            ready = [letter for letter in due if _is_due(letter, now)]
            if ready:
                letter = max(ready, key=lambda letter: _SEVERITIES.index(letter.severity))
                await asyncio.sleep(bucket.take(asyncio.get_running_loop().time()))
                await self._deliver(channel, letter.id)
                continue
            wait_s = min([IDLE_S, *(letter.next_at - now for letter in due)])
            try:
                async with asyncio.timeout(max(wait_s, 0.01)):
                    await woken.wait()
            except TimeoutError:
                pass

    async def _deliver(self, channel: Channel, id: str) -> None:
        # Read again: it may have been cancelled while it waited for the bucket.
        letter = self._outbox.get(id)
        if letter is None or letter.state not in ("queued", "standing"):
            return
        was = letter.state
        self._outbox.update(replace(letter, state="sending"))
        failure, is_final, heard = await self._send(channel, letter)
        now = self._clock()
        sent = self._outbox.get(id)
        if sent is None or sent.state != "sending":
            return  # replaced meanwhile; whoever did so took into account that it may have arrived
        heard = letter.heard or heard or was == "standing"
        if not failure:
            self._arrived(channel, replace(letter, heard=heard), now)
        else:
            self._failed(channel, replace(letter, state="queued", heard=heard, error=failure), now, is_final)

    async def _send(self, channel: Channel, letter: Letter) -> tuple[str, bool, bool]:
        """(why it failed, "" when it did not; whether trying again is useless; whether it may have arrived)."""
        url = channel.urls[letter.address]
        try:
            url, body, headers = request_of(channel, letter, self._clock())
            status, text = await self._http.post(url, body, headers, channel.timeout_s)
        except NotSent as error:
            return redact(str(error), channel), False, False
        except PerhapsSent as error:
            return redact(str(error), channel), False, True
        except OSError as error:  # of secret_file
            return f"secret_file {channel.secret_file}: {error.strerror}", False, False
        if 200 <= status < 300:
            return "", False, True
        is_final = status < 500 and status not in (408, 429)
        return f"HTTP {status}: {redact(text, channel)[:300]}", is_final, status == 504

    def _arrived(self, channel: Channel, letter: Letter, now: float) -> None:
        fine = replace(letter, tries=0, failing_since=NAN, told=False, error="")
        if now + channel.repeat_s < letter.repeat_until:
            self._outbox.update(replace(fine, state="standing", next_at=now + channel.repeat_s))
        else:
            self._outbox.update(replace(fine, state="delivered"))

    def _failed(self, channel: Channel, letter: Letter, now: float, is_final: bool) -> None:
        since = now if math.isnan(letter.failing_since) else letter.failing_since
        letter = replace(letter, tries=letter.tries + 1, failing_since=since)
        is_late = now - since >= GIVE_UP_S and letter.tries >= GIVE_UP_TRIES_MIN
        is_news = (is_final or is_late) and not letter.told
        letter = replace(letter, told=letter.told or is_news)
        must_stand = letter.status == "firing" and letter.repeat_until > now
        if is_final or (is_late and not must_stand):
            self._end(letter, "given_up", letter.error)
        else:
            self._outbox.update(replace(letter, next_at=now + retry_s(letter)))
        if is_news:
            self._tell_elsewhere(channel, letter, now)

    def _end(self, letter: Letter, state: str, why: str) -> None:
        self._outbox.update(replace(letter, state=state, error=why))

    def _tell_elsewhere(self, channel: Channel, letter: Letter, now: float) -> None:
        """A word of an undelivered letter on the first other channel; never a word about a word."""
        other = next((c for c in self._channels.values() if c.name != channel.name), None)
        if other is None or WORD_KIND in letter.key:
            return
        alert = _word(channel, letter, now)
        for address in range(len(other.urls)):
            word = letter_of(alert, other, address, f"{letter.id}/undelivered/{other.name}/{address}")
            # For an hour, then it ends by itself: nobody will ever resolve it.
            is_repeated = not math.isnan(word.repeat_until)
            post(self._outbox, replace(word, repeat_until=now + GIVE_UP_S if is_repeated else NAN))
        self.wake()


class Bucket:
    """A token bucket of `burst` letters, refilled at `rate_per_s`."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = float(burst)
        self._at = -math.inf

    def take(self, at: float) -> float:
        """Take one token at `at` and return how long to wait for it."""
        refilled = self._tokens + (at - self._at) * self._rate_per_s
        self._tokens = min(float(self._burst), refilled) - 1
        self._at = at
        return max(0.0, -self._tokens / self._rate_per_s)


def request_of(channel: Channel, letter: Letter, now: float) -> tuple[str, bytes, dict[str, str]]:
    """URL, body and headers of one delivery. Raises OSError when the secret's file cannot be read."""
    url = channel.urls[letter.address]
    # So that a receiver can drop what it got twice.
    headers = {"Content-Type": "application/json", "X-Tidewarden-Delivery": letter.id}
    if channel.kind is ChannelKind.ALERTMANAGER:
        return (
            url.rstrip("/") + "/api/v2/alerts",
            with_end(letter.body, now + channel.hold_s).encode(),
            headers,
        )
    body = letter.body.encode()
    secret = Path(channel.secret_file).read_text().strip() if channel.secret_file else channel.secret
    if secret:
        headers["X-Tidewarden-Signature"] = signature(secret, int(now), body)
    return url, body, headers


def signature(secret: str, at: int, body: bytes) -> str:
    """``t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">``: a receiver checks it and refuses an old t.

    >>> signature("s", 1, b"{}")[:10]
    't=1,v1=b25'
    """
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def retry_s(letter: Letter) -> float:
    """1 s doubling to 5 min, plus up to a quarter drawn from id and try, so that letters do not march in step."""
    draw = hashlib.sha256(f"{letter.id} {letter.tries}".encode()).digest()
    share = int.from_bytes(draw[:4], "big") / 2**32
    return min(RETRY_FIRST_S * 2.0 ** min(letter.tries - 1, 20), RETRY_MAX_S) * (1 + share / 4)


def redact(text: str, channel: Channel) -> str:
    """The text without the channel's URLs, their paths, user parts and secret."""
    for url in channel.urls:
        parts = urlsplit(url)
        for secret in (url, parts.path, parts.query, parts.password or "", channel.secret):
            if len(secret) > 1:
                text = text.replace(secret, "<redacted>")
    return text


def _is_due(letter: Letter, now: float) -> bool:
    # Further away than any wait of ours: the wall clock was set back.
    return letter.next_at <= now or letter.next_at > now + RETRY_MAX_S * 2


def _word(channel: Channel, letter: Letter, now: float) -> Alert:
    severity = max(letter.severity, Severity.WARNING, key=_SEVERITIES.index)
    labels = {
        "alertname": alert_name(WORD_KIND),
        "channel": channel.name,
        "kind": WORD_KIND,
        "severity": severity.value,
    }
    return Alert(
        at=now,
        key=f"{WORD_KIND} / channel {channel.name}",
        status="firing",
        severity=severity,
        labels=labels,
        annotations={
            "summary": f"Channel {channel.name} did not take a {letter.status} {letter.severity} message",
            "description": f"About {letter.key}. Tries: {letter.tries}. Last answer: {letter.error}",
        },
        started=now,
        extra={
            "version": 1,
            "step": letter.id,
            "incident": "",
            "reason": WORD_KIND,
            "scope": {"kind": "channel", "name": channel.name},
        },
    )
