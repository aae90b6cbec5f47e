"""The benchmark of controllers: its engine is the simulator's, its controllers do what they are known for."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bench import autoscale_core as core
from bench.autoscale import scores
from bench.autoscale_engine import RUNNING, STEP_S, Bank, Engines, rate_at, table, throughput
from bench.autoscale_oracle import oracle
from bench.autoscale_ours import Ours
from bench.autoscale_plan import NODES, plan_time
from bench.autoscale_run import Flaps, baseline, batch, candidates, run, start_of
from bench.autoscale_traces import QUICK_SCORE_H, QUICK_TUNE_H, case, generated, spans
from daemon.rivals import RIVALS
from simulator.defaults import default_spec

POOLS = default_spec(64).pools


@pytest.mark.parametrize("spec", POOLS, ids=lambda s: s.name)
def test_the_engine_agrees_with_its_analytic_core(spec):
    most = throughput(spec)

    for share in (0.3, 0.5, 0.7, 0.8):
        measured = table(spec)[int(share * 200), RUNNING]
        assert core.running(spec, share * most) == pytest.approx(measured, rel=0.08)
    # Formulas with one mean length see the cache fill later than requests of many lengths do.
    assert rate_at(spec) == pytest.approx(core.rate_at(spec), rel=0.20)
    assert rate_at(spec) < core.rate_at(spec)


@pytest.mark.parametrize("spec", POOLS, ids=lambda s: s.name)
def test_in_bursts_of_five_minutes_the_fluid_is_near_the_engine_and_not_kinder(spec):
    peaks = np.array([0.6, 0.7, 0.8, 0.9, 1.0, 1.3]) * throughput(spec)
    calm = 0.6 * throughput(spec)
    bank = Bank(spec, peaks.size, seed=11)
    while bank.at < 3600.0:
        bank.step(np.where(900.0 <= bank.at < 1200.0, peaks, calm))
    finished, slow, lost, _ = bank.counts().T
    engines = Engines([spec] * peaks.size, np.full(peaks.size, 4.0), np.ones(peaks.size, dtype=np.intp))
    for k in range(int(3600.0 / STEP_S)):
        engines.step(np.where(900.0 <= k * STEP_S < 1200.0, peaks, calm) * 4 * STEP_S)

    real, fluid = (slow + lost) / (finished + lost), 1.0 - engines.good / engines.asked

    assert (np.abs(fluid - real) <= 0.08).all()
    assert fluid.mean() >= real.mean() - 0.01


def _small(part: str):
    series = [generated(3, 7)]
    return batch([case("test", 8, 90.0, series, part, 1, quick=True)])


def _morning(part: str):
    whole = _small(part).cases[0]
    cut = slice(0, int(6 * 3600.0 / STEP_S))
    return batch(
        [
            replace(
                whole, arrived=whole.arrived[:, cut], failures=whole.failures[:, cut], blind=whole.blind[cut]
            )
        ]
    )


def test_tuning_and_scoring_parts_do_not_overlap():
    found = spans(800, quick=True)

    assert found["tune"].first + QUICK_TUNE_H == found["score"].first
    assert found["score"].first + QUICK_SCORE_H == 799


@pytest.mark.parametrize("name", RIVALS)
def test_every_controller_serves_a_day_without_running_away(name: str):
    given = _small("tune")

    found = baseline(name, given, [candidates(name, 3)] * len(given.cells))

    for result in found:
        assert result.asked[0] == given.arrived.sum()
        assert 0.0 < result.good[0] <= result.asked[0]
        assert 0.0 < result.gpu_hours[0] <= 24.0 * 10


def test_the_oracle_keeps_the_objective_with_less_than_the_daemon():
    given = _small("score")
    plans, first = oracle(given)
    worlds = np.arange(len(given.cells))

    best = run(given, worlds, plans[2], first[2])
    ours = run(given, worlds, Ours(given, foresees=True), start_of(given))

    assert best.good[0] / best.asked[0] > 0.99
    assert best.gpu_hours[0] < ours.gpu_hours[0]
    assert ours.good[0] / ours.asked[0] > 0.985


def test_while_telemetry_is_silent_the_daemon_takes_no_replica_away():
    given = _small("score")
    policy, most = Ours(given, foresees=False), 8.0
    engines = Engines([given.cells[0].spec], start_of(given), np.array([6], dtype=np.intp))
    silent, asked = np.flatnonzero(given.blind[:, 0]), []
    for step in range(int(silent[-1]) + 1):
        now = engines.ready + engines.starting
        seen = engines.seen
        if step in silent:
            seen = type(seen)(*(np.full(1, math.nan) for _ in seen.__slots__))
        wanted = np.clip(policy.decide(step, seen, now), 1.0, most) if step else now
        if step in silent:
            asked.append(float(wanted[0] - now[0]))
        engines.resize(wanted)
        engines.step(given.arrived[step])

    assert len(asked) == 60
    assert min(asked) >= 0.0


def test_a_flap_is_a_change_of_mind_within_a_quarter_of_an_hour():
    flaps = Flaps(1)

    for at, change in ((0.0, 1.0), (300.0, -1.0), (400.0, 0.0), (2000.0, 1.0), (2100.0, 1.0)):
        flaps.see(np.array([change]), at)

    assert flaps.count[0] == 1


def test_every_policy_is_scored_against_the_oracle():
    found = scores(_morning("tune"), _morning("score"), 2)

    assert {"ours", "ours_reactive", "oracle", *RIVALS} == set(found)
    assert found["oracle"]["gpu_hours_over_oracle"] == 1.0
    assert all(row["gpu_hours_over_oracle"] > 0.9 for row in found.values())
    assert json.loads(json.dumps(found)) == found


def test_the_plan_that_is_timed_knows_every_pool_by_its_lateness():
    found = plan_time()

    assert found["pools_known"] == found["pools"] == 100
    assert found["nodes"] == NODES == 1250
    assert 0 < found["median_ms"] <= found["p95_ms"] <= found["most_ms"]
