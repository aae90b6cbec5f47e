"""Silences of ours, held by every Alertmanager too: it groups, repeats and pages by itself and must know of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from actions.channel import Channel, ChannelKind, redact
from actions.gojson import rfc3339
from actions.wire import NotSent, PerhapsSent, Reply, Rest
from daemon.alerts import Silence

log = structlog.get_logger("tidewarden")

LOOK_S = 60.0
"""How often the silences of an Alertmanager are compared with ours. Judgement: as often as it is told of alerts."""
HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Moves:
    """What makes an Alertmanager agree. create : bodies to post. expire : its ids of silences of ours that are over."""

    create: list[dict[str, Any]]
    expire: list[str]


def moves(cluster: str, silences: Iterable[Silence], found: Sequence[Mapping[str, Any]], now: float) -> Moves:
    """Compare what is in force here with what an Alertmanager holds; silences of others are left alone.

    found : as ``GET /api/v2/silences`` answers. One that a person ended there is not made again.
    """
    ours = {mark: entry for entry in found if (mark := mark_in(cluster, str(entry.get("comment", ""))))}
    wanted = {mark_of(s): s for s in silences if s.end > now}
    return Moves(
        create=[body_of(cluster, s) for mark, s in wanted.items() if mark not in ours],
        expire=[
            str(entry["id"])
            for mark, entry in ours.items()
            if mark not in wanted and (entry.get("status") or {}).get("state") != "expired"
        ],
    )


def body_of(cluster: str, silence: Silence) -> dict[str, Any]:
    """One silence as ``POST /api/v2/silences`` takes it. It can only ever fit alerts that this cluster's daemon sends."""
    ours = {"cluster": cluster, **silence.match}
    matchers = [_matcher(label, pattern) for label, pattern in sorted(ours.items())]
    if "cluster" in silence.match:
        matchers.append({"name": "cluster", "value": cluster, "isRegex": False, "isEqual": True})
    # No rule of a Prometheus has this label: an Alertmanager that others use too stays loud for them.
    matchers.append({"name": "family", "value": ".+", "isRegex": True, "isEqual": True})
    return {
        "matchers": matchers,
        "startsAt": rfc3339(silence.start),
        "endsAt": rfc3339(silence.end),
        "createdBy": silence.by or "tidewarden",
        "comment": f"{silence.comment} [tidewarden {cluster}/{mark_of(silence)}]".strip(),
    }


def mark_of(silence: Silence) -> str:
    """What tells one silence from another, its end included: a window that was moved is another one."""
    said = json.dumps([silence.id, sorted(silence.match.items()), silence.start, silence.end])
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def mark_in(cluster: str, comment: str) -> str:
    """The mark a silence of this cluster's daemon carries, "" for one of anybody else.

    >>> mark_in("prod", "swap [tidewarden prod/0123456789ab]"), mark_in("dev", "swap [tidewarden prod/0123456789ab]")
    ('0123456789ab', '')
    """
    found = re.search(r"\[tidewarden (.*)/([0-9a-f]{12})\]$", comment)
    return found[2] if found is not None and found[1] == cluster else ""


def regex_of(pattern: str) -> str:
    """A pattern with * and ? as a regular expression of Go, which an Alertmanager anchors at both ends.

    >>> regex_of("n0?.gpu*")
    'n0.\\\\.gpu.*'
    """
    # Brackets stay: fnmatch and Go read [0-9] alike, and [!a] is written [^a].
    parts = re.split(r"(\[[!^]?[^\]]+\]|\*|\?)", pattern)
    return "".join(
        {"*": ".*", "?": "."}.get(part)
        or (part.replace("[!", "[^", 1) if number % 2 else re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", part))
        for number, part in enumerate(parts)
    )


def _matcher(label: str, pattern: str) -> dict[str, Any]:
    is_pattern = any(sign in pattern for sign in "*?[")
    return {
        "name": label,
        "value": regex_of(pattern) if is_pattern else pattern,
        "isRegex": is_pattern,
        "isEqual": True,
    }


@dataclass(slots=True)
class Mirror:
    """Keeps every Alertmanager's silences in step with ours; it remembers nothing, so nothing of it can go stale.

    silences : those of here, over or not. troubles : channel name -> why it does not hold them, filled in here.
    """

    cluster: str
    channels: Callable[[], Sequence[Channel]]
    silences: Callable[[], Iterable[Silence]]
    http: Rest
    clock: Callable[[], float]
    troubles: dict[str, str] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _failures: dict[str, int] = field(default_factory=dict)

    def wake(self) -> None:
        """A silence began or ended."""
        self._woken.set()

    async def run(self) -> None:
        """Look each minute, and at once when woken, until cancelled."""
        while True:
            self._woken.clear()
            await self.look()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def look(self) -> None:
        """Once over every Alertmanager. Trouble with one harms no other."""
        mine = [c for c in self.channels() if c.kind is ChannelKind.ALERTMANAGER]
        for gone in self.troubles.keys() - {c.name for c in mine}:
            del self.troubles[gone]
        for channel in mine:
            said = ""
            for address in range(len(channel.urls)):
                try:
                    await self._agree(channel, channel.urls[address].rstrip("/"))
                except (NotSent, PerhapsSent, ValueError) as error:
                    said = f"address {address + 1} does not hold our silences: {redact(str(error), channel)}"
            self._note(channel.name, said)

    async def _agree(self, channel: Channel, base: str) -> None:
        reply = await self._ask(channel, "GET", f"{base}/api/v2/silences")
        todo = moves(self.cluster, self.silences(), json.loads(reply.text), self.clock())
        for id in todo.expire:
            await self._ask(channel, "DELETE", f"{base}/api/v2/silence/{id}")
        for body in todo.create:
            await self._ask(channel, "POST", f"{base}/api/v2/silences", json.dumps(body).encode())

    async def _ask(self, channel: Channel, method: str, url: str, body: bytes = b"") -> Reply:
        """Raises ValueError for a refusal."""
        reply = await self.http.ask(method, url, body, HEADERS, channel.timeout_s)
        if not 200 <= reply.status < 300:
            raise ValueError(f"{method} of silences: HTTP {reply.status}: {reply.text.strip()[:300]}")
        return reply

    def _note(self, name: str, said: str) -> None:
        if not said:
            self.troubles.pop(name, None)
            self._failures.pop(name, None)
            return
        self.troubles[name] = said
        count = self._failures[name] = self._failures.get(name, 0) + 1
        if count & (count - 1) == 0:
            log.warning("silences not mirrored", channel=name, error=said, failures=count)
