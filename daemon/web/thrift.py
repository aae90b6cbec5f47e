"""What the cost page says: energy, money and carbon of the last day."""

from __future__ import annotations

import dataclasses
import math

from daemon import energy, power, worth
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.web.views import Row


def of(daemon: Daemon) -> Row:
    """A row a pool, what stood idle or was lent, and what racks draw now."""
    core, frames = daemon.core, daemon.frames
    cost = core.policy.cost
    found = energy.bills(core.state.meter, cost)
    spans = [core.state.meter.hours.seen_h(f"gpu_s\t{bill.name}") for bill in found]
    return {
        "at": frames.at or NAN,
        "hours": max(spans, default=0),
        "currency": cost.currency,
        "prices": {
            "gpu_hour": cost.gpu_hour,
            "kwh": cost.kwh,
            "pue": energy.pue_of(core.state.meter.hours, cost),
            "carbon_g_per_kwh": cost.carbon_g_per_kwh,
        },
        "pools": [dataclasses.asdict(bill) for bill in found],
        "total": _total(found),
        "racks": _racks(daemon),
        "advice": [*energy.bought(core.state.meter, cost), *_kinds(daemon)],
        "nodes": _places(energy.power_by(frames, "node")),
        "share_of_revenue": energy.share_of_revenue(core.state.meter, cost),
        "missing": _missing(found, cost.gpu_hour, cost.kwh),
    }


def _kinds(daemon: Daemon) -> list[str]:
    """What a token costs on each kind of GPU, of pools that run on several."""
    core = daemon.core
    found = {
        pool: core.state.memory.worth.costs(pool, core.policy.cost) for pool in core.state.memory.worth.paces
    }
    return [worth.told(pool, costs) for pool, costs in sorted(found.items()) if costs]


def _total(found: list[energy.Bill]) -> Row:
    """Sums; NaN as soon as one part is not known."""
    keys = ("gpu_hours", "energy_kwh", "facility_kwh", "money", "carbon_kg")
    sums: Row = {key: sum((getattr(bill, key) for bill in found), 0.0) if found else NAN for key in keys}
    tokens = sum(bill.tokens for bill in found if bill.tokens == bill.tokens)
    mega = tokens / 1e6 if tokens > 0 else NAN
    return sums | {
        "kwh_per_mtoken": sums["facility_kwh"] / mega,
        "money_per_mtoken": sums["money"] / mega,
        "tokens": tokens,
    }


def _places(power: object) -> list[Row]:
    assert isinstance(power, dict)
    return [
        {"name": name, "power_w": watts}
        for name, watts in sorted(power.items(), key=lambda p: (-p[1] if p[1] == p[1] else math.inf, p[0]))
    ]


def _racks(daemon: Daemon) -> list[Row]:
    """What racks draw at their GPUs; with a cap, what they draw in all, and why they get no more work."""
    core, frames = daemon.core, daemon.frames
    capped = {r.name: r for r in power.racks(frames, core.topology, core.policy)}
    rows = _places(energy.power_by(frames, "rack"))
    for row in rows:
        rack = capped.get(row["name"])
        row |= {
            "cap_w": rack.cap_w if rack else NAN,
            "draw_w": rack.draw_w if rack else NAN,
            "why": rack.why if rack else "",
        }
    return rows


def _missing(found: list[energy.Bill], gpu_hour: float, kwh: float) -> list[str]:
    said = []
    if not found:
        said.append("nothing was measured yet: two looks a minute apart are needed")
    elif any(bill.energy_kwh != bill.energy_kwh for bill in found):
        said.append("no power of some GPUs: scrape gpu.power_w (dcgm-exporter)")
    if gpu_hour != gpu_hour and kwh != kwh:
        said.append("no prices: set cost.gpu_hour or cost.kwh in the configuration")
    return said
