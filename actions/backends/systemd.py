"""systemd: replicas of a pool as instances of a template unit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actions.backends.goodbye import Goodbye
from actions.backends.program import Ran, run
from daemon.model import Check, Hopeless, Step, TryAgain, Verb

UP = ("active", "activating", "reloading")
ASKED = "Id,LoadState,ActiveState,UnitFileState,TimeoutStopUSec"
_FORBIDDEN = (
    "access denied",
    "authentication required",
    "not permitted",
    "permission denied",
    "password is required",
    "interactive authentication",
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One instance. engine : address it serves at. stop_s : how long a stop may take, inf = for ever."""

    name: str
    engine: str
    load: str
    active: str
    stop_s: float

    @property
    def is_up(self) -> bool:
        return self.active in UP

    @property
    def is_free(self) -> bool:
        """Down, and ours to start: a masked unit is an operator's word, a failed one needs a person."""
        return self.load == "loaded" and self.active == "inactive"


@dataclass(frozen=True, slots=True)
class Systemd:
    """Starts and stops instances, those at the front of the list first in and last out.

    pools : pool -> unit name of each instance -> its engine's address. command : systemctl, with sudo before it where needed.
    """

    pools: Mapping[str, Mapping[str, str]]
    goodbye: Goodbye
    command: Sequence[str] = ("systemctl",)
    timeout_s: float = 10.0
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    async def apply(self, step: Step) -> str:
        if step.verb is not Verb.SCALE:
            raise Hopeless(f"systemd scales; it cannot {step.verb}: name another backend under actions")
        async with self._busy:
            units = await self._units(step.target.name)
            up, free = [u for u in units if u.is_up], [u for u in units if u.is_free]
            wanted = int(step.amount)
            if wanted > len(up) + len(free):
                others = ", ".join(
                    f"{u.name} is {u.load} {u.active}" for u in units if not u.is_up and not u.is_free
                )
                raise Hopeless(
                    f"{wanted} instances of {step.target.name} are wanted, {len(up) + len(free)} can run{': ' + others if others else ''}; "
                    "list more under pools of this backend, unmask them, or systemctl reset-failed"
                )
            told = []
            for unit in free[: max(0, wanted - len(up))]:
                await self._tell("start", unit)
                await self.goodbye.enter(unit.engine, step)
                told.append(f"{unit.name} started")
            for unit in list(reversed(up))[: max(0, len(up) - wanted)]:
                left = await self.goodbye.leave(unit.engine, step)
                await self._tell("stop", unit)
                told.append(f"{unit.name} stopped{_left(left)}")
        return ", ".join(told) or f"{wanted} instances of {step.target.name} were up already"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        units = await self._units(step.target.name)
        return {"replicas": sum(u.is_up for u in units), "ready": sum(u.active == "active" for u in units)}

    async def _tell(self, verb: str, unit: Unit) -> None:
        # Not waited for: a start loads weights for minutes, a stop ends the last requests; both are seen by looking.
        ran = await self._run(verb, "--no-block", unit.name)
        if ran.code:
            raise self._trouble(f"{verb} {unit.name}", ran)

    async def _units(self, pool: str) -> list[Unit]:
        if pool not in self.pools:
            known = ", ".join(sorted(self.pools)) or "none"
            raise Hopeless(
                f"no units stand for pool {pool}; list them under pools of this backend ({known} there now)"
            )
        engines = self.pools[pool]
        ran = await self._run("show", f"--property={ASKED}", *engines)
        if ran.code:
            raise self._trouble("show", ran)
        found = {u["Id"]: u for u in map(_fields, ran.out.strip().split("\n\n")) if "Id" in u}
        missing = [name for name in engines if name not in found]
        if missing:
            raise TryAgain(f"`systemctl show` did not tell of {', '.join(missing)}")
        return [
            Unit(
                name,
                engine,
                found[name].get("LoadState", ""),
                found[name].get("ActiveState", ""),
                span_s(found[name].get("TimeoutStopUSec", "")),
            )
            for name, engine in engines.items()
        ]

    async def _run(self, *arguments: str) -> Ran:
        return await run([*self.command, *arguments], self.timeout_s)

    def _trouble(self, what: str, ran: Ran) -> Exception:
        text = ran.said.lower()
        if any(word in text for word in _FORBIDDEN):
            return Hopeless(
                f"`systemctl {what}`: {ran.said}; allow it as `tidewarden config check --live` prints"
            )
        if any(word in text for word in ("connect to bus", "not been booted", "timed out")):
            return TryAgain(f"`systemctl {what}`: {ran.said}; is systemd running, and its bus reachable?")
        if "not found" in text or "masked" in text:
            return Hopeless(
                f"`systemctl {what}`: {ran.said}; correct pools of this backend, or install and unmask the unit"
            )
        return Hopeless(f"`systemctl {what}`: {ran.said}")

    # -- before anything is enabled ------------------------------------------------------------------------

    @property
    def rights(self) -> str:
        names = sorted({name.partition("@")[0] for units in self.pools.values() for name in units})
        rules = " || ".join(f'unit.indexOf("{name}@") == 0' for name in names) or "false"
        return (
            "polkit, /etc/polkit-1/rules.d/50-tidewarden.rules:\n"
            "    polkit.addRule(function(action, subject) {\n"
            '      var unit = action.lookup("unit") || "", verb = action.lookup("verb");\n'
            '      if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "tidewarden" &&\n'
            f'          ({rules}) && (verb == "start" || verb == "stop")) return polkit.Result.YES;\n'
            "    });\n"
            "or sudoers with command: [sudo, systemctl] here:\n"
            f"    tidewarden ALL=(root) NOPASSWD: {', '.join(f'/usr/bin/systemctl {verb} --no-block {name}@*' for name in names for verb in ('start', 'stop'))}"
        )

    async def check(self) -> Sequence[Check]:
        """Whether every unit is there, and is given the time its drain needs. Rights show at the first start only."""
        rows: list[Check] = []
        for pool in self.pools:
            try:
                units = await self._units(pool)
            except (Hopeless, TryAgain) as trouble:
                rows.append(Check(False, f"pool {pool}", "does not work", str(trouble)))
                continue
            for unit in units:
                if unit.load != "loaded":
                    rows.append(
                        Check(
                            False,
                            unit.name,
                            unit.load or "unknown",
                            "install the template unit, or unmask it",
                        )
                    )
                elif unit.stop_s < self.goodbye.drain_s:
                    fix = f"TimeoutStopSec= above {self.goodbye.drain_s:g} s in the unit, and vLLM's --shutdown-timeout below it"
                    rows.append(Check(False, unit.name, f"is killed {unit.stop_s:g} s after a stop", fix))
                else:
                    rows.append(Check(True, unit.name, unit.active))
        return rows


def span_s(text: str) -> float:
    """Seconds of a time span as systemctl shows it.

    >>> span_s("1min 30s"), span_s("infinity"), span_s("500ms")
    (90.0, inf, 0.5)
    """
    if text in ("infinity", ""):
        return math.inf
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
    total = 0.0
    for part in text.split():
        number = part.rstrip("abcdefghijklmnopqrstuvwxyz")
        total += float(number) * units.get(part[len(number) :], math.inf)
    return total


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _left(requests: float) -> str:
    if math.isnan(requests):
        return ", nobody could tell whether idle"
    return f" with {requests:g} requests left to its TimeoutStopSec" if requests > 0 else " idle"
