"""Forecasts kept until their time has come, with how well each did."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from daemon.model import NAN, Array
from daemon.store import Store

KEPT_S = 35 * 86_400.0
"""How long an elapsed forecast is kept: five weeks show whether one week was an accident."""

ARCHIVE_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS forecasts (target TEXT NOT NULL, signal TEXT NOT NULL, at REAL NOT NULL, step_s REAL NOT NULL, chosen TEXT NOT NULL, about TEXT NOT NULL, quantiles BLOB NOT NULL, scores TEXT, PRIMARY KEY (target, signal, at)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS forecasts_unscored ON forecasts (at) WHERE scores IS NULL",
)


@dataclass(frozen=True, slots=True)
class Score:
    """One elapsed forecast of one forecaster against what came within the scored lead.

    error, naive_error : sums of absolute errors over `hours` known hours, of it and of weekly naive. loss : weighted
    quantile loss, summed; size : sum of what came. inside : hours between the 10 % and the 90 % level.
    brier : squared error of its chance that the threshold is passed, NaN = it gave none; passed : whether it was.
    """

    error: float
    naive_error: float
    loss: float
    size: float
    inside: int
    hours: int
    brier: float = NAN
    passed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A forecast as it was made.

    at : left edge of its first step. quantiles : forecaster -> (quantile, step), rows in the order of levels; "blend"
    and "weekly naive" are always there. chosen : whose was used. threshold : demand that was high then; chance : the
    probability given for passing it within the scored lead. scores : by forecaster, None = not elapsed yet.
    """

    target: str
    signal: str
    at: float
    step_s: float
    chosen: str
    levels: tuple[float, ...]
    quantiles: dict[str, Array]
    threshold: float = NAN
    chance: float = NAN
    scores: dict[str, Score] | None = None


class Archive:
    """The kept forecasts of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, kept: Kept) -> None:
        names = list(kept.quantiles)
        stacked = np.stack([kept.quantiles[n] for n in names]).astype(np.float32)
        about = {
            "names": names,
            "levels": kept.levels,
            "shape": stacked.shape,
            "threshold": _plain(kept.threshold),
            "chance": _plain(kept.chance),
        }
        row = (
            kept.target,
            kept.signal,
            kept.at,
            kept.step_s,
            kept.chosen,
            json.dumps(about),
            zlib.compress(stacked.tobytes(), 1),
            None,
        )
        self._store.write("INSERT OR REPLACE INTO forecasts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [row])

    def scored(self, kept: Kept, scores: dict[str, Score]) -> None:
        """Note how the forecasters of one kept forecast did."""
        text = json.dumps({n: {k: _plain(v) for k, v in asdict(s).items()} for n, s in scores.items()})
        self._store.write(
            "UPDATE forecasts SET scores = ? WHERE target = ? AND signal = ? AND at = ?",
            [(text, kept.target, kept.signal, kept.at)],
        )

    def due(self, before: float) -> list[Kept]:
        """Forecasts made up to `before` that nobody has scored, oldest first."""
        return self._read("at <= ? AND scores IS NULL", (before,))

    def since(self, target: str, signal: str, at: float) -> list[Kept]:
        """Forecasts of one series made at or after a time, oldest first."""
        return self._read("target = ? AND signal = ? AND at >= ?", (target, signal, at))

    def made_before(self, target: str, signal: str, at: float) -> Kept | None:
        """The newest forecast of one series that was made at or before a time."""
        found = self._read(
            "target = ?1 AND signal = ?2 AND at = (SELECT max(at) FROM forecasts WHERE target = ?1 AND signal = ?2 AND at <= ?3)",
            (target, signal, at),
        )
        return found[0] if found else None

    def prune(self, at: float) -> None:
        self._store.write("DELETE FROM forecasts WHERE at < ?", [(at - KEPT_S,)])

    def _read(self, where: str, values: Sequence[object]) -> list[Kept]:
        rows = self._store.rows(
            f"SELECT target, signal, at, step_s, chosen, about, quantiles, scores FROM forecasts WHERE {where} ORDER BY at, target",
            tuple(values),
        )
        return [_kept(*row) for row in rows]


def _plain(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _kept(
    target: str,
    signal: str,
    at: float,
    step_s: float,
    chosen: str,
    about: str,
    body: bytes,
    scores: str | None,
) -> Kept:
    facts = json.loads(about)
    stacked = np.frombuffer(zlib.decompress(body), dtype=np.float32).reshape(facts["shape"]).astype(float)
    found = None
    if scores is not None:
        found = {n: Score(**(s | {"brier": _number(s["brier"])})) for n, s in json.loads(scores).items()}
    return Kept(
        target,
        signal,
        at,
        step_s,
        chosen,
        tuple(facts["levels"]),
        dict(zip(facts["names"], stacked, strict=True)),
        _number(facts["threshold"]),
        _number(facts["chance"]),
        found,
    )


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)
