"""vLLM: replicas that sleep and wake in place, their GPU memory free in between."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actions.backends.goodbye import Goodbye
from actions.backends.marks import Mark, Marks
from daemon.model import Check, Hopeless, Step, TryAgain, Verb

AWAKE, ASLEEP, GONE = "awake", "asleep", "gone"


@dataclass(frozen=True, slots=True)
class Vllm:
    """Scales a pool between its engines that are awake and those that sleep.

    pools : pool -> addresses of its engines. level : 1 keeps the weights in host memory, 2 throws them away.
    marks : who was put to sleep by us. Nobody else's sleeper is woken. timeout_s : for one answer; a wake loads weights.
    """

    pools: Mapping[str, Sequence[str]]
    marks: Marks
    goodbye: Goodbye
    level: int = 1
    timeout_s: float = 60.0
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    async def apply(self, step: Step) -> str:
        if step.verb is not Verb.SCALE:
            raise Hopeless(
                f"vLLM scales by sleeping and waking; it cannot {step.verb}: name another backend under actions"
            )
        async with self._busy:
            states = await self._states(step.target.name)
            awake = [e for e, state in states.items() if state == AWAKE]
            for engine in awake:
                if (
                    self.marks.get(engine) is not None
                ):  # restarted, or woken by hand: the next sleep may be a person's
                    self.marks.put(engine, None)
            sleepers = [e for e, state in states.items() if state == ASLEEP and self.marks.get(e) is not None]
            wanted = int(step.amount)
            if wanted > len(awake) + len(sleepers):
                raise Hopeless(self._too_few(step.target.name, states, wanted))
            if wanted >= len(awake):
                for engine in sleepers[: wanted - len(awake)]:
                    await self._wake(engine, step)
            else:
                for engine in (await self._idlest(awake))[: len(awake) - wanted]:
                    await self._sleep(engine, step)
        return f"{wanted} of {len(states)} engines of {step.target.name} awake"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        """{"replicas", "ready"}: engines that are awake."""
        states = list((await self._states(step.target.name)).values())
        return {"replicas": states.count(AWAKE), "ready": states.count(AWAKE)}

    def _too_few(self, pool: str, states: Mapping[str, str], wanted: int) -> str:
        foreign = [e for e, s in states.items() if s == ASLEEP and self.marks.get(e) is None]
        gone = [e for e, s in states.items() if s == GONE]
        why = [f"{len(gone)} do not run ({', '.join(gone)})"] if gone else []
        why += (
            [
                f"{len(foreign)} were put to sleep by somebody else ({', '.join(foreign)}); curl -X POST http://{foreign[0]}/wake_up hands one over"
            ]
            if foreign
            else []
        )
        return f"{wanted} engines of {pool} are wanted, of {len(states)}: {'; '.join(why) or 'start more, and list them under pools of this backend'}"

    # -- acting --------------------------------------------------------------------------------------------

    async def _sleep(self, engine: str, step: Step) -> None:
        """Only an idle engine is put to sleep: what runs on it would be lost."""
        left = await self.goodbye.leave(engine, step)
        if left > 0 or math.isnan(left):
            await self.goodbye.enter(engine, step)
            what = f"{left:g} requests" if left > 0 else "an unknown number of requests"
            raise TryAgain(f"{engine} still has {what}, so it stays awake")
        # The mark comes first: a sleeper without one, after a crash, would look like a person's.
        self.marks.put(engine, Mark(step.id, ASLEEP))
        await self._ask("POST", engine, f"/sleep?level={self.level}")

    async def _wake(self, engine: str, step: Step) -> None:
        """Requests come only when it is awake. The mark goes last."""
        await self._ask("POST", engine, "/wake_up")
        if await self._state(engine) != AWAKE:
            raise TryAgain(f"{engine} still sleeps")
        await self.goodbye.enter(engine, step)
        self.marks.put(engine, None)

    async def _idlest(self, engines: Sequence[str]) -> list[str]:
        load = await asyncio.gather(*(self.goodbye.busy(f"http://{e}/metrics") for e in engines))
        order = sorted(
            zip(load, engines, strict=True),
            key=lambda pair: (math.inf if math.isnan(pair[0]) else pair[0], pair[1]),
        )
        return [engine for _, engine in order]

    # -- asking --------------------------------------------------------------------------------------------

    async def _states(self, pool: str) -> dict[str, str]:
        if pool not in self.pools:
            known = ", ".join(sorted(self.pools)) or "none"
            raise Hopeless(
                f"no engines stand for pool {pool}; list them under pools of this backend ({known} there now)"
            )
        engines = self.pools[pool]
        found = await asyncio.gather(*(self._state(engine) for engine in engines))
        return dict(zip(engines, found, strict=True))

    async def _state(self, engine: str) -> str:
        """Raises TryAgain when it cannot be told: an engine that hangs is neither asleep nor gone."""
        try:
            answer = await self._ask("GET", engine, "/is_sleeping")
        except ConnectionRefusedError:
            return GONE
        if not isinstance(answer, dict) or not isinstance(answer.get("is_sleeping"), bool):
            raise TryAgain(f"{engine}/is_sleeping answered {str(answer)[:100]!r}, which tells nothing")
        return ASLEEP if answer["is_sleeping"] else AWAKE

    async def _ask(self, method: str, engine: str, path: str) -> Any:
        import aiohttp

        try:
            async with (
                asyncio.timeout(self.timeout_s),
                aiohttp.ClientSession() as session,
                session.request(method, f"http://{engine}{path}") as answer,
            ):
                text = await answer.text()
                if answer.status == 404:
                    raise Hopeless(
                        f"{engine} knows no {path.partition('?')[0]}; start vLLM with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1, reachable for this host only"
                    )
                if answer.status >= 300:
                    remedy = "; is the offline job that had its memory gone?" if path == "/wake_up" else ""
                    raise TryAgain(
                        f"{engine}{path} answered {answer.status}: {' '.join(text.split())[:200]}{remedy}",
                        5.0,
                    )
                if method == "POST":
                    return None
                return await answer.json(content_type=None)
        except TimeoutError:
            raise TryAgain(f"{engine}{path} gave no answer within {self.timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError) and method == "GET":
                raise ConnectionRefusedError(str(error)) from None
            raise TryAgain(f"{engine}: {error.strerror or error}; does the engine run?") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, ConnectionRefusedError):
                raise
            raise TryAgain(f"{engine}{path}: {error or type(error).__name__}") from None

    # -- before anything is enabled ------------------------------------------------------------------------

    @property
    def rights(self) -> str:
        return (
            "vLLM started with --enable-sleep-mode, environment VLLM_SERVER_DEV_MODE=1; its port reachable for this host and the\n"
            "router only: whoever reaches it can put it to sleep. --shutdown-timeout above the longest answer, so that a stop drains"
        )

    async def check(self) -> Sequence[Check]:
        rows = []
        for pool, engines in self.pools.items():
            for engine in engines:
                try:
                    state = await self._state(engine)
                    load = await self.goodbye.busy(f"http://{engine}/metrics") if state == AWAKE else 0.0
                except (Hopeless, TryAgain) as trouble:
                    rows.append(Check(False, f"{pool}: {engine}", "does not work", str(trouble)))
                    continue
                if state == GONE:
                    rows.append(
                        Check(
                            False, f"{pool}: {engine}", "nothing listens there", "start it, or correct pools"
                        )
                    )
                elif math.isnan(load):
                    fix = (
                        "its /metrics must say what runs: an engine that does not tell is never put to sleep"
                    )
                    rows.append(
                        Check(False, f"{pool}: {engine}", f"{state}, and does not tell its requests", fix)
                    )
                else:
                    rows.append(Check(True, f"{pool}: {engine}", state))
        return rows
