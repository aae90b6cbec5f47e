"""Shares of a pool that fall against its own past and stay there: prefix hits, accepted drafts."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.model import NAN, Entity, Evidence, Finding, Severity
from detectors.claims import say

BASE_MINUTES = 60.0
"""Minutes over which the usual share is forgotten."""
WINDOWS = (5, 10)
"""Minutes taken together: a share of few requests jumps from minute to minute and is steady over ten."""
DROP_RATIO = 0.65
DROP_LEAST = 0.06
DROP_SIGMAS = 5.5
"""Times the usual wandering of a window. On tune fleets it is 0.014 over five minutes at five requests a second, 0.025 at one."""
MEAN_TO_SIGMA = 1.25
LEARN_MINUTES = 20
WORDS = {
    "prefix_collapse": "share of prompt tokens found in the cache",
    "spec_drop": "share of drafted tokens accepted",
}


@dataclass(slots=True)
class Share:
    """One share of one pool.

    recent : (part, whole) of the last minutes, newest last, twice the longest window. value : what is usual, NaN = nothing learnt. learnt : minutes
    it was learnt from. wander : mean distance of each window from it. low : minutes it has been far below.
    """

    recent: list[tuple[float, float]] = field(default_factory=list)
    value: float = NAN
    learnt: float = 0.0
    wander: list[float] = field(default_factory=lambda: [0.0] * len(WINDOWS))
    low: float = 0.0

    def look(self, at: float, pool: str, kind: str, part: float, whole: float) -> list[Finding]:
        """Take one minute in: part and whole a second. A claim stands for every minute that shows it."""
        self.recent.append((part, whole))
        now = part / whole
        shares = [_of(self.recent[-minutes:], minutes) for minutes in WINDOWS]
        lasting = [s for k, s in enumerate(shares) if self._is_low(k, s)]
        # A window still remembers what is over.
        is_low = bool(lasting) and now < DROP_RATIO * self.value
        self.low = self.low + 1.0 if is_low else 0.0
        if len(self.recent) > 2 * max(WINDOWS):
            # What no window of now holds any more teaches, so that the first minutes of a drop are usual neither as a share nor as a wandering
            # when it is seen.
            past = [_of(self.recent[:minutes], minutes) for minutes in WINDOWS]
            leaving, total = self.recent.pop(0)
            if not lasting:
                self._learn(leaving / total, past)
        if not is_low:
            return []
        evidence = (
            Evidence("share", lasting[0], "ratio", self.value),
            Evidence("judged_by", whole, "tokens/s"),
            Evidence("minutes", self.low, ""),
        )
        began = at - 60.0 * (self.low + WINDOWS[0] - 1.0)
        text = f"the {WORDS[kind]} fell from {self.value:.0%} to {lasting[0]:.0%}"
        rejected = ("little traffic: enough to judge by", "a dip: it has lasted for minutes")
        return [
            say(
                at, f"serving.{kind}", Entity("pool", pool), kind, 0.7, Severity.WARNING, *evidence, since=began,
                text=text, rejected=rejected,
            )
        ]  # fmt: skip

    def _is_low(self, k: int, share: float) -> bool:
        least = max(DROP_LEAST, DROP_SIGMAS * MEAN_TO_SIGMA * self.wander[k])
        is_far = share < DROP_RATIO * self.value and self.value - share > least
        return self.learnt >= LEARN_MINUTES and is_far

    def _learn(self, share: float, windows: list[float]) -> None:
        self.learnt += 1.0
        weight = 1.0 / min(self.learnt, BASE_MINUTES)
        self.value = share if self.value != self.value else self.value + (share - self.value) * weight
        for k, window in enumerate(windows):
            self.wander[k] += (abs(window - self.value) - self.wander[k]) * weight


def _of(minutes: list[tuple[float, float]], least: int) -> float:
    """Share over several minutes together, NaN where they are not there yet."""
    if len(minutes) < least:
        return NAN
    return sum(part for part, _ in minutes) / sum(whole for _, whole in minutes)
