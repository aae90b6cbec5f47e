"""Tells what is ahead: the daemon's forecasts, or that of a CSV file."""

from __future__ import annotations

import csv as csv_files
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.cli import Roots, canvas, show
from daemon.cli.trouble import Trouble

HOUR_S = 3600.0
EARLIEST_MS, LATEST_MS = 1e11, 1e14
"""Numbers in between are milliseconds since the epoch (1973 to 5138), as Grafana writes them; as seconds they would lie beyond 5138."""
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Rows of what the forecaster returns; see detectors.forecast."""


def tell(data: Mapping[str, Any]) -> None:
    """The outlook, a plot and a row a lead of every pool."""
    print(data["outlook"]["text"])
    rows = []
    for pool in data["pools"]:
        found, past = pool["forecast"], pool["history"]
        if found is not None and past["at"]:
            print(f"\n{pool['name']}: requests in flight. {pool['text']}")
            values = [math.nan if v is None else float(v) for v in past["concurrency_requests"]]
            _plot(past["at"][0], values, found["quantiles"])
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
    made = roots.forecast(np.array(values), hours)
    quantiles = made.quantiles
    if not np.isfinite(quantiles).all():
        raise Trouble(f"{path}: {made.note}")
    first = start + len(values) * HOUR_S
    rows = [
        {"at": first + k * HOUR_S}
        | {_name(level): float(f"{q:.6g}") for level, q in zip(LEVELS, column, strict=True)}
        for k, column in enumerate(quantiles.T)
    ]
    if form != "table":
        known = None if math.isnan(made.skill) else made.skill
        about = {"hours_read": len(values), "error_ratio": known, "note": made.note}
        return show.as_data(about | {"forecast": rows}, form)
    past = values[-min(len(values), max(2 * hours, 168)) :]
    _plot(first - len(past) * HOUR_S, past, quantiles.tolist())
    _rest(rows, made)
    return None


def _rest(rows: list[dict[str, Any]], made: Any) -> None:
    columns = [
        ("TIME", show.time_of("at")),
        *((f"{level:.0%}", _amount(_name(level))) for level in LEVELS),
    ]
    # A week of hours scrolls the plot away: every sixth row says as much.
    every = 1 if len(rows) <= 48 else 6
    show.table(rows[::every], columns)
    if every > 1:
        print(f"every {every}th hour of {len(rows)}; all of them with -o json")
    if not math.isnan(made.skill):
        print(f"past error {made.skill:.2f} of repeating the week before (below 1 is better)")
    if made.note:
        print(f"note: {made.note}")


def _amount(key: str) -> Callable[[Mapping[str, Any]], str]:
    """A column of numbers that stand under each other: three digits or more, no mixture of 74017 and 7.5e+04."""

    def cell(row: Mapping[str, Any]) -> str:
        value = float(row[key])
        return f"{value:.0f}" if 100.0 <= abs(value) < 1e12 else f"{value:.3g}"

    return cell


def _name(level: float) -> str:
    return f"q{level * 100:02.0f}"


def _plot(start: float, past: Sequence[float], quantiles: Sequence[Sequence[float]]) -> None:
    """Print the plot, in ASCII where the terminal's encoding has nothing else."""
    width = min(140, shutil.get_terminal_size((100, 30)).columns)
    lines = canvas.draw(start, HOUR_S, past, quantiles, LEVELS, width=width)
    text = "\n".join(lines)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.translate(canvas.PLAIN)
    print(text)


def backtest_csv(roots: Roots, path: Path, form: str) -> None:
    """Rolling-origin scores of a file's own past. Raises Trouble for one that is too short."""
    import numpy as np

    _, values = read_csv(path)
    try:
        with show.progress(f"backtest of {path}") as advance:
            rows = roots.backtest(np.array(values), advance)
    except ValueError as error:
        raise Trouble(f"{path}: {error}") from error
    if form != "table":
        return show.as_data([{k: None if v != v else v for k, v in row.items()} for row in rows], form)
    columns = [
        ("HORIZON", show.text_of("hours", "h")),
        ("ORIGINS", show.text_of("origins")),
        ("MEAN ERROR", show.text_of("error")),
        ("OF WEEKLY NAIVE", show.text_of("error_ratio")),
        ("QUANTILE LOSS OF NAIVE", show.text_of("loss_ratio")),
        ("INSIDE 80% BAND", show.share_of("coverage80")),
    ]
    show.table(rows, columns)
    return None


def read_csv(path: Path) -> tuple[float, list[float]]:
    """Start and hourly means of a two-column file: time (ISO with or without zone = UTC, or epoch seconds or milliseconds), value.

    Columns are parted by commas, semicolons or tabs. A first line that is no data is a heading. Hours without a row, and
    empty values, are NaN. Raises Trouble with the line.
    """
    sums: dict[int, list[float]] = {}
    rows = 0
    for number, row in _rows(path):
        try:
            at, value = _time(row[0]), _value(row[1])
        except (ValueError, IndexError) as error:
            if number == 1:
                continue
            raise Trouble(
                f"{path}:{number}: found {','.join(row)[:60]!r}; a time (2026-06-01T12:00:00Z, or seconds since "
                "the epoch) and a number (12.5) are needed"
            ) from error
        rows += 1
        if math.isfinite(value):
            sums.setdefault(int(at // HOUR_S), []).append(value)
    if not sums:
        why = (
            f"none of {rows} rows has a value"
            if rows
            else "no row with a time and a number; two columns are needed"
        )
        raise Trouble(f"{path}: {why}")
    first, last = min(sums), max(sums)
    if last - first > 24 * 366 * 10:
        span = " to ".join(f"{datetime.fromtimestamp(h * HOUR_S, UTC):%Y-%m-%d}" for h in (first, last))
        raise Trouble(f"{path}: the times go from {span}, more than ten years; is one of them wrong?")
    means = [sum(sums[h]) / len(sums[h]) if h in sums else math.nan for h in range(first, last + 1)]
    return first * HOUR_S, means


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of the lines that hold anything."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            # A comma is a decimal one where something else parts the columns.
            parted = next((mark for mark in ("\t", ";") if mark in head), ",")
            file.seek(0)
            for number, row in enumerate(csv_files.reader(file, delimiter=parted), 1):
                if "".join(row).strip():
                    yield number, row
    except (UnicodeDecodeError, csv_files.Error) as error:
        raise Trouble(f"{path}: not a text file in UTF-8 ({error}); save it as CSV in UTF-8") from error


def _value(text: str) -> float:
    return float(text) if text.strip().lower() not in ("", "null", "none") else math.nan


def _time(text: str) -> float:
    try:
        at = float(text)
    except ValueError:
        when = datetime.fromisoformat(text.strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not 0.0 <= at < LATEST_MS:
        raise ValueError(text)
    return at / 1000.0 if at >= EARLIEST_MS else at
