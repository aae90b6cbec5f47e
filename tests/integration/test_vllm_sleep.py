"""vLLM engines that sleep and wake behind a real HAProxy under load; the engines are engine-shaped HTTP servers."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes_town import BUSY

from actions import CONFIGURED, VERBS, Site
from actions.backends.haproxy import HAProxy, Process
from actions.backends.marks import Marks
from actions.backends.vllm import Vllm
from daemon.act import Executor, Patience
from daemon.model import Backend, Entity, Outcome, Result, Step, TryAgain, Verb
from daemon.record import Record
from daemon.settings_backends import VllmBackend

pytestmark = pytest.mark.integration

QUICK = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)


def a_step(amount: float, id: str = "s1", **more: Any) -> Step:
    return Step(
        id,
        Verb.SCALE,
        Entity("pool", "chat"),
        amount,
        "the night",
        **({"deadline_s": 10.0, "pool": "chat"} | more),
    )


@dataclass
class Engine:
    """Serves in 30 ms. Asleep it answers 500 to requests, as their memory is gone. memory_taken : a wake fails."""

    running: int = 0
    stuck: int = 0
    asleep: bool = False
    memory_taken: bool = False
    is_dev: bool = True
    served: int = 0
    slept_busy: int = 0
    port: int = 0
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @asynccontextmanager
    async def up(self) -> AsyncIterator["Engine"]:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/completions", self._complete)
        if self.is_dev:
            app.router.add_post("/sleep", self._sleep)
            app.router.add_post("/wake_up", self._wake)
            app.router.add_get("/is_sleeping", self._is_sleeping)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, self.host, self.port).start()
        self.port = int(runner.addresses[0][1])
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text=f"vllm:num_requests_running {self.running + self.stuck}\nvllm:num_requests_waiting 0\n"
        )

    async def _complete(self, _: web.Request) -> web.Response:
        if self.asleep:
            return web.Response(status=500, text="EngineDeadError")
        self.running += 1
        await asyncio.sleep(0.03)
        self.running -= 1
        self.served += 1
        return web.Response(text=self.address)

    async def _sleep(self, request: web.Request) -> web.Response:
        assert request.query["level"] == "1"
        self.slept_busy += bool(self.running + self.stuck)
        self.asleep = True
        return web.Response()

    async def _wake(self, _: web.Request) -> web.Response:
        if self.memory_taken:
            return web.Response(status=500, text="CUDA out of memory")
        await asyncio.sleep(0.05)
        self.asleep = False
        return web.Response()

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": self.asleep})


@dataclass
class Town:
    folder: Path
    engines: list[Engine]
    failures: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    def backend(self, others: dict[str, Backend] | None = None, **settings: Any) -> Vllm:
        pools = {"chat": [e.address for e in self.engines]}
        tree = VllmBackend.model_validate(
            {"kind": "vllm", "pools": pools, "drain": "2s", "timeout": "2s"} | settings
        )
        site = Site(self.folder / "marks.json", "tidewarden/prod", time.time, BUSY, others=others or {})
        built = CONFIGURED["vllm"](tree.model_dump(), site)
        assert isinstance(built, Vllm)
        return built

    async def run(self, step: Step, backend: Vllm | None = None) -> Outcome:
        action = VERBS[step.verb](backend or self.backend())
        return await Executor({step.verb: action}, Record.open(None), time.time, QUICK).run(step)

    def asleep(self) -> list[bool]:
        return [e.asleep for e in self.engines]

    @asynccontextmanager
    async def load(self, port: int) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as session:

            async def client() -> None:
                while True:
                    async with session.get(f"http://127.0.0.1:{port}/v1/completions") as answer:
                        text = await answer.text()
                        if answer.status != 200:
                            self.failures.append(f"{answer.status} {text}")
                        self.served[text] += 1

            clients = [asyncio.create_task(client()) for _ in range(6)]
            try:
                yield
            finally:
                for task in clients:
                    task.cancel()
                await asyncio.gather(*clients, return_exceptions=True)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(tmp_path, [await stack.enter_async_context(Engine().up()) for _ in range(3)])


async def test_engines_sleep_and_wake_under_load_and_no_request_is_lost(
    town: Town,
    tmp_path: Path,
    binary: Callable[[str], str],
    free_port: Callable[[], int],
    start: Any,
    listens: Any,
) -> None:
    port, socket = free_port(), tmp_path / "h.sock"
    servers = "".join(f"  server e{i} {e.address} weight 100\n" for i, e in enumerate(town.engines))
    (tmp_path / "h.cfg").write_text(
        f"global\n  stats socket {socket} mode 600 level admin\ndefaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  timeout connect 2s\n"
        f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend chat\nbackend chat\n  balance roundrobin\n{servers}"
    )
    listens(port, start([binary("haproxy"), "-f", str(tmp_path / "h.cfg"), "-db"]))
    lb = HAProxy((Process(str(socket)),), Marks(tmp_path / "lb.json"))
    backend = town.backend({"lb": lb}, reroute="lb")

    async with town.load(port):
        await asyncio.sleep(0.3)
        down = await town.run(a_step(1, "s1"), backend)
        alone = town.asleep()
        await asyncio.sleep(0.3)
        up = await town.run(a_step(3, "s2"), backend)
        before = Counter(town.served)
        await asyncio.sleep(0.5)

    assert [down.result, up.result] == [Result.DONE] * 2, (down.detail, up.detail)
    assert sum(alone) == 2
    assert town.asleep() == [False] * 3
    assert town.failures == []
    assert [e.slept_busy for e in town.engines] == [0, 0, 0]
    assert len(town.served - before) == 3


async def test_a_busy_engine_is_not_put_to_sleep_and_keeps_its_requests(town: Town) -> None:
    for engine in town.engines:
        engine.stuck = 2

    outcome = await town.run(a_step(2, deadline_s=3.0), town.backend(drain="100ms"))

    assert outcome.result is Result.UNKNOWN
    assert "still has 2 requests, so it stays awake" in outcome.detail
    assert town.asleep() == [False] * 3


async def test_the_engine_with_least_to_do_sleeps_first(town: Town) -> None:
    town.engines[0].stuck = 5
    town.engines[2].stuck = 3

    outcome = await town.run(a_step(2))

    assert outcome.result is Result.DONE, outcome.detail
    assert town.asleep() == [False, True, False]


async def test_a_sleeper_of_somebody_else_is_not_woken(town: Town) -> None:
    town.engines[1].asleep = True

    outcome = await town.run(a_step(3))

    assert outcome.result is Result.REFUSED
    assert f"1 were put to sleep by somebody else ({town.engines[1].address})" in outcome.detail
    assert town.asleep() == [False, True, False]


async def test_an_engine_whose_memory_is_still_taken_stays_asleep_and_says_why(town: Town) -> None:
    await town.run(a_step(2, "s1"))
    sleeper = next(e for e in town.engines if e.asleep)
    sleeper.memory_taken = True

    failed = await town.run(a_step(3, "s2", deadline_s=2.0))
    sleeper.memory_taken = False
    woken = await town.run(a_step(3, "s3"))

    assert failed.result is Result.UNKNOWN
    assert "is the offline job that had its memory gone?" in failed.detail
    assert woken.result is Result.DONE


async def test_the_same_step_again_changes_nothing(town: Town) -> None:
    backend = town.backend()
    await backend.apply(a_step(2))
    once = town.asleep()

    await town.backend().apply(a_step(2))

    assert town.asleep() == once
    assert sum(once) == 1


async def test_what_is_not_set_up_is_said_beforehand(
    town: Town, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    async with Engine(is_dev=False).up() as plain:
        gone = Engine(port=free_port())
        checks = await Town(tmp_path, [town.engines[0], plain, gone]).backend().check()
        refused = await Town(tmp_path, [town.engines[0], plain]).run(a_step(1))

    assert [c.is_right for c in checks] == [True, False, False]
    assert "--enable-sleep-mode" in checks[1].fix
    assert checks[2].found == "nothing listens there"
    assert refused.result is Result.REFUSED
    assert "VLLM_SERVER_DEV_MODE=1" in refused.detail


# -- trouble in the middle of a run -----------------------------------------------------------------------------


async def test_a_sleeper_that_restarts_is_missed_while_away_and_is_nobodys_sleeper_afterwards(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    steady, sleeper = Engine(stuck=1), Engine(port=free_port())
    town = Town(tmp_path, [steady, sleeper])
    async with steady.up():
        async with sleeper.up():
            down = await town.run(a_step(1, "s1"))
        away = await town.run(a_step(2, "s2"))
        sleeper.asleep = False  # a fresh process is awake
        async with sleeper.up():
            back = await town.run(a_step(2, "s3"))
            sleeper.asleep = True  # by a person
            foreign = await town.run(a_step(2, "s4"))

    assert down.result is Result.DONE, down.detail
    assert away.result is Result.REFUSED
    assert f"1 do not run ({sleeper.address})" in away.detail
    assert back.result is Result.DONE, back.detail
    assert foreign.result is Result.REFUSED
    assert "put to sleep by somebody else" in foreign.detail


async def test_an_engine_that_accepts_and_never_answers_is_given_up(town: Town) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    deaf = await asyncio.start_server(swallow, "127.0.0.1", 0)
    town.engines.append(Engine(port=deaf.sockets[0].getsockname()[1]))

    backend = town.backend(timeout="200ms")
    with pytest.raises(TryAgain, match=r"gave no answer within 0\.2 s"):
        await backend.observe(a_step(2))
    outcome = await town.run(a_step(2, deadline_s=1.5), backend)
    deaf.close()

    assert outcome.result is Result.UNKNOWN
    assert sum(town.asleep()) == 0


async def test_sleep_mode_switched_off_in_the_middle_of_a_run_is_named(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    engine = Engine(port=free_port())
    other = Engine()
    async with other.up():
        town = Town(tmp_path, [engine, other])
        async with engine.up():
            before = await town.run(a_step(2, "s1"))
        engine.is_dev = False
        async with engine.up():
            after = await town.run(a_step(1, "s2"))

    assert before.result is Result.DONE
    assert after.result is Result.REFUSED
    assert "--enable-sleep-mode" in after.detail


async def test_an_engine_that_is_gone_or_has_another_address_is_said(
    town: Town, free_port: Callable[[], int]
) -> None:
    town.engines[2] = Engine(port=free_port())

    outcome = await town.run(a_step(3))
    unknown = await town.run(replace(a_step(3, "s2"), target=Entity("pool", "renamed")))

    assert outcome.result is unknown.result is Result.REFUSED
    assert f"1 do not run ({town.engines[2].address})" in outcome.detail
    assert "no engines stand for pool renamed; list them under pools" in unknown.detail
