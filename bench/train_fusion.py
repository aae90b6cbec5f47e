"""Fit the model that puts the signal families of a replica together, on fleets of the tuning part.

    python -m bench.train_fusion --fast 400:403 --slow 400:401 --small 400:405 --check-fast 412:414 --check-slow 412:414

Every minute of every replica is a row: what each family shows, and whether something of its own slows it (a slow or capped
GPU, slow memory, a slow process, processors that are shared) by as much as a claim needs. Minutes in which something else is known to be wrong with its
node, or with the pool, are left out. A logistic regression by scikit-learn; the limit is half a logit beyond what any
sound replica of the other fleets reached in three of five minutes, and not below what chance shows once in 3,000
replica-days. Written to detectors/fusion.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.events import effect
from bench.fleets import Fleet, draw
from bench.judge import Truth
from bench.watch import ABLE, TICK_S
from daemon.frame import FrameBuilder
from daemon.model import GONE, Array, Frames, Scrape
from detectors.fusion import LEAST_EFFECT
from detectors.gpupace import GpuPace
from detectors.hostload import HostLoad
from detectors.replicapace import ReplicaPace
from detectors.scales import GUMBEL_HALF
from detectors.signs import FAMILIES, signs
from simulator.faults import Fault
from simulator.policies import policy_of
from simulator.world import World

OWN = frozenset(
    {"power-cap", "slow-silicon", "dram-slow", "thermal-throttle", "slow-replica", "cpu-contention"}
)
"""Faults that are a replica's own slowness. All others make a minute one to leave out on what they touch."""
CLOCKS = frozenset({"power-cap", "slow-silicon", "thermal-throttle"})
CLOCK_SHARE = 0.35
SEEN_S = 600.0
"""A window of a quarter of an hour shows mostly the fault from then on."""
FILE = Path(__file__).parents[1] / "detectors" / "fusion.json"
VERSION = "3"
RARE_DAYS = 3000.0
"""Replica-days to one claim by chance: such claims are information and wake nobody. Four in 403 showed while the limit came from stress fleets alone, whose few replicas
have hardly an hour of heavy noise."""
GUMBEL_90 = 1.8839
"""90th percentile of a Gumbel variable over its median, in units of its scale."""


@dataclass(slots=True)
class Rows:
    """signs : (row, FAMILIES). sick : (row,) 1 = slowed by something of its own. of : (row,) number of its replica and
    fleet, so that minutes in a row can be told. minute : (row,)."""

    signs: list[Array]
    sick: list[int]
    of: list[int]
    minute: list[int]


def frames_of(fleet: Fleet) -> Iterator[tuple[Frames, World]]:
    """What a daemon would see of the fleet, tick by tick."""
    world = World(fleet.spec, fleet.seed, fleet.epoch)
    for case in fleet.cases:
        world.inject(case.fault)
    builder = FrameBuilder(replace(policy_of(fleet.spec, "bench"), able=ABLE))
    known: frozenset[str] = frozenset()
    for beat in range(round(fleet.hours * 3600.0 / TICK_S)):
        at = fleet.epoch + beat * TICK_S
        world.advance(at)
        present = frozenset(t.address for t in world.targets())
        for scrape in [
            *(Scrape(name, at, None, None, error=GONE) for name in sorted(known - present)),
            *world.sweep(),
        ]:
            builder.absorb(scrape)
        known = present
        yield builder.build(at), world


def collect(fleet: Fleet, stream: Iterator[tuple[Frames, World]], number: int, rows: Rows) -> None:
    """The families' minutes of one fleet, appended to `rows`."""
    gpus, replicas, hosts = GpuPace(), ReplicaPace(), HostLoad()
    truths: list[Truth] = []
    minute = 0
    ids: dict[str, int] = {}
    for frames, world in stream:
        if not truths:
            truths = [Truth(case, world) for case in fleet.cases]
        gpu, engine, node = frames["gpu"], frames["engine"], frames["node"]
        before = replicas.lags.count
        gpus.update(gpu)
        replicas.update(engine)
        hosts.update(node, engine, replicas.sizes.keys())
        if replicas.lags.count == before:
            continue
        minute += 1
        found, _ = signs(gpu, engine, node, gpus, replicas, hosts)
        homes = engine.facts.get("node", ())
        pools = engine.facts.get("pool", ())
        for i, name in enumerate(engine.entities):
            if np.isfinite(found[i, 0]):
                label = _label(name, homes[i], pools[i], frames.at, truths)
                if label is not None:
                    rows.signs.append(found[i])
                    rows.sick.append(label)
                    rows.of.append(number * 10_000 + ids.setdefault(name, len(ids)))
                    rows.minute.append(minute)


def _label(name: str, home: str, pool: str, at: float, truths: list[Truth]) -> int | None:
    """1 = slowed by something of its own, 0 = well, None = neither is sure."""
    for truth in truths:
        if not truth.lasts_over(at):
            continue
        fault = truth.fault
        touched = (
            name in truth.engines
            or home in truth.nodes
            or (pool in truth.pools and fault.entity.kind == "pool")
        )
        if truth.case.is_negative or not touched:
            continue
        if fault.kind not in OWN or name not in truth.engines:
            return None
        if felt(fault) < LEAST_EFFECT:
            return None
        settled = fault.at + fault.ramp_s + SEEN_S <= at <= fault.end
        return 1 if settled and not fault.period_s else None
    return 0


def felt(fault: Fault) -> float:
    """How much longer its replica's steps take: what a clock loses costs a third of it, since memory takes its time as ever. Source: the step
    model of simulator.devices."""
    lost = effect(fault)
    return CLOCK_SHARE * lost / (1.0 - lost) if fault.kind in CLOCKS else lost


def fit(rows: Rows, seed: int) -> tuple[Array, float]:
    """(FAMILIES,) weights and intercept. Sound minutes are thinned to every fifth: they are alike.

    A sign that would speak *against* a fault is left out, one after another: it only trims what another family overstates,
    and where it is not measured it would be missed.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = np.array(rows.signs), np.array(rows.sick)
    kept = (y == 1) | (np.array(rows.minute) % 5 == 0)
    used = list(range(len(FAMILIES)))
    while True:
        model = LogisticRegression(C=0.1, max_iter=2000, random_state=seed)
        model.fit(x[kept][:, used], y[kept])
        worst = int(np.argmin(model.coef_[0]))
        if model.coef_[0][worst] >= 0:
            break
        del used[worst]
    weights = np.zeros(len(FAMILIES))
    weights[used] = model.coef_[0]
    return weights, float(model.intercept_[0])


def steady(rows: Rows, logits: Array) -> Array:
    """(row,) the logit that three of the last five minutes of the same replica reach; -inf in its first minutes."""
    of, minute = np.array(rows.of), np.array(rows.minute)
    order = np.lexsort((minute, of))
    found = np.full(logits.size, -np.inf)
    values, owner = logits[order], of[order]
    window = np.lib.stride_tricks.sliding_window_view(values, 5)
    when = minute[order]
    # Minutes that were left out cut the window: what is in it is all sick or all sound.
    same = (owner[4:] == owner[:-4]) & (when[4:] - when[:-4] == 4)
    third = np.sort(window, axis=1)[:, 2]
    found[order[4:]] = np.where(same, third, -np.inf)
    return found


def limit_of(rows: Rows, logits: Array) -> float:
    """Beyond what sound replicas ever show: the largest steady logit of each, its tail drawn on to one in RARE_DAYS."""
    held, sick, of = steady(rows, logits), np.array(rows.sick), np.array(rows.of)
    sound = sick == 0
    largest = np.array([held[sound & (of == k)].max(initial=-np.inf) for k in np.unique(of[sound])])
    largest = largest[np.isfinite(largest)]
    days = float(sound.sum()) / 1440.0
    half, high = np.quantile(largest, (0.5, 0.9))
    scale = (high - half) / GUMBEL_90
    by_tail = half + scale * (np.log(largest.size * RARE_DAYS / days) - GUMBEL_HALF)
    return float(max(by_tail, largest.max() + 0.5))


def report(rows: Rows, logits: Array, limit: float) -> dict[str, float]:
    """Of the replicas that are sick at some time, the share that is claimed; sound minutes claimed; replica-days."""
    held, sick, of = steady(rows, logits), np.array(rows.sick), np.array(rows.of)
    ill = np.unique(of[sick == 1])
    found = [bool((held[(of == k) & (sick == 1)] > limit).any()) for k in ill]
    return {
        "sick_replicas": float(len(ill)),
        "claimed": float(np.mean(found)) if found else float("nan"),
        "sound_replicas_claimed": float(len(np.unique(of[(sick == 0) & (held > limit)]))),
        "sound_replica_days": float((sick == 0).sum()) / 1440.0,
    }


def _numbers(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end or int(first) + 1))


def gather(purposes: dict[str, range]) -> Rows:
    rows = Rows([], [], [], [])
    number = 0
    for purpose, numbers in purposes.items():
        for k in numbers:
            fleet = draw("tune", purpose, k, 0)
            collect(fleet, frames_of(fleet), number, rows)
            number += 1
            print(f"{fleet.name}: {len(rows.sick):,} minutes, {sum(rows.sick):,} of them sick", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", type=_numbers, default=range(400, 403), metavar="FIRST:END")
    parser.add_argument("--slow", type=_numbers, default=range(400, 401), metavar="FIRST:END")
    parser.add_argument("--small", type=_numbers, default=range(400, 405), metavar="FIRST:END")
    parser.add_argument("--check-fast", type=_numbers, default=range(412, 414), metavar="FIRST:END")
    parser.add_argument("--check-slow", type=_numbers, default=range(412, 414), metavar="FIRST:END")
    parser.add_argument("--check-healthy", type=_numbers, default=range(460, 461), metavar="FIRST:END")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    train = gather({"fast": given.fast, "slow": given.slow, "small": given.small})
    weights, intercept = fit(train, given.seed)
    check = gather({"fast": given.check_fast, "slow": given.check_slow, "healthy": given.check_healthy})
    logits = np.array(check.signs) @ weights + intercept
    limit = limit_of(check, logits)
    told = {
        "about": {
            "version": VERSION,
            "trained": datetime.now(UTC).date().isoformat(),
            "seed": str(given.seed),
            "fleets": f"tune fast {given.fast.start}-{given.fast.stop - 1}, slow {given.slow.start}-{given.slow.stop - 1}, "
            f"small {given.small.start}-{given.small.stop - 1}",
            "limit_from": f"tune fast {given.check_fast.start}-{given.check_fast.stop - 1}, "
            f"slow {given.check_slow.start}-{given.check_slow.stop - 1}, healthy {given.check_healthy.start}-{given.check_healthy.stop - 1}",
        },
        "intercept": round(intercept, 4),
        "limit": round(limit, 2),
        "weights": {name: round(float(w), 4) for name, w in zip(FAMILIES, weights, strict=True)},
    }
    given.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=2))
    print("train", report(train, np.array(train.signs) @ weights + intercept, limit))
    print("check", report(check, logits, limit))


if __name__ == "__main__":
    main()
