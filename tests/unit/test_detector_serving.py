"""Serving trouble by two witnesses, the engine's page and the gateway, and by what the pool's clients felt."""

from collections.abc import Mapping

import numpy as np
import pytest
from small_frames import frame, frames, kinds, last

from daemon.model import Finding, Frames, Severity
from detectors.serving import ServingDetector

ENGINES = ("e0", "e1", "e2", "e3")
TICK = 15.0
USUAL = {
    "running": 20.0, "waiting": 0.0, "kv_used_ratio": 0.5, "preemptions_per_s": 0.0, "generation_tokens_s": 900.0,
    "lb_sessions": 20.0, "lb_done_per_s": 2.0, "lb_up": 1.0,
}  # fmt: skip


def given(
    at: float,
    odd: Mapping[str, Mapping[str, float]] | None = None,
    *,
    pool: Mapping[str, float] | None = None,
    dead_pages: tuple[str, ...] = (),
) -> Frames:
    rows = {e: USUAL | dict((odd or {}).get(e, {})) for e in ENGINES}
    for page in dead_pages:
        rows[page] = {k: v for k, v in rows[page].items() if k.startswith("lb_")}
    facts = {e: {"pool": "chat", "target": f"{e}:8000"} for e in ENGINES}
    usual = {"waiting": 0.0, "running": 80.0, "over_slo_ratio": 0.001, "ttft_p95_s_max": 0.4}
    target = {
        f"{e}:8000": {"silent_s": 90.0 if e in dead_pages else 5.0, "fails": 6.0 if e in dead_pages else 0.0}
        for e in ENGINES
    }
    return frames(
        at,
        frame("engine", at, rows, facts),
        frame("pool", at, {"chat": usual | dict(pool or {})}),
        frame("target", at, target),
    )


def say(ticks: int, odd: Mapping[str, Mapping[str, float]] | None = None, **more: object) -> list[Finding]:
    """The last word after some healthy ticks and then `ticks` of trouble."""
    detector = ServingDetector()
    last(detector, (given(TICK * k) for k in range(4)))
    return last(detector, (given(TICK * k, odd, **more) for k in range(4, 4 + ticks)))  # type: ignore[arg-type]


def test_serving_as_usual_is_quiet():
    assert say(40) == []


# -- engines ------------------------------------------------------------------------------------------------

HUNG = {"e1": {"running": 0.0, "generation_tokens_s": 0.0, "lb_sessions": 35.0, "lb_done_per_s": 0.0}}


def test_an_engine_that_looks_idle_while_its_sessions_pile_up_hangs():
    found = say(3, HUNG)

    assert kinds(found) == [("engine_hung", "engine e1")]
    assert found[0].severity is Severity.CRITICAL


def test_one_tick_without_a_completion_is_no_hang():
    assert say(1, HUNG) == []


def test_long_answers_that_still_give_tokens_are_no_hang():
    assert say(8, {"e1": {"lb_done_per_s": 0.0, "generation_tokens_s": 900.0}}) == []


def test_an_idle_engine_is_no_hung_engine():
    idle = {"running": 0.0, "generation_tokens_s": 0.0, "lb_sessions": 0.0, "lb_done_per_s": 0.0}

    assert say(40, {"e1": idle}) == []


def test_a_dead_page_with_healthy_serving_is_no_fault_of_the_engine():
    assert say(8, dead_pages=("e1",)) == []


def test_a_dead_page_and_no_completions_is_a_dead_engine():
    found = say(3, {"e1": {"lb_done_per_s": 0.0, "lb_sessions": 0.0}}, dead_pages=("e1",))

    assert kinds(found) == [("engine_down", "engine e1")]


def test_an_engine_the_gateway_took_out_needs_no_page_from_us():
    found = say(2, {"e1": {"lb_up": 0.0, "lb_sessions": 0.0, "lb_done_per_s": 0.0}}, dead_pages=("e1",))

    assert kinds(found) == [("engine_out", "engine e1")]


def test_an_engine_that_loads_its_weights_is_starting_and_not_down():
    detector = ServingDetector()
    starting = {"e1": {"lb_up": 0.0, "lb_sessions": 0.0, "lb_done_per_s": 0.0}}

    early = last(detector, (given(TICK * k, starting, dead_pages=("e1",)) for k in range(40)))
    late = last(detector, (given(TICK * k, starting, dead_pages=("e1",)) for k in range(40, 70)))

    assert early == []
    assert [f.entity.name for f in late] == ["e1"]


# -- caches and queues -----------------------------------------------------------------------------------------


def test_a_full_cache_that_keeps_nobody_waiting_is_well_used():
    assert say(60, {e: {"kv_used_ratio": 0.97} for e in ENGINES}) == []


def test_half_the_pool_with_full_caches_and_queues_is_the_pools_trouble():
    full = {"kv_used_ratio": 0.97, "waiting": 6.0}

    assert kinds(say(1, {e: full for e in ENGINES[:2]})) == [("kv_saturated", "pool chat")]


def test_one_replica_with_a_full_cache_is_its_own_trouble_once_it_lasts():
    full = {"e2": {"kv_used_ratio": 0.97, "waiting": 6.0}}

    assert say(10, full) == []
    assert kinds(say(30, full)) == [("kv_saturated", "engine e2")]


def test_preemptions_at_a_full_cache_are_thrashing_and_elsewhere_are_not():
    def thrash(kv: float) -> Mapping[str, Mapping[str, float]]:
        return {e: {"kv_used_ratio": kv, "preemptions_per_s": 0.5} for e in ENGINES}

    assert ("kv_thrash", "pool chat") in kinds(say(1, thrash(0.9)))
    assert ("kv_thrash", "pool chat") not in kinds(say(1, thrash(0.4)))


def test_a_queue_is_trouble_when_clients_feel_it():
    felt = say(1, pool={"waiting": 60.0, "over_slo_ratio": 0.2})
    unfelt = say(1, pool={"waiting": 60.0, "over_slo_ratio": 0.0})
    short = say(1, pool={"waiting": 2.0, "over_slo_ratio": 0.2})

    assert kinds(felt) == [("queue_growth", "pool chat")]
    assert unfelt == []
    assert short == []


def test_one_replica_with_most_of_the_load_is_uneven():
    assert ("imbalance", "pool chat") in kinds(say(1, {"e0": {"running": 90.0}}))


# -- objectives ------------------------------------------------------------------------------------------------


def burn(over: list[float]) -> list[Finding]:
    detector = ServingDetector()
    return last(detector, (given(TICK * k, pool={"over_slo_ratio": v}) for k, v in enumerate(over)))


def test_a_fast_burn_is_critical_within_minutes():
    found = [f for f in burn([0.0] * 20 + [0.5] * 16) if f.kind == "slo_burn"]

    assert [f.severity for f in found] == [Severity.CRITICAL]


def test_a_minute_of_misses_burns_nothing():
    assert burn([0.0] * 20 + [0.5] * 4) == []


def test_a_slow_burn_is_a_warning_after_the_better_part_of_an_hour():
    early = burn([0.0] * 20 + [0.10] * 40)
    late = burn([0.0] * 20 + [0.10] * 300)

    assert early == []
    assert [(f.kind, f.severity) for f in late] == [("slo_burn", Severity.WARNING)]


def test_a_burn_that_is_over_is_no_longer_claimed():
    assert burn([0.0] * 20 + [0.5] * 16 + [0.0] * 12) == []


def test_missing_latencies_neither_burn_nor_heal():
    found = burn([0.0] * 20 + [0.5] * 16 + [float("nan")] * 8)

    assert [f.kind for f in found] == ["slo_burn"]


@pytest.mark.parametrize("signal", sorted(USUAL))
def test_a_signal_nobody_exports_is_unknown_and_never_trouble(signal: str):
    assert say(20, {e: {signal: np.nan} for e in ENGINES}) == []
