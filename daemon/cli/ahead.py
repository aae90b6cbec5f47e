"""Tells what is ahead: the daemon's forecasts, or that of a CSV file."""

from __future__ import annotations

import csv as csv_files
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.cli import Roots, show
from daemon.cli.trouble import Trouble

HOUR_S = 3600.0
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Rows of what the forecaster returns; see detectors.forecast."""


def tell(data: Mapping[str, Any]) -> None:
    print(data["outlook"]["text"])
    rows = []
    for pool in data["pools"]:
        for lead, peak in (pool["peaks"] or {"-": {}}).items():
            rows.append(
                {"pool": pool["name"], "lead": lead, "now": pool["now"]["concurrency_requests"], **peak}
            )
    columns = [
        ("POOL", show.text_of("pool")),
        ("WITHIN", show.text_of("lead")),
        ("REQUESTS NOW", show.text_of("now")),
        ("PEAK, MEDIAN", show.text_of("q50_requests")),
        ("PEAK, 90%", show.text_of("q90_requests")),
        ("AT", show.time_of("peak_at")),
    ]
    show.table(rows, columns, "no pool has been seen yet")


def of_csv(roots: Roots, path: Path, horizon_s: float, form: str) -> None:
    """Forecast the hourly means of a file. Raises Trouble for one that cannot be read or is too short."""
    import numpy as np

    start, values = read_csv(path)
    hours = max(1, round(horizon_s / HOUR_S))
    quantiles, error_ratio = roots.forecast(np.array(values), hours)
    if not np.isfinite(quantiles).all():
        raise Trouble(
            f"{path}: {len(values)} hours are too few to forecast; at least 48 are needed, four weeks are good"
        )
    first = start + len(values) * HOUR_S
    rows = [
        {"at": first + k * HOUR_S}
        | {f"q{level * 100:02.0f}": round(float(q), 4) for level, q in zip(LEVELS, column, strict=True)}
        for k, column in enumerate(quantiles.T)
    ]
    if form != "table":
        known = None if math.isnan(error_ratio) else error_ratio
        return show.as_data({"hours_read": len(values), "error_ratio": known, "forecast": rows}, form)
    columns = [
        ("TIME", show.time_of("at")),
        *((f"{level:.0%}", show.text_of(f"q{level * 100:02.0f}")) for level in LEVELS),
    ]
    show.table(rows, columns)
    return None


def read_csv(path: Path) -> tuple[float, list[float]]:
    """Start and hourly means of a two-column file: time (ISO with or without zone = UTC, or epoch seconds), value.

    A first line that is no data is a heading. Hours without a row are NaN. Raises Trouble with the line.
    """
    sums: dict[int, list[float]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv_files.reader(file), 1):
            if not row or not "".join(row).strip():
                continue
            try:
                at, value = _time(row[0]), float(row[1])
            except (ValueError, IndexError) as error:
                if number == 1:
                    continue
                raise Trouble(
                    f"{path}:{number}: found {','.join(row)[:60]!r}; a time and a number are needed"
                ) from error
            if math.isfinite(value):
                sums.setdefault(int(at // HOUR_S), []).append(value)
    if not sums:
        raise Trouble(f"{path}: no row with a time and a number; two columns are needed")
    first, last = min(sums), max(sums)
    if last - first > 24 * 366 * 10:
        raise Trouble(f"{path}: the times span more than ten years; is one of them wrong?")
    means = [sum(sums[h]) / len(sums[h]) if h in sums else math.nan for h in range(first, last + 1)]
    return first * HOUR_S, means


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        when = datetime.fromisoformat(text.strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
