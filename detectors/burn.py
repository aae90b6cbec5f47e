"""How fast a pool's error budget burns, over several windows at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.model import NAN, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say

SPANS_S = (300.0, 1800.0, 3600.0, 6 * 3600.0)
NAMES = ("burn_5m", "burn_30m", "burn_1h", "burn_6h")


@dataclass(slots=True)
class Burn:
    """rates : pool -> multiples of the budget over SPANS_S, exponentially forgotten. at : the last update.

    A minute without a request neither burns nor heals.
    """

    rates: dict[str, list[float]] = field(default_factory=dict)
    at: float = NAN

    def update(self, pool: Frame, target: float, fast: float, slow: float) -> list[Finding]:
        """fast : over 5 min and 1 h; slow : over 30 min and 6 h. target : objective of a pool that has none of its own.

        Source: multi-window, multi-burn-rate alerts of the SRE workbook, for a budget of 30 days.
        """
        over, own = pool.column("over_slo_ratio"), pool.column("slo_target")
        elapsed = pool.at - self.at if self.at == self.at else 0.0
        self.at = pool.at
        found = []
        for i, name in enumerate(pool.entities):
            rates = self.rates.setdefault(name, [0.0] * len(SPANS_S))
            goal = float(own[i]) if 0.0 < own[i] < 1.0 else target
            if over[i] == over[i]:
                value = float(over[i]) / (1.0 - goal)
                for k, span in enumerate(SPANS_S):
                    rates[k] += (value - rates[k]) * min(1.0, elapsed / span)
            is_fast = min(rates[0], rates[2]) > fast
            if is_fast or min(rates[1], rates[3]) > slow:
                found.append(_claim(pool, i, rates, goal, is_fast, fast if is_fast else slow))
        for name in self.rates.keys() - set(pool.entities):
            del self.rates[name]
        return found


def _claim(pool: Frame, i: int, rates: list[float], goal: float, is_fast: bool, limit: float) -> Finding:
    evidence = [Evidence(n, r, "x budget", limit) for n, r in zip(NAMES, rates, strict=True)]
    evidence += [
        Evidence("objective", goal, "ratio"),
        Evidence("ttft_p95", float(pool.column("ttft_p95_s_max")[i]), "s"),
    ]
    short, long = ("5 min", "1 h") if is_fast else ("30 min", "6 h")
    return say(
        pool.at,
        "serving.burn_fast" if is_fast else "serving.burn_slow",
        Entity("pool", pool.entities[i]),
        "slo_burn",
        0.9,
        Severity.CRITICAL if is_fast else Severity.WARNING,
        *evidence,
        rejected=(
            f"a burst that is over: it still burns in the last {short}",
            f"a burst too short to matter: it burns over {long} too",
        ),
    )
