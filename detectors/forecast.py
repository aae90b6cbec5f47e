"""Demand for the days ahead: a blend of cheap models, with bands from their own past errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points

import numpy as np

from daemon.model import NAN, Array, Forecast, Track
from detectors import forecast_occasions as occasions
from detectors.forecast_bands import LEVELS, PATHS, bands, paths, ranks_of, steady_ranks
from detectors.forecast_blend import FULL, Effort, blend
from detectors.forecast_glitch import without_glitch
from detectors.forecast_growth import growth_of
from detectors.forecast_members import DAY, WEEK, week_shape
from detectors.forecast_shift import rebased, shift_of

__all__ = ["LEVELS", "Ahead", "BlendForecaster", "fill", "fit", "forecast_series", "hourly"]

HOUR_S = 3600.0
HISTORY_MIN_H = 2 * DAY
DAY_HOURS_MIN = 8
"""Hours of the day that must have been measured: a value a day says nothing of the day's course."""
TOP = 1e300
"""Beyond it sums overflow."""
HISTORY_MAX_H = 13 * WEEK
"""Older hours change nothing: shapes look back eight weeks, weights eighteen days."""
YOUNG_H = 8 * DAY
"""With less than this a like series lends its shape: there is no week of its own to repeat."""
SKILL_LEADS_H = 72
SKILL_ORIGINS = 15
"""Past forecasts that skill is read off, a week's: older ones were made with so little history and so few elapsed errors
that they tell of a beginner. Judgement: on the tune part what it tells is nearer to what then came than with all 40."""
DOUBT_ABOVE, DOUBT_PER_EXCESS = 1.15, 4.0
"""From what error over weekly naive's on its own past a share is handed to it, all of it at 1.4. Below, the weights
do better by themselves. Source: bench/forecast.py --part tune."""
NOTHING = 1e-4
"""Share of what came that is no error."""
TOLD_CHANCE = 0.5
"""From what chance on a growth is worth a word."""
PLUGINS = "tidewarden.forecasters"
"""Entry-point group of a site's own forecasters: (values (hour,), horizon, levels) -> (quantile, hour)."""

Plugin = Callable[[Array, int, tuple[float, ...]], Array]


@dataclass(frozen=True, slots=True)
class Ahead:
    """quantiles, naive : (quantile, hour) for LEVELS, of the blend and of weekly naive; all NaN = see note.

    ranks : (path, hour), see daemon.model.Forecast. skill : mean absolute error of past forecasts up to 72 h over
    weekly naive's, NaN with too few. leaders : the models that carry most of it, by weight.
    """

    quantiles: Array
    naive: Array
    ranks: Array
    skill: float = NAN
    note: str = ""
    leaders: tuple[str, ...] = ()


def forecast_series(values: Array, horizon: int, effort: Effort = FULL) -> Ahead:
    """Forecast an hourly series. values : (hour,), NaN = missing; horizon in hours.

    Needs two days; what cannot be forecast honestly comes back as NaN with the reason in `note`.
    """
    usual, glitch = without_glitch(np.where(np.isfinite(values), values, NAN))
    seen = since_demand(usual[-HISTORY_MAX_H:])
    trouble = _trouble(usual, seen)
    if trouble:
        nothing = np.full((len(LEVELS), horizon), NAN)
        return Ahead(nothing, nothing, np.empty((0, 0)), NAN, trouble)
    # Bytes or shares: what is small beside one is judged as what is large. A power of two, so that no digit changes.
    unit = 2.0 ** math.floor(math.log2(float(np.nanmax(np.abs(seen)))))
    y = fill(seen) / unit
    seen = seen[seen.size - y.size :] / unit
    low = min(0.0, float(y.min()))
    growth = growth_of(y - low, seen)
    if growth is not None and growth.chance >= TOLD_CHANCE:
        shift, usual, came = None, growth.levelled(y - low), growth.levelled(seen - low)
    else:
        shift = shift_of(y - low)
        usual, came = rebased(y - low, shift), rebased(seen - low, shift)
    found = blend(usual, came, horizon, effort)
    level = np.array([(y[max(0, o - WEEK) : o] - low).mean() for o in found.origins])
    quantiles = bands(found.made, found.truth, found.origins, level)
    naive = bands(found.naive, found.truth, found.origins, level)
    lately = slice(-SKILL_ORIGINS - 1, None)
    past = skill(found.made[lately], found.naive[lately], found.truth[lately])
    # Worse than repeating the week before on its own past: the more so, the less of it is believed.
    doubt = min(1.0, max(0.0, DOUBT_PER_EXCESS * (past - DOUBT_ABOVE))) if past == past else 0.0
    quantiles = (1.0 - doubt) * quantiles + doubt * naive
    middle = (1.0 - doubt) * found.made[-1] + doubt * found.naive[-1]
    ways = paths(found.made, found.truth, found.origins, level, middle)
    notes = []
    if growth is not None:
        quantiles = quantiles * growth.factors(LEVELS, horizon)
        ways = ways * growth.along(PATHS, horizon) if ways is not None else None
        if growth.chance >= TOLD_CHANCE:
            notes.append(
                f"it has grown by {growth.rate:.0%} a day for {growth.days} days ({growth.chance:.0%} sure)"
            )
    if shift is not None:
        quantiles = widened(quantiles, shift.widening(horizon))
        ways = (
            np.maximum(middle + (ways - middle) * shift.widening(horizon), 0.0) if ways is not None else None
        )
        notes.append(f"the level changed by a factor of {shift.factor:.3g} {shift.hours} h ago")
    if glitch:
        notes.append(f"an hour {glitch:.3g} times as high as all others is not believed until it comes again")
    if low < 0:
        notes.append(f"values below zero were found, down to {low * unit:.4g}")
    heaviest = sorted(found.weights, key=lambda name: -found.weights[name])
    return Ahead(
        (quantiles + low) * unit,
        (naive + low) * unit,
        ranks_of(ways, quantiles) if ways is not None else steady_ranks(horizon),
        past,
        "; ".join(notes),
        tuple(heaviest[:3]),
    )


def since_demand(values: Array) -> Array:
    """The series with all hours before the first that is known and not zero unknown: nobody was asking yet, and how
    demand comes and goes is learnt from when there is some."""
    asked = np.flatnonzero(np.isfinite(values) & (values != 0.0))
    return np.where(np.arange(values.size) < (asked[0] if asked.size else values.size), NAN, values)


def _trouble(values: Array, seen: Array) -> str:
    """Why a series cannot be forecast, "" when it can. values : (hour,) as measured; seen : since the first demand."""
    known, since = np.isfinite(values), np.isfinite(seen)
    if known.sum() >= HISTORY_MIN_H and not since.any():
        return f"nothing but zeros for {known.sum()} h: no demand has been seen, so none can be forecast"
    if since.sum() < HISTORY_MIN_H:
        before = "" if since.sum() == known.sum() else ", after nothing but zeros"
        return (
            f"not enough history (have {since.sum()} h{before}, need {HISTORY_MIN_H} h; four weeks are good)"
        )
    hours = np.unique(np.flatnonzero(since) % DAY).size
    if hours < DAY_HOURS_MIN:
        return f"only {hours} of the {DAY} hours of the day are ever measured (need {DAY_HOURS_MIN}): hourly values are needed"
    top = float(np.nanmax(np.abs(seen)))
    if top > TOP:
        return f"values up to {top:.3g} were found (at most {TOP:.0e}): no demand is that high"
    return ""


def widened(quantiles: Array, factor: Array) -> Array:
    """(quantile, hour) spread about the median by a factor an hour, not below zero."""
    middle = quantiles[LEVELS.index(0.5)]
    return np.asarray(np.maximum(middle + (quantiles - middle) * factor, 0.0), dtype=float)


def skill(made: Array, naive: Array, truth: Array) -> float:
    """Error over weekly naive's at past origins. All (origin, lead); NaN where there are fewer than four origins.

    An error of NOTHING of what came is none: a series that repeats itself exactly would give a ratio of rounding.
    """
    come = truth[:, :SKILL_LEADS_H]
    known = np.isfinite(come)
    if known.any(axis=1).sum() < 4:
        return NAN
    ours = np.abs(made[:, :SKILL_LEADS_H] - come)[known].sum()
    theirs = np.abs(naive[:, :SKILL_LEADS_H] - come)[known].sum()
    least = NOTHING * np.abs(come[known]).sum()
    return float((ours + least) / (theirs + least)) if theirs + least > 0 else NAN


def fill(values: Array) -> Array:
    """Gaps filled causally: the same hour a week before, a day before, else the last value; leading gaps dropped."""
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return np.empty(0)
    y = values[known[0] :].copy()
    for i in np.flatnonzero(np.isnan(y)):
        y[i] = next((y[i - back] for back in (WEEK, DAY, 1) if i >= back), 0.0)
    return y


def hourly(at: Array, values: Array, until: float = NAN) -> tuple[Array, Array]:
    """Means of full hours, NaN where an hour has no sample. Returns (hour,) left edges and values.

    at : (row,) in any order; what stands twice is averaged. until : the hours go on to this time, NaN = to the last sample.
    """
    known = np.isfinite(values) & np.isfinite(at)
    if not known.any():
        return np.empty(0), np.empty(0)
    hour = (at[known] // HOUR_S).astype(np.int64)
    first, last = int(hour.min()), int(hour.max())
    if math.isfinite(until):
        last = max(last, int(until // HOUR_S) - 1)
    size = last - first + 1
    number = np.bincount(hour - first, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(hour - first, values[known], minlength=size) / number
    return (np.arange(size, dtype=float) + first) * HOUR_S, np.asarray(mean, dtype=float)


@dataclass(slots=True)
class BlendForecaster:
    """Forecasts one pool's demand. Needs two days of history, or a sibling's, and says how good it was.

    track : what is known of the series beside its values. effort : what a fit may cost.
    """

    track: Track
    effort: Effort = FULL
    at: Array = field(default_factory=lambda: np.empty(0))
    values: Array = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        self.update(self.track.at, self.track.values)

    def update(self, at: Array, values: Array) -> None:
        """Give the whole history. at : (row,) left edges, seconds since the epoch; values : (row,), NaN = missing."""
        self.at, self.values = at, values

    def forecast(self, horizon_s: float) -> Forecast:
        """Hourly, from the full hour after the last sample, or from the hour of `until`."""
        track, horizon = self.track, int(horizon_s // HOUR_S)
        hours, y = hourly(self.at, self.values, track.until)
        start = float(hours[0]) if hours.size else 0.0
        factor, width, coming = occasions.ahead(y, start, track.occasions, horizon)
        usual = occasions.masked(occasions.without(y, start, track.occasions), start, track.masked)
        lent, borrowed = self._borrowed(usual, start)
        made = forecast_series(lent, horizon, self.effort)
        notes = [made.note] if made.note else []
        quantiles = widened(made.quantiles, width) * factor if coming else made.quantiles
        if borrowed:
            quantiles = widened(quantiles, np.full(horizon, 1.5))
            notes.append(
                f"its shape is borrowed from {borrowed}: no warning three days ahead is to be had of it"
            )
        if coming:
            notes.append(f"ahead: {', '.join(coming)}")
        return Forecast(
            start + y.size * HOUR_S,
            track.target,
            track.signal,
            HOUR_S,
            LEVELS,
            quantiles,
            f"blend, mostly {', '.join(w.replace('_', ' ') for w in made.leaders)}"
            if made.leaders
            else "blend",
            NAN if borrowed else made.skill,
            made.ranks,
            {"weekly naive": made.naive} | self._rival(lent, horizon),
            "; ".join(notes),
        )

    def _borrowed(self, y: Array, start: float) -> tuple[Array, str]:
        """The series behind its sibling's past at its own level, and whose that is; the series itself when grown."""
        track = self.track
        y = since_demand(y)
        known = np.isfinite(y)
        if not track.sibling_name or known.sum() >= YOUNG_H or known.sum() < 1:
            return y, ""
        hours, lender = hourly(track.sibling_at, track.sibling_values)
        offset = round((start - float(hours[0])) / HOUR_S) if hours.size else 0
        past = fill(lender[: max(offset, 0)])
        if past.size < YOUNG_H:
            return y, ""
        shape = week_shape(past, 4)
        usual = shape[np.arange(y.size) % WEEK][known]
        if not usual.sum() > 0:
            return y, ""
        scale = float(y[known].sum() / usual.sum())
        return np.r_[past * scale, y], track.sibling_name

    def _rival(self, y: Array, horizon: int) -> dict[str, Array]:
        """What the site's own forecaster says; an error there is its own and leaves the forecast as it is."""
        if not self.track.plugin:
            return {}
        found = plugin(self.track.plugin)
        said = np.asarray(found(fill(y), horizon, LEVELS), dtype=float)
        if said.shape != (len(LEVELS), horizon) or not np.isfinite(said).all():
            raise ValueError(
                f"forecaster {self.track.plugin!r} gave an array of shape {said.shape}; "
                f"({len(LEVELS)}, {horizon}) finite numbers are needed"
            )
        return {self.track.plugin: np.maximum.accumulate(said, axis=0)}


def plugin(name: str) -> Plugin:
    """A site's own forecaster by its entry-point name. Raises ValueError, naming those there are."""
    found = {e.name: e for e in entry_points(group=PLUGINS)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none is installed"
        raise ValueError(f"no forecaster {name!r} in the entry points {PLUGINS}: {known}")
    loaded: Plugin = found[name].load()
    return loaded


def fit(track: Track, horizon_s: float, effort: Effort = FULL) -> Forecast:
    """One series' forecast in one call, for a worker process. A plug-in's failure is noted, never raised."""
    try:
        return BlendForecaster(track, effort).forecast(horizon_s)
    except Exception as error:
        if not track.plugin:
            raise
        made = BlendForecaster(replace(track, plugin=""), effort).forecast(horizon_s)
        return replace(made, note="; ".join(filter(None, (made.note, f"{track.plugin} failed: {error}"))))
