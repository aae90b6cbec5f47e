"""Reads live telemetry out of a Prometheus-compatible store instead of scraping exporters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import msgspec
import numpy as np

from daemon.clock import Clock
from daemon.model import NAN, Array, Scrape, Target
from daemon.telemetry.catalogue import Catalogue, Identity
from daemon.telemetry.exposition import Key
from daemon.telemetry.fetch import BODY_MAX, NOBODY, Credentials, FetchError, describe, redact

TARGET_LABELS = (
    "engines", "gpus", "leaf", "model", "node", "pool", "pools", "rack", "region", "role", "version",
)  # fmt: skip
"""Labels that discovery puts on every series of a target; they become the Target's."""

NAMES_PER_QUERY = 150
LARGE_ANSWER = 1 << 20


class _Row(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _Data(msgspec.Struct):
    result: list[_Row] = []


class _Answer(msgspec.Struct):
    status: str = ""
    data: _Data = msgspec.field(default_factory=_Data)
    error: str = ""


_DECODER = msgspec.json.Decoder(_Answer)


@dataclass(slots=True)
class _Known:
    keys: tuple[Key, ...]
    target: Target
    identity: Identity
    newest: float


@dataclass(slots=True)
class PromqlSource:
    """A Source over PromQL: the newest raw sample of every catalogue series within `window_s`, by target.

    url : of the store, without /api. selector : label matchers added to every query, e.g. ``cluster="a"``.
    window_s : older samples are absent; two to three of the store's scrape intervals. Range selectors are asked,
    because an instant vector carries the time of the question and hides how old a sample is.
    A target is reported again only when it has newer samples; `up` 0 is a failed Scrape.
    """

    url: str
    catalogue: Catalogue
    clock: Clock
    window_s: float = 45.0
    timeout_s: float = 10.0
    selector: str = ""
    credentials: Credentials = NOBODY
    target_labels: tuple[str, ...] = TARGET_LABELS
    _session: aiohttp.ClientSession | None = None
    _known: dict[str, _Known] = field(default_factory=dict)
    _down: dict[str, float] = field(default_factory=dict)

    async def read(self) -> Sequence[Scrape]:
        at = self.clock()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self.timeout_s):
                rows = [row for query in self.queries() for row in await self._ask(query, at)]
        except TimeoutError:
            return [self._failed(at, f"no answer within {self.timeout_s:g} s")]
        except FetchError as problem:
            return [self._failed(at, str(problem))]
        took_s = loop.time() - began
        return self._scrapes(rows, took_s)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def queries(self) -> list[str]:
        """A few queries that select every catalogue name, `up` among them."""
        names = [re.escape(name) for name in sorted(self.catalogue.vendor_names())]
        names += [pattern.pattern for pattern, _ in self.catalogue.patterns]
        more = f",{self.selector}" if self.selector else ""
        chunks = [names[i : i + NAMES_PER_QUERY] for i in range(0, len(names), NAMES_PER_QUERY)]
        chunks[0] = ["up", *chunks[0]]
        quoted = ("|".join(chunk).replace("\\", "\\\\") for chunk in chunks)
        return [f'{{__name__=~"{text}"{more}}}[{self.window_s:g}s]' for text in quoted]

    async def _ask(self, query: str, at: float) -> list[_Row]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=4, ssl=self.credentials.context())
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        try:
            async with self._session.post(
                self.url.rstrip("/") + "/api/v1/query",
                data={"query": query, "time": f"{at:.3f}"},
                headers={**self.credentials.headers(), "Accept": "application/json"},
            ) as answer:
                body = await answer.content.read(-1) if answer.status in (200, 400, 422, 503) else b""
                status = answer.status
        except aiohttp.ClientError as problem:
            raise FetchError(describe(problem)) from problem
        if len(body) > BODY_MAX:
            raise FetchError(f"answer of {len(body)} bytes, at most {BODY_MAX} are read; narrow `selector`")
        if not body:
            raise FetchError(f"HTTP status {status}, 200 is needed")
        return await decode(body)

    def _scrapes(self, rows: Sequence[_Row], took_s: float) -> list[Scrape]:
        by_target: dict[str, list[_Row]] = {}
        ups: dict[str, tuple[float, float]] = {}
        for row in rows:
            instance = row.metric.get("instance", "")
            if not instance or not row.values:
                continue
            if row.metric.get("__name__") == "up":
                at, value = row.values[-1]
                ups[instance] = max(ups.get(instance, (0.0, 0.0)), (at, float(value)))
            else:
                by_target.setdefault(instance, []).append(row)
        found = [scrape for name, rows in by_target.items() if (scrape := self._scrape(name, rows, took_s))]
        return found + self._failures(ups)

    def _failures(self, ups: Mapping[str, tuple[float, float]]) -> list[Scrape]:
        failed = []
        for instance, (at, value) in ups.items():
            if value == 0 and at > self._down.get(instance, 0.0):
                self._down[instance] = at
                failed.append(
                    Scrape(instance, at, None, None, error="the store could not scrape it (up is 0)")
                )
        return failed

    def _scrape(self, instance: str, rows: Sequence[_Row], took_s: float) -> Scrape | None:
        newest = max(row.values[-1][0] for row in rows)
        known = self._known.get(instance)
        if known is not None and newest <= known.newest:
            return None
        fresh: dict[Key, float] = {}
        for row in rows:
            at, text = row.values[-1]
            # A series that missed the target's last scrape is gone; its old value would pass for a new one.
            fresh[self._key(row.metric)] = float(text) if newest - at < 1.0 else NAN
        keys = tuple(sorted(fresh))
        target = self._target(instance, rows)
        if known is None or known.keys != keys or known.target != target:
            known = _Known(keys, target, self.catalogue.identify(target, keys), newest)
            self._known[instance] = known
        known.newest = newest
        raw: Array = np.array([fresh[key] for key in keys], float)
        return Scrape(instance, newest, known.identity.layout, known.identity.values(raw), took_s=took_s)

    def _key(self, metric: Mapping[str, str]) -> Key:
        skip = {"__name__", "instance", "job", *self.target_labels}
        # Prometheus moves a series' own label out of the way of the target's of the same name.
        labels = {k.removeprefix("exported_"): v for k, v in metric.items() if k not in skip}
        return Key(metric["__name__"], tuple(sorted(labels.items())))

    def _target(self, instance: str, rows: Sequence[_Row]) -> Target:
        labels = {name: row.metric[name] for row in rows for name in self.target_labels if name in row.metric}
        return Target(instance, labels=tuple(sorted(labels.items())))

    def _failed(self, at: float, error: str) -> Scrape:
        return Scrape(redact(self.url), at, None, None, error=error)


async def decode(body: bytes) -> list[_Row]:
    """Rows of a query's answer, in a thread when it is large. Raises FetchError with the store's own words."""
    try:
        if len(body) >= LARGE_ANSWER:
            answer = await asyncio.to_thread(_DECODER.decode, body)
        else:
            answer = _DECODER.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as problem:
        raise FetchError(f"bad body: not a Prometheus answer: {problem}") from problem
    if answer.status != "success":
        raise FetchError(f"the store refused the query: {redact(answer.error) or 'no reason given'}")
    return answer.data.result
