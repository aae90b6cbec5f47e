"""What every request handler is given."""

from __future__ import annotations

import asyncio
import hmac
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
from daemon.web.errors import Refused

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
    """config : None when there is no file to reload. registry : the daemon's metrics."""

    daemon: Daemon
    settings: Settings
    config: Path | None
    catalogue: Catalogue
    registry: CollectorRegistry
    feed: Feed


SITE = web.AppKey("site", Site)


def check_token(site: Site, header: str) -> None:
    """Let a write pass only with the token of the settings, read at every use. Raises Refused."""
    file = site.settings.web.token_file
    if not file:
        raise Refused(
            403,
            "writes are switched off: put a secret into a file and name it in web.token_file, then restart",
        )
    try:
        expected = Path(file).read_bytes().strip()
    except OSError as error:
        raise Refused(
            503, f"web.token_file {file}: {error.strerror}; make it readable for this user"
        ) from error
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise Refused(
            401, "a write needs the header `Authorization: Bearer TOKEN`; the token is in web.token_file"
        )
    if not expected or not hmac.compare_digest(given.strip().encode(), expected):
        raise Refused(403, "the token is not the one in web.token_file")
