"""Reading what a backend observed; what is absent or of the wrong type cannot be told and is never true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daemon.model import Step, TryAgain


def number(seen: Mapping[str, Any], key: str, step: Step) -> float:
    """A finite number. Raises TryAgain when it cannot be told."""
    value = seen.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _cannot_tell(seen, key, step, "a number")
    return float(value)


def flag(seen: Mapping[str, Any], key: str, step: Step) -> bool:
    """True or false. Raises TryAgain when it cannot be told."""
    value = seen.get(key)
    if not isinstance(value, bool):
        raise _cannot_tell(seen, key, step, "true or false")
    return value


def word(seen: Mapping[str, Any], key: str, step: Step) -> str:
    """A string, maybe empty. Raises TryAgain when it cannot be told."""
    value = seen.get(key)
    if not isinstance(value, str):
        raise _cannot_tell(seen, key, step, "a string")
    return value


def _cannot_tell(seen: Mapping[str, Any], key: str, step: Step, wanted: str) -> TryAgain:
    found = f"{seen[key]!r}" if key in seen else "nothing"
    return TryAgain(f"the backend shows {found} as {key!r} of {step.target}, {wanted} is needed")
