"""Hours of a pool that say nothing of demand, because an incident of ours had taken its replicas."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Incident
from daemon.patterns import PATTERNS

DAY_S = 86400.0
LEFT_MAX = 0.7
"""With fewer of the usual replicas ready than this share, requests wait, leave or are turned away: what is seen is what was
served, not what was wanted. Source: judgement; one replica of four is within a spare."""


def took(incidents: Sequence[Incident], since: float, until: float) -> list[tuple[float, float]]:
    """Stretches within [since, until) of incidents that may have taken replicas. A shortage forecast takes none."""
    found = []
    for incident in incidents:
        pattern = PATTERNS.get(incident.kind)
        if pattern is not None and pattern.family == "capacity":
            continue
        begun = incident.since if incident.since == incident.since else incident.opened
        ended = incident.closed if incident.closed == incident.closed else until
        if ended > since and begun < until:
            found.append((begun, ended))
    return sorted(found)


def masked(at: Array, ready: Array, stretches: Collection[tuple[float, float]]) -> NDArray[np.bool_]:
    """(row,) bool: whether a pool's replicas were missing then, by the day before the incident.

    at, ready : (row,) left edges and replicas that were ready, in order of time. A pool that was scaled down at night is
    not masked: no incident stood.
    """
    found = np.zeros(at.size, dtype=bool)
    for begun, ended in stretches:
        before = ready[(at >= begun - DAY_S) & (at < begun)]
        usual = float(np.median(before)) if before.size else NAN
        found |= (at >= begun) & (at < ended) & (ready < LEFT_MAX * usual)
    return found
