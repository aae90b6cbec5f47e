"""Serving trouble by two witnesses, the engine's page and the gateway, and by what the pool's clients felt."""

from collections.abc import Callable, Mapping

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
    node: Mapping[str, float] | None = None,
    dead_pages: tuple[str, ...] = (),
    failing: tuple[str, ...] = (),
) -> Frames:
    """dead_pages : silent for long. failing : the last scrape alone was lost."""
    rows = {e: USUAL | dict((odd or {}).get(e, {})) for e in ENGINES}
    for page in dead_pages:
        rows[page] = {k: v for k, v in rows[page].items() if k.startswith("lb_")}
    facts = {e: {"pool": "chat", "target": f"{e}:8000"} for e in ENGINES}
    usual = {"waiting": 0.0, "running": 80.0, "over_slo_ratio": 0.001, "ttft_p95_s_max": 0.4}
    target = {
        f"{e}:8000": {
            "silent_s": 90.0 if e in dead_pages else 5.0,
            "fails": 6.0 if e in dead_pages else float(e in failing),
        }
        for e in ENGINES
    }
    return frames(
        at,
        frame("engine", at, rows, facts),
        frame("pool", at, {"chat": usual | dict(pool or {})}),
        frame("target", at, target),
        frame("node", at, {"n0": node} if node else {}),
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


def test_one_scrape_is_enough_where_many_requests_should_have_completed_in_it():
    found = say(1, HUNG)

    assert kinds(found) == [("engine_hung", "engine e1")]
    assert next(e.value for e in found[0].evidence if e.name == "completions_missed") == pytest.approx(30.0)
    assert found[0].p < 1e-10


def test_one_scrape_without_a_completion_is_no_hang_where_few_were_due():
    detector = ServingDetector()
    rare = {"e1": {"lb_done_per_s": 0.1}}
    last(detector, (given(TICK * k, rare) for k in range(40)))

    first, second = (detector.update(given(TICK * k, HUNG)) for k in (40, 41))

    assert first == []
    assert kinds(second) == [("engine_hung", "engine e1")]


def test_a_hang_is_the_surer_the_longer_it_lasts():
    """About eight completions missed in one scrape are too few among hundreds of engines; those of four are not."""
    detector = ServingDetector()
    usual = {"e1": {"lb_done_per_s": 0.55}}
    last(detector, (given(TICK * k, usual) for k in range(40)))

    chances = [detector.update(given(TICK * k, HUNG))[0].p for k in range(40, 44)]

    assert chances[0] > 1e-4
    assert chances[3] < 1e-12


def test_a_replica_that_has_just_come_in_has_nothing_to_complete_yet():
    """A deploy: drained, restarted, in again with a page that is not yet read. What it did before says nothing of now."""
    detector = ServingDetector()
    last(detector, (given(TICK * k) for k in range(4)))
    left = {"lb_done_per_s": 0.0, "lb_sessions": 0.0}
    last(detector, (given(TICK * k, {"e1": left | {"lb_up": 0.0}}, dead_pages=("e1",)) for k in range(4, 10)))
    again = {"e1": {"lb_done_per_s": 0.0, "lb_sessions": 10.0}}

    fresh = [given(TICK * k, again, failing=("e1",)) for k in range(10, 14)]

    assert all(detector.update(each) == [] for each in fresh)
    still = last(detector, (given(TICK * k, again, failing=("e1",)) for k in range(14, 17)))
    assert kinds(still) == [("engine_hung", "engine e1")]


def test_the_last_requests_of_a_drained_replica_may_take_their_time():
    """Three sessions of twenty: not two completions a second are due any more. One scrape of its page is lost."""
    drained = {"e1": {"lb_done_per_s": 0.0, "lb_sessions": 3.0}}

    assert say(1, drained, failing=("e1",)) == []
    assert kinds(say(4, drained, failing=("e1",))) == [("engine_hung", "engine e1")]


@pytest.mark.parametrize(
    ("error", "others_answer", "cause"),
    [
        ("connection refused", True, "killed"),
        ("no answer within 12 s", True, "frozen"),
        ("no answer within 12 s", False, "network"),
    ],
)
def test_a_page_that_is_gone_is_told_apart(error: str, others_answer: bool, cause: str):
    usual = given(TICK)
    engine = frame(
        "engine",
        TICK,
        {"e1": {"lb_done_per_s": 0.0, "lb_sessions": 4.0, "lb_up": 1.0}},
        {"e1": {"pool": "chat", "target": "e1:8000", "node": "n1"}},
    )
    pages = {
        "e1:8000": {"silent_s": 60.0, "fails": 4.0},
        "n1:9100": {"silent_s": 5.0, "fails": 0.0 if others_answer else 4.0},
    }
    facts = {"e1:8000": {"node": "n1", "error": error}, "n1:9100": {"node": "n1"}}
    detector = ServingDetector()
    detector.update(usual)

    found = detector.update(frames(2 * TICK, engine, frame("target", 2 * TICK, pages, facts)))

    down = [f for f in found if f.kind == "engine_down"]
    assert [f.text.split(":")[0] for f in down] == [cause]
    assert down[0].rejected == ("a sick exporter: the gateway sees nothing completed either",)


def test_without_a_gateway_a_hang_takes_more_than_a_minute_and_is_less_sure():
    alone = {
        e: {"lb_sessions": np.nan, "lb_done_per_s": np.nan, "lb_up": np.nan, "generation_tokens_s": 0.0}
        for e in ENGINES[1:2]
    }

    early, late = say(4, alone), say(8, alone)

    assert early == []
    assert [(f.kind, f.score, f.severity) for f in late] == [("engine_hung", 0.6, Severity.WARNING)]


def test_how_long_a_start_takes_is_learnt_from_the_starts_of_its_pool():
    detector = ServingDetector()
    at = 0.0
    last(detector, (given(TICK * k) for k in range(4)))
    for start in range(3):
        newcomer = f"x{start}"
        for k in range(8):
            at = 1000.0 * (start + 1) + TICK * k
            rows = {e: dict(USUAL) for e in ENGINES} | {newcomer: {"lb_up": 0.0} if k < 6 else dict(USUAL)}
            facts = {e: {"pool": "chat", "target": f"{e}:8000"} for e in rows}
            detector.update(
                frames(at, frame("engine", at, rows, facts), given(at)["pool"], given(at)["target"])
            )

    assert detector.witnesses.starts == {"chat": [90.0, 90.0, 90.0]}
    assert detector.witnesses.patience_s("chat", 900.0) == 180.0
    assert detector.witnesses.patience_s("other", 900.0) == 900.0


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


def test_a_drained_engine_that_goes_with_its_page_has_not_died():
    drained = {"lb_done_per_s": 0.0, "lb_sessions": 0.0, "lb_weight": 0.0}
    held = drained | {"lb_sessions": 5.0}

    assert say(3, {"e1": drained}, dead_pages=("e1",)) == []
    assert ("engine_down", "engine e1") in kinds(say(3, {"e1": held}, dead_pages=("e1",)))


def test_a_page_gone_for_two_scrapes_is_believed_at_once_where_the_gateway_confirms_it():
    assert kinds(say(1, {"e1": {"lb_done_per_s": 0.0, "lb_sessions": 0.0}}, dead_pages=("e1",))) == [
        ("engine_down", "engine e1")
    ]


def test_a_page_gone_where_no_gateway_can_tell_must_stay_gone():
    blind = {"e1": {"lb_done_per_s": np.nan, "lb_sessions": np.nan, "lb_up": np.nan}}

    assert say(1, blind, dead_pages=("e1",)) == []
    assert kinds(say(2, blind, dead_pages=("e1",))) == [("engine_down", "engine e1")]
    assert say(2, blind, dead_pages=("e1",))[0].rejected == ()


def test_a_frozen_engine_hangs_whatever_its_page_said_before_it_stopped_answering():
    """Its last page showed tokens. The page failed once since, and the gateway holds sessions and completes none."""
    detector = ServingDetector()
    last(detector, (given(TICK * k) for k in range(4)))
    rows = {e: dict(USUAL) for e in ENGINES} | {"e1": USUAL | {"lb_done_per_s": 0.0, "lb_sessions": 31.0}}
    facts = {e: {"pool": "chat", "target": f"{e}:8000"} for e in ENGINES}
    pages = {f"{e}:8000": {"silent_s": 5.0, "fails": float(e == "e1")} for e in ENGINES}

    found = detector.update(
        frames(4 * TICK, frame("engine", 4 * TICK, rows, facts), frame("target", 4 * TICK, pages))
    )

    assert kinds(found) == [("engine_hung", "engine e1")]


# -- crowds ---------------------------------------------------------------------------------------------------

QUIET = {
    "running": 3.0, "generation_tokens_s": 130.0, "prompt_tokens_s": 3000.0, "lb_sessions": 3.0, "lb_done_per_s": 2.7,
}  # fmt: skip
SLOW = {"running": 10.0, "generation_tokens_s": 130.0, "lb_sessions": 10.0, "lb_done_per_s": 2.7}


def crowd(
    odd: Mapping[str, float],
    looks: int = 1,
    age_s: float = 0.0,
    fails: bool = False,
    others: Mapping[str, float] | None = None,
) -> list[Finding]:
    """What is said of e1 after an hour as usual and some looks at something odd. age_s : of its newest reading."""
    detector = ServingDetector()
    facts = {e: {"pool": "chat", "peer": "chat|h100", "target": f"{e}:8000"} for e in ENGINES}

    def at(k: int, row: Mapping[str, float], failing: bool, age: float) -> Frames:
        rest = dict(others or {}) if row else {}
        rows = {e: USUAL | QUIET | (dict(row) if e == "e1" else rest) for e in ENGINES}
        pages = {f"{e}:8000": {"silent_s": 5.0, "fails": float(failing and e == "e1")} for e in ENGINES}
        return frames(
            TICK * k,
            frame("engine", TICK * k, rows, facts, {"e1": age}),
            frame("target", TICK * k, pages),
        )

    last(detector, (at(k, {}, False, 0.0) for k in range(240)))
    found = last(detector, (at(240 + k, odd, fails, age_s if k else 0.0) for k in range(looks)))
    return [f for f in found if f.kind == "requests_stuck"]


def test_requests_that_pile_up_at_a_replica_doing_no_more_than_its_peers_are_stuck():
    found = crowd(SLOW)

    assert kinds(found) == [("requests_stuck", "engine e1")]
    assert found[0].text.startswith("engine: it works on 10 requests")
    assert found[0].evidence[0].peer == 3.0


def test_a_crowd_is_the_surer_the_more_looks_show_it_and_an_old_reading_is_no_look():
    one, two = crowd(SLOW)[0].p, crowd(SLOW, 2)[0].p

    assert 1e-3 < one < 2e-2
    assert two == pytest.approx(one**2, rel=0.5)
    assert crowd(SLOW, 2, age_s=TICK + 1.0)[0].p == one


def test_a_crowd_pages_once_it_is_no_spell_any_more():
    assert [f.severity for f in (crowd(SLOW)[0], crowd(SLOW, 14)[0])] == [Severity.INFO, Severity.WARNING]


def test_answers_that_do_not_get_out_are_the_networks_doing():
    found = crowd(SLOW | {"running": 1.0})

    assert found[0].text == "network: its page shows 1 requests where the gateway waits for 10"


def test_a_page_that_fails_leaves_the_word_to_the_gateway():
    assert crowd(SLOW | {"generation_tokens_s": 900.0}) == []
    found = crowd(SLOW | {"generation_tokens_s": 900.0}, fails=True)
    assert found[0].text.startswith("network or host")


@pytest.mark.parametrize(
    ("why", "odd"),
    [
        ("sticky sessions", {"lb_sessions": 12.0, "lb_done_per_s": 10.8, "generation_tokens_s": 520.0}),
        ("long answers", {"lb_sessions": 12.0, "lb_done_per_s": 0.9, "generation_tokens_s": 520.0}),
        ("long prompts", {"lb_sessions": 12.0, "prompt_tokens_s": 5100.0}),
        ("one request more or less", {"lb_sessions": 7.0}),
        ("a page without tokens", {"lb_sessions": 12.0, "generation_tokens_s": np.nan}),
        (
            "given more than it can do",
            {"lb_sessions": 40.0, "lb_done_per_s": 6.0, "generation_tokens_s": 290.0},
        ),
    ],
)
def test_more_sessions_for_a_good_reason_are_no_crowd(why: str, odd: Mapping[str, float]):
    assert kinds(crowd(odd)) == [], why


def test_in_a_rush_the_one_that_has_a_little_more_than_the_others_is_no_crowd():
    rush = {"lb_sessions": 8.0, "lb_done_per_s": 7.0, "generation_tokens_s": 350.0}

    assert crowd(SLOW | {"lb_sessions": 14.0}, others=rush) == []
    assert kinds(crowd(SLOW | {"lb_sessions": 24.0}, others=rush)) == [("requests_stuck", "engine e1")]


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


def test_at_night_a_handful_more_than_the_others_is_chance():
    night = {name: {"running": 6.0} for name in ENGINES}

    assert say(1, night | {"e0": {"running": 12.0}}) == []
    assert ("imbalance", "pool chat") in kinds(say(1, night | {"e0": {"running": 60.0}}))


# -- objectives ------------------------------------------------------------------------------------------------


def burn(over: list[float]) -> list[Finding]:
    detector = ServingDetector()
    return last(detector, (given(TICK * k, pool={"over_slo_ratio": v}) for k, v in enumerate(over)))


def test_a_fast_burn_is_critical_within_minutes():
    found = [f for f in burn([0.0] * 20 + [1.0] * 48) if f.kind == "slo_burn"]

    assert [(f.severity, f.rule) for f in found] == [(Severity.CRITICAL, "serving.burn_fast")]


def test_a_few_minutes_of_misses_burn_nothing():
    assert burn([0.0] * 20 + [1.0] * 16) == []


def test_the_objective_of_the_pool_decides_how_fast_it_burns():
    detector = ServingDetector()
    lax = {"over_slo_ratio": 1.0, "slo_target": 0.9}

    found = last(detector, (given(TICK * k, pool=lax) for k in range(60)))

    assert [f for f in found if f.kind == "slo_burn"] == []
    assert detector.burn.rates["chat"][0] == pytest.approx(10.0, rel=0.1)


def test_a_slow_burn_is_a_warning_after_hours():
    early = burn([0.0] * 20 + [0.10] * 240)
    late = burn([0.0] * 20 + [0.10] * 1800)

    assert early == []
    assert [(f.kind, f.severity) for f in late] == [("slo_burn", Severity.WARNING)]


def test_a_burn_that_is_over_is_no_longer_claimed():
    assert burn([0.0] * 20 + [1.0] * 60 + [0.0] * 60) == []


def test_missing_latencies_neither_burn_nor_heal():
    found = burn([0.0] * 20 + [1.0] * 60 + [float("nan")] * 8)

    assert [f.kind for f in found] == ["slo_burn"]


@pytest.mark.parametrize("signal", sorted(USUAL))
def test_a_signal_nobody_exports_is_unknown_and_never_trouble(signal: str):
    assert say(20, {e: {signal: np.nan} for e in ENGINES}) == []


# -- what moves over minutes -----------------------------------------------------------------------------------


def slow(minutes: int, share: Callable[[int], Mapping[str, float]]) -> list[Finding]:
    """Minutes of one look each; `share` says what every engine shows in a minute."""
    detector = ServingDetector()
    return last(
        detector,
        (given(60.0 * m, {e: share(m) for e in ENGINES}) for m in range(minutes)),
    )


def test_a_cache_that_fills_steadily_is_told_minutes_before_it_is_full():
    found = slow(14, lambda m: {"kv_used_ratio": 0.5 + 0.025 * m})

    told = [f for f in found if f.kind == "kv_filling"]
    assert [str(f.entity) for f in told] == ["pool chat"]
    assert next(e.value for e in told[0].evidence if e.name == "time_to_full") == pytest.approx(
        420.0, rel=0.05
    )


def test_a_cache_that_goes_up_and_down_is_not_filling():
    assert slow(40, lambda m: {"kv_used_ratio": 0.75 + 0.1 * (m % 2)}) == []


@pytest.mark.parametrize(
    ("kind", "part", "whole"),
    [
        ("prefix_collapse", "prefix_hits_s", "prefix_queries_s"),
        ("spec_drop", "spec_accepted_tokens_s", "spec_drafted_tokens_s"),
    ],
)
def test_a_share_that_halves_and_stays_there_is_told(kind: str, part: str, whole: str):
    def at_minute(m: int) -> Mapping[str, float]:
        return {part: 600.0 if m < 60 else 150.0, whole: 1000.0}

    before, after = slow(60, at_minute), slow(66, at_minute)

    assert before == []
    assert [(f.kind, str(f.entity)) for f in after] == [(kind, "pool chat")]
    assert "fell from 60% to 15%" in after[0].text


def test_the_share_of_a_pool_of_few_requests_is_judged_over_minutes_together():
    """From minute to minute it jumps by as much as the drop is; over five minutes it does not."""
    luck = np.random.default_rng(5).normal(0.0, 0.05, 200)

    def at_minute(m: int) -> Mapping[str, float]:
        return {
            "prefix_hits_s": 1000.0 * max(0.0, (0.20 if m < 120 else 0.05) + luck[m]),
            "prefix_queries_s": 1000.0,
        }

    detector = ServingDetector()
    told = [m for m in range(140) if detector.update(given(60.0 * m, dict.fromkeys(ENGINES, at_minute(m))))]

    assert 122 <= told[0] <= 128


def test_a_fall_is_not_held_to_the_wandering_that_it_makes_itself():
    """One replica, whose share wanders so much that half of it is hardly more; the fall must be past the bar of before."""
    luck = np.random.default_rng(3).normal(0.0, 0.065, 200)

    def at_minute(m: int) -> Mapping[str, float]:
        return {
            "prefix_hits_s": 1000.0 * max(0.0, (0.26 if m < 140 else 0.125) + luck[m]),
            "prefix_queries_s": 1000.0,
        }

    detector = ServingDetector()
    told = [m for m in range(170) if detector.update(given(60.0 * m, {"e0": at_minute(m)}))]

    assert 142 <= told[0] <= 155


def test_little_traffic_says_nothing_of_the_share_of_hits():
    assert slow(80, lambda m: {"prefix_hits_s": 6.0 if m < 60 else 0.0, "prefix_queries_s": 10.0}) == []


def test_blocks_reserved_and_not_used_are_told_where_an_engine_shows_both():
    def at_minute(m: int) -> Mapping[str, float]:
        return {
            "kv_used_tokens": 40_000.0,
            "kv_capacity_tokens": 160_000.0,
            "kv_used_blocks": 5_000.0,
            "kv_block_tokens": 16.0,
        }

    assert kinds(slow(13, at_minute)) == [("kv_fragmented", "pool chat")]


def test_a_process_that_grows_for_an_hour_leaks_and_one_that_breathes_does_not():
    def grown(per_look: float) -> list[Finding]:
        detector = ServingDetector()
        return last(
            detector,
            (
                given(60.0 * m, {"e1": {"rss_bytes": 4e9 * (1.0 + per_look * (m // 5))}}, pool={})
                for m in range(75)
            ),
        )

    assert kinds(grown(0.01)) == [("memory_leak", "engine e1")]
    assert grown(0.001) == []


@pytest.mark.parametrize(
    ("an_hour", "wander", "said"),
    [(1.6e9, 1e8, True), (1.6e9, 3e9, False), (5e7, 1e6, False)],
    ids=["steady", "wanders more than it grows", "lasts for years"],
)
def test_a_host_whose_memory_goes_slowly_and_steadily_is_told(an_hour: float, wander: float, said: bool):
    rng = np.random.default_rng(5)

    def host(minute: int) -> Mapping[str, float]:
        free = 9e11 - an_hour * minute / 60.0 - wander * abs(rng.standard_normal())
        return {"mem_total_bytes": 1.1e12, "mem_available_bytes": free}

    found = last(ServingDetector(), (given(60.0 * m, node=host(m)) for m in range(300)))

    assert kinds(found) == ([("memory_leak", "node n0")] if said else [])
    assert all(f.severity is Severity.INFO and "days at this pace" in f.text for f in found)
