"""Scores the forecaster against weekly naive on the hourly series of a folder; prints JSON.

Usage: python -m bench.forecast FOLDER [--origins N]
Rolling origins 72 h apart, horizon 72 h, no look-ahead. error_ratio: mean absolute error over weekly naive's, both at
the same origins; coverage_80: share of the truth between the 10 % and the 90 % level. `all`: unweighted means.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np

from detectors.forecast import DAY, LEVELS, WEEK, fill, forecast_series, weekly_naive

HORIZON = 72


def read(path: Path) -> np.ndarray:
    rows = list(csv.reader(path.open()))[1:]
    return np.array([float(row[1]) if row[1] else math.nan for row in rows])


def score(values: np.ndarray, origins: int) -> dict[str, float] | None:
    """None for a series too short for a single origin."""
    y = fill(values)
    ours, naive, inside = 0.0, 0.0, []
    for k in range(1, origins + 1):
        origin = y.size - HORIZON * k
        if origin < WEEK + DAY:
            break
        truth = y[origin : origin + HORIZON]
        quantiles, _ = forecast_series(y[:origin], HORIZON)
        low, middle, high = (quantiles[LEVELS.index(q)] for q in (0.1, 0.5, 0.9))
        ours += float(np.abs(truth - middle).mean())
        naive += float(np.abs(truth - weekly_naive(y[:origin], HORIZON)).mean())
        inside.append(float(((truth >= low) & (truth <= high)).mean()))
    if not inside or not naive > 0:
        return None
    return {"origins": len(inside), "error_ratio": ours / naive, "coverage_80": float(np.mean(inside))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--origins", type=int, default=8)
    given = parser.parse_args()
    found = {path.stem: score(read(path), given.origins) for path in sorted(given.folder.glob("*.csv"))}
    scored = [s for s in found.values() if s is not None]
    total = {
        "series": len(scored),
        "error_ratio": math.exp(float(np.mean([math.log(s["error_ratio"]) for s in scored]))),
        "coverage_80": float(np.mean([s["coverage_80"] for s in scored])),
    }
    print(json.dumps({"series": found, "all": total}, indent=1))


if __name__ == "__main__":
    main()
