"""Latency histograms of many engines at once, on the union of the edges their families use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array

Indices = NDArray[np.intp]

# Source: recorded pages of vLLM 0.32; SGLang's defaults in its metrics collector.
_LONG = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
         960.0, 1920.0, 7680.0)  # fmt: skip
_SGLANG_LONG = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0,
                600.0, 1200.0, 1800.0, 2400.0)  # fmt: skip
EDGES: dict[str, dict[str, tuple[float, ...]]] = {
    "vllm": {
        "ttft_s": (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                   40.0, 80.0, 160.0, 640.0, 2560.0),
        "itl_s": (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                  40.0, 80.0),
        "e2e_s": _LONG,
        "queue_s": _LONG,
        "tpot_s": (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                   40.0, 80.0),
    },
    "sglang": {
        "ttft_s": (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0,
                   400.0),
        "itl_s": (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4,
                  0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0),
        "e2e_s": _SGLANG_LONG,
        "queue_s": _SGLANG_LONG,
        "tpot_s": (),
    },
}  # fmt: skip
NAMES = ("ttft_s", "itl_s", "e2e_s", "queue_s", "tpot_s")
"""The latency histograms that engines export; a family without edges does not have that one."""

UNION: dict[str, Array] = {
    name: np.array(sorted(set(EDGES["vllm"][name]) | set(EDGES["sglang"][name]))) for name in NAMES
}
BASE: dict[str, int] = {}
"""First column of each histogram in the matrix of counts; each has one column more than edges, for +Inf."""
WIDTH = 0
for _name in NAMES:
    BASE[_name] = WIDTH
    WIDTH += len(UNION[_name]) + 1

START: Indices = np.repeat(list(BASE.values()), [len(UNION[name]) + 1 for name in NAMES])
"""(WIDTH,) first column of the histogram each column belongs to."""


def shown_by(family: str) -> tuple[str, ...]:
    return tuple(name for name in NAMES if EDGES[family][name])


def columns(family: str, name: str) -> Indices:
    """Columns, relative to the histogram's first, whose cumulative count is that of the family's edges and +Inf."""
    edges = np.searchsorted(UNION[name], EDGES[family][name])
    return np.append(edges, len(UNION[name])).astype(np.intp)


def places(name: str, engine: Indices, values: Array) -> Indices:
    """Flat positions in an (engine, WIDTH) matrix of counts at which `values` are counted."""
    return engine * WIDTH + BASE[name] + np.searchsorted(UNION[name], values)


def spread(counts: Array, centre: Array, second: Array, share: Array) -> Array:
    """(engine, bucket) of how `counts` inter-token gaps fall: around `centre`, a `share` around `second`.

    Both humps are log-logistic with a scale of 10 %; the buckets are those of itl_s with +Inf last.
    """
    first = 1.0 / (1.0 + _tenth(centre)[:, None] * _STEEP)
    late = 1.0 / (1.0 + _tenth(second)[:, None] * _STEEP)
    below = np.empty((len(counts), len(_STEEP) + 2))
    below[:, 0], below[:, -1] = 0.0, 1.0
    below[:, 1:-1] = first + share[:, None] * (late - first)
    result = below[:, 1:] - below[:, :-1]
    result *= counts[:, None]
    return result


_STEEP = UNION["itl_s"] ** -10.0


def _tenth(x: Array) -> Array:
    """x to the tenth, without the slow general power."""
    square = x * x
    fourth = square * square
    return np.asarray(fourth * fourth * square, dtype=float)
