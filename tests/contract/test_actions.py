"""What every action does, whatever stands behind it: once, in time, seen in the world, never twice after a crash."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from actions import BACKENDS, VERBS
from actions.backends.command import Command
from actions.channel import Channel, ChannelKind
from actions.desk import Desk, Plan
from actions.notify import Notify
from actions.routing import Pacing
from daemon.act import Executor, Patience
from daemon.alerts import Bundle, Raised, Silence
from daemon.clock import run_virtual
from daemon.model import Action, Entity, Hopeless, Outcome, Result, Step, TryAgain, Verb
from daemon.record import Record

EPOCH = 1_700_000_000.0
T = TypeVar("T")

# An operator's program: keeps its world in one JSON file, and does the id it has done before no second time.
PROGRAM = """
import fcntl, json, os, sys, time
asked = json.load(sys.stdin)
step, path = asked["step"], sys.argv[1]
with open(path + ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    world = json.load(open(path))
    things = world["things"].setdefault(" ".join(step["target"].values()), {})
    if asked["call"] == "apply":
        world["calls"].append(step["id"])
        world["pid"] = os.getpid()
        if world["fault"] == "" and step["id"] not in world["changes"]:
            world["changes"].append(step["id"])
            things.update({
                "scale": {"replicas": int(step["amount"]), "ready": 0},
                "reroute": {"weight": step["amount"]},
                "isolate": {"isolated": True, "owner": step["args"].get("owner")},
                "release": {"isolated": False, "owner": ""},
                "lend": {"lent": True, "until": step["until"]},
                "recall": {"lent": False, "until": 0},
                "balance": {"weight": step["amount"]},
                "limit": {"admitted": step["amount"]},
                "rollback": {"version": step["args"].get("version")},
            }[step["verb"]])
    with open(path + ".new", "w") as file:
        json.dump(world, file)
    os.replace(path + ".new", path)
if asked["call"] == "apply" and world["fault"] == "hang":
    time.sleep(600)
print(json.dumps({"detail": "done"} if asked["call"] == "apply" else {} if world["fault"] == "mute" else things))
"""

STEPS = {
    Verb.SCALE: Step("s1", Verb.SCALE, Entity("pool", "chat"), 4.0, "demand"),
    Verb.REROUTE: Step("s1", Verb.REROUTE, Entity("engine", "10.0.0.7:8000"), 0.25, "slow"),
    Verb.ISOLATE: Step("s1", Verb.ISOLATE, Entity("node", "n03"), 1.0, "xid", args=(("owner", "tidewarden/prod"),)),
    Verb.RELEASE: Step("s1", Verb.RELEASE, Entity("node", "n03"), 1.0, "ok", args=(("owner", "tidewarden/prod"),)),
    Verb.LEND: Step("s1", Verb.LEND, Entity("node", "n03"), 8.0, "idle", until=EPOCH + 3600),
    Verb.RECALL: Step("s1", Verb.RECALL, Entity("node", "n03"), 1.0, "peak"),
    Verb.LIMIT: Step("s1", Verb.LIMIT, Entity("class", "chat/batch"), 0.25, "queue"),
    Verb.ROLLBACK: Step("s1", Verb.ROLLBACK, Entity("pool", "chat"), 1.0, "worse", args=(("from", "v2"), ("version", "v1"))),
    Verb.BALANCE: Step("s1", Verb.BALANCE, Entity("region", "eu"), 0.25, "room"),
    Verb.NOTIFY: Step(
        "s1", Verb.NOTIFY, Entity("incident", "i1"), 1.0, "told",
        args=(("kind", "gpu_lost"), ("scope", "gpu n03/gpu5"), ("severity", "critical"), ("status", "firing"), ("summary", "x")),
    ),
}  # fmt: skip
BEFORE: dict[Verb, dict[str, Any]] = {
    Verb.SCALE: {"replicas": 2, "ready": 2},
    Verb.REROUTE: {"weight": 1.0},
    Verb.ISOLATE: {"isolated": False, "owner": ""},
    Verb.RELEASE: {"isolated": True, "owner": "tidewarden/prod"},
    Verb.LEND: {"lent": False, "until": 0},
    Verb.RECALL: {"lent": True, "until": EPOCH + 3600},
    Verb.BALANCE: {"weight": 0.5},
    Verb.LIMIT: {"admitted": 1.0},
    Verb.ROLLBACK: {"version": "v2"},
    Verb.NOTIFY: {},
}


class Rig(Protocol):
    """One action with an honest world behind it. fault : "", "hang", "lie" (says done, does nothing), "mute"."""

    action: Action
    patience: Patience
    deadline_s: float

    def fault(self, kind: str) -> None: ...

    def changes(self) -> list[str]: ...

    def calls(self) -> int: ...

    def play(self, story: Callable[[], Coroutine[Any, Any, T]]) -> T: ...


@dataclass
class MemoryRig:
    """A world in this process, reached through the simulated backend under virtual time."""

    verb: Verb
    things: dict[str, Any] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    called: int = 0
    wrong: str = ""
    patience: Patience = field(default_factory=Patience)
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        self.things.update(BEFORE[self.verb])
        self.action = VERBS[self.verb](BACKENDS["simulated"](self, latency_s=0.5))

    async def apply(self, step: Step) -> str:
        self.called += 1
        if self.wrong == "hang":
            await asyncio.Event().wait()
        if self.wrong != "lie" and step.id not in self.done:
            self.done.append(step.id)
            self.things.update(_after(step))
        return "done"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        return {} if self.wrong == "mute" else dict(self.things)

    def fault(self, kind: str) -> None:
        self.wrong = kind

    def changes(self) -> list[str]:
        return self.done

    def calls(self) -> int:
        return self.called

    def play(self, story: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return run_virtual(lambda _: story())


@dataclass
class ProgramRig:
    """A world in a file, changed by a real program."""

    verb: Verb
    folder: Path
    patience: Patience = field(default_factory=lambda: Patience(apply_share=0.9, poll_s=0.05, poll_max_s=0.2))
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        self.file = self.folder / "world.json"
        target = " ".join(STEPS[self.verb].target)
        world = {"things": {target: BEFORE[self.verb]}, "changes": [], "calls": [], "fault": "", "pid": 0}
        self.file.write_text(json.dumps(world))
        program = self.folder / "program.py"
        program.write_text(PROGRAM)
        argv = [sys.executable, "-I", "-S", str(program), str(self.file)]
        self.action = VERBS[self.verb](BACKENDS["command"](argv, timeout_s=20.0))

    def world(self) -> Any:
        return json.loads(self.file.read_text())

    def fault(self, kind: str) -> None:
        self.file.write_text(json.dumps({**self.world(), "fault": kind}))
        if kind:
            self.deadline_s = 0.8

    def changes(self) -> list[str]:
        return list(self.world()["changes"])

    def calls(self) -> int:
        return len(self.world()["calls"])

    def play(self, story: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run(story())


class NotifyRig:
    """Notifications, whose world is the outbox; the fault stands before and behind it."""

    patience = Patience()
    deadline_s = 60.0

    def __init__(self) -> None:
        self.outbox = Record.open(None).outbox
        self.called = 0
        self.wrong = ""
        channel = Channel("hook", ChannelKind.WEBHOOK, ("http://127.0.0.1:9",))
        plan = Plan(pacing=Pacing(0.0, 0.0, 0.0))
        self.notify = Notify(Desk((channel,), self, lambda: EPOCH, plan))
        self.action = self

    async def apply(self, step: Step) -> Outcome:
        self.called += 1
        if self.wrong == "hang":
            await asyncio.Event().wait()
        return await self.notify.apply(step)

    async def verify(self, step: Step) -> bool:
        return await self.notify.verify(step)

    @property
    def book(self) -> Any:
        return self

    @property
    def raised(self) -> dict[str, Raised]:
        return {} if self.wrong else self.outbox.book.raised

    @property
    def bundles(self) -> dict[str, Bundle]:
        return self.outbox.book.bundles

    @property
    def silences(self) -> dict[str, Silence]:
        return self.outbox.book.silences

    def keep(self, *items: Raised | Bundle | Silence) -> None:
        if not self.wrong:
            self.outbox.book.keep(*items)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real outbox, or its book."""
        return getattr(self.outbox, name, None) or getattr(self.outbox.book, name)

    def fault(self, kind: str) -> None:
        self.wrong = kind

    def changes(self) -> list[str]:
        return [letter.id.partition("/")[0] for letter in self.outbox.letters()]

    def calls(self) -> int:
        return self.called

    def play(self, story: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return run_virtual(lambda _: story())


def _after(step: Step) -> dict[str, Any]:
    return {
        Verb.SCALE: {"replicas": int(step.amount), "ready": 0},
        Verb.REROUTE: {"weight": step.amount},
        Verb.ISOLATE: {"isolated": True, "owner": step.arg("owner")},
        Verb.RELEASE: {"isolated": False, "owner": ""},
        Verb.LEND: {"lent": True, "until": step.until},
        Verb.RECALL: {"lent": False, "until": 0},
        Verb.BALANCE: {"weight": step.amount},
        Verb.LIMIT: {"admitted": step.amount},
        Verb.ROLLBACK: {"version": step.arg("version")},
    }[step.verb]


EVERY = [
    pytest.param(verb, backend, id=f"{verb}-{backend}")
    for verb in VERBS
    for backend in (["outbox"] if verb is Verb.NOTIFY else BACKENDS)
]


@pytest.fixture
def rig(verb: Verb, backend: str, tmp_path: Path) -> Any:
    if backend == "outbox":
        return NotifyRig()
    return ProgramRig(verb, tmp_path) if backend == "command" else MemoryRig(verb)


def executor(rig: Rig, record: Record) -> Executor:
    return Executor(lambda _: rig.action, record, lambda: EPOCH, rig.patience)


def run(rig: Rig, step: Step, record: Record | None = None) -> Outcome:
    async def story() -> Outcome:
        return await executor(rig, record or Record.open(None)).run(replace(step, deadline_s=rig.deadline_s))

    return rig.play(story)


def test_every_verb_has_an_action_and_every_entry_is_covered_here() -> None:
    assert set(VERBS) == set(Verb) == set(STEPS) == set(BEFORE)
    assert set(BACKENDS) == {"simulated", "command"}


@pytest.mark.parametrize(("verb", "backend"), EVERY)
def test_applied_twice_it_happens_once(rig: Rig, verb: Verb) -> None:
    record = Record.open(None)

    first = run(rig, STEPS[verb], record)
    again = run(rig, STEPS[verb], record)
    elsewhere = run(rig, STEPS[verb])

    assert first.result is Result.DONE
    assert repr(again) == repr(first)
    assert elsewhere.result is Result.DONE
    assert rig.changes() == ["s1"]


@pytest.mark.parametrize(("verb", "backend"), EVERY)
def test_a_time_out_gives_unknown(rig: Rig, verb: Verb) -> None:
    rig.fault("hang")

    outcome = run(rig, STEPS[verb])

    assert outcome.result is Result.UNKNOWN
    assert "Please check" in outcome.detail
    assert rig.changes() == []


@pytest.mark.parametrize(("verb", "backend"), EVERY)
def test_what_the_world_does_not_show_is_never_reported_done(rig: Rig, verb: Verb) -> None:
    rig.fault("lie")

    outcome = run(rig, STEPS[verb])

    assert outcome.result is Result.UNKNOWN


@pytest.mark.parametrize(("verb", "backend"), [p for p in EVERY if p.values[0] is not Verb.NOTIFY])
def test_what_cannot_be_told_is_never_reported_done(rig: Rig, verb: Verb) -> None:
    rig.fault("mute")

    outcome = run(rig, STEPS[verb])

    assert outcome.result is Result.UNKNOWN


@pytest.mark.parametrize(("verb", "backend"), EVERY)
def test_cancelled_during_apply_the_intent_stays_open_and_recovery_does_not_apply(
    rig: Rig, verb: Verb
) -> None:
    rig.fault("hang")
    record = Record.open(None)
    step = replace(STEPS[verb], deadline_s=2.5)

    async def interrupted() -> None:
        task = asyncio.create_task(executor(rig, record).run(step))
        async with asyncio.timeout(20):
            while not rig.calls():  # noqa: ASYNC110  # the other side may be another process
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    rig.play(interrupted)
    assert [s.id for s in record.open_intents()] == ["s1"]
    assert record.events(type="outcome") == []
    rig.fault("lie")

    outcomes = rig.play(lambda: _recover(rig, record))

    assert [o.result for o in outcomes] == [Result.UNKNOWN]
    assert rig.calls() == 1
    assert record.open_intents() == []
    if isinstance(rig, ProgramRig):
        assert not _is_alive(rig.world()["pid"])


@pytest.mark.parametrize(("verb", "backend"), EVERY)
def test_a_restart_after_the_deed_finds_it_done_and_does_not_repeat_it(rig: Rig, verb: Verb) -> None:
    record = Record.open(None)
    step = replace(STEPS[verb], deadline_s=30.0)
    record.intent(EPOCH, step)
    rig.play(lambda: rig.action.apply(step))

    outcomes = rig.play(lambda: _recover(rig, record))

    assert [(o.result, o.detail) for o in outcomes] == [(Result.DONE, "interrupted; the world shows it")]
    assert rig.calls() == 1


@pytest.mark.parametrize(("verb", "backend"), EVERY)
def test_a_restart_before_the_deed_asks_a_human_and_does_not_catch_up(rig: Rig, verb: Verb) -> None:
    record = Record.open(None)
    record.intent(EPOCH, replace(STEPS[verb], deadline_s=1.0))

    outcomes = rig.play(lambda: _recover(rig, record))

    assert [o.result for o in outcomes] == [Result.UNKNOWN]
    assert "Please check" in outcomes[0].detail
    assert rig.calls() == 0


async def _recover(rig: Rig, record: Record) -> list[Outcome]:
    return await executor(rig, record).recover()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- the operator's program -----------------------------------------------------------------------------


def a_program(folder: Path, text: str, **settings: Any) -> Command:
    path = folder / "program.py"
    path.write_text(text)
    return Command([sys.executable, "-I", "-S", str(path)], **settings)


async def test_the_program_is_asked_in_json_with_a_bare_environment(tmp_path: Path) -> None:
    program = a_program(
        tmp_path,
        "import json, os, sys\nprint(json.dumps({'asked': json.load(sys.stdin), 'env': dict(os.environ)}))",
        env={"CLUSTER": "prod"},
    )

    answer = await program.observe(STEPS[Verb.ISOLATE])

    assert answer["asked"] == {
        "call": "observe",
        "version": 1,
        "step": {
            "id": "s1",
            "verb": "isolate",
            "target": {"kind": "node", "name": "n03"},
            "amount": 1.0,
            "reason": "xid",
            "incident": "",
            "expected": "",
            "deadline_s": 60.0,
            "until": None,
            "args": {"owner": "tidewarden/prod"},
            "gpus": 0.0,
            "pool": "",
        },
    }
    assert set(answer["env"]) - {"LC_CTYPE"} == {"PATH", "LANG", "TIDEWARDEN_STEP_ID", "CLUSTER"}


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("import sys; sys.exit('quota exceeded')", Hopeless, "exit code 1: quota exceeded"),
        ("import sys; print('busy', file=sys.stderr); sys.exit(75)", TryAgain, "asks to try again: busy"),
        ("print('ok')", TryAgain, "answered no JSON .*: 'ok'"),
        ("print('[1]')", TryAgain, r"must answer a JSON object, got '\[1\]'"),
        ("print('{\"detail\": NaN}')", TryAgain, "NaN is not JSON"),
        ("", TryAgain, "answered no JSON"),
        ("import os; os.kill(os.getpid(), 9)", TryAgain, "killed by signal 9"),
        ("import sys; sys.stderr.write('x' * 100_000 + 'the end'); sys.exit(3)", Hopeless, "x{1993}the end$"),
        ("import sys; sys.stdout.write('{' * 3_000_000)", TryAgain, "answered no JSON"),
    ],
)
async def test_what_the_program_says_is_understood(
    tmp_path: Path, text: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        await a_program(tmp_path, text).apply(STEPS[Verb.SCALE])


async def test_a_program_that_overstays_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    program = a_program(tmp_path, text, timeout_s=2.0)

    with pytest.raises(TryAgain, match="gave no answer within 2 s and was killed"):
        await program.apply(STEPS[Verb.SCALE])

    own, child = map(int, pids.read_text().split())
    assert not _is_alive(own)
    async with asyncio.timeout(10):
        while _is_alive(child) and _state_of(child) != "Z":  # noqa: ASYNC110  # nobody tells us of its end
            await asyncio.sleep(0.02)


async def test_a_child_that_is_left_behind_does_not_hold_up_the_answer(tmp_path: Path) -> None:
    text = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])\n"
        'print(\'{"detail": "%d"}\' % child.pid)\n'
    )
    program = a_program(tmp_path, text, timeout_s=20.0)

    child = int(await program.apply(STEPS[Verb.SCALE]))

    assert _is_alive(child)
    os.kill(child, 9)


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(Hopeless, match=r"/nowhere/scale cannot be started: No such file .*full path"):
        await Command(["/nowhere/scale"]).apply(STEPS[Verb.SCALE])


def test_a_shell_line_is_not_an_argument_list() -> None:
    with pytest.raises(ValueError, match="must be a list of strings"):
        Command("scale --fast")


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
