"""Template units scaled through a stand-in for systemctl that keeps to its documented output; no systemd is touched."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_town import BUSY
from test_vllm_sleep import Engine

from actions import CONFIGURED, VERBS, Site
from actions.backends.systemd import Systemd
from daemon.act import Executor, Patience
from daemon.model import Backend, Entity, Outcome, Result, Step, TryAgain, Verb
from daemon.record import Record
from daemon.settings_backends import SystemdBackend

pytestmark = pytest.mark.integration

QUICK = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)

STAND_IN = """#!{python}
import json, os, sys
path = {world!r}
world = json.load(open(path))
words = [w for w in sys.argv[2:] if not w.startswith("-")]
world["calls"].append(" ".join(sys.argv[1:]))
fault = world["fault"]
if fault:
    sys.exit(print(fault, file=sys.stderr) or 1)
if sys.argv[1] == "show":
    wanted = next(w for w in sys.argv if w.startswith("--property=")).removeprefix("--property=").split(",")
    blocks = []
    for name in words:
        unit = {{"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": "", "TimeoutStopUSec": "1min 30s"}} | world["units"].get(name, {{}})
        blocks.append("\\n".join(f"{{key}}={{(unit | {{'Id': name}})[key]}}" for key in wanted))
    print("\\n\\n".join(blocks))
elif sys.argv[1] in ("start", "stop") and "--no-block" in sys.argv:
    for name in words:
        unit = world["units"][name]
        if unit["LoadState"] == "masked":
            sys.exit(print(f"Failed to start {{name}}: Unit {{name}} is masked.", file=sys.stderr) or 1)
        unit["ActiveState"] = "active" if sys.argv[1] == "start" else "inactive"
else:
    sys.exit(2)
with open(path + ".new", "w") as file:
    json.dump(world, file)
os.replace(path + ".new", path)
"""


def unit(active: str) -> dict[str, str]:
    return {
        "LoadState": "loaded",
        "ActiveState": active,
        "UnitFileState": "enabled",
        "TimeoutStopUSec": "1min 30s",
    }


class World:
    """Units vllm@1..3 and, behind the second, a live engine."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine
        self.file, self.program = folder / "world.json", folder / "systemctl"
        self.program.write_text(STAND_IN.format(python=sys.executable, world=str(self.file)))
        self.program.chmod(0o755)
        self.write(
            {
                "units": {f"vllm@{i}.service": unit("active" if i < 3 else "inactive") for i in (1, 2, 3)},
                "calls": [],
                "fault": "",
            }
        )

    def write(self, world: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(world))

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def set(self, name: str, **values: str) -> None:
        world = self.read()
        world["units"][name] |= values
        self.write(world)

    def states(self) -> list[str]:
        return [u["ActiveState"] for u in self.read()["units"].values()]

    def changes(self) -> list[str]:
        return [c for c in self.read()["calls"] if not c.startswith("show")]

    def backend(self, others: dict[str, Backend] | None = None, **settings: Any) -> Systemd:
        engines = {
            "vllm@1.service": "127.0.0.1:1",
            "vllm@2.service": self.engine.address,
            "vllm@3.service": "127.0.0.1:3",
        }
        tree = SystemdBackend.model_validate(
            {"kind": "systemd", "pools": {"chat": engines}, "command": [str(self.program)], "drain": "2s"}
            | settings
        )
        built = CONFIGURED["systemd"](
            tree.model_dump(), Site(Path("unused"), "tidewarden/prod", time.time, BUSY, others=others or {})
        )
        assert isinstance(built, Systemd)
        return built

    async def run(
        self, amount: float, backend: Systemd | None = None, id: str = "s1", deadline_s: float = 10.0
    ) -> Outcome:
        step = Step(id, Verb.SCALE, Entity("pool", "chat"), amount, "the night", deadline_s=deadline_s)
        action = VERBS[Verb.SCALE](backend or self.backend())
        return await Executor({Verb.SCALE: action}, Record.open(None), time.time, QUICK).run(step)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Engine().up() as engine:
        yield World(tmp_path, engine)


async def test_instances_start_in_order_and_the_last_goes_first_once_idle(world: World) -> None:
    asked: list[tuple[str, float]] = []

    class Router:
        async def apply(self, step: Step) -> str:
            asked.append((step.target.name, step.amount))
            world.engine.stuck = 1 if step.amount == 0 else 0
            asyncio.get_running_loop().call_later(0.3, setattr, world.engine, "stuck", 0)
            return "done"

        async def observe(self, step: Step) -> dict[str, Any]:
            return {}

    backend = world.backend({"lb": Router()}, reroute="lb")
    up = await world.run(3, backend, "s1")
    after_up = world.states()
    world.set("vllm@3.service", ActiveState="inactive")
    down = await world.run(1, backend, "s2")

    assert [up.result, down.result] == [Result.DONE] * 2, (up.detail, down.detail)
    assert after_up == ["active"] * 3
    assert world.states() == ["active", "inactive", "inactive"]
    assert world.changes() == ["start --no-block vllm@3.service", "stop --no-block vllm@2.service"]
    assert asked == [("127.0.0.1:3", 1.0), (world.engine.address, 0.0)]
    assert "vllm@2.service stopped idle" in down.detail


async def test_masked_and_failed_units_are_left_to_people(world: World) -> None:
    world.set("vllm@3.service", LoadState="masked")
    masked = await world.run(3)
    world.set("vllm@3.service", LoadState="loaded", ActiveState="failed")
    failed = await world.run(3)

    assert [masked.result, failed.result] == [Result.REFUSED] * 2
    assert "vllm@3.service is masked inactive" in masked.detail
    assert "systemctl reset-failed" in failed.detail
    assert world.changes() == []


async def test_the_same_step_again_changes_nothing(world: World) -> None:
    await world.run(3)
    await world.run(3)

    assert world.changes() == ["start --no-block vllm@3.service"]


@pytest.mark.parametrize(
    ("fault", "result", "said"),
    [
        ("Failed to start vllm@3.service: Access denied", Result.REFUSED, "config check --live"),
        ("sudo: a password is required", Result.REFUSED, "config check --live"),
        ("Failed to connect to bus: No such file or directory", Result.UNKNOWN, "is systemd running"),
    ],
)
async def test_every_refusal_says_what_to_do(world: World, fault: str, result: Result, said: str) -> None:
    world.write(world.read() | {"fault": fault})

    outcome = await world.run(3, deadline_s=1.0)

    assert outcome.result is result
    assert said in outcome.detail


async def test_a_unit_that_is_killed_before_it_is_drained_is_found_beforehand(world: World) -> None:
    world.set("vllm@2.service", TimeoutStopUSec="1s")
    world.set("vllm@3.service", LoadState="not-found")

    checks = await world.backend(drain="30s").check()
    rights = world.backend().rights

    assert [c.is_right for c in checks] == [True, False, False]
    assert "TimeoutStopSec= above 30 s" in checks[1].fix
    assert "install the template unit" in checks[2].fix
    assert 'unit.indexOf("vllm@") == 0' in rights
    assert os.access(world.program, os.X_OK)


# -- trouble in the middle of a run -----------------------------------------------------------------------------


async def test_a_manager_that_is_away_for_a_moment_is_waited_for(world: World) -> None:
    world.write(world.read() | {"fault": "Failed to connect to bus: Connection refused"})
    running = asyncio.create_task(world.run(3))
    await asyncio.sleep(0.4)
    world.write(world.read() | {"fault": ""})
    outcome = await running

    assert outcome.result is Result.DONE, outcome.detail
    assert world.states() == ["active"] * 3


async def test_a_systemctl_that_hangs_is_given_up_in_time(world: World) -> None:
    backend = world.backend(command=["sh", "-c", "sleep 60; true"], timeout="200ms")

    with pytest.raises(TryAgain, match=r"gave no answer within 0\.2 s and was stopped"):
        await backend.observe(Step("s1", Verb.SCALE, Entity("pool", "chat"), 3.0, "load"))
    assert (await world.run(3, backend, deadline_s=1.5)).result is Result.UNKNOWN


async def test_rights_taken_away_in_the_middle_of_a_run_are_named(world: World) -> None:
    before = await world.run(3, id="s1")
    world.write(world.read() | {"fault": "Failed to stop vllm@3.service: Access denied"})
    after = await world.run(1, id="s2")

    assert before.result is Result.DONE
    assert after.result is Result.REFUSED
    assert "allow it as `tidewarden config check --live` prints" in after.detail


async def test_a_unit_that_somebody_removed_or_renamed_is_said(world: World) -> None:
    world.set("vllm@3.service", LoadState="not-found")
    gone = await world.run(3, id="s1")
    renamed = world.backend(pools={"code": {"vllm@1.service": "127.0.0.1:1"}})
    unknown = await world.run(3, renamed, id="s2")

    assert gone.result is unknown.result is Result.REFUSED
    assert "vllm@3.service is not-found inactive" in gone.detail
    assert "list more under pools of this backend, unmask them" in gone.detail
    assert "no units stand for pool chat" in unknown.detail
