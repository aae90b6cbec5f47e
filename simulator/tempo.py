"""How fast the demo's time runs: as fast as asked, and slower where the machine cannot follow."""

from __future__ import annotations

import asyncio

from daemon.clock import RatedLoop

SLOWEST = 10.0
"""Below this a demo shows little within minutes; a machine that slow is no place for it."""
BEAT_S = 0.05
"""Real seconds between two looks."""
BEATS = 16
"""Looks between two changes of the rate, so that one change shows before the next."""
LATE_S, EARLY_S = 0.04, 0.02
"""A timer that is so many real seconds late, on the mean, waits for the processor; fewer is the loop's own work between timers."""
SLOWER, FASTER = 0.8, 1.15


def next_rate(rate: float, late_s: float, most: float) -> float:
    """The rate after a look. late_s : how late timers have been lately, real seconds. most : what was asked for."""
    if late_s > LATE_S:
        return max(min(SLOWEST, most), rate * SLOWER)
    return min(most, rate * FASTER) if late_s < EARLY_S else rate


async def keep(loop: RatedLoop) -> None:
    """Slow the loop down while its timers come late, and let it catch up afterwards: what is simulated then takes longer to
    watch, instead of showing exporters that time out for want of a processor."""
    most = loop.rate
    while True:
        late_s = 0.0
        for _ in range(BEATS):
            due = loop.real_time() + BEAT_S
            await asyncio.sleep(BEAT_S * loop.rate)
            late_s += max(0.0, loop.real_time() - due) / BEATS
        loop.rate = next_rate(loop.rate, late_s, most)


async def real(loop: RatedLoop, until: float) -> None:
    """Wait for a real time, a value of loop.real_time(), whatever the rate does meanwhile."""
    while (left_s := until - loop.real_time()) > 0:  # noqa: ASYNC110 - a timer set now would be of the rate of now
        await asyncio.sleep(min(left_s, 1.0) * loop.rate)
