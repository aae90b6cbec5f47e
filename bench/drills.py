"""Every drill of one cluster with a seed that no test uses: what was found, what was done wrongly, what it cost.

    python -m bench.drills --seed 101
    python -m bench.drills --seed 101 --scenario xid79 --scenario tide --jobs 1

Ends with status 1 when anything sound was isolated or a request was cut off by what the daemon did. The last line of the
output is one JSON object, scenario -> result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from daemon.__main__ import Parts, assemble, fit_here
from daemon.cli.logs import to_stderr
from simulator.drill import drill
from simulator.scenarios import SCENARIOS

TOLD = (
    "faults",
    "false_isolations",
    "false_findings",
    "requests_total",
    "requests_lost",
    "requests_cut_off",
    "gpu_hours_lent",
    "steps",
    "journal_sha256",
    "wall_s",
)


def play(scenario: str, seed: int) -> dict[str, Any]:
    """The result of one drill, as far as it is told here."""
    to_stderr(logging.ERROR)
    found = drill(assemble, Parts, fit_here, scenario=scenario, seed=seed)
    return {key: found[key] for key in TOLD}


def line(scenario: str, result: dict[str, Any]) -> str:
    faults = result["faults"]
    found = sum(f["found_entity"] is not None for f in faults)
    return (
        f"{scenario:20} {found} of {len(faults)} found, {result['false_isolations']} wrong isolations, "
        f"{result['false_findings']} false findings, {result['requests_cut_off']} requests cut off, "
        f"{result['requests_lost']} of {result['requests_total']} lost, {result['wall_s']:.0f} s"
    )


def is_wrong(result: dict[str, Any]) -> bool:
    return bool(result["false_isolations"] or result["requests_cut_off"])


def main() -> None:
    names = list(SCENARIOS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--scenario", action="append", choices=names, help="only these; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {given.jobs}")
    chosen = given.scenario or names
    with ProcessPoolExecutor(given.jobs) as pool:
        waiting = {name: pool.submit(play, name, given.seed) for name in chosen}
        results = {}
        for name, future in waiting.items():
            results[name] = future.result()
            print(line(name, results[name]), flush=True)
    print(json.dumps(results))
    sys.exit(any(is_wrong(r) for r in results.values()))


if __name__ == "__main__":
    main()
