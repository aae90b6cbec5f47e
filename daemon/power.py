"""Which nodes must not get more work, because their rack's power would not bear it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from daemon.model import NAN, Frames
from daemon.policy import Policy
from daemon.topology import Topology

BRAKE = 0x80
"""Bit of the clocks' reasons: the power brake of the rack or chassis. Source: NVML, HwPowerBrakeSlowdown."""
BUSY_W = 400.0
"""What a GPU draws at work where none is seen at work. Judgement: two thirds of 700 W at serving loads."""


@dataclass(frozen=True, slots=True)
class Rack:
    """One rack that has a cap or brakes. draw_w : its GPUs, times what else their hosts draw; NaN = not measured.

    cap_w : NaN = none is configured. one_more_w : what a replica more would add. why : "" = it may get more work.
    """

    name: str
    nodes: tuple[str, ...]
    draw_w: float
    cap_w: float
    one_more_w: float
    why: str


def racks(frames: Frames, topology: Topology, policy: Policy) -> tuple[Rack, ...]:
    """Every rack with a cap, and every rack that brakes. A rack whose draw is not known gets no more work: it has a cap."""
    caps = policy.rack_caps
    gpu = frames["gpu"]
    bits = gpu.column("throttle_bits")
    is_capped = bool(caps) or policy.rack_cap_w > 0
    if not is_capped and not (bits >= BRAKE).any():
        return ()  # asked at every tick: a word below the brake's bit does not hold it
    braking = np.isfinite(bits) & ((np.nan_to_num(bits).astype(np.int64) & BRAKE) > 0)
    if not is_capped and not braking.any():
        return ()
    power = dict(zip(gpu.entities, gpu.column("power_w").tolist(), strict=True))
    braked = {name for name, is_braking in zip(gpu.entities, braking.tolist(), strict=True) if is_braking}
    one_more = _replica_w(power, topology, policy)
    members: dict[str, list[str]] = {}
    for node in topology.gpus_on:
        rack = topology.place.get(node, {}).get("rack", "")
        if rack:
            members.setdefault(rack, []).append(node)
    found = []
    for rack, nodes in sorted(members.items()):
        cap = caps.get(rack, policy.rack_cap_w if policy.rack_cap_w > 0 else NAN)
        gpus = [g for n in nodes for g in topology.gpus_on[n]]
        is_braked = any(g in braked for g in gpus)
        if cap != cap and not is_braked:
            continue
        # One GPU of eight without a reading would make the rack look lighter than it is: unknown is unknown.
        draw = policy.host_factor * sum(power.get(g, NAN) for g in gpus)
        found.append(Rack(rack, tuple(nodes), draw, cap, one_more, _why(is_braked, draw, cap, one_more)))
    return tuple(found)


def _why(is_braked: bool, draw: float, cap: float, one_more: float) -> str:
    if is_braked:
        return "its power brake holds clocks down"
    if draw != draw:
        return "it has a power cap and not all of its GPUs tell their power"
    if draw + one_more > cap:
        return f"it draws {draw / 1e3:.1f} kW, a replica adds {one_more / 1e3:.1f} kW, its cap is {cap / 1e3:.1f} kW"
    return ""


def _replica_w(power: Mapping[str, float], topology: Topology, policy: Policy) -> float:
    """What the widest replica adds: the draw of GPUs at work over that of idle ones."""
    busy = [power.get(g, NAN) for g in topology.engine_of]
    idle = [w for g, w in power.items() if g not in topology.engine_of]
    work = _high(busy) if busy else BUSY_W
    rest = float(np.nanmin(idle)) if idle and np.isfinite(idle).any() else 0.0
    widest = max((topology.gpus_per_replica(pool) for pool in topology.pools()), default=1)
    return policy.host_factor * widest * max(work - rest, 0.0)


def _high(values: list[float]) -> float:
    known = [v for v in values if v == v]
    return float(np.quantile(known, 0.9)) if known else BUSY_W


def closed(frames: Frames, topology: Topology, policy: Policy) -> dict[str, str]:
    """node -> why no replica should start there."""
    return {
        node: f"rack {r.name}: {r.why}" for r in racks(frames, topology, policy) if r.why for node in r.nodes
    }
