"""Whether the forecast demand will outgrow the GPUs that stand, or a store runs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from daemon.model import NAN, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.exhaustion import Exhaustion

RAISE_CHANCE = 0.2
"""Share of sampled paths that run short for a warning. Source: bench/warn.py --part tune."""
CLEAR_CHANCE = 0.1
LIKELY = 0.4
"""From this chance on it is a warning; below, of which four in five do not come, it is told and pages nobody. Judgement."""


@dataclass(slots=True)
class Streak:
    """Forecasts in a row that said so, and whether that has been enough."""

    in_a_row: int = 0
    is_raised: bool = False


@dataclass(slots=True)
class CapacityDetector:
    """Warns when what all pools need is likely to exceed the usable GPUs within the forecast's horizon, and says of each
    pool that runs short with it, or by its own maximum.

    settled_s : hours of learning behind it at least. confirm : forecasts in a row that must say so. raise_chance :
    share of the sampled paths that run short; clear_chance : below it the warning ends. clear_share : where there are
    no paths the 90 % level is judged instead, and must stay below this share of what stands for the end. The core
    gives the outlook as frames of the kinds "cluster" and "pool_ahead". pools : by name.
    """

    confirm: int = 2
    raise_chance: float = RAISE_CHANCE
    clear_chance: float = CLEAR_CHANCE
    clear_share: float = 0.97
    settled_s: float = 3 * 3600.0
    made_at: float = NAN
    whole: Streak = field(default_factory=Streak)
    pools: dict[str, Streak] = field(default_factory=dict)
    stores: Exhaustion = field(default_factory=Exhaustion)

    def update(self, frames: Frames) -> list[Finding]:
        return [*self.stores.update(frames), *self._gpus(frames)]

    def _gpus(self, frames: Frames) -> list[Finding]:
        frame, pools = frames["cluster"], frames["pool_ahead"]
        if not frame.entities:
            return []
        row = dict(zip(frame.signals, frame.values[0].tolist(), strict=True))
        need = row["gpus_needed_q90"]
        # What a replica holds is guessed from few hours at first: a warning built on that would cry wolf.
        if need != need or row["learnt_s"] < self.settled_s:
            return []
        if row["made_at_s"] != self.made_at:
            self.made_at = row["made_at_s"]
            self._count(self.whole, self._is_short(row))
            chances = dict(zip(pools.entities, pools.column("short_chance").tolist(), strict=True))
            self.pools = {name: self.pools.get(name, Streak()) for name in chances}
            for name, chance in chances.items():
                self._count(self.pools[name], self._is_likely(chance, self.pools[name]))
        found = [self._finding(frames, frame.entities[0], row)] if self.whole.is_raised else []
        raised = [name for name in pools.entities if name in self.pools and self.pools[name].is_raised]
        return [*found, *(pool_short(frames.at, pools, name, row["horizon_s"]) for name in raised)]

    def _count(self, streak: Streak, is_short: bool) -> None:
        streak.in_a_row = streak.in_a_row + 1 if is_short else 0
        streak.is_raised = streak.in_a_row >= self.confirm

    def _is_likely(self, chance: float, streak: Streak) -> bool:
        return chance >= (self.clear_chance if streak.is_raised else self.raise_chance)

    def _is_short(self, row: dict[str, float]) -> bool:
        chance = row.get("short_chance", NAN)
        if chance == chance:
            return self._is_likely(chance, self.whole)
        limit = row["gpus_usable"] * (self.clear_share if self.whole.is_raised else 1.0)
        return row["gpus_needed_q90"] > limit

    def _finding(self, frames: Frames, cluster: str, row: dict[str, float]) -> Finding:
        usable, high, median = row["gpus_usable"], row["gpus_needed_q90"], row["gpus_needed_q50"]
        lead, chance = row["short_in_s"], row.get("short_chance", NAN)
        severity = Severity.INFO if chance < LIKELY else Severity.WARNING
        if median > usable and lead < 86400.0:
            severity = Severity.CRITICAL
        evidence = (
            Evidence("gpus_needed_q90", high, "GPUs", usable),
            Evidence("gpus_needed_q50", median, "GPUs", usable),
            Evidence("short_in", lead / 3600.0, "h"),
            Evidence("deficit", row["short_gpu_hours"], "GPU-hours at q90"),
            *([Evidence("chance", chance, "of sampled paths")] if chance == chance else []),
        )
        score = chance if chance == chance else 0.9 if median > usable else 0.6
        return Finding(
            frames.at,
            "capacity",
            Entity("cluster", cluster),
            "capacity_short",
            min(1.0, max(0.3, score)),
            severity,
            evidence,
            frames.at,
            tell(frames.at, row, frames["pool_ahead"]),
        )


def pool_short(at: float, pools: Frame, name: str, horizon_s: float) -> Finding:
    """One pool's shortage. It is told beside the cluster's and pages nobody, unless the pool's own maximum is what lacks:
    then no GPU would help and somebody must raise it."""
    row = dict(zip(pools.signals, pools.values[pools.entities.index(name)].tolist(), strict=True))
    chance, capped = row["short_chance"], row["capped_chance"]
    is_own = capped >= 0.5 * chance
    need, most, when = row["replicas_needed_q90"], row["replicas_max"], row["exhausted_in_s"]
    text = f"{chance:.0%} chance that {name} runs short within {horizon_s / 86400.0:.0f} days: it may need {need:.0f} replicas (1 in 10)"
    text += (
        f" and may have {most:.0f}"
        if is_own
        else f", {row['replicas_more']:.0f} more than stand, and there are too few GPUs"
    )
    text += f"; more likely than not by {_day(at + when)}" if when == when else ""
    if is_own:
        text += f". Raise its maximum to {need:.0f} by {_day(row['peak_at_s'])}, or move load."
    else:
        text += f". {row['gpus_more']:.0f} more GPUs by {_day(row['peak_at_s'])} would serve it."
    return say(
        at,
        "capacity.pool_short",
        Entity("pool", name),
        "capacity_short",
        min(1.0, max(0.3, chance)),
        Severity.WARNING if is_own and chance >= LIKELY else Severity.INFO,
        Evidence("chance", chance, "of sampled paths"),
        Evidence("replicas_needed_q90", need, "replicas", most if is_own else NAN),
        Evidence("deficit", row["short_gpu_hours"], "GPU-hours, mean of the paths"),
        text=text,
    )


def tell(at: float, row: dict[str, float], pools: Frame) -> str:
    """How sure, when, by how much, why, and what would fix it. row : signals of the cluster's outlook."""
    usable, need, lead = row["gpus_usable"], row["gpus_needed_q90"], row["short_in_s"]
    chance, when = row.get("short_chance", NAN), row.get("exhausted_in_s", NAN)
    text = f"{need:.0f} GPUs may be needed (1 in 10) and {usable:.0f} stand"
    if chance == chance:
        text = f"{chance:.0%} chance of running short within {row['horizon_s'] / 86400.0:.0f} days: " + text
    if lead == lead:
        text += f"; first short in {lead / 3600.0:.0f} h"
    elif need <= usable:
        text += "; just enough, and too close to call it over"
    if when == when:
        text += f"; more likely than not by {_day(at + when)}"
    elif chance == chance:
        text += "; more likely than not there is enough to the end of the horizon"
    return text + "." + _remedy(row, pools)


def _remedy(row: dict[str, float], pools: Frame) -> str:
    """Who grows and what to add by when; how good the forecast behind it has been."""
    said = ""
    if pools.entities:
        order = np.argsort(-pools.column("gpus_more"), kind="stable")
        worst = pools.entities[int(order[0])]
        more = pools.value(worst, "replicas_more")
        if more >= 1:
            peak = pools.value(worst, "peak_at_s")
            plural = "s" if more > 1 else ""
            said += (
                f" Mostly {worst}: {more:.0f} more replica{plural} of {worst} "
                f"({pools.value(worst, 'gpus_more'):.0f} GPUs) by {_day(peak)} would serve it."
            )
            if pools.value(worst, "by_tokens") > 0:
                said += " Its requests grow longer: tokens a second bind sooner than requests in flight."
    gap = row["gpus_needed_q90"] - row["gpus_usable"]
    if gap > 0:
        said += f" {gap:.0f} more GPUs would close the gap."
    skill = row.get("skill_ratio", NAN)
    if skill == skill:
        said += f" The forecast's past error was {skill:.2f} of repeating the week before."
    return said


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%A %H:%M} UTC"
