"""What the forecast page says, read off the forecasts as plain data.

Values as in daemon.web.views; series are lists with one value a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daemon.hindsight import BLEND
from daemon.loop import Daemon
from daemon.model import NAN, Array, Forecast
from daemon.outlook import pool_frame
from daemon.replica import LOAD_TARGET
from daemon.web.errors import Missing
from daemon.web.views import Row, lease_rows, outlook_row, pool_rows

HISTORY_S = 7 * 86400.0
HOUR_S = 3600.0
DAY_S = 86400.0
BEFORE_S = 72 * 3600.0
LEADS_S = {"24h": 86400.0, "72h": 3 * 86400.0}


def forecast(daemon: Daemon, pool: str = "") -> Row:
    """Demand ahead of every pool or of one, GPUs needed against usable, leases. Raises Missing for an unknown pool."""
    rows = {r["name"]: r for r in pool_rows(daemon)}
    if pool and pool not in rows:
        raise Missing(f"no pool {pool!r}; pools: {', '.join(rows) or 'none yet'}")
    names = [pool] if pool else list(rows)
    outlook = daemon.core.outlook
    needed = {f"{level:g}": values.tolist() for level, values in outlook.needed.items()}
    return {
        "at": daemon.frames.at or NAN,
        "outlook": outlook_row(daemon),
        "needed": {"from": outlook.at, "step_s": outlook.step_s, "gpus": needed},
        "leases": lease_rows(daemon),
        "calendar": calendar(daemon),
        "cluster": beside(daemon, daemon.core.policy.cluster),
        "pools": [pool_ahead(daemon, rows[name]) for name in names],
        "error": daemon.status.forecast_error,
    }


def calendar(daemon: Daemon) -> list[Row]:
    """One row a day of the week ahead: GPUs not needed at the 90 % level in each of its hours, UTC.

    free : 24 numbers, NaN where the hour is past or beyond the horizon; negative = short by so many. lent : GPUs that are
    lent at that hour by the leases that stand.
    """
    outlook = daemon.core.outlook
    needed = outlook.needed.get(0.9)
    if needed is None or not outlook.is_known:
        return []
    usable = outlook.ahead if outlook.ahead.size == needed.size else np.full(needed.size, outlook.usable)
    start = outlook.at - outlook.at % HOUR_S
    leases = daemon.core.state.fleet.leases.values()
    days: dict[float, Row] = {}
    for k, (want, have) in enumerate(zip(needed.tolist(), usable.tolist(), strict=True)):
        at = start + k * outlook.step_s
        day = days.setdefault(
            at - at % DAY_S, {"day": at - at % DAY_S, "free": [NAN] * 24, "lent": [0.0] * 24}
        )
        hour = int(at % DAY_S // HOUR_S)
        day["free"][hour] = have - want
        day["lent"][hour] = sum(v.gpus for v in leases if v.at <= at < v.until)
    return list(days.values())[:8]


def pool_ahead(daemon: Daemon, now: Row) -> Row:
    """One pool: the week behind it by the hour, the forecast as it stands, and the peaks to expect."""
    name, at = now["name"], daemon.frames.at
    found = daemon.core.state.forecasts.get(name)
    times, values = hourly(*daemon.record.series("pool", name, "concurrency", at - HISTORY_S, at + 1.0))
    row: Row = {
        "name": name,
        "signal": "concurrency_requests",
        "now": now,
        "planned_requests": now["ready"] * now["capacity_per_replica_requests"] * LOAD_TARGET,
        "history": {"at": times.tolist(), "step_s": HOUR_S, "concurrency_requests": values.tolist()},
        "forecast": None,
        "peaks": {},
        "before": before(daemon, name),
        "scores": scores(daemon, name),
        "beside": beside(daemon, name),
        "short": short(daemon, name),
    }
    note = daemon.foresight.notes.get(name, "")
    if found is None:
        row["text"] = "No forecast yet" + (
            f": {note}." if note else ": it needs two days of recorded demand, or history from Prometheus."
        )
        return row
    row["forecast"] = {
        "made_at": found.at,
        "step_s": found.step_s,
        "model": found.model,
        "skill_ratio": found.skill,
        "levels": list(found.levels),
        "quantiles": [[round(v, 2) for v in line] for line in found.quantiles.tolist()],
    }
    row["peaks"] = {lead: peak(found, at, lead_s) for lead, lead_s in LEADS_S.items()}
    row["text"] = _text(found) + (f" Note: {note}." if note else "")
    return row


def before(daemon: Daemon, pool: str) -> Row | None:
    """What was forecast 72 h ago, to stand against what came; None while nothing is that old."""
    at = daemon.frames.at
    kept = daemon.record.archive.made_before(pool, "concurrency", at - BEFORE_S)
    if kept is None or at - kept.at > 2 * BEFORE_S:
        return None
    used = kept.quantiles.get(kept.chosen, kept.quantiles[BLEND])
    return {
        "made_at": kept.at,
        "step_s": kept.step_s,
        "forecaster": kept.chosen,
        "levels": list(kept.levels),
        "quantiles": [[round(v, 2) for v in line] for line in used.tolist()],
    }


def scores(daemon: Daemon, pool: str) -> list[Row]:
    """How elapsed forecasts of five weeks did, one row a forecaster."""
    found = daemon.foresight.standings.get((pool, "concurrency"), {})
    return [
        {
            "forecaster": name,
            "elapsed": s.number,
            "error_ratio": s.ratio,
            "wql": s.wql,
            "coverage80": s.coverage80,
            "brier_skill": s.brier_skill,
        }
        for name, s in found.items()
    ]


def short(daemon: Daemon, pool: str) -> Row:
    """How likely the pool runs short within the horizon, when that is more likely than not, GPU-hours it would lack."""
    part = pool_frame(daemon.core.outlook)
    return {
        "chance": part.value(pool, "short_chance"),
        "exhausted_in_s": part.value(pool, "exhausted_in_s"),
        "gpu_hours": part.value(pool, "short_gpu_hours"),
    }


def beside(daemon: Daemon, name: str) -> list[Row]:
    """Peaks ahead of what is forecast beside a pool's requests in flight, or of the whole cluster; empty = nothing yet."""
    rows = []
    for (target, signal), found in sorted(daemon.foresight.others.items()):
        if target == name:
            most = {f"q{q * 100:.0f}": float(found.at_level(q).max()) for q in (0.5, 0.9)}
            rows.append({"signal": signal, "skill_ratio": found.skill, **most})
    return rows


def hourly(at: Array, values: Array) -> tuple[Array, Array]:
    """(hour,) left edges and means, gaps as NaN so that a line breaks there."""
    if not at.size:
        return np.empty(0), np.empty(0)
    hours = (at // HOUR_S).astype(np.int64)
    index = hours - hours[0]
    size = int(index[-1]) + 1
    count = np.bincount(index, minlength=size)
    total = np.bincount(index, values, minlength=size)
    mean = np.where(count > 0, total / np.maximum(count, 1), NAN)
    return (hours[0] + np.arange(size)) * HOUR_S, mean


def peak(found: Forecast, at: float, lead_s: float) -> dict[str, Any]:
    """Highest demand within a lead at the median and the 90 % level, with the time of the median's peak."""
    first = max(0, int((at - found.at) / found.step_s))
    last = max(first + 1, int((at + lead_s - found.at) / found.step_s) + 1)
    row: dict[str, Any] = {}
    for level in (0.5, 0.9):
        if level not in found.levels:
            continue
        part = found.at_level(level)[first:last]
        row[f"q{level * 100:.0f}_requests"] = float(part.max()) if part.size else NAN
        if level == 0.5:
            row["peak_at"] = found.at + (first + int(part.argmax())) * found.step_s if part.size else NAN
    return row


def _text(found: Forecast) -> str:
    skill = found.skill
    if skill != skill:
        return "Not scored yet: two weeks of history are needed to compare it with repeating the week before."
    if skill < 1.0:
        return f"On its own past it was {1.0 - skill:.0%} closer than repeating the week before."
    return f"On its own past it was {skill - 1.0:.0%} further off than repeating the week before: plan with the wide band."
