"""The KV cache: full, filling, thrashing, fragmented, missed, and how well speculation guesses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.pools import mean, members, to_blame, total
from detectors.shares import Share
from detectors.stats import Streak

MINUTE_S = 60.0
FILL_MINUTES = 12
FILL_AHEAD_S = 900.0
FILL_FROM = 0.6
FILL_SURE = 0.7
FRAGMENTED = 0.3
SHARES = (
    ("prefix_collapse", "prefix_hits_s", "prefix_queries_s", 200.0),
    ("spec_drop", "spec_accepted_tokens_s", "spec_drafted_tokens_s", 50.0),
)
"""kind, part, whole, whole a second that is enough to judge by."""
SIGNALS = (
    "kv_used_ratio",
    "prefix_hits_s",
    "prefix_queries_s",
    "spec_accepted_tokens_s",
    "spec_drafted_tokens_s",
    "kv_used_tokens",
    "kv_capacity_tokens",
    "kv_used_blocks",
    "kv_block_tokens",
)


@dataclass(slots=True)
class Cache:
    """fills : pool -> mean use of each of the last minutes. shares : "kind pool" -> share."""

    fills: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    fragmented: Streak = field(default_factory=lambda: Streak(150.0))
    held: Streak = field(default_factory=Streak)

    def full(
        self, engine: Frame, kv_full: float, thrash_per_s: float, replica_full_s: float
    ) -> list[Finding]:
        """KV full and thrashing; of the pool when at least half of its replicas are, else of the replica."""
        kv, thrash, waiting = engine.columns(("kv_used_ratio", "preemptions_per_s", "waiting")).T
        # A full cache that keeps nobody waiting is a cache well used.
        full = (kv > kv_full) & ((waiting > 0) | (thrash > 0))
        thrashing = (thrash > thrash_per_s) & (kv > 0.8)
        if not (full | thrashing).any():
            return []
        found = []
        for kind, mask in (("kv_saturated", full), ("kv_thrash", thrashing)):
            blamed = to_blame(engine, mask)
            lasting = self.held.held(engine.at, [f"{kind} {e.name}" for e, _ in blamed if e.kind == "engine"])
            for entity, hit in blamed:
                # One replica's cache fills now and then by the luck of long requests.
                if entity.kind == "engine" and lasting[f"{kind} {entity.name}"] < replica_full_s:
                    continue
                evidence = (
                    Evidence("kv_used", mean(kv[hit]), "ratio", kv_full),
                    Evidence("preemptions", total(thrash[hit]), "1/s"),
                    Evidence("waiting", total(waiting[hit]), "requests"),
                    Evidence("replicas", float(len(hit)), ""),
                )
                why = ("a cache well used: requests wait for it or are preempted",)
                rule = f"serving.{kind}"
                found.append(
                    say(engine.at, rule, entity, kind, 0.9, Severity.WARNING, *evidence, rejected=why)
                )
        return found

    def slowly(self, engine: Frame) -> list[Finding]:
        """What moves over minutes; to be called once a minute."""
        table = engine.columns(SIGNALS)
        found = []
        for pool, rows in members(engine).items():
            mine = table[rows]
            found += self._filling(engine.at, pool, mine[:, 0])
            found += self._fragmentation(engine.at, pool, mine[:, 5:])
            for k, (kind, _, _, least) in enumerate(SHARES):
                part, whole = total(mine[:, 1 + 2 * k]), total(mine[:, 2 + 2 * k])
                if whole > least and part == part:
                    share = self.shares.setdefault(f"{kind} {pool}", Share())
                    found += share.look(engine.at, pool, kind, part, whole)
        for pool in self.fills.keys() - members(engine).keys():
            del self.fills[pool]
        return found

    def _filling(self, at: float, pool: str, kv: Array) -> list[Finding]:
        """Time until the cache is full, while it rises steadily: a line through the last minutes that fits."""
        used = mean(kv)
        if used != used:
            return []
        fills = self.fills.setdefault(pool, [])
        fills[:] = [*fills, used][-FILL_MINUTES:]
        if len(fills) < FILL_MINUTES or not FILL_FROM < fills[-1] < 0.98:
            return []
        minutes, values = np.arange(float(FILL_MINUTES)), np.array(fills)
        slope, start = np.polyfit(minutes, values, 1)
        spread = float(((values - values.mean()) ** 2).sum())
        left = float(((values - start - slope * minutes) ** 2).sum())
        sure = 1.0 - left / spread if spread > 0 else 0.0
        full_s = (1.0 - fills[-1]) / slope * MINUTE_S if slope > 0 else np.inf
        if sure < FILL_SURE or full_s > FILL_AHEAD_S:
            return []
        evidence = (
            Evidence("kv_used", fills[-1], "ratio"),
            Evidence("rises_by", float(slope), "ratio/min"),
            Evidence("time_to_full", float(full_s), "s"),
            Evidence("fit", sure, "R2"),
        )
        text = f"at this pace the KV cache is full in {full_s / 60.0:.0f} min"
        entity = Entity("pool", pool)
        return [say(at, "serving.kv_filling", entity, "kv_filling", 0.6, Severity.INFO, *evidence, text=text)]

    def _fragmentation(self, at: float, pool: str, table: Array) -> list[Finding]:
        """Blocks reserved against tokens really held. NaN where an engine does not tell both: most do not."""
        used, capacity, blocks, size = table.T
        if not np.isfinite(used * blocks).any():
            return []
        with np.errstate(divide="ignore", invalid="ignore"):
            lost = mean(1.0 - used / (blocks * size))
        names = [pool] if lost > FRAGMENTED and total(used) > 0.1 * total(capacity) else []
        return [
            say(
                at,
                "serving.kv_fragmented",
                Entity("pool", pool),
                "kv_fragmented",
                0.6,
                Severity.INFO,
                Evidence("reserved_not_used", lost, "ratio", 0.1),
                Evidence("held", held_s, "s"),
            )
            for held_s in self.fragmented.held(at, names).values()
            if held_s >= 600.0
        ]
