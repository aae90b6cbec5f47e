"""Compare the simulator's noise with what was measured on real fail-slow telemetry.

    python -m bench.noise

Two columns: the noise process itself, and the activity of GPUs as the daemon's frames show it, each over the median of
the GPUs that work on the same tokens, so that load cancels. Minute means throughout, as in the reference.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import numpy as np

from daemon.frame import FrameBuilder
from daemon.model import Array
from simulator.defaults import default_spec
from simulator.noise import ColouredNoise
from simulator.policies import policy_of
from simulator.world import World

TICK_S = 15.0
EPOCH = 1_780_272_000.0
LAGS_MIN = (1, 5, 15, 60)
REAL: Mapping[str, tuple[float, float]] = {
    "autocorrelation at 1 min": (0.65, 0.75),
    "autocorrelation at 5 min": (0.30, 0.40),
    "autocorrelation at 15 min": (0.15, 0.25),
    "autocorrelation at 60 min": (-0.05, 0.05),
    "excess kurtosis": (0.9, 2.9),
    "common mode, share of variance": (0.12, 0.14),
    "device offset, sd": (0.012, 0.016),
    "missing samples": (0.0001, 0.0014),
}
"""What the reference notes give, section 1. Where they give one number, +-0.05 around it."""


def minute_means(values: Array) -> Array:
    """(minute, device) of (tick, device), four ticks a minute; NaN where nothing was measured."""
    cut = values[: len(values) // 4 * 4].reshape(-1, 4, values.shape[1])
    known = np.isfinite(cut)
    number = known.sum(axis=1)
    total = np.where(known, cut, 0.0).sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def autocorrelation(residual: Array, lag: int) -> float:
    """Mean over devices of (minute, device) residuals, each about its own mean."""
    centred = residual - np.nanmean(residual, axis=0)
    early, late = centred[:-lag], centred[lag:]
    return float(np.nanmean(early * late) / np.nanmean(centred**2))


def statistics(residual: Array) -> dict[str, float]:
    """Of (minute, device) residuals whose device offsets have been left in."""
    centred = residual - np.nanmean(residual, axis=0)
    found = {f"autocorrelation at {lag} min": autocorrelation(residual, lag) for lag in LAGS_MIN}
    scaled = centred / np.nanstd(centred, axis=0)
    found["excess kurtosis"] = float(np.nanmean(scaled**4) - 3.0)
    return found


def of_process(days: float, devices: int, seed: int) -> dict[str, float]:
    """The process alone, in the variance it is used with."""
    noise = ColouredNoise((devices,), TICK_S, np.random.default_rng(seed))
    values = np.array([noise.step() for _ in range(round(days * 5760))])
    found = statistics(minute_means(values))
    # Of independent devices with one common part the mean keeps that part and 1/n of the rest.
    share = (np.var(values.mean(axis=1)) / np.var(values, axis=0).mean() - 1 / devices) / (1 - 1 / devices)
    return found | {"common mode, share of variance": float(share)}


def of_frames(hours: float, gpus: int, seed: int) -> dict[str, float]:
    """What the daemon sees of a healthy cluster."""
    spec = default_spec(gpus)
    world, builder = World(spec, seed, EPOCH), FrameBuilder(policy_of(spec, "noise"))
    rows: list[Array] = []
    peer: tuple[str, ...] = ()
    missed = asked = 0
    for beat in range(round(hours * 240)):
        at = EPOCH + beat * TICK_S
        world.advance(at)
        for scrape in world.sweep():
            missed, asked = missed + (scrape.values is None), asked + 1
            builder.absorb(scrape)
        gpu = builder.build(at)["gpu"]
        peer = gpu.facts.get("engine", ())
        rows.append(gpu.column("dram_active_ratio"))
    active = np.array(rows)
    active[active < 0.05] = np.nan
    minutes = minute_means(active)
    groups = [[i for i, p in enumerate(peer) if p == name] for name in sorted(set(peer) - {""})]
    kept = [g for g in groups if len(g) >= 4]
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.concatenate(
            [
                np.log(minutes[:, g]) - np.log(np.nanmedian(minutes[:, g], axis=1, keepdims=True))
                for g in kept
            ],
            axis=1,
        )
    found = statistics(residual)
    found["device offset, sd"] = float(np.std(world.gpus.silicon))
    found["missing samples"] = missed / asked
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=float, default=4.0, help="of the process")
    parser.add_argument("--hours", type=float, default=24.0, help="of the cluster")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    process = of_process(given.days, 256, given.seed)
    shown = of_frames(given.hours, given.gpus, given.seed)
    print(f"{'':34}{'real':>18}{'process':>10}{'frames':>10}")
    for name, (low, high) in REAL.items():
        cells = "".join(f"{_cell(found.get(name)):>10}" for found in (process, shown))
        print(f"{name:34}{f'{low:g} to {high:g}':>18}{cells}")
    print(json.dumps({"process": process, "frames": shown, "real": REAL}))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
