"""Small frames made by hand, for stories about detectors, the plan and the core."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from daemon.model import Detector, Event, Finding, Frame, Frames

Rows = Mapping[str, Mapping[str, float]]
"""entity -> signal -> value; what is not named was not measured."""


def frame(
    kind: str,
    at: float,
    rows: Rows,
    facts: Mapping[str, Mapping[str, str]] | None = None,
    age_s: Mapping[str, float] | None = None,
    revision: int = 1,
) -> Frame:
    """A Frame of the named rows. facts : entity -> key -> value. age_s : entity -> age, 0 where not named."""
    signals = tuple(dict.fromkeys(s for row in rows.values() for s in row))
    known, ages = facts or {}, age_s or {}
    keys = dict.fromkeys(k for given in known.values() for k in given)
    return Frame(
        at=at,
        kind=kind,
        entities=tuple(rows),
        signals=signals,
        values=np.array([[row.get(s, math.nan) for s in signals] for row in rows.values()]).reshape(
            len(rows), len(signals)
        ),
        age_s=np.array([ages.get(name, 0.0) for name in rows]),
        facts={k: tuple(known.get(name, {}).get(k, "") for name in rows) for k in keys},
        revision=revision,
    )


def frames(at: float, *each: Frame, events: Iterable[Event] = ()) -> Frames:
    return Frames(at, {f.kind: f for f in each}, tuple(events))


def kinds(found: Iterable[Finding]) -> list[tuple[str, str]]:
    """(pattern, entity) of each finding, sorted."""
    return sorted((f.kind, str(f.entity)) for f in found)


def last(detector: Detector, stream: Iterable[Frames]) -> list[Finding]:
    """What the detector says to the last frames of a stream."""
    found: list[Finding] = []
    for given in stream:
        found = detector.update(given)
    return found
