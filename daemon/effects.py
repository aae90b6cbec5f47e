"""Whether what was done had the effect that was expected of it, and what follows when it had none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from daemon.model import NAN, Effect, Entity, Evidence, Finding, Frames, Outcome, Result, Severity, Step, Verb
from daemon.policy import Policy, PoolPolicy
from daemon.topology import Topology

QUIET_PER_S = 0.02
"""New requests a second that are no traffic any more: a health check, a retry."""
SETTLE_S = 45.0
"""Rates look back over a scrape or two: what arrived before the change still shows for so long."""
REROUTE_S = 150.0
STARTS = 3.0
START_LEAST_S = 1200.0
"""A replica that is not there after three of its cold starts, and twenty minutes, does not come by itself."""
FORGET_S = 6 * 3600.0
HELD_S = 1800.0
"""For so long a pool is not grown beyond what came, after a growth that did not come."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A verified step whose effect is looked for until `due`. late : share of requests late when it was done, NaN = not
    known or not looked at yet. is_told : its absence has been said."""

    step: Step
    at: float
    due: float
    late: float = NAN
    is_told: bool = False


def expectation(outcome: Outcome, policy: Policy, at: float) -> Watch | None:
    """What to look for after a step that was seen done; None where being done is the effect itself."""
    step = outcome.step
    if outcome.result is not Result.DONE:
        return None
    if step.verb is Verb.SCALE and step.arg("from") and step.amount != float(step.arg("from")):
        pool = policy.pool(step.pool) or PoolPolicy(step.pool)
        return Watch(step, at, at + max(START_LEAST_S, STARTS * pool.cold_start_s))
    if step.verb is Verb.ISOLATE or (step.verb is Verb.REROUTE and step.amount <= 0.0):
        return Watch(step, at, at + REROUTE_S)
    return None


def renewed(watches: Sequence[Watch], outcome: Outcome, policy: Policy, at: float) -> list[Watch]:
    """The watches after an outcome: a later step on the same target takes the place of an earlier one."""
    step = outcome.step
    if outcome.result not in (Result.DONE, Result.UNKNOWN) or step.verb is Verb.NOTIFY:
        return list(watches)
    kept = [w for w in watches if w.step.target != step.target]
    new = expectation(outcome, policy, at)
    return [*kept, new] if new is not None else kept


def look(
    watches: Sequence[Watch], frames: Frames, topology: Topology
) -> tuple[list[Watch], list[Effect], list[Finding]]:
    """Watches that go on, what can be said now, and a claim for each effect that is still missing."""
    going: list[Watch] = []
    said: list[Effect] = []
    claims: list[Finding] = []
    for watch in watches:
        at, since_s = frames.at, frames.at - watch.at
        late = _late(watch.step, frames)
        if math.isnan(watch.late) and since_s < SETTLE_S:
            watch = replace(watch, late=late)
        is_seen, shown = _shown(watch.step, frames, topology)
        if since_s < SETTLE_S:
            is_seen = False
        if is_seen:
            how = "late" if watch.is_told else "seen"
            said.append(Effect(at, watch.step.id, how, f"{shown}{_change(watch.late, late)}", since_s))
            continue
        if at < watch.due:
            going.append(watch)
            continue
        if is_seen is None:
            said.append(Effect(at, watch.step.id, "unknown", f"nobody can tell: {shown}", since_s))
            continue
        if not watch.is_told:
            said.append(Effect(at, watch.step.id, "missing", shown, since_s))
            watch = replace(watch, is_told=True)
        if since_s < FORGET_S:
            going.append(watch)
            claims.append(_claim(watch, frames, shown))
    return going, said, claims


def _shown(step: Step, frames: Frames, topology: Topology) -> tuple[bool | None, str]:
    """Whether the telemetry shows the effect, and what it shows; None = it cannot be told."""
    if step.verb is Verb.SCALE:
        ready = frames["pool"].value(step.pool, "ready")
        if math.isnan(ready):
            return None, f"how many replicas of {step.pool} are ready is not measured"
        grows = step.amount > float(step.arg("from"))
        is_seen = ready >= step.amount if grows else ready <= step.amount
        return is_seen, f"{ready:g} replicas of {step.pool} are ready, {step.amount:g} were to be"
    engines = topology.engines_touched(step.target)
    rates = [frames["engine"].value(e, "lb_sessions_per_s") for e in engines]
    known = [r for r in rates if r == r]
    if not engines:
        return True, f"nothing serves on {step.target} any more"
    if not known:
        return None, f"the gateway's new sessions to {', '.join(engines)} are not measured"
    still = sum(known)
    return still <= QUIET_PER_S, f"{step.target} gets {still:.2f} new requests/s"


def _late(step: Step, frames: Frames) -> float:
    return frames["pool"].value(step.pool, "over_slo_ratio") if step.pool else NAN


def _change(before: float, now: float) -> str:
    if before != before or now != now:
        return ""
    return f"; {before:.1%} of the requests were late, {now:.1%} are"


WHY: Mapping[Verb, str] = {
    Verb.SCALE: "no GPUs, an image or a model that does not load, or a cold start longer than configured",
    Verb.REROUTE: "another way leads to it past the gateway whose weight was set",
    Verb.ISOLATE: "its replicas still get requests: another way leads to them",
}


def _claim(watch: Watch, frames: Frames, shown: str) -> Finding:
    step = watch.step
    since_s = frames.at - watch.at
    return Finding(
        frames.at,
        "effects",
        Entity("pool", step.pool) if step.verb is Verb.SCALE else step.target,
        "no_effect",
        0.9,
        Severity.WARNING,
        (Evidence("since_done", since_s, "s"),),
        text=f"{step.verb.value} {step.id} was done {since_s / 60.0:.0f} min ago and has no effect: {shown}",
        rejected=(f"a slow start: it was given {(watch.due - watch.at) / 60.0:.0f} min",)
        if step.verb is Verb.SCALE
        else ("requests from before: rates look back over a minute at most",),
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A pool whose growth did not come. replicas : what it is held to. until : then it is tried again."""

    replicas: float
    until: float


def held(said: Sequence[Effect], watches: Sequence[Watch], frames: Frames) -> Mapping[str, Held]:
    """pool -> what it is held to, for each growth whose absence has just been said: what waits for room is given back."""
    missing = {e.step for e in said if e.state == "missing"}
    found = {}
    for watch in watches:
        step = watch.step
        if step.id in missing and step.verb is Verb.SCALE and step.amount > float(step.arg("from")):
            ready = frames["pool"].value(step.pool, "ready")
            found[step.pool] = Held(max(ready, 1.0), frames.at + HELD_S)
    return found
