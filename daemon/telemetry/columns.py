"""Turns canonical readings of local sources into Scrapes that share a Layout while the set of readings is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon.model import Entity, Event, Fact, Layout, Scrape, Series, Shape

Shapes = Mapping[str, Mapping[str, tuple[Shape, str]]]
"""kind -> canonical signal -> (shape, combine)."""


@dataclass(slots=True)
class Columns:
    """The Layout of one source, kept until other readings or facts come.

    shapes : from `shapes_of`. A signal it does not know is read as a gauge.
    """

    target: str
    shapes: Shapes
    _layout: Layout | None = None
    _made_of: tuple[tuple[tuple[Entity, str], ...], tuple[Fact, ...]] = field(default=((), ()))

    def scrape(
        self,
        at: float,
        readings: Mapping[tuple[Entity, str], float],
        facts: Iterable[Fact] = (),
        events: tuple[Event, ...] = (),
        took_s: float = float("nan"),
        dropped: int = 0,
    ) -> Scrape:
        """readings : (entity, canonical signal) -> value in catalogue units; what is unknown is left out."""
        made_of = (tuple(readings), tuple(facts))
        if self._layout is None or made_of != self._made_of:
            series = tuple(self._series(entity, signal) for entity, signal in readings)
            self._layout = Layout(self.target, series, made_of[1])
            self._made_of = made_of
        values = np.fromiter(readings.values(), float, len(readings))
        return Scrape(self.target, at, self._layout, values, events, took_s=took_s, dropped=dropped)

    def _series(self, entity: Entity, signal: str) -> Series:
        shape, combine = self.shapes.get(entity.kind, {}).get(signal, (Shape.GAUGE, "sum"))
        return Series(signal, entity, shape, combine=combine)
