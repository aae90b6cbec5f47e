"""The nginx backend on a real nginx in front of live HTTP servers under continuous load."""

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from actions.backends.nginx import Nginx, servers_of
from actions.reroute import Reroute
from daemon.act import Executor, Patience
from daemon.model import Entity, Hopeless, Result, Step, TryAgain, Verb
from daemon.record import Record

pytestmark = pytest.mark.integration

QUICK = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)


def a_step(engine: str, weight: float, id: str = "s1") -> Step:
    return Step(id, Verb.REROUTE, Entity("engine", engine), weight, "slow", deadline_s=5.0)


@dataclass
class Town:
    """An nginx of one worker, its include file, and the engines behind it by address."""

    folder: Path
    binary: str
    port: int
    engines: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    served: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def servers(self) -> Path:
        return self.folder / "chat.servers"

    @property
    def command(self) -> tuple[str, ...]:
        return (
            self.binary,
            "-p",
            str(self.folder),
            "-c",
            str(self.folder / "nginx.conf"),
            "-e",
            str(self.folder / "error.log"),
        )

    def start(self) -> "Town":
        self.servers.write_text(
            "# chat\n" + "".join(f"server {e} weight=100 max_fails=0;  # rack a\n" for e in self.engines)
        )
        temps = "".join(
            f"  {kind}_temp_path {self.folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"daemon off;\nworker_processes 1;\npid {self.folder}/nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n{temps}"
            f"  upstream chat {{\n    zone chat 64k;\n    include {self.servers};\n  }}\n"
            f"  server {{\n    listen 127.0.0.1:{self.port};\n    location / {{ proxy_pass http://chat; }}\n  }}\n}}\n"
        )
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def backend(self, **changes: object) -> Nginx:
        settings: dict[str, object] = {
            "files": (str(self.servers),),
            "test": (*self.command, "-t"),
            "reload": (*self.command, "-s", "reload"),
            "pid_path": str(self.folder / "nginx.pid"),
        }
        return Nginx(**(settings | changes))  # type: ignore[arg-type]

    def weights(self) -> list[int]:
        return [s.weight for s in servers_of(self.servers.read_text())]

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Four clients that never pause."""
        async with aiohttp.ClientSession() as session:

            async def client() -> None:
                while True:
                    try:
                        async with session.get(f"http://127.0.0.1:{self.port}/v1/completions") as answer:
                            text = await answer.text()
                            if answer.status == 200:
                                self.served[text] += 1
                            else:
                                self.failures.append(f"{answer.status} {text}")
                    except aiohttp.ClientError as error:
                        self.failures.append(repr(error))

            clients = [asyncio.create_task(client()) for _ in range(4)]
            try:
                yield
            finally:
                for task in clients:
                    task.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def split(self, requests: int = 300) -> list[float]:
        """Share of the next requests that each engine serves."""
        before = Counter(self.served)
        async with asyncio.timeout(20):
            while (self.served - before).total() < requests:  # noqa: ASYNC110  # the clients count on
                await asyncio.sleep(0.01)
        new = self.served - before
        return [new[engine] / new.total() for engine in self.engines]


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[tuple[str, ...]]:
    runners, addresses = [], []
    for _ in range(count):
        app = web.Application()
        runner = web.AppRunner(app)

        async def answer(request: web.Request) -> web.Response:
            await asyncio.sleep(0.002)
            host, port = request.transport.get_extra_info("sockname")[:2]  # type: ignore[union-attr]
            return web.Response(text=f"{host}:{port}")

        app.router.add_get("/{path:.*}", answer)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        runners.append(runner)
        addresses.append(f"{host}:{port}")
    try:
        yield tuple(addresses)
    finally:
        for runner in runners:
            await runner.cleanup()


@pytest.fixture
async def town(
    tmp_path: Path, binary: Callable[[str], str], free_port: Callable[[], int]
) -> AsyncIterator[Town]:
    async with engines(3) as addresses:
        town = Town(tmp_path, binary("nginx"), free_port(), addresses).start()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", town.port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.02)
        await asyncio.sleep(
            0.1
        )  # start times are told in hundredths of a second: a change must be clearly later
        try:
            yield town
        finally:
            assert town.process is not None
            town.process.terminate()
            town.process.wait(10)


def executor(backend: Nginx) -> Executor:
    return Executor({Verb.REROUTE: Reroute(backend)}, Record.open(None), lambda: 1000.0, QUICK)


async def test_weights_move_the_observed_split_and_no_request_is_lost(town: Town) -> None:
    hands, sick = executor(town.backend()), town.engines[0]
    async with town.load():
        even = await town.split()
        half = await hands.run(a_step(sick, 0.5, "s1"))
        at_half = await town.split()
        none = await hands.run(a_step(sick, 0.0, "s2"))
        await town.split(50)  # what was under way in the old workers
        at_none = await town.split()
        back = await hands.run(a_step(sick, 1.0, "s3"))
        await town.split(50)
        at_back = await town.split()

    assert [o.result for o in (half, none, back)] == [Result.DONE] * 3
    assert even == pytest.approx([1 / 3] * 3, abs=0.08)
    assert at_half[0] == pytest.approx(0.2, abs=0.08)
    assert at_none[0] == 0.0
    assert at_back == pytest.approx([1 / 3] * 3, abs=0.08)
    assert town.failures == []
    text = town.servers.read_text()
    assert text.startswith("# chat\n")
    assert text.count("max_fails=0") == 3
    assert text.count("# rack a") == 3


async def test_the_same_step_is_not_done_twice(town: Town) -> None:
    backend = town.backend()
    await backend.apply(a_step(town.engines[0], 0.5))
    once = town.servers.read_text()

    await backend.apply(a_step(town.engines[0], 0.5))

    assert town.servers.read_text() == once
    assert town.weights() == [50, 100, 100]


async def test_a_change_that_the_test_refuses_is_taken_back(town: Town) -> None:
    (town.folder / "nginx.conf").write_text((town.folder / "nginx.conf").read_text() + "nonsense;\n")
    before = town.servers.read_text()

    with pytest.raises(Hopeless, match="refused the change, which is taken back") as said:
        await town.backend().apply(a_step(town.engines[0], 0.5))

    assert "nonsense" in str(said.value)
    assert town.servers.read_text() == before


async def test_a_reload_that_fails_is_taken_back(town: Town) -> None:
    before = town.servers.read_text()

    with pytest.raises(Hopeless, match="failed, the change is taken back"):
        await town.backend(reload=("false",)).apply(a_step(town.engines[0], 0.5))

    assert town.servers.read_text() == before


async def test_what_a_person_has_set_is_left_alone(town: Town) -> None:
    backend = town.backend()
    first, second, _ = town.engines
    by_hand = town.servers.read_text().replace(
        f"server {first} weight=100", f"server {first} weight=100 down"
    )
    town.servers.write_text(by_hand)

    with pytest.raises(Hopeless, match="is down, set by somebody else"):
        await backend.apply(a_step(first, 0.5))
    await backend.apply(a_step(second, 0.5, "s2"))
    town.servers.write_text(town.servers.read_text().replace("weight=50", "weight=70"))
    with pytest.raises(Hopeless, match="edited by hand since s2"):
        await backend.apply(a_step(second, 0.25, "s3"))

    assert town.weights() == [0, 70, 100]


async def test_the_last_server_is_never_set_down(town: Town) -> None:
    backend = town.backend()
    await backend.apply(a_step(town.engines[0], 0.0, "s1"))
    await backend.apply(a_step(town.engines[1], 0.0, "s2"))

    with pytest.raises(Hopeless, match="the last one that is not down"):
        await backend.apply(a_step(town.engines[2], 0.0, "s3"))

    assert town.weights() == [0, 0, 100]


async def test_a_file_nobody_has_loaded_is_not_taken_for_the_world(town: Town) -> None:
    step = a_step(town.engines[0], 0.5)
    silent = town.backend(reload=("true",))  # says it has reloaded, and has not

    await silent.apply(step)
    with pytest.raises(TryAgain, match="has not reloaded"):
        await silent.observe(step)
    await town.backend().apply(
        step
    )  # as after a restart of the daemon: the change stands, the reload is missing

    async with asyncio.timeout(10):
        while True:
            try:
                seen = await town.backend().observe(step)
                break
            except TryAgain:
                await asyncio.sleep(0.05)
    assert seen == {"weight": 0.5}


async def test_a_silent_nginx_leaves_the_outcome_unknown(town: Town) -> None:
    assert town.process is not None
    town.process.terminate()
    town.process.wait(10)

    outcome = await executor(town.backend(reload=("true",))).run(a_step(town.engines[0], 0.5))

    assert outcome.result is Result.UNKNOWN
    assert "no nginx worker" in outcome.detail


async def test_check_finds_what_would_go_wrong_before_it_does(town: Town) -> None:
    fine = await town.backend().check()
    town.servers.write_text("".join(f"server {e};\n" for e in town.engines))
    coarse = await town.backend(pid_path=str(town.folder / "none")).check()

    assert all(row.is_right for row in fine)
    assert [row.is_right for row in coarse] == [False, True, False]
    assert "weight=100" in coarse[0].fix
    with pytest.raises(Hopeless, match="25% cannot be set; write weight=100"):
        await town.backend().apply(a_step(town.engines[0], 0.25))
    with pytest.raises(Hopeless, match="no nginx server stands for engine e9"):
        await town.backend().apply(a_step("e9", 0.25))


# -- trouble in the middle of a run -----------------------------------------------------------------------------


async def test_an_nginx_that_restarts_in_the_middle_of_a_step_is_waited_for(town: Town) -> None:
    """Its reload fails while it is away and the change is taken back; the step asked for again succeeds."""
    assert town.process is not None
    town.process.terminate()
    town.process.wait(10)
    hands = executor(town.backend())

    away = await hands.run(a_step(town.engines[0], 0.5))
    before = town.weights()
    town.start()
    async with asyncio.timeout(10):
        while not (town.folder / "nginx.pid").exists():  # noqa: ASYNC110  # nginx tells nobody
            await asyncio.sleep(0.05)
    back = await hands.run(a_step(town.engines[0], 0.5, "s2"))

    assert away.result is Result.REFUSED
    assert "failed, the change is taken back" in away.detail
    assert before == [100, 100, 100]
    assert back.result is Result.DONE, back.detail
    assert town.weights() == [50, 100, 100]


async def test_a_reload_that_hangs_is_given_up_and_taken_back(town: Town) -> None:
    outcome = await executor(town.backend(reload=("sh", "-c", "sleep 60; true"), timeout_s=0.3)).run(
        a_step(town.engines[0], 0.5)
    )

    assert outcome.result is Result.REFUSED
    assert "`sh -c sleep 60; true` gave no answer within 0.3 s" in outcome.detail
    assert town.weights() == [100, 100, 100]


async def test_a_file_that_may_no_longer_be_written_is_said(town: Town) -> None:
    """A folder in the place of the new file: like a right that was taken away, and it also stops root."""
    hands = executor(town.backend())
    before = await hands.run(a_step(town.engines[0], 0.5))
    (town.folder / f".{town.servers.name}.tidewarden").mkdir()

    after = await hands.run(a_step(town.engines[0], 1.0, "s2"))

    assert before.result is Result.DONE, before.detail
    assert after.result is Result.REFUSED
    assert f"make its folder {town.folder} writable for this user" in after.detail
    assert town.weights() == [50, 100, 100]


@pytest.mark.parametrize("what", ["file", "line", "address"])
async def test_what_somebody_removed_or_renamed_is_said(town: Town, what: str) -> None:
    hands = executor(town.backend())
    await hands.run(a_step(town.engines[0], 0.5))
    if what == "file":
        town.servers.rename(town.folder / "other.servers")
    elif what == "line":
        town.servers.write_text(f"server {town.engines[1]} weight=100;\n")
    else:
        town.servers.write_text(town.servers.read_text().replace(town.engines[0], "127.0.0.1:9"))

    outcome = await hands.run(a_step(town.engines[0], 1.0, "s2"))

    assert outcome.result is Result.REFUSED
    if what == "file":
        assert "must be readable and writable for this user" in outcome.detail
    else:
        assert "no nginx server stands for engine" in outcome.detail
        assert "map it under engines of this backend" in outcome.detail
