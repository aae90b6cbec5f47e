"""What a token costs on each kind of GPU that a pool runs on, as measured: where to grow, and who goes first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daemon.model import NAN, Frames
from daemon.policy import Cost
from daemon.topology import Topology

EVERY_S = 60.0
WEIGHT = 0.02
"""Of a minute: what is known fades to a third in an hour."""
LEAST_MINUTES = 30
"""Before, a kind of GPU is not judged. Judgement."""
APART = 1.1
"""Costs nearer to each other than this are taken for alike: a move saves nothing that a cold start does not cost."""
J_PER_KWH = 3.6e6
HOUR_S = 3600.0


@dataclass(slots=True)
class Pace:
    """Of the replicas of a pool on one kind of GPU. Fading means: running requests, seconds a token, their square and product;
    GPUs and watts of a replica. NaN = never told."""

    minutes: int = 0
    running: float = NAN
    step_s: float = NAN
    square: float = NAN
    product: float = NAN
    gpus: float = NAN
    watts: float = NAN

    def take(self, running: float, step_s: float, gpus: float, watts: float) -> None:
        self.minutes += 1
        self.running = _faded(self.running, running)
        self.step_s = _faded(self.step_s, step_s)
        self.square = _faded(self.square, running * running)
        self.product = _faded(self.product, running * step_s)
        self.gpus = _faded(self.gpus, gpus)
        self.watts = _faded(self.watts, watts)

    def step_at(self, running: float) -> float:
        """Seconds a token with so many requests in the replica: along the line that was seen, never falling with load."""
        variance = self.square - self.running * self.running
        slope = (self.product - self.running * self.step_s) / variance if variance > 1.0 else 0.0
        return self.step_s + max(0.0, slope) * (running - self.running)


@dataclass(slots=True)
class Worth:
    """paces : pool -> kind of GPU -> what was seen. Pools on one kind of GPU alone are not kept."""

    paces: dict[str, dict[str, Pace]] = field(default_factory=dict)
    at: float = NAN

    def watch(self, frames: Frames, topology: Topology) -> None:
        """Take in one look, at most one a minute."""
        if frames.at - self.at < EVERY_S:
            return
        self.at = frames.at
        kinds = kinds_of(frames, topology.gpus_of)
        seen: dict[str, set[str]] = {}
        for name, pool in topology.pool_of.items():
            if kinds.get(name):
                seen.setdefault(pool, set()).add(kinds[name])
        mixed = {pool for pool, found in seen.items() if len(found) > 1}
        self.paces = {pool: paces for pool, paces in self.paces.items() if pool in mixed}
        if not mixed:
            return
        engine, gpu = frames["engine"], frames["gpu"]
        power = dict(zip(gpu.entities, gpu.column("power_w").tolist(), strict=True))
        rows = zip(engine.entities, engine.columns(("running", "itl_mean_s")).tolist(), strict=True)
        looks: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
        for name, (running, step_s) in rows:
            pool, kind = topology.pool_of.get(name, ""), kinds.get(name, "")
            if pool not in mixed or not kind or not (running >= 1 and step_s > 0):
                continue
            cards = topology.gpus_of[name]
            watts = sum(power.get(g, NAN) for g in cards)
            looks.setdefault((pool, kind), []).append((running, step_s, float(len(cards)), watts))
        # One look a minute, however many replicas a kind has: thirty replicas are not half an hour.
        for (pool, kind), seen_now in looks.items():
            pace = self.paces.setdefault(pool, {}).setdefault(kind, Pace())
            pace.take(*(sum(values) / len(values) for values in zip(*seen_now, strict=True)))

    def costs(self, pool: str, cost: Cost) -> dict[str, float]:
        """Kind of GPU -> cost of a token over that of the cheapest kind, at the load both have been seen at; empty before two kinds
        are known, where they are alike, and where one has a price and another none."""
        known = {k: p for k, p in self.paces.get(pool, {}).items() if p.minutes >= LEAST_MINUTES}
        if len(known) < 2:
            return {}
        prices = {kind: _priced(kind, cost) for kind in known}
        if all(math.isnan(price) for price in prices.values()):
            prices = dict.fromkeys(prices, 1.0)  # without any price a GPU is a GPU
        if any(math.isnan(price) for price in prices.values()):
            return {}
        load = sum(p.running for p in known.values()) / len(known)
        each = {kind: _per_s(pace, prices[kind], cost) * pace.step_at(load) for kind, pace in known.items()}
        least = min(each.values())
        found = {kind: value / least for kind, value in each.items()}
        return found if least > 0 and max(found.values()) >= APART else {}


def kinds_of(frames: Frames, cards: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Holder -> kind of its GPUs; "" = not told, or of several kinds. cards : an engine or a node -> its GPUs."""
    gpu = frames["gpu"]
    sku = dict(zip(gpu.entities, gpu.facts.get("sku", ("",) * len(gpu.entities)), strict=True))
    found = {}
    for holder, names in cards.items():
        kinds = {sku.get(g, "") for g in names}
        found[holder] = kinds.pop() if len(kinds) == 1 else ""
    return found


def told(pool: str, costs: Mapping[str, float]) -> str:
    """In one sentence.

    >>> told("chat", {"h100": 1.0, "a100": 1.42})
    'chat: a token on a100 costs 1.42 times one on h100, as measured'
    """
    cheap = min(costs, key=lambda k: costs[k])
    rest = ", ".join(
        f"{kind} costs {ratio:.2f} times"
        for kind, ratio in sorted(costs.items(), key=lambda c: c[1])
        if kind != cheap
    )
    return f"{pool}: a token on {rest} one on {cheap}, as measured"


def _priced(kind: str, cost: Cost) -> float:
    """Of one GPU for an hour, NaN = no price is given."""
    return next((p for word, p in cost.gpu_hour_by_kind if word.lower() in kind.lower()), cost.gpu_hour)


def _per_s(pace: Pace, gpu_hour: float, cost: Cost) -> float:
    """What a replica costs a second: its GPUs, and its energy where GPUs and energy have prices of one currency."""
    energy = pace.watts / J_PER_KWH * cost.kwh * cost.pue
    is_priced = not math.isnan(energy) and (not math.isnan(cost.gpu_hour) or bool(cost.gpu_hour_by_kind))
    return pace.gpus * gpu_hour / HOUR_S + (energy if is_priced else 0.0)


def _faded(mean: float, value: float) -> float:
    if math.isnan(value):
        return mean
    return value if math.isnan(mean) else mean + WEIGHT * (value - mean)
