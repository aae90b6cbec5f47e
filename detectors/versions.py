"""Whether a new version of a pool is slower than the one before it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from daemon.model import Array, Entity, Evidence, Finding, Severity

ALIKE_MIN = 5.0
"""Minutes that count as one, since noise is correlated over them. Source: docs/en/reference/stragglers.md."""


@dataclass(slots=True)
class Seen:
    """What one version showed. minutes : log step time over the load model, the middle engine of each of its last
    minutes. engine_minutes : how many values went into all of them."""

    first: float
    minutes: list[float] = field(default_factory=list)
    engine_minutes: int = 0


@dataclass(slots=True)
class VersionWatch:
    """Compares versions of one pool, at equal load, in time: a roll-out leaves few minutes with both at once.

    share : slow-down worth a word; while it is said, half of it. least : engine-minutes a version needs before it is
    judged. sigmas : standard errors of both medians that a difference must also be. recent, kept : minutes of the newer and of the older version that are compared. hold_s : how long the older
    version's figures stand against the newer; after that it is what is usual. slow : pools with a claim.
    """

    share: float = 0.10
    least: int = 12
    sigmas: float = 3.0
    recent: int = 30
    kept: int = 60
    hold_s: float = 86400.0
    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)
    slow: frozenset[str] = frozenset()

    def judge(
        self, at: float, pools: tuple[str, ...], versions: tuple[str, ...], over: Array
    ) -> list[Finding]:
        """One minute of engines. over : (engine,) log step time over what the load explains, NaN = unknown.

        The load model must not learn from the pools in `slow`, else it takes the newer version for usual.
        """
        now: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        present: defaultdict[str, set[str]] = defaultdict(set)
        for pool, version, value in zip(pools, versions, over.tolist(), strict=True):
            present[pool].add(version)
            if pool and version and value == value:
                now[pool, version].append(value)
        for (pool, version), values in now.items():
            entry = self.seen.setdefault(pool, {}).setdefault(version, Seen(at))
            entry.minutes = [*entry.minutes, statistics.median(values)][-self.kept :]
            entry.engine_minutes += len(values)
        found = [f for pool in self.seen if (f := self._compare(at, pool, present[pool])) is not None]
        self.slow = frozenset(f.entity.name for f in found)
        return found

    def _compare(self, at: float, pool: str, present: set[str]) -> Finding | None:
        known = {v: s for v, s in self.seen[pool].items() if s.engine_minutes >= self.least}
        if len(known) < 2:
            return None
        newest = max(known, key=lambda v: known[v].first)
        before = max((v for v in known if v != newest), key=lambda v: known[v].first)
        if newest not in present or at - known[newest].first > self.hold_s:
            return None
        new, old = known[newest].minutes[-self.recent :], known[before].minutes
        gap = statistics.median(new) - statistics.median(old)
        if not gap > math.log1p(self.share * (0.5 if pool in self.slow else 1.0)):
            return None
        # Few replicas wander together for minutes: what is said of them once stands, and is not begun by chance.
        if pool not in self.slow and gap < self.sigmas * _error(new, old):
            return None
        return Finding(
            at,
            "straggler",
            Entity("pool", pool),
            "deploy_regression",
            0.8,
            Severity.WARNING,
            (
                Evidence("slower_than_before", math.expm1(gap), "ratio", 0.0),
                Evidence("engine_minutes", float(known[newest].engine_minutes), ""),
            ),
            known[newest].first,
            f"version {newest} of {pool} is slower than {before} at equal load",
        )


def _error(new: list[float], old: list[float]) -> float:
    """Standard error of the difference of two medians of minutes that wander slowly, by the spread of the older ones."""
    middle = statistics.median(old)
    spread = 1.4826 * statistics.median(abs(m - middle) for m in old)
    counts = (max(1.0, len(minutes) / ALIKE_MIN) for minutes in (new, old))
    return 1.2533 * spread * math.sqrt(sum(1.0 / count for count in counts))
