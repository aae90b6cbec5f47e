"""GPUs that work slower than comparable ones: by their clock, and by who waits for whom in a lock-step group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.minutes import Minutes
from detectors.scales import FIVE, TAIL_MIN, Flags, Scales, in_units
from detectors.stats import Groups, groups, middle, peers, rows

SIGNALS = ("sm_clock_mhz", "util_ratio", "tensor_active_ratio", "dram_active_ratio", "power_w")
CLOCK, UTIL, TENSOR, DRAM, POWER = range(5)
LOCKSTEP = "straggler.lockstep"
NOTHING_FELT: Mapping[str, tuple[float, float]] = MappingProxyType({})
LEAD, LEAD_SIGMAS, STEP_SIGMAS, BOTH_SIGMAS = 0.05, 4.0, 6.0, 6.5
"""A rank that leads by so much over five minutes while its replica's steps are longer: two witnesses that know nothing of one another. Their
sum over the root of two must be so many deviations, of which steps count so many at most. Sound ranks of tune slow 501-504 and 512-513 reached 5.2 in
130 replica-days; the tail falls by half in 0.3."""
LEAST_FELT, MOST_FELT = 0.3, 2.0
"""A rank its group waits for makes every step as much longer, within the noise of both; and a replica that is slow otherwise is no witness."""
TOLD = 0.55
"""Score of what two witnesses say within minutes: told, and neither paged nor isolated until a longer span says it too; and of a lead that
is not LARGE: nobody is woken for a twentieth, nor hardware taken away."""
LARGE = 0.10
"""From this lead on the noise of no pair of ranks reaches on tune fleets."""
FLEET_LEAST = 20
"""Busy GPUs whose middle tells what the whole fleet has lost."""
STILL_S = 150.0
"""For so long nothing of a working GPU has changed, power and activity included: its page is frozen, and what it shows may have been over for long. Exporters collect
once a minute or more often. A dip of a clock that a page froze in looked like a lasting fault (published healthy 209)."""
RANK_REPLICAS = 3
"""So many replicas tell what a rank always does more than the others of its group."""
RANK_WEIGHT = 1.0 / 60.0
"""Of each minute: an hour's memory. What a place in the group brings with it changes with the load of the day."""


@dataclass(slots=True)
class GpuPace:
    """Two residuals a GPU: its clock under that of busy peers, and its activity over that of its lock-step group.

    In a tensor-parallel group all ranks show the same latency: the slow one computes all the time, the others wait for
    it in the collectives, which counts as busy but leaves tensor cores and memory idle. So the rank that is *more*
    active than its group is the slow one. busy_util : share of time a GPU works at least to be compared.
    sure : clock deficit that a few ticks in a row may decide. sure_ticks : how many. moved : (entity,) when anything last changed, shown : what the last tick showed. expected : (entity,) clock of the
    peers in the last minute, MHz. sizes : claimed GPU -> by what, in which span
    and how much. by_rank : "group|rank" -> log of how much more activity that rank shows in the middle replica of the group. own_level : (entity,) log of the own usual clock, for a GPU without three peers.
    Sources: docs/en/reference/stragglers.md.
    """

    busy_util: float = 0.3
    sure: float = 0.08
    sure_ticks: int = 3
    minutes: Minutes = field(default_factory=Minutes)
    clocks: Scales = field(default_factory=Scales)
    steps: Scales = field(
        default_factory=lambda: Scales(
            (0.20, 0.12, 0.05, 0.05, 0.035, 0.03, 0.03),
            sigmas=6.0,
            usual_max=0.06,
            prior=0.0,
            settled=24.0,
        )
    )
    by_rank: dict[str, float] = field(default_factory=dict)
    expected: Array = field(default_factory=lambda: np.empty(0))
    late: Array = field(default_factory=lambda: np.empty(0))
    moved: Array = field(default_factory=lambda: np.empty(0))
    shown: Array = field(default_factory=lambda: np.empty((0, len(SIGNALS))))
    own_level: Array = field(default_factory=lambda: np.empty(0))
    names: tuple[str, ...] = ()
    claims: dict[str, Finding] = field(default_factory=dict)
    sizes: dict[str, tuple[str, int, float]] = field(default_factory=dict)

    def update(
        self, gpu: Frame, sick: Set[str] = frozenset(), felt: Mapping[str, tuple[float, float]] = NOTHING_FELT
    ) -> list[Finding]:
        """Claims that stand now; they are judged again with every minute. sick : engines accused otherwise, which teach nothing.
        felt : engine -> log of how much longer its steps of the last five minutes are than its peers', and in deviations, where plain."""
        if gpu.entities != self.names:
            self._follow(gpu.entities)
        values = gpu.columns(SIGNALS)
        self._blank_frozen(gpu.at, values)
        busy = self._busy(values)
        self._at_once(gpu, values[:, CLOCK], busy)
        # Tick by tick: a minute half idle has a middle clock that no tick ever showed.
        values[~busy, CLOCK] = values[~busy, TENSOR] = values[~busy, DRAM] = NAN
        minute = self.minutes.push(gpu, values)
        if minute is not None:
            self._judge(gpu, minute, sick, felt)
        return list(self.claims.values())

    def _blank_frozen(self, at: float, values: Array) -> None:
        """Take away, in place, what frozen pages show. A clock and a utilisation alone may well stand still."""
        varies = np.isfinite(values[:, [TENSOR, DRAM, POWER]]).any(axis=1)
        same = ((values == self.shown) | (np.isnan(values) & np.isnan(self.shown))).all(axis=1) & varies
        self.moved = np.where(same, self.moved, at)
        self.shown = values.copy()
        values[at - self.moved >= STILL_S] = NAN

    def _busy(self, values: Array) -> Flags:
        util = values[:, UTIL]
        known = np.isfinite(util)
        if known.all():
            return util > self.busy_util
        return np.where(known, util > self.busy_util, values[:, TENSOR] > 0.02)

    def _at_once(self, gpu: Frame, clock: Array, busy: Flags) -> None:
        """A clock far below what the peers showed last minute, several ticks in a row, need not wait for the minute. What the fleet has lost
        since then is nobody's: on a hot day all slow down within a minute, and who dips then looks twice as slow."""
        low = busy & (clock < self.expected * np.exp(-self.sure))
        if low.any():
            lost = np.log(self.expected / clock)[busy]
            lost = lost[np.isfinite(lost)]
            shared = max(0.0, middle(lost)) if lost.size >= FLEET_LEAST else 0.0
            low = busy & (clock < self.expected * np.exp(-self.sure - shared))
        if not low.any():
            self.late[:] = 0.0
            return
        self.late = np.where(low, self.late + 1.0, 0.0)
        for i in rows(self.late >= self.sure_ticks):
            if gpu.entities[i] not in self.claims:
                since = gpu.at - 15.0 * (self.late[i] - 1)
                lag = float(np.log(self.expected[i] / clock[i]))
                self._claim(gpu, i, ("clock", 0, lag), 0.85, since, gpu.columns(SIGNALS)[i])

    def _judge(
        self, gpu: Frame, minute: Array, sick: Set[str], felt: Mapping[str, tuple[float, float]]
    ) -> None:
        accused = np.array([name in self.claims for name in gpu.entities], dtype=bool)
        busy = self._busy(minute)
        lag, alone = self._clock_lag(gpu, np.where(busy, minute[:, CLOCK], NAN), accused)
        self.clocks.push(gpu.entities, lag)
        self.steps.push(gpu.entities, self._activity_lead(gpu, minute, busy))
        by_clock, clock_span = self.clocks.beyond()
        blank = ("",) * len(gpu.entities)
        # Two ranks are compared with one another, eight with the middle of seven: each pool has a noise of its own.
        by_peer = groups(gpu.facts.get("peer", blank))
        by_step, step_span = self.steps.beyond(by_peer)
        owners = gpu.facts.get("engine", blank)
        soon = self._both(owners, by_peer, felt) & ~by_step
        by_step, step_span = by_step | soon, np.where(soon, FIVE, step_span)
        told = accused | by_clock | by_step | np.array([e in sick for e in owners], dtype=bool)
        for scales in (self.clocks, self.steps):
            scales.learn(told)
        # What does nothing any more cannot be seen to be slow: whether it is well is found out when it works again.
        over = set()
        for i in rows(accused):
            family, k, size = self.sizes[gpu.entities[i]]
            scales = self.clocks if family == "clock" else self.steps
            if not scales.lasts(i, k, size):
                scales.forgive(i)
                del self.claims[gpu.entities[i]], self.sizes[gpu.entities[i]]
                over.add(i)
        for i in rows(by_clock | by_step):
            if i in over:
                continue  # a longer span still holds what has just been forgiven
            family = "clock" if by_clock[i] else "both" if soon[i] else "lockstep"
            scales, spans = (self.clocks, clock_span) if by_clock[i] else (self.steps, step_span)
            # Two independent families, or one: what it is worth to know; alone against the own past it is a guess.
            score = 0.95 if by_clock[i] and by_step[i] else 0.5 if alone[i] and by_clock[i] else 0.85
            began = gpu.at - 60.0 * (scales.since_min(i) + 0.5)
            k = int(spans[i])
            size = float(scales.latest[k][i])
            if family == "both" or (family == "lockstep" and size < LARGE):
                score = TOLD
            self._claim(gpu, i, (family, k, size), score, began, minute[i])

    def _both(
        self, owners: tuple[str, ...], by_peer: Groups, felt: Mapping[str, tuple[float, float]]
    ) -> Flags:
        """(entity,) leads its group while the replica's steps are longer, the two together beyond chance."""
        found = np.zeros(len(owners), dtype=bool)
        if not felt or self.steps.count < TAIL_MIN:
            return found
        lead = self.steps.latest[FIVE]
        sigmas = in_units(self.steps, FIVE, by_peer)
        for i in rows((lead > LEAD) & (sigmas > LEAD_SIGMAS)):
            longer, plain = felt.get(owners[i], (NAN, NAN))
            agree = LEAST_FELT * lead[i] < longer < MOST_FELT * lead[i]
            found[i] = agree and (sigmas[i] + min(plain, STEP_SIGMAS)) / np.sqrt(2.0) > BOTH_SIGMAS
        return found

    def _clock_lag(self, gpu: Frame, clock: Array, accused: Flags) -> tuple[Array, Flags]:
        """(entity,) log of the peers' clock over the own, and which had no three peers and were held to their own past."""
        blank = ("",) * len(gpu.entities)
        around = peers(clock, groups(gpu.facts.get("peer", blank)), least=3).median
        few = np.isfinite(clock) & ~np.isfinite(around)
        if few.any() and (~few & np.isfinite(clock)).any():
            by_sku = peers(clock, groups(gpu.facts.get("sku", blank)), least=3).median
            around = np.where(few, by_sku, around)
            few = np.isfinite(clock) & ~np.isfinite(around)
        log_clock = np.log(clock)
        own = np.exp(self.own_level)
        fresh = np.isfinite(log_clock) & ~np.isfinite(self.own_level)
        learn = np.isfinite(log_clock) & ~accused & ~fresh
        self.own_level[fresh] = log_clock[fresh]
        self.own_level[learn] += (log_clock[learn] - self.own_level[learn]) / 720.0
        around = np.where(few, own, around)
        self.expected = np.where(np.isfinite(around), around, NAN)
        return np.log(around) - log_clock, few

    def _activity_lead(self, gpu: Frame, minute: Array, busy: Flags) -> Array:
        """(entity,) log of the own activity over that of the others in the group; NaN outside of lock-step groups."""
        where = groups(in_step(gpu))
        if where.member.shape[1] < 2:
            return np.full(len(gpu.entities), NAN)
        works = busy & (minute[:, DRAM] > 0.03)
        with np.errstate(divide="ignore", invalid="ignore"):
            active = np.log(np.where(works[:, None], minute[:, [TENSOR, DRAM]], NAN))
        active[np.isneginf(active)] = NAN
        # Two measures of the same waiting: their mean where both are exported.
        both = np.where(np.isfinite(active[:, 0]), 0.5 * (active[:, 0] + active[:, 1]), active[:, 1])
        return self._less_rank(gpu, both - peers(both, where, least=1).median)

    def _less_rank(self, gpu: Frame, lead: Array) -> Array:
        """(entity,) the lead without what the same rank of the group's other replicas shows as well: the first rank samples and
        gathers for all, which is no fault of its GPU."""
        blank = ("",) * len(gpu.entities)
        stage = gpu.facts.get("stage", blank)
        keys = ranks(gpu.entities, _pairs(gpu.facts.get("peer", blank), stage), in_step(gpu))
        found, weight = lead.copy(), max(RANK_WEIGHT, 1.0 / (self.steps.count + 1.0))
        for member in groups(keys).member:
            of = member[member >= 0]
            known = lead[of][np.isfinite(lead[of])]
            key = keys[int(of[0])]
            if known.size >= RANK_REPLICAS:
                now = middle(known)
                before = self.by_rank.get(key, now)
                self.by_rank[key] = before + weight * (now - before)
            found[of] -= self.by_rank.get(key, 0.0)
        return found

    def _claim(
        self, gpu: Frame, i: int, what: tuple[str, int, float], score: float, since: float, now: Array
    ) -> None:
        name, (family, _, size) = gpu.entities[i], what
        before = self.claims.get(name)
        self.sizes[name] = what
        slower = float(np.expm1(size))
        evidence = [
            Evidence("sm_clock", float(now[CLOCK]), "MHz", float(self.expected[i])),
            Evidence("slower_by", slower, "ratio"),
            Evidence("tensor_active", float(now[TENSOR]), "ratio"),
            Evidence("power", float(now[POWER]), "W"),
        ]
        how = (
            "clock below busy peers" if family == "clock" else "works while its lock-step group waits for it"
        )
        if family == "both":
            how += ", and its replica's steps are longer"
        text = f"{name} is {slower:.0%} slower: {how}"
        if score <= 0.5:
            text += " (compared with its own past only: fewer than three peers, low confidence)"
        self.claims[name] = Finding(
            gpu.at,
            "straggler",
            Entity("gpu", name),
            "gpu_slow",
            # What has shrunk to a small lead is worth no more than that, whatever it was.
            score if score == TOLD or not before else max(score, before.score),
            Severity.INFO if score == TOLD else Severity.WARNING,
            tuple(evidence),
            # Dated once, while it is plain: by a minute that shows little of it, it would have begun with the daemon.
            before.since if before else since,
            text,
            "straggler.gpu_slow" if family == "clock" else LOCKSTEP,
        )

    def _follow(self, names: tuple[str, ...]) -> None:
        place = {name: i for i, name in enumerate(self.names)}
        old = np.array([place.get(name, -1) for name in names], dtype=np.intp)
        known = old >= 0

        def move(values: Array, blank: float) -> Array:
            moved = np.full(len(names), blank)
            moved[known] = values[old[known]]
            return moved

        self.expected, self.own_level = move(self.expected, NAN), move(self.own_level, NAN)
        self.late, self.moved = move(self.late, 0.0), move(self.moved, NAN)
        shown = np.full((len(names), len(SIGNALS)), NAN)
        shown[known] = self.shown[old[known]]
        self.shown = shown
        self.claims = {n: c for n, c in self.claims.items() if n in place and n in set(names)}
        self.sizes = {n: s for n, s in self.sizes.items() if n in self.claims}
        self.names = names


def in_step(gpu: Frame) -> tuple[str, ...]:
    """The ranks that wait for one another: those of an engine, or of one of its pipeline stages where the stage is known."""
    blank = ("",) * len(gpu.entities)
    return _pairs(gpu.facts.get("engine", blank), gpu.facts.get("stage", blank))


@lru_cache(maxsize=8)
def _pairs(names: tuple[str, ...], stage: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{n}|{s}" if n and s else n for n, s in zip(names, stage, strict=True))


@lru_cache(maxsize=8)
def ranks(names: tuple[str, ...], peer: tuple[str, ...], engine: tuple[str, ...]) -> tuple[str, ...]:
    """ "group|rank" of each GPU, empty outside of replicas; a rank is the place of its name among those of the replica.

    >>> ranks(("n0/gpu10", "n0/gpu9", "n0/gpu3"), ("p",) * 3, ("e0", "e0", ""))
    ('p|1', 'p|0', '')
    """
    found, met = [""] * len(names), Counter[str]()
    for i in sorted(range(len(names)), key=lambda i: (len(names[i]), names[i])):
        if peer[i] and engine[i]:
            found[i] = f"{peer[i]}|{met[engine[i]]}"
            met[engine[i]] += 1
    return tuple(found)
