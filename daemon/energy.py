"""What the cluster's work takes in energy and money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon.fleet import Fleet
from daemon.hours import DAY_H, HOUR_S, Hours
from daemon.model import NAN, Frames
from daemon.policy import Cost

EVERY_S = 60.0
LONGEST_S = 600.0
"""A longer pause between two looks is not counted: nobody knows what was drawn meanwhile."""
J_PER_KWH = 3.6e6
IDLE, LENT = "(idle)", "(lent)"


@dataclass(slots=True)
class Meter:
    """Energy, GPU time and tokens of the last day, by pool; what serves nobody goes to (idle) or (lent)."""

    hours: Hours = field(default_factory=Hours)
    at: float = NAN

    def watch(self, frames: Frames, fleet: Fleet) -> None:
        """Take in one look, at most one a minute. Power of a GPU that tells none is unknown, and not counted as 0."""
        elapsed = frames.at - self.at
        if elapsed < EVERY_S:
            return
        self.at = frames.at
        if not elapsed <= LONGEST_S:
            return
        gpu, pool = frames["gpu"], frames["pool"]
        power = gpu.column("power_w")
        whose = owners(frames, fleet)
        names = sorted(set(whose))
        place = {name: i for i, name in enumerate(names)}
        of = np.fromiter((place[name] for name in whose), dtype=np.intp, count=len(whose))
        is_known = np.isfinite(power)
        gpus, known = np.bincount(of, minlength=len(names)), np.bincount(of, is_known, len(names))
        drawn = np.bincount(of, np.where(is_known, power, 0.0), len(names))
        for name, number, told, watts in zip(
            names, gpus.tolist(), known.tolist(), drawn.tolist(), strict=True
        ):
            self.hours.add(f"gpu_s\t{name}", frames.at, elapsed * number)
            self.hours.add(f"known_gpu_s\t{name}", frames.at, elapsed * told)
            self.hours.add(f"joules\t{name}", frames.at, elapsed * watts)
        pue = frames["region"].column("pue_ratio")
        self.hours.add("pue", frames.at, float(pue[pue >= 1.0].mean()) if (pue >= 1.0).any() else NAN)
        made, read = pool.column("generation_tokens_s").tolist(), pool.column("prompt_tokens_s").tolist()
        for name, out, into in zip(pool.entities, made, read, strict=True):
            self.hours.add(f"tokens\t{name}", frames.at, elapsed * out)
            self.hours.add(f"prompt_tokens\t{name}", frames.at, elapsed * into)
        self.hours.forget(frames.at)


def owners(frames: Frames, fleet: Fleet) -> list[str]:
    """(gpu,) the pool a GPU works for, (lent) while its node is lent, else (idle)."""
    gpu = frames["gpu"]
    pools = gpu.facts.get("pool", ("",) * len(gpu.entities))
    return [
        pool or (LENT if name.split("/", 1)[0] in fleet.leases else IDLE)
        for name, pool in zip(gpu.entities, pools, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Bill:
    """One pool's day, or that of what serves nobody. NaN = not known or no price given.

    energy_kwh : at the GPU, those that tell no power filled in with the mean of those that do. facility_kwh : times PUE.
    saved_gpu_hours : against as many GPUs as in the busiest hour, all of the time.
    """

    name: str
    gpu_hours: float
    energy_kwh: float
    facility_kwh: float
    tokens: float
    prompt_tokens: float
    kwh_per_mtoken: float
    money: float
    money_per_mtoken: float
    carbon_kg: float
    saved_gpu_hours: float


def bills(meter: Meter, cost: Cost) -> list[Bill]:
    """The last day's, pools first."""
    names = meter.hours.names("gpu_s\t")
    return [_bill(meter.hours, name, cost) for name in sorted(names, key=lambda n: (n in (IDLE, LENT), n))]


def _bill(hours: Hours, name: str, cost: Cost) -> Bill:
    gpu_s, known_s = hours.total(f"gpu_s\t{name}"), hours.total(f"known_gpu_s\t{name}")
    kwh = hours.total(f"joules\t{name}") * gpu_s / known_s / J_PER_KWH if known_s > 0 else NAN
    facility = kwh * pue_of(hours, cost)
    tokens = hours.total(f"tokens\t{name}")
    money = gpu_s / HOUR_S * cost.gpu_hour
    if cost.kwh == cost.kwh:
        # A price of GPU hours alone is a rent, energy included; a price of energy is paid on top.
        money = (0.0 if money != money else money) + facility * cost.kwh
    mega = tokens / 1e6 if tokens > 0 else NAN
    is_pool = name not in (IDLE, LENT)
    return Bill(
        name=name,
        gpu_hours=gpu_s / HOUR_S,
        energy_kwh=kwh,
        facility_kwh=facility,
        tokens=tokens,
        prompt_tokens=hours.total(f"prompt_tokens\t{name}"),
        kwh_per_mtoken=facility / mega,
        money=money,
        money_per_mtoken=money / mega,
        carbon_kg=facility * cost.carbon_g_per_kwh / 1000.0,
        saved_gpu_hours=_saved(hours, name) if is_pool else NAN,
    )


def pue_of(hours: Hours, cost: Cost) -> float:
    """Facility over IT energy: as measured over the day, else as configured."""
    return hours.mean("pue") if hours.seen_h("pue") else cost.pue


def bought(meter: Meter, cost: Cost) -> list[str]:
    """What to buy on demand and what as spot, by pool: the base of the day is always needed, the peaks come and go.

    Nothing without both prices, or before a day was seen: half a day has no night.
    """
    said = []
    if not cost.spot_gpu_hour < cost.gpu_hour:
        return []
    for name in meter.hours.names("gpu_s\t"):
        rows = meter.hours.rows[f"gpu_s\t{name}"][1:-1]
        if name in (IDLE, LENT) or len(rows) < DAY_H - 3:
            continue
        gpus = [row[1] / HOUR_S for row in rows]
        base, peaks = min(gpus), sum(gpus) - min(gpus) * len(gpus)
        saved = peaks * (cost.gpu_hour - cost.spot_gpu_hour)
        if peaks >= 1.0:
            said.append(
                f"{name}: {base:.0f} GPUs were in use all day, buy those on demand; {peaks:.0f} GPU-hours a day were peaks up to "
                f"{max(gpus):.0f} GPUs, which as spot would cost {saved:.2f} {cost.currency} less; spot notices drain in time"
            )
    return said


def _saved(hours: Hours, name: str) -> float:
    """Whole hours only: one that has just begun would look like a small fleet."""
    rows = hours.rows[f"gpu_s\t{name}"][:-1]
    return sum(max(row[1] for row in rows) - row[1] for row in rows) / HOUR_S if rows else NAN


def power_by(frames: Frames, fact: str) -> Mapping[str, float]:
    """place -> watts its GPUs draw now; fact "node" or "rack". A place whose GPUs tell nothing is NaN."""
    gpu = frames["gpu"]
    power = gpu.column("power_w")
    blank = tuple(name.split("/", 1)[0] for name in gpu.entities) if fact == "node" else ("",) * len(power)
    places = np.array(gpu.facts.get(fact, blank), dtype=object)
    found = {}
    for place in sorted({p for p in places.tolist() if p}):
        mine = power[places == place]
        found[place] = float(np.nansum(mine)) if np.isfinite(mine).any() else NAN
    return found


def share_of_revenue(meter: Meter, cost: Cost) -> float:
    """Cost of a day over the revenue of a day, scaled to whole days. NaN = prices or revenue are not given."""
    seen = max((meter.hours.seen_h(f"gpu_s\t{name}") for name in meter.hours.names("gpu_s\t")), default=0)
    spent = [bill.money for bill in bills(meter, cost)]
    if not seen or any(m != m for m in spent) or not cost.revenue_per_day > 0:
        return NAN
    return sum(spent) * 24.0 / seen / cost.revenue_per_day
