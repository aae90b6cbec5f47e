"""Which faults to inject into a running demo, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.model import Entity
from simulator.faults import Fault
from simulator.fleet import State
from simulator.world import World

Maker = Callable[[World], Fault | None]


@dataclass(frozen=True, slots=True)
class Line:
    """after_s : real seconds after the start. name : a key of INJECTIONS."""

    after_s: float
    name: str


class ScriptError(Exception):
    """A script cannot be read: file, line, what was found, what is allowed."""


def _sound_gpus(world: World) -> list[str]:
    """GPUs of a replica on a node that nothing ails, of the first pool that has one; [] when none has."""
    hurt = {entity.name.split("/")[0].split(":")[0] for entity in world.fleet.isolated}
    # A second fault beside the first, or on a drained node, would teach nothing.
    hurt |= {t.fault.entity.name.split("/")[0].split(":")[0] for t in world.troubles if not t.is_over}
    engines = (world.engine_at(target.address) for target in world.targets())
    sound = [
        e for e in engines if e is not None and e.state is State.READY and e.address.split(":")[0] not in hurt
    ]
    first = min(sound, key=lambda e: e.pool, default=None)
    return [world.wiring.gpus[g] for g in first.gpus] if first is not None else []


def slow_gpu(world: World) -> Fault | None:
    """A GPU throttles to two thirds of its clock."""
    gpus = _sound_gpus(world)
    return Fault("thermal-throttle", Entity("gpu", gpus[0]), world.at, 3 * 3600.0, 0.35) if gpus else None


def dead_gpu(world: World) -> Fault | None:
    """A GPU falls off the bus: XID 79."""
    gpus = _sound_gpus(world)
    return Fault("xid79", Entity("gpu", gpus[-1]), world.at, 6 * 3600.0) if gpus else None


def link_errors(world: World) -> Fault | None:
    """A cable corrupts packets and drops the link now and then."""
    gpus = _sound_gpus(world)
    node = gpus[0].split("/")[0] if gpus else ""
    return Fault("bad-cable", Entity("port", f"{node}/mlx5_0"), world.at, 3 * 3600.0, 80.0) if node else None


def traffic_burst(world: World) -> Fault | None:
    """The first pool gets twice its traffic for three quarters of an hour."""
    pool = Entity("pool", world.spec.pools[0].name)
    return Fault("traffic-burst", pool, world.at, 2700.0, 2.0, ramp_s=60.0)


def exporter_outage(world: World) -> Fault | None:
    """A node's GPU exporter stops answering while it serves on: nothing must be isolated for it."""
    gpus = _sound_gpus(world)
    node = gpus[0].split("/")[0] if gpus else ""
    return (
        Fault("exporter-outage", Entity("target", f"{node}:9400"), world.at, 900.0, detail="refused")
        if node
        else None
    )


INJECTIONS: dict[str, Maker] = {
    "slow-gpu": slow_gpu,
    "dead-gpu": dead_gpu,
    "link-errors": link_errors,
    "traffic-burst": traffic_burst,
    "exporter-outage": exporter_outage,
}
KEYS = {"s": "slow-gpu", "d": "dead-gpu", "l": "link-errors", "b": "traffic-burst", "o": "exporter-outage"}


def unattended(length_s: float) -> tuple[Line, ...]:
    """What an unattended demo goes through: spread over its first two thirds, so that recoveries are seen."""
    names = ("dead-gpu", "slow-gpu", "link-errors", "exporter-outage", "traffic-burst")
    return tuple(Line(length_s * (0.12 + 0.13 * k), name) for k, name in enumerate(names))


def read_script(path: Path) -> tuple[Line, ...]:
    """Lines `20s dead-gpu`, in real seconds after the start; # begins a comment. Raises ScriptError."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = text.split("#")[0].split()
        if not words:
            continue
        where = f"{path}:{number}"
        if len(words) != 2:
            raise ScriptError(
                f"{where}: found {text.strip()!r}; write a time and a fault, like '20s dead-gpu'"
            )
        try:
            after_s = float(words[0].removesuffix("s"))
        except ValueError:
            raise ScriptError(f"{where}: {words[0]!r} is not a time; write seconds, like 20s") from None
        if words[1] not in INJECTIONS:
            raise ScriptError(f"{where}: unknown fault {words[1]!r}; there are: {', '.join(INJECTIONS)}")
        lines.append(Line(after_s, words[1]))
    return tuple(sorted(lines, key=lambda line: line.after_s))
