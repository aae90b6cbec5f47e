"""How many replicas a pool needs: by what they have shown they carry, for demand now and demand ahead."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from daemon import pace as paces
from daemon import tails
from daemon.model import NAN, Forecast
from daemon.policy import PoolPolicy
from daemon.prior import Prior
from daemon.replica import BUDGET_SHARE, LOAD_TARGET, Learnt, late_borne, watch

SHRINK_WINDOW_S = 900.0
"""Before a pool shrinks it is watched for so long: three times HPA's, because a replica starts in minutes."""
SHRINK_ROOM = 1.25
BACKLOG_S = 45.0
"""A queue is to be gone within the patience of a client and a little."""
REAL_QUEUE = 0.25
"""Requests that wait over those that run from which on they are a queue that will not go by itself."""
BURST_ROOM = 1.3
"""A burst has no forecast: what arrives more than usual may still be growing."""
PRESSURE_STEP = 0.15
"""A tick's weight: six late ticks in a row are pressure, one is chance."""
SHRINK_SHARE = 1.2
"""Of the requests that may be late by the objective, how many might have been late in the last half hour with the replicas
a pool shrinks to: twice what is planned for, so that it does not grow again at once."""
CRAMPED_LATE = 0.10
"""With the spare replicas gone no more than one request in ten may be late until others have started."""
SHRINK_EVERY_S = 450.0
SHRINK_STEP = 0.1
"""A pool gives up at most a tenth, at least one, each seven minutes: what was one too many shows before the next goes, and a
burst seldom falls on a pool that has just shrunk."""
HOLD_S = 900.0
"""What was just started or given up stays so for a quarter of an hour, unless much more than planned would be late."""
URGENT = 7.0
"""Times the planned lateness that count as much more."""
GUESS_S = 6 * 3600.0
"""How long a pool is watched before it shrinks, or gives way to others, by a guess of what a replica holds. Judgement: the demo's second
pool gave up one of four replicas after a quarter of an hour and needed five once lateness was known."""
FIRM_MINUTES = 5
"""Minutes in which something was learnt of a replica before a pool grows by a guess of what it holds. The demo's third pool ordered six
replicas after one minute in which six requests seemed to fill one; thirty-six do."""
LOOK_S = 1800.0
"""A pool does not shrink into a rise that is forecast within so long beyond a cold start."""


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
    watch(learnt, row, pool, forecast, at)
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
    if (
        not (learnt.tails.is_known or learnt.minutes >= FIRM_MINUTES or _is_queueing(row))
        and max(now, floor) > standing
    ):
        now, floor = min(now, standing), min(floor, standing)
        why += f"; grows by that once it is seen for {FIRM_MINUTES} minutes ({learnt.minutes} yet)"
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
        wanted = _shrunk(learnt, pool, forecast, at, standing, least, spare)
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


def _shrunk(
    learnt: Learnt,
    pool: PoolPolicy,
    forecast: Forecast | None,
    at: float,
    standing: int,
    least: int,
    spare: int,
) -> int:
    """Replicas a pool may shrink to now: not below what it needed lately, not in haste, not all at once."""
    if least >= standing or not _may_shrink(learnt, at) or at - learnt.grown_at < HOLD_S:
        return standing
    if at - learnt.shrunk_at < SHRINK_EVERY_S:
        return standing
    most = max(1, int(standing * SHRINK_STEP))
    return max(standing - most, min(standing, max(least, _needed_lately(learnt, pool, forecast, at, spare))))


def _needed_lately(learnt: Learnt, pool: PoolPolicy, forecast: Forecast | None, at: float, spare: int) -> int:
    """Fewest replicas with which the last half hour, fallen as the forecast has it, would have been in time; before
    lateness is known the highest need of the shrink window."""
    seen = learnt.tails
    works = paces.lately(learnt.pace, forecast, at, pool.cold_start_s + paces.FAST_TAU_S)
    if not seen.is_known or not works:
        return max(n for _, n in learnt.needs)
    late = tails.bearable(seen, SHRINK_SHARE * (1.0 - pool.slo_target))
    cramped = tails.full_load(seen, tails.bearable(seen, CRAMPED_LATE))
    first = math.ceil(statistics.fmean(works) / tails.full_load(seen, late))
    # The spare may go in any of these minutes: for it the highest counts.
    return max(tails.replicas_at(seen, works, late, first), math.ceil(max(works) / cramped) + spare)


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
    if _is_queueing(row):
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
    if max(now, floor) > learnt.stood and will_do(max(expected, usual)):
        now, floor = min(now, learnt.stood), min(floor, learnt.stood)
    later = replicas(max(expected, pace.slow * max(after)))
    each = full / learnt.work
    why = (
        f"{expected / learnt.work:.2f} requests/s expected in {horizon:.0f} s (now {pace.fast / learnt.work:.2f}), one "
        f"replica serves {each:.2f}/s with {meant:.1%} late: {now} needed, {floor} by the forecast"
    )
    if now != learnt.stood and now > 1:
        fewer = _late_with(learnt, expected, now - 1)
        why += f"; {now - 1} would leave {fewer:.1%} late"
        if spare and fewer <= meant:
            without = _late_with(learnt, expected, now - 1 - spare) if now - 1 > spare else 1.0
            why += f"; with {spare} of {now - 1} gone {without:.1%} would be late"
    return now, later, floor, why


def _late_with(learnt: Learnt, work: float, replicas: int) -> float:
    """Share of requests late with so many replicas, over what may come of the expected work."""
    return tails.lateness(learnt.tails, [work * factor for factor in learnt.pace.factors], replicas)


def _is_queueing(row: Mapping[str, float]) -> bool:
    return row["waiting"] > REAL_QUEUE * row["running"]


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
