"""A capacity warning is raised by two forecasts and ended with hysteresis."""

import math

import numpy as np
from small_frames import frames

from daemon.model import Finding, Forecast, Severity
from daemon.outlook import LEVELS, PATHS, Outlook, PoolOutlook, frame, pool_frame
from daemon.policy import Policy
from detectors.capacity import CapacityDetector

USABLE = 64.0


def say(
    detector: CapacityDetector,
    made_at: float,
    high: float,
    *,
    median: float = 40.0,
    short_from: int = 80,
    at: float = 0.0,
    learnt_s: float = 86400.0,
) -> list[Finding]:
    """high : GPUs at q90 from hour `short_from` of a week on."""
    hours = np.arange(168)
    needed = {
        0.5: np.where(hours >= short_from, median, 30.0),
        0.9: np.where(hours >= short_from, high, 30.0),
    }
    outlook = Outlook(max(at, made_at), 3600.0, needed, USABLE, made_at, learnt_s)
    return detector.update(frames(outlook.at, frame(outlook, Policy(cluster="c"))))


def test_one_forecast_warns_nobody_and_a_second_one_does():
    detector = CapacityDetector()

    first, second = say(detector, 0.0, 80.0), say(detector, 3600.0, 80.0)

    assert first == []
    assert [(f.kind, str(f.entity), f.severity) for f in second] == [
        ("capacity_short", "cluster c", Severity.WARNING)
    ]
    assert "80 GPUs may be needed" in second[0].text
    assert "80 h" in second[0].text


def test_the_same_forecast_looked_at_twice_counts_once():
    detector = CapacityDetector()

    assert [say(detector, 0.0, 80.0, at=60.0 * k) for k in range(5)] == [[]] * 5


def test_the_warning_stands_between_forecasts():
    detector = CapacityDetector()
    say(detector, 0.0, 80.0)
    say(detector, 3600.0, 80.0)

    assert [len(say(detector, 3600.0, 80.0, at=3600.0 + 60.0 * k)) for k in range(3)] == [1, 1, 1]


def test_it_ends_only_when_the_need_is_clearly_below_what_stands():
    detector = CapacityDetector()
    say(detector, 0.0, 80.0)
    say(detector, 3600.0, 80.0)

    just_below, well_below = say(detector, 7200.0, 63.0), say(detector, 10_800.0, 55.0)

    assert len(just_below) == 1
    assert "nan" not in just_below[0].text
    assert well_below == []


def test_a_need_within_what_stands_raises_nothing():
    detector = CapacityDetector()

    assert [say(detector, 3600.0 * k, 63.0) for k in range(5)] == [[]] * 5


def test_what_was_learnt_from_a_few_hours_warns_nobody():
    detector = CapacityDetector()

    assert [say(detector, 3600.0 * k, 80.0, learnt_s=3600.0) for k in range(5)] == [[]] * 5


def test_an_unknown_future_keeps_quiet():
    detector = CapacityDetector()
    unknown = frame(Outlook(0.0, math.nan, {}, USABLE, math.nan), Policy(cluster="c"))

    assert detector.update(frames(0.0, unknown)) == []


def test_a_median_that_breaches_within_a_day_is_critical():
    detector = CapacityDetector()
    say(detector, 0.0, 90.0, median=70.0, short_from=10)

    found = say(detector, 3600.0, 90.0, median=70.0, short_from=10)

    assert [f.severity for f in found] == [Severity.CRITICAL]


def test_the_levels_the_outlook_gives_are_levels_a_forecast_has():
    made = Forecast(
        0.0, "chat", "concurrency", 3600.0, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95), np.zeros((7, 3))
    )

    assert [made.at_level(level).size for level in LEVELS] == [3, 3, 3]


# -- pools --------------------------------------------------------------------------------------------------


def pool_says(
    detector: CapacityDetector, made_at: float, parts: dict[str, PoolOutlook], usable: float = USABLE
) -> list[Finding]:
    """What is said of an outlook in which the pools' paths are as given."""
    paths = sum((p.needed * p.size for p in parts.values()), np.zeros((PATHS, 168)))
    levels = dict(zip(LEVELS, np.quantile(paths, LEVELS, axis=0), strict=True))
    outlook = Outlook(
        made_at, 3600.0, levels, usable, made_at, 86400.0, paths, np.full(168, usable), 0.0, parts
    )
    policy = Policy(cluster="c")
    return detector.update(frames(made_at, frame(outlook, policy), pool_frame(outlook)))


def rising(share: float, start: float = 2.0, end: float = 8.0) -> np.ndarray:
    """(path, hour) replicas that rise from `start` to `end` on a share of the paths."""
    up = np.linspace(start, end, 168)
    return np.where(np.arange(PATHS)[:, None] < share * PATHS, up, start)


def test_a_pool_that_will_meet_its_own_maximum_is_told_though_gpus_are_left():
    detector = CapacityDetector()
    parts = {
        "chat": PoolOutlook(rising(0.6), 1, 2.0, most=4.0),
        "code": PoolOutlook(rising(0.0), 1, 2.0, most=4.0),
    }

    pool_says(detector, 0.0, parts)
    found = pool_says(detector, 3600.0, parts)

    assert [(str(f.entity), f.kind, f.rule, f.severity) for f in found] == [
        ("pool chat", "capacity_short", "capacity.pool_short", Severity.WARNING)
    ]
    assert found[0].text.startswith("60% chance that chat runs short within 7 days: it may need 8 replicas")
    assert "may have 4; more likely than not by Saturday" in found[0].text
    assert "Raise its maximum to 8 by" in found[0].text


def test_the_pool_that_grows_is_told_beside_the_cluster_and_pages_nobody():
    detector = CapacityDetector()
    parts = {"chat": PoolOutlook(rising(1.0), 8, 2.0), "code": PoolOutlook(rising(0.0), 8, 2.0)}

    pool_says(detector, 0.0, parts, usable=48.0)
    found = pool_says(detector, 3600.0, parts, usable=48.0)

    assert [(str(f.entity), f.severity) for f in found] == [
        ("cluster c", Severity.WARNING),
        ("pool chat", Severity.INFO),
    ]
    assert "48 more GPUs by" in found[1].text


def test_a_pools_warning_needs_two_forecasts_and_ends_with_hysteresis():
    detector = CapacityDetector()

    def at(hour: int, share: float) -> int:
        parts = {"chat": PoolOutlook(rising(share), 1, 2.0, most=4.0)}
        return len(pool_says(detector, 3600.0 * hour, parts))

    assert [at(0, 0.3), at(1, 0.3), at(2, 0.15), at(3, 0.05), at(4, 0.15)] == [0, 1, 1, 0, 0]
