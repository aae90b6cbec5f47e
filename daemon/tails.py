"""How many requests miss their objective at which load of a replica, as one pool has shown."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

BINS = 48
WIDTH = 1.0 / 32.0
"""Of a bin, as a share of the load that is taken for full before there is evidence; loads up to 1.5 of it are told apart."""
MEMORY_S = 4 * 86400.0
"""What was seen so long ago counts a third. Long enough for a weekend, short enough for a new version of an engine."""
PRIOR_LATE, PRIOR_STEEPNESS = 0.01, 17.0
"""Before there is evidence one request in a hundred is late at full load, and five in a hundred at 9 % more: the shape of
the simulator's engines, see bench/autoscale_engine.py. It counts as PRIOR_REQUESTS a bin."""
PRIOR_REQUESTS = 400.0
LATE_LEAST = 0.002
"""Less than that is chance."""
BASE_MOST = 0.05
"""More than that late is load, or a fault, and no habit."""
KNOWN_REQUESTS = 3000.0
"""From so many on the pool's own curve is believed for sizing."""


def prior(share: float) -> float:
    """Share late at a share of the full load before anything was seen."""
    return min(1.0, PRIOR_LATE * math.exp(PRIOR_STEEPNESS * min(share - 1.0, 1.0)))


USUAL = tuple(prior((k + 0.5) * WIDTH) for k in range(BINS))
WORSE = math.exp(PRIOR_STEEPNESS * WIDTH)
"""From one bin to the next, before there is evidence."""


@dataclass(slots=True)
class Tails:
    """Requests and late ones by load of a replica.

    unit : load (work a second and replica) taken for full when the first evidence came, NaN = none yet.
    requests, late : (bin,) what was seen, fading. curve : (bin,) share late, never falling; worked out by `settle`.
    """

    unit: float = math.nan
    requests: list[float] = field(default_factory=lambda: [0.0] * BINS)
    late: list[float] = field(default_factory=lambda: [0.0] * BINS)
    curve: list[float] = field(default_factory=lambda: list(USUAL))
    base: float = 0.0
    at: float = math.nan

    @property
    def is_known(self) -> bool:
        return sum(self.requests) >= KNOWN_REQUESTS


def note(tails: Tails, load: float, requests: float, late: float) -> None:
    """Take in what a moment showed: `requests` were asked at `load`, the share `late` of them too late."""
    if not (load >= 0 and requests > 0 and late >= 0) or math.isnan(tails.unit):
        return
    place = min(BINS - 1, int(load / tails.unit / WIDTH))
    tails.requests[place] += requests
    tails.late[place] += requests * late


def settle(tails: Tails, at: float) -> None:
    """Let old evidence fade and draw the curve through what is left.

    Some requests are late on an idle replica too (long prompts): that share is the base, and more replicas do not lower
    it. What load adds to it is guessed from the bin below and from the prior where a bin was hardly seen: so that a
    pool that does well at the loads it knows dares a little more, and no further than that.
    """
    if not math.isnan(tails.at) and at > tails.at:
        fade = math.exp(-(at - tails.at) / MEMORY_S)
        tails.requests = [r * fade for r in tails.requests]
        tails.late = [r * fade for r in tails.late]
    tails.at = at
    tails.base = _base(tails)
    weight, share, added = [], [], 0.0
    for usual, requests, late in zip(USUAL, tails.requests, tails.late, strict=True):
        guess = (
            added * WORSE if added > 2.0 * usual + LATE_LEAST else min(usual, max(added, LATE_LEAST) * WORSE)
        )
        heavy = requests + PRIOR_REQUESTS
        weight.append(heavy)
        part = (late + PRIOR_REQUESTS * min(1.0, tails.base + guess)) / heavy
        share.append(part)
        added = max(0.0, part - tails.base)
    tails.curve = rising(share, weight)


def _base(tails: Tails) -> float:
    """Share late at the lowest loads that were seen: of the least loaded tenth of the requests."""
    left, late, total = 0.1 * sum(tails.requests), 0.0, 0.0
    for requests, gone in zip(tails.requests, tails.late, strict=True):
        if left <= 0 or requests <= 0:
            continue
        late, total, left = late + gone, total + requests, left - requests
    return min(late / (total + PRIOR_REQUESTS), BASE_MOST)


def bearable(tails: Tails, late: float) -> float:
    """The share that may be late when `late` is wanted: at least half of it on top of what is late without any load."""
    return max(late, tails.base + 0.5 * late)


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls (pool adjacent violators).

    >>> rising([1.0, 3.0, 2.0], [1.0, 1.0, 1.0])
    [1.0, 2.5, 2.5]
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            before, heavy, count = blocks.pop()
            total = heavy + block[1]
            block = ((before * heavy + block[0] * block[1]) / total, total, count + block[2])
        blocks.append(block)
    return [value for value, _, count in blocks for _ in range(count)]


def rebase(tails: Tails, unit: float) -> None:
    """Take another load for full: what was seen moves to its new places."""
    before, requests, late = tails.unit, tails.requests, tails.late
    tails.unit, tails.requests, tails.late = unit, [0.0] * BINS, [0.0] * BINS
    if math.isnan(before):
        return
    for k in range(BINS):
        place = min(BINS - 1, int((k + 0.5) * before / unit))
        tails.requests[place] += requests[k]
        tails.late[place] += late[k]


def full_load(tails: Tails, late: float) -> float:
    """Highest load at which no more than the share `late` of requests is late. NaN while nothing is known."""
    if math.isnan(tails.unit):
        return math.nan
    over = bisect_right(tails.curve, late)
    if over == 0 or over == BINS:
        return tails.unit * WIDTH * (over or 0.5)
    low, high = tails.curve[over - 1], tails.curve[over]
    return tails.unit * WIDTH * (over - 0.5 + (late - low) / (high - low))


def replicas_at(tails: Tails, loads: Sequence[float], late: float, first: int) -> int:
    """Fewest replicas with which, on average over `loads` (total work a second, equally likely), no more than `late` of
    the requests are too late. The search begins at `first`."""
    count = max(1, first)
    if lateness(tails, loads, count) > late:
        count += max(1, count // 50)
        while lateness(tails, loads, count) > late and count < 100_000:
            count += max(1, count // 50)
        return count
    while count > 1 and lateness(tails, loads, count - 1) <= late:
        count -= 1
    return count


def lateness(tails: Tails, loads: Sequence[float], replicas: float) -> float:
    """Share of requests late on average over `loads`; a load counts by its requests, of which there are more when it is high."""
    total = sum(loads)
    if total <= 0:
        return 0.0
    # Between the middles of the bins, and in line: this is asked for a hundred times a tick.
    curve, scale, late = tails.curve, 1.0 / (replicas * tails.unit * WIDTH), 0.0
    for work in loads:
        place = work * scale - 0.5
        low = int(place)
        if place <= 0:
            late += work * curve[0]
        elif low >= BINS - 1:
            late += work * max(curve[-1], prior(work / replicas / tails.unit))
        else:
            late += work * (curve[low] + (curve[low + 1] - curve[low]) * (place - low))
    return late / total
