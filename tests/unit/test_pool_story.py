"""One pool on a page and in the API: its objective, its replicas, what was done with it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from web_town import Town, first_gpu, lived, pages

from daemon.policy import Mode
from daemon.web import pool_story
from daemon.web.errors import Missing
from simulator.faults import Fault


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.7, Mode.AUTO, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


def sick_pool(town: Town) -> str:
    """The pool whose replica lost its GPU."""
    (step,) = [r.step for r in town.daemon.record.steps(limit=1000) if r.step.verb.value == "reroute" and r.step.amount == 0.0][:1]  # fmt: skip
    return step.pool


def test_a_pool_tells_its_objective_its_replicas_and_what_was_done(town: Town) -> None:
    name = sick_pool(town)

    found = pool_story.of(town.daemon, name)

    hour, day, *_ = found["objective"]
    assert hour["span_s"] == 3600.0
    assert hour["attained_ratio"] == pytest.approx(day["attained_ratio"])  # it lived for less than an hour
    assert hour["budget_used_ratio"] == pytest.approx(
        (1 - hour["attained_ratio"]) / (1 - hour["target_ratio"])
    )
    assert hour["measured_ratio"] > day["measured_ratio"] > 0.0
    engines = town.daemon.core.topology.engines_in(name)
    assert [e["name"] for e in found["engines"]] == sorted(engines)
    assert all(e["node"] for e in found["engines"])
    weights = town.daemon.core.state.fleet.weights
    assert [e["weight_ratio"] for e in found["engines"]] == [weights.get(e, 1.0) for e in sorted(engines)]
    serving = [e for e in found["engines"] if not math.isnan(e["running"])]
    assert sum(e["running"] for e in serving) == pytest.approx(found["now"]["running_requests"])
    assert {s["pool"] for s in found["steps"]} == {name}
    assert "reroute" in {s["verb"] for s in found["steps"]}


def test_a_pool_nobody_knows_is_missing_and_the_others_are_named(town: Town) -> None:
    with pytest.raises(Missing, match="no pool 'ghost'; pools: chat"):
        pool_story.of(town.daemon, "ghost")


async def test_the_page_and_its_twin(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/pools/chat") as answer:
            page = await answer.text()
        async with client.get("/api/v1/pools/chat") as answer:
            data = await answer.json()
        async with client.get("/pools/ghost") as answer:
            assert answer.status == 404

    assert "Does it keep its objective?" in page
    assert page.count("<svg") >= 2
    assert '/api/v1/pools/chat"' in page
    assert data["name"] == "chat"
