"""Measure detection on many simulated fleets: what is found, where, how soon, and what is said for nothing.

    python -m bench.detect --fleets 8 --seeds 2 --part published --out result.jsonl
    python -m bench.detect --merge result.jsonl more.jsonl
    python -m bench.detect --quick

F fleets of each purpose are drawn, each run with S seeds of noise, load and faults. Finished fleets are appended to
the file as they come; a fleet that stands in it is not run again. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.baselines import BASELINES
from bench.cpu import core_share
from bench.fleets import PARTS, PURPOSES, TABLE, draw
from bench.intervals import plain
from bench.judge import judge
from bench.table import lines, results
from bench.watch import watch


@dataclass(frozen=True, slots=True)
class Job:
    """One fleet to run. purpose "cpu" : number is the size of the fleet, seed the ticks to measure."""

    part: str
    purpose: str
    number: int
    seed: int
    hours: float | None = None
    with_baselines: bool = True

    @property
    def name(self) -> str:
        if self.purpose == "cpu":
            return f"cpu-{self.number}"
        short = "" if self.hours is None else f"-{self.hours:g}h"
        return f"{self.part}-{self.purpose}-{self.number}-{self.seed}{short}"


QUICK = (
    Job("tune", "slow", 1, 0, 8.0),
    Job("tune", "healthy", 0, 0, 1.5),
    Job("tune", "fast", 0, 0, 6.0),
    Job("tune", "fast", 1, 0, 6.0),
    Job("tune", "cpu", 1000, 16),
)


def run(job: Job) -> dict[str, Any]:
    """The record of one job; deterministic but for its processor times."""
    named = {name: make() for name, make in BASELINES.items()} if job.with_baselines else {}
    if job.purpose == "cpu":
        return core_share(job.number, job.seed, named)
    fleet = draw(job.part, job.purpose, job.number, job.seed, job.hours)
    seen, world = watch(fleet, named if fleet.with_baselines else {})
    return judge(fleet, seen, world)


def plan(given: argparse.Namespace) -> list[Job]:
    if given.quick:
        return list(QUICK)
    jobs = [
        Job(given.part, purpose, number, seed, None, not given.no_baselines)
        for purpose in given.purpose or TABLE
        for number in range(given.first, given.first + given.fleets)
        for seed in range(given.first_seed, given.first_seed + given.seeds)
    ]
    if given.cpu_gpus:
        jobs.append(Job(given.part, "cpu", given.cpu_gpus, 40, None, not given.no_baselines))
    return jobs


def run_all(jobs: list[Job], workers: int, out: Path | None) -> Iterator[dict[str, Any]]:
    """Records as they finish, each written to `out` at once. What costs most starts first."""
    order = sorted(jobs, key=lambda j: ("slow", "healthy", "small", "clock", "fast", "cpu").index(j.purpose))
    if workers == 1:
        for job in order:
            yield _noted(job, run(job), out)
        return
    with ProcessPoolExecutor(workers) as pool:
        waiting = {pool.submit(run, job): job for job in order}
        for done in as_completed(waiting):
            yield _noted(waiting[done], done.result(), out)


def _noted(job: Job, record: dict[str, Any], out: Path | None) -> dict[str, Any]:
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    if "ours" in record:
        ours = record["ours"]
        found = sum(c["found"] for c in ours["cases"])
        text = f"{found}/{len(ours['cases'])} found, false {ours['false']}, wrong {ours['wrong_isolations']}"
        spent = sum(record["cpu_s"].values())
        print(f"{job.name}: {record['gpu_days']:.0f} GPU-days in {spent:.0f} core-s, {text}", file=sys.stderr)
    return record


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """Records of earlier runs, one a fleet. A line cut off by an interruption is left out and said."""
    records = {}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                print(f"{path}:{number}: not a whole record, left out", file=sys.stderr)
                continue
            records[record["fleet"]] = record
    return list(records.values())


ASKED = (
    "precision", "recall", "f1", "entity_accuracy", "leaf_accuracy", "cause_macro_f1",
    "false_pages_per_1000_gpu_days", "false_isolations_per_1000_gpu_days", "gpu_days", "delay_s", "cpu_core_10000_gpus",
)  # fmt: skip
"""What the last line holds of every method; of ours it holds everything."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fleets", type=int, default=4, help="fleets of each purpose")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each fleet")
    parser.add_argument("--first", type=int, default=0, help="number of the first fleet")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--part", choices=sorted(PARTS), default="tune")
    parser.add_argument("--purpose", choices=PURPOSES, action="append", help="only these; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a look at everything in less than a minute")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--cpu-gpus", type=int, default=10_000, help="fleet to measure CPU with, 0 = none")
    parser.add_argument("--out", type=Path, help="append a line a fleet, skip what stands there")
    parser.add_argument("--merge", type=Path, nargs="+", help="no run: the table of these files")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args()
    if given.fleets < 1 or given.seeds < 1 or given.jobs < 1:
        parser.error(
            f"--fleets, --seeds and --jobs must be 1 or more, got {given.fleets}, {given.seeds}, {given.jobs}"
        )
    missing = [str(p) for p in given.merge or [] if not p.is_file()]
    if missing:
        parser.error(f"--merge: no file {', '.join(missing)}; name files that --out wrote")
    if given.merge:
        records = read(given.merge)
    else:
        records = read([given.out]) if given.out and given.out.is_file() else []
        done = {r["fleet"] for r in records}
        jobs = [job for job in plan(given) if job.name not in done]
        records += run_all(jobs, given.jobs, given.out)
    table = results(records)
    if not given.json:
        print("\n".join(lines(table, records)))
    asked = {name: {key: row[key] for key in ASKED} for name, row in table["baselines"].items()}
    print(json.dumps(plain({"ours": table["ours"], "baselines": asked})))


if __name__ == "__main__":
    main()
