"""Disks and memory that run out: found days ahead, and not for what merely swings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from small_frames import frame, frames

from daemon.model import Finding, Frame, Severity
from detectors.exhaustion import Exhaustion, slopes

GB = 1e9
START = 1_780_000_000.0
SIZE, MEMORY = 1000 * GB, 2000 * GB
SIGNALS = ("fs_size_bytes", "fs_avail_bytes", "mem_total_bytes", "mem_available_bytes")

Left = Callable[[float], float]


def node(at: float, disk: float, memory: float = MEMORY / 2) -> Frame:
    values = np.array([[SIZE, disk, MEMORY, memory]])
    return Frame(at, "node", ("n0",), SIGNALS, values, np.zeros(1))


def lived(hours: float, disk: Left, memory: Left = lambda h: MEMORY / 2) -> tuple[list[Finding], list[float]]:
    """The last claims, and the hours at which something was claimed; a look every five minutes."""
    detector, claimed, found = Exhaustion(), [], []
    for k in range(int(hours * 12)):
        h = k / 12.0
        found = detector.update(frames(START + 300.0 * k, node(START + 300.0 * k, disk(h), memory(h))))
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


def kv_lived(hours: float, used: Left) -> list[Finding]:
    """The last claims about a pool whose KV caches are used to the share `used` on average; a look every five minutes."""
    detector, found = Exhaustion(), []
    for k in range(int(hours * 12)):
        at = START + 300.0 * k
        pool = frame("pool", at, {"chat": {"kv_used_ratio_mean": used(k / 12.0), "ready": 4.0}})
        found = detector.update(frames(at, pool))
    return found


def tide(h: float) -> float:
    return 0.15 * np.sin(2 * np.pi * h / 24.0)


def test_a_kv_cache_that_fills_by_its_daily_peaks_is_told_days_ahead() -> None:
    (claim,) = kv_lived(132.0, lambda h: 0.4 + 0.06 * h / 24.0 + tide(h))

    assert (str(claim.entity), claim.rule) == ("pool chat", "capacity.kv_filling")
    seen = {e.name: e.value for e in claim.evidence}
    # 0.73 on average now, 0.15 more at the day's peak: the peak will find the cache full.
    assert seen["kv_left"] == pytest.approx(1.0 - 0.865, abs=0.02)
    assert seen["full_in"] == pytest.approx(54.0, abs=8.0)
    assert "the KV cache of chat loses 6.0% a day and has" in claim.text


def test_a_kv_cache_that_swings_with_the_day_is_quiet() -> None:
    assert kv_lived(96.0, lambda h: 0.6 + 2.0 * tide(h)) == []


def test_a_pool_without_kv_telemetry_is_unknown_and_quiet() -> None:
    assert kv_lived(72.0, lambda h: float("nan")) == []


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
