"""What happens at the very moment a fault begins or ends: kernel messages, dead processes, roll-outs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.model import Event
from simulator.fleet import State
from simulator.spec import RSS_BYTES
from simulator.trouble import Trouble, suspects

if TYPE_CHECKING:
    from simulator.world import World

_XID_TEXT = {
    79: "GPU has fallen off the bus.",
    31: "MMU Fault: ENGINE GRAPHICS GPC0 faulted @ 0x7f_2c000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
    13: "Graphics Exception: ESR 0x50c730=0x20e000f",
    92: "High single-bit ECC error rate",
    74: "NVLink: fatal error detected on link 3",
}


def begin(world: World, trouble: Trouble) -> None:
    """The fault strikes."""
    fault = trouble.fault
    trouble.begun = True
    trouble.suspects = suspects(fault, world.fleet, world.wiring)
    engine = world.engine_at(fault.entity.name) if fault.entity.kind == "engine" else None
    if engine is not None:
        trouble.victim_since = engine.started_at
    if fault.kind == "xid79":
        _log_xid(world, trouble, 79, "")
    elif fault.kind == "app-xid":
        _log_xid(world, trouble, round(fault.size(31.0)), "python3")
    elif fault.kind == "ecc-storm":
        _log_xid(world, trouble, 92, "")
    elif fault.kind == "nvlink-degraded":
        _log_xid(world, trouble, 74, "")
    elif fault.kind == "bad-cable":
        text = f"mlx5_core 0000:1a:00.0 rdma{fault.entity.name[-1]}: Link down"
        # the link holds for three minutes and only then goes down
        world.emit(Event(fault.at + 180.0, fault.entity, "link_down", origin="kernel_log", text=text))
    elif fault.kind == "spot-reclaim":
        text = f"{fault.entity.name} is taken back in {fault.size(120.0):.0f} s"
        world.emit(Event(fault.at, fault.entity, "spot_reclaim", fault.size(120.0), "spot", text))
    elif fault.kind == "counter-reset":
        world.exporters.exporter_restarted(fault.entity.name)
    elif fault.kind == "deploy-regression":
        pool = [p.name for p in world.spec.pools].index(fault.entity.name)
        version = fault.detail or "v2"
        world.version_slow[f"{pool}/{version}"] = 1 + fault.size(0.3)
        world.fleet.versions[pool] = version
    elif fault.kind == "tidal-drain":
        pool = [p.name for p in world.spec.pools].index(fault.entity.name)
        keep = round(world.spec.pools[pool].replicas * (1 - fault.size(0.3)))
        world.fleet.want(pool, max(1, keep))
    elif fault.kind == "canary":
        pool = [p.name for p in world.spec.pools].index(fault.entity.name)
        world.fleet.try_out(pool, fault.detail or "canary", fault.at)
    elif fault.kind == "busy-replica" and engine is not None:
        world.fleet.attract(engine, fault.size(2.0))
    elif fault.kind == "cross-leaf" and engine is not None:
        world.fleet.spread(engine)


def end(world: World, trouble: Trouble, now: float) -> None:
    """The fault is over; hardware that was off the bus or hung comes back by a reboot."""
    trouble.ended = now
    fault = trouble.fault
    if fault.kind in ("xid79", "node-hang", "spot-reclaim"):
        node = world.wiring.node(fault.entity.name.split("/")[0])
        host = world.wiring.nodes[node]
        world.hosts.gauges[node, 0] = float(int(now - 60.0))
        world.exporters.exporter_restarted(f"{host}:9400")
        world.exporters.exporter_restarted(f"{host}:9100")
        rows = list(world.wiring.gpus_of(node))
        world.gpus.gauges[rows, _XID_COLUMN] = 0.0
        for engine in list(world.fleet.engines.values()):
            if engine.node == node and engine.state is not State.FAILED:
                world.fleet.fail(engine, now)
    elif fault.kind == "deploy-regression":
        pool = [p.name for p in world.spec.pools].index(fault.entity.name)
        world.fleet.versions[pool] = world.spec.pools[pool].version
    elif fault.kind == "tidal-drain":
        pool = [p.name for p in world.spec.pools].index(fault.entity.name)
        world.fleet.want(pool, world.spec.pools[pool].replicas)
    elif fault.kind == "memory-leak":
        leaky = world.engine_at(fault.entity.name)
        if leaky is not None and leaky.started_at != trouble.victim_since:
            world.engine_gauges[leaky.slot, _RSS_COLUMN] = RSS_BYTES
    elif fault.kind == "canary":
        world.fleet.end_trial(fault.detail or "canary")
    elif fault.kind == "busy-replica" and (popular := world.engine_at(fault.entity.name)) is not None:
        world.fleet.attract(popular, 1.0)


_XID_COLUMN = 17
_RSS_COLUMN = 8


def _log_xid(world: World, trouble: Trouble, code: int, app: str) -> None:
    fault = trouble.fault
    bus = world.wiring.bus_id(world.wiring.gpu(fault.entity.name))
    owner = f"pid=4711, name={app}, " if app else "pid='<unknown>', name=<unknown>, "
    text = f"NVRM: Xid (PCI:{bus[:10]}): {code}, {owner}{_XID_TEXT.get(code, 'error')}"
    world.emit(Event(fault.at, fault.entity, "xid", float(code), "kernel_log", text, app))
