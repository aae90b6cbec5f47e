"""Approvals, pause, reload over the API: who may, what happens, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from web_town import Town, first_gpu, lived, pages

from daemon.model import Result, Verb
from daemon.policy import Mode
from daemon.settings import Settings
from simulator.faults import Fault

TOKEN = {"Authorization": "Bearer open-sesame", "X-Operator": "kim"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "token").write_text("open-sesame\n")
    return Settings.model_validate({"web": {"token_file": str(tmp_path / "token")}})


@pytest.fixture
def town() -> Iterator[Town]:
    """A GPU has fallen off the bus, and in approve mode the answers to it wait."""
    found = lived(0.25, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


@pytest.fixture(scope="module")
def still() -> Iterator[Town]:
    """The same for tests that leave it as it is."""
    found = lived(0.25, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


def rotate(settings: Settings, token: str) -> None:
    Path(settings.web.token_file).write_text(token)


def waiting(town: Town, verb: Verb) -> str:
    rows = town.daemon.record.steps(state="awaiting")
    return next(r.step.id for r in rows if r.step.verb is verb)


async def test_an_approved_step_is_carried_out_and_its_story_told(town: Town, settings: Settings) -> None:
    id = waiting(town, Verb.REROUTE)
    engine = town.daemon.record.step(id).step.target.name  # type: ignore[union-attr]
    async with pages(town, settings) as client:
        async with client.get("/") as answer:
            assert f"tidewarden actions approve {id}" in await answer.text()

        async with client.post(f"/api/v1/actions/{id}/approve", headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()
        outcome = await town.outcomes.get()

        assert (outcome.step.id, outcome.result) == (id, Result.DONE)
        assert town.world.engine_at(engine).weight == 0.0  # type: ignore[union-attr]
        async with client.get(f"/api/v1/actions/{id}") as answer:
            body = await answer.json()
        assert body["state"] == "done"
        assert [e["type"] for e in body["timeline"]] == ["verdict", "command", "verdict", "intent", "outcome"]
        assert body["timeline"][1]["text"] == f"operator: approve {id} by kim"


async def test_a_rejected_step_stays_undone(town: Town, settings: Settings) -> None:
    id = waiting(town, Verb.ISOLATE)
    async with pages(town, settings) as client:
        async with client.post(f"/api/v1/actions/{id}/reject", headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()

        async with client.get(f"/api/v1/actions/{id}") as answer:
            body = await answer.json()
        assert (body["state"], body["verdict"]) == ("withheld", "rejected_by_operator")
        async with client.post(f"/api/v1/actions/{id}/approve", headers=TOKEN) as answer:
            assert answer.status == 409
            assert "rejected" in (await answer.json(content_type="application/problem+json"))["detail"]
    assert town.world.fleet.isolated == {}


async def test_without_a_token_file_every_write_is_refused_with_the_remedy(still: Town) -> None:
    id = waiting(still, Verb.ISOLATE)
    async with pages(still) as client:
        for path in (
            f"/api/v1/actions/{id}/approve",
            f"/api/v1/actions/{id}/reject",
            "/api/v1/pause",
            "/api/v1/resume",
            "/-/reload",
        ):
            async with client.post(path, headers=TOKEN) as answer:
                body = await answer.json(content_type="application/problem+json")

                assert answer.status == 403
                assert "web.token_file" in body["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic b3Blbi1zZXNhbWU="}, 401),
        ({"Authorization": "Bearer open-sesame2"}, 403),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer пароль"}, 403),
    ],
)
async def test_a_wrong_token_changes_nothing(
    still: Town, settings: Settings, headers: dict[str, str], status: int
) -> None:
    id = waiting(still, Verb.ISOLATE)
    async with (
        pages(still, settings) as client,
        client.post(f"/api/v1/actions/{id}/approve", headers=headers) as answer,
    ):
        assert answer.status == status

    assert still.daemon.record.events(type="command") == []


async def test_the_token_is_read_anew_so_that_it_can_be_rotated(town: Town, settings: Settings) -> None:
    rotate(settings, "another")
    async with pages(town, settings) as client:
        async with client.post("/api/v1/resume", headers=TOKEN) as answer:
            assert answer.status == 403
        async with client.post("/api/v1/resume", headers={"Authorization": "Bearer another"}) as answer:
            assert answer.status == 202


async def test_a_pause_stops_actions_and_is_shown_until_resume(town: Town, settings: Settings) -> None:
    id = waiting(town, Verb.REROUTE)
    async with pages(town, settings) as client:
        async with client.post("/api/v1/pause", json={"seconds": 1800}, headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()
        async with client.get("/") as answer:
            assert "actions paused until" in await answer.text()
        async with client.get(f"/api/v1/actions/{id}") as answer:
            assert (await answer.json())["verdict"] == "paused"

        async with client.post("/api/v1/resume", headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()
        async with client.get("/api/v1/status") as answer:
            assert (await answer.json())["paused_until"] is None


async def test_a_pause_without_a_length_lasts_until_resume(town: Town, settings: Settings) -> None:
    async with pages(town, settings) as client:
        async with client.post("/api/v1/pause", headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()
        async with client.get("/api/v1/status") as answer:
            assert (await answer.json())["paused_until"] == "resumed"


@pytest.mark.parametrize(
    "body", ["{", '{"seconds": -1}', '{"seconds": "1h"}', '{"seconds": true}', '{"seconds": 1e99}', "[1]"]
)
async def test_a_pause_that_makes_no_sense_is_refused(still: Town, settings: Settings, body: str) -> None:
    async with (
        pages(still, settings) as client,
        client.post("/api/v1/pause", data=body, headers=TOKEN) as answer,
    ):
        assert answer.status == 400

    assert still.daemon.record.events(type="command") == []


async def test_what_does_not_wait_cannot_be_approved(still: Town, settings: Settings) -> None:
    async with pages(still, settings) as client:
        async with client.post("/api/v1/actions/s-none/approve", headers=TOKEN) as answer:
            assert answer.status == 404
        async with client.get("/api/v1/pause") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_a_reload_swaps_the_policy_and_keeps_what_backends_can_do(
    town: Town, settings: Settings, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("cluster: town\nmode: observe\n")
    able = town.daemon.core.policy.able
    async with pages(town, settings, config) as client:
        async with client.post("/-/reload", headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()

        assert town.daemon.core.policy.mode is Mode.OBSERVE
        assert town.daemon.core.policy.able == able

        config.write_text("mode: sometimes\nweb: {lisen: x}\n")
        async with client.post("/-/reload", headers=TOKEN) as answer:
            body = await answer.json(content_type="application/problem+json")
        await town.beat()

        assert answer.status == 422
        assert f"{config}:1: mode: found 'sometimes'" in body["detail"]
        assert "did you mean 'listen'?" in body["detail"]
        assert town.daemon.core.policy.mode is Mode.OBSERVE
        async with client.get("/metrics") as answer:
            assert "tidewarden_config_last_reload_successful 0.0" in await answer.text()


async def test_an_operators_word_on_an_incident_counts_for_its_rule(town: Town, settings: Settings) -> None:
    async with pages(town, settings) as client:
        async with client.post("/api/v1/incidents/i00001/refute", headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()

        async with client.get("/api/v1/rules") as answer:
            rules = {r["id"]: r for r in (await answer.json())["rules"]}
        async with client.get("/api/v1/incidents/i00001") as answer:
            told = await answer.json()

    assert (rules["fault.xid_lost"]["fired"], rules["fault.xid_lost"]["refuted"]) == (1, 1)
    assert rules["fault.xid_lost"]["precision_ratio"] == 0.0
    assert told["verdict"] == {"rules": ["fault.xid_lost"], "word": "refuted", "by": "operator kim"}
    assert "refuted: fault.xid_lost, by operator kim" in [row["text"] for row in told["timeline"]]
    entries = town.daemon.record.events(type="rule")
    assert [e.payload["word"] for e in entries if e.payload["incident"] == "i00001"] == ["fired", "refuted"]


async def test_a_word_without_token_or_on_nothing_is_refused(still: Town, settings: Settings) -> None:
    async with pages(still, settings) as client:
        async with client.post("/api/v1/incidents/i00001/confirm") as answer:
            assert answer.status == 401
        async with client.post("/api/v1/incidents/i99999/confirm", headers=TOKEN) as answer:
            assert answer.status == 404
            assert "no incident i99999" in (await answer.json())["detail"]


async def test_an_attested_measurement_stands_in_the_checklist(town: Town, settings: Settings) -> None:
    body = '{"item": "quantisation_loss", "value": 0.012, "valid_hours": 720}'
    async with pages(town, settings) as client:
        async with client.post("/api/v1/attest", data=body) as answer:
            assert answer.status == 401

        async with client.post("/api/v1/attest", data=body, headers=TOKEN) as answer:
            assert answer.status == 202
        await town.beat()
        async with client.get("/api/v1/posture") as answer:
            rows = {row["item"]: row for row in (await answer.json())["posture"]}

    assert len(rows) == 18
    assert (rows["quantisation_loss"]["state"], rows["quantisation_loss"]["value"]) == ("pass", 0.012)
