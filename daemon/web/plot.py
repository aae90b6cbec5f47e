"""Draws time series as inline SVG, so that a page needs no script to show a forecast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from markupsafe import Markup, escape

WIDTH, HEIGHT = 960, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 20, 24

Points = Sequence[tuple[float, float]]
"""(time, value) in order; a value of NaN breaks the line."""


@dataclass(frozen=True, slots=True)
class Line:
    """label : for the legend and readers of the page. css : class that gives stroke and dashes."""

    label: str
    css: str
    points: Points


@dataclass(frozen=True, slots=True)
class Band:
    """An area between two lines of equal times."""

    label: str
    css: str
    low: Points
    high: Points


@dataclass(frozen=True, slots=True)
class Plot:
    """title : what a reader without eyes is told. unit : of the values. now : where the past ends, NaN = nowhere.

    levels : horizontal lines (label, css, value). spans : marked stretches of time (label, from, to), in the legend as span_label. width, height : of
    the drawing's own pixels.
    """

    title: str
    unit: str
    now: float
    lines: Sequence[Line] = ()
    bands: Sequence[Band] = ()
    levels: Sequence[tuple[str, str, float]] = ()
    spans: Sequence[tuple[str, float, float]] = ()
    span_label: str = "lent to offline work"
    width: int = WIDTH
    height: int = HEIGHT
    now_label: str = "now"

    def worded(self, said: Callable[[str], str]) -> Plot:
        """The same with every word as `said` says it."""
        return replace(
            self,
            title=said(self.title),
            unit=said(self.unit),
            lines=[replace(line, label=said(line.label)) for line in self.lines],
            bands=[replace(band, label=said(band.label)) for band in self.bands],
            levels=[(said(label), css, value) for label, css, value in self.levels],
            spans=[(said(label), start, end) for label, start, end in self.spans],
            span_label=said(self.span_label),
            now_label=said(self.now_label),
        )

    def svg(self) -> Markup:
        """The drawing with its legend, "" when there is nothing to draw."""
        series = [p for line in self.lines for p in line.points] + [p for b in self.bands for p in b.high]
        known = [(t, v) for t, v in series if math.isfinite(v)]
        if len(known) < 2:
            return Markup("")
        start, end = min(t for t, _ in known), max(t for t, _ in known)
        top = max([v for _, v in known] + [v for _, _, v in self.levels if math.isfinite(v)])
        ticks = value_ticks(top)
        frame = _Frame(start, max(end, start + 1.0), ticks[-1] or 1.0, self.width, self.height)
        parts = [
            f'<svg class="plot" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">',
            *(_span(frame, *s) for s in self.spans),
            *_grid(frame, ticks, self.unit),
            *(_band(frame, band) for band in self.bands),
            *(_level(frame, css, value) for _, css, value in self.levels if math.isfinite(value)),
            *(_line(frame, line) for line in self.lines),
            _now(frame, self.now, self.now_label) if start < self.now < end else "",
            "</svg>",
            _legend(self),
        ]
        return Markup("".join(parts))


@dataclass(frozen=True, slots=True)
class _Frame:
    start: float
    end: float
    top: float
    width: int
    height: int

    def x(self, at: float) -> float:
        share = (min(max(at, self.start), self.end) - self.start) / (self.end - self.start)
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - max(0.0, value) / self.top * (self.height - TOP - BOTTOM)


def value_ticks(top: float) -> list[float]:
    """Four to six round values from 0 to at least `top`.

    >>> value_ticks(87.0)
    [0.0, 25.0, 50.0, 75.0, 100.0]
    """
    if not top > 0:
        return [0.0, 1.0]
    rough = top / 4.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1.0, 2.0, 2.5, 5.0, 10.0) if s * power >= rough * 0.999)
    count = math.ceil(top / step - 1e-9)
    return [round(i * step, 9) for i in range(count + 1)]


def day_ticks(start: float, end: float) -> list[tuple[float, str]]:
    """(time, label) of the midnights within, of every sixth hour within two days, finer within hours; UTC."""
    span_s = end - start
    step = timedelta(days=1) if span_s > 2 * 86400.0 else timedelta(hours=6)
    if span_s < 6 * 3600.0:
        step = timedelta(minutes=30 if span_s > 5400.0 else 15)
    at = datetime.fromtimestamp(start, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ticks = []
    while at.timestamp() <= end:
        if at.timestamp() >= start:
            ticks.append((at.timestamp(), f"{at:%a %d}" if (at.hour, at.minute) == (0, 0) else f"{at:%H:%M}"))
        at += step
    return ticks


def _grid(frame: _Frame, ticks: Sequence[float], unit: str) -> list[str]:
    parts = []
    for value in ticks:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{frame.width - RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    for at, label in day_ticks(frame.start, frame.end):
        x = frame.x(at)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{frame.height - BOTTOM}"/>')
        anchor = "end" if x > frame.width - 60 else "start"
        if x <= frame.width - 40:
            parts.append(f'<text class="tick {anchor}" x="{x + 4:.1f}" y="{frame.height - 8}">{label}</text>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{TOP - 8}">{escape(unit)}</text>')
    return parts


def _path(frame: _Frame, points: Points) -> str:
    parts, is_open = [], False
    for at, value in points:
        if not math.isfinite(value):
            is_open = False
            continue
        parts.append(f"{'L' if is_open else 'M'}{frame.x(at):.1f} {frame.y(value):.1f}")
        is_open = True
    return "".join(parts)


def _line(frame: _Frame, line: Line) -> str:
    return f'<path class="line {line.css}" d="{_path(frame, line.points)}"/>'


def _band(frame: _Frame, band: Band) -> str:
    there = [(t, v) for t, v in band.high if math.isfinite(v)]
    back = [(t, v) for t, v in reversed(band.low) if math.isfinite(v)]
    if not there or not back:
        return ""
    return f'<path class="band {band.css}" d="{_path(frame, [*there, *back])}Z"/>'


def _level(frame: _Frame, css: str, value: float) -> str:
    return f'<path class="line {css}" d="M{LEFT} {frame.y(value):.1f}H{frame.width - RIGHT}"/>'


def _span(frame: _Frame, label: str, start: float, end: float) -> str:
    x = frame.x(start)
    width = max(1.0, frame.x(end) - x)
    return (
        f'<rect class="span" x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{frame.height - TOP - BOTTOM}">'
        f"<title>{escape(label)}</title></rect>"
    )


def _now(frame: _Frame, at: float, label: str) -> str:
    x = frame.x(at)
    return (
        f'<path class="now" d="M{x:.1f} {TOP}V{frame.height - BOTTOM}"/>'
        f'<text class="tick now-word" x="{x + 4:.1f}" y="{frame.height - BOTTOM - 5}">{escape(label)}</text>'
    )


def _legend(plot: Plot) -> str:
    entries = [(line.label, "line " + line.css) for line in plot.lines]
    entries += [(label, "line " + css) for label, css, value in plot.levels if math.isfinite(value)]
    entries += [(band.label, "band " + band.css) for band in plot.bands]
    entries += [(plot.span_label, "span")] * bool(plot.spans)
    parts = []
    for label, css in entries:
        mark = (
            f'<path class="{css}" d="M0 6H22"/>'
            if css.startswith("line")
            else f'<rect class="{css}" width="22" height="12"/>'
        )
        parts.append(
            f'<li><svg class="key" viewBox="0 0 22 12" aria-hidden="true">{mark}</svg>{escape(label)}</li>'
        )
    return f'<ul class="legend">{"".join(parts)}</ul>'
