import asyncio

import pytest

from daemon.clock import RatedLoop, SteadyClock, loop_clock, run_virtual


class Hands:
    """A wall clock and a steady clock one can turn."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000_000.0, 50.0

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.steady)

    def go(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_time_follows_the_wall():
    hands = Hands()
    clock = hands.clock()

    hands.go(30.0)

    assert clock() == 1_000_030.0


def test_a_wall_clock_set_back_never_takes_time_back_and_is_met_again():
    hands = Hands()
    clock = hands.clock()
    hands.go(10.0)
    before = clock()

    hands.wall -= 60.0
    seen = []
    for _ in range(100):
        hands.go(15.0)
        seen.append(clock())

    assert all(b > a for a, b in zip([before, *seen], seen, strict=False))
    assert seen[-1] == hands.wall


def test_a_wall_clock_set_forward_is_followed_at_once():
    hands = Hands()
    clock = hands.clock()

    hands.wall += 3600.0
    hands.go(1.0)

    assert clock() == hands.wall


def test_a_virtual_day_costs_nothing_and_ends_on_time():
    async def day(loop: asyncio.AbstractEventLoop) -> float:
        await asyncio.sleep(86_400.0)
        return loop_clock(loop, 1000.0)()

    assert run_virtual(day) == pytest.approx(87_400.0)


def test_a_virtual_loop_that_waits_for_nothing_says_so():
    async def never(_: asyncio.AbstractEventLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nobody will set"):
        run_virtual(never)


def test_a_rated_loop_runs_timers_faster_than_the_wall():
    with asyncio.Runner(loop_factory=lambda: RatedLoop(1000.0)) as runner:

        async def minute() -> float:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await asyncio.sleep(60.0)
            return loop.time() - begun

        assert runner.run(minute()) >= 60.0
