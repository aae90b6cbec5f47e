"""Block medians of one residual at several time scales, against what the fleet itself shows there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array
from detectors.stats import MAD_TO_SIGMA, Groups, columns_median, middle, rows

SPANS_MIN = (1, 5, 15, 30, 60, 240, 1440)
"""Noise is coloured: it is gone after an hour and hardly less after five minutes, so several spans are watched.
Source: docs/en/reference/stragglers.md."""
FIVE = 1
"""Place of the span of five minutes."""
QUARTER = 2
"""Place of the span of a quarter of an hour."""
HALF = 3
"""Place of the span of half an hour, over which small and steady differences stand out while there is still time for them."""
HOUR = 4
"""Place of the span of an hour, the first that is made of quarters."""
STRIDE_MIN = (1, 1, 5, 5, 15, 60, 240)
"""How often each span is looked at."""
HOLDS = (FIVE, FIVE, FIVE, QUARTER, QUARTER, HALF, HOUR)
"""The span over which a claim of each span must still show."""
LEARN_MIN = (5, 5, 5, 5, 15, 60, 240)
"""How often each span teaches what is usual."""
SIGMA_DAYS = 1.0
WORST_DAYS = 4.0
TRIM_SHARE = 0.02
LONG = HOUR
"""From this span on a personal offset that is not known yet would show as a fault."""
YOUNG = 2.0
"""Quarters of an hour in which what is peculiar to an entity was learnt, before it is known at all."""
YOUNG_MOST = 1.5
"""Times usual_max: what a young entity must exceed where entities have peculiarities. The ranks of a replica that has just started lead and
lag by what their silicon brings."""
NOISE_WEIGHT = 0.02
"""Of each look: some hours of looks at the shortest span."""
NOISE_CAP = 3.0
"""Times the effect floor: what is larger is no noise."""
NOISE_JUMP = 3.0
"""Times its noise: a block that is larger counts as so much."""
TAIL_LEAST = 20.0
"""Members a group needs for the spread of their largest blocks to be known."""
TAIL_MIN = 60
"""Minutes until the largest blocks of a group tell its tail; a replica of 275 was told after 12 by a tail of a few minutes."""
TAIL_CHANCE = 0.001
"""That chance alone takes any member of a group beyond its limit within a day."""
GUMBEL_HALF, GUMBEL_SPAN = 0.3665, 1.1334
"""Median of a Gumbel variable over its place, and the 80th percentile over the median, in units of its scale: a tenth of a
group may have been slowed by what others know of, a brake or a link, and the end of its tail is told much the same."""
NOISIER = 1.5
"""Times its usual noise: what a group shows now is clearly more. Judgement; the spread of UNREST_LEAST values is told to a fifth, and one of six that is
really slow makes it a quarter more."""
UNREST_LEAST = 30
"""Values of the last five minutes that tell the noise of now: those of six members."""
MEAN_TO_SIGMA = 1.2533
"""Standard deviation of a normal variable over the mean of its size."""
LEAST_NOISE = 0.004
"""Noise smaller than this is a fleet too young to have shown any. Judgement, half of the smallest on tune fleets."""
Flags = NDArray[np.bool_]


def spread_of(block: Array) -> float:
    """Robust standard deviation around zero, NaN with fewer than three values."""
    known = block[np.isfinite(block)]
    return MAD_TO_SIGMA * middle(np.abs(known)) if known.size >= 3 else NAN


def shared_by(values: Array, where: Groups) -> Array:
    """(entity,) the middle of the values in each one's group; NaN outside of groups and where none is known."""
    out = np.full(values.size, NAN)
    for member in where.member:
        of = member[member >= 0]
        known = values[of]
        known = known[np.isfinite(known)]
        if known.size:
            out[of] = middle(known)
    return out


def chance_limit(worst: Array, where: Groups, days: float, least: float = TAIL_LEAST) -> Array:
    """(entity,) the largest block chance is expected to bring any of its group within a day; NaN in small groups.

    worst : (entity,) largest block of each in the last `days` days, 0 = none yet. least : members a group must have. Largest values follow a Gumbel law,
    so its middle tells how far the end of its tail lies, and a few stragglers that nobody accuses change nothing of it.
    """
    out = np.full(worst.size, NAN)
    for member in where.member:
        of = member[member >= 0]
        known = worst[of][worst[of] > 0]
        if known.size < least:
            continue
        half, high = np.quantile(known, (0.5, 0.8))
        scale = (high - half) / GUMBEL_SPAN
        out[of] = half + scale * (np.log(known.size / TAIL_CHANCE / min(days, 1.0)) - GUMBEL_HALF)
    return out


def _nothing() -> Array:
    return np.full((0, 0), NAN)


@dataclass(slots=True)
class Scales:
    """One residual of many entities, a value a minute, NaN = not measured; positive = worse than peers.

    floors : effect floors by span, below which a difference is nobody's trouble however certain. sigmas : distance in
    the fleet's own robust spread. margin : on top of the largest block that sound members of the fleet have shown.
    tail_least : members a group needs for the end of its own tail to be told; it then stands for the fleet's largest block, and
    tail_floor of the effect floor is enough. own_most : times the noise of its group that an entity's own counts at most; beyond, what is taken for noise may be a fault
    that nobody has found yet.
    minutes, quarters, watches : rings of the last 30 values, of four hours' 15-minute medians and of a day's 4-hour
    medians, (time, entity), newest last. latest : (span, entity) newest block, personal offset taken out.
    sigma : (span,) running spread. worst : (span, entity) largest block while nobody accused it, slowly forgotten.
    noise : (span, entity) mean size of its blocks while nobody accused it.
    usual : (entity,) personal offset, learnt from quarters nobody was accused in, never beyond usual_max. prior : quarters' worth of
    "nothing peculiar" that it begins with. settled : quarters until long spans are believed.
    clean : (entity,) minutes since it was last accused.
    """

    floors: tuple[float, ...] = (0.08, 0.05, 0.035, 0.035, 0.03, 0.03, 0.03)
    sigmas: float = 6.0
    margin: float = 1.25
    usual_max: float = 0.04
    prior: float = 4.0
    settled: float = 0.0
    tail_least: float = TAIL_LEAST
    tail_floor: float = 1.0
    own_most: float = 1.0
    names: tuple[str, ...] = ()
    minutes: Array = field(default_factory=_nothing)
    quarters: Array = field(default_factory=_nothing)
    watches: Array = field(default_factory=_nothing)
    latest: Array = field(default_factory=_nothing)
    worst: Array = field(default_factory=_nothing)
    sigma: Array = field(default_factory=lambda: np.full(len(SPANS_MIN), NAN))
    noise: Array = field(default_factory=_nothing)
    usual: Array = field(default_factory=lambda: np.empty(0))
    learnt: Array = field(default_factory=lambda: np.empty(0))
    clean: Array = field(default_factory=lambda: np.empty(0))
    count: int = 0

    def push(self, names: tuple[str, ...], values: Array) -> None:
        """Add one minute; judge it with `beyond`, then have it teach with `learn`."""
        if names != self.names:
            self._follow(names)
        self.minutes[:-1] = self.minutes[1:]
        self.minutes[-1] = values
        self.count += 1
        self.latest[0] = values - self.usual
        for k, span in enumerate(SPANS_MIN):
            if k and self._is_due(k):
                if k == HOUR:
                    self.quarters[:-1] = self.quarters[1:]
                    self.quarters[-1] = columns_median(self.minutes[-15:])
                self.latest[k] = self._block(span) - self.usual

    def learn(self, accused: Flags) -> None:
        """Take the newest blocks for what is usual. accused : (entity,) whose values must teach nothing."""
        self.clean = np.where(accused, 0.0, self.clean + 1.0)
        for k, span in enumerate(SPANS_MIN):
            if self.count % LEARN_MIN[k] == 0:
                # A block still holds what was accused within its span, although nobody accuses it any more.
                self._calibrate(k, self.clean < span + 5)
        if self._is_due(HOUR):
            self._habit(self.clean < 20)

    def _is_due(self, k: int) -> bool:
        return self.count % STRIDE_MIN[k] == 0

    def _block(self, span: int) -> Array:
        """(entity,) median of the last `span` minutes, of medians where it is long."""
        if span <= 30:
            return columns_median(self.minutes[-span:])
        if span <= 240:
            found = columns_median(self.quarters[-(span // 15) :])
            if span == 240 and self.count % 240 == 0:
                self.watches[:-1] = self.watches[1:]
                self.watches[-1] = found
            return found
        return columns_median(self.watches)

    def _habit(self, accused: Flags) -> None:
        """Every 15 minutes: learn each entity's personal offset."""
        now = self.quarters[-1]
        # While half of a group is held down the other half looks fast: nothing to get used to.
        sound = np.isfinite(now) & ~accused & (np.abs(now - self.usual) < self.usual_max)
        # A day's memory in the end.
        self.learnt[sound] = np.minimum(self.learnt[sound] + 1.0, 96.0)
        step = (now[sound] - self.usual[sound]) / (self.learnt[sound] + self.prior)
        self.usual[sound] = np.clip(self.usual[sound] + step, -self.usual_max, self.usual_max)

    def _calibrate(self, k: int, accused: Flags) -> None:
        """Learn the spread and the largest blocks of those that are not accused."""
        block = np.where(accused, NAN, self.latest[k])
        spread = spread_of(block)
        if not spread >= 0:
            return
        size = np.minimum(np.abs(block), NOISE_CAP * self.floors[k])
        fresh = np.where(np.isfinite(self.noise[k]), self.noise[k], size)
        # A fault that nobody has found yet must not be taken for noise before it is.
        size = np.minimum(size, NOISE_JUMP * np.maximum(fresh, LEAST_NOISE))
        # At first the mean of all looks: a memory of hours would begin with the one block it has met.
        pace = max(NOISE_WEIGHT, LEARN_MIN[k] / (self.count + 1.0))
        self.noise[k] = np.where(np.isfinite(size), fresh + pace * (size - fresh), self.noise[k])
        weight = LEARN_MIN[k] / (1440.0 * SIGMA_DAYS)
        if not self.sigma[k] > 0:
            self.sigma[k] = spread
        else:
            # Faster at first than a day's memory would be.
            self.sigma[k] += max(weight, LEARN_MIN[k] / (self.count + 1.0)) * (spread - self.sigma[k])
        self.worst[k] *= 1.0 - LEARN_MIN[k] / (1440.0 * WORST_DAYS)
        np.fmax(self.worst[k], block, out=self.worst[k])

    def threshold(self, k: int) -> float:
        """What a block of span k must exceed: effect floor, spread of the fleet, and the largest sound block seen.

        The few worst members are left out of the last: a straggler not yet accused must not hide itself.
        """
        found = self.floors[k]
        if self.sigma[k] > 0:
            found = max(found, self.sigmas * float(self.sigma[k]))
        keep = self.worst.shape[1] - 1 - max(1, int(TRIM_SHARE * self.worst.shape[1]))
        if keep > 0:
            found = max(found, self.margin * float(np.partition(self.worst[k], keep)[keep]))
        return found

    def beyond(self, where: Groups | None = None) -> tuple[Flags, NDArray[np.intp]]:
        """(entity,) whether any span's newest block is beyond its threshold, and the shortest span that says so.

        where : groups alike in load. A group that is noisier than the fleet, because each member does little, must stand
        out of its own noise too, and one of many members out of what chance shows among so many.

        A span speaks only while the last minutes show at least half of what it shows, a long one while the next
        shorter span does too: what is over is over.
        """
        size = len(self.names)
        hit, span = np.zeros(size, dtype=bool), np.zeros(size, dtype=np.intp)
        with np.errstate(invalid="ignore"):
            newest = self.latest[0]
            recent = np.where(np.isfinite(self.latest[1]), self.latest[1], newest)
            some: Flags = np.any(self.latest > self.tail_floor * np.array(self.floors)[:, None], axis=1)
            for k in rows(some):
                row = self.latest[k]
                # The first block of a span has no history to be measured by: its own spread over the fleet is a start.
                first = self.sigmas * spread_of(row) if not self.sigma[k] >= 0 else 0.0
                if k >= LONG:
                    row = np.where(self.learnt >= self.settled, row, NAN)
                elif k >= QUARTER and self.settled:
                    is_young = (self.learnt < YOUNG) & ~(row > YOUNG_MOST * self.usual_max)
                    row = np.where(is_young, NAN, row)
                limit = np.full(size, max(self.threshold(k), first))
                if where is not None:
                    if k < LONG:
                        by_chance = chance_limit(self.worst[k], where, self.count / 1440.0, self.tail_least)
                        if self.count >= TAIL_MIN:
                            least = max(self.tail_floor * self.floors[k], first)
                            limit = np.where(np.isfinite(by_chance), np.fmax(by_chance, least), limit)
                        else:
                            limit = np.fmax(limit, by_chance)
                    limit = np.fmax(limit, self.sigmas * MEAN_TO_SIGMA * self.measure(k, where))
                now = (row > limit) & (recent > 0.5 * row) & (newest > 0.25 * row) & ~hit
                if k >= LONG:
                    now &= self.latest[k - 1] > 0.5 * row
                span[now] = k
                hit |= now
        return hit, span

    def measure(self, k: int, where: Groups) -> Array:
        """(entity,) the mean size of blocks each is measured by: the middle of its group's, or its own where that is larger; NaN outside of groups.

        A group that is noisier now than it was, as a pool is whose caches are full, is measured by what it shows now, where enough
        are there to tell.
        """
        group = shared_by(self.noise[k], where) * self._unrest(where)
        found: Array = np.fmax(group, np.minimum(self.noise[k], self.own_most * group))
        return found

    def _unrest(self, where: Groups) -> Array:
        """(entity,) how many times its usual noise the group of each shows from minute to minute in the last five; 1 where it is not clearly
        more, or too few to tell."""
        out = np.ones(len(self.names))
        if not self.minutes.size:
            return out
        recent = self.minutes[-5:] - self.usual
        for member in where.member:
            of = member[member >= 0]
            block, usual = recent[:, of], self.noise[0][of]
            usual = usual[np.isfinite(usual)]
            if not usual.size or np.isfinite(block).sum() < UNREST_LEAST:
                continue
            times = spread_of(block) / (MEAN_TO_SIGMA * max(middle(usual), LEAST_NOISE))
            if times > NOISIER:
                out[of] = times
        return out

    def lasts(self, i: int, k: int, size: float) -> bool:
        """Whether entity i still shows at least half of the `size` that span k showed: over a shorter span, an hour at most, so that
        small and long claims do not flicker with the noise of minutes."""
        return bool(self.latest[HOLDS[k]][i] > 0.5 * size)

    def forgive(self, i: int) -> None:
        """What entity i showed until now is not held against it again: it was accused of that, and it is over."""
        self.minutes[:-5, i] = self.quarters[:, i] = self.watches[:, i] = NAN
        self.latest[2:, i] = NAN

    def since_min(self, i: int) -> int:
        """Minutes ago that the present deviation of entity i began: the last time it was under half of what it is."""
        row = self.minutes[:, i] - self.usual[i]
        size = float(np.nanmedian(row[-5:])) if np.isfinite(row[-5:]).any() else NAN
        if not size > 0:
            return 0
        below = np.flatnonzero(~(row >= 0.5 * size))
        if below.size:
            return int(row.size - 1 - below[-1])
        ago = self.count % 15  # minutes since the newest quarter ended
        for ring, span in ((self.quarters, 15), (self.watches, 240)):
            past = ring[:, i] - self.usual[i]
            below = np.flatnonzero(~(past >= 0.5 * size))
            if below.size:
                return int(span * (past.size - 1 - below[-1]) + ago)
            ago = self.count % 240
        return int(1440 + ago)

    def _follow(self, names: tuple[str, ...]) -> None:
        """Re-order what is remembered to a new list of entities; a newcomer starts unknown."""
        place = {name: i for i, name in enumerate(self.names)}
        old = np.array([place.get(name, -1) for name in names], dtype=np.intp)

        def move(table: Array, height: int, blank: float) -> Array:
            moved = np.full((height, len(names)), blank)
            if table.size:
                moved[:, old >= 0] = table[:, old[old >= 0]]
            return moved

        self.minutes = move(self.minutes, 30, NAN)
        self.quarters = move(self.quarters, 16, NAN)
        self.watches = move(self.watches, 6, NAN)
        self.latest = move(self.latest, len(SPANS_MIN), NAN)
        self.worst = move(self.worst, len(SPANS_MIN), 0.0)
        self.noise = move(self.noise, len(SPANS_MIN), NAN)
        self.usual = move(self.usual[None, :], 1, 0.0)[0]
        self.learnt = move(self.learnt[None, :], 1, 0.0)[0]
        self.clean = move(self.clean[None, :], 1, 2.0 * SPANS_MIN[-1])[0]
        self.names = names


def in_units(scales: Scales, k: int, where: Groups) -> Array:
    """(entity,) newest block of a span in standard deviations, see deviation."""
    if not scales.latest.size:
        return np.full(where.of.size, NAN)
    found: Array = scales.latest[k] / deviation(scales, k, where)
    return found


def deviation(scales: Scales, k: int, where: Groups) -> Array:
    """(entity,) standard deviation of the blocks of a span, as Scales.measure tells it; the fleet's outside of groups."""
    noise = scales.measure(k, where)
    known = scales.noise[k][np.isfinite(scales.noise[k])]
    fleet = middle(known) if known.size else NAN
    noise = MEAN_TO_SIGMA * np.where(np.isfinite(noise), noise, fleet)
    return np.maximum(noise, LEAST_NOISE)
