"""Who sits where: which node, rack, leaf, pool and engine an entity belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daemon.model import Entity, Frames
from daemon.policy import Policy, PoolPolicy

Facts = Mapping[Entity, Mapping[str, str]]

PLACE = ("rack", "leaf", "region")
"""Facts of a node that its GPUs, ports and engines inherit."""


def node_of_name(name: str) -> str:
    """The node part of a gpu or port name: ``n03/gpu5`` -> ``n03``."""
    return name.split("/", 1)[0]


def pool_of_engine(facts: Mapping[str, str], pools: Iterable[PoolPolicy]) -> str:
    """The pool an engine belongs to: the first configured pool that matches, else what discovery says.

    Without a ``pool`` fact a pool is guessed: the model, with the role where it is not "mixed".
    "" when nothing is known.
    """
    for pool in pools:
        wanted = pool.match or {"pool": pool.name}
        if all(facts.get(key) == value for key, value in wanted.items()):
            return pool.name
    if facts.get("pool"):
        return facts["pool"]
    model, role = facts.get("model", ""), facts.get("role", "")
    return f"{model}:{role}" if model and role not in ("", "mixed") else model


def share_of(name: str, facts: Mapping[str, str]) -> str:
    """The storage that many nodes read through a store, "" for a disk or cache of one node.

    >>> share_of("n01/nas:/models", {"source": "nfs", "node": "n01"}), share_of("ceph/osd.3", {"source": "ceph"})
    ('nas:/models', 'ceph')
    """
    if facts.get("source") in LOCAL:
        return ""
    node = facts.get("node", "")
    return name.removeprefix(f"{node}/") if node else name.split("/", 1)[0]


LOCAL = ("nvme", "cache")
"""Sources that belong to one node."""


def complete(facts: Facts, policy: Policy) -> dict[Entity, dict[str, str]]:
    """Facts with what follows from them: places inherited, pools named, GPUs joined to their engine.

    A GPU's engine comes from the engine's ``node`` and ``gpus`` facts ("0,1", or whole names like "n07/gpu0" where a
    replica spans nodes), else from the pod that both name. With the fact ``pp`` (pipeline stages) the GPUs count as listed stage by
    stage, and each gets its ``stage``. An engine that nobody gave a node stands on the one that the other pages of its
    ``host`` name, where they agree.
    ``peer`` is the group that is compared: same pool, SKU and role; without a pool the SKU alone.
    """
    full = {entity: dict(known) for entity, known in facts.items()}
    for name, place in policy.places.items():
        if Entity("node", name) in full:
            full[Entity("node", name)].update(place)
    engine_of: dict[Entity, Entity] = {}
    pods: dict[str, Entity] = {}
    homes = _homes(full)
    for entity, known in full.items():
        if entity.kind != "engine":
            continue
        if not known.get("node") and known.get("host") in homes:
            known["node"] = homes[known["host"]]
            if (page := Entity("target", entity.name)) in full:
                full[page]["node"] = known["node"]
        known["pool"] = pool_of_engine(known, policy.pools)
        listed = [index.strip() for index in known.get("gpus", "").split(",") if index]
        stages = int(known["pp"]) if known.get("pp", "").isdigit() else 1
        for rank, name in enumerate(listed):
            whole = name if "/" in name else f"{known.get('node', '')}/gpu{name}"
            engine_of[Entity("gpu", whole)] = entity
            if stages > 1 and len(listed) % stages == 0 and Entity("gpu", whole) in full:
                full[Entity("gpu", whole)].setdefault("stage", str(rank * stages // len(listed)))
        if known.get("pod"):
            pods[known["pod"]] = entity
    for entity, known in full.items():
        if entity.kind in ("gpu", "port"):
            known.setdefault("node", node_of_name(entity.name))
        if entity.kind == "store":
            known["share"] = share_of(entity.name, known)
        if entity.kind == "gpu":
            engine = engine_of.get(entity) or pods.get(known.get("pod", ""))
            if engine is not None:
                known["engine"] = engine.name
                known["pool"] = full[engine].get("pool", "")
        if entity.kind in ("gpu", "port", "engine"):
            for key, value in full.get(Entity("node", known.get("node", "")), {}).items():
                if key in PLACE:
                    known.setdefault(key, value)
    skus: defaultdict[str, set[str]] = defaultdict(set)
    for entity, known in full.items():
        if entity.kind == "gpu":
            known["peer"] = "|".join((known.get("pool", ""), known.get("sku", "")))
            skus[known.get("engine", "")].add(known.get("sku", ""))
    for entity, known in full.items():
        if entity.kind == "engine":
            sku = "+".join(sorted(skus[entity.name] - {""}))
            group = (known.get("pool", ""), known.get("role", ""), known.get("model", ""), sku)
            known["peer"] = "|".join(group)
    return full


def _homes(facts: Facts) -> dict[str, str]:
    """host -> the node that its exporters name; hosts of which they name several, as behind a tunnel, are left out.

    An exporter that names none calls the node by the host's own address: it does not count against one that does.
    """
    named: defaultdict[str, set[str]] = defaultdict(set)
    for entity, known in facts.items():
        if entity.kind == "target" and known.get("node") and known.get("host"):
            named[known["host"]].add(known["node"])
    said = {host: nodes - {host} or nodes for host, nodes in named.items()}
    return {host: next(iter(nodes)) for host, nodes in said.items() if len(nodes) == 1}


@dataclass(frozen=True, slots=True)
class Topology:
    """A picture of the fleet at one revision, for incidents, plan and guard.

    gpus_on : node -> its GPUs. engines_on : node -> engines with a GPU there. gpus_of : engine -> its GPUs, which
    may be empty (unknown). asked : engine -> how many it was started with, where that is told. pool_of, place :
    engine -> pool; node -> {"rack": .., "leaf": .., "capacity": "spot"}.
    """

    nodes: tuple[str, ...] = ()
    gpus_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engines_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gpus_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engine_of: Mapping[str, str] = field(default_factory=dict)
    node_of_engine: Mapping[str, str] = field(default_factory=dict)
    pool_of: Mapping[str, str] = field(default_factory=dict)
    place: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    node_of_target: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)

    @property
    def gpu_count(self) -> int:
        return sum(len(gpus) for gpus in self.gpus_on.values())

    def node_of(self, entity: Entity) -> str:
        """The node an entity sits on, "" for pools, racks and what is unknown."""
        if entity.kind == "node":
            return entity.name
        if entity.kind in ("gpu", "port"):
            return node_of_name(entity.name)
        if entity.kind == "store":
            node = node_of_name(entity.name)
            return node if node in self.gpus_on else ""
        if entity.kind == "engine":
            return self.node_of_engine.get(entity.name, "")
        if entity.kind == "target":
            return self.node_of_target.get(entity.name, "")
        return ""

    def engines_touched(self, entity: Entity) -> tuple[str, ...]:
        """Engines that suffer when `entity` is sick or taken away."""
        if entity.kind == "engine":
            return (entity.name,)
        if entity.kind == "gpu":
            engine = self.engine_of.get(entity.name, "")
            return (engine,) if engine else ()
        if entity.kind in ("rack", "leaf"):
            nodes = [n for n in self.nodes if self.place.get(n, {}).get(entity.kind) == entity.name]
            return tuple(e for n in nodes for e in self.engines_on.get(n, ()))
        return self.engines_on.get(self.node_of(entity), ())

    def scopes(self, entity: Entity) -> frozenset[Entity]:
        """The entity and everything that contains it: its node, rack, leaf, and the pools it serves."""
        found = {entity}
        node = self.node_of(entity)
        if node:
            found.add(Entity("node", node))
            found |= {Entity(k, v) for k, v in self.place.get(node, {}).items() if v}
        found |= {
            Entity("pool", self.pool_of[e]) for e in self.engines_touched(entity) if self.pool_of.get(e)
        }
        return frozenset(found)

    def pools(self) -> tuple[str, ...]:
        return tuple(sorted({p for p in self.pool_of.values() if p}))

    def engines_in(self, pool: str) -> tuple[str, ...]:
        return tuple(e for e, p in self.pool_of.items() if p == pool)

    def gpus_per_replica(self, pool: str) -> int:
        """GPUs one replica of a pool uses as discovered (the most common count), 0 when unknown. Those seen in use
        count, else those it was started with."""
        counts = [len(self.gpus_of.get(e, ())) or self.asked.get(e, 0) for e in self.engines_in(pool)]
        return max(sorted(set(counts)), key=counts.count) if counts else 0


def picture(frames: Frames) -> Topology:
    """The Topology that the facts of these frames tell."""
    gpus_on: defaultdict[str, list[str]] = defaultdict(list)
    engines_on: defaultdict[str, list[str]] = defaultdict(list)
    gpus_of: defaultdict[str, list[str]] = defaultdict(list)
    engine_of: dict[str, str] = {}
    gpu, engine, node, target = (frames[k] for k in ("gpu", "engine", "node", "target"))
    for i, name in enumerate(gpu.entities):
        gpus_on[node_of_name(name)].append(name)
        owner = gpu.facts["engine"][i] if "engine" in gpu.facts else ""
        if owner:
            engine_of[name] = owner
            gpus_of[owner].append(name)
    blank = ("",) * len(engine.entities)
    node_of_engine = dict(zip(engine.entities, engine.facts.get("node", blank), strict=True))
    for name, host in node_of_engine.items():
        if host:
            engines_on[host].append(name)
    for owner, gpus in gpus_of.items():
        for host in {node_of_name(g) for g in gpus}:
            if owner not in engines_on[host]:
                engines_on[host].append(owner)
    place = {
        name: {k: node.facts[k][i] for k in (*PLACE, "capacity") if k in node.facts and node.facts[k][i]}
        for i, name in enumerate(node.entities)
    }
    nodes = dict.fromkeys([*node.entities, *gpus_on, *(h for h in node_of_engine.values() if h)])
    return Topology(
        nodes=tuple(sorted(nodes)),
        gpus_on={k: tuple(v) for k, v in gpus_on.items()},
        engines_on={k: tuple(v) for k, v in engines_on.items()},
        gpus_of={k: tuple(v) for k, v in gpus_of.items()},
        engine_of=engine_of,
        node_of_engine=node_of_engine,
        pool_of=dict(zip(engine.entities, engine.facts.get("pool", blank), strict=True)),
        place=place,
        asked={
            name: int(count)
            for name, count in zip(engine.entities, engine.facts.get("gpu_count", blank), strict=True)
            if count.isdigit()
        },
        node_of_target=dict(
            zip(target.entities, target.facts.get("node", ("",) * len(target.entities)), strict=True)
        ),
    )
