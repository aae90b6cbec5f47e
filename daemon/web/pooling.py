"""What the pools page says: who holds which GPUs, who gets the next ones, who gives his back first."""

from __future__ import annotations

from daemon.core import Core
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.policy import PoolPolicy
from daemon.web.views import Row
from daemon.web.words import when

OFFLINE, FREE = "(offline)", "(free)"


def of(daemon: Daemon) -> Row:
    core = daemon.core
    rows = sorted(
        (_pool(core, name) for name in core.topology.pools()), key=lambda r: (-r["priority"], r["name"])
    )
    lent = sum(lease.gpus for lease in core.state.fleet.leases.values())
    held = sum(row["gpus"] for row in rows)
    out = [n for n in core.topology.gpus_on if core.state.fleet.is_isolated(n)]
    isolated = sum(len(core.topology.gpus_on[n]) for n in out)
    return {
        "at": daemon.frames.at or NAN,
        "pools": rows,
        "gpus": core.topology.gpu_count,
        "gpus_lent": lent,
        "gpus_isolated": isolated,
        "gpus_free": max(0.0, core.topology.gpu_count - held - lent - isolated),
        "flow": _flow(core, rows),
        "gives_first": _gives_first(core, rows),
    }


def _pool(core: Core, name: str) -> Row:
    own = core.policy.pool(name) or PoolPolicy(name)
    engines = core.topology.engines_in(name)
    gpus = sum(len(core.topology.gpus_of.get(e, ())) for e in engines)
    wanted = core.state.fleet.replicas.get(name, NAN)
    return {
        "name": name,
        "priority": own.priority,
        "is_configured": core.policy.pool(name) is not None,
        "replicas": len(engines),
        "wanted": wanted,
        "replicas_min": own.replicas_min,
        "replicas_max": own.replicas_max,
        "gpus": gpus,
        "is_lendable": own.lendable,
    }


def _flow(core: Core, rows: list[Row]) -> list[Row]:
    """Edges between holders: what moves now or may move, in GPUs. kind : "lent", "may_lend", "grows"."""
    fleet = core.state.fleet
    found = [
        {
            "from": FREE,
            "to": OFFLINE,
            "kind": "lent",
            "gpus": lease.gpus,
            "text": f"{node}, until {when(lease.until)}",
        }
        for node, lease in sorted(fleet.leases.items())
    ]
    for row in rows:
        missing = row["wanted"] - row["replicas"]
        size = core.topology.gpus_per_replica(row["name"])
        if missing > 0:
            found.append(
                {
                    "from": FREE,
                    "to": row["name"],
                    "kind": "grows",
                    "gpus": missing * size,
                    "text": f"{missing:g} replicas start",
                }
            )
        if row["is_lendable"] and row["replicas"] > row["replicas_min"]:
            spare = (row["replicas"] - row["replicas_min"]) * size
            found.append(
                {
                    "from": row["name"],
                    "to": OFFLINE,
                    "kind": "may_lend",
                    "gpus": float(spare),
                    "text": "while its forecast allows",
                }
            )
    return found


def _gives_first(core: Core, rows: list[Row]) -> list[str]:
    """In which order GPUs are given back when a pool is short, in words."""
    said = [
        f"offline work on {node} ({lease.gpus:g} GPUs), recalled at once when a pool is short"
        for node, lease in sorted(core.state.fleet.leases.items(), key=lambda p: (p[1].until, p[0]))
    ]
    if not said:
        said.append("offline work: nothing is lent now")
    said.append("free GPUs, to the pool of the highest priority that needs them")
    for row in reversed(rows):
        said.append(
            f"{row['name']} (priority {row['priority']}): what it does not need itself; never below {row['replicas_min']} replicas, "
            "and never for another's growth"
        )
    return said
