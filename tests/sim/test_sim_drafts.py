"""Speculative decoding as the engine's page shows it and as the daemon reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.frame import FrameBuilder
from daemon.model import Entity, Finding, Target
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from detectors.serving import ServingDetector
from simulator.faults import Fault
from simulator.policies import policy_of
from simulator.spec import PoolSpec
from simulator.world import World, default_spec

EPOCH = 1_754_300_000.0


def drafting(*faults: Fault) -> World:
    spec = default_spec(32)
    pools = tuple(replace(p, accepted=0.7) if p.name == "chat" else p for p in spec.pools)
    world = World(replace(spec, pools=pools), 4, EPOCH)
    for fault in faults:
        world.inject(fault)
    return world


def said(world: World, hours: float) -> list[Finding]:
    builder, detector, found = FrameBuilder(policy_of(world.spec, "t")), ServingDetector(), []
    for beat in range(int(hours * 240)):
        world.advance(EPOCH + 15.0 * beat)
        for scrape in world.sweep():
            builder.absorb(scrape)
        found += [f for f in detector.update(builder.build(world.at)) if f.kind == "spec_drop"]
    return found


def shares(world: World, span_s: float) -> dict[str, float]:
    """Accepted over drafted tokens of each engine that tells both, over the next seconds."""
    before = {e.address: world.drafts.counters[e.slot].copy() for e in world.fleet.engines.values()}
    world.advance(world.at + span_s)
    grown = {
        e.address: world.drafts.counters[e.slot] - before[e.address] for e in world.fleet.engines.values()
    }
    return {name: float(g[1] / g[0]) for name, g in grown.items() if g[0] > 0}


def test_only_the_pool_that_drafts_counts_and_its_model_accepts_as_it_is_told() -> None:
    world = drafting()
    chat = {e.address for e in world.fleet.of_pool(0)}

    found = shares(world, 600.0)

    assert set(found) == chat
    assert list(found.values()) == pytest.approx([0.7] * len(chat))


def test_fewer_accepted_tokens_make_each_token_take_longer() -> None:
    fault = Fault("draft-drop", Entity("pool", "chat"), EPOCH + 300.0, 7200.0, 0.6)
    well, ill = drafting(), drafting(fault)
    for world in (well, ill):
        world.advance(EPOCH + 900.0)
    slots = [e.slot for e in well.fleet.of_pool(0)]

    # 1 + 4 * 0.7 tokens a step become 1 + 4 * 0.28.
    assert ill.serving.itl[slots].mean() > 1.6 * well.serving.itl[slots].mean()
    assert list(shares(ill, 300.0).values()) == pytest.approx([0.28] * len(slots))


def test_a_drop_of_acceptance_is_told_of_its_pool_and_steady_acceptance_is_not() -> None:
    fault = Fault("draft-drop", Entity("pool", "chat"), EPOCH + 5400.0, 3600.0, 0.6)

    steady, dropped = said(drafting(), 1.5), said(drafting(fault), 2.0)

    assert steady == []
    assert {f.entity for f in dropped} == {fault.entity}
    assert dropped[0].at - fault.at <= 900.0


def test_the_page_reads_as_its_columns_do() -> None:
    world, catalogue = drafting(), load_catalogue()
    world.advance(EPOCH + 300.0)
    target = next(t for t in world.targets() if t.address == world.fleet.of_pool(0)[0].address)
    shown = world.scrape(target.address)
    assert shown.layout is not None
    assert shown.values is not None

    reading = Page(catalogue.wanted, catalogue.keep).parse(world.exposition(target.address).encode())
    identity = catalogue.identify(Target(target.address, target.job, labels=target.labels), reading.keys)
    read = dict(
        zip((s.signal for s in identity.layout.series), identity.values(reading.values).tolist(), strict=True)
    )
    columns = dict(zip((s.signal for s in shown.layout.series), shown.values.tolist(), strict=True))

    for signal in ("spec_drafted_tokens_s", "spec_accepted_tokens_s"):
        assert read[signal] == columns[signal] > 0


def test_what_no_engine_does_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accepted is .* with engine 'sglang'"):
        PoolSpec("p", "m", "sglang", 4, 1, 1.0, 100, 100, 1, accepted=0.5)
