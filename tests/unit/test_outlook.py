"""Demand ahead becomes GPUs, a chance of running short and words."""

import math
from dataclasses import replace

import numpy as np
import pytest

from daemon import tails
from daemon.cli import canvas
from daemon.fleet import Fleet, Mark
from daemon.model import Entity, Forecast
from daemon.outlook import PATHS, Outlook, PoolOutlook, crossings, frame, look, pool_frame, replicas_for
from daemon.policy import Maintenance, Policy, PoolPolicy
from daemon.replica import Learnt
from daemon.topology import Topology
from daemon.wear import Wear
from detectors.capacity import tell

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
HOUR = 3600.0
NODES = {f"n{k}": tuple(f"n{k}/gpu{g}" for g in range(8)) for k in range(8)}
TOPOLOGY = Topology(
    nodes=tuple(NODES),
    gpus_on=NODES,
    engines_on={"n0": ("a",), "n1": ("b",)},
    gpus_of={"a": NODES["n0"], "b": NODES["n1"]},
    pool_of={"a": "chat", "b": "code"},
)
STEADY = np.repeat(((np.arange(PATHS) + 0.5) / PATHS)[:, None], 168, axis=1)


def demand(pool: str, middle: np.ndarray, ranks: np.ndarray = STEADY, width: float = 0.2) -> Forecast:
    away = 1.0 + np.array([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]) * width
    return Forecast(0.0, pool, "concurrency", HOUR, LEVELS, np.outer(away, middle), ranks=ranks, skill=0.7)


def seen(
    chat: Forecast,
    code: Forecast,
    policy: Policy | None = None,
    fleet: Fleet | None = None,
    wear: Wear | None = None,
) -> Outlook:
    learnt = {p: Learnt(capacity=10.0, minutes=600) for p in ("chat", "code")}
    return look(
        0.0, TOPOLOGY, fleet or Fleet(), policy or Policy(), {"chat": chat, "code": code}, learnt, wear
    )


FLAT = np.full(168, 15.0)


def test_demand_becomes_replicas_at_planned_load_with_a_spare():
    assert replicas_for(np.array([[0.0, 7.0, 30.0]]), 10.0, 1, 1).tolist() == [[1.0, 2.0, 5.0]]


def test_pools_that_peak_apart_need_less_than_the_sum_of_their_peaks():
    together = seen(demand("chat", 10 * FLAT), demand("code", 10 * FLAT))
    apart = seen(demand("chat", 10 * FLAT), demand("code", 10 * FLAT, ranks=1.0 - STEADY))

    assert apart.needed[0.9].max() < together.needed[0.9].max()
    assert apart.needed[0.5] == pytest.approx(together.needed[0.5], abs=8.0)


def test_enough_for_sure_has_no_chance_of_running_short():
    row = frame(seen(demand("chat", FLAT), demand("code", FLAT)), Policy())

    assert row.value("cluster", "short_chance") == 0.0
    assert math.isnan(row.value("cluster", "exhausted_in_s"))


def test_growth_runs_short_at_a_time_with_a_chance():
    growing = FLAT * (1.0 + np.arange(168) / 60.0)

    row = frame(seen(demand("chat", growing), demand("code", FLAT)), Policy())

    assert 0.6 < row.value("cluster", "short_chance") <= 1.0
    assert 24 * HOUR < row.value("cluster", "exhausted_early_s") < row.value("cluster", "exhausted_in_s")
    assert row.value("cluster", "short_gpu_hours") > 0


def test_days_to_exhaustion_are_censored_when_half_the_paths_never_end():
    limit = np.array([[1.0, 3.0], [1.0, 1.0], [1.0, 1.0]])

    assert crossings(limit, 2.0).tolist() == [1.0, math.inf, math.inf]


def test_an_unknown_capacity_leaves_the_outlook_unknown():
    found = look(0.0, TOPOLOGY, Fleet(), Policy(), {"chat": demand("chat", FLAT)}, {})

    assert not found.is_known
    assert pool_frame(found).entities == ()


def test_a_forecast_without_paths_makes_all_pools_peak_together():
    bare = demand("chat", FLAT, ranks=np.empty((0, 0)))

    assert seen(bare, demand("code", FLAT)).needed[0.9] == pytest.approx(
        seen(demand("chat", FLAT), demand("code", FLAT)).needed[0.9]
    )


def test_isolated_nodes_come_back_and_maintenance_takes_some():
    fleet = Fleet(isolated={Entity("node", "n7"): Mark(0.0, "i1", "", 8.0)})
    window = Maintenance(48 * HOUR, 50 * HOUR, Entity("node", "n6"), "firmware")

    found = seen(demand("chat", FLAT), demand("code", FLAT), Policy(maintenance=(window,)), fleet)

    assert found.usable == 56.0
    assert found.ahead[0] == pytest.approx(56.0)
    assert found.ahead[48] == pytest.approx(found.ahead[47] - 8.0, abs=0.2)
    assert 63.0 < found.ahead[-1] <= 64.0


def test_a_fleet_that_fails_often_keeps_more_in_reserve():
    calm, worn = Wear(), Wear()
    for hour in range(24 * 30):
        calm.watch(hour * HOUR, 8, 0)
        worn.watch(hour * HOUR, 8, 1 if hour % 30 < 12 else 0)

    assert calm.nodes_out(8) == 0
    assert worn.nodes_out(8) >= 1
    assert worn.repair_s == pytest.approx(12 * HOUR, rel=0.25)


def test_time_in_which_nobody_watched_counts_for_nothing():
    wear = Wear()
    wear.watch(0.0, 8, 1)
    wear.watch(10 * 86400.0, 8, 1)

    assert (wear.node_s, wear.out_s, wear.failures) == (0.0, 0.0, 1)


def test_the_warning_says_how_sure_why_and_what_would_fix_it():
    growing = FLAT * (1.0 + np.arange(168) / 40.0)
    outlook = seen(
        demand("chat", growing),
        demand("code", FLAT),
        Policy(pools=(PoolPolicy("chat"), PoolPolicy("code"))),
    )
    row = frame(outlook, Policy())

    text = tell(0.0, dict(zip(row.signals, row.values[0].tolist(), strict=True)), pool_frame(outlook))

    assert text.startswith("100% chance of running short within 7 days: ")
    assert "more likely than not by Saturday" in text
    assert "more replicas of chat" in text
    assert "The forecast's past error was 0.70 of repeating the week before." in text


def test_a_pool_outlook_counts_what_is_to_be_added():
    needed = np.repeat(np.arange(1.0, 169.0)[None, :] / 42.0, PATHS, axis=0)
    outlook = Outlook(
        0.0,
        HOUR,
        {0.5: FLAT, 0.9: FLAT},
        10.0,
        0.0,
        1e6,
        needed * 8,
        np.full(168, 10.0),
        0.0,
        {"chat": PoolOutlook(needed, 8, 2.0)},
    )

    found = pool_frame(outlook)

    assert found.value("chat", "replicas_more") == pytest.approx(2.0)
    assert found.value("chat", "gpus_more") == pytest.approx(16.0)
    assert found.value("chat", "short_share") == 1.0


def learnt_by_work(full_per_s: float) -> Learnt:
    """A pool whose replicas are seen to carry `full_per_s` of work, 100 a request of 10 s."""
    known = Learnt(capacity=10.0, minutes=600, stay_s=10.0, work=100.0)
    known.tails = tails.Tails(unit=full_per_s)
    for percent in range(20, 130, 2):
        tails.note(known.tails, full_per_s * percent / 100, 5000.0, 0.001 if percent < 98 else 0.4)
    tails.settle(known.tails, 0.0)
    return known


def test_requests_that_grow_longer_bind_by_their_tokens():
    requests = {p: demand(p, FLAT) for p in ("chat", "code")}
    learnt = {p: learnt_by_work(150.0) for p in ("chat", "code")}
    longer = 150.0 * (1.0 + np.arange(168) / 50.0)  # as many requests, each with ever more tokens

    def ahead(tokens: np.ndarray) -> Outlook:
        work = {
            "generation_tokens_s": replace(demand("chat", tokens), signal="generation_tokens_s"),
            "prompt_tokens_s": replace(demand("chat", 0.0 * FLAT), signal="prompt_tokens_s"),
        }
        return look(0.0, TOPOLOGY, Fleet(), Policy(), requests, learnt, work={"chat": work})

    steady, grown = ahead(150.0 + 0.0 * FLAT), ahead(longer)

    assert not steady.pools["chat"].by_tokens
    assert (
        steady.needed[0.5].max() == look(0.0, TOPOLOGY, Fleet(), Policy(), requests, learnt).needed[0.5].max()
    )
    assert grown.pools["chat"].by_tokens
    assert grown.needed[0.5][-1] > steady.needed[0.5][-1] + 8.0
    assert grown.needed[0.5][0] == steady.needed[0.5][0]


def test_a_half_known_future_of_tokens_is_left_out():
    requests = {p: demand(p, FLAT) for p in ("chat", "code")}
    learnt = {p: learnt_by_work(150.0) for p in ("chat", "code")}
    only = {"generation_tokens_s": demand("chat", 1e6 + 0.0 * FLAT)}

    found = look(0.0, TOPOLOGY, Fleet(), Policy(), requests, learnt, work={"chat": only})

    assert not found.pools["chat"].by_tokens


# -- the drawing in a terminal -------------------------------------------------------------------------------


def test_the_past_the_median_and_the_band_are_drawn_in_order_of_time():
    past = [10.0] * 48
    quantiles = np.outer(np.linspace(5.0, 15.0, 7), np.ones(48)).tolist()

    lines = canvas.draw(0.0, HOUR, past, quantiles, LEVELS, width=60, height=11)

    body = [line[canvas.MARGIN :] for line in lines[:11]]
    assert any(canvas.PAST in line[:25] for line in body)
    assert not any(canvas.PAST in line[26:] for line in body)
    assert any(canvas.BAND in line[26:] for line in body)
    assert sum(canvas.MEDIAN in line for line in body) == 1
    assert "Thu 01" in lines[-1]


def test_gaps_in_the_past_are_left_open():
    lines = canvas.draw(0.0, HOUR, [1.0, math.nan, 3.0], [], LEVELS, width=30, height=5)

    assert sum(line.count(canvas.PAST) for line in lines) == 2


def test_nothing_to_draw_draws_nothing():
    assert canvas.draw(0.0, HOUR, [], [], LEVELS) == []
    assert canvas.draw(0.0, HOUR, [math.nan, math.nan], [], LEVELS) == []
