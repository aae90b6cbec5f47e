"""A pool's row: sums over engines, and what others count of it."""

import math

import pytest
from small_frames import frame

from daemon import pools
from daemon.policy import Policy, PoolPolicy

POLICY = Policy(cluster="west", pools=(PoolPolicy("chat"), PoolPolicy("code")))
ENGINES = frame(
    "engine",
    0.0,
    {
        "a:8000": {"running": 4.0, "requests_done_per_s": 3.0},
        "b:8000": {"running": 2.0, "requests_done_per_s": 1.0},
    },
    {"a:8000": {"pool": "chat"}, "b:8000": {"pool": "code"}},
)


def test_nobody_counts_refusals_so_that_they_are_unknown():
    found = pools.frame(ENGINES, POLICY)

    assert math.isnan(found.value("chat", "refused_per_s"))


def test_a_gateway_says_what_it_refused_of_a_pool():
    gateway = frame("pool", 0.0, {"chat": {"refused_per_s": 5.0}, "stats": {"refused_per_s": 1.0}})

    found = pools.frame(ENGINES, POLICY, {"pool": gateway})

    assert found.value("chat", "refused_per_s") == 5.0
    assert math.isnan(found.value("code", "refused_per_s"))
    assert found.entities == ("chat", "code")


def test_an_empty_gateway_says_nothing_of_what_waits_at_silent_engines():
    empty, full = (frame("pool", 0.0, {"chat": {"queue": q}}) for q in (0.0, 7.0))

    assert math.isnan(pools.frame(ENGINES, POLICY, {"pool": empty}).value("chat", "waiting"))
    assert pools.frame(ENGINES, POLICY, {"pool": full}).value("chat", "waiting") == 7.0


def test_what_a_balancer_over_regions_turns_away_is_shared_as_what_is_finished():
    region = frame("region", 0.0, {"west": {"turned_away_per_s": 8.0}, "east": {"turned_away_per_s": 90.0}})

    found = pools.frame(ENGINES, POLICY, {"region": region})

    assert found.value("chat", "refused_per_s") == pytest.approx(6.0)
    assert found.value("code", "refused_per_s") == pytest.approx(2.0)


def test_kv_in_use_is_counted_in_full_replicas_and_a_silent_cache_is_not_empty():
    engines = frame(
        "engine",
        0.0,
        {
            "a:8000": {"running": 4.0, "kv_used_ratio": 0.9},
            "b:8000": {"running": 2.0, "kv_used_ratio": 0.5},
            "c:8000": {"running": 2.0},
            "d:8000": {"running": 2.0},
        },
        {n: {"pool": "code" if n == "d:8000" else "chat"} for n in ("a:8000", "b:8000", "c:8000", "d:8000")},
    )

    found = pools.frame(engines, POLICY)

    assert found.value("chat", "kv_used_replicas") == pytest.approx(3 * 0.7)
    assert math.isnan(found.value("code", "kv_used_replicas"))
