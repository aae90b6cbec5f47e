"""Disks and memory that run out: found days ahead, and not for what merely swings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from daemon.model import Finding, Frame, Severity
from detectors.exhaustion import SIGNALS, Exhaustion, slopes

GB = 1e9
START = 1_780_000_000.0
SIZE, MEMORY = 1000 * GB, 2000 * GB

Left = Callable[[float], float]


def node(at: float, disk: float, memory: float = MEMORY / 2) -> Frame:
    values = np.array([[SIZE, disk, MEMORY, memory]])
    assert SIGNALS == ("fs_size_bytes", "fs_avail_bytes", "mem_total_bytes", "mem_available_bytes")
    return Frame(at, "node", ("n0",), SIGNALS, values, np.zeros(1))


def lived(hours: float, disk: Left, memory: Left = lambda h: MEMORY / 2) -> tuple[list[Finding], list[float]]:
    """The last claims, and the hours at which something was claimed; a look every five minutes."""
    detector, claimed, found = Exhaustion(), [], []
    for k in range(int(hours * 12)):
        h = k / 12.0
        found = detector.update(node(START + 300.0 * k, disk(h), memory(h)))
        if found:
            claimed.append(h)
    return found, claimed


def test_the_warning_comes_when_three_days_are_left() -> None:
    found, claimed = lived(150.0, lambda h: 900 * GB - 5 * GB * h)

    assert claimed[0] == pytest.approx(180.0 - 72.0 + 2.0, abs=2.5)
    (claim,) = found
    assert (claim.kind, claim.rule, claim.severity) == (
        "running_out",
        "capacity.disk_filling",
        Severity.WARNING,
    )
    left = {e.name: e.value for e in claim.evidence}
    assert left["full_in"] == pytest.approx(30.0, abs=2.0)
    assert left["loss_a_day"] == pytest.approx(120 * GB, rel=0.02)
    assert "full in about" in claim.text
    assert "UTC" in claim.text


@pytest.mark.parametrize(
    ("name", "disk"),
    [
        ("a log that is rotated at midnight", lambda h: 300 * GB - 8 * GB * (h % 24.0)),
        ("one large file", lambda h: 900 * GB if h < 40 else 300 * GB),
        ("a slow growth", lambda h: 900 * GB - 0.5 * GB * h),
        ("noise", lambda h: 200 * GB + 20 * GB * np.sin(17.0 * h)),
        ("a disk that is emptied", lambda h: 100 * GB + 5 * GB * h),
    ],
)
def test_what_only_swings_or_steps_is_quiet(name: str, disk: Left) -> None:
    _, claimed = lived(96.0, disk)

    assert claimed == [], name


def test_a_trend_under_a_daily_swing_is_still_found() -> None:
    found, _ = lived(130.0, lambda h: 700 * GB - 4 * GB * h - 30 * GB * np.sin(2 * np.pi * h / 24.0))

    (claim,) = found
    assert {e.name: e.value for e in claim.evidence}["full_in"] == pytest.approx(45.0, abs=8.0)


def test_host_memory_is_judged_by_its_own_rule_and_hours_left_are_critical() -> None:
    found, _ = lived(46.0, lambda h: SIZE / 2, lambda h: 1000 * GB - 20 * GB * h)

    (claim,) = found
    assert (claim.rule, claim.severity) == ("capacity.memory_filling", Severity.CRITICAL)


def test_it_ends_when_room_is_made() -> None:
    _, claimed = lived(200.0, lambda h: 400 * GB - 4 * GB * h if h < 60 else 900 * GB)

    assert claimed
    assert max(claimed) < 64.0


def test_a_few_hours_and_missing_values_are_no_trend() -> None:
    assert np.isnan(slopes(np.full((5, 2), 1.0))[1]).all()
    past = np.linspace(100.0, 0.0, 60)[:, None] * np.ones(2)
    past[:, 1] = np.nan
    slow, middle, fast = slopes(past)

    assert middle[0] < 0 > slow[0]
    assert np.isnan([slow[1], middle[1], fast[1]]).all()
