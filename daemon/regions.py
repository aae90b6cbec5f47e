"""Which share of all requests each region is to get, by health, latency, what it can carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.fleet import Fleet
from daemon.model import NAN, Entity, Frame, Frames, Step, Verb
from daemon.policy import Federation, Policy

WELL, UNKNOWN, BACK, LOST = "well", "unknown", "back", "lost"
"""Back = it was lost, and is watched for a while before it gets requests again. Unknown = its share stays as it is."""
FRONT_DOWN_S = 30.0
"""One probe that fails is chance; two in a row are not."""
READY_ROOM = 1.2
"""Over what the ready replicas are planned to carry: a little more makes a region grow, and planned is three quarters of
what a replica holds (`daemon.replica.LOAD_TARGET`)."""
NEED_ROOM = 1.25
"""The same while requests of a lost region have to go somewhere: still below what a replica holds."""
TRY_SHARE = 0.05
"""Share of all requests for a region that has none, by which it is seen what it carries."""
TOTAL_S = 300.0
"""The highest total of so long counts: demand that seems to fall because a region fell silent has not fallen."""
RATE_TAU_S, ROOM_TAU_S, SIZE_TAU_S, TTFT_TAU_S = 60.0, 120.0, 3600.0, 900.0
"""Over how long each is averaged: what a minute shows of a few replicas is mostly chance, and preferences that follow the
load would chase themselves."""
TRUST_S = 1800.0
"""For so long after it came back a region's share only rises by degrees."""
KNOWN_S = 900.0
"""What a region carries must have been seen for so long before anything is moved that need not be."""
OVER_ROOM, OVER_S = 1.45, 60.0
"""A region that gets more than it can hold for so long is in need."""
CENT = 0.01
"""Balancers hold whole weights; shares are whole hundredths."""


@dataclass(slots=True)
class Seen:
    """What is remembered of a region. first_at, heard_at : when its health was known first, and last.

    looks, ever : how often it was heard since the last move, and ever. health .. front : what it said at heard_at, over
    a while. size : what it could carry, on the mean of an hour. lost_at : NaN = it is not lost. well_since : since when it
    is heard again after a loss, NaN = it was never lost. front_down_at, over_at : since when the probe of its front door
    fails, and since when more comes than it can hold; NaN = not so.
    """

    first_at: float = NAN
    heard_at: float = -math.inf
    looks: int = 0
    ever: int = 0
    size: float = NAN
    health: float = NAN
    rate: float = NAN
    carries: float = NAN
    could: float = NAN
    ttft_s: float = NAN
    front: float = NAN
    lost_at: float = NAN
    well_since: float = NAN
    front_down_at: float = NAN
    over_at: float = NAN


@dataclass(slots=True)
class View:
    """What the view over regions remembers. totals : (at, requests a second of all) of the last minutes.

    moved_at, wished_at : when shares last moved; since when others are wished for.
    states, wanted : region -> how it stands; share it would get if nothing held it back. proposed : shares asked for and
    not yet there. short : share of all requests that fits nowhere. note : what keeps the view from moving anything.
    """

    seen: dict[str, Seen] = field(default_factory=dict)
    totals: list[list[float]] = field(default_factory=list)
    moved_at: float = -math.inf
    wished_at: float = NAN
    stood: dict[str, float] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, float] = field(default_factory=dict)
    proposed: dict[str, float] = field(default_factory=dict)
    short: float = 0.0
    note: str = ""


def propose(frames: Frames, fleet: Fleet, policy: Policy, view: View) -> list[Step]:
    """The shares that should change now, as steps; the view is brought up to date. Nothing without members."""
    federation = policy.federation
    if not federation.members:
        return []
    at = frames.at
    _hear(view, at, frames["region"], federation)
    view.states = _states(view, at, federation)
    shares = current(view, fleet, federation)
    if fleet.shares != view.stood:
        view.stood, view.moved_at = dict(fleet.shares), at
        for seen in view.seen.values():
            seen.looks = 0
    total = _total(view, at, shares, federation)
    view.note = _blind(view, shares, total)
    if view.note:
        view.wanted, view.proposed = {}, {}
        return []
    view.wanted, view.short = wanted(view, shares, total, federation, at)
    is_urgent = _is_urgent(view, shares, total, at)
    found = _held_back(view, shares, at, federation, is_urgent)
    # Who is asked to approve must not find another number a minute later.
    if _differ(found, view.proposed) >= federation.step_min or is_urgent or not found:
        view.proposed = found
    # Weights are shares only once every balancer entry has been given one.
    moves = {
        r: s
        for r, s in view.proposed.items()
        if r not in fleet.shares or abs(s - shares.get(r, 0.0)) > CENT / 2
    }
    return [_step(policy, region, share, shares.get(region, 0.0), view) for region, share in moves.items()]


def current(view: View, fleet: Fleet, federation: Federation) -> dict[str, float]:
    """region -> share of all requests: as we have set it, else as the requests come; {} while neither is known."""
    names = [*federation.members, *([federation.overflow] if federation.overflow else [])]
    if all(name in fleet.shares for name in federation.members):
        return {name: fleet.shares.get(name, 0.0) for name in names}
    rates = {name: view.seen[name].rate for name in federation.members}
    total = sum(rates.values())
    if not total > 0:
        return {}
    return {name: rates.get(name, 0.0) / total for name in names}


def turned_away(view: View, fleet: Fleet, federation: Federation) -> dict[str, float]:
    """region -> requests a second that go to the overflow and that it could serve once it has grown.

    Shared by the room that is left on all GPUs of each; {} while nothing is known of shares or room, zeros while nothing
    is turned away.
    """
    total = max((t[1] for t in view.totals), default=NAN)
    shares = current(view, fleet, federation) if total > 0 else {}
    if not shares:
        return {}
    away = total * shares.get(federation.overflow, 0.0)
    room = {
        n: max(0.0, view.seen[n].could - view.seen[n].rate)
        if s == WELL and view.seen[n].could == view.seen[n].could
        else 0.0
        for n, s in view.states.items()
    }
    whole = sum(room.values())
    return {n: away * part / whole if whole > 0 else 0.0 for n, part in room.items()}


# -- looking ---------------------------------------------------------------------------------------------


def _hear(view: View, at: float, frame: Frame, federation: Federation) -> None:
    view.seen = {name: view.seen.get(name) or Seen() for name in federation.members}
    signals = ("health_ratio", "requests_per_s", "carries_per_s", "could_carry_per_s", "ttft_s", "front_up")  # fmt: skip
    rows = dict(zip(frame.entities, frame.columns(signals).tolist(), strict=True))
    for name, seen in view.seen.items():
        health, rate, carries, could, ttft, seen.front = rows.get(name, [NAN] * len(signals))
        if health == health:
            passed_s = at - seen.heard_at
            seen.first_at = seen.first_at if seen.first_at == seen.first_at else at
            seen.looks = 1 if passed_s > TOTAL_S else seen.looks + 1
            seen.ever += could == could
            # What a region carried is remembered while it carries nothing.
            seen.carries = _smooth(seen.carries, carries, passed_s / ROOM_TAU_S, seen.looks)
            seen.could = _smooth(seen.could, could, passed_s / ROOM_TAU_S, seen.looks)
            seen.size = _smooth(seen.size, could, passed_s / SIZE_TAU_S, seen.ever)
            seen.rate = _smooth(seen.rate, rate, passed_s / RATE_TAU_S, seen.looks)
            seen.ttft_s = _smooth(seen.ttft_s, ttft, passed_s / TTFT_TAU_S, seen.ever)
            seen.heard_at, seen.health = at, health
        if seen.front != 0.0:
            seen.front_down_at = NAN
        elif seen.front_down_at != seen.front_down_at:
            seen.front_down_at = at


def _smooth(old: float, new: float, passed: float, looks: int) -> float:
    """The fading mean; what is not measured keeps the old.

    passed : time since the last value over the time constant. looks : how many values there were; of few the plain mean.
    """
    if new != new or old != old:
        return old if new != new else new
    return old + max(1.0 - math.exp(-passed), 1.0 / max(1, looks)) * (new - old)


def _states(view: View, at: float, federation: Federation) -> dict[str, str]:
    """region -> how it stands. Silence alone is no loss while a probe is answered: then the daemon is away, not the region."""
    found = {}
    for name, seen in view.seen.items():
        silent_s = at - seen.heard_at
        is_shut = at - seen.front_down_at >= FRONT_DOWN_S
        is_gone = math.isfinite(silent_s) and silent_s > federation.lost_after_s and seen.front != 1.0
        if is_shut or is_gone:
            seen.lost_at = seen.lost_at if seen.lost_at == seen.lost_at else at
            seen.well_since = NAN
            found[name] = LOST
        elif silent_s > 0 or seen.front == 0.0:
            # Not heard in this tick: nothing is concluded yet.
            found[name] = LOST if seen.lost_at == seen.lost_at else UNKNOWN
        elif seen.lost_at == seen.lost_at:
            seen.well_since = seen.well_since if seen.well_since == seen.well_since else at
            found[name] = BACK
            if at - seen.well_since >= federation.hold_s:
                seen.lost_at = NAN
                found[name] = WELL
        else:
            found[name] = WELL if _capacity(seen) == _capacity(seen) else UNKNOWN
    return found


def _capacity(seen: Seen) -> float:
    """What it carried when that was last known; a region that has never carried anything is known by its GPUs alone."""
    return (
        seen.could if seen.could == seen.could else 0.0 if seen.rate == 0.0 or seen.rate != seen.rate else NAN
    )


def _total(view: View, at: float, shares: Mapping[str, float], federation: Federation) -> float:
    """Requests a second of all regions: what the known ones get over the share they are given."""
    known = [
        n for n, s in view.states.items() if s in (WELL, BACK) and view.seen[n].rate == view.seen[n].rate
    ]
    share = sum(shares.get(n, 0.0) for n in known)
    # Just moved, rates lag behind shares.
    if share >= 0.2 and at - view.moved_at >= federation.settle_s:
        view.totals.append([at, sum(view.seen[n].rate for n in known) / share])
    elif not view.totals and shares:
        view.totals.append([at, sum(view.seen[n].rate for n in shares if n in view.seen)])
    newest = view.totals[-1:]
    view.totals = [t for t in view.totals if at - t[0] <= TOTAL_S] or newest
    return max((t[1] for t in view.totals), default=NAN)


def _blind(view: View, shares: Mapping[str, float], total: float) -> str:
    """Why nothing can be concluded now, "" when something can."""
    lost = [n for n, s in view.states.items() if s == LOST]
    proven = [n for n in lost if view.seen[n].front == 0.0]
    if not any(s in (WELL, BACK) for s in view.states.values()):
        return "no region is heard of: every share stays as it is"
    if 2 * (len(lost) - len(proven)) > len(view.states):
        return (
            "most regions fell silent together: rather this view is cut off than they are; every share stays"
        )
    if not shares or not total > 0:
        return "how many requests come is not known yet"
    return ""


# -- sharing ---------------------------------------------------------------------------------------------


def wanted(
    view: View, shares: Mapping[str, float], total: float, federation: Federation, at: float
) -> tuple[dict[str, float], float]:
    """region -> share it should get, all together 1; and the share of all requests that fits nowhere.

    What is preferred is given until a region is full; the rest goes to those with room. Without room anywhere all get
    more than they carry, in proportion, unless something else takes the overflow.
    """
    found = {n: shares.get(n, 0.0) for n, s in view.states.items() if s == UNKNOWN}
    found |= {n: 0.0 for n, s in view.states.items() if s in (LOST, BACK)}
    well = [n for n, s in view.states.items() if s == WELL]
    left = max(0.0, 1.0 - sum(found.values()))
    liking = _liking(view, well, federation)
    given = dict.fromkeys(well, 0.0)
    for room in (READY_ROOM, NEED_ROOM):
        limits = {
            n: min(_limit(view, n, room, total, federation), _trust(view, n, shares, federation, at))
            for n in well
        }
        left = _fill(given, liking, limits, left)
    short = left if left > CENT / 2 else 0.0
    if short and federation.overflow:
        found[federation.overflow] = short
    elif left > 0 and well:
        could = {n: max(view.seen[n].could, 1e-9) if view.seen[n].could > 0 else 1e-9 for n in well}
        _fill(given, could, dict.fromkeys(well, math.inf), left)
    if federation.overflow:
        found.setdefault(federation.overflow, 0.0)
    return found | given, short


def _liking(view: View, well: list[str], federation: Federation) -> dict[str, float]:
    late = {
        n: federation.members[n].round_trip_s + (view.seen[n].ttft_s if view.seen[n].ttft_s > 0 else 0.0)
        for n in well
    }
    best = min(late.values(), default=0.0)
    found = {}
    for name in well:
        seen = view.seen[name]
        near = max(0.1, 1.0 - 0.9 * (late[name] - best) / federation.latency_span_s)
        found[name] = (seen.size if seen.size > 0 else 1e-9) * seen.health * near
    return found


def _limit(view: View, name: str, room: float, total: float, federation: Federation) -> float:
    """Share of all requests the region may get."""
    seen, top = view.seen[name], federation.members[name].share_max
    if seen.health <= 0:
        return 0.0
    idle = not seen.rate > 0 or seen.carries != seen.carries
    if idle:
        # It may have shrunk while it had nothing to do: a try shows what it carries now.
        return min(top, TRY_SHARE)
    most = federation.load_max if room == READY_ROOM else 1.0
    return min(top, min(most * seen.could, room * seen.carries) / total)


def _trust(view: View, name: str, shares: Mapping[str, float], federation: Federation, at: float) -> float:
    """Share that a region which was lost not long ago may get: it rises by degrees, also while others are in need."""
    if not at - view.seen[name].well_since < TRUST_S:
        return 1.0
    return shares.get(name, 0.0) + federation.rise_per_minute * federation.settle_s / 60.0


def _fill(
    given: dict[str, float], liking: Mapping[str, float], limits: Mapping[str, float], amount: float
) -> float:
    """Pour an amount in proportion to liking, nobody above its limit; returns what is left."""
    open_ = [n for n in given if limits[n] - given[n] > 1e-9 and liking[n] > 0]
    while open_ and amount > 1e-9:
        weight = sum(liking[n] for n in open_)
        portion = {n: amount * liking[n] / weight for n in open_}
        full = [n for n in open_ if given[n] + portion[n] >= limits[n]]
        for name in full or open_:
            more = min(portion[name], limits[name] - given[name])
            given[name] += more
            amount -= more
        if not full:
            return 0.0
        open_ = [n for n in open_ if n not in full]
    return amount


def _is_urgent(view: View, shares: Mapping[str, float], total: float, at: float) -> bool:
    """Whether requests go where nobody answers, or for a while more come somewhere than can be held."""
    is_over = False
    for name, state in view.states.items():
        share, seen = shares.get(name, 0.0), view.seen[name]
        if state == LOST and share > CENT / 2:
            return True
        is_full = share * total > OVER_ROOM * seen.carries and at - seen.first_at >= KNOWN_S
        if state != WELL or not is_full:
            seen.over_at = NAN
            continue
        seen.over_at = at if seen.over_at != seen.over_at else seen.over_at
        stood_s = at - max(seen.over_at, view.moved_at)
        is_over = is_over or (stood_s >= OVER_S and view.wanted.get(name, share) < share - CENT)
    return is_over


def _held_back(
    view: View, shares: Mapping[str, float], at: float, federation: Federation, is_urgent: bool
) -> dict[str, float]:
    """The shares to ask for now: at once in need, else in small steps some time apart. {} = nothing is to move."""
    target = view.wanted
    if is_urgent:
        return hundredths(target)
    if _differ(target, shares) < federation.step_min:
        view.wished_at = NAN
        return {}
    if any(at - view.seen[n].first_at < KNOWN_S for n, state in view.states.items() if state == WELL):
        return {}
    if view.wished_at != view.wished_at:
        view.wished_at = at
    # A wish that has stood for a while, and only after the last move has shown: one late minute is chance.
    if at - max(view.wished_at, view.moved_at) < federation.settle_s:
        return {}
    rises = {n: max(0.0, t - shares.get(n, 0.0)) for n, t in target.items()}
    most = federation.rise_per_minute * federation.settle_s / 60.0
    rising = sum(rises.values())
    part = min(1.0, most / rising) if rising > 0 else 1.0
    return hundredths({n: shares.get(n, 0.0) + part * (t - shares.get(n, 0.0)) for n, t in target.items()})


def _differ(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return max((abs(a.get(n, 0.0) - b.get(n, 0.0)) for n in {*a, *b}), default=0.0)


def hundredths(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares as whole hundredths that are 1 together; what is cut goes where most was cut.

    >>> hundredths({"a": 1 / 3, "b": 2 / 3, "c": 0.0})
    {'a': 0.33, 'b': 0.67, 'c': 0.0}
    """
    whole = {n: math.floor(s / CENT + 1e-9) for n, s in shares.items()}
    missing = round(sum(shares.values()) / CENT) - sum(whole.values())
    for name in sorted(shares, key=lambda n: (whole[n] - shares[n] / CENT, n))[: max(0, missing)]:
        whole[name] += 1
    return {n: round(count * CENT, 2) for n, count in whole.items()}


def _step(policy: Policy, region: str, share: float, before: float, view: View) -> Step:
    lost = [n for n, s in view.states.items() if s == LOST]
    why = f"{', '.join(lost)} lost" if lost else "health, latency and room of the regions"
    if view.short:
        why += f"; {view.short:.0%} of all requests fit nowhere"
    return Step(
        id="",
        verb=Verb.BALANCE,
        target=Entity("region", region),
        amount=share,
        reason=f"{before:.0%} -> {share:.0%} of all requests: {why}",
        expected=f"{share:.0%} of new requests go to {region} within a minute",
        deadline_s=60.0,
        args=(("owner", f"tidewarden/{policy.cluster}"),),
    )
