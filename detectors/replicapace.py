"""Replicas that take longer than comparable ones for the same work."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.minutes import Minutes, means, medians
from detectors.scales import QUARTER, Flags, Scales, in_units
from detectors.stats import Groups, Index, Streak, groups, middle, nearby, peers, rows
from detectors.steps import QUEUED, StepModel
from detectors.versions import VersionWatch

SIGNALS = (
    "itl_mean_s", "running", "itl_per_s", "prompt_tokens_s", "prompt_cached_tokens_s", "kv_used_ratio",
    "requests_done_per_s", "lb_sessions_per_s", "ttft_mean_s", "start_time_s", "waiting", "preemptions_per_s",
)  # fmt: skip
SHARED_NODES = 3
"""A shared cause shows on so many nodes, or on all there are."""
MORE_WORK, MORE_BATCH = 1.4, 1.25
"""Who reads so many times the prompts of its peers, at such a batch, with a queue, is given more than it can take: every step of it
carries somebody's prompt, which no peer shows. A slow replica reads no more than they. Judgement."""
BUSY_S = 180.0
"""Who was beyond comparing is so for three minutes more: what has queued drains at loads that no peer shows, and one minute of many
in which it neither preempted nor read more than the others is no measure. On published healthy 704 two of 95 loaded replica-days had a replica told for one."""
BY_MANY = 3
"""Replicas that must run a load at once for it to teach what it costs: of one that nobody else runs it would make the norm of what it ails, or take the
five minutes it has shown for a law (published healthy 707: eight times the batch of its peers for a quarter of an hour)."""
FAR = 0.4
"""Log of how far beyond all known loads that is: half as much again. What is a little more than before teaches at once, or the busiest would never be known."""
MORE_DONE = 1.3
"""Times the tokens its peers make is more work, and not a longer wait for the same. Minutes of few requests vary by a tenth."""
LIKE, LIKE_LEAST = 21, 60
"""Replicas of the nearest expected step that tell how far off the model is there, and how many a group must have. One model of 1,960 replicas was 7 % short
for the busiest of a peak: ten of them were told, and seven were busy (published healthy 1293)."""
BUSIEST, MISFIT_MOST = 0.9, 0.1
"""From which quantile of the expected steps, and log. Who is slow runs a larger batch: at the upper end many slow ones may stand together, and must not excuse
one another: the rest of a pool that slows down at once is told by those that are not the busiest."""
BUSIER, DOUBT = 1.3, 0.1
"""Who runs so many times the batch of its peers, beyond what its own slowness fills it by, is measured by the model and hardly by them: so much, log, of what it
shows for each e-fold of that is the model's own doubt. In published healthy 1438 a replica with two to three times the batch of 63 peers was told for 9 % in the
first hour, while nobody else had shown what such a batch costs; the coefficient is that misfit over that excess."""
TOGETHER_S = 600.0
"""What slows many down at once begins within so long, going back from when each was told to when it began, as `daemon.incident.SAME_TIME_S`
has it for a rack. Replicas that became slow farther apart have no cause in common for it."""
STEP, BATCH, NUMBER, PROMPTS, CACHED, KV, DONE, GIVEN, FIRST, STARTED, WAITING, PREEMPTED = range(
    len(SIGNALS)
)
CROWDED, CROWDED_SIGMAS = 0.06, 4.0
"""How much longer a step must be, and in deviations, to be told beside a crowded node. Half of what the smallest contention that matters,
40 % on prompts, makes of it on tune fleets."""
GRANT_STEP = 0.05
"""Grants for unknown loads are held against one another in steps of so much, log: finer than what is told."""
TAIL_OF = 12.0
"""Replicas whose largest blocks tell what chance brings any of them within a day: fewer than of GPUs, since pools are small. At twenty a replica of eighteen, a tenth
slow and at eleven deviations for half an hour, was not told (published fast 120); of 2,046 replica-days of tune healthy 434-437 none is."""
OWN_MOST = 2.0
"""Some replicas wander more than others of their group for an hour or more: measured by the middle of the group's noise sound ones reached ten deviations over a quarter of
an hour, and three of 481 loaded replica-days had a replica told for it (tune healthy 434-443)."""
Crowded = Mapping[str, tuple[float, float]]
GAP_S = 150.0
"""A page that was silent for longer may be that of another process. Two lost minutes."""
NEWEST = [STEP, NUMBER, FIRST, STARTED]
"""Figures of a histogram are means over its window, which is a minute: the last one of a minute is the whole of it."""
MOSTLY = [WAITING, PREEMPTED]
"""What must hold for half of a minute to matter. All else is the mean over the minute: of rates that come in lumps, such as the prompts
that each step waits for, a median tells nothing of the step time it is held against."""


@dataclass(slots=True)
class ReplicaPace:
    """Three residuals against peers of the same version: time a step at given load, share of the work done against the
    share handed out, raw latency. Queue and batch grow *because* a replica is slow, so the last alone blames routing,
    not the replica; the first is what a straggler is accused by.

    least_running : fewer requests than this say nothing. warm_up_s : time a new process is not compared. shared : share of a group slow at once that is a common cause.
    alone_factor : how much further a replica without two peers must stand off its own past. here : how long each page has been
    there; first : the first minute of all, whose pages may be of any age. shown : (engine,) step times of the last tick. beyond : engine that could not be compared -> when it last could not. sizes : how slow each
    accused replica is, those included that a shared cause excuses: neither may teach what is usual. began : since when each of them
    is slow. firsts : wait for the first token, log over the peers'. work : (engine,) share of the group's finished
    requests over the share of those given to it, in the last minute.
    Sources: docs/en/reference/stragglers.md.
    """

    least_running: float = 2.0
    warm_up_s: float = 600.0
    shared: float = 0.05
    alone_factor: float = 2.0
    minutes: Minutes = field(default_factory=Minutes)
    lags: Scales = field(
        default_factory=lambda: Scales(
            (0.40, 0.22, 0.15, 0.11, 0.085, 0.07, 0.06),
            sigmas=5.0,
            margin=1.15,
            tail_floor=0.6,
            tail_least=TAIL_OF,
            prior=1.0,
            own_most=OWN_MOST,
        )
    )
    firsts: Scales = field(default_factory=lambda: Scales(usual_max=0.3))
    work: Array = field(default_factory=lambda: np.empty(0))
    models: dict[str, StepModel] = field(default_factory=dict)
    versions: VersionWatch = field(default_factory=VersionWatch)
    claims: dict[str, Finding] = field(default_factory=dict)
    here: Streak = field(default_factory=lambda: Streak(GAP_S))
    first: float = NAN
    shown: Array = field(default_factory=lambda: np.empty(0))
    beyond: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    common: list[Finding] = field(default_factory=list)

    def update(
        self, engine: Frame, sick: Set[str] = frozenset(), crowded: Crowded = MappingProxyType({})
    ) -> list[Finding]:
        """Claims that stand now; they are judged again with every minute. sick : engines accused otherwise, which teach nothing.
        crowded : nodes whose processors are in use as they never were -> cores now, and the most before."""
        values = engine.columns(SIGNALS)
        ticks = self.minutes.gather(engine, values, self._is_fresh(values[:, STEP]))
        if ticks is not None:
            self._judge(engine, _minute(ticks), sick, crowded)
        return [*self.claims.values(), *self.common]

    def _is_fresh(self, step: Array) -> bool:
        """Whether the figures of histograms were made anew in this tick, twice a window: a minute that ends with them holds just the loads
        they were measured under. Held against those of other seconds a step is twice as noisy."""
        found = not np.array_equal(step, self.shown, equal_nan=True)
        self.shown = step.copy()
        return found

    def alike(self, engine: Frame) -> Groups:
        """Replicas of one peer group and version."""
        blank = ("",) * len(engine.entities)
        peer, version = engine.facts.get("peer", blank), engine.facts.get("version", blank)
        return groups(tuple(f"{p}|{v}" if p else "" for p, v in zip(peer, version, strict=True)))

    def _judge(self, engine: Frame, minute: Array, sick: Set[str], crowded: Crowded) -> None:
        size = len(engine.entities)
        blank = ("",) * size
        peer = engine.facts.get("peer", blank)
        accused = np.array([n in self.sizes for n in engine.entities], dtype=bool)
        told = accused | np.array([n in sick for n in engine.entities], dtype=bool)
        active = (minute[:, BATCH] >= self.least_running) & (minute[:, NUMBER] > 0)
        # A fresh process fills its caches first: that is no straggling, and no measure for others either.
        active &= ~(self._age_s(engine, minute) < self.warm_up_s)
        where = self.alike(engine)
        active &= ~self._beyond_comparing(engine, minute, where)
        minute = np.where(active[:, None], minute, NAN)
        # What is blamed, by itself or with its version, must not become what is usual.
        pool = engine.facts.get("pool", blank)
        over, granted = self._over_expected(
            peer, minute, told | np.array([p in self.versions.slow for p in pool])
        )
        around = peers(over, where, least=2)
        alone = np.isfinite(over) & ~np.isfinite(around.median)
        # Without two peers the load model, learnt from the own past, is all there is to compare with.
        lag = np.where(
            alone, over / self.alone_factor, over - _median_at_own(over, granted, where, around.median)
        )
        with np.errstate(divide="ignore"):
            expected = np.log(minute[:, STEP]) - over
        lag = lag - _misfit(over, expected, told | (granted > 0.0), where)
        lag = _less_doubt(lag, minute[:, BATCH], where)
        self.lags.push(engine.entities, lag)
        hit, span = self.lags.beyond(where)
        homes = engine.facts.get("node", blank)
        lone = alone & np.array([home in crowded for home in homes], dtype=bool)
        if lone.any():
            soon = self._crowded(lone, where) & ~hit
            hit, span = hit | soon, np.where(soon, QUARTER, span)
        self.lags.learn(told | hit)
        self._second_signs(engine, minute, where, told | hit, alone)
        if self.sizes:
            self._let_go(engine, accused)
        slow = hit | np.array([n in self.sizes for n in engine.entities], dtype=bool)
        self.began = {
            engine.entities[i]: self.began.get(engine.entities[i], self._since(engine.at, i))
            for i in rows(slow)
        }
        self.common, shared = self._common(engine, over, slow, alone, where)
        for i in rows(slow):
            name = engine.entities[i]
            if shared[i]:
                self.claims.pop(name, None)
                self.sizes.setdefault(name, (int(span[i]), float(self.lags.latest[span[i]][i])))
                continue
            # Who was excused and is no longer is held to what it was excused for.
            k = int(span[i]) if hit[i] else self.sizes[name][0]
            if (hit[i] or name not in self.claims) and np.isfinite(self.lags.latest[k][i]):
                self._claim(
                    engine, minute, i, k, float(around.count[i]), bool(alone[i]), crowded.get(homes[i])
                )

    def _crowded(self, lone: Flags, where: Groups) -> Flags:
        """(engine,) of those without peers, which ones are slower than they were while the processors of their node are in use as never
        before: two witnesses that know nothing of one another need less each."""
        slower, now = self.lags.latest[QUARTER], self.lags.latest[0]
        sigmas = in_units(self.lags, QUARTER, where)
        # A fleet of two replicas has no spread to measure by: then the size decides, twice as large.
        least = np.where(np.isfinite(sigmas), CROWDED, 2.0 * CROWDED) / self.alone_factor
        found: Flags = lone & ~(sigmas <= CROWDED_SIGMAS) & (slower > least) & (now > 0.25 * slower)
        return found

    def _age_s(self, engine: Frame, minute: Array) -> Array:
        """(engine,) how long its process has run, by its page or else since the page came; inf where neither tells."""
        names = [engine.entities[i] for i in rows(np.isfinite(minute[:, BATCH]))]
        self.here.held(engine.at, names)
        if not self.first <= engine.at:
            self.first = engine.at
        met = np.array([self.here.since.get(n, self.first) for n in engine.entities])
        here = np.where(met > self.first, engine.at - met, np.inf)
        return np.where(np.isfinite(minute[:, STARTED]), engine.at - minute[:, STARTED], here)

    def _beyond_comparing(self, engine: Frame, minute: Array, where: Groups) -> Flags:
        """(engine,) given more than it takes, or reads prompts again that it has thrown out; and for some minutes after."""
        now: Flags = _overloaded(minute, where) | (minute[:, PREEMPTED] > 0)
        self.beyond = {n: at for n, at in self.beyond.items() if engine.at - at <= BUSY_S}
        self.beyond |= {engine.entities[i]: engine.at for i in rows(now)}
        return np.array([name in self.beyond for name in engine.entities], dtype=bool)

    def _second_signs(self, engine: Frame, minute: Array, where: Groups, told: Flags, alone: Flags) -> None:
        """What accuses nobody by itself: waiting for the first token, and work that was given and is not done."""
        with np.errstate(divide="ignore", invalid="ignore"):
            first = np.log(np.where(alone, NAN, minute[:, FIRST]))
        self.firsts.push(engine.entities, first - peers(first, where, least=2).median)
        self.firsts.learn(told)
        self.work = self._share(minute, where)

    def _let_go(self, engine: Frame, accused: Flags) -> None:
        """Forget what is over, and replicas that have left."""
        present = set(engine.entities)
        for i in rows(accused):
            if not self.lags.lasts(i, *self.sizes[engine.entities[i]]):
                present.discard(engine.entities[i])
                self.lags.forgive(i)
        self.sizes = {n: s for n, s in self.sizes.items() if n in present}
        self.claims = {n: c for n, c in self.claims.items() if n in present}

    def _claim(
        self,
        engine: Frame,
        minute: Array,
        i: int,
        span: int,
        count: float,
        alone: bool,
        cores: tuple[float, float] | None,
    ) -> None:
        name = engine.entities[i]
        lag = float(self.lags.latest[span][i])
        self.sizes[name] = (span, lag)
        size = lag * (self.alone_factor if alone else 1.0)
        share = self.work[i]
        evidence: tuple[Evidence, ...] = (
            Evidence("inter_token_latency", float(minute[i, STEP]), "s"),
            Evidence("slower_at_equal_load", float(np.expm1(size)), "ratio", 0.0),
            Evidence("done_of_given", float(share), "ratio", 1.0),
            Evidence("running", float(minute[i, BATCH]), "requests"),
        )
        text = f"{name} takes {np.expm1(size):.0%} longer a step than its peers at equal load"
        if alone:
            text = f"{name} takes {np.expm1(size):.0%} longer a step than it used to at equal load (no peers, low confidence)"
            if cores is not None:
                evidence = (*evidence, Evidence("node_cores_in_use", cores[0], "cores", cores[1]))
                text += f"; its node uses {cores[0]:.0f} cores, and {cores[1]:.0f} at most in the last day"
        before = self.claims.get(name)
        score = 0.5 if alone else 0.85 if count >= 3 else 0.6
        self.claims[name] = Finding(
            engine.at,
            "straggler",
            Entity("engine", name),
            "replica_slow",
            score,
            Severity.WARNING,
            evidence,
            # Dated once, while it is plain: by a minute that shows little of it, it would have begun with the daemon.
            before.since if before else self._since(engine.at, i),
            text,
        )

    def _since(self, at: float, i: int) -> float:
        """When the present deviation of replica i began, to half a minute."""
        return at - 60.0 * (self.lags.since_min(i) + 0.5)

    def _share(self, minute: Array, where: Groups) -> Array:
        """(engine,) share of the group's finished requests over share of those handed out; NaN where not known."""
        out = np.full(minute.shape[0], NAN)
        for member in where.member:
            rows_of = member[member >= 0]
            done, given = minute[rows_of, DONE], minute[rows_of, GIVEN]
            if np.nansum(given) > 0 and np.nansum(done) > 0:
                with np.errstate(divide="ignore", invalid="ignore"):
                    out[rows_of] = (done / np.nansum(done)) / (given / np.nansum(given))
        return out

    def _over_expected(self, peer: tuple[str, ...], minute: Array, accused: Flags) -> tuple[Array, Array]:
        """(engine,) log of step time over what its peer group's model expects, NaN = not measured or not learnt; and what of that is
        granted for a load that nobody knows."""
        step, batch = minute[:, STEP], minute[:, BATCH]
        prompts = np.nan_to_num(minute[:, PROMPTS] - np.fmax(minute[:, CACHED], 0.0))
        kv = np.nan_to_num(minute[:, KV])
        queue = np.nan_to_num(np.minimum(minute[:, WAITING] / (QUEUED * np.maximum(batch, 1.0)), 1.0))
        over, granted = np.full(step.size, NAN), np.zeros(step.size)
        known = np.isfinite(step) & np.isfinite(batch) & (step > 0)
        where = groups(peer)
        for member in where.member:
            of = member[member >= 0]
            of = of[known[of]]
            if not of.size:
                continue
            model = self.models.setdefault(peer[int(of[0])], StepModel())
            more = _does_more(minute[of, NUMBER])
            expected, granted[of] = model.expected(batch[of], prompts[of], kv[of], queue[of], more)
            over[of] = np.log(step[of]) - expected
            unknown = ~np.isfinite(over[of]) | (granted[of] > FAR)
            # Before anything is learnt every load is unknown, and so it is where fewer replicas stand.
            teaches = ~accused[of] & (~unknown | (unknown.sum() >= min(BY_MANY, of.size)))
            clean = of[teaches]
            if clean.size:
                model.learn(batch[clean], prompts[clean], kv[clean], queue[clean], step[clean])
        return over, granted

    def _common(
        self, engine: Frame, over: Array, slow: Flags, alone: Flags, where: Groups
    ) -> tuple[list[Finding], Flags]:
        """Slowness that follows a version, or that takes much of a group: one finding, and nobody is blamed. Who is
        slower than others of the same slow version is blamed as ever."""
        blank = ("",) * len(engine.entities)
        pools, version = engine.facts.get("pool", blank), engine.facts.get("version", blank)
        # A replica of an unknown node stands for itself.
        nodes = [n or e for n, e in zip(engine.facts.get("node", blank), engine.entities, strict=True)]
        shared = np.zeros(over.size, dtype=bool)
        found = self.versions.judge(engine.at, pools, version, over)
        guilty = {f.entity.name for f in found}
        if not guilty and not slow.any():
            return found, shared
        for member in where.member:
            group = member[member >= 0]
            hit = self._together(engine, group[slow[group]])
            # Replicas of one node that slow down together have their node in common, not the pool.
            places = len({nodes[i] for i in group.tolist()})
            apart = len({nodes[i] for i in hit.tolist()})
            pool = pools[int(group[0])]
            if pool in guilty:
                shared[group[alone[group]]] = True
                hit = hit[~alone[hit]]
            if hit.size > max(2.0, self.shared * group.size) and apart >= max(2, min(SHARED_NODES, places)):
                shared[hit] = True
                share = (Evidence("replicas_slow", float(hit.size), f"of {group.size}"),)
                found.append(
                    Finding(
                        engine.at, "straggler", Entity("pool", pool), "fleet_slow", 0.6, Severity.WARNING, share,
                        engine.at,
                        f"{hit.size} of {group.size} replicas of {pool} slowed down together: a shared cause, nobody is blamed",
                    )
                )  # fmt: skip
        return found, shared

    def _together(self, engine: Frame, slow: Index) -> Index:
        """Of the slow ones those that began at the time when most of them did."""
        began = np.array([self.began[engine.entities[i]] for i in slow.tolist()])
        if not began.size:
            return slow
        near = np.abs(began[:, None] - began[None, :]) <= TOGETHER_S
        found: Index = slow[near[near.sum(axis=1).argmax()]]
        return found


def _minute(ticks: Array) -> Array:
    """(engine, SIGNALS) of one minute, of its ticks (tick, engine, SIGNALS)."""
    found = means(ticks)
    found[:, NEWEST] = ticks[-1][:, NEWEST]
    found[:, MOSTLY] = medians(ticks[:, :, MOSTLY])
    return found


def _median_at_own(over: Array, granted: Array, where: Groups, median: Array) -> Array:
    """(engine,) median of what the peers show over what is expected, none of them granted more than the one they are held against: what is
    granted for an unknown load is the most that it can cost, and who has a known one is not slow because others are granted much."""
    level = np.floor(granted / GRANT_STEP) * GRANT_STEP
    if not level.any():
        return median
    found = median.copy()
    for own in np.unique(level).tolist():
        at_own = peers(over + granted - np.minimum(granted, own), where, least=2).median
        found = np.where(level == own, at_own, found)
    return found


def _misfit(over: Array, expected: Array, aside: Flags, where: Groups) -> Array:
    """(engine,) by how much the model is off for the busiest: the middle of what those show for whom it expects the nearest step, less the
    middle of the group. 0 for all others, and in groups too small to tell. aside : (engine,) who is no measure."""
    found = np.zeros(over.size)
    for member in where.member:
        of = member[member >= 0]
        of = of[np.isfinite(over[of])]
        clean = of[~aside[of]]
        if clean.size >= LIKE_LEAST:
            busiest = of[expected[of] >= np.quantile(expected[clean], BUSIEST)]
            near = nearby(over[clean], expected[clean], expected[busiest], LIKE)
            found[busiest] = np.clip(near - middle(over[clean]), -MISFIT_MOST, MISFIT_MOST)
    return found


def _less_doubt(lag: Array, batch: Array, where: Groups) -> Array:
    """(engine,) lag less what the model may err by for who is much busier than its peers, and never faster than them for it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        busier = np.log(batch / (BUSIER * peers(batch, where, least=2).median)) - lag
        return np.where((lag > 0) & (busier > 0), np.maximum(lag - DOUBT * busier, 0.0), lag)


def _does_more(tokens: Array) -> Flags:
    """(engine,) makes clearly more tokens than the middle of its group; so does everybody where too few stand to tell."""
    if tokens.size < BY_MANY:
        return np.ones(tokens.size, dtype=bool)
    found: Flags = tokens > MORE_DONE * middle(tokens)
    return found


def _overloaded(minute: Array, where: Groups) -> Flags:
    """(engine,) has a queue, does more work than its peers and at a larger batch: busy, and beyond comparing."""
    more: Flags = minute[:, WAITING] > 0
    if more.any():
        for column, times in ((PROMPTS, MORE_WORK), (BATCH, MORE_BATCH)):
            more = more & (minute[:, column] > times * peers(minute[:, column], where, least=2).median)
    return more
