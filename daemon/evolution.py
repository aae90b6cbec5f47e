"""Which tier a cluster is, and what the white paper would have one consider next."""

from __future__ import annotations

import numpy as np

from daemon.hours import DAY_H
from daemon.model import NAN, Frames
from daemon.policy import Policy, tier_of
from daemon.posture import Day

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


def advice(day: Day, frames: Frames, policy: Policy, spent: float = NAN) -> list[str]:
    """What the white paper would have one consider next, each with its evidence; empty when nothing speaks for a change.

    spent : cost over revenue, NaN = not known.
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
    if spent > COSTLY:
        said.append(
            f"inference costs {spent:.0%} of what it earns: co-locate offline work (pools: lendable) and look at spot nodes"
        )
    return said
