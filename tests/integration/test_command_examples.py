"""The programs shipped for the command backend, run by it; docker is a stand-in that keeps to its documented output."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from actions.backends.command import Command
from actions.scale import Scale
from daemon.act import Executor, Patience
from daemon.model import Entity, Outcome, Result, Step, TryAgain, Verb
from daemon.record import Record

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).parents[2] / "deploy" / "examples" / "compose_scale.py"
QUICK = Patience(apply_share=0.8, backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)

DOCKER = """#!{python}
import json, sys
path = {world!r}
world = json.load(open(path))
if world["fault"]:
    sys.exit(print(world["fault"], file=sys.stderr) or 1)
assert sys.argv[1:4] == ["compose", "--project-directory", "/srv/chat"], sys.argv
if sys.argv[4] == "ps":
    assert sys.argv[5:] == ["--status", "running", "--format", "json", "vllm"], sys.argv
    rows = [{{"Service": "vllm", "State": "running", "Name": f"chat-vllm-{{i}}"}} for i in range(1, world["count"] + 1)]
    print(json.dumps(rows) if world["old"] else "\\n".join(map(json.dumps, rows)))
else:
    assert sys.argv[4:9] == ["up", "-d", "--no-recreate", "--no-deps", "--scale"], sys.argv
    world["count"] = int(sys.argv[9].removeprefix("vllm="))
    world["ups"] += 1
    json.dump(world, open(path, "w"))
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "world.json"
        (folder / "docker").write_text(DOCKER.format(python=sys.executable, world=str(self.file)))
        (folder / "docker").chmod(0o755)
        self.command = Command(
            [sys.executable, str(PROGRAM), "/srv/chat", "chat=vllm"], env={"PATH": str(folder)}
        )
        self.write(count=2, ups=0, fault="", old=False)

    def write(self, **values: object) -> None:
        self.file.write_text(json.dumps(values))

    def read(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.file.read_text())
        return found

    def scale(self, amount: float, pool: str = "chat", deadline_s: float = 10.0) -> Outcome:
        step = Step("s1", Verb.SCALE, Entity("pool", pool), amount, "load", deadline_s=deadline_s)
        return asyncio.run(
            Executor({Verb.SCALE: Scale(self.command)}, Record.open(None), lambda: 0.0, QUICK).run(step)
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_a_compose_service_is_scaled_once(world: World, old: bool) -> None:
    world.write(count=2, ups=0, fault="", old=old)

    first, again = world.scale(4), world.scale(4)

    assert [first.result, again.result] == [Result.DONE] * 2, first.detail
    assert world.read() == {"count": 4, "ups": 1, "fault": "", "old": old}


def test_without_the_docker_daemon_the_outcome_is_unknown(world: World) -> None:
    world.write(
        count=2, ups=0, fault="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", old=False
    )

    outcome = world.scale(4, deadline_s=2.0)

    assert outcome.result is Result.UNKNOWN
    assert "Cannot connect to the Docker daemon" in outcome.detail


def test_a_pool_it_does_not_know_is_refused(world: World) -> None:
    outcome = world.scale(4, pool="code")

    assert outcome.result is Result.REFUSED
    assert "scales chat, not scale code" in outcome.detail


# -- trouble in the middle of a run -----------------------------------------------------------------------------


def own(folder: Path, text: str, **settings: Any) -> Command:
    """A program of an operator's, in shell."""
    program = folder / "own.sh"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return Command([str(program)], **settings)


def scaled(command: Command, deadline_s: float = 3.0) -> Outcome:
    step = Step("s1", Verb.SCALE, Entity("pool", "chat"), 3.0, "load", deadline_s=deadline_s)
    hands = Executor({Verb.SCALE: Scale(command)}, Record.open(None), lambda: 0.0, QUICK)
    return asyncio.run(hands.run(step))


def test_a_program_that_asks_for_another_try_gets_it(tmp_path: Path) -> None:
    once = f'test -e {tmp_path}/done || {{ touch {tmp_path}/done; echo "the API restarts" >&2; exit 75; }}'

    outcome = scaled(own(tmp_path, f"{once}\necho '{{\"replicas\": 3}}'"))

    assert outcome.result is Result.DONE, outcome.detail


def test_a_program_that_hangs_is_killed_with_its_children_and_the_outcome_is_unknown(tmp_path: Path) -> None:
    command = own(tmp_path, "sleep 60 & wait", timeout_s=0.3)
    step = Step("s1", Verb.SCALE, Entity("pool", "chat"), 3.0, "load")

    with pytest.raises(TryAgain, match=r"gave no answer within 0\.3 s and was killed"):
        asyncio.run(command.apply(step))
    assert scaled(command, 2.0).result is Result.UNKNOWN


@pytest.mark.parametrize("what", ["removed", "rights"])
def test_a_program_that_was_removed_or_may_not_be_run_is_said(tmp_path: Path, what: str) -> None:
    command = own(tmp_path, "echo '{\"replicas\": 3}'")
    before = scaled(command)
    (tmp_path / "own.sh").unlink() if what == "removed" else (tmp_path / "own.sh").chmod(0o644)

    after = scaled(command)

    assert before.result is Result.DONE
    assert after.result is Result.REFUSED
    assert "give the full path of an executable file" in after.detail


def test_what_a_program_was_given_in_its_environment_does_not_come_back_in_a_sentence(tmp_path: Path) -> None:
    command = own(tmp_path, 'echo "login with $TOKEN refused" >&2; exit 1', env={"TOKEN": "sesame-1234"})

    outcome = scaled(command)

    assert outcome.result is Result.REFUSED
    assert "login with *** refused" in outcome.detail
    assert "sesame" not in outcome.detail + repr(command)
