"""Scopes of tokens, sessions of browsers, forms, repeated writes, paging, ETags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from web_town import Town, first_gpu, lived, pages

from daemon.model import Verb
from daemon.policy import Mode
from daemon.settings import Settings
from simulator.faults import Fault

HTML = {"Accept": "text/html"}


def with_tokens(folder: Path, **more: Any) -> Settings:
    """Three holders: looker, kim who approves, root."""
    tokens = []
    for name, scope in (("looker", "read"), ("kim", "approve"), ("root", "admin")):
        (folder / name).write_text(f"secret-of-{name}\n")
        tokens.append({"name": name, "token_file": str(folder / name), "scope": scope})
    return Settings.model_validate({"web": {"tokens": tokens, **more}})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_tokens(tmp_path)


@pytest.fixture
def town() -> Iterator[Town]:
    found = lived(0.25, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer secret-of-{name}"}


def waiting(town: Town, verb: Verb) -> str:
    return next(r.step.id for r in town.daemon.record.steps(state="awaiting") if r.step.verb is verb)


def csrf_of(text: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [("looker", "/api/v1/pause", 403), ("kim", "/api/v1/pause", 202), ("root", "/api/v1/pause", 202),
     ("kim", "/-/reload", 403), ("kim", "/api/v1/attest", 403)],
)  # fmt: skip
async def test_a_token_may_do_what_its_scope_says(
    town: Town, settings: Settings, name: str, path: str, status: int
) -> None:
    async with pages(town, settings) as client, client.post(path, headers=bearer(name)) as answer:
        text = await answer.text()

        assert answer.status == status
        if status == 403:
            assert f"the token {name} has the scope" in text
            assert "secret-of" not in text


async def test_the_audit_names_the_holder_whatever_the_client_says(town: Town, settings: Settings) -> None:
    async with pages(town, settings) as client:
        headers = {**bearer("kim"), "X-Operator": "somebody else"}
        for _ in range(3):
            async with client.post("/api/v1/resume", headers=headers) as answer:
                assert answer.status == 202

        async with client.get("/api/v1/audit?limit=2") as answer:
            first = await answer.json()
        async with client.get("/api/v1/audit", params={"limit": "2", "cursor": first["next"]}) as answer:
            rest = await answer.json()

    assert [(e["by"], e["word"]) for e in first["entries"]] == [("kim", "resume")] * 2
    assert len(rest["entries"]) == 1
    assert rest["next"] is None


async def test_where_looking_needs_a_token_only_health_is_open(town: Town, tmp_path: Path) -> None:
    async with pages(town, with_tokens(tmp_path, reads="token")) as client:
        for path, headers, status in (
            ("/api/v1/overview", {}, 401),
            ("/api/v1/overview", bearer("looker"), 200),
            ("/metrics", {}, 401),
            ("/metrics", bearer("looker"), 200),
            ("/healthz", {}, 200),
            ("/static/style.css", {}, 200),
        ):
            async with client.get(path, headers=headers) as answer:
                assert (path, answer.status) == (path, status)
        async with client.get("/nodes?page=1", headers=HTML, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/login?next=%2Fnodes%3Fpage%3D1")


async def test_a_signed_in_browser_approves_by_a_form(town: Town, settings: Settings) -> None:
    id = waiting(town, Verb.REROUTE)
    async with pages(town, settings) as client:
        async with client.post("/login", data={"token": "secret-of-kim", "next": "/actions"}) as answer:
            text = await answer.text()
            assert answer.url.path == "/actions"
            assert "kim (approve)" in text

        async with client.post(f"/actions/{id}/approve", data={"csrf": csrf_of(text)}) as answer:
            assert (answer.status, answer.url.path) == (200, f"/actions/{id}")
        await town.beat()
        outcome = await town.outcomes.get()

        assert outcome.step.id == id
        commands = [e.payload for e in town.daemon.record.events(type="command")]
        assert [(c["kind"], c["by"]) for c in commands] == [("approve", "kim")]


async def test_a_form_of_another_site_changes_nothing(town: Town, settings: Settings) -> None:
    id = waiting(town, Verb.REROUTE)
    async with pages(town, settings) as client:
        async with client.post("/login", data={"token": "secret-of-kim"}) as answer:
            csrf = csrf_of(await answer.text())

        for data, headers in (
            ({}, {}),
            ({"csrf": "guess"}, {}),
            ({"csrf": csrf}, {"Origin": "https://elsewhere.example"}),
        ):
            async with client.post(f"/actions/{id}/approve", data=data, headers=headers) as answer:
                assert answer.status == 403

    assert town.daemon.record.events(type="command") == []


async def test_a_session_ends_with_its_token_and_with_signing_out(
    town: Town, settings: Settings, tmp_path: Path
) -> None:
    async with pages(town, settings) as client:
        async with client.post("/login", data={"token": "secret-of-kim"}) as answer:
            text = await answer.text()
        async with client.post("/logout", data={"csrf": csrf_of(text)}) as answer:
            assert "Sign in" in await answer.text()
        async with client.post("/login", data={"token": "secret-of-kim"}):
            (tmp_path / "kim").write_text("rotated\n")
        async with client.get("/") as answer:
            assert "kim (approve)" not in await answer.text()


async def test_the_way_back_after_signing_in_stays_on_this_site(town: Town, settings: Settings) -> None:
    async with pages(town, settings) as client:
        for target in ("https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "x"):
            data = {"token": "secret-of-looker", "next": target}
            async with client.post("/login", data=data, allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (303, "/")
                cookie = answer.headers["Set-Cookie"]
                assert "HttpOnly" in cookie
                assert "SameSite=Strict" in cookie


async def test_guessing_tokens_is_slowed_down(town: Town, settings: Settings) -> None:
    async with pages(town, settings) as client:
        seen = []
        for k in range(12):
            async with client.post("/login", data={"token": f"guess-{k}"}) as answer:
                seen.append(answer.status)

        assert seen == [403] * 10 + [429] * 2
        async with client.get("/api/v1/status") as answer:
            assert answer.status == 200


async def test_a_write_sent_twice_with_one_key_is_done_once(town: Town, settings: Settings) -> None:
    headers = {**bearer("kim"), "Idempotency-Key": "a-1"}
    async with pages(town, settings) as client:
        bodies = []
        for _ in range(2):
            async with client.post("/api/v1/pause", json={"seconds": 60}, headers=headers) as answer:
                bodies.append((answer.status, await answer.text()))
        async with client.post("/api/v1/pause", json={"seconds": 90}, headers=headers) as answer:
            assert answer.status == 409

    assert bodies[0] == bodies[1]
    assert len(town.daemon.record.events(type="command")) == 1


async def test_an_unchanged_answer_is_not_sent_again(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/api/v1/rules") as answer:
            tag = answer.headers["ETag"]

        async with client.get("/api/v1/rules", headers={"If-None-Match": f'"other", W/{tag}'}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with client.get("/api/v1/rules", headers={"If-None-Match": '"other"'}) as answer:
            assert answer.status == 200


async def test_a_list_goes_on_where_it_ended(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/api/v1/actions?limit=2000") as answer:
            whole = [a["id"] for a in (await answer.json())["actions"]]

        found: list[str] = []
        query = {"limit": "1"}
        while query:
            async with client.get("/api/v1/actions", params=query) as answer:
                body = await answer.json()
            found += [a["id"] for a in body["actions"]]
            query = {"limit": "1", "cursor": body["next"]} if body["next"] else {}

        assert len(whole) >= 2
        assert found == whole
        for bad in ("x", "1.5", "nan~s1", "~"):
            async with client.get("/api/v1/actions", params={"cursor": bad}) as answer:
                assert answer.status == 400


@pytest.mark.parametrize(
    ("web", "said"),
    [
        ({"reads": "token"}, "name a file in web.token_file or web.tokens"),
        ({"tokens": [{"name": "a", "token_file": "x"}, {"name": "a", "token_file": "y"}]}, "stands twice"),
        ({"tokens": [{"name": "a", "token_file": "x", "scope": "all"}]}, "'read', 'approve' or 'admin'"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(web: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({"web": web})
