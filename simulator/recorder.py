"""Writes what a Prometheus would hold of a simulated cluster: real exporter pages, parsed, with their target's labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from simulator.telemetry import Unreachable
from simulator.world import World

LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def record(world: World, seconds: float, step_s: float, labels: Iterable[str] = ()) -> list[str]:
    """JSON lines in the form of VictoriaMetrics' export. labels : those of discovery that the store was given as well."""
    kept = frozenset(labels)
    series: dict[str, tuple[dict[str, str], list[float], list[int]]] = {}
    at, end = world.at, world.at + seconds

    def put(metric: dict[str, str], value: float) -> None:
        key = json.dumps(metric, sort_keys=True)
        _, values, times = series.setdefault(key, (metric, [], []))
        values.append(value)
        times.append(round(at * 1000))

    while at < end:
        at += step_s
        world.advance(at)
        for target in world.targets():
            own = {"instance": target.address, **{k: v for k, v in target.labels if k in kept}}
            try:
                page = world.exposition(target.address)
            except Unreachable:
                put({"__name__": "up", **own}, 0.0)
                continue
            put({"__name__": "up", **own}, 1.0)
            for line in page.splitlines():
                found = LINE.fullmatch(line)
                if found and not line.startswith("#"):
                    pairs = LABEL.findall(found[2] or "")
                    # A label of the page that the target has too is moved out of the way.
                    of_page = {(f"exported_{k}" if k in own else k): v for k, v in pairs}
                    put({"__name__": found[1], **own, **of_page}, float(found[3]))
    return [
        json.dumps({"metric": m, "values": [v if v == v else None for v in values], "timestamps": times})
        for m, values, times in series.values()
    ]


def export(world: World, folder: Path, seconds: float, step_s: float, labels: Iterable[str] = ()) -> Path:
    """A folder that `tidewarden replay --from` reads."""
    (folder / "week.jsonl").write_text("\n".join(record(world, seconds, step_s, labels)), encoding="utf-8")
    return folder
