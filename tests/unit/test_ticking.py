"""When the shell decides: right after pages that were just asked for, at an even pace, whoever is slow."""

import asyncio
from collections.abc import Sequence

import numpy as np

from daemon.__main__ import Parts, assemble, fit_here
from daemon.clock import Clock, VirtualLoop, loop_clock, run_virtual
from daemon.loop import Daemon, Pace
from daemon.model import Decision, Entity, Layout, Scrape, Series, Source
from daemon.policy import Policy
from daemon.record import Record

EPOCH = 1_780_272_000.0
ROUND_S = 15.0
ANSWERS_S = 0.2


class Exporters:
    """Asked every ROUND_S from `begins_s` on, answer ANSWERS_S later; like the scraper, never waited for by a reader."""

    def __init__(self, clock: Clock, begins_s: float = 0.0) -> None:
        self.clock, self.begins_s = clock, begins_s
        self.layout = Layout("n0:9400", (Series("power_w", Entity("gpu", "n0/gpu0")),))
        self.begun: float | None = None

    async def read(self) -> Sequence[Scrape]:
        now = self.clock()
        if self.begun is None:
            self.begun = now + self.begins_s
        rounds = (now - self.begun - ANSWERS_S) // ROUND_S
        if rounds < 0:
            return []
        at = self.begun + rounds * ROUND_S
        return [Scrape(self.layout.target, at, self.layout, np.array([300.0 + rounds]))]


class Paced(Exporters):
    async def settled(self) -> None:
        await asyncio.sleep(self.begins_s + 0.5)


def daemon_of(loop: VirtualLoop, source: Source, decided: list[tuple[float, float]]) -> Daemon:
    """decided : gets (seconds since the start, age of the newest reading) of every tick."""
    clock = loop_clock(loop, EPOCH)
    daemon = assemble(
        Parts(
            policy=Policy(),
            sources={"http": source},
            record=Record.open(None),
            clock=clock,
            fit=fit_here,
            backends={},
            action_of={},
            pace=Pace(tick_s=ROUND_S),
        )
    )

    def hear(news: object) -> None:
        if isinstance(news, Decision):
            ages = daemon.frames["gpu"].age_s
            decided.append((round(clock() - EPOCH, 3), round(float(ages[0]), 3) if ages.size else -1.0))

    daemon.listeners.append(hear)
    return daemon


def live(paced: bool, begins_s: float = 0.0, ticks: int = 3) -> list[tuple[float, float]]:
    decided: list[tuple[float, float]] = []

    async def story(loop: VirtualLoop) -> None:
        clock = loop_clock(loop, EPOCH)
        source: Source = Paced(clock, begins_s) if paced else Exporters(clock, begins_s)
        await daemon_of(loop, source, decided).run(ticks=ticks)

    run_virtual(story)
    return decided


def test_decisions_follow_the_pages_of_their_own_round() -> None:
    assert live(paced=True) == [(0.5, 0.5), (15.5, 0.5), (30.5, 0.5)]


def test_a_source_without_a_pace_of_its_own_is_not_waited_for_and_its_pages_are_a_round_old() -> None:
    assert live(paced=False) == [(0.0, -1.0), (15.0, 15.0), (30.0, 15.0)]


def test_a_source_that_finds_its_targets_late_is_waited_for_and_for_no_longer_than_three_ticks() -> None:
    assert live(paced=True, begins_s=4.0) == [(4.5, 0.5), (19.5, 0.5), (34.5, 0.5)]
    assert [at for at, _ in live(paced=True, begins_s=1000.0)] == [45.0, 60.0, 75.0]


def test_a_stop_does_not_wait_for_the_first_pages() -> None:
    async def story(loop: VirtualLoop) -> None:
        daemon = daemon_of(loop, Paced(loop_clock(loop, EPOCH), 1000.0), [])
        loop.call_later(2.0, daemon.stop)
        await daemon.run()
        assert loop.time() < 3.0

    run_virtual(story)
