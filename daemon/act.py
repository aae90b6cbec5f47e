"""Carrying out allowed steps: intent, apply, verify, outcome."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from daemon.clock import Clock
from daemon.model import (
    NAN,
    Action,
    Entity,
    Hopeless,
    Outcome,
    RecordError,
    Result,
    Step,
    TryAgain,
    Verb,
)
from daemon.spans import Stretch


class Begun(Protocol):
    """What the journal knows of one step. outcome : None while its end is not known."""

    @property
    def intent_at(self) -> float: ...

    @property
    def outcome(self) -> Outcome | None: ...


class Journal(Protocol):
    """What the executor needs of `daemon.record.Record`."""

    def intent(self, at: float, step: Step) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...

    def open_intents(self) -> list[Step]: ...

    def step(self, id: str) -> Begun | None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often. Source of the defaults: judgement.

    apply_share : part of a step's deadline that applying may take; the rest is for looking at the world.
    tries_max   : attempts to apply. backoff_s, backoff_max_s : wait after the first failed one, doubled each time.
    poll_s      : pause between two looks, doubled up to poll_max_s. in_flight_max : steps under way at once.
    """

    apply_share: float = 0.5
    tries_max: int = 4
    backoff_s: float = 1.0
    backoff_max_s: float = 15.0
    poll_s: float = 1.0
    poll_max_s: float = 10.0
    in_flight_max: int = 16


class _NoTurn(Exception):
    """Earlier steps on the same target, or too many others, took longer than this one may wait."""


class _Unclear(Exception):
    """Applying ended without an answer; the message says how."""


class Executor:
    """Runs steps, each at most once, one at a time for a target.

    actions : the action of a step, None when nothing can do it; or a mapping by verb.
    record  : the journal. clock : wall time for the journal; durations are the running loop's. watched : told how long
    each part of a step took, by its id.
    """

    def __init__(
        self,
        actions: Callable[[Step], Action | None] | Mapping[Verb, Action],
        record: Journal,
        clock: Clock,
        patience: Patience | None = None,
        watched: Callable[[str, Stretch], None] = lambda step, part: None,
    ) -> None:
        self._find = (lambda step: actions.get(step.verb)) if isinstance(actions, Mapping) else actions
        self._record = record
        self._clock = clock
        self._patience = patience or Patience()
        self._slots = asyncio.Semaphore(self._patience.in_flight_max)
        self._turns: defaultdict[Entity, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[Entity, int] = {}
        self.watched = watched

    async def run(self, step: Step) -> Outcome:
        """Carry out `step` and return what became of it; for an id already carried out, the first outcome.

        Cancelled half-way the intent stays open in the journal, without an outcome: `recover` looks later.
        """
        try:
            async with self._turn(step.target, step.deadline_s):
                return await self._once(step)
        except _NoTurn:
            return await self._give_way(step)

    async def recover(self) -> list[Outcome]:
        """Settle steps that were begun before a restart: each is looked for in the world, none is applied again."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._recover(step)) for step in self._record.open_intents()]
        return [task.result() for task in tasks]

    async def _recover(self, step: Step) -> Outcome:
        # A later step on the same target waits its turn as usual; nothing here may time out waiting.
        async with self._turn(step.target, None):
            return await self._once(step)

    @contextlib.asynccontextmanager
    async def _turn(self, target: Entity, wait_s: float | None) -> AsyncIterator[None]:
        """One step a target, `in_flight_max` in total. Raises _NoTurn when the wait is over first."""
        self._waiting[target] = self._waiting.get(target, 0) + 1
        turn = self._turns[target]
        try:
            async with contextlib.AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(wait_s):
                        await held.enter_async_context(turn)
                        await held.enter_async_context(self._slots)
                except TimeoutError:
                    raise _NoTurn from None
                yield
        finally:
            self._waiting[target] -= 1
            if not self._waiting[target]:
                del self._waiting[target], self._turns[target]

    async def _give_way(self, step: Step) -> Outcome:
        known = self._record.step(step.id)
        if known is not None and not math.isnan(known.intent_at):
            # The same id is under way in another task: its outcome is the answer, however long it takes.
            return await self._recover(step)
        why = f"not begun: waited {step.deadline_s:g} s for other steps"
        return self._finish(step, Result.FAILED, why)

    async def _once(self, step: Step) -> Outcome:
        begun = asyncio.get_running_loop().time()
        try:
            known = self._record.step(step.id)
        except RecordError as error:
            return self._finish(
                step, Result.REFUSED, f"not applied, the journal cannot be read: {error}", begun
            )
        if known is not None and known.outcome is not None:
            return known.outcome
        action = self._find(step)
        if known is not None and not math.isnan(known.intent_at):
            return self._finish(step, *await self._look_again(step, action), begun)
        if action is None:
            return self._finish(step, Result.REFUSED, f"no backend is configured for {step.verb}", begun)
        try:
            self._record.intent(self._clock(), step)
        except RecordError as error:
            return self._finish(
                step, Result.REFUSED, f"not applied, the journal cannot be written: {error}", begun
            )
        return self._finish(step, *await self._attempt(step, action, begun), begun)

    def _finish(self, step: Step, result: Result, detail: str, begun: float = NAN) -> Outcome:
        took_s = asyncio.get_running_loop().time() - begun
        outcome = Outcome(step, result, detail, took_s, self._clock())
        self._record.outcome(outcome)
        return outcome

    async def _attempt(self, step: Step, action: Action, begun: float) -> tuple[Result, str]:
        """Apply, then look until the world shows it or the deadline is over."""
        try:
            told = await self._apply(step, action, begun + self._patience.apply_share * step.deadline_s)
        except _Unclear as unclear:
            is_seen, why = await self._look(step, action, begun + step.deadline_s)
            if is_seen:
                return Result.DONE, f"{unclear}, but the world shows it"
            return Result.UNKNOWN, f"{unclear}; {why}. {_question(step)}"
        if told.result in (Result.REFUSED, Result.FAILED):
            return told.result, told.detail
        is_seen, why = await self._look(step, action, begun + step.deadline_s)
        if is_seen:
            return Result.DONE, told.detail
        return Result.UNKNOWN, f"applied ({told.detail or 'no detail'}), but {why}. {_question(step)}"

    async def _apply(self, step: Step, action: Action, end: float) -> Outcome:
        """The action's own word. Raises _Unclear on time-out or after the last try."""
        with self._timed(step, "apply"):
            return await self._tried(step, action, end)

    @contextlib.contextmanager
    def _timed(self, step: Step, name: str) -> Iterator[None]:
        begun = self._clock()
        try:
            yield
        finally:
            self.watched(step.id, Stretch(name, begun, self._clock()))

    async def _tried(self, step: Step, action: Action, end: float) -> Outcome:
        loop = asyncio.get_running_loop()
        why = ""
        for attempt in range(self._patience.tries_max):
            try:
                async with asyncio.timeout_at(end):
                    return await action.apply(step)
            except TimeoutError:
                raise _Unclear(
                    f"apply did not answer within {self._patience.apply_share * step.deadline_s:g} s"
                ) from None
            except Hopeless as refusal:
                return await self._refused(step, action, str(refusal), attempt)
            except TryAgain as trouble:
                why = str(trouble)
                pause_s = max(trouble.delay_s, self._backoff_s(step, attempt))
            if loop.time() + pause_s >= end:
                break
            await asyncio.sleep(pause_s)
        raise _Unclear(f"apply did not succeed: {why}")

    async def _refused(self, step: Step, action: Action, why: str, earlier_tries: int) -> Outcome:
        """A refusal at once means nothing happened; after unclear tries only the world can tell."""
        if not earlier_tries:
            return Outcome(step, Result.REFUSED, why)
        try:
            async with asyncio.timeout(self._patience.poll_max_s):
                is_seen = await action.verify(step)
        except (TimeoutError, TryAgain, Hopeless) as trouble:
            raise _Unclear(f"refused after {earlier_tries} unclear tries ({why}); {trouble}") from None
        if is_seen:
            return Outcome(step, Result.DONE, f"an earlier try went through before: {why}")
        return Outcome(step, Result.FAILED, why)

    async def _look(self, step: Step, action: Action, end: float) -> tuple[bool, str]:
        """Whether the world shows it before `end`, at least one look; and if not, what was seen last."""
        with self._timed(step, "verify"):
            return await self._looked(step, action, end)

    async def _looked(self, step: Step, action: Action, end: float) -> tuple[bool, str]:
        loop = asyncio.get_running_loop()
        end = max(end, loop.time() + self._patience.poll_s)
        pause_s = self._patience.poll_s
        why = "the world did not answer in time"
        while True:
            wait_s = pause_s
            try:
                async with asyncio.timeout_at(end):
                    if await action.verify(step):
                        return True, ""
                why = "the world does not show it"
            except TimeoutError:
                return False, why
            except Hopeless as refusal:
                return False, f"it cannot be looked for: {refusal}"
            except TryAgain as trouble:
                why = f"it cannot be told: {trouble}"
                wait_s = max(trouble.delay_s, pause_s)
            if loop.time() + wait_s > end:
                return False, why
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, self._patience.poll_max_s)

    async def _look_again(self, step: Step, action: Action | None) -> tuple[Result, str]:
        """What became of a step that was begun in an earlier life."""
        if action is None:
            return (
                Result.UNKNOWN,
                f"interrupted, and no backend is configured for {step.verb} now. {_question(step)}",
            )
        end = asyncio.get_running_loop().time() + step.deadline_s
        is_seen, why = await self._look(step, action, end)
        if is_seen:
            return Result.DONE, "interrupted; the world shows it"
        return Result.UNKNOWN, f"interrupted; {why}. {_question(step)}"

    def _backoff_s(self, step: Step, attempt: int) -> float:
        """Doubling, plus up to a quarter drawn from the step's id: many steps must not retry in one instant."""
        share = int.from_bytes(hashlib.sha256(f"{step.id} {attempt}".encode()).digest()[:4], "big") / 2**32
        return min(self._patience.backoff_s * 2.0**attempt, self._patience.backoff_max_s) * (1 + share / 4)


_CHECKS = {
    Verb.SCALE: "has {target} {amount:g} replicas?",
    Verb.REROUTE: "has {target} the routing weight {amount:g}?",
    Verb.ISOLATE: "is {target} out of service, marked {owner}?",
    Verb.RELEASE: "is {target} back in service, without the mark {owner}?",
    Verb.LEND: "is {target} lent, and does the lease end at {until:.0f}?",
    Verb.RECALL: "is {target} back from its lease?",
    Verb.NOTIFY: "was on-call told of {target}?",
    Verb.LIMIT: "does the gateway let in {amount:.0%} of {target}?",
    Verb.ROLLBACK: "does {target} want the version before?",
    Verb.BALANCE: "has {target} the share {amount:g} of all requests?",
}


def _question(step: Step) -> str:
    """What a human is asked to check when nobody can tell."""
    check = _CHECKS[step.verb].format(
        target=step.target, amount=step.amount, owner=step.arg("owner") or "as ours", until=step.until
    )
    return f"Please check: {check} It is not repeated by itself"
