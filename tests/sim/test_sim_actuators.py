"""What operators and daemons do to the simulated cluster happens once, truly, and can be undone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from daemon.model import Entity, Hopeless, Incident, Outcome, Result, Severity, Step, TryAgain, Verb
from simulator.faults import Fault
from simulator.score import score
from simulator.world import World, default_spec

EPOCH = 1_754_300_000.0
CHAT = Entity("pool", "chat")
SPARE = Entity("node", "n07")


def step(verb: Verb, target: Entity, amount: float = 1.0, *, until: float = math.nan, id: str = "") -> Step:
    pool = target.name if target.kind == "pool" else ""
    return Step(id or f"{verb}-{target.name}-{amount}", verb, target, amount, "test", until=until, pool=pool)


@pytest.fixture
def world() -> World:
    return World(default_spec(64), 1, EPOCH)


def addresses(world: World, pool: str) -> set[str]:
    return {t.address for t in world.targets() if dict(t.labels).get("pool") == pool}


async def test_scaling_up_takes_a_cold_start_and_happens_once(world: World) -> None:
    more = step(Verb.SCALE, CHAT, 8)
    await world.apply(more)
    said = await world.apply(more)

    assert await world.observe(more) == {"replicas": 8, "ready": 6}
    new = addresses(world, "chat") - addresses(World(default_spec(64), 1, EPOCH), "chat")
    assert {world.scrape(a).error for a in new} == {"connection refused"}
    world.advance(EPOCH + 130.0)

    assert await world.observe(more) == {"replicas": 8, "ready": 8}
    assert said == "pool chat: 6 -> 8 replicas wanted"
    assert len(new) == 2


async def test_scaling_down_lets_requests_finish(world: World) -> None:
    fewer = step(Verb.SCALE, CHAT, 5)
    await world.apply(fewer)
    world.advance(EPOCH + 300.0)

    assert await world.observe(fewer) == {"replicas": 5, "ready": 5}
    assert len(addresses(world, "chat")) == 5
    assert world.ledger()["requests_lost"] == 0


@pytest.mark.parametrize(("patience_s", "is_cut"), [(150.0, False), (1.0, True)])
async def test_what_a_replica_that_has_to_go_cuts_off_is_counted_apart(
    world: World, monkeypatch: pytest.MonkeyPatch, patience_s: float, is_cut: bool
) -> None:
    monkeypatch.setattr("simulator.fleet.DRAIN_MAX_S", patience_s)
    world.advance(EPOCH + 60.0)
    await world.apply(step(Verb.SCALE, CHAT, 5))
    world.advance(EPOCH + 300.0)

    ledger = world.ledger()
    assert (ledger["requests_cut_off"] > 0) is is_cut
    assert ledger["requests_lost"] == ledger["requests_cut_off"]


async def test_weight_zero_stops_new_requests_only(world: World) -> None:
    engine = Entity("engine", "n00:8000")
    off = step(Verb.REROUTE, engine, 0.0)
    await world.apply(off)
    world.advance(EPOCH + 300.0)

    assert await world.observe(off) == {"weight": 0.0}
    assert world.serving.held(world.slot_of("n00:8000")) == 0
    assert world.ledger()["requests_lost"] == 0


async def test_isolated_node_is_drained_and_its_replicas_move(world: World) -> None:
    node = Entity("node", "n00")
    aside = step(Verb.ISOLATE, node)
    await world.apply(aside)
    await world.apply(aside)
    world.advance(EPOCH + 400.0)

    assert await world.observe(aside) == {"isolated": True, "owner": "tidewarden"}
    assert not any(t.startswith("n00:8") for t in addresses(world, "chat"))
    assert await world.observe(step(Verb.SCALE, CHAT)) == {"replicas": 6, "ready": 6}
    assert world.ledger()["requests_lost"] == 0

    await world.apply(step(Verb.RELEASE, node))
    assert await world.observe(aside) == {"isolated": False, "owner": ""}


async def test_lost_gpu_is_repaired_in_isolation_and_comes_back_clean(world: World) -> None:
    gpu = Entity("gpu", "n00/gpu1")
    world.inject(Fault("xid79", gpu, EPOCH + 60.0, 6 * 3600.0, repair_s=1200.0))
    world.advance(EPOCH + 120.0)
    await world.apply(step(Verb.ISOLATE, gpu))

    world.advance(EPOCH + 120.0 + 1300.0)
    await world.apply(step(Verb.RELEASE, gpu))
    world.advance(world.at + 30.0)

    (trouble,) = world.troubles
    assert trouble.is_over
    page = world.scrape("n00:9400")
    assert page.layout is not None
    assert page.values is not None
    codes = [v for s, v in zip(page.layout.series, page.values, strict=True) if s.signal == "xid_code"]
    assert codes == [0.0] * 8
    assert await world.observe(step(Verb.SCALE, CHAT)) == {"replicas": 6, "ready": 6}


async def test_foreign_cordon_is_left_alone(world: World) -> None:
    world.set_aside_by_hand(SPARE, "alice")

    for verb in (Verb.ISOLATE, Verb.RELEASE):
        with pytest.raises(Hopeless, match="alice"):
            await world.apply(step(verb, SPARE))
    assert await world.observe(step(Verb.ISOLATE, SPARE)) == {"isolated": True, "owner": "alice"}


async def test_lease_ends_by_itself(world: World) -> None:
    lend = step(Verb.LEND, SPARE, 8, until=EPOCH + 3600.0)
    await world.apply(lend)
    await world.apply(lend)
    world.advance(EPOCH + 1800.0)
    assert await world.observe(lend) == {"lent": True, "until": EPOCH + 3600.0}

    world.advance(EPOCH + 3620.0)

    assert (await world.observe(lend))["lent"] is False
    assert world.ledger()["gpu_hours_lent"] == pytest.approx(8.0, rel=0.02)


async def test_recalled_gpus_are_back_within_two_minutes_not_at_once(world: World) -> None:
    lend = step(Verb.LEND, SPARE, 8, until=EPOCH + 7200.0)
    await world.apply(lend)
    world.advance(EPOCH + 600.0)

    await world.apply(step(Verb.RECALL, SPARE))
    world.advance(EPOCH + 620.0)
    assert (await world.observe(lend))["lent"] is True
    world.advance(EPOCH + 740.0)

    assert (await world.observe(lend))["lent"] is False


async def test_lent_gpus_work_and_take_no_replicas(world: World) -> None:
    for name in ("n06", "n07"):
        await world.apply(step(Verb.LEND, Entity("node", name), 8, until=EPOCH + 7200.0))
    await world.apply(step(Verb.SCALE, CHAT, 9))
    world.advance(EPOCH + 300.0)

    assert (await world.observe(step(Verb.SCALE, CHAT)))["ready"] < 9
    rows = list(world.wiring.gpus_of(7))
    assert np.all(world.gpus.gauges[rows, 4] > 300.0)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (step(Verb.SCALE, Entity("pool", "nope"), 3), "use a pool, one of"),
        (step(Verb.SCALE, CHAT, 99), "0 to 10 are possible"),
        (step(Verb.REROUTE, Entity("engine", "n99:8000"), 0.5), "no such engine"),
        (step(Verb.ISOLATE, Entity("port", "n00/mlx5_0")), "use a node or a gpu"),
        (step(Verb.ISOLATE, Entity("node", "n99")), "no node 'n99'"),
        (step(Verb.LEND, SPARE, 8), "end in the future"),
    ],
)
async def test_impossible_steps_are_hopeless_and_change_nothing(world: World, wrong: Step, why: str) -> None:
    before = (world.fleet.revision, list(world.fleet.wanted))

    with pytest.raises(Hopeless, match=why):
        await world.apply(wrong)

    assert (world.fleet.revision, list(world.fleet.wanted)) == before


async def test_busy_node_cannot_be_lent_yet(world: World) -> None:
    with pytest.raises(TryAgain, match="0 are free of engines"):
        await world.apply(step(Verb.LEND, Entity("node", "n00"), 8, until=EPOCH + 3600.0))


def incident(kind: str, scope: Entity, opened: float) -> Incident:
    return Incident("i1", kind, scope, opened, opened, Severity.CRITICAL, ())


async def test_score_tells_right_from_wrong(world: World) -> None:
    gpu = Entity("gpu", "n00/gpu1")
    world.inject(Fault("xid79", gpu, EPOCH + 60.0, 3600.0))
    world.advance(EPOCH + 90.0)
    right, wrong = step(Verb.ISOLATE, gpu), step(Verb.ISOLATE, Entity("node", "n05"))
    await world.apply(right)
    world.advance(EPOCH + 600.0)
    done = [Outcome(right, Result.DONE, at=EPOCH + 92.0), Outcome(wrong, Result.DONE, at=EPOCH + 95.0)]
    claims = [
        incident("gpu_lost", gpu, EPOCH + 75.0),
        incident("straggler", Entity("gpu", "n05/gpu0"), EPOCH + 80.0),
    ]

    result = score(world, claims, done)

    (fault,) = result["faults"]
    assert (fault["found_entity"], fault["delay_s"]) == ("gpu n00/gpu1", 15.0)
    assert fault["action"] == "isolate gpu n00/gpu1"
    assert 0 < fault["recovered_s"] <= 15
    assert (result["false_isolations"], result["false_findings"]) == (1, 1)


@pytest.mark.parametrize(
    ("to", "felt_s", "found"),
    [(4.0, None, ("pool chat", 45.0)), (4.0, 30.0, ("pool chat", 30.0)), (2.0, None, (None, None))],
)
async def test_a_burst_that_a_pool_grew_for_before_anybody_felt_it_is_found(
    world: World, to: float, felt_s: float | None, found: tuple[str | None, float | None]
) -> None:
    """Nobody tells of what was met; who shrinks in the meantime has seen nothing."""
    chat = Entity("pool", "chat")
    world.inject(Fault("traffic-burst", chat, EPOCH + 60.0, 600.0))
    world.advance(EPOCH + 300.0)
    deed = Outcome(replace(step(Verb.SCALE, chat, to), args=(("from", "3"),)), Result.DONE, at=EPOCH + 105.0)
    told = [incident("queue_growth", chat, EPOCH + 60.0 + felt_s)] if felt_s else []

    (fault,) = score(world, told, [deed])["faults"]

    assert (fault["found_entity"], fault["delay_s"]) == found


async def test_isolating_for_a_dead_exporter_is_false(world: World) -> None:
    world.inject(Fault("exporter-outage", Entity("target", "n00:9400"), EPOCH + 60.0, 600.0))
    world.advance(EPOCH + 300.0)
    deed = Outcome(step(Verb.ISOLATE, Entity("node", "n00")), Result.DONE, at=EPOCH + 200.0)

    result = score(world, [incident("telemetry_lost", Entity("target", "n00:9400"), EPOCH + 120.0)], [deed])

    assert result["false_isolations"] == 1
    assert result["false_findings"] == 0
    assert result["faults"][0]["delay_s"] == 60.0
