"""Alerts over the API and by signed links: who is told what, and what people on call may say."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from web_town import Town, first_gpu, lived, pages

from actions.channel import Channel, ChannelKind
from actions.desk import Desk
from actions.notify import alert_of
from daemon import links
from daemon.model import Entity, Step, Verb
from daemon.policy import Mode
from daemon.settings import Settings
from daemon.web import oncall
from daemon.web.alerts import channels
from simulator.faults import Fault

TOKEN = {"Authorization": "Bearer open-sesame", "X-Operator": "kim"}
KEY = b"k" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "token").write_text("open-sesame\n")
    return Settings.model_validate({"web": {"token_file": str(tmp_path / "token"), "reads": "token"}})


@pytest.fixture
def town() -> Iterator[Town]:
    """A lost GPU of which on-call was told; the daemon waits for approvals."""
    found = lived(0.25, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 3600.0))
    daemon = found.daemon
    channel = Channel("chat", ChannelKind.SLACK, ("http://127.0.0.1:9/secret",))
    desk = Desk((channel,), daemon.record.outbox, daemon.clock)
    daemon.oncall, daemon.link_key = desk, KEY
    args = {"cluster": "town", "kind": "gpu_lost", "scope": "gpu n03/gpu5", "severity": "critical",
            "summary": "GPU lost", "status": "firing"}  # fmt: skip
    step = Step("s1", Verb.NOTIFY, Entity("incident", "i1"), 1.0, "told", "i1", args=tuple(args.items()))
    desk.tell(alert_of(step, found.now), "s1")
    yield found
    daemon.record.close()


def acked(town: Town) -> list[str]:
    return [raised.acked_by for raised in town.daemon.record.outbox.book.raised.values()]


async def test_what_fires_is_listed_and_can_be_taken_on_and_the_audit_says_by_whom(
    town: Town, settings: Settings
) -> None:
    async with pages(town, settings) as client:
        async with client.get("/api/v1/alerts", headers=TOKEN) as answer:
            (alert,) = (await answer.json())["alerts"]
        async with client.post("/api/v1/alerts/ack", json={"name": "i1"}, headers=TOKEN) as answer:
            assert answer.status == 202
        async with client.post("/api/v1/alerts/ack", json={"name": "i9"}, headers=TOKEN) as answer:
            assert answer.status == 404
        async with client.get("/api/v1/audit", headers=TOKEN) as answer:
            newest = (await answer.json())["entries"][0]

    assert (alert["status"], alert["labels"]["node"], alert["acked_by"]) == ("firing", "n03", "")
    assert acked(town) == ["kim"]
    assert (newest["by"], newest["word"], newest["argument"]) == ("kim", "ack", "i1")


async def test_a_silence_is_made_listed_and_ended(town: Town, settings: Settings) -> None:
    order = {"match": {"node": "n0*"}, "seconds": 3600, "comment": "swap"}
    async with pages(town, settings) as client:
        async with client.post("/api/v1/silences", json=order, headers=TOKEN) as answer:
            id = (await answer.json())["argument"]
        async with client.get("/api/v1/alerts", headers=TOKEN) as answer:
            (silence,) = (await answer.json())["silences"]
        async with client.post(f"/api/v1/silences/{id}/end", headers=TOKEN) as answer:
            assert answer.status == 202
        async with client.post(f"/api/v1/silences/{id}/end", headers=TOKEN) as answer:
            assert answer.status == 404

    assert (silence["match"], silence["by"], silence["end"] - silence["start"]) == (
        {"node": "n0*"},
        "kim",
        3600.0,
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "match is missing"),
        ({"match": {}, "seconds": 60}, "match is missing"),
        ({"match": {"no de": "x"}, "seconds": 60}, "a label's name"),
        ({"match": {"node": "x"}, "seconds": "1h"}, "seconds is '1h'"),
        ({"match": {"node": "x"}, "seconds": 1e9}, "up to 2592000"),
        ({"match": {"node": "x"}, "seconds": 60, "comment": 5}, "comment is no text"),
    ],
)
async def test_a_silence_that_makes_no_sense_is_refused_with_what_is_allowed(
    town: Town, settings: Settings, body: dict[str, object], says: str
) -> None:
    async with (
        pages(town, settings) as client,
        client.post("/api/v1/silences", json=body, headers=TOKEN) as answer,
    ):
        assert answer.status == 400
        assert says in (await answer.json())["detail"]


# -- links ----------------------------------------------------------------------------------------------


def link(town: Town, word: str, argument: str, life_s: float = 600.0, key: bytes = KEY) -> str:
    return f"/go/{links.sign(key, links.Order(word, argument, int(town.now + life_s)))}"


async def test_a_link_asks_first_and_acts_at_the_button_without_any_token(
    town: Town, settings: Settings
) -> None:
    path = link(town, "ack", "town /  / gpu_lost")
    async with pages(town, settings) as client:
        async with client.get(path) as answer:
            page = await answer.text()
            assert answer.status == 200
        before = acked(town)
        async with client.post(path) as answer:
            assert answer.status == 200
            assert "is acknowledged" in await answer.text()

    assert '<form method="post">' in page
    assert before == [""]
    assert acked(town) == ["link 127.0.0.1"]


async def test_an_approval_by_link_is_carried_out(town: Town, settings: Settings) -> None:
    row = next(r for r in town.daemon.record.steps(state="awaiting") if r.step.verb is Verb.REROUTE)
    async with pages(town, settings) as client:
        async with client.post(link(town, "approve", row.step.id)) as answer:
            assert answer.status == 200
        await town.beat()
        outcome = await asyncio.wait_for(town.outcomes.get(), 10)
        async with client.post(link(town, "approve", row.step.id)) as answer:
            assert answer.status == 409

    assert outcome.step.id == row.step.id


@pytest.mark.parametrize("broken", ["over", "forged", "cut", "other"])
async def test_a_link_that_is_over_or_made_up_does_nothing(
    town: Town, settings: Settings, broken: str
) -> None:
    good = link(town, "ack", "i1")
    path = {
        "over": link(town, "ack", "i1", life_s=-1.0),
        "forged": link(town, "ack", "i1", key=b"x" * 32),
        "cut": good[:-3],
        "other": "/go/abc",
    }[broken]
    async with pages(town, settings) as client:
        for ask in (client.get, client.post):
            async with ask(path) as answer:
                assert answer.status == 404

    assert acked(town) == [""]


async def test_without_a_key_no_link_is_good(town: Town, settings: Settings) -> None:
    town.daemon.link_key = b""
    async with pages(town, settings) as client, client.get(link(town, "ack", "i1", key=b"")) as answer:
        assert answer.status == 404


def test_the_key_survives_a_restart_and_is_for_its_owner_only(tmp_path: Path) -> None:
    first = links.key_of(tmp_path / "state")

    assert links.key_of(tmp_path / "state") == first
    assert stat.S_IMODE((tmp_path / "state" / links.FILE).stat().st_mode) == 0o600


def test_what_was_done_and_what_waits_is_told_in_both_languages(town: Town) -> None:
    incident = next(iter(town.daemon.core.state.book.open))

    deeds = oncall.deeds(town.daemon, incident, lambda step: f"http://warden.example/go/{step}")

    assert {deed.result for deed in deeds} == {"awaiting"}
    reroute = next(deed for deed in deeds if "weight" in deed.what["en"])
    assert reroute.what["zh"].startswith("调整路由权重 0%：engine ")
    assert reroute.url.startswith("http://warden.example/go/s")


async def test_the_page_shows_what_fires_and_takes_it_on_by_a_click(town: Town, settings: Settings) -> None:
    html = {"Accept": "text/html"}
    async with pages(town, settings) as client:
        async with client.post("/login", data={"token": "open-sesame", "next": "/alerts"}) as answer:
            text = await answer.text()
        csrf = re.search(r'name="csrf" value="([^"]+)"', text)
        (key,) = town.daemon.record.outbox.book.raised
        assert csrf is not None
        assert f'name="key" value="{key}"' in text
        assert "GPU lost" in text

        form = {"csrf": csrf.group(1), "key": key}
        async with client.post("/alerts/silence", data=form, headers=html) as answer:
            text = await answer.text()
            assert "End it" in text
        (silence,) = town.daemon.record.outbox.book.silences.values()
        assert "severity" not in silence.match
        assert silence.end - silence.start == 7200.0
        async with client.post(f"/silences/{silence.id}/end", data=form, headers=html) as answer:
            assert answer.status == 200
        async with client.post("/alerts/ack", data=form, headers=html) as answer:
            assert "Acknowledge" not in await answer.text()
        async with client.post("/alerts/ack", data={"key": key}, headers=html) as answer:
            assert answer.status == 403

    assert len(acked(town)) == 1
    assert acked(town) != [""]


def test_a_channel_is_shown_with_its_last_error_until_it_works_again(town: Town) -> None:
    outbox, desk = town.daemon.record.outbox, town.daemon.oncall
    assert isinstance(desk, Desk)
    desk.channels = (*desk.channels, Channel("phone", ChannelKind.PAGERDUTY, ("http://127.0.0.1:9/x",)))
    desk.test(desk.channels[0])
    (letter,) = outbox.letters()

    outbox.update(replace(letter, tries=1, error="HTTP 503"))
    failing, fresh = channels(town.daemon)
    desk.troubles["phone"] = "silences are not held"
    troubled = channels(town.daemon)[1]
    outbox.update(replace(letter, state="delivered", error=""))
    working = channels(town.daemon)[0]

    assert (failing["name"], failing["waiting"], failing["error"]) == ("chat", 1, "HTTP 503")
    assert (fresh["name"], fresh["sent"], fresh["error"]) == ("phone", 0, "")
    assert troubled["error"] == "silences are not held"
    assert (working["sent"], working["waiting"], working["error"]) == (1, 0, "")
