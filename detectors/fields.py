"""Single fields of pages that answer: fields that went missing, gauges that stick, counters that stand still."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.stats import Streak, rows

KNOWN_S = 600.0
LOST_S = 45.0
FRESH_S = 45.0
LOOK_S = 180.0
STUCK_S = 1800.0
MOVERS_MIN = 3
SHARED = 0.05
STILL_S = 60.0
WATCHED = ("gpu", "node", "port")
SPARSE = frozenset({"xid_code", "energy_j_per_s"})
"""Signals that are empty most of the time, by right."""
GAUGES = {"gpu": "power_w", "node": "mem_available_bytes"}
"""A gauge of each kind that no live hardware holds to the last digit for half an hour."""


@dataclass(slots=True)
class Lost:
    """Fields of one kind that were measured for long and are so no more.

    known, fresh : (entity, signal) bits, packed and in hex so that a dump stays small: measured for KNOWN_S; measured
    throughout since `began`. gone : "entity<tab>signal" -> since when it has been missing.
    """

    entities: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    known: str = ""
    fresh: str = ""
    began: float = NAN
    gone: dict[str, float] = field(default_factory=dict)

    def look(self, frame: Frame) -> list[tuple[str, str, float]]:
        """(entity, signal, seconds gone) of what is lost now."""
        shape = (len(frame.entities), len(frame.signals))
        known, fresh = (_follow(self, bits, frame) for bits in (self.known, self.fresh))
        self.entities, self.signals = frame.entities, frame.signals
        measured = np.isfinite(frame.values)
        fresh = fresh & measured if self.began == self.began else measured
        if not frame.at - self.began < KNOWN_S:
            known, fresh, self.began = (
                known | (fresh if self.began == self.began else False),
                measured,
                frame.at,
            )
        self.known, self.fresh = _pack(known), _pack(fresh)
        missing = known & ~measured & (frame.age_s <= FRESH_S)[:, None]
        if not missing.any():
            self.gone = {}
            return []
        names = [
            (frame.entities[i], frame.signals[k])
            for i, k in zip(*(index.tolist() for index in missing.reshape(shape).nonzero()), strict=True)
            if frame.signals[k] not in SPARSE
        ]
        self.gone = {f"{e}\t{s}": self.gone.get(f"{e}\t{s}", frame.at) for e, s in names}
        return [
            (e, s, frame.at - self.gone[f"{e}\t{s}"])
            for e, s in names
            if frame.at - self.gone[f"{e}\t{s}"] >= LOST_S
        ]


def _pack(bits: NDArray[np.bool_]) -> str:
    return np.packbits(bits).tobytes().hex()


def _follow(old: Lost, packed: str, frame: Frame) -> NDArray[np.bool_]:
    """The bits for the rows and columns of this frame; newcomers start unset."""
    shape = (len(old.entities), len(old.signals))
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8), count=shape[0] * shape[1])
    table = bits.astype(bool).reshape(shape)
    if frame.entities == old.entities and frame.signals == old.signals:
        return table
    found = np.zeros((len(frame.entities), len(frame.signals)), dtype=bool)
    row = {name: i for i, name in enumerate(old.entities)}
    column = {name: k for k, name in enumerate(old.signals)}
    to_rows = [i for i, name in enumerate(frame.entities) if name in row]
    to_columns = [k for k, name in enumerate(frame.signals) if name in column]
    if to_rows and to_columns:
        of_rows, of_columns = (
            [row[frame.entities[i]] for i in to_rows],
            [column[frame.signals[k]] for k in to_columns],
        )
        found[np.ix_(to_rows, to_columns)] = table[np.ix_(of_rows, of_columns)]
    return found


@dataclass(slots=True)
class Stuck:
    """One gauge of one kind. last, since : (entity,) its value, and when it last changed."""

    entities: tuple[str, ...] = ()
    last: Array = field(default_factory=lambda: np.empty(0))
    since: Array = field(default_factory=lambda: np.empty(0))

    def look(self, frame: Frame, signal: str) -> list[tuple[str, float, float]]:
        """(entity, value, seconds unchanged) of gauges that stand still while those of others move."""
        if frame.entities != self.entities:
            place = {name: i for i, name in enumerate(self.entities)}
            old = [place.get(name, -1) for name in frame.entities]
            self.last = np.array([self.last[i] if i >= 0 else NAN for i in old])
            self.since = np.array([self.since[i] if i >= 0 else frame.at for i in old])
            self.entities = frame.entities
        now = frame.column(signal)
        # What is not measured just now has not moved; the next value decides.
        moved = np.isfinite(now) & (now != self.last)
        self.since = np.where(moved, frame.at, self.since)
        self.last = np.where(moved, now, self.last)
        still_s = np.where(np.isfinite(now), frame.at - self.since, 0.0)
        stuck = still_s > STUCK_S
        if not stuck.any() or ((still_s < 300.0) & np.isfinite(now)).sum() < MOVERS_MIN:
            return []
        return [(frame.entities[i], float(now[i]), float(still_s[i])) for i in rows(stuck)]


@dataclass(slots=True)
class Fields:
    """lost, stuck : by kind. still : engines whose token counter stands while the gateway sees them work.

    What moves over minutes is looked at every three and claimed until the next look. at : of the last look.
    """

    at: float = NAN
    claims: list[Finding] = field(default_factory=list)
    lost: dict[str, Lost] = field(default_factory=dict)
    stuck: dict[str, Stuck] = field(default_factory=dict)
    still: Streak = field(default_factory=Streak)

    def update(self, frames: Frames) -> list[Finding]:
        if not frames.at - self.at < LOOK_S:
            self.at = frames.at
            nodes = frozenset(frames["node"].entities)
            self.claims = [f for kind in WATCHED for f in self._missing(frames[kind], len(nodes), nodes)]
            self.claims += [f for kind in GAUGES for f in self._sticking(frames[kind])]
        found = [replace(claim, at=frames.at) for claim in self.claims] if self.claims else []
        return found + self._frozen(frames["engine"])

    def _missing(self, frame: Frame, nodes: int, has_node: frozenset[str]) -> list[Finding]:
        """Fields that vanished, one finding a node; of the cluster when many nodes lose them at once."""
        found = self.lost.setdefault(frame.kind, Lost()).look(frame) if frame.entities else []
        if not found:
            return []
        by_node: dict[str, list[tuple[str, str, float]]] = {}
        for entry in found:
            by_node.setdefault(entry[0].split("/", 1)[0], []).append(entry)
        if len(by_node) >= 3 and len(by_node) > SHARED * nodes:
            return [_missing(frame, Entity("cluster", "telemetry"), found, len(by_node))]
        return [
            _missing(
                frame, Entity("node", name) if name in has_node else Entity(frame.kind, lost[0][0]), lost, 1
            )
            for name, lost in by_node.items()
        ]

    def _sticking(self, frame: Frame) -> list[Finding]:
        """Gauges that repeat one value for half an hour beside others that move."""
        signal = GAUGES[frame.kind]
        if not frame.entities or signal not in frame.signals:
            return []
        return [
            say(
                frame.at,
                "integrity.gauge_stuck",
                Entity(frame.kind, name),
                "gauge_stuck",
                0.7,
                Severity.INFO,
                Evidence(signal, value, ""),
                Evidence("unchanged", still_s, "s"),
                since=frame.at - still_s,
                text=f"{signal} repeats {value:g} while that of others moves",
            )
            for name, value, still_s in self.stuck.setdefault(frame.kind, Stuck()).look(frame, signal)
        ]

    def _frozen(self, engine: Frame) -> list[Finding]:
        """A token counter that stands still while the gateway sees answers complete: the page is not to be believed."""
        done, tokens = engine.columns(("lb_done_per_s", "generation_tokens_s")).T
        stands = (done > 0) & (tokens == 0.0)
        if not stands.any():
            return []
        place = {engine.entities[i]: i for i in rows(stands)}
        return [
            say(
                engine.at,
                "integrity.counter_frozen",
                Entity("engine", name),
                "telemetry_frozen",
                0.8,
                Severity.WARNING,
                Evidence("tokens_on_its_page", 0.0, "1/s"),
                Evidence("completed_at_gateway", float(done[place[name]]), "1/s"),
                Evidence("held", held_s, "s"),
                since=engine.at - held_s,
                text="its token counter stands still while requests complete",
                rejected=("a hung engine: the gateway sees its requests complete",),
            )
            for name, held_s in self.still.held(engine.at, list(place)).items()
            if held_s >= STILL_S
        ]


def _missing(frame: Frame, entity: Entity, lost: list[tuple[str, str, float]], nodes: int) -> Finding:
    signals = sorted({signal for _, signal, _ in lost})
    names = ", ".join(signals[:4]) + (f" and {len(signals) - 4} more" if len(signals) > 4 else "")
    where = (
        "renamed by a new exporter version, most likely" if nodes > 1 else "renamed, left out or saturated"
    )
    return say(
        frame.at,
        "integrity.field_lost",
        entity,
        "field_lost",
        0.9,
        Severity.INFO,
        Evidence("fields_lost", float(len(signals)), ""),
        Evidence("entities", float(len({name for name, _, _ in lost})), frame.kind),
        Evidence("nodes", float(nodes), ""),
        since=frame.at - max(seconds for _, _, seconds in lost),
        text=f"no longer exported: {names}; {where}",
        rejected=("a silent exporter: the rest of the page is fresh",),
    )
