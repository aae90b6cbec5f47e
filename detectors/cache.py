"""The KV cache: full, filling, thrashing, fragmented, missed, and how well speculation guesses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.pools import mean, members, to_blame, total
from detectors.stats import Streak

MINUTE_S = 60.0
FILL_MINUTES = 12
FILL_AHEAD_S = 900.0
FILL_FROM = 0.6
FILL_SURE = 0.7
BASE_MINUTES = 60.0
"""Minutes over which the usual share of hits or accepted drafts is forgotten."""
DROP_RATIO = 0.65
DROP_LEAST = 0.06
DROP_SIGMAS = 5.0
"""Times its usual wandering from minute to minute: a pool of few requests has a share that jumps."""
DROP_MINUTES = 5.0
FRAGMENTED = 0.3
LEARN_MINUTES = 20
SHARES = (
    (
        "prefix_collapse",
        "prefix_hits_s",
        "prefix_queries_s",
        200.0,
        "share of prompt tokens found in the cache",
    ),
    (
        "spec_drop",
        "spec_accepted_tokens_s",
        "spec_drafted_tokens_s",
        50.0,
        "share of drafted tokens accepted",
    ),
)
"""kind, part, whole, whole a second that is enough to judge by, words."""
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
class Usual:
    """Share that a pool usually shows, with the minutes it was learnt from and those it has been far below.

    wander : mean distance of a minute from it.
    """

    value: float = NAN
    wander: float = 0.0
    minutes: float = 0.0
    low: float = 0.0


@dataclass(slots=True)
class Cache:
    """fills : pool -> mean use of each of the last minutes. usual : "kind pool" -> share."""

    fills: dict[str, list[float]] = field(default_factory=dict)
    usual: dict[str, Usual] = field(default_factory=dict)
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
            for k, (kind, _, _, least, words) in enumerate(SHARES):
                part, whole = total(mine[:, 1 + 2 * k]), total(mine[:, 2 + 2 * k])
                if whole > least and part == part:
                    found += self._share(engine.at, pool, kind, part / whole, whole, words)
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

    def _share(self, at: float, pool: str, kind: str, now: float, whole: float, words: str) -> list[Finding]:
        """A share that halves against its own past and stays there. What is claimed is not learnt from."""
        usual = self.usual.setdefault(f"{kind} {pool}", Usual())
        is_known = usual.minutes >= LEARN_MINUTES
        least = max(DROP_LEAST, DROP_SIGMAS * 1.25 * usual.wander)
        is_low = is_known and now < DROP_RATIO * usual.value and usual.value - now > least
        usual.low = usual.low + 1.0 if is_low else 0.0
        if not is_low:
            usual.minutes += 1.0
            weight = 1.0 / min(usual.minutes, BASE_MINUTES)
            away = 0.0 if usual.value != usual.value else abs(now - usual.value)
            usual.wander += (away - usual.wander) * weight
            usual.value = now if usual.value != usual.value else usual.value + (now - usual.value) * weight
        if usual.low < DROP_MINUTES:
            return []
        evidence = (
            Evidence("share", now, "ratio", usual.value),
            Evidence("judged_by", whole, "tokens/s"),
            Evidence("minutes", usual.low, ""),
        )
        since = at - usual.low * MINUTE_S
        entity = Entity("pool", pool)
        return [
            say(
                at, f"serving.{kind}", entity, kind, 0.7, Severity.WARNING, *evidence, since=since,
                text=f"the {words} fell from {usual.value:.0%} to {now:.0%}",
                rejected=("little traffic: enough to judge by", "a dip: it has lasted for minutes"),
            )
        ]  # fmt: skip
