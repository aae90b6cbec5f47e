"""How many requests of a pool met their latency objective, as it was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from daemon.model import NAN, Array
from daemon.record import Record

FINEST_S = 900.0
STRETCHES = 700
"""At most; beyond a quarter of a year, where only hours are left, one is longer than three hours."""


@dataclass(frozen=True, slots=True)
class Attained:
    """What a stretch of time shows; NaN where nothing was measured.

    ratio : share of all requests that met the objective. measured_ratio : share of the time that says anything.
    at, late : (stretch,) left edges, and the share of its requests over the objective, NaN = not measured.
    """

    ratio: float
    measured_ratio: float
    at: Array
    late: Array


def attained(record: Record, pool: str, since: float, until: float) -> Attained:
    """Read off the means that are kept every five minutes, weighed by the requests finished in each.

    Where nobody counts finished requests all of them weigh alike. Time without a measurement is neither good nor bad: it
    is left out, and measured_ratio says so.
    """
    at, late = record.series("pool", pool, "over_slo_ratio", since, until)
    done = dict(
        zip(
            *(c.tolist() for c in record.series("pool", pool, "requests_done_per_s", since, until)),
            strict=True,
        )
    )
    weight = np.array([done.get(t, NAN) for t in at.tolist()])
    known = np.isfinite(weight)
    weight = np.where(known, weight, weight[known].mean() if known.any() else 1.0)
    step = max(FINEST_S, (until - since) / STRETCHES)
    size = max(1, math.ceil((until - since) / step))
    place = np.clip((at - since) // step, 0, size - 1).astype(np.int64)
    total = np.bincount(place, weight, minlength=size)
    missed = np.bincount(place, weight * late, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(total > 0, missed / total, NAN)
    return Attained(
        ratio=1.0 - float(missed.sum() / total.sum()) if total.sum() > 0 else NAN,
        measured_ratio=float(np.isfinite(shares).mean()),
        at=np.asarray(since + np.arange(size) * step, dtype=np.float64),
        late=shares,
    )
