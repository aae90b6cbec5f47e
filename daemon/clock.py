"""The only place that reads a clock: wall time from the running loop, and the event loops of drill and demo."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a field: waiting costs nothing.

    Time starts at 0 and never follows the wall clock: near 1.7e9 the spacing of floats is larger than the
    loop's resolution and timers would never become due. No threads and no real sockets may be used under it.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_SkippingSelector(self))

    def time(self) -> float:
        return self._now

    def skip(self, seconds: float) -> None:
        self._now += seconds


class _SkippingSelector(selectors.SelectSelector):
    """Instead of waiting it moves the loop's time on by the time-out it was given."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError(
                "the virtual loop has nothing left to wait for: a task awaits an event nobody will set"
            )
        self._loop.skip(timeout)
        return super().select(0)


class RatedLoop(asyncio.SelectorEventLoop):
    """An event loop that runs `rate` times as fast as the wall clock: timers and time-outs scale alike.

    Real sockets work under it. Used by the demo, where a day passes in 24 minutes. The rate may change at any time;
    time goes on from where it is.
    """

    def __init__(self, rate: float) -> None:
        self._at, self._then = 0.0, time.monotonic()
        self._rate = 0.0
        self.rate = rate
        super().__init__(_RatedSelector(self))

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be positive, got {rate}")
        now = time.monotonic()
        self._at, self._then, self._rate = self._at + (now - self._then) * self._rate, now, rate

    def time(self) -> float:
        return self._at + (time.monotonic() - self._then) * self._rate

    def real_time(self) -> float:
        """Seconds of the wall's steady clock."""
        return time.monotonic()


class _RatedSelector(selectors.DefaultSelector):
    def __init__(self, loop: RatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else timeout / self._loop.rate)


Clock = Callable[[], float]
"""Seconds since the epoch. Handed to the shell; the core gets time as an argument."""


def wall_clock() -> float:
    """Real time, for the service."""
    return time.time()


SLEW = 0.9
"""Pace at which a clock that stands ahead lets the wall clock catch up."""


class SteadyClock:
    """Wall time for the service that never goes back.

    A wall clock set forward is followed at once. One set back is let catch up: decisions and the journal keep their
    order, patience and cool-downs keep running, and after a while both agree again.
    """

    def __init__(self, wall: Clock = time.time, steady: Clock = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._at, self._then = wall(), steady()

    def __call__(self) -> float:
        now, wall = self._steady(), self._wall()
        elapsed = now - self._then
        ahead = self._at + elapsed - wall
        self._at = max(self._at + (SLEW if ahead > 0 else 0.0) * elapsed, wall)
        self._then = now
        return self._at


def loop_clock(loop: asyncio.AbstractEventLoop, epoch: float) -> Clock:
    """Wall time derived from a virtual or rated loop: epoch + loop time."""
    return lambda: epoch + loop.time()


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine under a fresh virtual loop and return what it returns."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main(loop))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
