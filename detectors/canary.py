"""Whether the newest version of a pool fails more requests than the others beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from daemon.model import Entity, Evidence, Finding, Frames, Severity
from detectors.claims import say


@dataclass(slots=True)
class Tally:
    """first : when the version was seen first. asked, failed : requests of the last `tau_s`, fading."""

    first: float
    asked: float = 0.0
    failed: float = 0.0


@dataclass(slots=True)
class CanaryDetector:
    """Compares shares of failed requests at the same time, so that a storm that hits all versions blames none.

    tau_s : over how long requests are counted. least : requests a version needs before it is judged. gap : share of
    failures over that of the others worth a word. z : how unlikely by chance, in standard deviations of two shares.
    seen : pool -> version -> its tally. Sources: gap and tau by judgement; z = 4 is one in 30,000.
    """

    tau_s: float = 600.0
    least: float = 200.0
    gap: float = 0.02
    z: float = 4.0
    at: float = math.nan
    seen: dict[str, dict[str, Tally]] = field(default_factory=dict)

    def update(self, frames: Frames) -> list[Finding]:
        engine = frames["engine"]
        passed_s, self.at = frames.at - self.at, frames.at
        blank = ("",) * len(engine.entities)
        pools, versions = engine.facts.get("pool", blank), engine.facts.get("version", blank)
        present = {
            (pool, version) for pool, version in set(zip(pools, versions, strict=True)) if pool and version
        }
        for pool, version in sorted(present):
            self.seen.setdefault(pool, {}).setdefault(version, Tally(frames.at))
        mixed = {
            pool
            for pool, version in present
            if any((pool, other) in present for other in self.seen[pool] if other != version)
        }
        if not passed_s > 0:
            return []
        # What a version did in an earlier roll-out was not done beside what the other does in this one.
        keep = math.exp(-passed_s / self.tau_s)
        for tallies in self.seen.values():
            for tally in tallies.values():
                tally.asked, tally.failed = tally.asked * keep, tally.failed * keep
        if not mixed or passed_s > self.tau_s:
            return []
        columns = engine.columns(
            ("lb_done_per_s", "lb_errors_per_s", "requests_done_per_s", "requests_failed_per_s")
        )
        for pool, version, row in zip(pools, versions, columns.tolist(), strict=True):
            # The gateway's word counts where there is one: an engine that is dead counts no failure.
            done, failed = (row[0], row[1]) if row[0] == row[0] and row[1] == row[1] else (row[2], row[3])
            if pool in mixed and version and done == done and failed == failed:
                tally = self.seen[pool][version]
                tally.asked += passed_s * (done + failed)
                tally.failed += passed_s * failed
        return [finding for pool in sorted(mixed) for finding in self._judge(frames.at, pool)]

    def _judge(self, at: float, pool: str) -> list[Finding]:
        tallies = self.seen[pool]
        newest = max(tallies, key=lambda version: tallies[version].first)
        mine = tallies[newest]
        asked = sum(t.asked for v, t in tallies.items() if v != newest)
        failed = sum(t.failed for v, t in tallies.items() if v != newest)
        if mine.asked < self.least or asked < self.least:
            return []
        own, peer = mine.failed / mine.asked, failed / asked
        both = (mine.failed + failed) / (mine.asked + asked)
        spread = math.sqrt(both * (1.0 - both) * (1.0 / mine.asked + 1.0 / asked))
        if own - peer < self.gap or not own - peer > self.z * spread:
            return []
        evidence = (Evidence("failed", own, "ratio", peer), Evidence("requests", mine.asked, ""))
        text = f"version {newest} of {pool} fails {own:.1%} of its requests, the others {peer:.1%}"
        return [
            say(
                at, "canary.errors", Entity("pool", pool), "deploy_regression", 0.9, Severity.WARNING, *evidence,
                since=mine.first, text=text, rejected=("a storm that hits all: the versions beside it do not fail",),
            )
        ]  # fmt: skip
