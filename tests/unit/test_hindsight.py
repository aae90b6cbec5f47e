"""Forecasts are kept, scored when their time has come, and replaced when they fail."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest

from daemon.archive import Kept, Score
from daemon.foresight import Foresight, hourly_from
from daemon.hindsight import BLEND, NAIVE, chance_above, choose, score, standing, standings
from daemon.model import Entity, Forecast, Incident, Severity, Track
from daemon.outlook import along
from daemon.record import Record

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
DAY = 86400.0
HOUR = 3600.0
START = 1_780_272_000.0


def band(middle: float, width: float = 10.0, steps: int = 168) -> np.ndarray:
    """Quantiles that stay where they are, `width` from the median to the 90 % level."""
    away = np.array([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]) * width
    return np.repeat((middle + away)[:, None], steps, axis=1)


def kept(at: float, ours: float = 100.0, naive: float = 90.0, chosen: str = BLEND, **more: float) -> Kept:
    return Kept(
        "chat", "concurrency", at, HOUR, chosen, LEVELS, {BLEND: band(ours), NAIVE: band(naive)}, **more
    )


def elapsed(at: float, ratio: float, chosen: str = BLEND) -> Kept:
    """A kept forecast whose blend was `ratio` times as far off as weekly naive."""
    scores = {
        BLEND: Score(ratio * 100.0, 100.0, 10.0, 1000.0, 50, 72),
        NAIVE: Score(100.0, 100.0, 10.0, 1000.0, 50, 72),
    }
    return replace(kept(at, chosen=chosen), scores=scores)


def week_of(ratio: float, chosen: str = BLEND) -> list[Kept]:
    return [elapsed(START + k * DAY / 4, ratio, chosen) for k in range(28)]


# -- scoring ---------------------------------------------------------------------------------------------


def test_a_forecast_is_scored_against_what_came():
    found = score(kept(START, ours=100.0, naive=80.0), np.full(168, 105.0))

    assert found[BLEND].error == pytest.approx(72 * 5.0)
    assert found[BLEND].naive_error == pytest.approx(72 * 25.0)
    assert (found[BLEND].inside, found[NAIVE].inside) == (72, 0)
    assert found[BLEND].loss < found[NAIVE].loss


def test_hours_that_were_not_measured_are_left_out():
    truth = np.full(72, math.nan)
    truth[:10] = 100.0

    found = score(kept(START), truth)

    assert found[BLEND].hours == 10
    assert score(kept(START), np.full(72, math.nan)) == {}


def test_the_chance_of_high_demand_is_judged_by_brier():
    sure = kept(START, threshold=103.0, chance=0.9)

    came, missed = score(sure, np.full(72, 105.0)), score(sure, np.full(72, 100.0))

    assert came[BLEND].brier == pytest.approx(0.01)
    assert missed[BLEND].brier == pytest.approx(0.81)
    assert standing([came[BLEND], missed[BLEND]]).brier_skill == pytest.approx(1 - 0.41 / 0.25)
    assert math.isnan(standing([came[BLEND]]).brier_skill)  # it always came: no chance to show skill


def test_nothing_elapsed_is_no_standing():
    assert math.isnan(standing([]).ratio)
    assert standings([kept(START)]) == {}


# -- choosing ---------------------------------------------------------------------------------------------


def test_a_week_of_worse_forecasts_falls_back_to_weekly_naive_and_says_so():
    name, why = choose(week_of(1.12), START + 7 * DAY + 3 * DAY)

    assert name == NAIVE
    assert (
        why
        == "falls back to repeating the week before: over the last week the blend was 1.12 times as far off"
    )


def test_half_a_bad_week_is_no_reason():
    week = week_of(1.2)[:14] + [elapsed(k.at, 0.9) for k in week_of(1.0)[14:]]

    assert choose(week, START + 10 * DAY) == (BLEND, "")


def test_the_blend_comes_back_only_when_it_was_no_worse():
    still, better = week_of(1.03, chosen=NAIVE), week_of(0.95, chosen=NAIVE)

    assert choose(still, START + 10 * DAY)[0] == NAIVE
    assert choose(better, START + 10 * DAY) == (BLEND, "")


def test_a_few_elapsed_forecasts_decide_nothing():
    assert choose(week_of(2.0)[:7], START + 10 * DAY) == (BLEND, "")


def test_a_sites_own_forecaster_is_used_once_its_loss_was_clearly_less():
    own = Score(80.0, 100.0, 8.0, 1000.0, 60, 72)
    week = [replace(k, scores={**(k.scores or {}), "oracle": own}) for k in week_of(0.9)]

    name, why = choose(week, START + 10 * DAY)

    assert name == "oracle"
    assert why == "oracle is used: its quantile loss was 0.80 of the blend's"


# -- the archive --------------------------------------------------------------------------------------------


def test_what_was_kept_is_read_back_and_scored_once():
    record = Record.open(None)
    record.archive.keep(kept(START, threshold=120.0, chance=0.25))

    (due,) = record.archive.due(START)
    record.archive.scored(due, score(due, np.full(72, 101.0)))
    (again,) = record.archive.since("chat", "concurrency", START)

    assert np.allclose(due.quantiles[BLEND], band(100.0))
    assert (due.threshold, due.chance, due.levels) == (120.0, 0.25, LEVELS)
    assert record.archive.due(START) == []
    assert again.scores is not None
    assert again.scores[BLEND].hours == 72
    record.close()


def test_old_forecasts_are_forgotten():
    record = Record.open(None)
    record.archive.keep(kept(START))

    record.prune(START + 60 * DAY)

    assert record.archive.made_before("chat", "concurrency", START + 60 * DAY) is None
    record.close()


# -- the whole way ------------------------------------------------------------------------------------------


class Fitter:
    """A fit that says what it is told, and remembers what it was asked."""

    def __init__(self, level: float) -> None:
        self.level = level
        self.asked: list[Track] = []

    async def __call__(self, track: Track, horizon_s: float) -> Forecast:
        self.asked.append(track)
        at = track.until // HOUR * HOUR
        return Forecast(
            at,
            track.target,
            track.signal,
            HOUR,
            LEVELS,
            band(self.level),
            "blend",
            rivals={NAIVE: band(110.0)},
        )


def measured(record: Record, days: float, value: float = 100.0, ready: float = 2.0) -> None:
    at = START + HOUR * np.arange(int(days * 24))
    record.rollup(("pool", "chat", "concurrency", t, value, value, 12.0) for t in at)
    record.rollup(("pool", "chat", "ready", t, ready, ready, 12.0) for t in at)


def test_a_forecaster_that_stays_wrong_is_replaced_after_a_week_of_scores():
    record = Record.open(None)
    measured(record, 20)
    fitter = Fitter(level=130.0)
    foresight = Foresight(record, fitter, 168 * HOUR, 30 * DAY)

    async def live() -> list[Forecast | None]:
        found = []
        for step in range(4 * 14):
            at = START + 2 * DAY + step * 6 * HOUR
            foresight.look_back(at)
            found.append(await foresight.of("chat", ["chat"], at))
        return found

    found = asyncio.run(live())

    used = [f.model for f in found if f is not None]
    assert used[:32] == ["blend"] * 32  # nothing has been elapsed for a week yet
    assert used[-1] == NAIVE
    assert "falls back to repeating the week before" in foresight.notes["chat"]
    assert foresight.standings["chat", "concurrency"][BLEND].number >= 8
    record.close()


def test_hours_in_which_no_replica_was_ready_are_unknown_demand():
    record = Record.open(None)
    measured(record, 2, value=0.0, ready=0.0)
    fitter = Fitter(level=1.0)

    asyncio.run(Foresight(record, fitter, 168 * HOUR, 30 * DAY).of("chat", ["chat"], START + 2 * DAY))

    assert np.isnan(fitter.asked[0].values).all()
    record.close()


def incident(kind: str, begun: float, ended: float) -> Incident:
    scope = Entity("node", "n1")
    return Incident("i1", kind, scope, begun, ended, Severity.CRITICAL, (), state="closed", closed=ended)


def test_hours_in_which_an_incident_had_taken_half_of_the_replicas_teach_no_demand():
    record = Record.open(None)
    measured(record, 4)
    lost = START + 3 * DAY + HOUR * np.arange(6)
    record.rollup(("pool", "chat", "ready", t, 1.0, 1.0, 12.0) for t in lost)
    record.incident(lost[0], incident("gpu_lost", lost[0] + 60.0, lost[4]))
    fitter = Fitter(level=1.0)
    foresight = Foresight(
        record, fitter, 168 * HOUR, 30 * DAY, scopes=lambda entity: {entity, Entity("pool", "chat")}
    )

    asyncio.run(foresight.of("chat", ["chat"], START + 4 * DAY))

    track = fitter.asked[0]
    assert track.at[np.isnan(track.values)].tolist() == lost[1:4].tolist()  # whole hours while it stood
    record.close()


@pytest.mark.parametrize(
    ("found", "scopes"),
    [
        (None, {Entity("pool", "chat")}),
        (incident("gpu_lost", START + 3 * DAY, START + 4 * DAY), {Entity("pool", "code")}),
        (incident("capacity_short", START + 3 * DAY, START + 4 * DAY), {Entity("pool", "chat")}),
    ],
    ids=["scaled down by itself", "of another pool", "a forecast"],
)
def test_fewer_replicas_alone_hide_no_demand(found: Incident | None, scopes: set[Entity]):
    record = Record.open(None)
    measured(record, 4)
    night = START + 3 * DAY + HOUR * np.arange(6)
    record.rollup(("pool", "chat", "ready", t, 1.0, 1.0, 12.0) for t in night)
    if found is not None:
        record.incident(found.opened, found)
    fitter = Fitter(level=1.0)

    asyncio.run(
        Foresight(record, fitter, 168 * HOUR, 30 * DAY, scopes=lambda entity: scopes).of(
            "chat", ["chat"], START + 4 * DAY
        )
    )

    assert np.isfinite(fitter.asked[0].values).all()
    record.close()


def test_a_young_pool_is_given_the_longest_known_one_as_its_sibling():
    record = Record.open(None)
    measured(record, 20)
    now = START + 20 * DAY
    record.rollup([("pool", "new", "concurrency", now - HOUR, 5.0, 5.0, 12.0)])
    fitter = Fitter(level=1.0)

    asyncio.run(Foresight(record, fitter, 168 * HOUR, 30 * DAY).of("new", ["chat", "new"], now))

    assert fitter.asked[0].sibling_name == "chat"
    assert fitter.asked[0].sibling_at.size == 20 * 24
    record.close()


# -- paths --------------------------------------------------------------------------------------------------


def test_a_path_goes_through_the_bands_by_its_rank():
    quantiles = band(100.0, steps=3)

    found = along(quantiles, LEVELS, np.array([[0.5, 0.9, 0.7], [0.1, 0.05, 0.95]]))

    assert found[0] == pytest.approx([100.0, 110.0, 104.0])
    assert found[1] == pytest.approx([90.0, 85.0, 115.0])


def test_the_chance_is_the_share_of_paths_that_pass():
    ranks = np.repeat(((np.arange(80) + 0.5) / 80)[:, None], 168, axis=1)
    made = Forecast(START, "chat", "concurrency", HOUR, LEVELS, band(100.0), ranks=ranks)

    assert chance_above(made, 110.0) == pytest.approx(0.1)
    assert math.isnan(chance_above(replace(made, ranks=np.empty((0, 0))), 110.0))


def test_rows_become_hours_with_gaps_unknown():
    found = hourly_from(START, START + np.array([0.0, 1800.0, 7200.0]), np.array([1.0, 3.0, 5.0]), 4)

    assert found[[0, 2]].tolist() == [2.0, 5.0]
    assert np.isnan(found[[1, 3]]).all()
