"""The controllers others run, each as its documentation has it, over many pools at once.

Source of the rules: Kubernetes HPA v2, Knative KPA, KEDA, AIBrix APA, llm-d Workload Variant Autoscaler, Ray Serve,
Dynamo planner in sla mode; what they do without data included. Where a controller looks more often than there are steps, it
looks at every step (KPA every 2 s, APA every 10 s).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from daemon.model import Array

Numbers = Mapping[str, Array]


@dataclass(slots=True)
class Seen:
    """What a scrape of each pool shows, (world,) each; NaN = no answer.

    ready, starting : replicas. running, waiting : requests in the pool. kv : share of the cache in use, mean of the
    replicas. itl_s : mean. ttft_s, queue_s : 95 % levels. prefill_s : mean of a request. done_s, prompt_s, output_s :
    requests, prompt and generated tokens a second. arrived_s : sessions a second at the balancer. late : share of
    requests over an objective.
    """

    ready: Array
    starting: Array
    running: Array
    waiting: Array
    kv: Array
    itl_s: Array
    ttft_s: Array
    queue_s: Array
    prefill_s: Array
    done_s: Array
    prompt_s: Array
    output_s: Array
    arrived_s: Array
    late: Array


class Policy(Protocol):
    """decide : (world,) replicas there are to be, from what was seen in the last step."""

    def decide(self, step: int, seen: Seen, now: Array) -> Array: ...


@dataclass(slots=True)
class Pools:
    """What every controller is told of its pools, (world,) each. profiled : requests per second of a replica.

    step_s : time from one decision to the next.
    """

    most: Array
    profiled: Array
    step_s: float

    def is_due(self, step: int, period_s: float) -> bool:
        return step % self.steps(period_s) == 0

    def steps(self, period_s: float) -> int:
        return max(1, round(period_s / self.step_s))


class Highest:
    """Largest recommendation of a window, as stabilisation does it."""

    def __init__(self, steps: int) -> None:
        self.kept: deque[Array] = deque(maxlen=steps)

    def of(self, wanted: Array) -> Array:
        self.kept.append(wanted)
        return np.asarray(np.max(self.kept, axis=0))


@dataclass
class Static:
    """As many as ever needed. share : of the replicas there may be."""

    pools: Pools
    given: Numbers

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        return np.ceil(self.given["share"] * self.pools.most)


def _grow_limit(now: Array) -> Array:
    return np.maximum(2.0 * now, now + 4.0)


@dataclass
class Hpa:
    """Kubernetes HPA on mean KV use and mean queue: the larger of both recommendations."""

    pools: Pools
    given: Numbers
    past: Highest = field(init=False)

    def __post_init__(self) -> None:
        self.past = Highest(self.pools.steps(300.0))

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        ready = np.maximum(seen.ready, 1.0)
        found = np.zeros_like(now)
        for value, target in ((seen.kv, self.given["kv"]), (seen.waiting / ready, self.given["queue"])):
            ratio = value / target
            # Missing and unready pods count as nothing when growing, as the target when shrinking.
            grown = ratio * ready / np.maximum(now, 1.0)
            shrunk = (ratio * ready + (now - ready)) / np.maximum(now, 1.0)
            used = np.where(ratio > 1, np.maximum(grown, 1.0), np.minimum(shrunk, 1.0))
            held = np.where(np.abs(used - 1.0) <= 0.1, now, np.ceil(used * now - 1e-9))
            found = np.maximum(found, np.where(np.isnan(value), now, held))
        kept = self.past.of(found)
        return np.where(found > now, np.minimum(found, _grow_limit(now)), np.minimum(kept, now))


@dataclass
class Keda:
    """KEDA: requests over a threshold, an empty answer as 0 unless told otherwise, through HPA."""

    pools: Pools
    given: Numbers
    past: Highest = field(init=False)

    def __post_init__(self) -> None:
        self.past = Highest(self.pools.steps(300.0))

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        if not self.pools.is_due(step, 30.0):
            return now
        total = seen.running + seen.waiting
        null = np.where(self.given["ignore_null"] > 0.5, 0.0, np.nan)
        total = np.where(np.isnan(total), null, total)
        wanted = np.ceil(total / self.given["threshold"])
        ratio = total / self.given["threshold"] / np.maximum(now, 1.0)
        wanted = np.where((np.abs(ratio - 1.0) <= 0.1) | np.isnan(total), now, wanted)
        kept = self.past.of(wanted)
        return np.where(wanted > now, np.minimum(wanted, _grow_limit(now)), np.minimum(kept, now))


@dataclass
class Kpa:
    """Knative: stable window of 60 s, panic over one step when it asks for twice what is ready."""

    pools: Pools
    given: Numbers
    window: deque[Array] = field(init=False)
    panic_left: Array | None = None
    top: Array | None = None

    def __post_init__(self) -> None:
        self.window = deque(maxlen=self.pools.steps(60.0))

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        total = seen.running + seen.waiting
        if self.panic_left is None or self.top is None:
            self.panic_left, self.top = np.zeros_like(now), np.zeros_like(now)
        blind = np.isnan(total)
        self.window.append(total)
        known = np.isfinite(self.window)
        stable = np.where(known, self.window, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        target = self.given["target"] * 0.7
        ready = np.maximum(np.nan_to_num(seen.ready, nan=1.0), 1.0)
        low = np.floor(ready / 2.0)
        calm = np.clip(np.ceil(stable / target), low, 1000.0 * ready)
        hot = np.clip(np.ceil(np.nan_to_num(total) / target), low, 1000.0 * ready)
        is_panic = hot / ready >= 2.0
        self.panic_left = np.where(
            is_panic, float(self.pools.steps(60.0)), np.maximum(self.panic_left - 1.0, 0.0)
        )
        self.top = np.where(self.panic_left > 0, np.maximum(self.top, hot), 0.0)
        return np.where(blind, now, np.where(self.panic_left > 0, np.maximum(self.top, now), calm))


@dataclass
class Apa:
    """AIBrix: windowed mean a pod, at most twice and at least half, shrinks to the maximum of 300 s."""

    pools: Pools
    given: Numbers
    window: deque[Array] = field(init=False)
    past: Highest = field(init=False)

    def __post_init__(self) -> None:
        self.window = deque(maxlen=self.pools.steps(60.0))
        self.past = Highest(self.pools.steps(300.0))

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        each = (seen.running + seen.waiting) / np.maximum(seen.ready, 1.0)
        blind = np.isnan(each)
        self.window.append(np.where(blind, self.window[-1] if self.window else self.given["target"], each))
        share = np.mean(self.window, axis=0) / self.given["target"]
        wanted = np.where(share > 1.1, np.minimum(np.ceil(now * share), 2.0 * now), now)
        wanted = np.where(share < 0.9, np.maximum(np.ceil(now * share), np.ceil(now / 2.0)), wanted)
        kept = self.past.of(wanted)
        return np.where(blind, now, np.where(wanted > now, wanted, np.minimum(kept, now)))


@dataclass
class Wva:
    """llm-d: one more when spare KV or spare queue is short, one less when both would still do, every minute."""

    pools: Pools
    given: Numbers

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        if not self.pools.is_due(step, 60.0):
            return now
        ready = np.maximum(seen.ready, 1.0)
        queue, kv_full = seen.waiting / ready, self.given["kv"]
        is_full = (seen.kv >= kv_full) | (queue >= 5.0)
        spare_kv, spare_queue = kv_full - seen.kv, 5.0 - queue
        is_short = is_full | (spare_kv < self.given["spare"]) | (spare_queue < 3.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fewer = ready / (ready - 1.0)
            can_spare = (kv_full - seen.kv * fewer >= self.given["spare"]) & (5.0 - queue * fewer >= 3.0)
        pending = seen.starting > 0
        found = now + np.where(is_short & ~pending, 1.0, 0.0)
        found = found - np.where(~is_short & can_spare & (ready > 1) & ~pending, 1.0, 0.0)
        return np.where(np.isnan(seen.kv), now, found)


@dataclass
class Ray:
    """Ray Serve: ongoing requests over the target, 30 s of one sign to grow and 600 s to shrink."""

    pools: Pools
    given: Numbers
    window: deque[Array] = field(init=False)
    above: Array | None = None
    below: Array | None = None

    def __post_init__(self) -> None:
        self.window = deque(maxlen=self.pools.steps(30.0))

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        if self.above is None or self.below is None:
            self.above, self.below = np.zeros_like(now), np.zeros_like(now)
        total = seen.running + seen.waiting
        blind = np.isnan(total)
        self.window.append(np.where(blind, self.window[-1] if self.window else 0.0, total))
        wanted = np.ceil(np.mean(self.window, axis=0) / self.given["target"])
        self.above = np.where(wanted > now, self.above + self.pools.step_s, 0.0)
        self.below = np.where(wanted < now, self.below + self.pools.step_s, 0.0)
        moves = (self.above >= 30.0) | (self.below >= 600.0)
        self.above, self.below = np.where(moves, 0.0, self.above), np.where(moves, 0.0, self.below)
        return np.where(moves & ~blind, wanted, now)


@dataclass
class Dynamo:
    """Dynamo planner (sla): next interval of 180 s, profiled rate of a replica, no room for queues.

    trend : how much of the last change is expected again (0 = constant, 1 = linear). share : of the profiled rate used.
    """

    pools: Pools
    given: Numbers
    sums: Array | None = None
    number: int = 0
    last: Array | None = None

    def decide(self, step: int, seen: Seen, now: Array) -> Array:
        self.sums = seen.arrived_s if self.sums is None else self.sums + seen.arrived_s
        self.number += 1
        if not self.pools.is_due(step, 180.0):
            return now
        rate, self.sums, count = self.sums / self.number, None, self.number
        self.number = 0
        before = rate if self.last is None or count == 1 else self.last
        # Missing numbers keep what stands: it "held peak on NaN".
        self.last = np.where(np.isnan(rate), before, rate)
        ahead = rate + self.given["trend"] * (rate - before)
        wanted = np.ceil(np.maximum(ahead, 0.0) / (self.pools.profiled * self.given["share"]))
        return np.where(np.isnan(wanted), now, wanted)


RIVALS: Mapping[str, tuple[Callable[[Pools, Numbers], Policy], Mapping[str, tuple[float, float]]]] = {
    "static": (Static, {"share": (0.4, 1.0)}),
    "hpa": (Hpa, {"kv": (0.2, 0.8), "queue": (0.2, 8.0)}),
    "keda": (Keda, {"threshold": (0.2, 1.0), "ignore_null": (0.0, 1.0)}),
    "kpa": (Kpa, {"target": (0.3, 1.6)}),
    "apa": (Apa, {"target": (0.2, 1.0)}),
    "wva": (Wva, {"kv": (0.4, 0.9), "spare": (0.02, 0.3)}),
    "ray": (Ray, {"target": (0.2, 1.0)}),
    "dynamo": (Dynamo, {"share": (0.4, 1.1), "trend": (0.0, 2.0)}),
}
"""name -> (controller, ranges its parameters are searched in). Targets in requests a replica are shares of what runs in
a replica at 99 % of requests in time."""

OF_RUNNING = frozenset({"threshold", "target"})
