"""Pipeline stages and the switches' own counters, as their exporters show them and as the daemon reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from daemon.frame import FrameBuilder
from daemon.model import Entity, Finding, Frames, Scrape, Target
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from detectors.congestion import CongestionDetector
from detectors.straggler import StragglerDetector
from simulator.devices import GAUGES
from simulator.faults import Fault
from simulator.policies import policy_of
from simulator.spec import PoolSpec, WorldSpec
from simulator.world import World, default_spec

EPOCH = 1_754_300_000.0


def watched(world: World, hours: float) -> Iterator[Frames]:
    builder = FrameBuilder(policy_of(world.spec, "t"))
    for beat in range(int(hours * 240)):
        world.advance(world.epoch + 15.0 * beat)
        for scrape in world.sweep():
            builder.absorb(scrape)
        yield builder.build(world.at)


def all_of(look: Callable[[Frames], Iterable[Finding]], stream: Iterator[Frames]) -> list[Finding]:
    return [finding for frames in stream for finding in look(frames)]


def staged(*faults: Fault) -> World:
    spec = default_spec(64)
    world = World(
        replace(spec, pools=tuple(replace(p, pp=2) if p.tp == 4 else p for p in spec.pools)), 4, EPOCH
    )
    for fault in faults:
        world.inject(fault)
    return world


def test_a_pool_cut_into_stages_says_so_and_its_last_stage_does_less() -> None:
    world = staged()
    frames = list(watched(world, 0.3))[-1]
    gpu = frames["gpu"]

    stages = set(gpu.facts["stage"])
    by_stage = {
        s: np.nanmean(gpu.column("dram_active_ratio")[[k == s for k in gpu.facts["stage"]]])
        for s in ("0", "1")
    }

    assert stages == {"0", "1", ""}
    assert by_stage["1"] == pytest.approx(0.88 * by_stage["0"], rel=0.05)


def test_stages_of_unequal_weight_are_no_fault_for_hours() -> None:
    detector = StragglerDetector()

    found = all_of(detector.update, watched(staged(), 4.0))

    assert [f for f in found if f.kind == "stage_slow"] == []


@pytest.mark.parametrize("stage", ["0", "1"])
def test_a_slow_stage_is_named_by_its_replica(stage: str) -> None:
    engine = staged().fleet.of_pool(0)[2].address
    fault = Fault("slow-stage", Entity("engine", engine), EPOCH + 7200.0, 3600.0, 0.3, detail=stage)
    detector = StragglerDetector()

    found = [f for f in all_of(detector.update, watched(staged(fault), 2.5)) if f.kind == "stage_slow"]

    assert {f.entity for f in found} == {fault.entity}
    assert f"stage {stage} of {engine}" in found[0].text
    assert found[0].at - fault.at <= 900.0


def test_the_other_stage_waits_for_the_slow_one() -> None:
    engine = staged().fleet.of_pool(0)[2]
    fault = Fault("slow-stage", Entity("engine", engine.address), EPOCH + 300.0, 3600.0, 0.3, detail="1")
    world = staged(fault)
    world.advance(EPOCH + 900.0)

    dram = world.gpus.gauges[list(engine.gpus), GAUGES.index("dram_active_ratio")]

    assert dram[:2].mean() < 0.95 * dram[2:].mean()


# -- switches --------------------------------------------------------------------------------------------


def switched(*faults: Fault) -> World:
    world = World(replace(default_spec(64), uplinks=4), 4, EPOCH)
    for fault in faults:
        world.inject(fault)
    return world


def test_each_leaf_has_a_page_of_its_hosts_links_and_its_uplinks() -> None:
    world = switched()
    leaves = dict.fromkeys(world.wiring.leaves)

    pages = [t.address for t in world.targets() if t.job == "infiniband"]
    ports = list(watched(world, 0.05))[-1]["switchport"]

    assert pages == [f"{leaf}:9315" for leaf in leaves]
    assert len(ports.entities) == len(world.wiring.ports) + 4 * len(leaves)
    assert set(ports.facts["switch"]) == set(leaves)


def test_a_healthy_hour_of_switches_says_nothing() -> None:
    detector = CongestionDetector()

    assert all_of(detector.update, watched(switched(), 1.0)) == []


def test_a_port_without_credit_is_told_by_its_switch_and_by_nobody_else() -> None:
    fault = Fault("credit-stall", Entity("port", "n01/mlx5_0"), EPOCH + 600.0, 1800.0, 0.5)
    by_switch, by_hosts = CongestionDetector(), CongestionDetector()

    found = all_of(by_switch.update, watched(switched(fault), 0.4))
    plain = World(default_spec(64), 4, EPOCH)
    plain.inject(fault)
    alone = all_of(by_hosts.update, watched(plain, 0.4))

    assert {(f.rule, f.entity) for f in found} == {("congestion.host_drain_switch", fault.entity)}
    assert found[0].at - fault.at <= 45.0
    assert alone == []


def test_full_uplinks_are_told_by_the_switch_with_their_leaf() -> None:
    fault = Fault("uplink-congestion", Entity("leaf", "l1"), EPOCH + 600.0, 1800.0, 0.6)
    detector = CongestionDetector()

    found = all_of(detector.update, watched(switched(fault), 0.4))

    assert ("congestion.uplink_switch", Entity("leaf", "l1")) in {(f.rule, f.entity) for f in found}
    assert {f.entity for f in found if f.kind == "uplink_congestion"} == {Entity("leaf", "l1")}


def test_a_switchs_page_reads_as_its_columns_do() -> None:
    world, catalogue = switched(), load_catalogue()
    world.advance(EPOCH + 120.0)
    shown = world.scrape("l0:9315")
    target = next(t for t in world.targets() if t.address == "l0:9315")

    reading = Page(catalogue.wanted, catalogue.keep).parse(world.exposition("l0:9315").encode())
    identity = catalogue.identify(Target(target.address, target.job, labels=target.labels), reading.keys)
    read = Scrape("l0:9315", EPOCH, identity.layout, identity.values(reading.values))

    assert _by_name(read) == pytest.approx(_by_name(shown))
    assert {f for f in read.layout.facts if f.entity.kind == "switchport" and f.key == "far"} == {
        f for f in shown.layout.facts if f.key == "far"
    }


def _by_name(scrape: Scrape) -> dict[tuple[str, str], float]:
    assert scrape.layout is not None
    assert scrape.values is not None
    return {
        (s.entity.name, s.signal): v
        for s, v in zip(scrape.layout.series, scrape.values.tolist(), strict=True)
        if s.entity.kind == "switchport"
    }


def test_pools_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="pp is 3; use a divisor of its 4 GPUs"):
        PoolSpec("p", "m", "vllm", 4, 1, 1.0, 100, 100, 1, pp=3)
    assert WorldSpec().uplinks == 0
