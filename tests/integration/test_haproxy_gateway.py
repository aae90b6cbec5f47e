"""Limits and regional shares on a real HAProxy: what is refused, what is let in, which region is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from actions import VERBS
from actions.backends.haproxy import HAProxy, Process
from actions.backends.marks import Marks
from daemon.act import Executor, Patience
from daemon.model import Entity, Outcome, Result, Step, Verb
from daemon.record import Record

pytestmark = pytest.mark.integration

CONFIG = """
global
    stats socket {folder}/admin.sock mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
    default-server weight 100
frontend chat
    bind 127.0.0.1:{port}
    http-request set-var(txn.key) req.hdr(x-class),map_str({folder}/classes.map,chat)
    http-request set-var(txn.own) var(txn.key),map_str_int({folder}/admit.map,100)
    http-request set-var(txn.all) str(chat),map_str_int({folder}/admit.map,100)
    http-request set-var(txn.dice) rand(100)
    http-request return status 429 hdr retry-after 30 if {{ var(txn.own),sub(txn.dice) le 0 }}
    http-request set-var(txn.dice2) rand(100)
    http-request return status 429 hdr retry-after 30 if {{ var(txn.all),sub(txn.dice2) le 0 }}
    default_backend regions
backend regions
    balance roundrobin
    server east 127.0.0.1:{east}
    server west 127.0.0.1:{west}
"""


@dataclass
class Front:
    """A HAProxy with two regions behind it, and the backend that steers it."""

    url: str
    backend: HAProxy
    record: Record

    async def do(self, verb: Verb, kind: str, name: str, amount: float, id: str) -> Outcome:
        step = Step(id, verb, Entity(kind, name), amount, "need", deadline_s=5.0)
        patience = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)
        return await Executor({verb: VERBS[verb](self.backend)}, self.record, lambda: 1.8e9, patience).run(
            step
        )

    async def ask(self, count: int, name: str = "") -> Counter[str]:
        """What `count` requests of a class were answered: the region, or the status that refused them."""
        seen: Counter[str] = Counter()
        headers = {"x-class": name} if name else {}
        async with aiohttp.ClientSession() as session:
            for _ in range(count):
                async with session.get(self.url, headers=headers) as answer:
                    seen[await answer.text() if answer.status == 200 else str(answer.status)] += 1
        return seen


@pytest.fixture
async def front(
    tmp_path: Path, binary: Callable[[str], str], free_port: Callable[[], int]
) -> AsyncIterator[Front]:
    ports = {}
    async with contextlib.AsyncExitStack() as stack:
        for name in ("east", "west"):
            ports[name] = free_port()
            runner = web.AppRunner(_region(name))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", ports[name]).start()
        port = free_port()
        (tmp_path / "admit.map").write_text("")
        (tmp_path / "classes.map").write_text("batch chat/batch\nfree chat/free\n")
        (tmp_path / "haproxy.cfg").write_text(CONFIG.format(folder=tmp_path, port=port, **ports))
        process = await asyncio.create_subprocess_exec(
            binary("haproxy"), "-db", "-f", str(tmp_path / "haproxy.cfg")
        )
        try:
            backend = HAProxy(
                processes=(Process(f"{tmp_path}/admin.sock"),),
                marks=Marks(tmp_path / "marks.json"),
                admit_map=f"{tmp_path}/admit.map",
            )
            for _ in range(100):
                if (tmp_path / "admin.sock").exists():
                    break
                await asyncio.sleep(0.05)
            yield Front(f"http://127.0.0.1:{port}/", backend, Record.open(None))
        finally:
            process.terminate()
            await process.wait()


def _region(name: str) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/", answer)
    return app


async def test_a_class_is_refused_and_the_others_are_served(front: Front) -> None:
    before = await front.ask(40, "batch")

    outcome = await front.do(Verb.LIMIT, "class", "chat/batch", 0.0, "s1")

    assert outcome.result is Result.DONE
    assert "429" not in before
    assert await front.ask(40, "batch") == Counter({"429": 40})
    assert "429" not in await front.ask(40, "free")
    assert "429" not in await front.ask(40)


async def test_a_rate_refuses_its_share_and_is_lifted_again(front: Front) -> None:
    await front.do(Verb.LIMIT, "pool", "chat", 0.4, "s1")
    limited = await front.ask(400)

    outcome = await front.do(Verb.LIMIT, "pool", "chat", 1.0, "s2")

    assert 200 <= limited["429"] <= 280
    assert outcome.result is Result.DONE
    assert "429" not in await front.ask(60)


async def test_regions_get_the_shares_they_are_given(front: Front) -> None:
    east = await front.do(Verb.BALANCE, "region", "east", 0.75, "s1")
    west = await front.do(Verb.BALANCE, "region", "west", 0.25, "s2")

    seen = await front.ask(200)

    assert (east.result, west.result) == (Result.DONE, Result.DONE)
    assert seen["east"] == pytest.approx(150, abs=6)


async def test_a_lost_region_gets_nothing(front: Front) -> None:
    outcome = await front.do(Verb.BALANCE, "region", "east", 0.0, "s1")

    assert outcome.result is Result.DONE
    assert await front.ask(20) == Counter({"west": 20})


async def test_a_map_haproxy_does_not_know_is_refused_with_the_remedy(front: Front, tmp_path: Path) -> None:
    front.backend = HAProxy(front.backend.processes, front.backend.marks, admit_map=f"{tmp_path}/other.map")

    outcome = await front.do(Verb.LIMIT, "pool", "chat", 0.5, "s1")

    assert outcome.result is Result.REFUSED
    assert "map_str_int" in outcome.detail
