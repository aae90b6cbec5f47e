"""Delivering the letters of the outbox, each at least once."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime

import aiohttp

from actions.channel import Channel, ChannelKind, redact
from actions.channels import VENDORS
from actions.dispatch import letter_of
from actions.gojson import alert_name
from actions.letters import HEARTBEAT, Outbox, post, single
from actions.wire import Carrier, Http, NotSent, PerhapsSent, Reply, Verdict
from daemon.alerts import Alert, Letter
from daemon.model import NAN, Severity

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 300.0
RETRY_AFTER_MAX_S = 900.0
"""What a receiver may ask us to wait at most: a broken Retry-After must not silence a pager. Judgement."""
GIVE_UP_S = 3600.0
GIVE_UP_TRIES_MIN = 10
"""Both must have passed before on-call is told on another channel: a wall clock set forward is not an hour of failures.
Source: judgement."""
IDLE_S = 60.0
"""A look at the outbox although nobody woke us: a letter put by another way must not wait for ever."""
WORD_KIND = "notification_undelivered"
WORD_GAP_S = 3600.0
"""One word an hour about a channel: where it fails, it fails for every letter."""
ANSWER_MAX = 4000
PAGE_MAX = 16 * 2**20
"""Of an answer that is read as a whole; a list of 10,000 silences is about 5 MB."""
_SEVERITIES = [*Severity]


class AiohttpClient:
    """`Http` and `Rest` over an aiohttp session. Redirects are not followed: a page goes where it was sent."""

    def __init__(self, session: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        self._session = session
        self._clock = clock

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Reply:
        return await self._ask("POST", url, body, headers, timeout_s, ANSWER_MAX)

    async def ask(
        self, method: str, url: str, body: bytes, headers: dict[str, str], timeout_s: float
    ) -> Reply:
        return await self._ask(method, url, body, headers, timeout_s, PAGE_MAX)

    async def _ask(
        self, method: str, url: str, body: bytes, headers: dict[str, str], timeout_s: float, read_max: int
    ) -> Reply:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    method, url, data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                text = (await _head(response.content, read_max)).decode(errors="replace")
                return Reply(response.status, text, self._after(response.headers.get("Retry-After", "")))
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise NotSent(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise PerhapsSent(f"no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise PerhapsSent(f"{type(error).__name__}: {error}") from error

    def _after(self, text: str) -> float:
        """Seconds of a Retry-After, which is a number or a date; 0 when it is neither."""
        if text.isdigit():
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._clock())
        except (TypeError, ValueError):
            return 0.0


class Postman:
    """Carries the letters of `outbox` to their channels, one request at a time for each address.

    5xx, 408, 429 and lost connections are tried again after 1 s to 5 min for an hour, any other refusal is final.
    A letter given up is told of on another channel. What an Alertmanager must keep hearing is never given up while
    it fires: it is only told of. carriers : for the kinds that are no HTTP. clock : wall time.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        outbox: Outbox,
        http: Http,
        clock: Callable[[], float],
        carriers: Mapping[ChannelKind, Carrier] | None = None,
    ) -> None:
        self._channels: dict[str, Channel] = {}
        self._next = tuple(channels)
        self._outbox = outbox
        self._http = http
        self._clock = clock
        self._carriers = carriers or {}
        self._wake: list[asyncio.Event] = []
        self._changed = asyncio.Event()
        self._buckets: dict[tuple[Channel, int], Bucket] = {}

    def wake(self) -> None:
        """Something was put into the outbox."""
        for event in self._wake:
            event.set()

    def use(self, channels: Sequence[Channel]) -> None:
        """Deliver to these channels, once what is under way has its answer: a letter cut off would have to go twice."""
        self._next = tuple(channels)
        self._changed.set()
        self.wake()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._changed.clear()
            self._channels = {channel.name: channel for channel in self._next}
            self._sort_leftovers()
            lanes = [
                (channel, address)
                for channel in self._channels.values()
                for address in range(len(channel.urls))
            ]
            # What a receiver took in the last minute counts against it whatever else was reloaded.
            self._buckets = {
                lane: self._buckets.get(lane) or Bucket(lane[0].per_min / 60, lane[0].burst) for lane in lanes
            }
            self._wake = [asyncio.Event() for _ in lanes]
            async with asyncio.TaskGroup() as group:
                for (channel, address), event in zip(lanes, self._wake, strict=True):
                    group.create_task(self._lane(channel, address, event))
            await self._changed.wait()

    def _sort_leftovers(self) -> None:
        for letter in self._outbox.live():
            channel = self._channels.get(letter.channel)
            if channel is None or letter.address >= len(channel.urls):
                why = f"channel {letter.channel} is not configured any more"
                self._outbox.update(replace(letter, state="given_up", error=why))
            elif letter.state == "sending":
                # Under way when the last postman stopped: whether it arrived, nobody knows, so it goes again.
                self._outbox.update(replace(letter, state="queued", heard=True, perhaps=True))

    async def _lane(self, channel: Channel, address: int, woken: asyncio.Event) -> None:
        """Deliver to one address until the channels change."""
        bucket = self._buckets[channel, address]
        batch_max = VENDORS[channel.kind].batch_max if channel.kind in VENDORS else 1
        while not self._changed.is_set():
            woken.clear()
            now = self._clock()
            due = self._due(channel, address)
            if any(_is_due(letter, now) for letter in due):
                if await self._changes_within(bucket.take(asyncio.get_running_loop().time())):
                    return
                # Chosen only now: what came while the bucket was empty goes along, what was withdrawn does not.
                now = self._clock()
                ready = [letter for letter in self._due(channel, address) if _is_due(letter, now)]
                await self._deliver(channel, _chosen(ready, batch_max))
                continue
            wait_s = min([IDLE_S, *(letter.next_at - now for letter in due)])
            try:
                async with asyncio.timeout(max(wait_s, 0.01)):
                    await woken.wait()
            except TimeoutError:
                pass

    async def _changes_within(self, wait_s: float) -> bool:
        """Wait that long; True as soon as the channels change meanwhile."""
        if wait_s <= 0:
            await asyncio.sleep(0)
            return self._changed.is_set()
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _due(self, channel: Channel, address: int) -> list[Letter]:
        where = (channel.name, address)
        return [x for x in self._outbox.live() if (x.channel, x.address) == where and x.state != "sending"]

    async def _deliver(self, channel: Channel, letters: list[Letter]) -> None:
        if not letters:
            return
        self._outbox.update(*[replace(letter, state="sending") for letter in letters])
        verdict = await send(channel, letters, self._http, self._carriers, self._clock())
        now = self._clock()
        changed = []
        for letter in letters:
            sent = self._outbox.get(letter.id)
            if sent is None or sent.state != "sending":
                continue  # replaced meanwhile; whoever did so took into account that it may have arrived
            perhaps = letter.perhaps or verdict.has_arrived
            heard = letter.heard or perhaps or not verdict.failure or letter.state == "standing"
            if not verdict.failure:
                changed.append(self._arrived(channel, replace(letter, heard=heard), now))
            elif verdict.is_final and len(letters) > 1:
                changed.append(replace(letter, state="queued", heard=heard, tries=1, next_at=now))
            else:
                failed = replace(letter, state="queued", heard=heard, perhaps=perhaps, error=verdict.failure)
                changed.append(self._failed(channel, failed, now, verdict))
        self._outbox.update(*changed)

    def _arrived(self, channel: Channel, letter: Letter, now: float) -> Letter:
        fine = replace(letter, tries=0, failing_since=NAN, told=False, error="")
        if now + channel.repeat_s < letter.repeat_until:
            return replace(fine, state="standing", next_at=now + channel.repeat_s)
        return replace(fine, state="delivered")

    def _failed(self, channel: Channel, letter: Letter, now: float, verdict: Verdict) -> Letter:
        since = now if math.isnan(letter.failing_since) else letter.failing_since
        letter = replace(letter, tries=letter.tries + 1, failing_since=since)
        is_late = now - since >= GIVE_UP_S and letter.tries >= GIVE_UP_TRIES_MIN
        is_news = (verdict.is_final or is_late) and not letter.told
        letter = replace(letter, told=letter.told or is_news)
        must_stand = letter.status == "firing" and letter.repeat_until > now
        if is_news:
            self._tell_elsewhere(channel, letter, now)
        if verdict.is_final or (is_late and not must_stand):
            return replace(letter, state="given_up")
        wait_s = max(retry_s(letter), min(verdict.wait_s, RETRY_AFTER_MAX_S))
        return replace(letter, next_at=now + wait_s)

    def _tell_elsewhere(self, channel: Channel, letter: Letter, now: float) -> None:
        """A word of an undelivered letter on the first other channel; never a word about a word."""
        others = [c for c in self._channels.values() if c.name != channel.name]
        if not others or WORD_KIND in letter.key or letter.message.kind == "test":
            return
        other = others[0]
        alert = _word(channel, letter, now)
        for address in range(len(other.urls)):
            last = self._outbox.last(other.name, address, alert.key)
            if last is not None and now - last.at < WORD_GAP_S and last.state != "given_up":
                continue
            id = f"{letter.id}/undelivered/{other.name}/{address}"
            # For an hour, then it ends by itself: nobody will ever resolve it.
            is_repeated = other.kind is ChannelKind.ALERTMANAGER
            until = now + GIVE_UP_S if is_repeated else NAN
            post(self._outbox, letter_of(single(alert, "undelivered"), other.name, address, id, until))
        self.wake()


async def send(
    channel: Channel,
    letters: list[Letter],
    http: Http,
    carriers: Mapping[ChannelKind, Carrier],
    now: float,
) -> Verdict:
    """One try to deliver, and what came of it; nothing secret is left in its words."""
    try:
        if channel.kind in carriers:
            verdict = await carriers[channel.kind].carry(channel, letters[0])
        else:
            vendor = VENDORS[channel.kind]
            made = vendor.request(channel, letters, now)
            reply = await http.post(made.url, made.body, made.headers, channel.timeout_s)
            verdict = vendor.judge(reply)
    except NotSent as error:
        return Verdict(redact(str(error), channel))
    except PerhapsSent as error:
        return Verdict(redact(str(error), channel), has_arrived=True)
    except OSError as error:  # of secret_file
        return Verdict(f"secret_file {channel.secret_file}: {error.strerror}")
    return replace(verdict, failure=redact(verdict.failure, channel)) if verdict.failure else verdict


async def _head(stream: aiohttp.StreamReader, most: int) -> bytes:
    """The first bytes of a body; one read gives what has arrived, not what was asked for."""
    parts: list[bytes] = []
    left = most
    while left > 0 and (part := await stream.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


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


def retry_s(letter: Letter) -> float:
    """1 s doubling to 5 min, plus up to a quarter drawn from id and try, so that letters do not march in step."""
    draw = hashlib.sha256(f"{letter.id} {letter.tries}".encode()).digest()
    share = int.from_bytes(draw[:4], "big") / 2**32
    return min(RETRY_FIRST_S * 2.0 ** min(letter.tries - 1, 20), RETRY_MAX_S) * (1 + share / 4)


def _chosen(ready: Sequence[Letter], batch_max: int) -> list[Letter]:
    """What goes next: the worst first, as many as go together. Those that failed before go by themselves, so that one
    bad letter harms no other."""
    ranked = sorted(ready, key=lambda letter: -_SEVERITIES.index(letter.severity))
    if not ranked or ranked[0].tries:
        return ranked[:1]
    return [letter for letter in ranked if not letter.tries][:batch_max]


def _is_due(letter: Letter, now: float) -> bool:
    # Further away than any wait of ours: the wall clock was set back.
    return letter.next_at <= now or letter.next_at > now + RETRY_AFTER_MAX_S * 2


def _word(channel: Channel, letter: Letter, now: float) -> Alert:
    severity = max(letter.severity, Severity.WARNING, key=_SEVERITIES.index)
    labels = {
        "alertname": alert_name(WORD_KIND),
        "channel": channel.name,
        "kind": WORD_KIND,
        "severity": severity.value,
    }
    what = "heartbeat" if letter.message.kind == HEARTBEAT else f"{letter.status} {letter.severity} message"
    about = f"About {letter.key}. Tries: {letter.tries}. Last answer: {letter.error}"
    said = {"summary": f"Channel {channel.name} did not take a {what}", "description": about}
    chinese = {
        "summary": f"渠道 {channel.name} 未能送达一条消息",
        "description": f"内容：{letter.key}\n尝试次数：{letter.tries}\n最后应答：{letter.error}",
    }
    return Alert(
        at=now,
        key=f"{WORD_KIND} / channel {channel.name}",
        status="firing",
        severity=severity,
        labels=labels,
        annotations=said,
        started=now,
        words={"en": said, "zh": chinese},
        extra={
            "version": 1,
            "step": letter.id,
            "incident": "",
            "reason": WORD_KIND,
            "scope": {"kind": "channel", "name": channel.name},
        },
    )
