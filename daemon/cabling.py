"""Reads the leaf switch of each node from what schedulers, switches or hosts say of their cabling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

NODES_MAX = 100_000
"""Nodes a file may name: a mistyped range would fill the memory. Ten times the largest fleet the daemon is held to."""
_SWITCH = re.compile(r"^\s*SwitchName\s*=", re.IGNORECASE | re.MULTILINE)
_RANGE = re.compile(r"^([^\[\]]*)\[([^\[\]]+)\](.*)$")


class CablingError(ValueError):
    """A line that cannot be understood. line : counted from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def is_slurm(text: str) -> bool:
    """Whether a text is a topology.conf of Slurm's tree plug-in.

    >>> is_slurm("# tree\\nSwitchName=leaf1 Nodes=n[01-04]"), is_slurm("n01: {leaf: leaf1}")
    (True, False)
    """
    return _SWITCH.search(text) is not None


def slurm_leaves(text: str) -> dict[str, str]:
    """Node -> the switch it hangs on, of a topology.conf. Switches of switches say nothing of a leaf and are passed over.

    Raises CablingError for a line that cannot be understood, or that puts a node under a second switch.
    """
    leaves: dict[str, str] = {}
    for number, line in _lines(text):
        words = dict(_pair(word, number) for word in line.split())
        switch = words.get("switchname", "")
        if not switch:
            raise CablingError(number, f"found {line!r}; write SwitchName=S Nodes=n[01-04]")
        if ("nodes" in words) == ("switches" in words):
            raise CablingError(number, f"switch {switch}: give it either Nodes= or Switches=")
        for node in expanded(words.get("nodes", ""), number):
            if leaves.setdefault(node, switch) != switch:
                raise CablingError(
                    number, f"node {node} hangs on {leaves[node]} already; name it under one switch"
                )
            if len(leaves) > NODES_MAX:
                raise CablingError(number, f"more than {NODES_MAX} nodes; look for a mistyped range")
    return leaves


def expanded(hosts: str, line: int = 0) -> Iterator[str]:
    """The nodes of a Slurm host list, with the leading zeros they are written with.

    >>> list(expanded("n[08-10,12],login"))
    ['n08', 'n09', 'n10', 'n12', 'login']
    """
    for part in filter(None, re.split(r",(?![^\[]*\])", hosts)):
        found = _RANGE.match(part)
        if not found and not re.search(r"[\[\]]", part):
            yield part
            continue
        if not found:
            raise CablingError(line, f"found {part!r}; write a range like n[01-04,07]")
        before, spans, after = found.groups()
        for span in spans.split(","):
            low, _, high = span.partition("-")
            if not (low.isdecimal() and (high or low).isdecimal() and int(high or low) >= int(low)):
                raise CablingError(line, f"found the range {span!r} in {part!r}; write it like 01-04")
            for index in range(int(low), int(high or low) + 1):
                # A name may hold a second range behind the first: rack[1-2]node[1-4].
                yield from expanded(f"{before}{index:0{len(low)}d}{after}", line)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of what is not empty, without comments, lines that end in \\ joined."""
    held, began = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        began = began if held else number
        held += line.removesuffix("\\")
        if line.endswith("\\"):
            held += " "
            continue
        if held.strip():
            yield began, held.strip()
        held = ""
    if held.strip():
        yield began, held.strip()


def _pair(word: str, line: int) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not value:
        raise CablingError(line, f"found {word!r}; write KEY=VALUE without spaces")
    return key.lower(), value


# -- InfiniBand ------------------------------------------------------------------------------------------

_IB_SWITCH = re.compile(r'^Switch\s+\d+\s+"(S-[0-9a-fA-F]+)"\s*#\s*"([^"]*)"')
_IB_OTHER = re.compile(r'^(?:Ca|Rt)\s+\d+\s+"')
_IB_PORT = re.compile(r'^\[\d+\](?:\[[^\]]*\])?\s*"H-[0-9a-fA-F]+"\[\d+\][^#]*#\s*"([^"]*)"')


def is_ibnetdiscover(text: str) -> bool:
    """Whether a text is what `ibnetdiscover` prints.

    >>> is_ibnetdiscover('vendid=0x2c9\\nSwitch\\t36 "S-0002c9"\\t# "leaf1" base port 0 lid 2 lmc 0')
    True
    """
    return any(_IB_SWITCH.match(line) for line in text.splitlines())


def ib_leaves(text: str) -> dict[str, str]:
    """Node -> the switch its adapters hang on. A node on several switches (rails) gets them all, joined by "+".

    A switch is called by its description; where several share one (as from the factory), by its GUID. Adapters of
    switches themselves (aggregation nodes) are left out.
    """
    switches: dict[str, str] = {}
    ports: dict[str, set[str]] = {}
    current = ""
    for line in text.splitlines():
        switch = _IB_SWITCH.match(line)
        if switch:
            current = switch[1]
            switches[current] = switch[2].split(";")[-1].split(":")[0].strip()
            continue
        if _IB_OTHER.match(line):
            current = ""
        port = _IB_PORT.match(line)
        said = port[1] if port else ""
        words = said.split()
        if current and words and "aggregation" not in said.lower():
            ports.setdefault(words[0], set()).add(current)
    names = list(switches.values())
    called = {guid: name if name and names.count(name) == 1 else guid for guid, name in switches.items()}
    return {node: "+".join(sorted(called[guid] for guid in guids)) for node, guids in ports.items()}


def is_ufm(data: Any) -> bool:
    """Whether a document is a list of ports as UFM's `GET /ufmRest/resources/ports` answers it."""
    return isinstance(data, list) and any(isinstance(p, dict) and "peer_node_name" in p for p in data)


def ufm_leaves(data: list[Any]) -> dict[str, str]:
    """Node -> the switches its adapters hang on, joined by "+". Both ends of a cable may be listed, or one of them alone.

    Raises CablingError for an entry that is no port. Ports without a peer, links between switches, aggregation nodes are left out.
    """
    ports = []
    for number, port in enumerate(data, 1):
        if not isinstance(port, dict) or not port.get("system_name"):
            raise CablingError(
                1,
                f"entry {number}: found {str(port)[:60]!r}; write what GET /ufmRest/resources/ports answers",
            )
        ports.append(port)
    switches = {str(p["system_name"]) for p in ports if str(p.get("description", "")).startswith("Switch")}
    found: dict[str, set[str]] = {}
    for port in ports:
        own, peer = str(port["system_name"]), str(port.get("peer_node_name") or "N/A")
        node, switch = (peer, own) if own in switches else (own, peer)
        if peer == "N/A" or node in switches or "aggregation" in f"{own} {peer}".lower():
            continue
        found.setdefault(node.split()[0], set()).add(switch)
    return {node: "+".join(sorted(names)) for node, names in found.items()}


# -- Ethernet --------------------------------------------------------------------------------------------


def is_lldp(data: Any) -> bool:
    """Whether a document is {node: what `lldpctl -f json` prints on it}."""
    return isinstance(data, dict) and any(isinstance(v, dict) and "lldp" in v for v in data.values())


def lldp_leaves(data: Mapping[str, Any]) -> dict[str, str]:
    """Node -> the switches it sees as neighbours, joined by "+" where its ports go to several.

    Raises CablingError for a node whose output is none of lldpctl's. One that sees no neighbour is left out.
    """
    leaves = {}
    for node, told in data.items():
        lldp = told.get("lldp") if isinstance(told, dict) else None
        if not isinstance(lldp, dict):
            raise CablingError(
                1, f"node {node}: found {str(told)[:60]!r}; write what `lldpctl -f json` prints there"
            )
        found = lldp.get("interface", [])
        # lldpctl writes one interface as an object and several as a list of objects.
        rows = found if isinstance(found, list) else [found]
        seen = {
            name for row in rows if isinstance(row, dict) for port in row.values() for name in _chassis(port)
        }
        if seen:
            leaves[str(node)] = "+".join(sorted(seen))
    return leaves


def _chassis(port: Any) -> list[str]:
    """What the neighbour of a port calls itself."""
    chassis = port.get("chassis") if isinstance(port, dict) else None
    if not isinstance(chassis, dict):
        return []
    # Named: {"leaf1": {"id": ..}}; without a name: {"id": {"type": "mac", "value": ..}}.
    if "id" in chassis:
        name = chassis.get("name") or chassis["id"].get("value", "")
        return [str(name)] if name else []
    return [str(name) for name in chassis]
