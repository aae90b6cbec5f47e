"""The ticks of each minute of a few signals of every entity, and their medians."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array, Frame
from detectors.stats import columns_median

MINUTE_S = 60.0


@dataclass(slots=True)
class Minutes:
    """Ticks of the minute under way. names : entities of the rows. ticks : (entity * signal,) each, newest last."""

    names: tuple[str, ...] = ()
    ends: float = -np.inf
    ticks: list[Array] = field(default_factory=list)

    def push(self, frame: Frame, values: Array) -> Array | None:
        """Add one tick; the finished minute's (entity, signal) medians when this tick ends one.

        values : (entity, signal), NaN = missing. A newcomer's earlier ticks of the minute are missing.
        """
        minute = self.gather(frame, values)
        return None if minute is None else medians(minute)

    def gather(self, frame: Frame, values: Array, is_whole: bool = True) -> Array | None:
        """The same, with the finished minute as it came: (tick, entity, signal). is_whole : whether this tick is one that a minute may
        end with; one that is half over waits for such a tick."""
        if frame.entities != self.names:
            self._follow(frame.entities)
        if not self.ticks and not self.ends > frame.at:
            self.ends = frame.at + MINUTE_S
        self.ticks.append(values.ravel())
        if frame.at < self.ends + (-1.0 if is_whole else MINUTE_S / 2 - 1.0):
            return None
        found = np.array(self.ticks).reshape(-1, *values.shape)
        self.ticks, self.ends = [], frame.at + MINUTE_S
        return found

    def _follow(self, names: tuple[str, ...]) -> None:
        """Re-order the ticks so far to a new list of entities."""
        place = {name: i for i, name in enumerate(self.names)}
        old = np.array([place.get(name, -1) for name in names], dtype=np.intp)
        moved = []
        for tick in self.ticks if self.names else ():
            table = tick.reshape(len(self.names), -1)
            fresh = np.full((len(names), table.shape[1]), NAN)
            fresh[old >= 0] = table[old[old >= 0]]
            moved.append(fresh.ravel())
        self.names, self.ticks = names, moved


def medians(minute: Array) -> Array:
    """(entity, signal) medians of (tick, entity, signal); less than half measured is unknown."""
    return columns_median(minute.reshape(len(minute), -1)).reshape(minute.shape[1:])


def means(minute: Array) -> Array:
    """(entity, signal) means of (tick, entity, signal); less than half measured is unknown."""
    number = np.isfinite(minute).sum(axis=0)
    known: Array = np.nansum(minute, axis=0) / np.maximum(number, 1)
    return np.where(2 * number >= len(minute), known, NAN)
