"""Every fault changes the physics it claims, shows where it should, and heals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from daemon.model import Entity, Shape
from simulator.faults import EFFECTS, ENTITY_KINDS, Fault
from simulator.scenarios import SCENARIOS, at_epoch
from simulator.score import score
from simulator.script import INJECTIONS
from simulator.world import World, default_spec

EPOCH = 1_754_300_000.0


def struck(
    kind: str, entity: Entity, *, magnitude: float = math.nan, detail: str = "", gpus: int = 64
) -> World:
    """A world ten minutes into a fault that began after five."""
    world = World(default_spec(gpus), 4, EPOCH)
    world.inject(Fault(kind, entity, EPOCH + 300.0, 3600.0, magnitude, detail=detail))
    world.advance(EPOCH + 900.0)
    return world


def value(world: World, target: str, entity: str, signal: str) -> float:
    scrape = world.scrape(target)
    assert scrape.layout is not None, scrape.error
    assert scrape.values is not None
    for series, number in zip(scrape.layout.series, scrape.values.tolist(), strict=True):
        if series.signal == signal and series.entity.name == entity:
            return number
    raise KeyError((signal, entity))


def rate(world: World, target: str, entity: str, signal: str, span_s: float = 60.0) -> float:
    before, at = value(world, target, entity, signal), world.at
    world.advance(at + span_s)
    return (value(world, target, entity, signal) - before) / span_s


def mean_gap(world: World, engine: str, span_s: float = 300.0) -> float:
    """Mean inter-token latency of an engine over the next seconds."""

    def parts() -> tuple[float, float]:
        scrape = world.scrape(engine)
        assert scrape.layout is not None, scrape.error
        assert scrape.values is not None
        found = {
            s.shape: v
            for s, v in zip(scrape.layout.series, scrape.values.tolist(), strict=True)
            if s.signal == "itl_s"
        }
        return found[Shape.SUM], found[Shape.COUNT]

    first = parts()
    world.advance(world.at + span_s)
    last = parts()
    return (last[0] - first[0]) / (last[1] - first[1])


def test_lost_gpu_vanishes_from_the_page_and_its_engine_dies() -> None:
    world = struck("xid79", Entity("gpu", "n00/gpu1"))

    page, engine = world.scrape("n00:9400"), world.scrape("n00:8000")

    assert page.layout is not None
    assert "n00/gpu1" not in {s.entity.name for s in page.layout.series}
    assert engine.error == "connection refused"
    assert value(world, "lb:8405", "n00:8000", "lb_up") == 0.0


def test_lost_gpu_shows_its_code_and_the_kernel_says_so_first() -> None:
    world = World(default_spec(64), 4, EPOCH)
    world.inject(Fault("xid79", Entity("gpu", "n00/gpu1"), EPOCH + 301.0, 3600.0))

    world.advance(EPOCH + 300.0)
    assert world.events_since(EPOCH) == []
    world.advance(EPOCH + 302.0)
    (event,) = world.events_since(EPOCH)

    assert (event.at, event.kind, event.code, event.entity) == (
        EPOCH + 301.0,
        "xid",
        79.0,
        Entity("gpu", "n00/gpu1"),
    )
    assert event.text.startswith("NVRM: Xid (PCI:0000:18:00): 79, ")
    assert world.scrape("n00:9100").events == (event,)
    assert world.scrape("n00:9100").events == ()
    world.advance(EPOCH + 310.0)
    assert value(world, "n00:9400", "n00/gpu1", "xid_code") == 79.0


def test_throttled_gpu_runs_hot_slow_and_cool_headed_peers_wait() -> None:
    world = struck("thermal-throttle", Entity("gpu", "n00/gpu2"), magnitude=0.4)

    clock = value(world, "n00:9400", "n00/gpu2", "sm_clock_mhz")
    peer = value(world, "n00:9400", "n00/gpu1", "sm_clock_mhz")

    assert clock < 0.75 * peer
    assert int(value(world, "n00:9400", "n00/gpu2", "throttle_bits")) & 0x20
    assert value(world, "n00:9400", "n00/gpu2", "temp_c") > 83
    own = value(world, "n00:9400", "n00/gpu2", "tensor_active_ratio")
    waiting = value(world, "n00:9400", "n00/gpu1", "tensor_active_ratio")
    assert own > 1.03 * waiting
    busy = [value(world, "n00:9400", f"n00/gpu{k}", "util_ratio") for k in (1, 2)]
    assert busy[0] == busy[1]


@pytest.mark.parametrize(
    ("kind", "entity", "least"),
    [
        ("thermal-throttle", Entity("gpu", "n00/gpu2"), 1.1),
        ("slow-silicon", Entity("gpu", "n00/gpu2"), 1.02),
        ("dram-slow", Entity("gpu", "n00/gpu2"), 1.08),
        ("slow-replica", Entity("engine", "n00:8000"), 1.4),
        ("rack-power", Entity("rack", "r0"), 1.2),
        ("pfc-storm", Entity("port", "n00/mlx5_0"), 1.05),
        ("cpu-contention", Entity("node", "n00"), 1.04),
        ("nvlink-degraded", Entity("gpu", "n00/gpu2"), 1.03),
    ],
)
def test_sick_hardware_slows_its_engine_more_than_its_peer(kind: str, entity: Entity, least: float) -> None:
    healthy, sick = World(default_spec(64), 4, EPOCH), struck(kind, entity)
    healthy.advance(sick.at)

    assert mean_gap(sick, "n00:8000") > least * mean_gap(healthy, "n00:8000")


def test_pfc_storm_is_led_by_its_root_and_only_its_leaf_suffers() -> None:
    world = struck("pfc-storm", Entity("port", "n00/mlx5_0"))

    assert rate(world, "n00:9100", "n00/mlx5_0", "tx_pause_ratio") > 0.5
    assert rate(world, "n01:9100", "n01/mlx5_1", "rx_pause_ratio") > 0.2
    assert rate(world, "n05:9100", "n05/mlx5_0", "rx_pause_ratio") == 0.0
    assert rate(world, "n00:9100", "n00/mlx5_0", "pause_storm_per_s") > 0.1


def test_bad_cable_shows_errors_here_and_timeouts_at_the_other_side() -> None:
    world = struck("bad-cable", Entity("port", "n00/mlx5_0"))

    assert rate(world, "n00:9100", "n00/mlx5_0", "symbol_errors_per_s") > 10
    assert rate(world, "n00:9100", "n00/mlx5_0", "link_downed_per_s", 600.0) > 0
    here = rate(world, "n00:9100", "n00/mlx5_0", "ack_timeouts_per_s")
    assert rate(world, "n01:9100", "n01/mlx5_0", "ack_timeouts_per_s") > 3 * here


def test_downgraded_link_runs_at_half_rate_without_errors() -> None:
    world = struck("nic-downgrade", Entity("port", "n02/mlx5_1"))

    assert value(world, "n02:9100", "n02/mlx5_1", "rate_bytes_s") == 25e9
    assert value(world, "n02:9100", "n02/mlx5_0", "rate_bytes_s") == 50e9
    assert rate(world, "n02:9100", "n02/mlx5_1", "symbol_errors_per_s") == 0.0


def test_incast_marks_the_receiver_and_slows_the_senders() -> None:
    world = struck("incast", Entity("port", "n00/mlx5_0"))

    assert rate(world, "n00:9100", "n00/mlx5_0", "ecn_marked_per_s") > 1000
    assert rate(world, "n01:9100", "n01/mlx5_0", "ecn_marked_per_s") < 10
    assert rate(world, "n01:9100", "n01/mlx5_0", "cnp_handled_per_s") > 100


def test_rack_power_slows_every_gpu_of_the_rack_and_no_other() -> None:
    world = struck("rack-power", Entity("rack", "r0"))

    for node, braked in (("n00", True), ("n01", True), ("n02", False)):
        bits = int(value(world, f"{node}:9400", f"{node}/gpu0", "throttle_bits"))
        assert bool(bits & 0x80) is braked


def test_hung_node_is_silent_and_the_load_balancer_gives_it_up() -> None:
    world = struck("node-hang", Entity("node", "n00"))

    for target in ("n00:9400", "n00:9100", "n00:8000"):
        assert world.scrape(target).error.startswith("no answer")
    assert value(world, "lb:8405", "n00:8000", "lb_up") == 0.0
    assert rate(world, "lb:8405", "n00:8000", "lb_sessions_per_s") == 0.0


def test_hung_engine_looks_idle_while_sessions_at_the_load_balancer_stay() -> None:
    world = struck("engine-hang", Entity("engine", "n00:8000"))

    assert value(world, "n00:8000", "n00:8000", "running") == 0.0
    assert rate(world, "n00:8000", "n00:8000", "generation_tokens_s") == 0.0
    assert value(world, "lb:8405", "n00:8000", "lb_sessions") > 5
    assert rate(world, "lb:8405", "n00:8000", "lb_done_per_s") == 0.0
    assert rate(world, "lb:8405", "n00:8000", "lb_errors_per_s") > 0
    assert world.ledger()["requests_lost"] > 0


def test_long_contexts_fill_the_cache_until_requests_are_preempted_or_wait() -> None:
    world = struck("kv-thrash", Entity("pool", "chat"))
    engines = [t.address for t in world.targets() if dict(t.labels).get("pool") == "chat"]

    assert max(value(world, e, e, "kv_used_ratio") for e in engines) > 0.85
    assert max(value(world, e, e, "waiting") for e in engines) > 3


def test_burst_multiplies_arrivals() -> None:
    calm, burst = (
        World(default_spec(64), 4, EPOCH),
        struck("traffic-burst", Entity("pool", "chat"), magnitude=2.0),
    )
    calm.advance(burst.at)

    counts = [w.ledger()["pools"]["chat"]["requests_total"] for w in (calm, burst)]

    # ten of fifteen minutes at twice the rate
    assert counts[1] / counts[0] == pytest.approx(5 / 3, rel=0.1)


def test_regression_comes_with_the_version_one_replica_after_another() -> None:
    world = World(default_spec(64), 4, EPOCH)
    world.inject(Fault("deploy-regression", Entity("pool", "chat"), EPOCH + 60.0, 7200.0, detail="v2"))

    versions = []
    for minute in (5, 60):
        world.advance(EPOCH + 60.0 * minute)
        versions.append(
            [dict(t.labels)["version"] for t in world.targets() if dict(t.labels).get("pool") == "chat"]
        )

    assert 0 < versions[0].count("v2") < 6
    assert versions[1] == ["v2"] * 6


@pytest.mark.parametrize(("mode", "error"), [("refused", "refused"), ("hang", "no answer"), ("error", "500")])
def test_exporter_outage_hides_the_page_and_nothing_else(mode: str, error: str) -> None:
    world = struck("exporter-outage", Entity("target", "n00:9400"), detail=mode)

    assert error in world.scrape("n00:9400").error
    assert world.scrape("n00:8000").error == ""
    assert world.ledger()["requests_lost"] == 0


def test_stale_page_keeps_its_numbers_while_the_engine_serves() -> None:
    world = struck("exporter-outage", Entity("target", "n00:8000"), detail="stale")

    assert rate(world, "n00:8000", "n00:8000", "generation_tokens_s") == 0.0
    assert rate(world, "lb:8405", "n00:8000", "lb_done_per_s") > 0


def test_absent_field_is_unknown_never_zero() -> None:
    world = struck("absent-field", Entity("target", "n00:9400"), detail="power_w")

    assert math.isnan(value(world, "n00:9400", "n00/gpu0", "power_w"))
    assert "DCGM_FI_DEV_POWER_USAGE{" not in world.exposition("n00:9400")


def test_skewed_clock_is_shown_by_the_node() -> None:
    world = struck("clock-skew", Entity("node", "n03"))

    assert value(world, "n03:9100", "n03", "clock_s") == pytest.approx(world.at + 90.0)


@pytest.mark.parametrize("kind", sorted(EFFECTS))
def test_every_kind_runs_shows_itself_and_ends(kind: str) -> None:
    names = {"gpu": "n00/gpu0", "port": "n00/mlx5_0", "node": "n00", "rack": "r0", "leaf": "l0",
             "engine": "n00:8000", "pool": "chat", "target": "n00:9400", "cluster": "all", "storage": "nas:/models"}  # fmt: skip
    entity_kind = ENTITY_KINDS[kind][0]
    world = World(default_spec(32), 4, EPOCH)
    world.inject(Fault(kind, Entity(entity_kind, names[entity_kind]), EPOCH + 60.0, 240.0))

    world.advance(EPOCH + 200.0)
    (trouble,) = world.troubles
    assert trouble.begun
    assert trouble.suspects
    world.advance(EPOCH + 700.0)

    assert trouble.is_over
    assert not world.any_lost
    assert np.all(world.ports.gauges[:, 0] == 50e9)
    ready = [
        s for s in world.sweep() if s.target.endswith(("9100", "9400")) and s.error != "connection reset"
    ]
    assert all(s.error == "" for s in ready)
    books = world.ledger()
    assert (
        books["requests_total"]
        == books["requests_finished"] + books["requests_lost"] + books["requests_in_flight"]
    )


def test_wrong_faults_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="unknown fault kind 'gremlins'; use one of"):
        Fault("gremlins", Entity("gpu", "n00/gpu0"), EPOCH, 60.0)
    with pytest.raises(ValueError, match="it must be a gpu"):
        Fault("xid79", Entity("node", "n00"), EPOCH, 60.0)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenarios_are_drawn_from_the_seed_and_run(name: str) -> None:
    drawn = [SCENARIOS[name](default_spec(32), np.random.default_rng(9)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    spec, faults, hours = drawn[0]
    world = World(spec, 9, EPOCH)
    for fault in at_epoch(faults, EPOCH):
        world.inject(fault)

    world.advance(EPOCH + min(hours * 3600.0, 2100.0))

    result = score(world, [], [])
    assert result["false_isolations"] == result["false_findings"] == 0
    assert result["requests_total"] > 0


def test_on_a_single_node_a_second_fault_waits_until_the_first_is_over() -> None:
    """And where the first pool has no replica left to break, the next pool has."""
    world = World(default_spec(8), 4, EPOCH)
    first = INJECTIONS["exporter-outage"](world)
    assert first is not None
    world.inject(first)
    world.advance(EPOCH + 60.0)

    assert INJECTIONS["slow-gpu"](world) is None
    world.advance(EPOCH + first.duration_s + 60.0)
    again = INJECTIONS["slow-gpu"](world)

    assert again is not None
    assert again.entity.name.startswith("n00/")
