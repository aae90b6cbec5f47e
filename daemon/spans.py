"""How long things took, as data: stretches of time with what happened in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.clock import Clock
from daemon.model import NAN

Fact = str | float | int | bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """begun, ended : seconds since the epoch. step : id of the step it is about, "" = it is about none.

    starts : ids of the steps that it set going; their own stretches come later, by themselves.
    """

    name: str
    begun: float
    ended: float
    facts: Mapping[str, Fact] = field(default_factory=dict)
    parts: tuple[Stretch, ...] = ()
    step: str = ""
    starts: tuple[str, ...] = ()


@dataclass(slots=True)
class Stopwatch:
    """Cuts a tick into parts: each ends where the next begins. Before its first restart nobody asks, and none is cut."""

    clock: Clock
    begun: float = NAN
    parts: list[Stretch] = field(default_factory=list)
    _at: float = 0.0

    def restart(self) -> None:
        self.begun = self._at = self.clock()
        self.parts = []

    def passed(self, name: str, **facts: Fact) -> None:
        """A part has just ended."""
        if self.begun != self.begun:
            return
        now = self.clock()
        self.parts.append(Stretch(name, self._at, now, facts))
        self._at = now
