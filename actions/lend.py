"""Lending idle GPUs to offline jobs until a time that holds even if the daemon is dead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from actions.observed import flag, number
from daemon.model import Backend, Hopeless, Outcome, Result, Step, TryAgain

UNTIL_TOLERANCE_S = 60.0
"""Schedulers keep the end of a lease in whole minutes (Slurm EndTime)."""


@dataclass(frozen=True, slots=True)
class Lend:
    """step.target : node or gpu. step.until : when the lease ends, seconds since the epoch."""

    backend: Backend

    async def apply(self, step: Step) -> Outcome:
        if not math.isfinite(step.until):
            raise Hopeless(f"a lease needs an end that holds without the daemon, got until={step.until}")
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        """Lent, and with an end: a lease that would outlive its time is not what was asked."""
        seen = await self.backend.observe(step)
        if not flag(seen, "lent", step):
            return False
        return abs(number(seen, "until", step) - step.until) <= UNTIL_TOLERANCE_S


FREE_BYTES = 2 * 2**30
"""Of GPU memory in use on a GPU nobody works on: drivers and exporters keep some hundred MiB. Judgement."""
FALLEN = 0.5
"""Of what was in use when the recall began: a replica that starts there at once fills it again before it was ever seen
empty, over minutes. Judgement."""


def nobody_knows(node: str) -> float:
    return math.nan


@dataclass(frozen=True, slots=True)
class Recall:
    """step.target : node or gpu, wanted back now. held : node -> bytes of GPU memory in use where it should be free, the
    most of any GPU, by telemetry; NaN = not measured, and then the scheduler's word is all there is. before : the same
    when a node's last recall began.
    """

    backend: Backend
    held: Callable[[str], float] = nobody_knows
    before: dict[str, float] = field(default_factory=dict)

    async def apply(self, step: Step) -> Outcome:
        self.before.setdefault(_node(step), self.held(_node(step)))
        return Outcome(step, Result.DONE, await self.backend.apply(step))

    async def verify(self, step: Step) -> bool:
        """Its jobs are gone, and so is what they held: a process that outlives its job would fail the next engine."""
        if flag(await self.backend.observe(step), "lent", step):
            return False
        node = _node(step)
        held, before = self.held(node), self.before.get(node, math.nan)
        if held > FREE_BYTES and not held < FALLEN * before:
            raise TryAgain(
                f"the jobs of {node} are gone and {held / 2**30:.0f} GiB of a GPU there are still in use: nvidia-smi on {node} names the process",
                5.0,
            )
        self.before.pop(node, None)
        return True


def _node(step: Step) -> str:
    return step.arg("node") or step.target.name.partition("/")[0]
