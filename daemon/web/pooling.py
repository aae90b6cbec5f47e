"""What the pools page says: who holds which GPUs, who gets the next ones, who gives his back first."""

from __future__ import annotations

from daemon.core import Core
from daemon.lease import RECALL_S
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.policy import RANK, PoolKind, PoolPolicy
from daemon.topology import node_of_name
from daemon.web import working
from daemon.web.views import Row
from daemon.web.words import when

OFFLINE, FREE = "(offline)", "(free)"


def of(daemon: Daemon) -> Row:
    core = daemon.core
    spot = _spot_nodes(daemon)
    rows = sorted(
        (_pool(core, name, spot) for name in core.topology.pools()),
        key=lambda r: (-RANK[PoolKind(r["kind"])], -r["priority"], r["name"]),
    )
    lent = sum(lease.gpus for lease in core.state.fleet.leases.values())
    held = sum(row["gpus"] for row in rows)
    left = sum(core.state.fleet.left_of(n, g) for n, g in core.topology.gpus_on.items())
    isolated = core.topology.gpu_count - left
    free = max(0.0, core.topology.gpu_count - held - lent - isolated)
    return {
        "at": daemon.frames.at or NAN,
        "pools": rows,
        "gpus": core.topology.gpu_count,
        "gpus_lent": lent,
        "gpus_isolated": isolated,
        "gpus_free": free,
        "flow": _flow(core, rows),
        "lanes": _lanes(core, rows, free),
        "takes": _takes(core, rows, lent, daemon.frames.at),
        "spot_advice": _spot_advice(core, rows, spot),
        "gives_first": _gives_first(daemon, rows),
    }


def _pool(core: Core, name: str, spot: frozenset[str]) -> Row:
    own = core.policy.pool(name) or PoolPolicy(name)
    engines = core.topology.engines_in(name)
    held = [g for e in engines for g in core.topology.gpus_of.get(e, ())]
    wanted = core.state.fleet.replicas.get(name, NAN)
    return {
        "name": name,
        "kind": own.kind.value,
        "priority": own.priority,
        "is_configured": core.policy.pool(name) is not None,
        "replicas": len(engines),
        "wanted": wanted,
        "replicas_min": own.replicas_min,
        "replicas_max": own.replicas_max,
        "gpus": len(held),
        "gpus_spot": sum(node_of_name(g) in spot for g in held),
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


def _gives_first(daemon: Daemon, rows: list[Row]) -> list[str]:
    """In which order GPUs are given back when a pool is short, in words."""
    core = daemon.core
    said = [
        f"offline work on {node} ({core.state.fleet.leases[node].gpus:g} GPUs), recalled at once when a pool is short"
        + (f": {loss.told(daemon.frames.at)}" if loss.told(daemon.frames.at) else "")
        for node, loss in working.order(daemon)
    ]
    if not said:
        said.append("offline work: nothing is lent now")
    said.append("free GPUs, to the pool of the highest priority that needs them")
    for row in reversed(rows):
        what = f"{row['name']} ({row['kind']}, priority {row['priority']})"
        said.append(f"{what}: {GIVES[PoolKind(row['kind'])]}; never below {row['replicas_min']} replicas")
    return said


GIVES = {
    PoolKind.TRAINING: "all down to its least, to whatever serves or prepares and wants more",
    PoolKind.PREPROCESSING: "what it does not need itself; all down to its least, to what serves and is late",
    PoolKind.SERVING: "what it does not need itself, never for another's growth",
}


# -- lanes ---------------------------------------------------------------------------------------------------


def _spot_nodes(daemon: Daemon) -> frozenset[str]:
    """Nodes that may be taken back: target label `capacity: spot`."""
    node = daemon.frames["node"]
    told = node.facts.get("capacity", ("",) * len(node.entities))
    return frozenset(name for name, word in zip(node.entities, told, strict=True) if word == "spot")


def _lanes(core: Core, rows: list[Row], free: float) -> list[Row]:
    """Kinds of work from what goes last to what is taken first, each with who holds its GPUs."""
    fleet = core.state.fleet
    found = []
    for kind in PoolKind:
        mine = [row for row in rows if row["kind"] == kind.value]
        holders = [(row["name"], float(row["gpus"])) for row in mine]
        if kind is PoolKind.TRAINING:
            holders += [(f"lent {node}", lease.gpus) for node, lease in sorted(fleet.leases.items())]
        found.append(
            {
                "kind": kind.value,
                "gpus": sum(count for _, count in holders),
                "gpus_spot": sum(row["gpus_spot"] for row in mine),
                "holders": holders,
            }
        )
    return [
        *found,
        {"kind": "free", "gpus": free, "gpus_spot": 0, "holders": [("free", free)] if free else []},
    ]


def _takes(core: Core, rows: list[Row], lent: float, at: float) -> list[Row]:
    """Who may take from whom and how many GPUs; is_now : it is under way."""
    returning = any(at - lease.recalled <= RECALL_S for lease in core.state.fleet.leases.values())
    growing = any(row["wanted"] > row["replicas"] for row in rows)
    given = {
        kind: sum(
            (row["replicas"] - row["replicas_min"]) * core.topology.gpus_per_replica(row["name"])
            for row in rows
            if row["kind"] == kind.value and row["replicas"] > row["replicas_min"]
        )
        for kind in PoolKind
    }
    training, preparing, serving = (
        PoolKind.TRAINING.value,
        PoolKind.PREPROCESSING.value,
        PoolKind.SERVING.value,
    )
    has = {row["kind"] for row in rows}
    found = [
        {"from": "free", "to": serving, "gpus": 0.0, "text": "first to what serves", "is_now": growing},
        {
            "from": training,
            "to": serving,
            "gpus": float(lent + given[PoolKind.TRAINING]),
            "text": "taken back as soon as wanted",
            "is_now": returning,
        },
    ]
    if preparing in has:
        found.append(
            {
                "from": preparing,
                "to": serving,
                "gpus": float(given[PoolKind.PREPROCESSING]),
                "text": "when what serves is late",
                "is_now": False,
            }
        )
    if any(row["is_lendable"] for row in rows):
        found.append(
            {
                "from": "free",
                "to": training,
                "gpus": 0.0,
                "text": "lent while the forecast allows",
                "is_now": False,
            }
        )
    return found


def _spot_advice(core: Core, rows: list[Row], spot: frozenset[str]) -> list[str]:
    """Pools that serve and could lose their least replicas at once with the nodes that may be taken back."""
    said = []
    for row in rows:
        engines = core.topology.engines_in(row["name"])
        on_spot = sum(any(node_of_name(g) in spot for g in core.topology.gpus_of.get(e, ())) for e in engines)
        if row["kind"] == PoolKind.SERVING.value and len(engines) - on_spot < row["replicas_min"]:
            said.append(
                f"{row['name']}: {on_spot} of {len(engines)} replicas stand on spot nodes; keep at least {row['replicas_min']} on nodes "
                "that stay"
            )
    return said
