"""The forecast benchmark counts what it says, on series of its own making."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from bench.forecast import balanced, origins_in
from bench.warn import Alarm, auc, brier_skill, ramped

ROOT = Path(__file__).parents[2]


def test_scored_origins_lie_in_the_last_third_and_tuned_ones_before_it():
    score, tune = origins_in(2000, "score", 40), origins_in(2000, "tune", 40)

    assert min(score) >= 1400
    assert max(score) <= 2000 - 24
    assert max(tune) <= 1400 - 24
    assert len(score) <= 40


def test_a_family_of_many_series_counts_as_one():
    ratio = {"gpu.spot.a": 0.5, "gpu.spot.b": 0.5, "gpu.spot.c": 0.5, "web.nasa.x": 1.0}

    assert balanced(ratio) == pytest.approx(0.5**0.5)


def test_the_printed_json_has_every_promised_key(tmp_path: Path):
    start = datetime(2026, 6, 1, tzinfo=UTC)
    rng = np.random.default_rng(1)
    for name in ("gpu.town.a", "web.shop.b"):
        t = np.arange(24 * 30)
        y = 100 * (1 + 0.5 * np.sin(2 * np.pi * t / 24)) * (1 + 0.1 * rng.standard_normal(t.size))
        rows = [f"{(start + timedelta(hours=int(k))).isoformat()},{v:.3f}" for k, v in zip(t, y, strict=True)]
        (tmp_path / f"{name}.csv").write_text("timestamp,value\n" + "\n".join(rows) + "\n")

    done = subprocess.run(
        [sys.executable, "-m", "bench.forecast", str(tmp_path), "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    found = json.loads(done.stdout.splitlines()[-1])
    keys = {
        "mase_ratio",
        "wql_ratio_72h",
        "coverage80",
        "worst_series_ratio",
        "seconds_per_series",
        "by_kind",
        "by_series",
    }
    assert keys <= set(found["ours"])
    assert all(keys <= set(row) for row in found["baselines"].values())
    assert set(found["ours"]["mase_ratio"]) == {"1h", "24h", "72h", "168h"}
    assert found["ours"]["mase_ratio"]["72h"] < 1.0
    assert found["baselines"]["weekly_naive"]["mase_ratio"]["72h"] == 1.0
    assert set(found["ours"]["by_kind"]) == {"gpu", "web"}


def test_order_and_chance_are_judged_as_they_should():
    chance, came = np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False])

    assert auc(chance, came) == 1.0
    assert auc(1.0 - chance, came) == 0.0
    assert brier_skill(chance, came) == pytest.approx(1 - 0.025 / 0.25)


def test_an_alarm_needs_two_in_a_row_and_rings_once():
    alarm = Alarm()

    heard = [alarm.hear(c) for c in (0.5, 0.1, 0.5, 0.5, 0.3, 0.1, 0.5)]

    assert heard == [False, False, False, True, False, False, False]


def test_a_ramp_grows_from_its_start_by_the_day():
    assert ramped(np.ones(72), 24, 0.05)[[0, 24, 48]].tolist() == [1.0, 1.0, 1.05]
