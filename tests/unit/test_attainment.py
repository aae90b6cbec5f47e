"""The objective a pool attained, as it was measured and not as it was complained of."""

from __future__ import annotations

import math

import pytest

from daemon.record import Record
from daemon.web.attainment import attained

HOUR = 3600.0


def kept(*rows: tuple[float, float, float]) -> Record:
    """(minutes, share over the objective, requests a second) of five minutes each; NaN = not measured."""
    record = Record.open(None)
    for minutes, late, done in rows:
        at = minutes * 60.0
        for signal, value in (("over_slo_ratio", late), ("requests_done_per_s", done)):
            record.rollup([("pool", "chat", signal, at, value, value, 20.0)])
    return record


def test_requests_count_and_not_minutes() -> None:
    met = attained(kept((0, 0.0, 90.0), (5, 0.5, 10.0)), "chat", 0.0, HOUR)

    assert met.ratio == pytest.approx(0.95)
    assert met.late.tolist() == pytest.approx([0.05, math.nan, math.nan, math.nan], nan_ok=True)


def test_time_without_a_measurement_is_neither_good_nor_bad() -> None:
    met = attained(kept((0, 0.1, 10.0), (35, 0.3, 10.0)), "chat", 0.0, HOUR)

    assert met.ratio == pytest.approx(0.8)
    assert met.measured_ratio == 0.5
    assert [math.isnan(v) for v in met.late.tolist()] == [False, True, False, True]
    assert met.at.tolist() == [0.0, 900.0, 1800.0, 2700.0]


def test_where_nobody_counts_requests_every_stretch_weighs_alike() -> None:
    met = attained(kept((0, 0.2, math.nan), (5, 0.0, math.nan)), "chat", 0.0, HOUR)

    assert met.ratio == pytest.approx(0.9)


def test_nothing_measured_is_unknown() -> None:
    met = attained(kept(), "chat", 0.0, 2 * HOUR)

    assert math.isnan(met.ratio)
    assert met.measured_ratio == 0.0
