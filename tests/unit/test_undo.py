"""Taking back what was done: the world is as before, and nothing proposes it again for an hour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from web_town import Town, first_gpu, lived, pages

from daemon.model import Entity, Verb
from daemon.policy import Mode
from daemon.settings import Settings
from daemon.undo import HANDS_OFF_S, order
from simulator.faults import Fault

TOKEN = {"Authorization": "Bearer open-sesame", "X-Operator": "kim"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "token").write_text("open-sesame\n")
    return Settings.model_validate({"web": {"token_file": str(tmp_path / "token")}})


@pytest.fixture
def town() -> Iterator[Town]:
    """A GPU has fallen off the bus, and in auto mode it has been isolated with its engine at weight 0."""
    found = lived(0.25, Mode.AUTO, Fault("xid79", first_gpu(), 600.0, 7200.0))
    yield found
    found.daemon.record.close()


def done(town: Town, verb: Verb, kind: str = "") -> str:
    rows = town.daemon.record.steps(state="done")
    return next(r.step.id for r in rows if r.step.verb is verb and kind in ("", r.step.target.kind))


async def settle(town: Town, verb: Verb) -> None:
    """Ticks until a step of this kind has ended."""
    await town.beat()
    while (await town.outcomes.get()).step.verb is not verb:
        pass


async def test_an_isolation_taken_back_is_released_and_not_made_again_within_the_hour(
    town: Town, settings: Settings
) -> None:
    id = done(town, Verb.ISOLATE, "gpu")
    gpu = first_gpu()
    async with pages(town, settings) as client:
        async with client.post(f"/api/v1/actions/{id}/undo", headers=TOKEN) as answer:
            assert (answer.status, (await answer.json())["undoes"]) == (202, id)
        await settle(town, Verb.RELEASE)

        assert gpu not in town.world.fleet.isolated
        for _ in range(20):
            await town.beat()
        assert gpu not in town.daemon.core.state.fleet.isolated
        async with client.get(f"/api/v1/actions/{id}") as answer:
            body = await answer.json()
        assert not body["can_be_undone"]
        release = done(town, Verb.RELEASE)
        async with client.get(f"/api/v1/actions/{release}") as answer:
            assert "kim took isolate gpu" in (await answer.json())["why"]


@pytest.fixture
def warm_town() -> Iterator[Town]:
    """A GPU is too hot, and its engine gets less work."""
    found = lived(0.25, Mode.AUTO, Fault("thermal-throttle", first_gpu(), 600.0, 7200.0))
    yield found
    found.daemon.record.close()


async def test_a_weight_taken_back_is_whole_again(warm_town: Town, settings: Settings) -> None:
    town = warm_town
    id = done(town, Verb.REROUTE)
    engine = town.daemon.record.step(id).step.target.name  # type: ignore[union-attr]
    async with pages(town, settings) as client:
        async with client.post(f"/api/v1/actions/{id}/undo", headers=TOKEN) as answer:
            assert answer.status == 202
        await settle(town, Verb.REROUTE)
        await town.beat()

    assert engine not in town.daemon.core.state.fleet.weights


async def test_what_no_longer_stands_cannot_be_taken_back(town: Town, settings: Settings) -> None:
    id = done(town, Verb.ISOLATE, "gpu")
    async with pages(town, settings) as client:
        for status in (202, 409):
            async with client.post(f"/api/v1/actions/{id}/undo", headers=TOKEN) as answer:
                assert answer.status == status
            await town.beat()


async def test_after_an_hour_the_evidence_counts_again(town: Town, settings: Settings) -> None:
    id = done(town, Verb.ISOLATE, "gpu")
    async with pages(town, settings) as client:
        async with client.post(f"/api/v1/actions/{id}/undo", headers=TOKEN):
            await settle(town, Verb.RELEASE)

        for _ in range(int(HANDS_OFF_S / 15.0) + 4):
            await town.beat()

    assert town.daemon.core.state.undone == {}


def test_an_order_that_cannot_be_taken_back_is_refused() -> None:
    with pytest.raises(
        ValueError, match="notify cannot be taken back; isolate, reroute, lend, scale, limit can"
    ):
        order("notify node n0", "kim", 0.0)

    assert order("scale pool chat 4", "kim", 10.0).target == Entity("pool", "chat")
