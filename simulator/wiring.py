"""Who sits where: the fixed names and index maps of a simulated cluster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array
from simulator.spec import WorldSpec

Indices = NDArray[np.intp]
LB_TARGET = "lb:8405"


@dataclass(frozen=True)
class Wiring:
    """Names in index order. A GPU's index is node * gpus_per_node + its number; a port's likewise."""

    spec: WorldSpec
    nodes: tuple[str, ...] = field(init=False)
    gpus: tuple[str, ...] = field(init=False)
    ports: tuple[str, ...] = field(init=False)
    racks: tuple[str, ...] = field(init=False)
    leaves: tuple[str, ...] = field(init=False)
    gpu_node: Indices = field(init=False)
    port_node: Indices = field(init=False)
    port_leaf: Indices = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        width = max(2, len(str(spec.nodes - 1)))
        nodes = tuple(f"n{k:0{width}d}" for k in range(spec.nodes))
        put = object.__setattr__  # a frozen dataclass fills its derived fields this way
        put(self, "nodes", nodes)
        put(self, "gpus", tuple(f"{n}/gpu{g}" for n in nodes for g in range(spec.gpus_per_node)))
        put(self, "ports", tuple(f"{n}/mlx5_{p}" for n in nodes for p in range(spec.ports_per_node)))
        racks = [k // spec.nodes_per_rack for k in range(spec.nodes)]
        put(self, "racks", tuple(f"r{r}" for r in racks))
        put(self, "leaves", tuple(f"l{r // spec.racks_per_leaf}" for r in racks))
        put(self, "gpu_node", np.repeat(np.arange(spec.nodes), spec.gpus_per_node))
        put(self, "port_node", np.repeat(np.arange(spec.nodes), spec.ports_per_node))
        put(self, "port_leaf", np.repeat(np.array(racks) // spec.racks_per_leaf, spec.ports_per_node))

    def node(self, name: str) -> int:
        """Index of a node. Raises KeyError naming what exists."""
        return _index(self.nodes, name, "node")

    def gpu(self, name: str) -> int:
        return _index(self.gpus, name, "gpu")

    def port(self, name: str) -> int:
        return _index(self.ports, name, "port")

    def gpus_of(self, node: int) -> range:
        return range(node * self.spec.gpus_per_node, (node + 1) * self.spec.gpus_per_node)

    def ports_of(self, node: int) -> range:
        return range(node * self.spec.ports_per_node, (node + 1) * self.spec.ports_per_node)

    def nodes_in_rack(self, rack: str) -> list[int]:
        found = [k for k, r in enumerate(self.racks) if r == rack]
        if not found:
            raise KeyError(f"no rack {rack!r}; there are {sorted(set(self.racks))}")
        return found

    def uuid(self, gpu: int) -> str:
        """A stable GPU UUID, the same in every run."""
        digest = hashlib.sha256(f"gpu {self.gpus[gpu]}".encode()).hexdigest()
        return f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"

    def bus_id(self, gpu: int) -> str:
        """PCI address as the driver writes it; the eight slots of a common HGX board."""
        slots = ("0f", "18", "2a", "3a", "5d", "9a", "ab", "ba")
        number = gpu % self.spec.gpus_per_node
        return f"0000:{slots[number] if number < 8 else f'{0xC0 + number:02x}'}:00.0"


def sums(index: Indices, weights: Array, size: int) -> Array:
    """(size,) sum of the weights at each index."""
    # numpy's stubs say integers whatever the weights are
    return cast(Array, np.bincount(index, weights, minlength=size))


def _index(names: tuple[str, ...], name: str, kind: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise KeyError(f"no {kind} {name!r}; there are {names[0]} to {names[-1]}") from None
