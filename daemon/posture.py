"""How the cluster stands against the live checklists: a day of measurements to pass, fail or unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.checklist import ITEMS, Item
from daemon.hours import HOUR_S, Hours
from daemon.measures import measured
from daemon.model import NAN, Frame, Frames, Incident, Outcome, Result, Verb
from daemon.outlook import Outlook
from daemon.patterns import PATTERNS
from daemon.policy import Mode, Policy
from daemon.topology import Topology

EVERY_S = 300.0
"""A day and its busiest hour do not change for a closer look, and one costs as much as a quarter of a tick."""
DAY_S = 86400.0
DAYS_KEPT = 70
MONTH_S = 30 * DAY_S
ENOUGH_H = 1
"""Hours seen before an item is judged; how many of the 24 were is said."""
WHOLE_HOUR = 10
"""Looks of an hour that make it a whole one: a replica that stood for a part of it saw another load."""
LEAST_LOAD = 1.0
"""Requests a replica below which a difference says nothing."""
ANSWERS = (Verb.REROUTE, Verb.ISOLATE)
ROLES = {
    "gateway": ("haproxy", "nginx", "envoy", "gateway"),
    "etcd": ("etcd",),
    "storage": ("ceph", "lustre", "nfs", "minio", "storage"),
}
"""Part -> words in the job of its targets; a target's label `part` says it where the job does not."""


@dataclass(slots=True)
class Day:
    """What the checklists remember. hours : what was measured over the last 24.

    answers : (at, seconds from opening to answer) of a month. answered : incidents already counted.
    attested : item -> [value, until] by evaluation jobs. daily : [day since the epoch, most GPUs that served on it], of the
    last DAYS_KEPT days.
    """

    hours: Hours = field(default_factory=Hours)
    answers: list[list[float]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    attested: dict[str, list[float]] = field(default_factory=dict)
    daily: list[list[float]] = field(default_factory=list)
    at: float = -math.inf

    def watch(self, frames: Frames, topology: Topology) -> None:
        """Take in one look, at most one in five minutes."""
        if frames.at - self.at < EVERY_S:
            return
        self.at = frames.at
        for name, value in measured(frames, topology):
            self.hours.add(name, frames.at, value)
            if name == "serving_gpus" and value == value:
                self._note(math.floor(frames.at / DAY_S), value)
        self.hours.forget(frames.at)

    def _note(self, day: int, gpus: float) -> None:
        if self.daily and self.daily[-1][0] == day:
            self.daily[-1][1] = max(self.daily[-1][1], gpus)
        else:
            self.daily = [*self.daily, [float(day), gpus]][-DAYS_KEPT:]

    def absorb(self, outcome: Outcome, began: Mapping[str, float], at: float) -> None:
        """Count how long the first verified answer to an incident took. began : incident -> its onset, see `onset`."""
        incident = outcome.step.incident
        if outcome.result is not Result.DONE or outcome.step.verb not in ANSWERS or incident not in began:
            return
        if incident not in self.answered:
            self.answered = [*self.answered[-999:], incident]
            self.answers.append([at, at - began[incident]])
        self.answers = [answer for answer in self.answers if at - answer[0] <= MONTH_S]

    def take_over(self, consequence: str, root: str) -> None:
        """An incident that explains an earlier one has its answer too: what was done for the engines of a node that hangs,
        before anybody knew that it was the node, had brought the service back."""
        if consequence in self.answered and root not in self.answered:
            self.answered = [*self.answered[-999:], root]


def is_failure(incident: Incident) -> bool:
    """Whether something failed. What is only slower than its peers serves on while it is made sure of: no recovery waits for it."""
    pattern = PATTERNS.get(incident.kind)
    return pattern is None or pattern.family != "straggler"


def onset(incident: Incident) -> float:
    """When it began as far as its findings can tell, else when it was opened: what was late to be seen was late."""
    return min(incident.opened, incident.since) if incident.since == incident.since else incident.opened


@dataclass(frozen=True, slots=True)
class Score:
    """Where one item stands. state : "pass", "fail", "unknown" or "not_applicable".

    value : NaN = not measured. evidence : what was measured over which window. missing : what is needed, or why the item
    does not apply; "" when it was measured. todo : what would help, "" when it passes.
    """

    item: str
    tier: str
    state: str
    value: float
    target: float
    unit: str
    is_floor: bool
    title: str
    evidence: str
    missing: str
    todo: str


# -- judging -------------------------------------------------------------------------------------------------


def assess(
    day: Day, frames: Frames, topology: Topology, policy: Policy, outlook: Outlook
) -> tuple[Score, ...]:
    """Every item, in the order of the checklists."""
    special = {
        "load_deviation": _deviation(day),
        "recovery_30s": _recovery(day),
        "recovery_60s": _recovery(day),
        "quantisation_loss": _attested(day, "quantisation_loss", frames.at),
        "redundancy": _redundancy(frames["target"], frames["part"]),
        "congestion_control": _congestion(day),
        "stragglers_isolated": _isolated(policy),
        "capacity_warning": _warned(outlook, frames.at),
        "ttft_7b": _day(day, "ttft_7b") if day.hours.seen_h("serves_7b") else (NAN, "", "no model of 6 to 9 billion parameters is served"),
        "pp_bubble": _stages_seen(day, topology),
        "tp_efficiency": _wide(day, "tp_efficiency", topology),
        "communication_share": _wide(day, "communication_share", topology),
    }  # fmt: skip
    return tuple(_score(name, item, *(special.get(name) or _day(day, name))) for name, item in ITEMS.items())


Found = tuple[float, str, str]
"""Value, what it rests on, why the item does not apply ("" = it does)."""


def _score(name: str, item: Item, value: float, evidence: str, not_here: str) -> Score:
    if not_here:
        state = "not_applicable"
    elif value != value:
        state = "unknown"
    else:
        state = "pass" if (value >= item.target if item.is_floor else value <= item.target) else "fail"
    missing = not_here or (evidence or f"needs {item.needs}" if state == "unknown" else "")
    return Score(
        item=name,
        tier=item.tier,
        state=state,
        value=value,
        target=item.target,
        unit=item.unit,
        is_floor=item.is_floor,
        title=item.title,
        evidence="" if state in ("unknown", "not_applicable") else evidence,
        missing=missing,
        todo=item.remedy if state == "fail" else "",
    )


def _day(day: Day, name: str) -> Found:
    item, seen = ITEMS[name], day.hours.seen_h(name)
    if seen < ENOUGH_H:
        return NAN, "", ""
    value = day.hours.peak(name) if item.over == "peak" else day.hours.mean(name)
    what = "the busiest hour" if item.over == "peak" else "the mean"
    return value, f"{item.how}; {what} of {seen} h", ""


def _wide(day: Day, name: str, topology: Topology) -> Found:
    if topology.gpus_of and all(len(gpus) < 2 for gpus in topology.gpus_of.values()):
        return NAN, "", "every replica runs on one GPU"
    return _day(day, name)


def _stages_seen(day: Day, topology: Topology) -> Found:
    spans = [len({g.split("/", 1)[0] for g in gpus}) for gpus in topology.gpus_of.values()]
    if spans and max(spans) < 2 and not day.hours.seen_h("pp_bubble"):
        return NAN, "", "every replica stands within one node: there are no stages"
    return _day(day, "pp_bubble")


def _deviation(day: Day) -> Found:
    """The worst pool, hour by hour among nodes that served the whole hour: a moment's difference is chance."""
    pools: dict[str, dict[float, dict[str, float]]] = {}
    for name, rows in day.hours.rows.items():
        if name.startswith("load\t"):
            _, pool, node = name.split("\t")
            for hour, total, count in rows:
                if count >= WHOLE_HOUR:
                    pools.setdefault(pool, {}).setdefault(hour, {})[node] = total / count
    worst, where = NAN, ""
    for pool, hours in sorted(pools.items()):
        found = [_over_mean(loads) for loads in hours.values() if len(loads) > 1]
        known = [value for value in found if value == value]
        if known and not worst >= sum(known) / len(known):
            worst = sum(known) / len(known)
            where = f"pool {pool}, its busiest node over the mean of its nodes, mean of {len(known)} h"
    if (
        worst != worst
        and pools
        and all(len(loads) < 2 for hours in pools.values() for loads in hours.values())
    ):
        return NAN, "", "no pool stands on two nodes"
    return worst, where, ""


def _over_mean(loads: Mapping[str, float]) -> float:
    mean = sum(loads.values()) / len(loads)
    return max(loads.values()) / mean - 1.0 if mean >= LEAST_LOAD else NAN


def _recovery(day: Day) -> Found:
    if not day.answers:
        return NAN, "no incident was answered in 30 days; tidewarden drill --scenario xid79 shows it", ""
    took = sorted(seconds for _, seconds in day.answers)
    value = took[math.ceil(0.9 * len(took)) - 1]
    return value, f"{len(took)} answered incident{'s' if len(took) > 1 else ''} in 30 days", ""


def _attested(day: Day, name: str, at: float) -> Found:
    value, until = day.attested.get(name, (NAN, -math.inf))
    if value == value and until < at:
        return NAN, f"the attested value ran out {(at - until) / HOUR_S:.0f} h ago; {ITEMS[name].needs}", ""
    return value, "attested by an evaluation job" if value == value else "", ""


def _redundancy(target: Frame, part: Frame) -> Found:
    """Instances of the part with the fewest that do their work. What votes (etcd, Ceph's monitors) counts those beyond a bare
    majority, and one: three of three is N+1, two of three is not."""
    blank = ("",) * len(target.entities)
    works = dict(zip(part.entities, part.column("healthy").tolist(), strict=True))
    of_part = dict(zip(part.entities, part.facts.get("part", ("",) * len(part.entities)), strict=True))
    known: dict[str, list[bool]] = {}
    for name, job, told, up in zip(
        target.entities, target.facts.get("job", blank), target.facts.get("part", blank), target.column("up").tolist(), strict=True
    ):  # fmt: skip
        role = told or of_part.get(name) or next(
            (r for r, words in ROLES.items() if any(w in job.lower() for w in words)), ""
        )  # fmt: skip
        # A page that answers is no instance that works: where the page says which, its word counts. A silent one says nothing.
        if role in ROLES:
            known.setdefault(role, []).append(up == 1.0 and works.get(name, 1.0) == 1.0)
    monitors = [works[name] == 1.0 for name in part.entities if name.startswith("ceph/mon.")]
    if monitors:
        known["storage"] = monitors
    votes = {"etcd": known.get("etcd", []), "storage": monitors}
    counts = {}
    for role in ROLES:
        states = known.get(role, [])
        spare = sum(states) - (len(states) // 2 + 1) if states and votes.get(role) else sum(states) - 1
        counts[role] = max(0, spare + 1) if states else -1
    seen = {role: count for role, count in counts.items() if count >= 0}
    absent = [role for role in ROLES if role not in seen]
    fewest = min(seen.values(), default=0)
    said = ", ".join(f"{sum(known[role])} of {len(known[role])} {role} work" for role in seen)
    if absent and (fewest > 1 or not seen):
        return NAN, f"no target of {' or '.join(absent)} is known" + (f" (seen: {said})" if said else ""), ""
    return float(fewest), said + (f"; nothing is seen of {' or '.join(absent)}" if absent else ""), ""


def _congestion(day: Day) -> Found:
    if not day.hours.seen_h("congestion_signs"):
        return NAN, "", ""
    if day.hours.mean("congestion_signs") > 0:
        return 1.0, "marks or pause frames were counted in the last day", ""
    if day.hours.mean("congestion_drops") > 0:
        return 0.0, "ports dropped packets and not one was marked or paused", ""
    return (
        NAN,
        "the counters exist and did not move: nothing was congested, so nothing shows whether it is on",
        "",
    )


def _isolated(policy: Policy) -> Found:
    modes = {verb: policy.mode_of(verb, "") for verb in ANSWERS}
    is_on = "straggler" not in policy.disabled and all(mode is Mode.AUTO for mode in modes.values())
    said = ", ".join(f"{verb.value} is in mode {mode.value}" for verb, mode in modes.items())
    return (
        float(is_on),
        said + ("; the detector is switched off" if "straggler" in policy.disabled else ""),
        "",
    )


def _warned(outlook: Outlook, at: float) -> Found:
    if not outlook.is_known:
        return NAN, "", ""
    steps = len(next(iter(outlook.needed.values())))
    old = max(0.0, at - outlook.made_at)  # one made within an hour begins with the next
    ahead = steps * outlook.step_s - old
    return ahead / HOUR_S, f"the forecast of {old / HOUR_S:.1f} h ago reaches that far", ""
