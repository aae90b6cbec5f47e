"""Scores the daemon's forecaster on the hourly series of a folder against simpler and well-known ones.

Usage: python -m bench.forecast FOLDER [--part score|tune] [--quick] [--json]
Rolling origins, horizon 168 h, no look-ahead. `--part score` takes origins in the last 30 % of each series and is for
final tables only; `--part tune` uses the first 70 % alone and is what constants may be chosen on.
MASE: mean absolute error over that of repeating the day before within the history. Ratios: against weekly naive at
the same origins; geometric means over series, then over families, with a bootstrap over families. WQL: weighted
quantile loss over the seven levels up to 72 h, against weekly naive with conformal bands.
With --json the last line of stdout is one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the claim is one core
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.forecast_models import Model, baselines, ours
from daemon.cli.ahead import read_csv
from daemon.model import Array
from detectors.forecast import LEVELS, fill
from detectors.forecast_members import DAY, MEMBERS, members

HORIZON = 168
HORIZONS = {"1h": 1, "24h": 24, "72h": 72, "168h": 168}
HISTORY_MIN = 8 * DAY
SHORT = 21 * DAY
SCORED_SHARE = 0.3
STRIDE = 13
CUT = 14 * DAY


@dataclass(slots=True)
class Tally:
    """What one model did on one series, summed over origins. mase : horizon -> sum; pinball, size : up to 72 h."""

    mase: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pinball: float = 0.0
    size: float = 0.0
    inside: int = 0
    known: int = 0
    seconds: float = 0.0
    fits: int = 0

    def add(self, quantiles: Array, truth: Array, scale: float, seconds: float) -> None:
        """quantiles : (quantile, hour); truth : (hour,), NaN = beyond the series. A horizon counts only whole."""
        middle = quantiles[LEVELS.index(0.5)]
        for name, hours in HORIZONS.items():
            if np.isfinite(truth[:hours]).all():
                self.mase[name] += float(np.abs(truth[:hours] - middle[:hours]).mean()) / scale
        if np.isfinite(truth[:72]).all():
            off = truth[None, :72] - quantiles[:, :72]
            level = np.array(LEVELS)[:, None]
            self.pinball += 2.0 * float(np.maximum(level * off, (level - 1.0) * off).mean(axis=0).sum())
            self.size += float(np.abs(truth[:72]).sum())
            low, high = quantiles[LEVELS.index(0.1), :72], quantiles[LEVELS.index(0.9), :72]
            self.inside += int(((truth[:72] >= low) & (truth[:72] <= high)).sum())
            self.known += 72
        self.seconds += seconds
        self.fits += 1

    @property
    def wql(self) -> float:
        return self.pinball / self.size if self.size else math.nan


Table = dict[str, dict[str, Tally]]
"""model -> series -> what it did."""


def origins_in(size: int, part: str, most: int) -> list[int]:
    """Numbers of values known at each scored origin; truth may end before the horizon does, but not before a day."""
    cut = math.ceil(size * (1.0 - SCORED_SHARE))
    first, last = (cut, size - DAY) if part == "score" else (math.ceil(0.35 * cut), cut - DAY)
    first = max(first, HISTORY_MIN)
    stride = max(STRIDE, math.ceil((last - first) / most))
    return list(range(first, last + 1, stride + (stride % 2 == 0)))


def run(series: Mapping[str, Array], models: Mapping[str, Model], part: str, most: int) -> dict[str, Table]:
    """row ("all", "short", "cut") -> Table. The cheap models score as fixed single models, without quantiles."""
    rows: dict[str, Table] = {r: defaultdict(lambda: defaultdict(Tally)) for r in ("all", "short", "cut")}
    for name, values in series.items():
        end = values.size if part == "score" else math.ceil(values.size * (1.0 - SCORED_SHARE))
        for number, origin in enumerate(origins_in(values.size, part, most)):
            y, truth = fill(values[:origin]), np.full(HORIZON, math.nan)
            if y.size < HISTORY_MIN or not y.any():
                continue
            come = values[origin : min(origin + HORIZON, end)]
            truth[: come.size] = come
            scale = float(np.abs(y[DAY:] - y[:-DAY]).mean()) + 1e-9
            names = ["all", "short"] if y.size <= SHORT else ["all"]
            for model, forecast in models.items():
                _score(rows, names, model, name, forecast, y, truth, scale)
            for single, made in zip(MEMBERS, members(y, HORIZON), strict=True):
                if single not in models:
                    rows["all"][f"single:{single}"][name].add(
                        np.tile(made, (len(LEVELS), 1)), truth, scale, 0.0
                    )
            if number % 4 == 0 and y.size > CUT:
                for model in ("weekly_naive", "ours"):
                    _score(rows, ["cut"], model, name, models[model], y[-CUT:], truth, scale)
        done = rows["all"]["ours"].get(name)
        if done:
            print(f"  {name}: {done.fits} origins", file=sys.stderr, flush=True)
    return rows


def _score(
    rows: dict[str, Table],
    names: list[str],
    model: str,
    series: str,
    forecast: Model,
    y: Array,
    truth: Array,
    scale: float,
) -> None:
    begun = time.process_time()
    made = forecast(y, HORIZON)
    took = time.process_time() - begun
    for row in names:
        rows[row][model][series].add(made, truth, scale, took)


# -- ratios ----------------------------------------------------------------------------------------------


def family(series: str) -> str:
    """`<kind>.<family>.<name>` -> family; any other name is a family of its own."""
    parts = series.split(".")
    return parts[1] if len(parts) >= 3 else series


def kind(series: str) -> str:
    parts = series.split(".")
    return parts[0] if len(parts) >= 3 else "other"


def balanced(ratio: Mapping[str, float]) -> float:
    """Geometric mean over the series of each family, then over families. NaN without any."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in ratio.items():
        if math.isfinite(value) and value > 0:
            groups[family(name)].append(math.log(value))
    return math.exp(float(np.mean([np.mean(g) for g in groups.values()]))) if groups else math.nan


def interval(ratio: Mapping[str, float], draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of `balanced` over families."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in ratio.items():
        if math.isfinite(value) and value > 0:
            groups[family(name)].append(math.log(value))
    if not groups:
        return math.nan, math.nan
    means = np.array([np.mean(g) for g in groups.values()])
    picked = np.random.default_rng(0).integers(0, means.size, (draws, means.size))
    low, high = np.quantile(np.exp(means[picked].mean(axis=1)), (0.025, 0.975))
    return float(low), float(high)


def ratios(table: Table, model: str, horizon: str) -> dict[str, float]:
    """series -> MASE of the model over weekly naive's."""
    naive = table["weekly_naive"]
    return {
        name: tally.mase[horizon] / naive[name].mase[horizon] if naive[name].mase[horizon] > 0 else math.nan
        for name, tally in table[model].items()
    }


def summary(table: Table, model: str) -> dict[str, Any]:
    """What the JSON says of one model."""
    tallies, naive = table[model], table["weekly_naive"]
    at_72 = ratios(table, model, "72h")
    wql = {n: t.wql / naive[n].wql if naive[n].wql else math.nan for n, t in tallies.items()}
    known = sum(t.known for t in tallies.values())
    has_bands = not model.startswith("single:")
    return {
        "mase_ratio": {h: _rounded(balanced(ratios(table, model, h))) for h in HORIZONS},
        "mase_ratio_72h_interval": [_rounded(v) for v in interval(at_72)],
        "wql_ratio_72h": _rounded(balanced(wql)) if has_bands else None,
        "coverage80": _rounded(sum(t.inside for t in tallies.values()) / known)
        if known and has_bands
        else None,
        "worst_series_ratio": _rounded(max((v for v in at_72.values() if v == v), default=math.nan)),
        "seconds_per_series": _rounded(
            sum(t.seconds for t in tallies.values()) / max(1, sum(t.fits for t in tallies.values()))
        ),
        "by_kind": {
            k: _rounded(balanced({n: v for n, v in at_72.items() if kind(n) == k}))
            for k in sorted({kind(n) for n in at_72})
        },
        "by_series": {
            n: {"mase_ratio": {h: _rounded(ratios(table, model, h)[n]) for h in HORIZONS}}
            | (
                {
                    "wql_ratio_72h": _rounded(wql[n]),
                    "coverage80": _rounded(t.inside / t.known if t.known else math.nan),
                }
                if has_bands
                else {}
            )
            | {"origins": t.fits}
            for n, t in tallies.items()
        },
    }


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def tell(found: Mapping[str, dict[str, Any]], short: dict[str, Any], cut: dict[str, Any]) -> None:
    """The table for people."""
    print(
        f"{'model':28}{'1h':>7}{'24h':>7}{'72h':>7} {'[95 %]':16}{'168h':>7}{'WQL 72h':>9}{'cov80':>7}{'worst':>7}{'s/fit':>8}"
    )
    for name, row in sorted(found.items(), key=lambda i: i[1]["mase_ratio"]["72h"] or math.inf):
        print(_line(name, row))
    print(_line("ours, 8-21 days of history", short))
    print(_line("ours, history cut to 14 d", cut))
    print("\nours by series (72 h)")
    for name, row in found["ours"]["by_series"].items():
        print(
            f"  {name:34}{_cell(row['mase_ratio']['72h'])}{_cell(row['wql_ratio_72h'])}{_cell(row['coverage80'])}  {row['origins']} origins"
        )
    print("by kind: " + ", ".join(f"{k} {v}" for k, v in found["ours"]["by_kind"].items()))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def _cell(value: float | None) -> str:
    return f"{value:7.3f}" if value is not None else "      -"


def _line(name: str, row: Mapping[str, Any]) -> str:
    low, high = row["mase_ratio_72h_interval"]
    span = f"[{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    at = row["mase_ratio"]
    return (
        f"{name:28}{_cell(at['1h'])}{_cell(at['24h'])}{_cell(at['72h'])} {span:16}{_cell(at['168h'])}  "
        f"{_cell(row['wql_ratio_72h'])}{_cell(row['coverage80'])}{_cell(row['worst_series_ratio'])} {_cell(row['seconds_per_series'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=("score", "tune"), default="score")
    parser.add_argument("--quick", action="store_true", help="few origins, no optional baselines")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    paths = sorted(given.folder.glob("*.csv"))
    if not paths:
        parser.error(f"{given.folder}: no .csv files; a folder of two-column files (time, value) is needed")
    series = {path.stem: np.array(read_csv(path)[1]) for path in paths}
    models: dict[str, Model] = baselines(is_quick=given.quick) | {"ours": ours}
    rows = run(series, models, given.part, most=6 if given.quick else 40)
    if not rows["all"]["ours"]:
        parser.error(f"{given.folder}: every series is shorter than the {HISTORY_MIN} h that an origin needs")
    found = {name: summary(rows["all"], name) for name in rows["all"]}
    short, cut = summary(rows["short"], "ours"), summary(rows["cut"], "ours")
    tell(found, short, cut)
    if given.json:
        mine = found.pop("ours") | {"short_history": short, "history_cut_14d": cut}
        print(json.dumps({"part": given.part, "ours": mine, "baselines": found}))


if __name__ == "__main__":
    main()
