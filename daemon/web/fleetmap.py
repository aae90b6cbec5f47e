"""Draws every GPU of the cluster as a small bar, by leaf, rack and node."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from markupsafe import Markup, escape

from daemon.web.views import Row

PITCH = 10
"""Pixels from one cell to the next; a cell is one less."""
LABELLED_MAX = 64
"""Nodes up to which each row says its name."""
LABEL = 64


@dataclass(frozen=True, slots=True)
class Measure:
    """What a map can show. edges : where a step of the scale ends; factor, unit : how a value is told."""

    title: str
    field: str
    edges: tuple[float, ...]
    factor: float
    unit: str


MEASURES: Mapping[str, Measure] = {
    "busy": Measure("GPU busy", "util_ratio", (0.05, 0.25, 0.5, 0.75, 0.9), 100.0, "%"),
    "memory": Measure("memory used", "hbm_used_ratio", (0.05, 0.25, 0.5, 0.75, 0.9), 100.0, "%"),
    "temperature": Measure("temperature", "temp_c", (40.0, 55.0, 65.0, 75.0, 85.0), 1.0, "°C"),
    "power": Measure("power", "power_w", (100.0, 200.0, 350.0, 500.0, 650.0), 1.0, "W"),
}
MARKED = {"sick": "▲", "isolated": "✕", "lent": "◇", "silent": "■"}


def steps(measure: Measure) -> list[str]:
    """The scale in words, lowest first."""
    shown = [f"{e * measure.factor:g}" for e in measure.edges]
    middle = [f"{a} to {b}" for a, b in pairwise(shown)]
    return [f"{t} {measure.unit}" for t in (f"below {shown[0]}", *middle, f"{shown[-1]} and more")]


def fleet(nodes: Sequence[Row], by: str) -> Row:
    """The map. nodes : as daemon.web.places.nodes gives them. by : a key of MEASURES."""
    measure = MEASURES[by]
    ordered = sorted(nodes, key=lambda n: (natural(n["leaf"]), natural(n["rack"]), natural(n["name"])))
    is_labelled = len(nodes) <= LABELLED_MAX
    racks = [
        _rack(leaf, rack, list(rows), measure, is_labelled)
        for (leaf, rack), rows in groupby(ordered, key=lambda n: (n["leaf"], n["rack"]))
    ]
    return {
        "by": by,
        "title": measure.title,
        "measures": {key: m.title for key, m in MEASURES.items()},
        "steps": [{"step": i, "text": text, "mark": swatch(i)} for i, text in enumerate(steps(measure))],
        "marks": MARKED,
        "racks": racks,
        "leaves": len({r["leaf"] for r in racks if r["leaf"]}),
        "nodes": len(nodes),
        "gpus": sum(len(n["gpus"]) for n in nodes),
    }


def natural(name: str) -> list[tuple[int, str]]:
    """A key that puts r2 before r10.

    >>> sorted(["r10", "r2", "r"], key=natural)
    ['r', 'r2', 'r10']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _rack(leaf: str, rack: str, nodes: list[Row], measure: Measure, is_labelled: bool) -> Row:
    values = [g[measure.field] for n in nodes for g in n["gpus"]]
    known = [v for v in values if math.isfinite(v)]
    marked = {s: [n["name"] for n in nodes if n["state"] == s] for s in MARKED}
    return {
        "leaf": leaf,
        "rack": rack,
        "nodes": len(nodes),
        "gpus": len(values),
        "mean": sum(known) / len(known) * measure.factor if known else math.nan,
        "most": max(known) * measure.factor if known else math.nan,
        "unit": measure.unit,
        "unknown": len(values) - len(known),
        "marked": {s: names for s, names in marked.items() if names},
        "svg": _drawing(rack or leaf, nodes, measure, is_labelled),
    }


def step_of(value: float, edges: Sequence[float]) -> int:
    """Which step of the scale a value falls on, -1 = not measured."""
    return sum(value >= e for e in edges) if math.isfinite(value) else -1


def _drawing(name: str, nodes: list[Row], measure: Measure, is_labelled: bool) -> Markup:
    left = LABEL if is_labelled else PITCH
    across = max([len(n["gpus"]) for n in nodes], default=1)
    paths: dict[int, list[str]] = {}
    marks, labels = [], []
    for i, node in enumerate(nodes):
        y = i * PITCH + PITCH // 2
        cells = [step_of(g[measure.field], measure.edges) for g in node["gpus"]]
        x = 0
        for step, run in groupby(cells):
            size = len(list(run))
            paths.setdefault(step, []).append(f"M{x} {y}h{size * PITCH - 1}")
            x += size * PITCH
        state = node["state"]
        if state in MARKED:
            marks.append(f'<path class="fm {state}" d="M-1 {y - 5}h{x + 1}v10h-{x + 1}z"/>')
            labels.append(f'<text x="-3" y="{y + 3}">{MARKED[state]}</text>')
        if is_labelled:
            link = f'<a href="/nodes/{escape(node["name"])}">{escape(node["name"])}</a>'
            labels.append(f'<text x="-13" y="{y + 3}">{link}</text>')
    drawn = [f'<path class="f{step}" d="{"".join(d)}"/>' for step, d in sorted(paths.items())]
    width, height = left + across * PITCH, len(nodes) * PITCH
    zoom = 1.7 if is_labelled else 1.0
    return Markup(
        f'<svg class="map" width="{width * zoom:g}" height="{height * zoom:g}" viewBox="{-left} 0 {width} {height}" role="img" '
        f'aria-label="{escape(name or "nodes")}">{"".join([*drawn, *marks, *labels])}</svg>'
    )


def swatch(step: int) -> Markup:
    return Markup(
        f'<svg class="map key" viewBox="0 0 19 10" aria-hidden="true"><path class="f{step}" d="M0 5h19"/></svg>'
    )
