"""Who is told: a tree of routes by labels and time of day, and what is kept quiet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo

from daemon.alerts import Raised, Silence

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Hours:
    """A stretch of the day on some days of the week. start_min, end_min : minutes since midnight; end <= start = over midnight."""

    start_min: int = 0
    end_min: int = 24 * 60
    days: tuple[str, ...] = DAYS
    zone: str = "UTC"

    def holds(self, at: float) -> bool:
        """A night belongs to the day it began on."""
        now = datetime.fromtimestamp(at, ZoneInfo(self.zone))
        minute, today = now.hour * 60 + now.minute, now.weekday()
        if self.start_min < self.end_min:
            return DAYS[today] in self.days and self.start_min <= minute < self.end_min
        if minute >= self.start_min:
            return DAYS[today] in self.days
        return minute < self.end_min and DAYS[today - 1] in self.days


@dataclass(frozen=True, slots=True)
class Pacing:
    """How alerts of one group are put together. Source of 30 s, 5 min and 4 h: Alertmanager's defaults.

    wait_s : from the first alert of a group to its first message, wait_critical_s when one of them is critical.
    interval_s : between two messages about one group. repeat_s : what still fires and nobody has acknowledged is
    told again. group_by : labels that make a group; () = every alert for itself.
    """

    wait_s: float = 30.0
    wait_critical_s: float = 5.0
    interval_s: float = 300.0
    repeat_s: float = 14_400.0
    group_by: tuple[str, ...] = ("cluster", "pool", "kind")


@dataclass(frozen=True, slots=True)
class Route:
    """A node of the tree: the first child that matches takes an alert, the node itself when none does.

    channels : names. match : label -> patterns, one of which must fit; an absent label is "". hours : None = always.
    goes_on  : siblings after it are asked as well. escalate_after_s : how long an alert may stay unacknowledged before
    `escalate_to` hears of it, inf = for ever.
    """

    channels: tuple[str, ...]
    match: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hours: Hours | None = None
    pacing: Pacing = Pacing()
    goes_on: bool = False
    routes: tuple[Route, ...] = ()
    escalate_after_s: float = math.inf
    escalate_to: tuple[str, ...] = ()

    def takes(self, labels: Mapping[str, str], at: float) -> bool:
        fits = all(
            any(fnmatchcase(labels.get(label, ""), pattern) for pattern in patterns)
            for label, patterns in self.match.items()
        )
        return fits and (self.hours is None or self.hours.holds(at))


def routes_of(root: Route, labels: Mapping[str, str], at: float) -> Iterator[Route]:
    """The routes that take an alert with these labels at this time; the root takes everything."""
    found = False
    for child in root.routes:
        if child.takes(labels, at):
            found = True
            yield from routes_of(child, labels, at)
            if not child.goes_on:
                return
    if not found:
        yield root


@dataclass(frozen=True, slots=True)
class Seat:
    """One channel's interest in one alert. from_at : when it begins. is_second : only while nobody has acknowledged."""

    channel: str
    pacing: Pacing
    from_at: float
    is_second: bool = False


def seats(root: Route, raised: Raised) -> dict[str, Seat]:
    """channel -> its interest. A channel that several routes name is told by the first, earliest."""
    found: dict[str, Seat] = {}
    for route in routes_of(root, raised.alert.labels, raised.first):
        for name in route.channels:
            found.setdefault(name, Seat(name, route.pacing, raised.first))
        if math.isfinite(route.escalate_after_s):
            for name in route.escalate_to:
                at = raised.first + route.escalate_after_s
                found.setdefault(name, Seat(name, route.pacing, at, is_second=True))
    return found


def group_of(raised: Raised, pacing: Pacing) -> tuple[str, dict[str, str]]:
    """Name and labels of the group an alert belongs to."""
    alert = raised.alert
    if not pacing.group_by:
        names: tuple[str, ...] = ("alertname", "cluster", "pool")
        return alert.key, {name: alert.labels[name] for name in names if name in alert.labels}
    labels = {name: alert.labels.get(name, "") for name in pacing.group_by}
    return " / ".join(labels.values()), {name: value for name, value in labels.items() if value}


def muted_until(labels: Mapping[str, str], silences: Iterable[Silence], at: float) -> float:
    """When the last silence that holds now and fits ends, -inf when there is none."""
    return max((s.end for s in silences if s.start <= at < s.end and fits(s, labels)), default=-math.inf)


def fits(silence: Silence, labels: Mapping[str, str]) -> bool:
    return all(fnmatchcase(labels.get(label, ""), pattern) for label, pattern in silence.match.items())
