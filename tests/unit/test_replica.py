"""What a replica can carry, learnt from what engines tell."""

import math

import numpy as np
import pytest
from small_frames import frame

from daemon.policy import PoolPolicy
from daemon.replica import KV_TARGET, Learnt, learn

POOL = PoolPolicy("chat", replicas_max=20, cold_start_s=120.0)


def engines(**columns: float):
    return frame("engine", 1000.0, {f"e{k}": columns for k in range(4)})


def learnt_from(before: float = math.nan, **columns: float) -> float:
    learnt = Learnt(capacity=before, minutes=0 if math.isnan(before) else 60)
    learn(learnt, engines(**columns), np.ones(4, dtype=bool), POOL)
    return learnt.capacity


def test_capacity_is_where_the_cache_would_be_full():
    assert learnt_from(running=10.0, waiting=0.0, kv_used_ratio=0.4) == pytest.approx(10.0 * KV_TARGET / 0.4)


def test_requests_that_wait_beside_an_empty_cache_show_the_cap_on_sequences():
    assert learnt_from(running=64.0, waiting=5.0, kv_used_ratio=0.3) == 64.0


def test_a_missed_objective_under_load_lowers_what_is_believed():
    late = {"running": 30.0, "waiting": 2.0, "kv_used_ratio": 0.9, "ttft_p95_s": 2 * POOL.ttft_slo_s}

    assert learnt_from(**late) < 30.0 * KV_TARGET / 0.9


def test_a_long_prompt_that_is_late_on_an_idle_replica_says_nothing_of_its_capacity():
    late = {"running": 30.0, "waiting": 0.0, "kv_used_ratio": 0.2, "ttft_p95_s": 2 * POOL.ttft_slo_s}

    assert learnt_from(**late) == pytest.approx(30.0 * KV_TARGET / 0.2)


def test_the_first_minutes_count_alike():
    learnt = Learnt()
    for running in (6.0, 36.0, 36.0):
        learn(learnt, engines(running=running, waiting=2.0, kv_used_ratio=0.1), np.ones(4, dtype=bool), POOL)

    assert learnt.capacity == pytest.approx((6.0 + 36.0 + 36.0) / 3)


def test_bad_news_is_believed_faster_than_good_news():
    worse = 100.0 - learnt_from(100.0, running=10.0, waiting=0.0, kv_used_ratio=0.8)
    better = learnt_from(100.0, running=38.0, waiting=0.0, kv_used_ratio=0.16) - 100.0

    assert worse > 3 * better > 0


@pytest.mark.parametrize(
    "columns",
    [{}, {"running": 0.0, "kv_used_ratio": 0.0, "waiting": 0.0}, {"running": math.nan, "kv_used_ratio": 0.5}],
)
def test_an_idle_or_silent_replica_teaches_nothing(columns: dict[str, float]):
    assert learnt_from(77.0, **columns) == 77.0
