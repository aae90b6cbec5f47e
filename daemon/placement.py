"""Where replicas should rather stand: ranks under one switch, a pool over several racks; in words schedulers take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from daemon.fleet import Fleet
from daemon.model import NAN, Entity, Frames
from daemon.packing import free_gpus
from daemon.topology import Topology, node_of_name

LEAF_LABEL, RACK_LABEL = "network.topology.nvidia.com/leaf", "topology.kubernetes.io/rack"
"""Node labels the wishes are written with; discovery reads the same, see `daemon.settings_sources`."""
GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-key"
CROSS_LEAF, DETOUR, ONE_RACK, FRAGMENT = "cross_leaf", "detour", "one_rack", "fragment"
KINDS = (CROSS_LEAF, DETOUR, ONE_RACK, FRAGMENT)
WISHES_MAX = 100


@dataclass(frozen=True, slots=True)
class Wish:
    """One change of placement that would help.

    kind : CROSS_LEAF the ranks of a replica talk through the spine; DETOUR their order crosses it more often than their
    places need; ONE_RACK one power failure stops the pool; FRAGMENT free GPUs lie in pieces (daemon.fragments). bytes_s : what would no longer cross switches, NaN = not
    measured or nothing crosses. to : leaf or racks it should stand in, "" = there is no room. kubernetes, slurm : what to
    tell the scheduler, "" = nothing it could do.
    """

    kind: str
    subject: Entity
    pool: str
    text: str
    bytes_s: float = NAN
    to: str = ""
    kubernetes: str = ""
    slurm: str = ""


def wishes(frames: Frames, topology: Topology, fleet: Fleet) -> tuple[Wish, ...]:
    """Every wish, those that save most traffic first. Nothing is wished where leaves and racks are not known."""
    free = free_gpus(topology, fleet)
    order = _rank_orders(frames)
    found = [
        wish
        for engine, gpus in sorted(topology.gpus_of.items())
        for wish in _of_replica(frames, topology, free, engine, order.get(engine) or gpus)
    ]
    found.sort(key=lambda w: (-w.bytes_s if w.bytes_s == w.bytes_s else 0.0, w.subject))
    return tuple([*found, *_one_rack(topology, free)][:WISHES_MAX])


def crossing_bytes_s(found: Sequence[Wish]) -> float:
    """Traffic of replicas that crosses leaf switches now; 0 when no replica spans leaves, NaN when it is not measured."""
    known = [w.bytes_s for w in found if w.kind == CROSS_LEAF]
    return sum(known) if known else 0.0


def _leaf(topology: Topology, gpu: str) -> str:
    return topology.place.get(node_of_name(gpu), {}).get("leaf", "")


def _rank_orders(frames: Frames) -> dict[str, tuple[str, ...]]:
    """engine -> its GPUs in order of rank, where the target's label names them whole ("n01/gpu0,n02/gpu0")."""
    engine = frames["engine"]
    told = engine.facts.get("gpus", ("",) * len(engine.entities))
    return {
        name: tuple(g.strip() for g in text.split(","))
        for name, text in zip(engine.entities, told, strict=True)
        if "/" in text
    }


def _of_replica(
    frames: Frames, topology: Topology, free: Mapping[str, int], engine: str, gpus: Sequence[str]
) -> list[Wish]:
    leaves = [_leaf(topology, g) for g in gpus]
    distinct = sorted({leaf for leaf in leaves if leaf})
    if len(distinct) < 2 or "" in leaves:
        return []
    pool = topology.pool_of.get(engine, "")
    target = _leaf_with_room(topology, free, gpus, leaves)
    if target:
        return [_cross_leaf(frames, topology, engine, pool, gpus, leaves, target)]
    crossings = sum(a != b for a, b in pairwise(leaves))
    least = len(distinct) - 1
    if crossings > least:
        text = (
            f"the stages of {engine} go through {' > '.join(_runs(leaves))}: {crossings} ways across switches where {least} would do; "
            "give its ranks in the order of their leaves"
        )
        return [
            Wish(
                DETOUR,
                Entity("engine", engine),
                pool,
                text,
                _crossing(frames, topology, gpus),
                ", ".join(distinct),
            )
        ]
    return [_cross_leaf(frames, topology, engine, pool, gpus, leaves, "")]


def _runs(leaves: Sequence[str]) -> list[str]:
    return [leaf for i, leaf in enumerate(leaves) if i == 0 or leaves[i - 1] != leaf]


def _leaf_with_room(
    topology: Topology, free: Mapping[str, int], gpus: Sequence[str], leaves: Sequence[str]
) -> str:
    """The leaf under which the whole replica fits, preferably one it stands under already; "" = none."""
    room: dict[str, int] = {}
    for node, count in free.items():
        leaf = topology.place.get(node, {}).get("leaf", "")
        if leaf:
            room[leaf] = room.get(leaf, 0) + count
    own = Counter(leaves)
    fits = [leaf for leaf, count in room.items() if count + own.get(leaf, 0) >= len(gpus)]
    return min(fits, key=lambda leaf: (-own.get(leaf, 0), leaf), default="")


def _crossing(frames: Frames, topology: Topology, gpus: Sequence[str]) -> float:
    """Bytes a second of the replica that pass a switch above the leaves: its part of what its nodes' ports send, by the
    share of its ranks elsewhere that sit under other leaves. Ranks of one node talk over NVLink, not through a port."""
    port = frames["port"]
    sent: dict[str, float] = {}
    for name, value in zip(port.entities, port.column("tx_bytes_s").tolist(), strict=True):
        node = node_of_name(name)
        sent[node] = sent.get(node, 0.0) + value
    total = 0.0
    for node in sorted({node_of_name(g) for g in gpus}):
        here = sum(node_of_name(g) == node for g in gpus)
        leaf = topology.place.get(node, {}).get("leaf", "")
        near = sum(_leaf(topology, g) == leaf for g in gpus)
        busy = sum(g in topology.engine_of for g in topology.gpus_on.get(node, ()))
        total += sent.get(node, NAN) * here / max(busy, 1) * (len(gpus) - near) / max(len(gpus) - here, 1)
    return total


def _cross_leaf(
    frames: Frames,
    topology: Topology,
    engine: str,
    pool: str,
    gpus: Sequence[str],
    leaves: Sequence[str],
    target: str,
) -> Wish:
    saved = _crossing(frames, topology, gpus)
    distinct = sorted(set(leaves))
    traffic = f", {saved / 1e9:.1f} GB/s cross switches" if saved == saved else ""
    helps = f"under leaf {target} it fits whole" if target else "no leaf has room for it whole now"
    return Wish(
        kind=CROSS_LEAF,
        subject=Entity("engine", engine),
        pool=pool,
        text=f"the {len(gpus)} GPUs of {engine} sit under {len(distinct)} leaves ({', '.join(distinct)}){traffic}: {helps}",
        bytes_s=saved,
        to=target,
        kubernetes=_together(topology, target) if target else "",
        slurm="sbatch --switches=1@10:00 for its job; topology/tree with this map in topology.conf",
    )


def _together(topology: Topology, leaf: str) -> str:
    """Labels of the nodes under the leaf, and a pod template patch that keeps the pods of one replica under one leaf."""
    nodes = sorted(n for n, place in topology.place.items() if place.get("leaf") == leaf)
    term = {
        "labelSelector": {"matchExpressions": [{"key": GROUP_LABEL, "operator": "Exists"}]},
        "matchLabelKeys": [GROUP_LABEL],
        "topologyKey": LEAF_LABEL,
    }
    affinity = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}  # fmt: skip
    return f"kubectl label node {' '.join(nodes)} {LEAF_LABEL}={leaf} --overwrite\npod template patch: {_patch(affinity)}"


def _one_rack(topology: Topology, free: Mapping[str, int]) -> list[Wish]:
    """Pools whose replicas all stand in one rack although there are others."""
    racks = {place.get("rack", "") for place in topology.place.values()} - {""}
    pools: dict[str, list[str]] = {}
    for engine, pool in sorted(topology.pool_of.items()):
        node = topology.node_of_engine.get(engine, "")
        pools.setdefault(pool, []).append(topology.place.get(node, {}).get("rack", ""))
    found = []
    for pool, stands in sorted(pools.items()):
        if not pool or len(racks) < 2 or len(stands) < 2 or len(set(stands)) > 1 or not stands[0]:
            continue
        size = topology.gpus_per_replica(pool)
        others = sorted(
            {
                topology.place[n]["rack"]
                for n, count in free.items()
                if count >= max(size, 1) and topology.place.get(n, {}).get("rack", stands[0]) != stands[0]
            }
        )
        text = (
            f"all {len(stands)} replicas of {pool} stand in rack {stands[0]}: one power failure stops the pool; "
            + (f"there is room in {', '.join(others[:8])}" if others else "no other rack has room now")
        )
        found.append(
            Wish(
                kind=ONE_RACK,
                subject=Entity("pool", pool),
                pool=pool,
                text=text,
                to=", ".join(others[:8]),
                kubernetes=_apart(pool),
            )
        )
    return found


def _apart(pool: str) -> str:
    term = {"labelSelector": {"matchLabels": {"app": pool}}, "topologyKey": RACK_LABEL}
    spread = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}  # fmt: skip
    return f"pod template patch (the label is that of the pool's pods): {_patch(spread)}"


def _patch(affinity: Mapping[str, object]) -> str:
    return json.dumps({"spec": {"template": {"spec": {"affinity": affinity}}}}, sort_keys=True)
