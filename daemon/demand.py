"""Demand of pools and cluster over time: five-minute buckets for the record, series for the forecaster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon.model import Array, Frame

BUCKET_S = 300.0
SIGNALS = {
    "pool": (
        "concurrency",
        "prompt_tokens_s",
        "generation_tokens_s",
        "requests_done_per_s",
        "kv_used_replicas",
        "replicas",
        "ready",
        "over_slo_ratio",
    ),
    "cluster": ("gpus_needed", "gpus_healthy", "power_w"),
}
"""What is kept of entities of a kind. "concurrency" (running and waiting requests) is what the forecaster plans by;
"over_slo_ratio" is what the report reads the attained objective off."""

Row = tuple[str, str, str, float, float, float, float]
"""kind, entity, signal, left edge of the bucket, mean, maximum, samples."""


@dataclass(slots=True)
class Buckets:
    """Means and maxima of the bucket that is being filled."""

    start: float = -np.inf
    sums: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)

    def add(self, *frames: Frame) -> list[Row]:
        """Add one tick, of frames of the kinds in SIGNALS; the finished bucket's rows when this tick begins a new one.
        Missing values add nothing."""
        start = frames[0].at // BUCKET_S * BUCKET_S
        done = self.flush() if start > self.start else []
        self.start = max(start, self.start)
        for frame in frames:
            signals = SIGNALS[frame.kind]
            for name, values in zip(frame.entities, frame.columns(signals).tolist(), strict=True):
                for signal, value in zip(signals, values, strict=True):
                    if value == value:
                        self._count((frame.kind, name, signal), value)
        return done

    def _count(self, key: tuple[str, str, str], value: float) -> None:
        cell = self.sums.get(key)
        if cell is None:
            cell = self.sums[key] = [0.0, value, 0.0]
        cell[0] += value
        cell[2] += 1.0
        if value > cell[1]:
            cell[1] = value

    def flush(self) -> list[Row]:
        """The rows of the bucket as far as it is filled, and an empty bucket after it."""
        rows = [
            (*key, self.start, total / number, most, number)
            for key, (total, most, number) in self.sums.items()
        ]
        self.sums = {}
        return rows


def rows_of(
    kind: str, history: Mapping[str, Mapping[str, tuple[Array, Array]]], before: float
) -> Iterable[Row]:
    """Back-filled history as rows, up to and not including `before`: what is measured live is never overwritten.

    history : entity -> signal -> (at, values); NaN = gap, which stays a gap. Finer than a bucket is averaged.
    """
    for entity, signals in history.items():
        for signal, (at, values) in signals.items():
            keep = np.isfinite(values) & (at < before)
            edges, index = np.unique(at[keep] // BUCKET_S, return_inverse=True)
            if not edges.size:
                continue
            number = np.bincount(index)
            mean = np.bincount(index, values[keep]) / number
            most = np.full(edges.size, -np.inf)
            np.maximum.at(most, index, values[keep])
            for i in range(edges.size):
                yield (
                    kind,
                    entity,
                    signal,
                    float(edges[i]) * BUCKET_S,
                    float(mean[i]),
                    float(most[i]),
                    float(number[i]),
                )
