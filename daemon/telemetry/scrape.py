"""Scrapes exporters at its own steady pace, in slots of targets that are fetched together."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import aiohttp

from daemon.clock import Clock
from daemon.model import GONE, Scrape, Target
from daemon.telemetry.catalogue import Catalogue, Identity
from daemon.telemetry.discovery import Discovery, Watching
from daemon.telemetry.exposition import Key, Page, Reading
from daemon.telemetry.fetch import BODY_MAX, NOBODY, Credentials, FetchError, fetch
from daemon.telemetry.naming import target_name

LARGE_BODY = 1 << 20
"""Bytes from which a body is read in a thread, so that the loop keeps turning. Judgement."""

SETTLE_S = 0.5
"""From the beginning of a round until a decision may count on its pages. Judgement: sound exporters answer within 0.1 s,
busy engines within 0.4 s; who is later counts in the round after."""
FIRST_ROUNDS = 2
"""Rounds after which decisions begin though a target has neither answered nor failed yet."""

GATEWAY_JOBS = frozenset({"haproxy"})
"""Asked first in every round: decisions follow its beginning, and what a gateway shows decides fastest."""
ENGINE_JOBS = frozenset({"vllm", "sglang", "trtllm", "triton", "tgi", "dynamo", "ray_serve"})


@dataclass(frozen=True, slots=True)
class ScrapeSettings:
    """How to scrape.

    interval_s : between two scrapes of a target. timeout_s : until a scrape counts as failed; engine_timeout_s the
    same for inference engines, whose page waits behind their requests (reference: real engines answer late, not
    never). burst : targets fetched together; higher costs less CPU here and more incast on the network.
    buffer_max : Scrapes kept for a reader that is late; the oldest goes first. discover_s : between two looks at
    the discoveries. late_max_s : how far a slot may run behind before it is skipped.
    """

    interval_s: float = 15.0
    timeout_s: float = 10.0
    engine_timeout_s: float = 12.0
    burst: int = 32
    buffer_max: int = 50_000
    discover_s: float = 5.0
    late_max_s: float = 1.0
    body_max: int = BODY_MAX
    credentials: Credentials = NOBODY


@dataclass(slots=True)
class ScrapeCounts:
    """Totals since the start. missed : slots' targets skipped because the loop stalled; pending : skipped because
    the last scrape had not ended; lost : Scrapes dropped from a full buffer."""

    scrapes: int = 0
    failed: int = 0
    missed: int = 0
    pending: int = 0
    lost: int = 0
    dropped_lines: int = 0


@dataclass(slots=True)
class _State:
    """What is kept of one target between scrapes."""

    page: Page
    keys: tuple[Key, ...] | None = None
    engines: Mapping[str, str] | None = None
    identity: Identity | None = None
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class HttpScraper:
    """A Source over HTTP exporters. The first `read` starts it; `close` ends it.

    engines : asked before each identification for load-balancer server name -> engine name.
    """

    discoveries: Sequence[Discovery]
    catalogue: Catalogue
    clock: Clock
    settings: ScrapeSettings = ScrapeSettings()
    engines: Callable[[], Mapping[str, str]] = dict
    counts: ScrapeCounts = field(default_factory=ScrapeCounts)
    targets: tuple[Target, ...] = ()
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _unheard: set[Target] = field(default_factory=set)
    _states: dict[Target, _State] = field(default_factory=dict)
    _ready: deque[Scrape] = field(default_factory=deque)
    _runner: asyncio.Task[None] | None = None

    async def read(self) -> Sequence[Scrape]:
        """The Scrapes that ended since the last call; never waits for an exporter."""
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="scrape")
        elif self._runner.done():
            self._runner.result()  # a programming error: let it crash the caller
        await asyncio.sleep(0)
        ready = list(self._ready)
        self._ready.clear()
        return ready

    async def settled(self) -> None:
        """Return once every target was heard of or failed, FIRST_ROUNDS at most: of half a cluster half the replicas are seen, and a
        pool would be sized from them. Rounds go on at an even pace, so a decision made now, and every interval from now, finds pages
        that were just asked for instead of those of the round before."""
        await self._settled.wait()

    async def close(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
            self._runner = None

    def errors(self) -> tuple[str, ...]:
        """What is wrong with the discoveries now, empty when nothing is."""
        return tuple(d.error for d in self.discoveries if d.error)

    async def _discover(self) -> None:
        found = [target for discovery in self.discoveries for target in await discovery.targets()]
        # One page found twice (listed here and in a file) is scraped once, else everything on it counts twice.
        pages = tuple({(t.address, t.path): t for t in reversed(found)}.values())[::-1]
        self.targets = _told_apart(pages)
        present = {target_name(target) for target in self.targets}
        for gone in sorted(set(self._states) - set(self.targets), key=target_name):
            task = self._states.pop(gone).task
            if task is not None:
                task.cancel()
            if target_name(gone) not in present:
                self._ready.append(_failed(gone, self.clock(), GONE, math.nan))
        for target in self.targets:
            if target not in self._states:
                self._states[target] = _State(Page(self.catalogue.wanted, self.catalogue.keep))

    async def _run(self) -> None:
        await self._discover()
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=self.settings.credentials.context(),
            keepalive_timeout=2 * self.settings.interval_s + 5,
        )
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._rediscover())
            for discovery in self.discoveries:
                if isinstance(discovery, Watching):
                    group.create_task(discovery.run())
            group.create_task(self._keep_pace(session, group))

    async def _rediscover(self) -> None:
        while True:
            await asyncio.sleep(self.settings.discover_s)
            await self._discover()

    async def _keep_pace(self, session: aiohttp.ClientSession, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        interval = self.settings.interval_s
        begin = (
            loop.time()
        )  # the first round starts at once: a daemon that waits a whole interval looks blind
        self._unheard = set(self.targets)
        group.create_task(self._settle(begin))
        while True:
            slots = slots_of(self.targets, self.settings.burst, interval)
            width = interval / len(slots)
            for number, slot in enumerate(slots):
                due = begin + number * width
                await asyncio.sleep(max(0.0, due - loop.time()))
                if loop.time() - due > max(width, self.settings.late_max_s):
                    self.counts.missed += len(slot)
                    continue
                await self._start(slot, session, group)
            begin += interval
            if loop.time() - begin > interval:
                # Whole rounds were slept through: count them once, take up the pace from now.
                behind = math.floor((loop.time() - begin) / interval)
                self.counts.missed += behind * len(self.targets)
                begin += behind * interval

    async def _settle(self, begin: float) -> None:
        loop = asyncio.get_running_loop()
        for number in range(FIRST_ROUNDS + 1):
            due = begin + number * self.settings.interval_s + min(SETTLE_S, self.settings.interval_s / 4)
            await asyncio.sleep(due - loop.time())
            if not self._unheard:
                break
        self._settled.set()

    async def _start(
        self, slot: Sequence[Target], session: aiohttp.ClientSession, group: asyncio.TaskGroup
    ) -> None:
        for start in range(0, len(slot), self.settings.burst):
            if start:
                await asyncio.sleep(0.01)  # an uneven slot goes out in several bursts
            for target in slot[start : start + self.settings.burst]:
                state = self._states.get(target)
                if state is None:
                    continue
                if state.task is not None and not state.task.done():
                    self.counts.pending += 1
                    continue
                state.task = group.create_task(self._scrape(target, state, session))

    async def _scrape(self, target: Target, state: _State, session: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        began, at = loop.time(), self.clock()
        limit = self._timeout_s(target, state)
        try:
            headers = self.settings.credentials.headers()
            async with asyncio.timeout(limit):
                body, first_byte = await fetch(session, target, headers, self.settings.body_max)
            reading = await self._parse(state.page, body)
            # Loop time and wall time run at one pace; only the difference is taken from the loop.
            scrape = self._understood(target, state, reading, at + (first_byte - began), loop.time() - began)
        except TimeoutError:
            scrape = _failed(target, at, f"no answer within {limit:g} s", loop.time() - began)
        except FetchError as problem:
            scrape = _failed(target, at, str(problem), loop.time() - began)
        self._unheard.discard(target)
        self._hand_over(scrape)

    def _timeout_s(self, target: Target, state: _State) -> float:
        job = target.job or (state.identity.job if state.identity else "")
        return self.settings.engine_timeout_s if job in ENGINE_JOBS else self.settings.timeout_s

    async def _parse(self, page: Page, body: bytes) -> Reading:
        if len(body) >= LARGE_BODY:
            return await asyncio.to_thread(page.parse, body)
        return page.parse(body)

    def _understood(
        self, target: Target, state: _State, reading: Reading, at: float, took_s: float
    ) -> Scrape:
        if not reading.keys and reading.dropped:
            raise FetchError(
                f"bad body: none of {reading.dropped} lines is a sample; is this a metrics page?"
            )
        engines = self.engines()
        if state.identity is None or state.keys is not reading.keys or state.engines != engines:
            state.identity = self.catalogue.identify(target, reading.keys, engines)
            state.keys, state.engines = reading.keys, dict(engines)
        return Scrape(
            target_name(target),
            at,
            state.identity.layout,
            state.identity.values(reading.values),
            took_s=took_s,
            dropped=reading.dropped,
        )

    def _hand_over(self, scrape: Scrape) -> None:
        self.counts.scrapes += 1
        self.counts.failed += bool(scrape.error)
        self.counts.dropped_lines += scrape.dropped
        if len(self._ready) >= self.settings.buffer_max:
            self._ready.popleft()
            self.counts.lost += 1
        self._ready.append(scrape)


def _told_apart(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Targets that share an instance label get their address added: two pages under one name would undo each other."""
    count = Counter(target_name(t) for t in targets)
    return tuple(
        replace(t, labels=tuple((k, f"{v}@{t.address}" if k == "instance" else v) for k, v in t.labels))
        if count[target_name(t)] > 1
        else t
        for t in targets
    )


def _failed(target: Target, at: float, error: str, took_s: float) -> Scrape:
    return Scrape(target_name(target), at, None, None, error=error, took_s=took_s)


def phase(target: Target) -> float:
    """Where in the interval a target has its place, 0..1; the same in every run."""
    if target.job in GATEWAY_JOBS:
        return 0.0
    return zlib.crc32(f"{target.address}{target.path}".encode()) / 2**32


def slots_of(targets: Sequence[Target], burst: int, interval_s: float) -> list[list[Target]]:
    """Targets by slot: as many slots as full bursts, never shorter than 50 ms, each slot in order of phase.

    A target keeps its phase when others come or go, so that its samples stay evenly spaced.
    """
    count = max(1, min(math.ceil(len(targets) / max(1, burst)), int(interval_s / 0.05)))
    slots: list[list[Target]] = [[] for _ in range(count)]
    for target in sorted(targets, key=phase):
        slots[min(count - 1, int(phase(target) * count))].append(target)
    return slots
