"""The demo: a simulated cluster over real HTTP, and the unchanged daemon that looks after it, 60 times as fast."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import termios
import tty
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from daemon import service, web
from daemon.clock import RatedLoop, loop_clock, wall_clock
from daemon.foresight import Fit
from daemon.loop import Daemon, Pace
from daemon.model import Outcome, Verb
from daemon.record import Record
from daemon.settings import Settings
from simulator import tempo
from simulator.defaults import default_spec
from simulator.drill import WorldHistory
from simulator.http import WorldServer
from simulator.policies import VERBS, policy_of
from simulator.score import score
from simulator.script import INJECTIONS, KEYS, Line, ScriptError, read_script, unattended
from simulator.tell import teller
from simulator.world import World

MORNING_S = 7 * 3600.0
"""The demo begins at 07:00 UTC of today: the tide comes in while one watches."""
TIMEOUT = "60s"
"""One real second: at 60x a 10 s time-out would be a sixth of a second, less than a busy laptop's hiccup."""


@dataclass(slots=True)
class Stage:
    """Everything a running demo is made of."""

    world: World
    daemon: Daemon
    say: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)

    def inject(self, name: str) -> None:
        fault = INJECTIONS[name](self.world)
        if fault is None:
            self.say(
                f"            INJECT   {name}: every node that serves has a fault already; wait until one is over"
            )
            return
        self.world.inject(fault)
        self.say(f"            INJECT   {name}: {fault.kind} on {fault.entity}")


def demo(
    assemble: Callable[[Any], Daemon],
    parts: Callable[..., Any],
    fitting: Callable[[], AbstractAsyncContextManager[Fit]],
    *,
    for_s: float | None = None,
    as_json: bool = False,
    script: Path | None = None,
    port: int = 9095,
    seed: int = 7,
    rate: float = 60.0,
    nodes: int = 16,
) -> int:
    """Run the demo until `for_s` real seconds have passed or a key ends it; returns the exit code.

    With as_json the last line of stdout is one JSON object, see simulator.score.
    """
    try:
        lines = read_script(script) if script is not None else unattended(for_s) if for_s is not None else ()
    except (ScriptError, OSError) as error:
        print(f"tidewarden: {error}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=lambda: RatedLoop(rate)) as runner:
        result = runner.run(_play(assemble, parts, fitting, lines, for_s, port, seed, rate, nodes))
    if as_json:
        print(json.dumps(result), flush=True)
    return 0


async def _play(
    assemble: Callable[[Any], Daemon],
    parts: Callable[..., Any],
    fitting: Callable[[], AbstractAsyncContextManager[Fit]],
    lines: tuple[Line, ...],
    for_s: float | None,
    port: int,
    seed: int,
    rate: float,
    nodes: int,
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, RatedLoop)
    epoch = wall_clock() // 86400.0 * 86400.0 + MORNING_S - loop.time()
    clock = loop_clock(loop, epoch)
    spec = default_spec(nodes * 8)
    world = World(spec, seed, clock())
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidewarden-demo-")))
        await stack.enter_async_context(
            WorldServer(world, clock, folder / "targets.json", kernel_logs=folder)
        )
        settings = _settings(folder, world, port)
        catalogue, sources, _ = service.sources_of(settings, clock)
        for source in sources.values():
            stack.push_async_callback(source.close)
        record = stack.enter_context(contextlib.closing(Record.open(folder / "state")))
        say = _printer()
        outcomes: list[Outcome] = []
        daemon = assemble(
            parts(
                policy=policy_of(spec, "demo"),
                sources=sources,
                record=record,
                clock=clock,
                fit=await stack.enter_async_context(fitting()),
                backends={"simulated": world},
                action_of=dict.fromkeys(VERBS, "simulated"),
                pace=Pace(stop_s=60.0),
                history=WorldHistory(world),
                listeners=(
                    teller(say, clock),
                    lambda news: outcomes.append(news) if isinstance(news, Outcome) else None,
                ),
            )
        )
        service.bind_gpu_names(sources, daemon)
        address = await stack.enter_async_context(web.serving(daemon, settings, None, catalogue))
        stage = Stage(world, daemon, say, outcomes)
        _greet(stage, spec.nodes, rate, address)
        going = (tempo.keep(loop), _inject(stage, lines, loop), _end(daemon, for_s, loop))
        tasks = [loop.create_task(task) for task in going]
        stack.enter_context(_keys(stage, for_s is None))
        for number in (2, 15):
            loop.add_signal_handler(number, daemon.stop)
        try:
            await daemon.run()
        finally:
            for task in tasks:
                task.cancel()
        found = [o for o in outcomes if o.step.verb is not Verb.NOTIFY]
        result = score(world, record.incidents(limit=100_000), found)
        say(_summary(result))
        return result


def _settings(folder: Path, world: World, port: int) -> Settings:
    """The configuration file of this cluster, as if an operator had written it."""
    return Settings.model_validate(
        {
            "cluster": "demo",
            "state_dir": str(folder / "state"),
            "mode": "auto",
            "sources": {
                "http": {"file_sd": [str(folder / "targets.json")], "timeout": TIMEOUT},
                "kernel_log": [{"path": str(folder / f"{n}.log"), "node": n} for n in world.wiring.nodes],
            },
            "web": {"listen": f"127.0.0.1:{port}"},
        }
    )


def _printer() -> Callable[[str], None]:
    def say(text: str) -> None:
        print(text, flush=True)

    return say


def _greet(stage: Stage, nodes: int, rate: float, address: str) -> None:
    pools = ", ".join(f"{p.name} ({p.model}, {p.engine}, TP {p.tp})" for p in stage.world.spec.pools)
    stage.say(
        f"tidewarden demo: {nodes} nodes x {stage.world.spec.gpus_per_node} GPUs, time runs {rate:g}x, slower where the machine cannot follow; everything is simulated"
    )
    stage.say(f"pools: {pools}")
    stage.say(f"pages: {address}")
    keys = ", ".join(f"{key} {name}" for key, name in KEYS.items())
    stage.say(f"keys:  {keys}, q quit")


async def _inject(stage: Stage, lines: tuple[Line, ...], loop: RatedLoop) -> None:
    begun = loop.real_time()
    for line in lines:
        await tempo.real(loop, begun + line.after_s)
        stage.inject(line.name)


async def _end(daemon: Daemon, for_s: float | None, loop: RatedLoop) -> None:
    if for_s is not None:
        await tempo.real(loop, loop.real_time() + for_s)
        daemon.stop()


@contextlib.contextmanager
def _keys(stage: Stage, is_attended: bool) -> Any:
    """Single key presses while the terminal is one and somebody watches."""
    stdin: TextIO = sys.stdin
    if not is_attended or not stdin.isatty():
        yield
        return
    before = termios.tcgetattr(stdin.fileno())
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        for key in os.read(stdin.fileno(), 32).decode(errors="replace"):
            if key in KEYS:
                stage.inject(KEYS[key])
            elif key in ("q", "\x03"):
                stage.daemon.stop()

    try:
        tty.setcbreak(stdin.fileno())
        loop.add_reader(stdin.fileno(), pressed)
        yield
    finally:
        loop.remove_reader(stdin.fileno())
        termios.tcsetattr(stdin.fileno(), termios.TCSADRAIN, before)


def _summary(result: dict[str, Any]) -> str:
    found = [f for f in result["faults"] if f["found_entity"] is not None]
    delays = ", ".join(f"{f['kind']} {f['delay_s']:.0f} s" for f in found)
    return (
        f"{len(found)} of {len(result['faults'])} faults found ({delays or 'none'}), "
        f"{result['false_isolations']} false isolations, {result['requests_lost']} of {result['requests_total']} requests lost, "
        f"{result['gpu_hours_lent']:.0f} GPU-hours lent"
    )
