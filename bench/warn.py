"""Scores capacity warnings days ahead: on real series against their own high mark, on injected ramps against a set capacity.

Usage: python -m bench.warn FOLDER [--part score|tune] [--quick] [--json]
Natural: at each origin the forecaster gives the chance that demand passes the 98th percentile of the last 14 days
within 72 h, and within hours 49-72, when it is not above it now. AUC, Brier skill against the share of times it
happened, reliability by fifths.
Ramps: the last three weeks of a series grow by 3 to 12 % a day from a drawn hour on, to a capacity 25 to 90 % above
what it usually peaked at, with at least five days of growth before the last moment a warning counts. A warning is raised by two origins in a row (12 h apart) with a chance of RAISE_CHANCE or more
within 168 h and ends below CLEAR_CHANCE. Episodes count, not windows: recall at 72 h of lead or more, false warnings a
cluster-month on the same series without a ramp, error of the days to exhaustion at 72 h before.
Against predict_linear (a line through a week, crossing within the horizon) and weekly naive with recalibrated bands.
With --json the last line of stdout is one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.forecast import SCORED_SHARE
from bench.forecast_models import predict_linear
from daemon.cli.ahead import read_csv
from daemon.model import Array
from daemon.outlook import along, crossings
from detectors.capacity import CLEAR_CHANCE, RAISE_CHANCE
from detectors.forecast import LEVELS, fill, forecast_series
from detectors.forecast_members import DAY, WEEK

HORIZON = 168
HISTORY_MIN = 15 * DAY
HIGH = 0.98
STEP = 12
LEAD = 72
EVIDENCE = 5 * DAY
"""Days of growth before the latest warning that counts: fewer are not told from natural swings in these series."""
RAMPS = (0.05, 0.08, 0.12)
MARGINS = (0.25, 0.4, 0.6, 0.9)

Paths = Callable[[Array], Array]
"""y -> (path, hour) sampled demand of the next week."""


def ours(y: Array) -> Array:
    made = forecast_series(y, HORIZON)
    return along(np.maximum(made.quantiles, 0.0), LEVELS, made.ranks)


def naive(y: Array) -> Array:
    made = forecast_series(y, HORIZON)
    return along(np.maximum(made.naive, 0.0), LEVELS, made.ranks)


def linear(y: Array) -> Array:
    """One path: predict_linear knows no doubt."""
    return predict_linear(y, HORIZON)[None, :]


def both(y: Array) -> dict[str, Array]:
    """ours and weekly naive from one fit, and the line."""
    made = forecast_series(y, HORIZON)
    return {
        "ours": along(np.maximum(made.quantiles, 0.0), LEVELS, made.ranks),
        "weekly_naive": along(np.maximum(made.naive, 0.0), LEVELS, made.ranks),
        "predict_linear": linear(y),
    }


# -- natural breaches ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Calls:
    """chance given and whether it came, by series."""

    chance: dict[str, list[float]] = field(default_factory=dict)
    came: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, series: str, chance: float, came: bool) -> None:
        self.chance.setdefault(series, []).append(chance)
        self.came.setdefault(series, []).append(came)

    def all(self) -> tuple[Array, Array]:
        chance = np.array([c for row in self.chance.values() for c in row])
        return chance, np.array([c for row in self.came.values() for c in row], dtype=bool)


def natural(series: Mapping[str, Array], part: str, stride: int) -> dict[str, dict[str, Calls]]:
    """window -> model -> Calls."""
    found: dict[str, dict[str, Calls]] = {"1-72h": {}, "49-72h": {}}
    for name, values in series.items():
        cut = math.ceil(values.size * (1.0 - SCORED_SHARE))
        first, last = (cut, values.size) if part == "score" else (0, cut)
        for origin in range(max(first, HISTORY_MIN), last - LEAD + 1, stride):
            y = fill(values[:origin])
            came = values[origin : origin + LEAD]
            limit = float(np.quantile(y[-14 * DAY :], HIGH))
            if y[-1] > limit or not np.isfinite(came).any():
                continue
            for model, paths in both(y).items():
                for window, span in (("1-72h", slice(0, 72)), ("49-72h", slice(48, 72))):
                    known = came[span][np.isfinite(came[span])]
                    if known.size:
                        chance = float((paths[:, span].max(axis=1) > limit).mean())
                        found[window].setdefault(model, Calls()).add(name, chance, bool(known.max() > limit))
        print(f"  natural {name}", file=sys.stderr, flush=True)
    return found


def auc(chance: Array, came: Array) -> float:
    """Share of (came, did not) pairs that are in the right order, ties half. NaN when all came or none."""
    if came.all() or not came.any():
        return math.nan
    high, low = chance[came][:, None], chance[~came][None, :]
    return float((high > low).mean() + 0.5 * (high == low).mean())


def brier_skill(chance: Array, came: Array) -> float:
    rate = float(came.mean())
    alone = rate * (1.0 - rate)
    return 1.0 - float(((chance - came) ** 2).mean()) / alone if alone > 0 else math.nan


def judged(calls: Calls) -> dict[str, Any]:
    """Pooled figures with a bootstrap over series for the AUC."""
    chance, came = calls.all()
    rng, names = np.random.default_rng(0), list(calls.chance)
    drawn = []
    for _ in range(300):
        picked = [names[i] for i in rng.integers(0, len(names), len(names))]
        c = np.concatenate([calls.chance[n] for n in picked])
        w = np.concatenate([np.array(calls.came[n], dtype=bool) for n in picked])
        drawn.append(auc(c, w))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    fifths = []
    for edge in np.arange(0.0, 1.0, 0.2):
        inside = (chance >= edge) & ((chance < edge + 0.2) | (edge > 0.75))
        fifths.append(
            {
                "said": _rounded(float(chance[inside].mean())) if inside.any() else None,
                "came": _rounded(float(came[inside].mean())) if inside.any() else None,
                "number": int(inside.sum()),
            }
        )
    return {
        "auc": _rounded(auc(chance, came)),
        "auc_interval": [_rounded(float(low)), _rounded(float(high))],
        "brier_skill": _rounded(brier_skill(chance, came)),
        "windows": int(came.size),
        "episodes": int(sum(_episodes(row) for row in calls.came.values())),
        "rate": _rounded(float(came.mean())),
        "reliability": fifths,
    }


def _episodes(came: Sequence[bool]) -> int:
    """Runs of windows with a breach: neighbours speak of the same one."""
    flags = np.array(came, dtype=int)
    return int((np.diff(np.r_[0, flags]) == 1).sum())


# -- injected ramps -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Alarm:
    """Two in a row raise it, falling below CLEAR_CHANCE ends it: the rule of detectors.capacity on an hourly series."""

    in_a_row: int = 0
    is_raised: bool = False

    def hear(self, chance: float) -> bool:
        """True when this is the call that raises it."""
        is_short = chance >= (CLEAR_CHANCE if self.is_raised else RAISE_CHANCE)
        self.in_a_row = self.in_a_row + 1 if is_short else 0
        was, self.is_raised = self.is_raised, self.in_a_row >= 2
        return self.is_raised and not was


@dataclass(slots=True)
class Episodes:
    """Over injected ramps and quiet runs. days_off : errors of days to exhaustion said 72 h or more before."""

    ramps: int = 0
    caught: int = 0
    leads_h: list[float] = field(default_factory=list)
    false: int = 0
    quiet_days: float = 0.0
    days_off: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        months = self.quiet_days / 30.0
        warned = self.caught + self.false
        return {
            "ramps": self.ramps,
            "recall_72h": _rounded(self.caught / self.ramps) if self.ramps else None,
            "precision_72h": _rounded(self.caught / warned) if warned else None,
            "median_lead_h": _rounded(float(np.median(self.leads_h))) if self.leads_h else None,
            "false_per_month": _rounded(self.false / months) if months else None,
            "quiet_months": _rounded(months),
            "days_to_exhaustion_error": _rounded(float(np.median(np.abs(self.days_off))))
            if self.days_off
            else None,
        }


def ramped(y: Array, start: int, growth: float) -> Array:
    """The series growing by `growth` of its level a day from `start` on."""
    days = np.maximum(np.arange(y.size) - start, 0) / DAY
    return np.asarray(y * (1.0 + growth * days), dtype=float)


def ramps(series: Mapping[str, Array], part: str, each: int) -> dict[str, Episodes]:
    """model -> Episodes. A ramp needs a lead that can exist: the breach comes EVIDENCE and LEAD after its beginning."""
    found = {m: Episodes() for m in ("ours", "weekly_naive", "predict_linear")}
    for number, (name, values) in enumerate(series.items()):
        cut = math.ceil(values.size * (1.0 - SCORED_SHARE))
        y = fill(values[:cut] if part == "tune" else values)
        first = max(HISTORY_MIN, cut if part == "score" else y.size - 21 * DAY)
        if y.size - first < 7 * DAY:
            continue
        rng = np.random.default_rng([7, number])
        _quiet(found, y, first, float(y[: first + 1].max()) * 1.25)
        for _ in range(each):
            growth = float(rng.choice(RAMPS))
            start = int(rng.integers(first - 3 * DAY, max(first - 2 * DAY, y.size - 13 * DAY)))
            limit = float(np.quantile(y[max(0, start - 4 * WEEK) : start], 0.995)) * (
                1.0 + float(rng.choice(MARGINS))
            )
            _ramp(found, ramped(y, start, growth), start, limit)
        print(f"  ramps {name}", file=sys.stderr, flush=True)
    return found


def _quiet(found: dict[str, Episodes], y: Array, first: int, limit: float) -> None:
    """Without a ramp: warnings while demand stays below the limit for the whole horizon are false."""
    alarms = {m: Alarm() for m in found}
    for origin in range(first, y.size - HORIZON + 1, STEP):
        comes = bool((y[origin : origin + HORIZON] > limit).any())
        for model, paths in both(y[:origin]).items():
            chance = float((paths > limit).any(axis=1).mean())
            if alarms[model].hear(chance) and not comes:
                found[model].false += 1
        for episodes in found.values():
            episodes.quiet_days += STEP / DAY


def _ramp(found: dict[str, Episodes], y: Array, start: int, limit: float) -> None:
    over = np.flatnonzero(y[start:] > limit)
    if not over.size or over[0] < EVIDENCE + LEAD:
        return  # it never ends, or sooner than growth could be told from a busy day three days ahead of it
    breach = start + int(over[0])
    alarms = {m: Alarm() for m in found}
    warned: dict[str, int] = {}
    for origin in range(max(start, HISTORY_MIN), breach - LEAD + 1, STEP):
        for model, paths in both(y[:origin]).items():
            first = crossings(paths, limit)
            if alarms[model].hear(float(np.isfinite(first).mean())):
                warned.setdefault(model, origin)
            middle = float(np.sort(first)[(first.size - 1) // 2])
            if math.isfinite(middle) and breach - origin < HORIZON and alarms[model].is_raised:
                found[model].days_off.append((middle - (breach - origin)) / DAY)
    for model, episodes in found.items():
        episodes.ramps += 1
        if model in warned:
            episodes.caught += 1
            episodes.leads_h.append(float(breach - warned[model]))


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def tell(windows: Mapping[str, Mapping[str, dict[str, Any]]], rows: Mapping[str, dict[str, Any]]) -> None:
    """The tables for people."""
    for window, models in windows.items():
        print(f"breach of the 98th percentile of 14 days, hours {window}")
        for model, row in models.items():
            print(
                f"  {model:16} AUC {row['auc']} {row['auc_interval']}  Brier skill {row['brier_skill']}  {row['episodes']} episodes in {row['windows']} windows"
            )
        told = " ".join(
            f"{f['said']:.2f}->{f['came']:.2f} ({f['number']})"
            for f in models["ours"]["reliability"]
            if f["number"]
        )
        print(f"  ours, said -> came: {told}")
    print("injected ramps of 5 % a day and more")
    for model, row in rows.items():
        print(f"  {model:16} " + "  ".join(f"{k} {v}" for k, v in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=("score", "tune"), default="score")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    paths = sorted(given.folder.glob("*.csv"))
    if not paths:
        parser.error(f"{given.folder}: no .csv files; a folder of two-column files (time, value) is needed")
    series = {path.stem: np.array(read_csv(path)[1]) for path in paths}
    windows = {
        window: {model: judged(calls) for model, calls in models.items()}
        for window, models in natural(series, given.part, 48 if given.quick else 12).items()
    }
    rows = {m: e.row() for m, e in ramps(series, given.part, 1 if given.quick else 4).items()}
    tell(windows, rows)
    if given.json:
        print(json.dumps({"part": given.part, "natural": windows, "ramps": rows}))


if __name__ == "__main__":
    main()
