"""What an engine's metrics page says of its requests, read once and on the spot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

Busy = Callable[[str], Awaitable[float]]
"""URL of a metrics page -> requests running and waiting together, NaN when it does not tell."""

TIMEOUT_S = 5.0
PAGE_BYTES_MAX = 20_000_000


async def nobody_tells(url: str) -> float:
    return math.nan


def busy_by(requests_of: Callable[[bytes], float]) -> Busy:
    """requests_of : a page -> requests running and waiting, NaN when they are not on it."""

    async def busy(url: str) -> float:
        import aiohttp

        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                aiohttp.ClientSession() as session,
                session.get(url) as answer,
            ):
                if answer.status != 200:
                    return math.nan
                page = await answer.content.read(PAGE_BYTES_MAX)
                # read() may give less than all.
                while chunk := await answer.content.read(PAGE_BYTES_MAX):
                    page += chunk
                    if len(page) > PAGE_BYTES_MAX:
                        return math.nan
        except (aiohttp.ClientError, OSError, TimeoutError):
            return math.nan
        return requests_of(page)

    return busy
