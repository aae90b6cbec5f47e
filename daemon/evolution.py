"""Which tier a cluster is, and what the white paper would have one consider next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daemon.hours import DAY_H
from daemon.model import NAN, Array, Frames
from daemon.policy import Policy, tier_of
from daemon.posture import Day

SMALL_MOST, MEDIUM_MOST = 64, 400
"""GPUs of the largest small and of the largest medium cluster (white paper 2.1)."""
PAIRS_LEAST = 7
WEEKS_MOST = 26.0
"""Nobody plans on a line drawn further than half a year."""
COSTLY = 0.2
"""Share of revenue above which the white paper (2.5.2) advises co-location."""


def tier(frames: Frames, policy: Policy) -> tuple[str, str]:
    """The cluster's tier, and why. ("", why) while nothing is seen."""
    nodes, gpus = len(frames["node"].entities), len(frames["gpu"].entities)
    nodes = nodes or len({name.split("/", 1)[0] for name in frames["gpu"].entities})
    seen = f"{gpus} GPUs on {nodes} nodes"
    if policy.tier:
        return policy.tier, f"set in the configuration; seen are {seen}"
    found = tier_of(nodes, gpus)
    return found, seen if found else "no GPU has been seen yet"


def growth(daily: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """GPUs that serve at the peak of a day: how many more each day, at a quarter, the middle and three quarters of all pairs of days.

    daily : (day, GPUs). Whole weeks of difference alone are compared, so that a weekend is no shrinking. NaN below two weeks.
    Source: Theil-Sen, whose slope a few strange days do not move.
    """
    slopes = [
        (b - a) / (later - earlier)
        for i, (earlier, a) in enumerate(daily)
        for later, b in daily[i + 1 :]
        if (later - earlier) % 7 == 0
    ]
    if len(slopes) < PAIRS_LEAST:
        return NAN, NAN, NAN
    low, middle, high = np.quantile(np.array(slopes), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def of_demand(
    pools: Sequence[tuple[Array, Array, float]], own: Sequence[Sequence[float]]
) -> list[Sequence[float]]:
    """(day, GPUs) that the demand of each past day needed at its peak; days on which a pool has no value are left out.

    pools : times, requests in flight and GPUs a request needs, of each pool. own : days that were measured: where both are
    known they say by how much a fleet stands above its bare need, so that the days before can be told in the same measure.
    """
    peaks: dict[float, list[float]] = {}
    for at, requests, gpus_each in pools:
        best: dict[float, float] = {}
        for when, value in zip((at // 86_400.0).tolist(), requests.tolist(), strict=True):
            if value == value:
                best[when] = max(best.get(when, 0.0), value * gpus_each)
        for when, value in best.items():
            peaks.setdefault(when, []).append(value)
    days = {when: sum(parts) for when, parts in peaks.items() if len(parts) == len(pools)}
    both = [gpus / days[when] for when, gpus in own[:-1] if days.get(when, 0.0) > 0]
    above = float(np.median(both)) if both else 1.0
    return [(when, above * gpus) for when, gpus in sorted(days.items())]


def merged(own: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Days as they were measured, and before them as demand of the past would have needed. Today is not over and is left out."""
    begin = own[0][0] if own else np.inf
    return [*(day for day in before if day[0] < begin), *own[:-1]]


def _crossing(daily: Sequence[Sequence[float]], found: str) -> list[str]:
    """When the next tier begins, if the fleet grows on as it did; that it is not known yet, while that is so."""
    edge = {"small": SMALL_MOST, "medium": MEDIUM_MOST}.get(found)
    if edge is None:
        return []
    low, middle, high = growth(daily)
    if low != low:
        return [
            f"whether the next tier ({edge} GPUs) is near is not known: {len(daily)} days of demand are, two weeks are needed; "
            "sources.prometheus with history gives them at the first start"
        ]
    # Where not even three of four pairs of days show growth there is none to speak of.
    if not low > 0:
        return []
    last = daily[-1][0]
    stands = float(np.median([gpus + middle * (last - at) for at, gpus in daily[-7:]]))
    weeks, soonest, latest = ((edge - stands) / slope / 7.0 for slope in (middle, high, low))
    if not 0 < weeks <= WEEKS_MOST:
        return []
    after = "medium" if found == "small" else "large"
    return [
        f"serving needs {middle * 7:.1f} GPUs more each week ({stands:.0f} at the peak now): it crosses {edge} GPUs in about {weeks:.0f} weeks "
        f"({soonest:.0f} to {latest:.0f}); plan the {after} architecture before"
    ]


def advice(
    day: Day, frames: Frames, policy: Policy, spent: float = NAN, before: Sequence[Sequence[float]] = ()
) -> list[str]:
    """What the white paper would have one consider next, each with its evidence; empty when nothing speaks for a change.

    spent : cost over revenue, NaN = not known. before : (day, GPUs) from demand of the past, for days without measurements.
    """
    found, said = tier(frames, policy)[0], []
    pool = frames["pool"]
    rate = pool.column("requests_done_per_s")
    rps = float(np.nansum(rate)) if np.isfinite(rate).any() else NAN
    strict = [p.name for p in policy.pools if p.slo_target > 0.999]
    if found == "small" and rps > 1000.0 and strict:
        said.append(
            f"{rps:.0f} requests/s, and {', '.join(strict)} ask for more than 99.9 %: a medium architecture "
            "(several nodes a pool, an orchestrator, N+1) carries that"
        )
    regions = {r for r in frames["node"].facts.get("region", ()) if r}
    if len(regions) > 1 and found != "large":
        said.append(
            f"{len(regions)} regions ({', '.join(sorted(regions))}): a large architecture with regional weights"
        )
    busy = day.hours.peak("gpu_utilisation")
    if found in ("medium", "large") and day.hours.seen_h("gpu_utilisation") >= DAY_H - 1 and busy < 0.25:
        said.append(
            f"the busiest hour of the day used {busy:.0%} of the GPUs: the cluster is over-built for its load; "
            "lend GPUs, or serve with fewer"
        )
    said += _crossing(merged(day.daily, before), found)
    if spent > COSTLY:
        said.append(
            f"inference costs {spent:.0%} of what it earns: co-locate offline work (pools: lendable) and look at spot nodes"
        )
    return said
