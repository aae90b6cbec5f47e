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


@pytest.mark.parametrize(
    ("first", "between", "late"),
    [(0.1, 0.2, 1 - 0.9 * 0.8), (0.1, math.nan, 0.1), (math.nan, 0.2, 0.2), (math.nan, math.nan, math.nan)],
)
def test_late_is_who_waits_for_the_first_token_or_between_the_others(
    first: float, between: float, late: float
) -> None:
    """A pool that only decodes knows no first tokens, an engine family may not tell of single requests' paces."""
    row = {"ttft_over_ratio": first, "ttft_per_s": 2.0, "tpot_over_ratio": between, "tpot_per_s": 2.0}
    engines = frame("engine", 0.0, {"a:8000": row}, {"a:8000": {"pool": "chat"}})

    found = pools.frame(engines, POLICY).value("chat", "over_slo_ratio")

    assert found == pytest.approx(late, nan_ok=True)


def test_each_replica_counts_by_its_requests() -> None:
    rows = {
        "a:8000": {"tpot_over_ratio": 1.0, "tpot_per_s": 1.0},
        "b:8000": {"tpot_over_ratio": 0.0, "tpot_per_s": 3.0},
        "c:8000": {"tpot_over_ratio": math.nan, "tpot_per_s": 9.0},
    }
    engines = frame("engine", 0.0, rows, {name: {"pool": "chat"} for name in rows})

    assert pools.frame(engines, POLICY).value("chat", "over_slo_ratio") == pytest.approx(0.25)


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
