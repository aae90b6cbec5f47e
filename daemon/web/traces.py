"""Draws what was kept of an entity beside its peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from markupsafe import Markup, escape

from daemon.loop import Daemon
from daemon.model import NAN, Incident
from daemon.recent import Trace, pictured
from daemon.web.plot import Band, Line, Plot, Points
from daemon.web.views import Row

SIZE = (470, 150)
UNITS = {
    "util_ratio": ("GPU busy", "%", 100.0),
    "sm_clock_mhz": ("SM clock", "MHz", 1.0),
    "temp_c": ("temperature", "°C", 1.0),
    "power_w": ("power", "W", 1.0),
    "itl_mean_s": ("inter-token latency, mean", "ms", 1e3),
    "ttft_p95_s": ("time to first token, p95", "s", 1.0),
    "running": ("requests running", "", 1.0),
    "waiting": ("requests waiting", "", 1.0),
    "kv_used_ratio": ("KV cache used", "%", 100.0),
    "rx_bytes_s": ("received", "GB/s", 1e-9),
    "tx_bytes_s": ("sent", "GB/s", 1e-9),
    "load1": ("load average, 1 min", "", 1.0),
    "concurrency": ("requests in flight", "", 1.0),
    "kv_used_ratio_max": ("KV cache, fullest replica", "%", 100.0),
    "ttft_p95_s_max": ("time to first token p95, slowest replica", "s", 1.0),
}
"""Signal -> name, unit shown, factor from the canonical unit."""


def of_incident(daemon: Daemon, found: Incident) -> list[Trace]:
    """What shows an incident: as it was kept at its end, else what is remembered of it now."""
    kept = daemon.record.pictures.of(found.id) if found.state == "closed" else []
    return kept or pictured(daemon.recent, found)


def as_rows(traces: Iterable[Trace]) -> list[Row]:
    """Traces as plain data, in canonical units."""
    return [
        {
            "entity": f"{t.kind} {t.name}",
            "signal": t.signal,
            "at": t.at.tolist(),
            "value": t.own.tolist(),
            "peers_median": t.median.tolist(),
            "peers_low": t.low.tolist(),
            "peers_high": t.high.tolist(),
        }
        for t in traces
    ]


def drawn(
    trace: Trace, spans: Iterable[tuple[str, float, float]] = (), words: Callable[[str], str] = str
) -> Markup:
    """One small picture; "" where there are fewer than two values. words : of the reader's language."""
    title, unit, factor = UNITS.get(trace.signal, (trace.signal.replace("_", " "), "", 1.0))

    title = words(title)

    def line(values: Iterable[float]) -> Points:
        return [(at, v * factor) for at, v in zip(trace.at.tolist(), values, strict=True)]

    lines = [Line(trace.name, "median", line(trace.own.tolist()))]
    bands = []
    if any(math.isfinite(v) for v in trace.median.tolist()):
        lines.append(Line(words("its peers, median"), "past", line(trace.median.tolist())))
        bands.append(
            Band(words("peers, 10 % to 90 %"), "wide", line(trace.low.tolist()), line(trace.high.tolist()))
        )
    label = f"{title}, {unit}" if unit else title
    return Plot(
        f"{title} of {trace.name} beside its peers",
        label,
        NAN,
        lines,
        bands,
        (),
        tuple(spans),
        words("while it was open"),
        *SIZE,
    ).svg()


SPARK = (110, 22)
SPARK_POINTS = 44


def sparks(traces: Iterable[Trace]) -> dict[str, Markup]:
    """signal -> a line without axes, its median of peers dashed; the scale is the entity's and its peers' own."""
    return {t.signal: _spark(t) for t in traces}


def _spark(trace: Trace) -> Markup:
    own = [v for v in trace.own.tolist() if math.isfinite(v)]
    ends = [v for v in (*trace.low.tolist(), *trace.high.tolist()) if math.isfinite(v)]
    low, high = min([*own, *ends]), max([*own, *ends])
    room = high - low or abs(high) or 1.0
    title, unit, factor = UNITS.get(trace.signal, (trace.signal, "", 1.0))
    said = f"{title} of {trace.name}: {own[0] * factor:.3g} to {own[-1] * factor:.3g} {unit}"

    def path(values: list[float]) -> str:
        every = max(1, len(values) // SPARK_POINTS)
        parts, is_open = [], False
        for i in range(0, len(values), every):
            if math.isfinite(values[i]):
                x = i / max(1, len(values) - 1) * SPARK[0]
                y = 1 + (high - values[i]) / room * (SPARK[1] - 2)
                parts.append(f"{'L' if is_open else 'M'}{x:.0f} {y:.1f}")
            is_open = math.isfinite(values[i])
        return "".join(parts)

    return Markup(
        f'<svg class="spark" viewBox="0 0 {SPARK[0]} {SPARK[1]}" role="img" aria-label="{escape(said)}">'
        f'<path class="peers" d="{path(trace.median.tolist())}"/><path d="{path(trace.own.tolist())}"/></svg>'
    )
