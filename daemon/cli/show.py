"""Prints results: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

FORMATS = ("table", "json", "yaml")

Column = tuple[str, Callable[[Mapping[str, Any]], str]]
"""Heading and what stands under it."""


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A moving bar with the time it has taken, on stderr of a terminal, while the body runs; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, no_color="NO_COLOR" in os.environ)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


@contextmanager
def progress(text: str) -> Iterator[Callable[[float, float], None]]:
    """A bar on stderr of a terminal that fills as the body calls (done, total) and goes when it is full; elsewhere nothing.

    It appears at the first call, which may come late and from another thread.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color="NO_COLOR" in os.environ)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(text, total=None)

    def advance(done: float, total: float) -> None:
        if done < total:
            bar.start()
            bar.update(task, completed=done, total=total)
        else:
            bar.stop()

    try:
        yield advance
    finally:
        bar.stop()


def as_data(value: Any, form: str) -> None:
    if form == "json":
        print(json.dumps(value, ensure_ascii=False, indent=None if not sys.stdout.isatty() else 1))
    else:
        import yaml

        print(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), end="")


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], empty: str = "none") -> None:
    """Aligned columns. On a terminal long texts wrap; into a pipe a row is always one line."""
    rows = list(rows)
    if not rows:
        print(empty)
        return
    if not sys.stdout.isatty():
        cells = [[name for name, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, _ in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(_plain(cell(row)) for _, cell in columns))
    Console(no_color="NO_COLOR" in os.environ).print(made)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def text_of(key: str, unit: str = "") -> Callable[[Mapping[str, Any]], str]:
    """A column that shows a value as it is; a dash for what is not known."""

    def cell(row: Mapping[str, Any]) -> str:
        value = row.get(key)
        if value is None or value == "" or value != value:
            return "-"
        if isinstance(value, float) and math.isfinite(value):
            value = f"{value:.0f}" if value == int(value) else f"{value:.3g}"
        return f"{value}{unit}"

    return cell


def share_of(key: str) -> Callable[[Mapping[str, Any]], str]:
    def share(row: Mapping[str, Any]) -> str:
        value = row.get(key)
        if value is None:
            return "-"
        # Between two nines and four lies the whole error budget.
        return f"{100 * value:.2f}%" if 0.99 < value < 1.0 else f"{100 * value:.0f}%"

    return share


def time_of(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: when(row.get(key))


def span_of(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: span(row.get(key))


def when(at: Any) -> str:
    if not isinstance(at, int | float) or not math.isfinite(at):
        return "-"
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}"


def span(seconds: Any) -> str:
    """
    >>> span(0.0123), span(95), span(3700), span(None)
    ('12ms', '1m35s', '1h1m', '-')
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "-"
    if seconds < 10:
        return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return (
        f"{whole // 3600}h{whole % 3600 // 60}m"
        if whole < 2 * 86400
        else f"{whole // 86400}d{whole % 86400 // 3600}h"
    )
