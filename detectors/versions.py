"""Whether a new version of a pool is slower than the one before it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import Array, Entity, Evidence, Finding, Severity


@dataclass(slots=True)
class Seen:
    """What one version showed: log step time over the load model, a value an engine and minute."""

    first: float
    values: list[float] = field(default_factory=list)


@dataclass(slots=True)
class VersionWatch:
    """Compares versions of one pool, at equal load, in time: a roll-out leaves few minutes with both at once.

    share : slow-down worth a word. least : engine-minutes a version needs before it is judged. hold_s : how long
    the older version's figures stand against the newer.
    """

    share: float = 0.10
    least: int = 12
    kept: int = 240
    hold_s: float = 86400.0
    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)

    def judge(
        self, at: float, pools: tuple[str, ...], versions: tuple[str, ...], over: Array
    ) -> list[Finding]:
        """One minute of engines. over : (engine,) log step time over what the load explains, NaN = unknown.

        The load model follows the fleet slowly, so a whole new version stands out for hours.
        """
        for pool, version, value in zip(pools, versions, over.tolist(), strict=True):
            if pool and version and value == value:
                entry = self.seen.setdefault(pool, {}).setdefault(version, Seen(at))
                entry.values = [*entry.values, value][-self.kept :]
        found = []
        for pool, known in self.seen.items():
            present = {v for p, v in zip(pools, versions, strict=True) if p == pool}
            known = {v: s for v, s in known.items() if len(s.values) >= self.least}
            if len(known) < 2:
                continue
            newest = max(known, key=lambda v: known[v].first)
            before = max((v for v in known if v != newest), key=lambda v: known[v].first)
            if newest not in present or at - known[newest].first > self.hold_s:
                continue
            # The newest version by its own first minutes, before the load model has taken it for normal.
            gap = float(np.median(known[newest].values[: self.kept // 2]) - np.median(known[before].values))
            if gap > np.log1p(self.share):
                evidence = (
                    Evidence("slower_than_before", float(np.expm1(gap)), "ratio", 0.0),
                    Evidence("engine_minutes", float(len(known[newest].values)), ""),
                )
                text = f"version {newest} of {pool} is slower than {before} at equal load"
                entity = Entity("pool", pool)
                severity = Severity.WARNING
                found.append(
                    Finding(
                        at,
                        "straggler",
                        entity,
                        "deploy_regression",
                        0.8,
                        severity,
                        evidence,
                        known[newest].first,
                        text,
                    )
                )
        return found
