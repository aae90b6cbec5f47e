"""Which rows of the engine frame belong to which pool."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Frame
from detectors.stats import Index


def members(engine: Frame) -> Mapping[str, Index]:
    """pool -> rows of its engines."""
    return _members(engine.facts.get("pool", ()))


@lru_cache(maxsize=16)
def _members(of: tuple[str, ...]) -> dict[str, Index]:
    found: dict[str, list[int]] = {}
    for i, name in enumerate(of):
        if name:
            found.setdefault(name, []).append(i)
    return {name: np.array(rows, dtype=np.intp) for name, rows in found.items()}


def to_blame(engine: Frame, mask: NDArray[np.bool_]) -> list[tuple[Entity, list[int]]]:
    """(entity, rows) to blame: a pool of which half shows it, otherwise each replica."""
    if not mask.any():
        return []
    found = []
    for name, rows_of in members(engine).items():
        hit = [int(i) for i in rows_of if mask[i]]
        if hit and 2 * len(hit) >= len(rows_of):
            found.append((Entity("pool", name), hit))
        else:
            found += [(Entity("engine", engine.entities[i]), [i]) for i in hit]
    return found


def total(values: Array) -> float:
    """Sum ignoring what is missing; NaN when all of it is."""
    known = values[np.isfinite(values)]
    return float(known.sum()) if known.size else NAN


def mean(values: Array) -> float:
    """Mean ignoring what is missing; NaN when all of it is."""
    known = values[np.isfinite(values)]
    return float(known.sum()) / known.size if known.size else NAN
