import asyncio

import pytest

from daemon.clock import RatedLoop, SteadyClock, loop_clock, run_virtual
from simulator import tempo


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


def test_a_rated_loop_that_is_slowed_down_goes_on_from_where_it_is():
    with asyncio.Runner(loop_factory=lambda: RatedLoop(1e6)) as runner:

        async def story() -> tuple[float, float, float]:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, RatedLoop)
            await asyncio.sleep(5000.0)
            begun = loop.time()
            loop.rate = 100.0
            changed = loop.time()
            await asyncio.sleep(1.0)
            return begun, changed, loop.time()

        begun, changed, ended = runner.run(story())

    assert begun >= 5000.0
    assert begun <= changed
    assert ended >= changed + 1.0


def test_a_rate_of_nothing_is_refused():
    loop = RatedLoop(60.0)
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        loop.rate = 0
    loop.close()


def test_the_demo_slows_down_while_its_timers_come_late_and_catches_up():
    assert tempo.next_rate(60.0, 0.1, 60.0) == 48.0
    assert tempo.next_rate(48.0, 0.03, 60.0) == 48.0
    assert tempo.next_rate(48.0, 0.0, 60.0) == pytest.approx(55.2)
    assert tempo.next_rate(59.0, 0.0, 60.0) == 60.0
    assert tempo.next_rate(10.0, 9.0, 60.0) == tempo.SLOWEST
    assert tempo.next_rate(2.0, 9.0, 2.0) == 2.0


def test_a_rated_loop_runs_timers_faster_than_the_wall():
    with asyncio.Runner(loop_factory=lambda: RatedLoop(1000.0)) as runner:

        async def minute() -> float:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await asyncio.sleep(60.0)
            return loop.time() - begun

        assert runner.run(minute()) >= 60.0
