"""What is usual for each of a changing set of entities: a slow mean that follows their names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array

USUAL_S = 600.0
"""Time constant. Long against a fault that is not yet found, short against the course of a day. Judgement."""


@dataclass(slots=True)
class Usual:
    """level : (entity,) in the order of `names`, NaN = nothing learnt yet."""

    names: tuple[str, ...] = ()
    level: Array = field(default_factory=lambda: np.empty(0))

    def before(
        self, names: tuple[str, ...], values: Array, elapsed_s: float, teaches: NDArray[np.bool_]
    ) -> Array:
        """What was usual before this tick; then learn from it. Only what `teaches`, and is measured, is learnt from."""
        if names != self.names:
            place = {name: i for i, name in enumerate(self.names)}
            self.level = np.array([self.level[place[n]] if n in place else NAN for n in names])
            self.names = names
        before = self.level
        weight = min(1.0, elapsed_s / USUAL_S) if elapsed_s == elapsed_s else 1.0
        learnt = np.where(before == before, before + (values - before) * weight, values)
        self.level = np.where(teaches & (values == values), learnt, before)
        return before
