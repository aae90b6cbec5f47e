"""Names the entities that series speak about, from the labels of target and series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from daemon.model import Entity, Fact, Target

NODE_FACTS = ("node", "rack", "leaf", "region", "capacity")
ENGINE_FACTS = ("node", "pool", "role", "version", "gpus", "pp", "gpu_count", "model", "pod", "weights")
PLACELESS = ("engine", "pool", "class", "region", "job", "part", "switchport")
"""What a page may speak about without standing on the node it comes from."""
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}")


@dataclass(frozen=True, slots=True)
class PortNames:
    """How a network device's name becomes a port's. rules : (pattern, replacement), the first whole match counts.

    skip : devices that carry nothing of interest (loopback, containers), matched whole, before the rules.
    """

    rules: tuple[tuple[re.Pattern[str], str], ...]
    skip: re.Pattern[str]

    def port(self, device: str) -> str:
        """Name of the port within its node, "" for a device to skip."""
        if not device or self.skip.fullmatch(device):
            return ""
        for pattern, replacement in self.rules:
            found = pattern.fullmatch(device)
            if found:
                return found.expand(replacement)
        return device


class Named(Protocol):
    """What naming needs to know of a catalogue family."""

    @property
    def name(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def fixed(self) -> Mapping[str, str]: ...


def host_of(address: str) -> str:
    """The host part of host:port, brackets of IPv6 removed.

    >>> host_of("10.0.0.7:9100"), host_of("[::1]:9100"), host_of("n03")
    ('10.0.0.7', '::1', 'n03')
    """
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, port = address.rpartition(":")
    return host if host and port.isdigit() and ":" not in host else address


HOME = "nodename"
"""Label of a target for the host that its page names."""
_NAMELESS = re.compile(r"localhost(\..*)?|[0-9a-f]{12}|\(none\)")
"""Names that many hosts have, or a container has for as long as it runs."""


def at_home(target: Target, told: str) -> Target:
    """The target with the host that its page says it comes from, where that is a name."""
    if not told or _NAMELESS.fullmatch(told):
        return target
    return replace(target, labels=(*target.labels, (HOME, told)))


def node_of(target: Target, labels: Mapping[str, str]) -> str:
    """Target label node, else the series' own Hostname or node, else the host that the page names, else the host of label
    instance or of the address. A container's number is no name: it changes with each start.

    >>> node_of(Target("10.0.0.7:9400"), {"Hostname": "gpu07"}), node_of(Target("10.0.0.7:9400"), {"Hostname": "0a1b2c3d4e5f"})
    ('gpu07', '10.0.0.7')
    """
    own = dict(target.labels)
    said = labels.get("Hostname", "")
    return (
        own.get("node")
        or ("" if _NAMELESS.fullmatch(said) else said)
        or labels.get("node")
        or own.get(HOME)
        or host_of(own.get("instance", ""))
        or host_of(target.address)
    )


def target_name(target: Target) -> str:
    """What people know the target by: its label ``instance`` where that reads like host:port, else the address.

    With the path where that is unusual, because one address may serve several pages.
    """
    instance = dict(target.labels).get("instance", "")
    name = instance if ":" in instance else target.address
    return name if target.path == "/metrics" else name + target.path


def engine_of(target: Target) -> str:
    return dict(target.labels).get("instance") or target.address


def entity_of(
    target: Target, rule: str, labels: Mapping[str, str], ports: PortNames, engines: Mapping[str, str]
) -> str:
    """Name of the entity one series speaks about, "" when that cannot be told.

    rule : gpu, node, port, switchport (SWITCH/NUMBER), store, job, part, engine, server (a load balancer's row about an engine), proxy (its row about a pool), class (its row about requests of one class, POOL/CLASS),
    pair (sender and receiver of transfers, SENDER>RECEIVER), region (what a daemon says of its own), front (a probe of the front door of the region in the target's label front), or
    cluster_store (a storage cluster's row about itself or one of its daemons).
    """
    if rule == "cluster_store":
        return "/".join(filter(None, ("ceph", labels.get("ceph_daemon", ""))))
    if rule == "switchport":
        switch, number = labels.get("guid") or labels.get("switch", ""), labels.get("port", "")
        return f"{switch}/{number}" if switch and number else ""
    if rule == "engine":
        return engine_of(target)
    if rule == "server":
        return _server(target, labels, engines)
    if rule == "proxy":
        pool = _route(target, labels)
        return "" if "/" in pool else pool
    if rule == "class":
        return _class(target, labels)
    if rule == "part":
        return target_name(target)
    if rule == "job":
        return labels.get("exported_job") or labels.get("job", "")
    if rule == "pair":
        ends = labels.get("source", ""), labels.get("destination", "")
        return ">".join(ends) if all(ends) else ""
    if rule == "region":
        return labels.get("region", "")
    if rule == "front":
        return dict(target.labels).get("front", "")
    node = node_of(target, labels)
    if rule == "node" or not node:
        return node
    if rule == "store":
        return _store(node, labels)
    if rule == "gpu":
        index = labels.get("gpu") or labels.get("device", "").removeprefix("nvidia")
        return f"{node}/gpu{index}" if index.isdigit() else ""
    port = ports.port(labels.get("device", ""))
    number = labels.get("port", "1")
    return f"{node}/{port}" + ("" if number in ("", "1") else f":{number}") if port else ""


def _store(node: str, labels: Mapping[str, str]) -> str:
    """A disk by its device, a mount by what it shows: an NFS export, a Lustre filesystem without its client's number."""
    if labels.get("target"):
        return f"{node}/{labels['target'].rpartition('-')[0] or labels['target']}"
    what = labels.get("export") or labels.get("device") or labels.get("cache", "")
    return f"{node}/{what}" if what else ""


ROUTES = ("proxy", "upstream", "envoy_cluster_name", "envoy_virtual_host", "inference_pool")
"""Labels by which gateways name where they send requests."""


def _route(target: Target, labels: Mapping[str, str]) -> str:
    """The pool, or POOL/CLASS, of a gateway's row: by the target's label pools, else by its label pool, else as the gateway calls it."""
    own = dict(target.labels)
    said = next((labels[name] for name in ROUTES if labels.get(name)), "")
    return server_map(own.get("pools", "")).get(said) or own.get("pool", "") or said


def _class(target: Target, labels: Mapping[str, str]) -> str:
    """POOL/CLASS: from the label pools of the target, from a virtual cluster, or from a priority."""
    route = _route(target, labels)
    if "/" in route:
        return route
    told = labels.get("envoy_virtual_cluster", "")
    if not told and labels.get("priority"):
        priority = labels["priority"]
        told = server_map(dict(target.labels).get("classes", "")).get(priority, f"priority {priority}")
    return f"{route}/{told}" if route and told else ""


def _server(target: Target, labels: Mapping[str, str], engines: Mapping[str, str]) -> str:
    server = labels.get("server") or labels.get("backend", "")
    qualified = f"{labels.get('proxy') or labels.get('upstream', '')}/{server}"
    own = server_map(dict(target.labels).get("engines", ""))
    for names in (own, engines):
        found = names.get(qualified) or names.get(server)
        if found:
            return found
    return server if _ADDRESS.fullmatch(server) else ""


def server_map(text: str) -> dict[str, str]:
    """Load-balancer server -> engine, from ``srv1=10.0.0.1:8000,pool/srv2=...``.

    >>> server_map("srv1=10.0.0.1:8000, srv2=10.0.0.2:8000")
    {'srv1': '10.0.0.1:8000', 'srv2': '10.0.0.2:8000'}
    """
    pairs = (part.partition("=") for part in text.split(","))
    return {name.strip(): engine.strip() for name, sep, engine in pairs if sep}


def facts_of(
    target: Target, job: str, described: Iterable[tuple[Entity, Mapping[str, str], Named]]
) -> tuple[Fact, ...]:
    """What is known of the target and of every entity on its page; the target's own labels win over the series'."""
    own = dict(target.labels)
    facts: dict[tuple[Entity, str], str] = {}
    self_entity = Entity("target", target_name(target))
    facts[self_entity, "job"] = job
    nodes: dict[Entity, str] = {}
    for entity, labels, family in described:
        for key, names in family.facts.items():
            value = next((labels[n] for n in names if labels.get(n)), "")
            if value:
                facts.setdefault((entity, key), value)
        for key, value in family.fixed.items():
            facts.setdefault((entity, key), value)
        if entity.kind == "part" and own.get("part"):
            facts[entity, "part"] = own["part"]
        if entity.kind == "engine" and entity.name == engine_of(target):
            facts.setdefault((entity, "engine"), family.name)
        elif entity.kind not in PLACELESS and entity not in nodes:
            node = node_of(target, labels)
            # What a storage cluster says of itself stands on no node of ours.
            if entity.kind != "store" or entity.name.startswith(f"{node}/"):
                nodes[entity] = node
    for entity, node in nodes.items():
        if entity.kind != "node":
            facts[entity, "node"] = node
    host = host_of(target.address)
    engine = Entity("engine", engine_of(target))
    facts[self_entity, "host"] = host
    if any(entity == engine for entity, _ in facts):
        facts[engine, "host"] = host
    _add_target_facts(facts, target, own, set(nodes.values()))
    return tuple(Fact(entity, key, value) for (entity, key), value in facts.items() if value)


def _add_target_facts(
    facts: dict[tuple[Entity, str], str], target: Target, own: Mapping[str, str], nodes: set[str]
) -> None:
    engines = {entity for entity, _ in facts if entity == Entity("engine", engine_of(target))}
    for engine in engines:
        for key in ENGINE_FACTS:
            if own.get(key):
                facts[engine, key] = own[key]
    if own.get("part"):
        facts[Entity("target", target_name(target)), "part"] = own["part"]
    named = own.get("node", "")
    for node in nodes | ({named} if named else set()):
        facts[Entity("target", target_name(target)), "node"] = node
        for key in NODE_FACTS[1:]:
            if own.get(key):
                facts[Entity("node", node), key] = own[key]
