"""Faults and innocent events that the detection benchmark draws beside the scenarios."""

from __future__ import annotations

import numpy as np

from daemon.model import Entity
from simulator.defaults import default_spec
from simulator.faults import Fault
from simulator.fleet import State
from simulator.spec import PoolSpec, WorldSpec
from simulator.world import World

EPOCH = 1_780_308_000.0
SPEC = default_spec(64)


def struck(kind: str, entity: Entity, size: float = float("nan"), lasts: float = 3600.0) -> World:
    world = World(SPEC, 4, EPOCH)
    world.inject(Fault(kind, entity, EPOCH + 60.0, lasts, size, repair_s=float("nan")))
    return world


def column(world: World, target: str, signal: str) -> float:
    scrape = world.scrape(target)
    assert scrape.layout is not None
    assert scrape.values is not None
    return float(
        sum(v for s, v in zip(scrape.layout.series, scrape.values, strict=True) if s.signal == signal)
    )


def test_a_slow_receiving_process_says_it_is_not_ready_on_a_clean_link() -> None:
    world = struck("software-receiver", Entity("port", "n01/mlx5_0"), 40.0)

    world.advance(EPOCH + 660.0)

    assert abs(column(world, "n01:9100", "rnr_naks_per_s") - 600 * 40.0) <= 15 * 40.0
    assert column(world, "n01:9100", "symbol_errors_per_s") == 0.0


def test_a_full_downlink_makes_senders_wait_and_marks_nothing() -> None:
    world = struck("downlink", Entity("port", "n01/mlx5_0"))

    world.advance(EPOCH + 660.0)

    row = world.ports.rates[world.wiring.port("n01/mlx5_0")]
    assert row[1] > 0.9 * 50e9
    assert column(world, "n01:9100", "ecn_marked_per_s") == 0.0
    assert column(world, "n00:9100", "xmit_wait_per_s") > 1e9


def test_a_leaking_engine_grows_until_its_process_is_new() -> None:
    engine = next(e for e in World(SPEC, 4, EPOCH).fleet.engines.values() if e.pool == 0)
    world = struck("memory-leak", Entity("engine", engine.address), 1e6)

    world.advance(EPOCH + 1260.0)
    grown = column(world, engine.address, "rss_bytes")
    world.fleet.fail(world.fleet.engines[engine.slot], world.at)
    world.advance(EPOCH + 1860.0)

    assert 1.1e9 < grown - 6.5e9 < 1.3e9
    assert column(world, engine.address, "rss_bytes") == 6.5e9


def test_prefixes_collapse_for_a_pool_and_come_back() -> None:
    world = struck("prefix-collapse", Entity("pool", "chat"), 0.8, lasts=1200.0)

    def hits(until: float) -> float:
        before = world.serving.totals[:, 3:5].copy()
        world.advance(until)
        slots = [e.slot for e in world.fleet.of_pool(0)]
        asked, hit = (world.serving.totals[slots, 3:5] - before[slots]).sum(axis=0)
        return float(hit / asked)

    usual, broken = hits(EPOCH + 50.0), hits(EPOCH + 1200.0)

    assert broken < 0.4 * usual


def test_a_tidal_drain_takes_replicas_out_and_gives_them_back() -> None:
    world = struck("tidal-drain", Entity("pool", "small"), 0.5, lasts=1200.0)
    full = len(world.fleet.of_pool(2))

    world.advance(EPOCH + 900.0)
    fewer = len(world.fleet.of_pool(2))
    world.advance(EPOCH + 2400.0)

    assert fewer == round(full * 0.5)
    assert len(world.fleet.of_pool(2)) == full


def test_a_canary_keeps_its_version_until_the_trial_ends() -> None:
    world = struck("canary", Entity("pool", "chat"), lasts=1800.0)

    world.advance(EPOCH + 1500.0)
    during = sorted(e.version for e in world.fleet.of_pool(0))
    world.advance(EPOCH + 3000.0)

    assert during.count("canary") == 1
    assert {e.version for e in world.fleet.of_pool(0)} == {"v1"}
    assert all(e.state is State.READY for e in world.fleet.of_pool(0))


def test_a_popular_replica_gets_more_than_its_share() -> None:
    engine = next(e for e in World(SPEC, 4, EPOCH).fleet.engines.values() if e.pool == 2)
    world = struck("busy-replica", Entity("engine", engine.address), 2.0)

    world.advance(EPOCH + 1800.0)

    run = world.serving.arrived
    others = [run[e.slot] for e in world.fleet.of_pool(2) if e.slot != engine.slot]
    assert run[engine.slot] > 1.5 * np.median(others)


def test_another_kind_of_gpu_says_so_and_runs_at_its_own_clock() -> None:
    pool = PoolSpec("p", "m", "vllm", 2, 4, 1.0, 1000, 300, 5)
    world = World(WorldSpec(nodes=4, gpus_per_node=2, pools=(pool,), odd_nodes=(1,)), 1, EPOCH)
    world.inject(Fault("mixed-sku", Entity("node", "n01"), EPOCH, 1e6, 0.15, repair_s=float("nan")))

    world.advance(EPOCH + 120.0)
    layout = world.scrape("n01:9400").layout

    assert layout is not None
    assert {f.value for f in layout.facts if f.key == "sku"} == {"NVIDIA H200"}
    clock = world.gpus.gauges[:, 0]
    assert clock[2] < 0.87 * clock[0]


def test_a_fleet_wide_slowdown_leaves_nobody_out() -> None:
    world = struck("fleet-slow", Entity("cluster", "all"), 0.2)

    world.advance(EPOCH + 300.0)

    busy = world.gpus.gauges[world.fleet.gpu_slot >= 0, 0]
    assert busy.max() <= 0.82 * 1980.0
