"""How many replicas a pool needs: what a replica has shown it can carry, demand now, demand ahead."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from daemon import pace as paces
from daemon import tails
from daemon.model import NAN, Forecast, Frame
from daemon.pace import Pace
from daemon.policy import PoolPolicy
from daemon.prior import Prior
from daemon.tails import Tails

KV_TARGET = 0.80
"""Share of KV blocks in use at which a replica counts as full. Source: WVA's saturation threshold."""
LOAD_TARGET = 0.75
"""Planned load of a replica: the rest is head-room for queueing. Source: docs/decisions/0005-headroom.md."""
LEARN_UP = 0.02
LEARN_DOWN = 0.1
LEARN_EVERY_S = 60.0
SHRINK_WINDOW_S = 900.0
"""A pool shrinks to the highest need of this window: three times HPA's, because a replica starts in minutes. Twice as long
halves the flaps and costs 2 % more GPU-hours (bench.autoscale, tuning part)."""
SHRINK_ROOM = 1.25
STAY_WEIGHT = 0.02
BACKLOG_S = 45.0
"""A queue is to be gone within the patience of a client and a little."""
BURST_ROOM = 1.3
"""A burst has no forecast: what arrives more than usual may still be growing."""
PRESSURE_STEP = 0.15
"""A tick's weight: six late ticks in a row are pressure, one is chance."""
MIN_RUNNING = 2.0
QUEUE_SHARE = 0.05
MIN_KV = 0.15
BUDGET_SHARE = 1.2
"""Of the requests that may be late by the objective, how many are planned for: the rest is for what nobody expects."""
BUDGET_TAU_S = 86400.0
BUDGET_LEAST, BUDGET_MOST = 0.4, 12.0
"""While a day was late less than planned, more is risked, and the other way round, within these factors."""
PLAN_LATE = 0.01
"""For days ahead a replica is planned to carry what leaves one request in a hundred late."""
CRAMPED_LATE = 0.10
"""With the spare replicas gone no more than one request in ten may be late until others have started."""
WORK_TAU_S, WORK_KNOWN_S = 1800.0, 600.0
WAKE_S = 600.0
PROMPT_WORK = 0.12
"""Work of a prompt token over that of a generated one at the load replicas are planned for: about 0.1 ms against
0.8 ms in the simulator's engines; only a shift of the mix of lengths makes it matter."""
SHRINK_EVERY_S = 450.0
SHRINK_STEP = 0.1
"""A pool gives up at most a tenth, at least one, each seven minutes: what was one too many shows before the next goes, and a
burst seldom falls on a pool that has just shrunk."""
HOLD_S = 900.0
"""What was just started or given up stays so for a quarter of an hour, unless much more than planned would be late."""
URGENT = 4.0
"""Times the planned lateness that count as much more."""
GUESS_S = 6 * 3600.0
"""How long a pool is watched before it shrinks, or gives way to others, by a guess of what a replica holds. Judgement: the demo's second
pool gave up one of four replicas after a quarter of an hour and needed five once lateness was known."""
LOOK_S = 1800.0
"""A pool does not shrink into a rise that is forecast within so long beyond a cold start."""


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


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas wanted and why. wanted is None when too little is known to say.

    least : what it needs with its spare and for what may come. bare : what the demand of now needs to be in time, and no
    more. late_per_s : requests a second
    that would be late with as many replicas as stand, with one more, and so on up to `wanted`; empty = not known.
    """

    pool: str
    wanted: int | None
    reactive: int = 0
    floor: int = 0
    why: str = ""
    least: int = 0
    bare: int = 0
    late_per_s: tuple[float, ...] = ()


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
    # Down fast and up slowly: believing in too much capacity costs requests, in too little only GPUs.
    weight = LEARN_DOWN if value < learnt.capacity else LEARN_UP
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


def need(
    learnt: Learnt,
    row: Mapping[str, float],
    pool: PoolPolicy,
    forecast: Forecast | None,
    at: float,
    spare: int,
    standing: int,
    prior: Prior | None = None,
) -> Need:
    """Replicas wanted now. row : the pool's signals. The forecast sets the floor, demand now stays above it.

    prior : what a replica should hold by memory, while nothing has been measured: it may let a pool grow and never shrinks one.
    standing : replicas there are, or that we asked for a moment ago. Missing telemetry never shrinks a pool: with a
    replica whose state is unknown the need is at least what stands.
    """
    if math.isnan(learnt.since):
        learnt.since = at
    _watch(learnt, row, pool, forecast, at)
    _notice_change(learnt, standing, at)
    if math.isnan(learnt.capacity) and prior is not None and not math.isnan(row["concurrency"]):
        return _by_prior(learnt, pool, prior, standing)
    if math.isnan(row["concurrency"]) or math.isnan(learnt.capacity):
        return Need(pool.name, None, why="demand or capacity per replica is not known yet")
    if learnt.tails.is_known and not math.isnan(learnt.pace.fast):
        found = _by_tails(learnt, pool, forecast, at, spare)
    else:
        found = _by_room(learnt, row, pool, forecast, at, spare)
    now, later, floor, why = found
    if _pressed(learnt, row, pool):
        now = max(now, math.ceil(row["ready"]) + 1)
    wanted = max(now, floor, pool.replicas_min)
    least = max(wanted, later)
    _remember(learnt, at, least)
    if not _may_shrink(learnt, at):
        # Who is hardly known gives nothing up for others either.
        least = max(least, standing)
    if row["ready"] < min(standing, row["replicas"]):
        least = wanted = max(wanted, standing)
    elif wanted < standing:
        wanted = _shrunk(learnt, at, standing)
    if pool.replicas_max:
        wanted = min(wanted, pool.replicas_max)
    least = min(least, wanted)
    late = _late_per_s(learnt, standing, wanted) if wanted > standing else ()
    return Need(pool.name, wanted, now, floor, why, least, min(least, _bare(learnt, pool, least)), late)


def _by_prior(learnt: Learnt, pool: PoolPolicy, prior: Prior, standing: int) -> Need:
    now = math.ceil(learnt.demand / (prior.requests * LOAD_TARGET))
    wanted = max(now, standing, pool.replicas_min)
    if pool.replicas_max:
        wanted = max(standing, min(wanted, pool.replicas_max))
    why = f"{learnt.demand:.0f} requests in flight, {prior.text}"
    return Need(pool.name, wanted, now, 0, why, wanted, standing)


def with_spares(need: Need, spares: int, pool: PoolPolicy) -> Need:
    """The need with so many replicas on top, for those that are to go once others are ready. Unknown stays unknown."""
    if need.wanted is None:
        return need
    wanted = need.wanted + spares
    if pool.replicas_max:
        wanted = max(need.wanted, min(wanted, pool.replicas_max))
    more = f"{need.why}; {spares} more until what is sick may go"
    return replace(need, wanted=wanted, least=need.least + wanted - need.wanted, why=more)


def held_to(need: Need, replicas: float, pool: PoolPolicy) -> Need:
    """No more than `replicas`, and no fewer than the operator's minimum: what was asked for beyond did not come."""
    most = max(int(replicas), pool.replicas_min)
    if need.wanted is None or need.wanted <= most:
        return need
    why = f"{need.why}; held to {most}: the last growth did not come"
    return replace(
        need, wanted=most, least=min(need.least, most), bare=min(need.bare, most), why=why, late_per_s=()
    )


def _bare(learnt: Learnt, pool: PoolPolicy, least: int) -> int:
    """Fewest replicas that are in time at the demand of now, at least those of the policy; `least` before that is known."""
    work = learnt.pace.fast
    if not learnt.tails.is_known or math.isnan(work):
        return least
    full = tails.full_load(learnt.tails, tails.bearable(learnt.tails, 1.0 - pool.slo_target))
    return max(pool.replicas_min, math.ceil(work / full))


def _late_per_s(learnt: Learnt, standing: int, wanted: int) -> tuple[float, ...]:
    """Requests a second late at the demand of now with `standing` replicas, with one more, up to `wanted`."""
    work = learnt.pace.fast
    if not learnt.tails.is_known or not work > 0 or not learnt.work > 0:
        return ()
    counts = range(max(1, standing), wanted + 1)
    return tuple(_late_with(learnt, work, count) * work / learnt.work for count in counts)


def _notice_change(learnt: Learnt, standing: int, at: float) -> None:
    if standing > learnt.stood:
        learnt.grown_at = at
    elif standing < learnt.stood:
        learnt.shrunk_at = at
    learnt.stood = standing


def is_watched(learnt: Learnt, at: float) -> bool:
    """Whether the pool's need has been seen for (nearly) as long as a pool must need less before it shrinks."""
    return bool(learnt.needs) and at - learnt.needs[0][0] >= SHRINK_WINDOW_S * 0.9


def _may_shrink(learnt: Learnt, at: float) -> bool:
    """Whether its need is known well enough to give replicas up.

    Until lateness by load is known a need is a guess from cache and queues, and a bold one where latency binds first: a
    pool that never tells lateness is believed after GUESS_S.
    """
    return is_watched(learnt, at) and (learnt.tails.is_known or at - learnt.since >= GUESS_S)


def _shrunk(learnt: Learnt, at: float, standing: int) -> int:
    """Replicas a pool may shrink to now: not below the highest need of the window, not in haste, not all at once."""
    if not _may_shrink(learnt, at) or at - learnt.grown_at < HOLD_S:
        return standing
    if at - learnt.shrunk_at < SHRINK_EVERY_S:
        return standing
    most = max(1, int(standing * SHRINK_STEP))
    return max(standing - most, min(standing, max(n for _, n in learnt.needs)))


def _watch(
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


def _by_room(
    learnt: Learnt,
    row: Mapping[str, float],
    pool: PoolPolicy,
    forecast: Forecast | None,
    at: float,
    spare: int,
) -> tuple[int, int, int, str]:
    """Replicas for the requests in flight, while little is known of how many come too late. See `_by_tails`."""
    demand = learnt.demand
    if row["waiting"] > 0.25 * row["running"]:
        demand = max(row["running"], min(row["concurrency"], _queued_demand(learnt, row)))
    if learnt.refused > 0 and learnt.stay_s > 0:
        demand += learnt.refused * learnt.stay_s
    per_replica = learnt.capacity * LOAD_TARGET

    def replicas(requests: float) -> int:
        return 0 if math.isnan(requests) else replicas_for(requests, per_replica, learnt.capacity, spare)

    reactive = replicas(demand)
    ahead = demand_ahead(forecast, at, pool.cold_start_s + 900.0)
    floor = replicas(ahead)
    # Shrinking needs more room than standing still: a pool sized to the last request grows again at the next.
    later = max(
        replicas(demand * SHRINK_ROOM), replicas(demand_ahead(forecast, at, 3600.0 + pool.cold_start_s))
    )
    why = f"{demand:.0f} requests in flight, {learnt.capacity:.0f} fit a replica: {reactive} needed now" + (
        f", {floor} for {ahead:.0f} expected within {pool.cold_start_s + 900:.0f} s" if floor else ""
    )
    return reactive, later, floor, why


def _by_tails(
    learnt: Learnt, pool: PoolPolicy, forecast: Forecast | None, at: float, spare: int
) -> tuple[int, int, int, str]:
    """Replicas with which few enough requests are late, from what was seen of lateness by load.

    Returns replicas for the demand expected when one started now is ready, for the highest within LOOK_S (a pool does
    not shrink below it), as the forecast alone has it, and why.
    """
    pace, seen = learnt.pace, learnt.tails
    meant = tails.bearable(seen, BUDGET_SHARE * (1.0 - pool.slo_target))
    borne = max(meant, late_borne(learnt, pool))
    full = tails.full_load(seen, meant)
    cramped = tails.full_load(seen, tails.bearable(seen, CRAMPED_LATE))
    if at - learnt.shrunk_at < HOLD_S:
        borne *= URGENT

    def replicas(work: float) -> int:
        loads = [work * factor for factor in pace.factors]
        enough = tails.replicas_at(seen, loads, meant, math.ceil(work / full))
        return max(enough, math.ceil(work / cramped) + spare)

    def will_do(work: float) -> bool:
        loads = [work * factor for factor in pace.factors]
        # Just after a shrink the spare is the one that has gone: what is then a little late does not call it back.
        has_shrunk = at - learnt.shrunk_at < HOLD_S
        survivors = max(learnt.stood - (0 if has_shrunk else spare), 1)
        return tails.lateness(seen, loads, learnt.stood) <= borne and work <= cramped * survivors

    horizon = pool.cold_start_s + paces.FAST_TAU_S
    looks = [horizon + k * LOOK_S / 3 for k in range(4)]
    soon, *after = paces.growths_of(forecast, at, looks)
    expected, usual = paces.expected(pace, soon), pace.slow * soon
    now, floor = replicas(expected), replicas(usual)
    if now > learnt.stood and will_do(max(expected, usual)):
        now, floor = learnt.stood, min(floor, learnt.stood)
    later = replicas(max(expected, pace.slow * max(after)))
    each = full / learnt.work
    why = (
        f"{expected / learnt.work:.2f} requests/s expected in {horizon:.0f} s (now {pace.fast / learnt.work:.2f}), one "
        f"replica serves {each:.2f}/s with {meant:.1%} late: {now} needed, {floor} by the forecast"
    )
    if now != learnt.stood and now > 1:
        why += f"; {now - 1} would leave {_late_with(learnt, expected, now - 1):.1%} late"
    return now, later, floor, why


def _late_with(learnt: Learnt, work: float, replicas: int) -> float:
    """Share of requests late with so many replicas, over what may come of the expected work."""
    return tails.lateness(learnt.tails, [work * factor for factor in learnt.pace.factors], replicas)


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


def _queued_demand(learnt: Learnt, row: Mapping[str, float]) -> float:
    """Requests that would be in flight if nobody had to queue: arrivals, and the backlog worked off in BACKLOG_S, for
    as long as a request usually stays. The queue itself counts the shortage again and again. NaN-safe: inf = unknown.
    """
    arrivals = row["lb_sessions_per_s"]
    if math.isnan(arrivals) or math.isnan(learnt.stay_s):
        return math.inf
    return (arrivals * BURST_ROOM + row["waiting"] / BACKLOG_S) * learnt.stay_s


def _remember(learnt: Learnt, at: float, replicas: int) -> None:
    """Keep the highest need of each minute of the shrink window."""
    if learnt.needs and at - learnt.needs[-1][0] < 60.0:
        learnt.needs[-1] = (learnt.needs[-1][0], max(replicas, learnt.needs[-1][1]))
        return
    learnt.needs.append((at, replicas))
    while at - learnt.needs[0][0] >= SHRINK_WINDOW_S:
        learnt.needs.pop(0)


def _pressed(learnt: Learnt, row: Mapping[str, float], pool: PoolPolicy) -> bool:
    """Whether requests have queued and missed their objective for most of the last minute."""
    bound, pace = 1.0 - pool.slo_target, learnt.pace
    if learnt.tails.is_known and not pace.fast > BURST_ROOM * pace.slow:
        # Without a burst the lateness planned for is watched over a day; a tick's is pressure only where it is cramped.
        bound = max(bound, CRAMPED_LATE)
    is_late = row["waiting"] > 0 and row["over_slo_ratio"] > bound
    learnt.pressure += PRESSURE_STEP * (float(is_late) - learnt.pressure)
    return learnt.pressure > 0.6


def replicas_for(demand: float, per_replica: float, capacity: float, spare: int) -> int:
    """Replicas that hold `demand` at planned load, and with `spare` of them gone still within capacity."""
    if demand <= 0:
        return 0
    return max(math.ceil(demand / per_replica), math.ceil(demand / (capacity * 0.95)) + spare)


def demand_ahead(forecast: Forecast | None, at: float, horizon_s: float, level: float = 0.9) -> float:
    """Highest forecast demand of the next `horizon_s` at a quantile level. NaN without a current forecast."""
    if forecast is None:
        return NAN
    first = int((at - forecast.at) / forecast.step_s)
    last = int((at + horizon_s - forecast.at) / forecast.step_s) + 1
    values = forecast.at_level(level)[max(0, first) : max(0, last)]
    return float(values.max()) if values.size else NAN
