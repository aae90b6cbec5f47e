"""Takes telemetry that others publish over MQTT as JSON.

A message is one object or a list of them: {"entity": "gpu n03/gpu5", "signal": "temp_c", "value": 61, "at": 1.7e9} in
catalogue units, or a vendor's series {"metric": "...", "labels": {...}, "value": 61, "at": ...}. `at` may be missing.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiomqtt
import numpy as np

from daemon.clock import Clock
from daemon.model import KINDS, Entity, Scrape, Target
from daemon.telemetry.catalogue import Catalogue, shapes_of
from daemon.telemetry.columns import Columns
from daemon.telemetry.exposition import Key
from daemon.telemetry.fetch import redact

BACK_OFF_S = (1.0, 60.0)
SKEW_MAX_S = 300.0
"""A message that claims to be from further in the future is from a broken clock. Judgement."""


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """host, port : of the broker. topics : filters to subscribe to. password_file : read at every connection.

    queue_max : readings kept for a late reader; the oldest go first.
    """

    host: str
    port: int = 1883
    topics: tuple[str, ...] = ("tidewarden-in/#",)
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    client_id: str = ""
    queue_max: int = 100_000


@dataclass(frozen=True, slots=True)
class Note:
    """One reading: canonical when `entity` is set, a vendor's series when `key` is."""

    at: float
    value: float
    entity: Entity | None = None
    signal: str = ""
    key: Key | None = None


def read_payload(payload: bytes, now: float, catalogue: Catalogue) -> tuple[list[Note], int]:
    """The readings of one message with the number of entries that are none."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return [], 1
    entries = found if isinstance(found, list) else [found]
    notes = [_note(entry, now, catalogue) for entry in entries]
    return [note for note in notes if note is not None], sum(note is None for note in notes)


def _note(entry: Any, now: float, catalogue: Catalogue) -> Note | None:
    if not isinstance(entry, dict):
        return None
    value, at = entry.get("value"), entry.get("at", now)
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in (value, at)) or value is None:
        return None
    if not math.isfinite(at) or at > now + SKEW_MAX_S or at <= 0:
        return None
    labels = entry.get("labels", {})
    if (
        isinstance(entry.get("metric"), str)
        and isinstance(labels, dict)
        and catalogue.wanted(entry["metric"])
    ):
        key = Key(entry["metric"], tuple(sorted((str(k), str(v)) for k, v in labels.items())))
        return Note(float(at), float(value), key=key)
    entity, signal = _entity(entry), entry.get("signal")
    if entity is None or not isinstance(signal, str) or signal not in catalogue.signals.get(entity.kind, {}):
        return None
    return Note(float(at), float(value), entity, signal)


def _entity(entry: dict[str, Any]) -> Entity | None:
    """From "gpu n03/gpu5", or kind and entity apart."""
    text = entry.get("entity")
    if not isinstance(text, str):
        return None
    kind, _, name = text.partition(" ")
    if entry.get("kind") in KINDS:
        kind, name = entry["kind"], text
    return Entity(kind, name) if kind in KINDS and name else None


@dataclass(slots=True)
class MqttSource:
    """A Source over MQTT; the first `read` connects, `close` ends it. bad : entries refused so far; lost : dropped.

    error : why there is no connection now, "" when there is one.
    """

    settings: MqttSettings
    catalogue: Catalogue
    clock: Clock
    bad: int = 0
    lost: int = 0
    error: str = "not connected yet"
    _notes: deque[tuple[str, Note]] = field(default_factory=deque)
    _columns: dict[str, Columns] = field(default_factory=dict)
    _reported: int = 0
    _runner: asyncio.Task[None] | None = None

    async def read(self) -> Sequence[Scrape]:
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="mqtt")
        elif self._runner.done():
            self._runner.result()
        at = self.clock()
        dropped, self._reported = self.bad - self._reported, self.bad
        notes = list(self._notes)
        self._notes.clear()
        name = f"mqtt:{self.settings.host}:{self.settings.port}"
        if self.error:
            return [*self._scrapes(notes, 0), Scrape(name, at, None, None, error=self.error, dropped=dropped)]
        return self._scrapes(notes, dropped)

    async def close(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
            self._runner = None

    async def _run(self) -> None:
        pause_s = BACK_OFF_S[0]
        while True:
            try:
                async with self._client() as client:
                    for topic in self.settings.topics:
                        await client.subscribe(topic, qos=1)
                    self.error, pause_s = "", BACK_OFF_S[0]
                    async for message in client.messages:
                        self._take(str(message.topic), message.payload)
            except (aiomqtt.MqttError, OSError) as problem:
                self.error = redact(f"MQTT broker {self.settings.host}:{self.settings.port}: {problem}")
            await asyncio.sleep(pause_s)
            pause_s = min(BACK_OFF_S[1], pause_s * 2)

    def _client(self) -> aiomqtt.Client:
        own = self.settings
        password = None
        if own.password_file:
            with open(own.password_file, encoding="utf-8") as file:
                password = file.read().strip()
        tls = aiomqtt.TLSParameters(ca_certs=own.ca_file) if own.ca_file else None
        return aiomqtt.Client(
            own.host,
            own.port,
            username=own.user or None,
            password=password,
            identifier=own.client_id or None,
            tls_params=tls,
            timeout=10.0,
            max_queued_incoming_messages=10_000,
        )

    def _take(self, topic: str, payload: Any) -> None:
        raw = payload if isinstance(payload, bytes) else str(payload).encode()
        notes, bad = read_payload(raw, self.clock(), self.catalogue)
        self.bad += bad
        for note in notes:
            if len(self._notes) >= self.settings.queue_max:
                self._notes.popleft()
                self.lost += 1
            self._notes.append((topic, note))

    def _scrapes(self, notes: Sequence[tuple[str, Note]], dropped: int) -> list[Scrape]:
        """One Scrape a topic and time, oldest first; of two values for one thing at one time the later counts."""
        groups: dict[tuple[float, str], list[Note]] = {}
        for topic, note in notes:
            groups.setdefault((note.at, topic), []).append(note)
        scrapes = []
        for (at, topic), group in sorted(groups.items()):
            canonical = {(n.entity, n.signal): n.value for n in group if n.entity is not None}
            if canonical:
                scrapes.append(
                    self._columns_of(topic).scrape(at, dict(sorted(canonical.items())), dropped=dropped)
                )
                dropped = 0
            vendor = {n.key: n.value for n in group if n.key is not None}
            if vendor:
                scrapes.append(self._vendor(topic, at, vendor, dropped))
                dropped = 0
        if dropped:
            name = f"mqtt:{self.settings.host}:{self.settings.port}"
            scrapes.append(Columns(name, {}).scrape(self.clock(), {}, dropped=dropped))
        return scrapes

    def _columns_of(self, topic: str) -> Columns:
        if topic not in self._columns:
            self._columns[topic] = Columns(f"mqtt:{topic}", shapes_of(self.catalogue))
        return self._columns[topic]

    def _vendor(self, topic: str, at: float, vendor: dict[Key, float], dropped: int) -> Scrape:
        keys = tuple(sorted(vendor))
        identity = self.catalogue.identify(Target(f"mqtt:{topic}"), keys)
        values = identity.values(np.array([vendor[key] for key in keys], float))
        return Scrape(f"mqtt:{topic}", at, identity.layout, values, dropped=dropped)
