"""How long a decode step should take at a given load, learnt from a peer group's own minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array

KEPT = 480
"""Rows kept of a group: enough for hours of a small pool, and for the last hour of a large one."""
LEAST = 24
FIT_EVERY = 5
RIDGE = 1e-3
HUBER = 1.5


@dataclass(slots=True)
class StepModel:
    """log step time = a + b log(batch) + c u + d u^2 with u = prompt tokens computed per second, per engine.

    rows : [log batch, u, log step] of minutes nobody was blamed in. Prefill delays decoding, so the prompt
    load explains what the batch does not: busy is not slow.
    """

    rows: list[list[float]] = field(default_factory=list)
    unfitted: int = 0
    weights: list[float] = field(default_factory=list)
    scale: float = 1.0

    def learn(self, batch: Array, prompts: Array, step_s: Array) -> None:
        """Add one minute of engines, (engine,) each and all known; fit anew, outliers held down, every few minutes."""
        self.rows += np.column_stack([np.log(np.maximum(batch, 1.0)), prompts, np.log(step_s)]).tolist()
        del self.rows[:-KEPT]
        self.unfitted += 1
        if len(self.rows) < LEAST or (self.weights and self.unfitted < FIT_EVERY):
            return
        self.unfitted = 0
        table = np.array(self.rows)
        self.scale = float(max(np.quantile(table[:, 1], 0.95), 1e-9))
        x, y = self._features(table[:, 0], table[:, 1]), table[:, 2]
        weight = np.ones(y.size)
        for _ in range(3):
            gram = (x * weight[:, None]).T @ x + RIDGE * y.size * np.diag([0.0, 1.0, 1.0, 1.0])
            fitted = np.linalg.solve(gram, (x * weight[:, None]).T @ y)
            error = np.abs(y - x @ fitted)
            spread = 1.4826 * float(np.median(error)) + 1e-6
            weight = np.minimum(1.0, HUBER * spread / np.maximum(error, 1e-12))
        self.weights = [float(w) for w in fitted]

    def expected(self, batch: Array, prompts: Array) -> Array:
        """(engine,) expected log step time; NaN before enough has been learnt."""
        if not self.weights:
            return np.full(batch.size, NAN)
        found: Array = self._features(np.log(np.maximum(batch, 1.0)), prompts) @ np.array(self.weights)
        return found

    def _features(self, log_batch: Array, prompts: Array) -> Array:
        # Outside of what was seen the load counts as the heaviest that was: a parabola must not run away.
        u = np.minimum(prompts / self.scale, 1.5)
        return np.column_stack([np.ones(u.size), log_batch, u, u * u])
