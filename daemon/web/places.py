"""What the nodes page says, read off topology with telemetry as plain data.

Values as in daemon.web.views.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from daemon.loop import Daemon
from daemon.model import NAN, Entity, Frame
from daemon.topology import node_of_name
from daemon.web.errors import Missing
from daemon.web.views import Row, incident_row, open_incidents


def nodes(daemon: Daemon) -> Row:
    """Every node with what sits on it; those that need a look first."""
    topology, fleet = daemon.core.topology, daemon.core.state.fleet
    sick: dict[str, list[str]] = {}
    for incident in open_incidents(daemon):
        for name in _nodes_of(daemon, incident.scope):
            sick.setdefault(name, []).append(incident.id)
    gpu = daemon.frames["gpu"]
    gpu_index = {name: i for i, name in enumerate(gpu.entities)}
    columns = {
        s: gpu.column(s).tolist()
        for s in ("util_ratio", "temp_c", "power_w", "hbm_used_bytes", "hbm_total_bytes")
    }
    node = daemon.frames["node"]
    ages = dict(zip(node.entities, node.age_s.tolist(), strict=True))
    rows = []
    for name in topology.nodes:
        cards = [_card(daemon, columns, g, gpu_index.get(g, -1)) for g in topology.gpus_on.get(name, ())]
        engines = topology.engines_on.get(name, ())
        place = topology.place.get(name, {})
        row = {
            "name": name,
            "rack": place.get("rack", ""),
            "leaf": place.get("leaf", ""),
            "region": place.get("region", ""),
            "state": "",
            "sku": gpu.fact(topology.gpus_on[name][0], "sku") if topology.gpus_on.get(name) else "",
            "gpus": cards,
            "engines": [{"name": e, "pool": topology.pool_of.get(e, "")} for e in engines],
            "incidents": sick.get(name, []),
            "lease_until": fleet.leases[name].until if name in fleet.leases else NAN,
            "age_s": _finite(ages.get(name, NAN)),
        }
        row["state"] = _node_state(daemon, row)
        rows.append(row)
    order = ("silent", "sick", "isolated", "lent", "serving", "idle", "unknown")
    rows.sort(key=lambda r: (order.index(r["state"]), r["name"]))
    return {"at": daemon.frames.at or NAN, "nodes": rows, "counts": dict(Counter(r["state"] for r in rows))}


def node(daemon: Daemon, name: str) -> Row:
    """One node: what `nodes` says of it, with every signal measured on it now. Raises Missing."""
    found: Row | None = next((n for n in nodes(daemon)["nodes"] if n["name"] == name), None)
    if found is None:
        raise Missing(f"no node {name!r}; GET /api/v1/nodes lists those there are")
    topology = daemon.core.topology
    mark = daemon.core.state.fleet.isolated.get(Entity("node", name))
    here = {
        "gpu": topology.gpus_on.get(name, ()),
        "port": [p for p in daemon.frames["port"].entities if node_of_name(p) == name],
        "engine": topology.engines_on.get(name, ()),
        "node": [name],
    }
    return found | {
        "at": daemon.frames.at or NAN,
        "isolated": {"since": mark.at, "incident": mark.incident} if mark else None,
        "open": [incident_row(i) for i in open_incidents(daemon) if i.id in found["incidents"]],
        "facts": {k: v[i] for k, v, i in _facts(daemon.frames["node"], name)},
        "measured": {
            kind: [{"name": n, "signals": signals(daemon.frames[kind], n)} for n in names]
            for kind, names in here.items()
        },
    }


def _facts(frame: Frame, name: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    if name in frame.entities:
        index = frame.entities.index(name)
        yield from ((k, v, index) for k, v in sorted(frame.facts.items()) if v[index])


def signals(frame: Frame, name: str) -> dict[str, float]:
    """Every signal of an entity that is measured now, in canonical units."""
    if name not in frame.entities:
        return {}
    row = frame.values[frame.entities.index(name)].tolist()
    return {s: v for s, v in zip(frame.signals, row, strict=True) if math.isfinite(v)}


def _card(daemon: Daemon, columns: Mapping[str, list[float]], name: str, index: int) -> Row:
    value = {s: c[index] if index >= 0 else NAN for s, c in columns.items()}
    return {
        "name": name,
        "util_ratio": value["util_ratio"],
        "temp_c": value["temp_c"],
        "power_w": value["power_w"],
        "hbm_used_ratio": value["hbm_used_bytes"] / value["hbm_total_bytes"]
        if value["hbm_total_bytes"] > 0
        else NAN,
        "engine": daemon.core.topology.engine_of.get(name, ""),
        "is_isolated": Entity("gpu", name) in daemon.core.state.fleet.isolated,
    }


def _nodes_of(daemon: Daemon, scope: Entity) -> tuple[str, ...]:
    """Nodes an incident's scope touches; a pool or the cluster names none."""
    topology = daemon.core.topology
    if scope.kind in ("rack", "leaf"):
        return tuple(n for n in topology.nodes if topology.place.get(n, {}).get(scope.kind) == scope.name)
    name = topology.node_of(scope)
    return (name,) if name else ()


def _node_state(daemon: Daemon, row: Row) -> str:
    fleet, name = daemon.core.state.fleet, row["name"]
    if not fleet.left_of(name, daemon.core.topology.gpus_on.get(name) or (name,)):
        return "isolated"
    if name in fleet.leases:
        return "lent"
    if row["age_s"] > daemon.core.policy.stale_s:
        return "silent"
    if row["incidents"]:
        return "sick"
    if row["engines"]:
        return "serving"
    return "idle" if row["gpus"] else "unknown"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else NAN
