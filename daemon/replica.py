"""What the replicas of one pool have shown they can carry."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon import pace as paces
from daemon import tails
from daemon.model import NAN, Forecast, Frame
from daemon.pace import Pace
from daemon.policy import PoolPolicy
from daemon.tails import Tails

KV_TARGET = 0.80
"""Share of KV blocks in use at which a replica counts as full. Source: WVA's saturation threshold."""
LOAD_TARGET = 0.75
"""Planned load of a replica: the rest is head-room for queueing. Source: docs/decisions/0005-headroom.md."""
LEARN_UP = 0.02
LEARN_DOWN = 0.1
LEARN_EVERY_S = 60.0
STAY_WEIGHT = 0.02
MIN_RUNNING = 2.0
QUEUE_SHARE = 0.05
MIN_KV = 0.15
BUDGET_SHARE = 0.8
"""Of the requests that may be late by the objective, how many are planned for: the rest is for what nobody expects."""
BUDGET_TAU_S = 86400.0
BUDGET_LEAST, BUDGET_MOST = 0.4, 12.0
"""While a day was late less than planned, more is risked, and the other way round, within these factors."""
PLAN_LATE = 0.01
"""For days ahead a replica is planned to carry what leaves one request in a hundred late."""
WORK_TAU_S, WORK_KNOWN_S = 1800.0, 600.0
WAKE_S = 600.0
PROMPT_WORK = 0.12
"""Work of a prompt token over that of a generated one at the load replicas are planned for: about 0.1 ms against
0.8 ms in the simulator's engines; only a shift of the mix of lengths makes it matter."""


@dataclass(slots=True)
class Learnt:
    """What one pool taught us.

    capacity : concurrent requests a replica holds within its objective, NaN = unknown. demand : requests in flight,
    smoothed over DEMAND_TAU_S. minutes : how long it has been learnt. pressure : share of recent ticks that queued and were late.
    stay_s : seconds a request is in flight while nobody queues. needs : (at, replicas) of the shrink window.
    tails : requests late by load of a replica. pace : demand as work a second. work : of a request, in generated tokens. refused : requests a second
    turned away, over a minute. load : of a replica, lately
    at its highest.
    step : means of (requests running, seconds a token, square, product) of a replica, for the line between them.
    spent, borne : share of requests late over a day, and what a pool bore before it grew,
    fading means. stood : replicas at the last
    look. grown_at, shrunk_at : when there were last more, or fewer, than before. since : when its need was first asked for.
    """

    capacity: float = NAN
    demand: float = NAN
    demand_at: float = NAN
    pressure: float = 0.0
    stay_s: float = NAN
    tried_at: float = NAN
    minutes: int = 0
    needs: list[tuple[float, int]] = field(default_factory=list)
    tails: Tails = field(default_factory=Tails)
    pace: Pace = field(default_factory=Pace)
    work: float = NAN
    work_s: float = 0.0
    refused: float = 0.0
    load: float = 0.0
    in_flight: float = NAN
    row_at: float = NAN
    step: tuple[float, float, float, float] = (NAN, NAN, NAN, NAN)
    spent: float = NAN
    borne: float = NAN
    stood: int = 0
    grown_at: float = -math.inf
    shrunk_at: float = -math.inf
    since: float = NAN


EVIDENCE = ("running", "waiting", "kv_used_ratio", "itl_mean_s", "ttft_p95_s", "queue_p95_s")


def is_due(learnt: Learnt, at: float) -> bool:
    """Whether a minute has passed since the last try to learn something."""
    return not at - learnt.tried_at < LEARN_EVERY_S


def learn(learnt: Learnt, engines: Frame, members: np.ndarray, pool: PoolPolicy) -> None:
    """Take one tick's evidence of what a replica can hold. members : (engine,) bool, those of the pool.

    Full is where KV would reach KV_TARGET, or where requests already wait although KV has room (the cap on running
    sequences binds); where the latency objective is missed, the load of that moment is too much.
    """
    learnt.tried_at = engines.at
    running, waiting, kv, step, first, queue = engines.columns(EVIDENCE)[members].T
    with np.errstate(invalid="ignore", divide="ignore"):
        by_kv = np.where((running >= MIN_RUNNING) & (kv >= MIN_KV), running * KV_TARGET / kv, NAN)
        # A prompt or two being read is no queue; one that is a part of what runs says that no more may run.
        by_cap = np.where((waiting > QUEUE_SHARE * running) & (kv < KV_TARGET), running, np.inf)
        # Latency says something of capacity only where load makes it: a long prompt is late on an idle replica too.
        is_queueing = np.where(np.isfinite(queue), queue > 0.5 * first, waiting > 0)
        near_first = is_queueing & (first > 0.7 * pool.ttft_slo_s)
        by_first = np.where(near_first, running * np.sqrt(pool.ttft_slo_s / first), np.inf)
        by_step = np.where(step > 0.9 * pool.itl_slo_s, running * pool.itl_slo_s / step, np.inf)
        by_latency = np.where(running >= MIN_RUNNING, np.minimum(by_first, by_step), np.inf)
    seen = np.fmin(np.minimum(by_cap, by_latency), by_kv)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    if not seen.size:
        return
    value = statistics.median(seen.tolist())
    learnt.minutes += 1
    # Down fast and up slowly: believing in too much capacity costs requests, in too little only GPUs. The first minutes
    # count alike: what a fleet shows in the one minute after a start is no measure to creep away from.
    weight = max(LEARN_DOWN if value < learnt.capacity else LEARN_UP, 1.0 / learnt.minutes)
    learnt.capacity = (
        value if math.isnan(learnt.capacity) else learnt.capacity + weight * (value - learnt.capacity)
    )
    _learn_pace(learnt, running, step)
    _learn_load(learnt, pool, engines.at)


STEP_WEIGHT = 0.02


def _learn_pace(learnt: Learnt, running: np.ndarray, step: np.ndarray) -> None:
    """Seconds a token against requests running: the line that says how much longer a request stays in a fuller replica."""
    known = np.isfinite(running) & np.isfinite(step) & (running > 0)
    if not known.any():
        return
    n, s = running[known], step[known]
    now = (float(n.mean()), float(s.mean()), float((n * n).mean()), float((n * s).mean()))
    if math.isnan(learnt.step[0]):
        learnt.step = now
        return
    a, b, c, d = (old + STEP_WEIGHT * (new - old) for old, new in zip(learnt.step, now, strict=True))
    learnt.step = (a, b, c, d)


def stretch(learnt: Learnt, running: float) -> float:
    """By how much longer a token takes with `running` requests in a replica than with the usual number."""
    usual, seconds, square, product = learnt.step
    if math.isnan(usual) or seconds <= 0 or running <= usual:
        return 1.0
    variance = square - usual * usual
    # Before a line can be drawn: twice as long in a full replica as in an idle one, as the simulator's engines have it.
    slope = seconds / running
    if variance > 1e-2 * usual * usual:
        slope = max(slope, (product - usual * seconds) / variance)
    return 1.0 + slope * (running - usual) / seconds


def _learn_load(learnt: Learnt, pool: PoolPolicy, at: float) -> None:
    """Once a minute: what load is full by the room there is, until lateness says it better."""
    seen = learnt.tails
    if math.isnan(seen.unit):
        running = learnt.capacity * LOAD_TARGET
        if learnt.stay_s > 0 and learnt.work_s >= WORK_KNOWN_S:
            tails.rebase(seen, running / (learnt.stay_s * stretch(learnt, running)) * learnt.work)
        return
    tails.settle(seen, at)
    full = tails.full_load(seen, tails.bearable(seen, 1.0 - pool.slo_target))
    if not 0.6 <= full / seen.unit <= 1.25:
        tails.rebase(seen, full)
        tails.settle(seen, at)


DEMAND_TAU_S = 60.0
"""A handful of requests comes and goes at random; a burst lasts longer than this, and queues speak for themselves."""


def smooth(learnt: Learnt, demand: float, at: float) -> float:
    """Demand as an exponential mean; NaN (unknown) leaves it as it was."""
    if not math.isnan(demand):
        elapsed = at - learnt.demand_at
        known = not math.isnan(learnt.demand) and not math.isnan(elapsed)
        weight = 1.0 - math.exp(-elapsed / DEMAND_TAU_S) if known else 1.0
        learnt.demand = demand if not known else learnt.demand + weight * (demand - learnt.demand)
        learnt.demand_at = at
    return learnt.demand


def watch(
    learnt: Learnt, row: Mapping[str, float], pool: PoolPolicy, forecast: Forecast | None, at: float
) -> None:
    """Learn from a row: how long requests stay, what work arrives, how much of it is late at this load."""
    smooth(learnt, row["concurrency"], at)
    elapsed, before = at - learnt.row_at, learnt.in_flight
    learnt.row_at, learnt.in_flight = at, row["concurrency"]
    if row["waiting"] <= 0.25 * row["running"] and row["requests_done_per_s"] > 0:
        stay_s = row["concurrency"] / row["requests_done_per_s"]
        learnt.stay_s = (
            stay_s if math.isnan(learnt.stay_s) else learnt.stay_s + STAY_WEIGHT * (stay_s - learnt.stay_s)
        )
    arrivals = row["lb_sessions_per_s"]
    if math.isnan(arrivals) and elapsed > 0:
        # Nothing is lost on the way: what came is what left and what there is more.
        arrivals = max(0.0, row["requests_done_per_s"] + (row["concurrency"] - before) / elapsed)
    _weigh_requests(learnt, row, elapsed)
    if learnt.work_s < WORK_KNOWN_S:
        return
    pace, work = learnt.pace, (arrivals + _note_refused(learnt, row, elapsed)) * learnt.work
    paces.watch(pace, work, at, pool.cold_start_s, forecast)
    late = row["over_slo_ratio"]
    if math.isnan(late) or math.isnan(work) or not row["ready"] > 0 or not elapsed > 0:
        return
    # A queue outlives the load that made it: what is late in its wake is blamed on that load.
    served = max(0.0, pace.fast - learnt.refused * learnt.work)
    learnt.load = max(served / row["ready"], learnt.load * math.exp(-elapsed / WAKE_S))
    tails.note(learnt.tails, learnt.load, arrivals * elapsed, late)
    share = -math.expm1(-elapsed / BUDGET_TAU_S)
    plan = late_borne(learnt, pool)
    learnt.spent = late if math.isnan(learnt.spent) else learnt.spent + share * (late - learnt.spent)
    learnt.borne = plan if math.isnan(learnt.borne) else learnt.borne + share * (plan - learnt.borne)


def _note_refused(learnt: Learnt, row: Mapping[str, float], elapsed: float) -> float:
    """Requests a second turned away before a replica saw them: demand all the same, though no load.

    A gateway that fell silent has not let everybody in: what it said last fades.
    """
    if not elapsed > 0:
        return learnt.refused
    refused = row.get("refused_per_s", NAN)
    if math.isnan(refused):
        learnt.refused *= math.exp(-elapsed / WAKE_S)
        return learnt.refused
    learnt.refused += (refused - learnt.refused) * -math.expm1(-elapsed / paces.FAST_TAU_S)
    return refused


def _weigh_requests(learnt: Learnt, row: Mapping[str, float], elapsed: float) -> None:
    """Work of a mean request, from tokens where they are known: a long request counts for more than one."""
    done, tokens = row["requests_done_per_s"], row.get("generation_tokens_s", NAN)
    prompts = row.get("prompt_tokens_s", NAN) - row.get("prompt_cached_tokens_s", 0.0)
    work = (tokens + PROMPT_WORK * prompts) / done if done > 0 else NAN
    if math.isnan(work) or not elapsed > 0:
        return
    if math.isnan(learnt.work):
        learnt.work, learnt.work_s = work, 0.0
    # The mean of all until there is a window's worth: the first ticks of a run are no measure.
    learnt.work_s += elapsed
    learnt.work += (work - learnt.work) * -math.expm1(-elapsed / min(learnt.work_s, WORK_TAU_S))


def room(learnt: Learnt) -> float:
    """Requests in flight that a replica has room for: LOAD_TARGET of it is what a replica is planned to carry.

    From lateness by load once that is known, else from what was seen of its cache. NaN while neither is.
    """
    if not learnt.tails.is_known or not learnt.stay_s > 0 or not learnt.work > 0:
        return learnt.capacity
    return (
        tails.full_load(learnt.tails, tails.bearable(learnt.tails, PLAN_LATE))
        / learnt.work
        * learnt.stay_s
        / LOAD_TARGET
    )


WORK = {"generation_tokens_s": 1.0, "prompt_tokens_s": PROMPT_WORK}
"""Signal of a pool's demand -> the work of one of its tokens, in generated tokens."""


def room_for_work(learnt: Learnt) -> float:
    """Work a second, in generated tokens, that a replica has room for, as `room` has it for requests. NaN while lateness by
    load is not known."""
    if not learnt.tails.is_known:
        return NAN
    return tails.full_load(learnt.tails, tails.bearable(learnt.tails, PLAN_LATE)) / LOAD_TARGET


def late_borne(learnt: Learnt, pool: PoolPolicy) -> float:
    """Share of requests expected late at which a pool grows: what the objective allows, times what was borne lately over
    what came of it. Because it shrinks with care a pool is late less often than that on most of its days, and a dent in
    one minute is no reason to start what takes longer than the minute."""
    meant = BUDGET_SHARE * (1.0 - pool.slo_target)
    if math.isnan(learnt.spent) or math.isnan(learnt.borne):
        return meant
    kept = learnt.borne / max(learnt.spent, 1e-6)
    return meant * min(BUDGET_MOST, max(BUDGET_LEAST, kept))
