"""How good forecasts were once their time had come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from daemon.archive import Kept, Score
from daemon.model import NAN, Array, Forecast
from daemon.outlook import along

BLEND, NAIVE = "blend", "weekly naive"
SCORED_LEAD_S = 72 * 3600.0
WEEK_S = 7 * 86400.0
HIGH_SHARE = 0.98
"""A threshold is this quantile of the two weeks before: high demand that has been seen."""
WORSE = 1.05
"""Error over weekly naive's that a forecaster may not keep for a week. Source: docs/en/reference/forecasting.md."""
SCORED_MIN = 8
BETTER = 0.98
"""A site's own forecaster is trusted when its quantile loss was below this share of the blend's."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A forecaster over a stretch of elapsed forecasts.

    ratio : mean absolute error over weekly naive's. wql : weighted quantile loss. coverage80 : share of hours between
    the 10 % and the 90 % level. brier_skill : 1 = perfect, 0 = no better than the share of times it happened, NaN when
    it always or never did. number : forecasts. Everything is NaN with none.
    """

    ratio: float = NAN
    wql: float = NAN
    coverage80: float = NAN
    brier_skill: float = NAN
    number: int = 0


def score(kept: Kept, truth: Array) -> dict[str, Score]:
    """Each forecaster of a kept forecast against what came. truth : (step,), NaN = not measured, left out."""
    steps = min(truth.size, int(SCORED_LEAD_S // kept.step_s))
    known = np.isfinite(truth[:steps])
    if not known.any():
        return {}
    came = truth[:steps][known]
    levels = np.array(kept.levels)[:, None]
    naive = kept.quantiles[NAIVE][kept.levels.index(0.5), :steps][known]
    passed = bool(came.max() > kept.threshold)
    found = {}
    for name, quantiles in kept.quantiles.items():
        said = quantiles[:, :steps][:, known]
        off = came[None, :] - said
        low, high = said[kept.levels.index(0.1)], said[kept.levels.index(0.9)]
        found[name] = Score(
            error=float(np.abs(came - said[kept.levels.index(0.5)]).sum()),
            naive_error=float(np.abs(came - naive).sum()),
            loss=2.0 * float(np.maximum(levels * off, (levels - 1.0) * off).mean(axis=0).sum()),
            size=float(np.abs(came).sum()),
            inside=int(((came >= low) & (came <= high)).sum()),
            hours=int(known.sum()),
            brier=(kept.chance - passed) ** 2 if name == kept.chosen else NAN,
            passed=passed,
        )
    return found


def standing(scores: Sequence[Score]) -> Standing:
    """What a run of scores of one forecaster comes to."""
    naive, size = sum(s.naive_error for s in scores), sum(s.size for s in scores)
    error = sum(s.error for s in scores)
    hours = sum(s.hours for s in scores)
    brier = [s for s in scores if not math.isnan(s.brier)]
    rate = sum(s.passed for s in brier) / len(brier) if brier else NAN
    chance_alone = rate * (1.0 - rate)
    return Standing(
        ratio=error / naive if naive > 0 else math.inf if error > 0 else NAN,
        wql=sum(s.loss for s in scores) / size if size > 0 else NAN,
        coverage80=sum(s.inside for s in scores) / hours if hours else NAN,
        brier_skill=1.0 - sum(s.brier for s in brier) / len(brier) / chance_alone
        if chance_alone > 0
        else NAN,
        number=len(scores),
    )


def standings(kept: Iterable[Kept]) -> dict[str, Standing]:
    """forecaster -> how it did over the elapsed ones of some kept forecasts."""
    by_name: dict[str, list[Score]] = {}
    for one in kept:
        for name, found in (one.scores or {}).items():
            by_name.setdefault(name, []).append(found)
    return {name: standing(found) for name, found in by_name.items()}


def choose(kept: Sequence[Kept], now: float) -> tuple[str, str]:
    """Whose forecast is to be used next, with the reason in words ("" = the usual one).

    kept : of one series, oldest first. Weekly naive is used once the blend was worse by WORSE in the first half of the
    last scored week as well as in the second; the blend comes back when over that week it was no worse. A site's own
    forecaster is used where its quantile loss was clearly the least.
    """
    week = [k for k in kept if k.scores and k.at >= now - WEEK_S - SCORED_LEAD_S]
    if len(week) < SCORED_MIN:
        return BLEND, ""
    used = kept[-1].chosen
    middle = (week[0].at + week[-1].at) / 2.0
    halves = [
        standings([k for k in week if (k.at < middle) is is_first]).get(BLEND, Standing())
        for is_first in (True, False)
    ]
    whole = standings(week)
    rivals = {n: s for n, s in whole.items() if n not in (BLEND, NAIVE) and s.number >= SCORED_MIN}
    best = min(rivals, key=lambda n: rivals[n].wql, default="")
    if best and rivals[best].wql < BETTER * whole[BLEND].wql and rivals[best].ratio <= WORSE:
        return (
            best,
            f"{best} is used: its quantile loss was {rivals[best].wql / whole[BLEND].wql:.2f} of the blend's",
        )
    is_long_enough = week[-1].at - week[0].at >= 0.8 * WEEK_S
    was_worse = is_long_enough and all(h.ratio > WORSE for h in halves)
    if was_worse or (used == NAIVE and whole[BLEND].ratio > 1.0):
        return NAIVE, (
            f"falls back to repeating the week before: over the last week the blend was {whole[BLEND].ratio:.2f} times as far off"
        )
    return BLEND, ""


def chance_above(forecast: Forecast, threshold: float, lead_s: float = SCORED_LEAD_S) -> float:
    """Share of sampled paths that pass a threshold within the lead, NaN without paths."""
    if not forecast.ranks.size or math.isnan(threshold):
        return NAN
    steps = int(lead_s // forecast.step_s)
    paths = along(forecast.quantiles, forecast.levels, forecast.ranks)[:, :steps]
    return float((paths.max(axis=1) > threshold).mean())
