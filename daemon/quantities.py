"""Numbers with their units, as people read them."""

from __future__ import annotations

import math
from typing import Any

from daemon.model import Evidence

UNKNOWN = "–"
"""Shown where nothing was measured: never a zero."""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, unit: str = "") -> str:
    """Three significant digits with the unit; a dash for what is not measured.

    >>> number(1234567.0, "B"), number(0.5), number(float("nan"), "s"), number(17)
    ('1.23 MB', '0.5', '–', '17')
    """
    if not is_number(value):
        return UNKNOWN
    size, prefix = abs(float(value)), ""
    if unit in ("B", "B/s", "tokens/s", "requests"):
        for step in ("k", "M", "G", "T", "P"):
            if size < 1000.0:
                break
            size, prefix = size / 1000.0, step
    text = f"{size:.0f}" if size >= 100.0 or size == int(size) else f"{size:.3g}"
    sign = "-" if value < 0 and float(text) != 0 else ""
    return f"{sign}{text} {prefix}{unit}".rstrip() if unit or prefix else f"{sign}{text}"


def percent(value: Any) -> str:
    """
    >>> percent(0.834), percent(0.004), percent(0.9996), percent(None)
    ('83 %', '0.4 %', '99.96 %', '–')
    """
    if not is_number(value):
        return UNKNOWN
    shown = float(value) * 100.0
    if 99.0 < shown < 100.0:  # between two nines and four lies the whole error budget
        return f"{shown:.2f} %"
    return f"{shown:.0f} %" if shown >= 1.0 or shown == 0.0 else f"{shown:.1f} %"


def span(seconds: Any) -> str:
    """A duration in the two largest units that matter.

    >>> span(0.0123), span(95), span(3700), span(200000), span(float("inf"))
    ('12 ms', '1 min 35 s', '1 h 1 min', '2 d 7 h', '–')
    """
    if not is_number(seconds):
        return UNKNOWN
    left = abs(float(seconds))
    if left < 1.0:
        return f"{left * 1000:.0f} ms" if left else "0 s"
    if left < 10.0:
        return f"{left:.1f} s".replace(".0 s", " s")
    whole = round(left)
    for size, unit, below, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"


def quantity(value: float, unit: str = "") -> str:
    """A measurement of a finding in its unit, three significant digits; shares as per cent.

    >>> quantity(0.0833, "ratio"), quantity(0.0343, "s"), quantity(-45.0, "s"), quantity(2.5, "1/s"), quantity(3.0, "of 12")
    ('8.33 %', '34 ms', '-45 s', '2.5/s', '3 of 12')
    >>> quantity(float("nan"), "s"), quantity(float("inf"), "s"), quantity(79.0), quantity(96.0, "bitmask")
    ('not measured', 'without end', '79', '0x60')
    """
    if value != value:
        return "not measured"
    if math.isinf(value):
        return "without end"
    if unit == "s":
        return ("-" if value < 0 else "") + span(value)
    if unit.startswith("ratio"):
        return f"{number(100.0 * value)} %{unit.removeprefix('ratio')}"
    if unit == "bitmask":  # as nvidia-smi and its manual write them
        return f"0x{int(value):x}"
    if unit.startswith("1/"):
        return number(value) + unit.removeprefix("1")
    return number(value, {"code": "", "bool": "", "R2": "", "C": "°C"}.get(unit, unit.replace("_", " ")))


def measured(evidence: Evidence) -> str:
    """
    >>> measured(Evidence("sm_clock", 1300.0, "MHz", 1900.0)), measured(Evidence("xid", 79.0, "from kernel"))
    ('sm clock 1300 MHz (against 1900 MHz)', 'xid 79 from kernel')
    """
    against = f" (against {quantity(evidence.peer, evidence.unit)})" if evidence.peer == evidence.peer else ""
    return f"{evidence.name.replace('_', ' ')} {quantity(evidence.value, evidence.unit)}{against}"
