"""What every request handler is given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from daemon.loop import Daemon, News
from daemon.model import Decision
from daemon.settings import Settings
from daemon.telemetry.catalogue import Catalogue
from daemon.web.access import Caller, Door, Session
from daemon.web.replies import Replies

READERS_MAX = 64
QUEUE_MAX = 64


@dataclass(slots=True)
class Feed:
    """Hands the decisions of the loop to whoever reads the live stream. A reader that is slow loses the oldest."""

    readers: set[asyncio.Queue[Decision]] = field(default_factory=set)

    def hear(self, news: News) -> None:
        if isinstance(news, Decision):
            for queue in self.readers:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(news)

    @contextmanager
    def reading(self) -> Iterator[asyncio.Queue[Decision]]:
        queue: asyncio.Queue[Decision] = asyncio.Queue(maxsize=QUEUE_MAX)
        self.readers.add(queue)
        try:
            yield queue
        finally:
            self.readers.discard(queue)


@dataclass(frozen=True, slots=True)
class Site:
    """config : None when there is no file to reload. registry : the daemon's metrics. door : who is signed in.

    replies : what writes with an Idempotency-Key were answered.
    """

    daemon: Daemon
    settings: Settings
    config: Path | None
    catalogue: Catalogue
    registry: CollectorRegistry
    feed: Feed
    door: Door = field(default_factory=Door)
    replies: Replies = field(default_factory=Replies)


SITE = web.AppKey("site", Site)
CALLER = web.RequestKey("caller", Caller)
SESSION = web.RequestKey("session", Session)
