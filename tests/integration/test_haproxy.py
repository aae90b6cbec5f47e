"""The HAProxy backend on a real HAProxy in front of live HTTP servers under continuous load."""

import asyncio
import contextlib
import os
import signal
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

from actions.backends.haproxy import HAProxy, Process, servers_of
from actions.backends.marks import Marks
from actions.reroute import Reroute
from daemon.act import Executor, Patience
from daemon.model import Entity, Hopeless, Result, Step, TryAgain, Verb
from daemon.record import Record

pytestmark = pytest.mark.integration

Binary = Callable[[str], str]
FreePort = Callable[[], int]
QUICK = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)


def a_step(engine: str, weight: float, id: str = "s1") -> Step:
    return Step(id, Verb.REROUTE, Entity("engine", engine), weight, "slow", deadline_s=4.0)


@dataclass
class Town:
    """A HAProxy process, its socket, and the engines behind it by address."""

    folder: Path
    binary: str
    port: int
    engines: tuple[str, ...]
    level: str = "admin"
    weight: int = 100
    names: tuple[str, ...] = ("e0", "e1", "e2")
    process: subprocess.Popen[bytes] | None = None
    hits: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    @property
    def socket(self) -> str:
        return str(self.folder / "h.sock")

    @property
    def state_file(self) -> str:
        return str(self.folder / "h.state")

    def start(self) -> "Town":
        known = zip(self.names, self.engines, strict=False)
        servers = "\n".join(f"  server {name} {address} check" for name, address in known)
        (self.folder / "h.cfg").write_text(
            f"global\n  stats socket {self.socket} mode 600 level {self.level}\n  server-state-file {self.state_file}\n"
            "defaults\n  mode http\n  timeout connect 2s\n  timeout client 20s\n  timeout server 20s\n"
            f"  load-server-state-from-file global\n  default-server weight {self.weight} inter 500ms\n"
            f"frontend front\n  bind 127.0.0.1:{self.port}\n  default_backend chat\n"
            f"backend chat\n  balance roundrobin\n  option redispatch\n{servers}\n"
        )
        self.process = subprocess.Popen(
            [self.binary, "-W", "-f", str(self.folder / "h.cfg")],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "h.log").open("wb"),
        )
        return self

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def backend(self, **settings: object) -> HAProxy:
        marks = Marks(self.folder / "marks.json")
        return HAProxy((Process(self.socket, self.state_file),), marks, **settings)  # type: ignore[arg-type]

    async def ask(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        writer.write(command.encode() + b"\n")
        answer = (await reader.read()).decode()
        writer.close()
        return answer.strip()

    async def shares(self) -> list[int]:
        return [s.weight for s in servers_of(await self.ask("show servers state") + "\n")]

    async def ready(self) -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError, Hopeless):
                if await self.shares():
                    return
            await asyncio.sleep(0.02)
        pytest.fail((self.folder / "h.log").read_text())

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Eight clients that never pause."""
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        async with aiohttp.ClientSession() as session:

            async def client() -> None:
                while True:
                    try:
                        async with session.get(url) as answer:
                            text = await answer.text()
                            if answer.status == 200:
                                self.served[text] += 1
                            else:
                                self.failures.append(f"{answer.status} {text}")
                    except aiohttp.ClientError as error:
                        self.failures.append(repr(error))

            clients = [asyncio.create_task(client()) for _ in range(8)]
            try:
                yield
            finally:
                for task in clients:
                    task.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def split(self, requests: int = 400) -> list[float]:
        """Share of the next requests that each engine serves."""
        before = Counter(self.served)
        async with asyncio.timeout(20):
            while (self.served - before).total() < requests:  # noqa: ASYNC110  # the clients count on
                await asyncio.sleep(0.01)
        new = self.served - before
        return [new[address] / new.total() for address in self.engines]


@pytest.fixture
async def town(tmp_path: Path, binary: Binary, free_port: FreePort) -> AsyncIterator[Town]:
    runners = []
    addresses = []
    for _ in range(3):
        port = free_port()

        async def answer(request: web.Request, name: str = f"127.0.0.1:{port}") -> web.Response:
            await asyncio.sleep(0.002)
            return web.Response(text=name)

        app = web.Application()
        app.router.add_get("/{tail:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        runners.append(runner)
        addresses.append(f"127.0.0.1:{port}")
    town = Town(tmp_path, binary("haproxy"), free_port(), tuple(addresses)).start()
    try:
        await town.ready()
        yield town
    finally:
        town.stop()
        for runner in runners:
            await runner.cleanup()


async def test_weights_move_the_observed_split_and_no_request_is_lost(town: Town) -> None:
    action = Reroute(town.backend())
    half, none = a_step(town.engines[0], 0.5), a_step(town.engines[0], 0.0, "s2")

    async with town.load():
        even = await town.split()
        await action.apply(half)
        lowered = await town.split()
        is_half = await action.verify(half)
        await action.apply(none)
        await town.split(20)
        drained = await town.split()
        is_none = await action.verify(none)
        await action.apply(a_step(town.engines[0], 1.0, "s3"))
        await town.split(20)
        back = await town.split()

    assert is_half
    assert is_none
    assert even[0] == pytest.approx(1 / 3, abs=0.05)
    assert lowered[0] == pytest.approx(0.5 / 2.5, abs=0.05)
    assert drained[0] == 0.0
    assert back[0] == pytest.approx(1 / 3, abs=0.05)
    assert town.failures == []


@pytest.mark.parametrize("zero", ["weight", "drain", "maint"])
async def test_zero_and_back_leave_no_trace(town: Town, zero: str) -> None:
    action = Reroute(town.backend(zero=zero))
    before = [(s.admin, s.weight) for s in servers_of(await town.ask("show servers state") + "\n")]

    await action.apply(a_step(town.engines[1], 0.0))
    is_out = await action.verify(a_step(town.engines[1], 0.0))
    state = servers_of(await town.ask("show servers state") + "\n")[1]
    await action.apply(a_step(town.engines[1], 0.25, "s2"))
    is_quarter = await action.verify(a_step(town.engines[1], 0.25))
    await action.apply(a_step(town.engines[1], 1.0, "s3"))

    assert is_out
    assert (state.admin, state.weight) == {"weight": (0, 0), "drain": (8, 100), "maint": (1, 100)}[zero]
    assert is_quarter
    assert [(s.admin, s.weight) for s in servers_of(await town.ask("show servers state") + "\n")] == before
    assert Marks(town.folder / "marks.json").all() == {}


@pytest.mark.parametrize(
    "command", ["state drain", "state maint", "weight 40"], ids=["drain", "maintenance", "weight"]
)
async def test_what_an_operator_set_by_hand_is_left_alone(town: Town, command: str) -> None:
    await town.ask(f"set server chat/e0 {command}")
    before = await town.ask("show servers state")

    with pytest.raises(Hopeless, match=r"chat/e0 .* set by somebody else; left to them"):
        await Reroute(town.backend()).apply(a_step(town.engines[0], 0.0))

    assert _steady(await town.ask("show servers state")) == _steady(before)


async def test_an_operator_who_changes_our_weight_has_the_last_word(town: Town) -> None:
    action = Reroute(town.backend())
    await action.apply(a_step(town.engines[0], 0.25))
    await town.ask("set server chat/e0 weight 60")

    with pytest.raises(Hopeless, match="somebody else"):
        await action.apply(a_step(town.engines[0], 0.5, "s2"))

    assert await town.shares() == [60, 100, 100]


async def test_the_last_server_with_a_weight_is_kept(town: Town) -> None:
    action = Reroute(town.backend())
    await action.apply(a_step(town.engines[0], 0.0))
    await action.apply(a_step(town.engines[1], 0.0, "s2"))

    with pytest.raises(Hopeless, match="would answer 503"):
        await action.apply(a_step(town.engines[2], 0.0, "s3"))

    assert await town.shares() == [0, 0, 100]


async def test_a_reload_keeps_our_weights_and_brings_no_lifted_drain_back(town: Town) -> None:
    action = Reroute(town.backend())
    await town.ask("set server chat/e2 state drain")
    await action.apply(a_step(town.engines[0], 0.25))
    await town.ask("set server chat/e2 state ready")
    assert town.process is not None

    async with town.load():
        await town.split(50)
        worker = await _worker(town)
        os.kill(town.process.pid, signal.SIGUSR2)
        async with asyncio.timeout(15):
            while await _worker(town) in (worker, ""):  # noqa: ASYNC110  # HAProxy tells nobody
                await asyncio.sleep(0.05)
        split = await town.split()

    servers = servers_of(await town.ask("show servers state") + "\n")
    assert [(s.weight, s.is_withheld) for s in servers] == [(25, False), (100, False), (100, False)]
    assert split[0] == pytest.approx(0.25 / 2.25, abs=0.05)
    assert town.failures == []


async def test_a_socket_gone_mid_step_gives_unknown_and_is_found_done_when_it_is(town: Town) -> None:
    record = Record.open(None)
    executor = Executor({Verb.REROUTE: Reroute(town.backend(timeout_s=0.3))}, record, lambda: 0.0, QUICK)
    worker = int(await _worker(town))

    os.kill(worker, signal.SIGSTOP)
    try:
        outcome = await executor.run(a_step(town.engines[0], 0.0))
    finally:
        os.kill(worker, signal.SIGCONT)
    later = await executor.run(a_step(town.engines[0], 0.0, "s2"))

    assert outcome.result is Result.UNKNOWN
    assert "no answer within 0.3 s" in outcome.detail
    assert later.result is Result.DONE
    assert await town.shares() == [0, 100, 100]


async def test_of_two_processes_one_dead_the_living_one_is_moved_and_the_dead_one_named(town: Town) -> None:
    marks = Marks(town.folder / "marks.json")
    dead = str(town.folder / "dead.sock")
    backend = HAProxy((Process(town.socket), Process(dead)), marks)

    with pytest.raises(TryAgain, match=r"dead\.sock: No such file"):
        await backend.apply(a_step(town.engines[0], 0.0))

    assert await town.shares() == [0, 100, 100]


async def test_a_crash_between_mark_and_weight_is_not_taken_for_somebody_else(town: Town) -> None:
    action = Reroute(town.backend())
    await action.apply(a_step(town.engines[0], 0.25))
    marks = Marks(town.folder / "marks.json")
    key = f"{town.socket} chat/e0"
    marks.put(key, type(marks.all()[key])("s2", "50", "25"))

    await action.apply(a_step(town.engines[0], 0.5, "s2"))

    assert await town.shares() == [50, 100, 100]


async def test_the_same_step_again_does_not_undo_what_came_after(town: Town) -> None:
    action = Reroute(town.backend())

    first = await action.apply(a_step(town.engines[0], 0.25))
    again = await action.apply(a_step(town.engines[0], 0.25))

    assert first.result is again.result is Result.DONE
    assert await town.shares() == [25, 100, 100]


async def test_weights_that_cannot_be_divided_are_refused_with_the_line_to_write(town: Town) -> None:
    town.stop()
    town.weight = 1
    town.start()
    await town.ready()

    with pytest.raises(Hopeless, match="write `default-server weight 100`"):
        await Reroute(town.backend()).apply(a_step(town.engines[0], 0.5))
    found = await town.backend().check()

    assert await town.shares() == [1, 1, 1]
    assert any("too small to be divided: chat/e0" in check.found for check in found)


async def test_a_socket_without_the_right_level_is_seen_before_and_at_the_step(town: Town) -> None:
    town.stop()
    town.level = "operator"
    town.start()
    await town.ready()

    found = await town.backend().check()
    with pytest.raises(Hopeless, match="level admin"):
        await Reroute(town.backend()).apply(a_step(town.engines[0], 0.0))

    assert [(check.is_right, check.fix) for check in found] == [
        (False, "give the socket `level admin` in haproxy.cfg")
    ]


async def test_an_engine_nobody_knows_is_told_with_what_there_is(town: Town) -> None:
    with pytest.raises(Hopeless, match=r"no HAProxy server stands for engine nobody; servers: chat/e0 \(127"):
        await Reroute(town.backend()).apply(a_step("nobody", 0.0))


async def test_a_sound_setup_passes_the_live_check(town: Town) -> None:
    before = await town.ask("show servers state")

    found = await town.backend().check()

    assert [check.found for check in found] == ["answers with level admin, 3 servers"]
    assert all(check.is_right for check in found)
    assert _steady(await town.ask("show servers state")) == _steady(before)


# -- trouble in the middle of a run -----------------------------------------------------------------------------


def an_executor(town: Town, **settings: object) -> Executor:
    record = Record.open(None)
    return Executor({Verb.REROUTE: Reroute(town.backend(**settings))}, record, lambda: 0.0, QUICK)


async def test_a_process_that_restarts_in_the_middle_of_a_step_is_waited_for(town: Town) -> None:
    town.stop()
    (town.folder / "h.sock").unlink(missing_ok=True)
    running = asyncio.create_task(an_executor(town).run(a_step(town.engines[0], 0.25)))
    await asyncio.sleep(0.2)
    town.start()
    outcome = await running

    assert outcome.result is Result.DONE, outcome.detail
    assert await town.shares() == [25, 100, 100]


async def test_a_half_open_socket_is_given_up_in_time(town: Town) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = town.folder / "deaf.sock"
    deaf = await asyncio.start_unix_server(swallow, str(path))
    backend = HAProxy((Process(str(path)),), Marks(town.folder / "marks.json"), timeout_s=0.2)
    hands = Executor({Verb.REROUTE: Reroute(backend)}, Record.open(None), lambda: 0.0, QUICK)

    with pytest.raises(TryAgain, match=r"no answer within 0\.2 s; is the process stopped"):
        await backend.observe(a_step(town.engines[0], 0.0))
    outcome = await hands.run(a_step(town.engines[0], 0.0))
    deaf.close()

    assert outcome.result is Result.UNKNOWN


async def test_rights_taken_away_in_the_middle_of_a_run_are_named(town: Town) -> None:
    hands = an_executor(town)
    before = await hands.run(a_step(town.engines[0], 0.25))
    town.stop()
    town.level = "operator"
    town.start()
    await town.ready()

    after = await hands.run(a_step(town.engines[0], 1.0, "s2"))

    assert before.result is Result.DONE
    assert after.result is Result.REFUSED
    assert "give the stats socket `level admin`" in after.detail


@pytest.mark.parametrize("names", [("e1", "e2"), ("new0", "new1", "new2")], ids=["removed", "renamed"])
async def test_a_server_that_somebody_removed_or_renamed_is_said_or_found_by_its_address(
    town: Town, names: tuple[str, ...]
) -> None:
    hands = an_executor(town)
    await hands.run(a_step(town.engines[0], 0.25))
    town.stop()
    first = town.engines[0]
    town.names = names
    town.engines = town.engines[-len(names) :]
    town.start()
    await town.ready()

    outcome = await hands.run(a_step(first, 1.0, "s2"))

    if first in town.engines:
        assert outcome.result is Result.DONE, outcome.detail
        assert await town.shares() == [100, 100, 100]
    else:
        assert outcome.result is Result.REFUSED
        assert f"no HAProxy server stands for engine {first}; servers: chat/e1" in outcome.detail
        assert "map it under engines of this backend" in outcome.detail


async def _worker(town: Town) -> str:
    with contextlib.suppress(OSError):
        for line in (await town.ask("show info")).splitlines():
            if line.startswith("Pid: "):
                return line.removeprefix("Pid: ")
    return ""


def _steady(state: str) -> list[tuple[int, int]]:
    return [(s.admin, s.weight) for s in servers_of(state + "\n")]
