"""The life of each injected fault: onset, the harm it does, repair, end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Entity
from simulator.conditions import Conditions
from simulator.faults import EFFECTS, Fault
from simulator.fleet import Engine, Fleet
from simulator.storage import DISK
from simulator.wiring import Wiring


@dataclass
class Trouble:
    """One fault as the world knows it. ended, harm_at : NaN while not. suspects : entities it is right to name.

    harm_at : last time a request was lost to it or handed to something sick. victim_since : start of the engine
    process it struck; a new process is well again.
    """

    fault: Fault
    begun: bool = False
    ended: float = NAN
    isolated_since: float = NAN
    harm_at: float = NAN
    lost: float = 0.0
    suspects: frozenset[Entity] = frozenset()
    victim_since: float = NAN

    @property
    def is_over(self) -> bool:
        return not math.isnan(self.ended)


def refresh(troubles: list[Trouble], ills: Conditions, wiring: Wiring, now: float) -> None:
    """Write what every present fault does into fresh conditions."""
    ills.heal()
    for trouble in troubles:
        if trouble.begun and not trouble.is_over:
            fault = trouble.fault
            EFFECTS[fault.kind](ills, fault, wiring, fault.strength(now), now - fault.at)


def has_ended(trouble: Trouble, fleet: Fleet, now: float) -> bool:
    """Whether time, repair in isolation, or a new process has cured it. Keeps track of the isolation."""
    fault = trouble.fault
    if now >= fault.end:
        return True
    if fault.kind in ("slow-replica", "slow-stage", "engine-hang", "memory-leak"):
        engine = fleet.at(fault.entity.name)
        return engine is None or engine.started_at != trouble.victim_since
    if math.isnan(fault.repair_s) or not _is_isolated(fault, fleet):
        trouble.isolated_since = NAN
        return False
    if math.isnan(trouble.isolated_since):
        trouble.isolated_since = now
    return now - trouble.isolated_since >= fault.repair_s


def _is_isolated(fault: Fault, fleet: Fleet) -> bool:
    if fault.entity.kind not in ("gpu", "node", "port"):
        return False
    node = Entity("node", fault.entity.name.split("/")[0])
    return node in fleet.isolated or (fault.entity.kind == "gpu" and fault.entity in fleet.isolated)


def victims(fault: Fault, fleet: Fleet, wiring: Wiring) -> list[Engine]:
    """Engines that run on what the fault made sick."""
    kind, name = fault.entity
    engines = list(fleet.engines.values())
    if kind == "gpu":
        gpu = wiring.gpu(name)
        return [e for e in engines if gpu in e.gpus]
    if kind == "engine":
        return [e for e in engines if e.address == name]
    if kind == "pool":
        return [e for e in engines if fleet.pools[e.pool].name == name]
    if kind == "rack":
        return [e for e in engines if wiring.racks[e.node] == name]
    if kind in ("leaf",):
        return [e for e in engines if wiring.leaves[e.node] == name]
    if kind in ("node", "port"):
        node = wiring.node(name.split("/")[0])
        return [e for e in engines if e.node == node]
    return []


def suspects(fault: Fault, fleet: Fleet, wiring: Wiring) -> frozenset[Entity]:
    """Entities whose naming counts as having found the fault."""
    kind, name = fault.entity
    found = {fault.entity}
    node = name.split("/")[0].split(":")[0]
    if kind in ("gpu", "port", "engine", "target") and node in wiring.nodes:
        found.add(Entity("node", node))
    if kind in ("gpu", "node", "engine", "pool", "port"):
        found |= {Entity("engine", e.address) for e in victims(fault, fleet, wiring)}
    if kind == "node":
        index = wiring.node(name)
        found |= {Entity("gpu", wiring.gpus[g]) for g in wiring.gpus_of(index)}
        found |= {Entity("target", f"{name}:{port}") for port in (9100, 9400)}
        found |= {Entity("target", e.address) for e in victims(fault, fleet, wiring)}
    if fault.kind == "slow-disk":
        return frozenset({fault.entity, Entity("store", f"{name}/{DISK}")})
    if kind == "rack":
        found |= {Entity("node", wiring.nodes[k]) for k in wiring.nodes_in_rack(name)}
    if kind == "target":
        found |= {Entity("engine", name)}
    if fault.kind == "deploy-regression":
        found |= {
            Entity("version", fault.detail or "v2"),
            Entity("version", f"{name}/{fault.detail or 'v2'}"),
        }
    return frozenset(found)


def note_harm(
    trouble: Trouble,
    fleet: Fleet,
    wiring: Wiring,
    given: NDArray[np.int64],
    lost: NDArray[np.int64],
    now: float,
) -> None:
    """given, lost : (slot,) requests handed out and lost in the step that ends now."""
    fault = trouble.fault
    slots = [e.slot for e in victims(fault, fleet, wiring)]
    if not slots or fault.entity.kind in ("pool", "leaf") or fault.kind == "app-xid":
        return
    gone = float(lost[slots].sum())
    trouble.lost += gone
    if gone > 0 or given[slots].sum() > 0:
        trouble.harm_at = now
