"""Setting replicas: never a step to the other side of what was decided."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from actions.scale import Scale
from daemon.model import Entity, Hopeless, Result, Step, Verb


@dataclass
class Pool:
    """A system that wants so many replicas."""

    wanted: float
    told: Mapping[str, Any] = field(default_factory=dict)
    orders: list[float] = field(default_factory=list)

    async def apply(self, step: Step) -> str:
        self.orders.append(step.amount)
        self.wanted = step.amount
        return "done"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        return {"replicas": self.wanted} | self.told


def order(pool: Pool, before: float, amount: float) -> Result:
    step = Step("s1", Verb.SCALE, Entity("pool", "chat"), amount, "", args=(("from", f"{before:g}"),))
    return asyncio.run(Scale(pool).apply(step)).result


@pytest.mark.parametrize(("believed", "amount", "wanted"), [(1, 2, 4), (4, 3, 2)])
def test_a_step_that_would_go_the_other_way_is_not_taken(believed: int, amount: int, wanted: int) -> None:
    pool = Pool(wanted)

    with pytest.raises(
        Hopeless, match=f"from {believed} to {amount} replicas, but the system wants {wanted}"
    ):
        order(pool, believed, amount)

    assert pool.orders == []


@pytest.mark.parametrize(("believed", "amount", "wanted"), [(4, 6, 4), (4, 6, 5), (4, 6, 6), (4, 3, 5)])
def test_a_step_in_the_direction_that_was_decided_is_taken_and_again(
    believed: int, amount: int, wanted: int
) -> None:
    pool = Pool(wanted)

    assert order(pool, believed, amount) is Result.DONE
    assert order(pool, believed, amount) is Result.DONE
    assert pool.wanted == amount


@pytest.mark.parametrize("told", [{"is_floor": True}, {"replicas": None}, {"replicas": True}])
def test_a_floor_or_what_cannot_be_told_stops_nothing(told: Mapping[str, Any]) -> None:
    """An autoscaler keeps six over a floor of two: a floor of four is no growth."""
    pool = Pool(2, told)

    assert order(pool, 6, 4) is Result.DONE
    assert pool.orders == [4]
