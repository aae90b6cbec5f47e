"""Times, label sets and JSON as Prometheus and Alertmanager write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

NO_TIME = "0001-01-01T00:00:00Z"


def rfc3339(at: float) -> str:
    """Microseconds at most, trailing zeros dropped, as Go writes times.

    >>> rfc3339(1_700_000_000.25), rfc3339(1_700_000_000.0)
    ('2023-11-14T22:13:20.25Z', '2023-11-14T22:13:20Z')
    """
    moment = datetime.fromtimestamp(round(at, 6), UTC)
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def fingerprint(labels: Mapping[str, str]) -> str:
    """Prometheus' identity of a label set: 64-bit FNV-1a over sorted names and values.

    Source: prometheus/common model/signature.go.

    >>> fingerprint({})
    'cbf29ce484222325'
    """
    value = 0xCBF29CE484222325
    for name in sorted(labels):
        for byte in name.encode() + b"\xff" + labels[name].encode() + b"\xff":
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def go_json(value: Any) -> str:
    """JSON as Go's encoder writes it: no spaces, and <, > and & escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def go_quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def alert_name(kind: str) -> str:
    """
    >>> alert_name("gpu_lost")
    'TidewardenGpuLost'
    """
    return "Tidewarden" + "".join(part[:1].upper() + part[1:] for part in kind.replace("-", "_").split("_"))
