"""Pipeline stages that hold up the others of their replica, by the same stage of other replicas."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.minutes import Minutes
from detectors.scales import Scales
from detectors.stats import groups, peers, rows

SIGNALS = ("util_ratio", "tensor_active_ratio", "dram_active_ratio")
UTIL, TENSOR, DRAM = range(len(SIGNALS))
BUSY, ACTIVE = 0.3, 0.03
"""Shares of time below which a rank does too little to be compared. As in detectors.gpupace."""
OTHERS = 2
"""Other replicas that must show the same stage."""


@dataclass(slots=True)
class Stages:
    """Stages work in turn, so the slowest one is busy while the others wait: its bubble is the smallest. Layers are never
    spread evenly, so that a stage is never compared with another, but its lead over the rest of its replica with the lead of the
    same stage in other replicas.

    lags : residual of each "engine|stage". claims : "engine|stage" -> what stands, judged again with every minute.
    Source: docs/en/reference/stragglers.md.
    """

    minutes: Minutes = field(default_factory=Minutes)
    lags: Scales = field(
        default_factory=lambda: Scales(
            (0.20, 0.12, 0.05, 0.04, 0.035, 0.03, 0.03),
            usual_max=0.06,
            prior=0.0,
            settled=24.0,
            tail_least=np.inf,
        )
    )
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)
    claims: dict[str, Finding] = field(default_factory=dict)

    def update(self, gpu: Frame, sick: Set[str] = frozenset()) -> list[Finding]:
        """Claims that stand now. sick : engines accused otherwise, which teach nothing."""
        if not any(gpu.facts.get("stage", ())):
            self.claims, self.sizes = {}, {}
            return []
        minute = self.minutes.push(gpu, gpu.columns(SIGNALS))
        if minute is not None:
            self._judge(gpu, minute, sick)
        return list(self.claims.values())

    def _judge(self, gpu: Frame, minute: Array, sick: Set[str]) -> None:
        blank = ("",) * len(gpu.entities)
        owner, stage, peer = (gpu.facts.get(key, blank) for key in ("engine", "stage", "peer"))
        keys = tuple(f"{e}|{s}" if e and s else "" for e, s in zip(owner, stage, strict=True))
        where = groups(keys)
        first = [int(member[0]) for member in where.member]
        names = tuple(keys[i] for i in first)
        active = np.array([_activity(minute[m[m >= 0]]) for m in where.member])
        engines = tuple(owner[i] for i in first)
        lead = active - peers(active, groups(engines), least=1).median
        alike = groups(tuple(f"{peer[i]}|{stage[i]}" for i in first))
        self.lags.push(names, lead - peers(lead, alike, least=OTHERS).median)
        hit, span = self.lags.beyond(alike)
        told = np.array(
            [n in self.sizes or e in sick for n, e in zip(names, engines, strict=True)], dtype=bool
        )
        self.lags.learn(told | hit)
        kept = {n for i, n in enumerate(names) if n in self.sizes and self.lags.lasts(i, *self.sizes[n])}
        for i in rows(np.array([n in self.sizes and n not in kept for n in names], dtype=bool)):
            self.lags.forgive(i)
        self.sizes = {n: s for n, s in self.sizes.items() if n in kept}
        self.claims = {n: c for n, c in self.claims.items() if n in kept}
        bubbles = 1.0 - np.exp(active - _most(active, engines))
        for i in rows(hit):
            mine = [k for k in range(len(names)) if engines[k] == engines[i]]
            self._claim(gpu.at, i, names[i], int(span[i]), {stage[first[k]]: float(bubbles[k]) for k in mine})

    def _claim(self, at: float, i: int, name: str, span: int, bubbles: dict[str, float]) -> None:
        engine, _, stage = name.rpartition("|")
        size = float(self.lags.latest[span][i])
        self.sizes[name] = span, size
        before = self.claims.get(name)
        began = at - 60.0 * (self.lags.since_min(i) + 0.5)
        self.claims[name] = say(
            at,
            "straggler.stage",
            Entity("engine", engine),
            "stage_slow",
            0.8,
            Severity.INFO,
            Evidence("busier_than_same_stage", float(np.expm1(size)), "ratio", 0.0),
            *(Evidence(f"bubble_of_stage_{s}", b, "ratio") for s, b in sorted(bubbles.items())),
            since=min(began, before.since) if before else began,
            text=f"stage {stage} of {engine} works {np.expm1(size):.0%} more than the same stage elsewhere: the others wait for it",
            rejected=("layers spread unevenly: other replicas are cut the same way",),
        )


def _activity(ranks: Array) -> float:
    """Log of the mean activity of a stage's ranks; NaN where any of them is idle or not measured."""
    if not ((ranks[:, UTIL] > BUSY) & (ranks[:, DRAM] > ACTIVE)).all():
        return NAN
    with np.errstate(divide="ignore", invalid="ignore"):
        dram, tensor = float(np.log(ranks[:, DRAM]).mean()), float(np.log(ranks[:, TENSOR]).mean())
    return 0.5 * (dram + tensor) if np.isfinite(tensor) else dram


def _most(active: Array, engines: tuple[str, ...]) -> Array:
    """(stage,) the activity of the busiest stage of its replica."""
    found = np.full(active.size, NAN)
    for member in groups(engines).member:
        of = member[member >= 0]
        found[of] = np.fmax.reduce(active[of])
    return found
