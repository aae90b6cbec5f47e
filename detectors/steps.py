"""How long a decode step should take at a given load, learnt from a peer group's own minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array
from detectors.scales import Flags

KEPT = 720
"""Rows kept of a group, spread evenly over the loads that were ever seen: tonight must remember the noon peak, or a
replica that is busier than the rest would be judged by a line drawn out of thin air."""
PER_MINUTE = 24
BINS_PER_E = 4.0
LEAST = 24
FIT_EVERY = 10
RIDGE = 1e-3
HUBER = 1.5
QUEUED = 0.25
REACH_ROWS = 5
"""So many minutes must have shown a load for the model to know it."""
MORE_PROMPTS = 1.2
"""Times the most prompts it knows: beyond that nothing is expected. Reading them takes the time of steps, without a bound, and who is slow
reads no more of them than others."""
GROWS_MORE = 0.3
"""A step grows faster the larger the batch is, up to in proportion: by how much more it may than at the edge of what is known. Judgement: from half of a
step's time that grows with the batch to four fifths is four times the batch."""


@dataclass(slots=True)
class StepModel:
    """log step time = a + b log(batch) + c u + d u^2 + e kv + f batch + g queue with u = prompt tokens computed per second, kv =
    share of KV cache in use, queue = requests that wait against QUEUED of those that run, at most 1, per engine. Both
    forms of the batch: a step grows hardly at low load, in proportion at high. While requests wait every step carries
    somebody's prompt, whatever the rate of finished ones says.

    reach : the largest log batch, prompts and kv that it knows. rows : (row, 5) log batch, u, kv, queue, log step of minutes nobody was blamed in. Prefill delays decoding and long contexts
    slow it, so prompt load and cache explain what the batch does not: busy is not slow. Beyond the batches and contexts that were ever
    seen the step of who does more than its peers is granted to grow in proportion, which is the most it can: who is slower than that has done less than others did with fewer.
    """

    rows: Array = field(default_factory=lambda: np.empty((0, 5)))
    unfitted: int = 0
    weights: list[float] = field(default_factory=list)
    scale: float = 1.0
    batch_scale: float = 1.0
    reach: tuple[float, float, float] = (np.inf, np.inf, np.inf)

    def learn(self, batch: Array, prompts: Array, kv: Array, queue: Array, step_s: Array) -> None:
        """Add one minute of engines, (engine,) each and all known; fit anew, outliers held down, every few minutes."""
        fresh = np.stack((np.log(np.maximum(batch, 1.0)), prompts, kv, queue, np.log(step_s)), axis=1)
        if len(fresh) > PER_MINUTE:
            # Evenly over the loads of this minute, the lightest and the heaviest among them.
            order = np.argsort(fresh[:, 0], kind="stable")
            fresh = fresh[order[np.linspace(0, len(fresh) - 1, PER_MINUTE).astype(np.intp)]]
        self.rows = np.concatenate((self.rows, fresh))
        if len(self.rows) > 1.25 * KEPT:
            self._thin()
        self.unfitted += 1
        if len(self.rows) < LEAST or (self.weights and self.unfitted < FIT_EVERY):
            return
        self.unfitted = 0
        table = self.rows
        self.scale = float(max(np.quantile(table[:, 1], 0.95), 1e-9))
        self.batch_scale = float(np.exp(table[:, 0].max()))
        batch_most, prompts_most, kv_most = np.sort(table[:, :3], axis=0)[-REACH_ROWS].tolist()
        self.reach = batch_most, prompts_most, kv_most
        x, y = self._features(*table[:, :4].T), table[:, 4]
        weight = np.ones(y.size)
        for _ in range(3):
            gram = (x * weight[:, None]).T @ x + RIDGE * y.size * np.diag([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
            fitted = np.linalg.solve(gram, (x * weight[:, None]).T @ y)
            error = np.abs(y - x @ fitted)
            spread = 1.4826 * float(np.median(error)) + 1e-6
            weight = np.minimum(1.0, HUBER * spread / np.maximum(error, 1e-12))
        self.weights = [float(w) for w in fitted]

    def _thin(self) -> None:
        """Drop the oldest rows of the loads that are well known."""
        load = np.floor(self.rows[:, 0] * BINS_PER_E).astype(np.intp)
        load -= load.min()
        counts = np.bincount(load)
        room = KEPT // int((counts > 0).sum())
        # (row,) how many rows of the same load are newer
        newer = np.empty(load.size, dtype=np.intp)
        for level in np.flatnonzero(counts):
            of = np.flatnonzero(load == level)
            newer[of] = np.arange(of.size)[::-1]
        self.rows = self.rows[newer < max(room, LEAST)]

    def expected(
        self, batch: Array, prompts: Array, kv: Array, queue: Array, more: Flags
    ) -> tuple[Array, Array]:
        """(engine,) expected log step time, NaN before enough has been learnt, and where far more prompts are read than it knows; and
        how much of it is granted for a load beyond what it knows, which may be too much. more : (engine,) does more than its peers. By Little's law
        who does not has its many requests because its steps are long: they grant no more than what a step grows by at the edge of what is known."""
        if not self.weights:
            return np.full(batch.size, NAN), np.zeros(batch.size)
        batch_most, prompts_most, kv_most = self.reach
        log_batch = np.log(np.maximum(batch, 1.0))
        known, held = np.minimum(log_batch, batch_most), np.minimum(kv, kv_most)
        found: Array = self._features(known, prompts, held, queue) @ np.array(self.weights)
        # More requests hold more cache: the larger of the two is granted, not both.
        granted = np.maximum(log_batch - known, np.log(np.maximum(kv, 1e-9) / np.maximum(held, 1e-9)))
        _, by_log, _, _, by_kv, by_batch, _ = self.weights
        grows = by_log + by_kv * held + by_batch * np.exp(known) / self.batch_scale
        share = np.clip(grows + GROWS_MORE, 0.0, 1.0)
        granted = np.where(more, granted, np.log1p(share * np.expm1(granted)))
        return np.where(prompts > MORE_PROMPTS * prompts_most, NAN, found + granted), granted

    def _features(self, log_batch: Array, prompts: Array, kv: Array, queue: Array) -> Array:
        # Outside of what was seen the load counts as the heaviest that was: a parabola must not run away.
        u = np.minimum(prompts / self.scale, 1.5)
        batch = np.minimum(np.exp(log_batch) / self.batch_scale, 1.5)
        return np.stack((np.ones(u.size), log_batch, u, u * u, kv, batch, queue), axis=1)
