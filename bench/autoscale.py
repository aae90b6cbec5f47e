"""Compare controllers of replicas on weeks of demand: who keeps the objective with how many GPU-hours.

    python -m bench.autoscale --quick
    python -m bench.autoscale --trace FILE|DIR [--json]
    python -m bench.autoscale --plan

Every controller is tuned on the first part of each series and scored on the last. The last line of stdout is one JSON
object. Everything but the times follows from the traces: nothing is drawn that a second run would draw otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.autoscale_oracle import oracle
from bench.autoscale_ours import Ours
from bench.autoscale_plan import plan_time
from bench.autoscale_run import TARGET, Batch, Result, baseline, batch, groups, run, start_of, tuned
from bench.autoscale_stress import blackout, double
from bench.autoscale_tide import tide
from bench.autoscale_traces import cases
from daemon.rivals import RIVALS

BUDGET, BUDGET_QUICK = 32, 12
"""Parameter sets tried for each controller in each fleet at each cold start."""


def scores(tune: Batch, score: Batch, budget: int) -> dict[str, dict[str, Any]]:
    """Policy -> its figures on the scored part, with `groups` by fleet and cold start."""
    found: dict[str, dict[str, Any]] = {}
    of = [(score.cases[c.case].gpus, score.cases[c.case].cold_s) for c in score.cells]
    for name in RIVALS:
        chosen = tuned(name, tune, budget)
        result = baseline(name, score, [[chosen[group]] for group in of])[0]
        found[name] = figures(result, score) | {
            "parameters": {f"{g[0]} {g[1]:.0f}s": p for g, p in chosen.items()}
        }
        _tell(name, found[name])
    for name, foresees in (("ours", True), ("ours_reactive", False)):
        # What it learns on the tuning part it keeps, as the others keep their parameters.
        policy = Ours(tune, foresees)
        run(tune, np.arange(len(tune.cells)), policy, start_of(tune))
        found[name] = figures(
            run(score, np.arange(len(score.cells)), policy.moved(score), start_of(score)), score
        )
        _tell(name, found[name])
    found["oracle"] = figures(best_oracle(score), score)
    _tell("oracle", found["oracle"])
    least = found["oracle"]["gpu_hours"]
    for row in found.values():
        row["gpu_hours_over_oracle"] = row["gpu_hours"] / least
    return found


def figures(result: Result, given: Batch) -> dict[str, Any]:
    every = np.ones(len(given.cells), dtype=bool)
    parts = {f"{g[0]} {g[1]:.0f}s": result.of(chosen) for g, chosen in groups(given).items()}
    return {**result.of(every), "groups": parts}


def best_oracle(given: Batch) -> Result:
    """In each fleet at each cold start the oracle that keeps the target with the fewest GPU-hours."""
    plans, first = oracle(given)
    worlds = np.arange(len(given.cells))
    results = [run(given, worlds, plan, begin) for plan, begin in zip(plans, first, strict=True)]
    columns = {name: np.array(getattr(results[0], name)) for name in Result.__slots__}
    for chosen in groups(given).values():
        kept = [r for r in results if r.of(chosen)["slo_attainment"] >= TARGET] or results[:1]
        best = min(kept, key=lambda r: r.of(chosen)["gpu_hours"])
        for name, column in columns.items():
            column[chosen] = getattr(best, name)[chosen]
    return Result(**columns)


def _tell(name: str, row: Mapping[str, Any]) -> None:
    print(
        f"{name:14s} {row['slo_attainment']:8.4f} {row['gpu_hours']:11.0f} {row['flaps_per_pool_day']:9.2f} "
        f"{row['requests_lost']:9.0f}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="a request trace, an hourly series, or a folder of them")
    parser.add_argument(
        "--quick", action="store_true", help="two days instead of a week, fewer parameter sets"
    )
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument(
        "--plan", action="store_true", help="only the time of a plan, 100 pools on 1,250 nodes"
    )
    given = parser.parse_args(arguments)
    if given.trace is not None and not given.trace.exists():
        parser.error(f"--trace {given.trace}: no such file or folder")
    if given.plan:
        print(json.dumps({"plan": plan_time()}))
        return 0
    begun = time.perf_counter()
    if given.json:
        out, sys.stdout = sys.stdout, sys.stderr
    tune, score = (batch(cases(part, given.trace, quick=given.quick)) for part in ("tune", "score"))
    print(f"{len(score.cases)} cases, {len(score.cells)} pools, {score.days:.0f} days scored")
    print(f"{'policy':14s} {'in time':>8s} {'GPU-hours':>11s} {'flaps/day':>9s} {'lost':>9s}")
    found = scores(tune, score, BUDGET_QUICK if given.quick else BUDGET)
    lent = tide(days=4 if given.quick else 30)
    for name, row in lent.items():
        found[name].update(row)
    report = {
        "policies": found,
        "step": double(),
        "blackout": blackout(),
        "plan": plan_time(),
        "cases": [c.name for c in score.cases],
        "wall_s": round(time.perf_counter() - begun, 1),
    }
    if given.json:
        sys.stdout = out
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
