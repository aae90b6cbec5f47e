"""Racks that bear no more: caps, brakes, and what is not measured."""

from __future__ import annotations

import pytest
from small_frames import frame, frames

from daemon.model import NAN, Frames
from daemon.policy import Policy
from daemon.power import closed, racks
from daemon.topology import Topology, picture

CAPPED = Policy(rack_caps={"r2": 3000.0}, host_factor=1.25)


def hall(
    power: dict[str, float] | None = None, bits: dict[str, float] | None = None
) -> tuple[Frames, Topology]:
    """Two racks of one node with four GPUs: a serves with 500 W each, b is idle with 100 W each."""
    gpus = {
        f"{n}/gpu{k}": {"power_w": w, "throttle_bits": 0.0}
        for n, w in (("a", 500.0), ("b", 100.0))
        for k in range(4)
    }
    for name, watts in (power or {}).items():
        gpus[name]["power_w"] = watts
    for name, value in (bits or {}).items():
        gpus[name]["throttle_bits"] = value
    facts = {g: {"engine": "a:8000" if g.startswith("a") else ""} for g in gpus}
    nodes = frame(
        "node", 0.0, {"a": {"load1": 1.0}, "b": {"load1": 1.0}}, {"a": {"rack": "r1"}, "b": {"rack": "r2"}}
    )
    engine = frame("engine", 0.0, {"a:8000": {"running": 3.0}}, {"a:8000": {"node": "a", "pool": "chat"}})
    given = frames(0.0, frame("gpu", 0.0, gpus, facts), nodes, engine)
    return given, picture(given)


def test_a_rack_that_a_replica_would_overload_gets_none() -> None:
    (rack,) = racks(*hall(), Policy(rack_caps={"r2": 2400.0}))

    # 4 x 100 W and 4 x 400 W more, times 1.25 for the hosts.
    assert (rack.draw_w, rack.one_more_w) == (500.0, 2000.0)
    assert closed(*hall(), Policy(rack_caps={"r2": 2400.0})) == {
        "b": "rack r2: it draws 0.5 kW, a replica adds 2.0 kW, its cap is 2.4 kW"
    }
    assert closed(*hall(), CAPPED) == {}


def test_a_cap_for_all_racks_holds_for_each() -> None:
    assert set(closed(*hall(), Policy(rack_cap_w=2600.0))) == {"a"}


def test_a_rack_with_a_cap_and_a_gpu_that_tells_nothing_gets_no_more() -> None:
    assert "not all of its GPUs tell" in closed(*hall(power={"b/gpu2": NAN}), CAPPED)["b"]


def test_a_braking_rack_is_closed_without_any_cap() -> None:
    assert closed(*hall(bits={"a/gpu1": float(0x80 | 0x8)}), Policy()) == {
        "a": "rack r1: its power brake holds clocks down"
    }
    assert closed(*hall(bits={"a/gpu1": float(0x4)}), Policy()) == {}


@pytest.mark.parametrize("policy", [Policy(), Policy(rack_caps={"elsewhere": 1.0})])
def test_without_caps_nothing_is_closed(policy: Policy) -> None:
    assert closed(*hall(), policy) == {}
