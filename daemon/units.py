"""Durations, shares and times as operators write them in YAML."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from daemon.rules import RuleState

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def duration_s(value: Any) -> float:
    """Seconds of "15s", "200ms", "10m", "8h", "7d" or several of them ("1h30m"). Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"not a duration: {value!r}; write a number with a unit, like 15s")
    if isinstance(value, int | float):
        raise ValueError(f"{value!r} has no unit; write {value}s, or one of {', '.join(_UNITS)}")
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", value)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", "", value.strip()):
        raise ValueError(f"not a duration: {value!r}; write a number with a unit, like 15s")
    unknown = [unit for _, unit in parts if unit not in _UNITS]
    if unknown:
        raise ValueError(f"unknown unit {unknown[0]!r} in {value!r}; allowed: {', '.join(_UNITS)}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def share(value: Any) -> float:
    """0..1 of "20%" or 0.2. Raises ValueError."""
    if isinstance(value, str) and value.strip().endswith("%"):
        value = float(value.strip()[:-1]) / 100.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{value!r} is not a share; write 0..1 or a percentage like 20%")
    return float(value)


def instant(value: Any) -> float:
    """Seconds since the epoch of an ISO time with a zone. Raises ValueError."""
    if isinstance(value, datetime):
        when = value
    else:
        try:
            when = datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"{value!r} is not a time; write 2026-12-24T18:00:00+01:00") from None
    if when.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; write 2026-12-24T18:00:00+01:00 or ...Z")
    return when.astimezone(UTC).timestamp()


def rule_state(value: Any) -> Any:
    """YAML reads a bare on or off as true or false; here they mean what they say."""
    return {True: RuleState.ON, False: RuleState.OFF}[value] if isinstance(value, bool) else value


Duration = Annotated[float, BeforeValidator(duration_s)]
Share = Annotated[float, BeforeValidator(share)]
Instant = Annotated[float, BeforeValidator(instant)]


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
