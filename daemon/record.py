"""The journal of everything the daemon saw, decided and did, restored after a crash."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from daemon.archive import ARCHIVE_SCHEMA, Archive
from daemon.codec import decode, to_plain
from daemon.model import Array, Incident, Outcome, Reason, RecordError, Step, Verb, Verdict
from daemon.outbox import OUTBOX_SCHEMA, Outbox
from daemon.pictures import SCHEMA as PICTURES
from daemon.pictures import Pictures
from daemon.rollups import ROLLUP_SCHEMA, Rollups
from daemon.store import Store, open_store, open_view

__all__ = ["Entry", "Record", "RecordError", "Snapshot", "StepRow"]

SCHEMA_VERSION = 1
SNAPSHOTS_KEPT = 3
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, at REAL NOT NULL, type TEXT NOT NULL, payload TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS events_by_type ON events (type, id)",
    "CREATE TABLE IF NOT EXISTS incidents (id TEXT PRIMARY KEY, at REAL NOT NULL, state TEXT NOT NULL, opened REAL NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS incidents_by_opened ON incidents (opened)",
    "CREATE TABLE IF NOT EXISTS steps (id TEXT PRIMARY KEY, at REAL NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL, verdict TEXT, intent_at REAL, outcome TEXT)",
    "CREATE INDEX IF NOT EXISTS steps_by_at ON steps (at)",
    "CREATE INDEX IF NOT EXISTS steps_by_state ON steps (state, at)",
    "CREATE TABLE IF NOT EXISTS snapshots (event INTEGER NOT NULL, at REAL NOT NULL, state BLOB NOT NULL)",
    *OUTBOX_SCHEMA,
    *PICTURES,
    *ROLLUP_SCHEMA,
    *ARCHIVE_SCHEMA,
)
# The roll-ups are left out: they are the bulk of the file, and nothing is decided by them alone.
_CHECKED = ("meta", "events", "incidents", "steps", "snapshots", "outbox")

_EVENT = "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)"
_INCIDENT = "INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?, ?)"
# A verdict on a step that is already under way, or over, changes nothing of it.
_VERDICT = """INSERT INTO steps VALUES (?1, ?2, ?3, ?4, ?5, NULL, NULL) ON CONFLICT (id) DO UPDATE
    SET at = ?2, state = ?3, step = ?4, verdict = ?5 WHERE intent_at IS NULL AND outcome IS NULL"""
_INTENT = """INSERT INTO steps VALUES (?1, ?2, 'intent', ?3, NULL, ?2, NULL) ON CONFLICT (id) DO UPDATE
    SET at = ?2, state = 'intent', step = ?3, intent_at = ?2 WHERE intent_at IS NULL AND outcome IS NULL"""
# The first outcome stands; only "nobody can tell" may be replaced, by whoever found out.
_OUTCOME = """INSERT INTO steps VALUES (?1, ?2, ?3, ?4, NULL, NULL, ?5) ON CONFLICT (id) DO UPDATE
    SET state = ?3, outcome = ?5 WHERE outcome IS NULL OR state = 'unknown'"""


class Entry(NamedTuple):
    """One line of the journal. type : "verdict", "intent", "outcome", "incident" or the caller's own word."""

    id: int
    at: float
    type: str
    payload: Any


class Snapshot(NamedTuple):
    """A dump of the core. event : the last journal entry it includes."""

    at: float
    event: int
    state: dict[str, Any]


class StepRow(NamedTuple):
    """One step with all that is known of it.

    state   : "allowed", "awaiting" (an operator's approval), "withheld" (the guard said no), "intent" (under way,
              or interrupted), else the result: "done", "refused", "failed", "unknown".
    at      : last change before the outcome. intent_at : NaN when it was never begun.
    """

    step: Step
    state: str
    at: float
    verdict: Verdict | None
    intent_at: float
    outcome: Outcome | None


class Record:
    """The journal of one state folder, with a single writer.

    Ordinary entries are durable after `commit`, once a tick; an intent is durable when `intent` returns.
    While the disk refuses writes `healthy` is False, `trouble` says why, entries wait in memory, and nothing may
    be acted upon; `commit` tries again. outbox : the letters to on-call. archive : forecasts, kept to be scored.
    """

    def __init__(self, store: Store) -> None:
        self.outbox = Outbox(store)
        self._store = store
        self._rollups = Rollups(store)
        self.archive = Archive(store)
        self.pictures = Pictures(store)
        self._latest = 0.0
        self._next = 1 + int(store.rows("SELECT coalesce(max(id), 0) FROM events")[0][0])
        # Last word journalled for a step, so that a refusal repeated every tick is one entry.
        self._said: dict[str, tuple[bool, Reason]] = {}

    @classmethod
    def open(cls, folder: Path | None) -> Record:
        """Open or create the journal of a state folder; None = in memory, for drills.

        Raises RecordError: in use by another daemon (names its pid), not writable, full, damaged (the file is
        moved aside, the next call starts afresh), or written by a newer version.
        """
        store = open_store(folder, _SCHEMA, _CHECKED)
        try:
            _check_version(store)
            return cls(store)
        except BaseException:
            store.close()
            raise

    @classmethod
    def view(cls, folder: Path) -> Record:
        """Open an existing journal for reading only, also beside a running daemon. Raises RecordError."""
        return cls(open_view(folder))

    @property
    def mark(self) -> str:
        """A few characters of its own for each journal file, "" in memory. Step ids begin with it, so that a journal
        that is begun anew never gives an id that an actuator may remember."""
        found = self._store.rows("SELECT value FROM meta WHERE key = 'mark'")
        return str(found[0][0]) if found else ""

    @property
    def path(self) -> Path | None:
        return self._store.path

    @property
    def healthy(self) -> bool:
        return self._store.healthy

    @property
    def trouble(self) -> str:
        """Path, what happened and the remedy; "" while writing works."""
        return self._store.trouble

    def close(self) -> None:
        self.commit()
        self._store.close()

    def commit(self) -> bool:
        """Make durable what this tick wrote, and what earlier ticks could not. False when the disk refuses."""
        if not self._store.commit():
            return False
        if not self._store.dropped:
            return True
        lost, self._store.dropped = self._store.dropped, 0
        self.event(self._latest, "journal_gap", {"lost": lost})
        return self._store.commit()

    # -- the journal ---------------------------------------------------------------------------------

    def event(self, at: float, type: str, payload: Any) -> int:
        """Append one entry (a dataclass or JSON value) and return its number."""
        number = self._next
        self._next += 1
        self._latest = at
        self._store.write(_EVENT, [(number, at, type, canonical(payload))])
        return number

    def events(
        self,
        after: int = 0,
        type: str | None = None,
        limit: int = 1000,
        *,
        newest_first: bool = False,
        before: int | None = None,
    ) -> list[Entry]:
        """Entries with a number above `after` and below `before`, of one type or all."""
        order = "DESC" if newest_first else "ASC"
        rows = self._store.rows(
            "SELECT id, at, type, payload FROM events WHERE id > ?1 AND (?2 IS NULL OR type = ?2) "
            f"AND (?4 IS NULL OR id < ?4) ORDER BY id {order} LIMIT ?3",
            (after, type, limit, before),
        )
        return [Entry(number, at, kind, json.loads(payload)) for number, at, kind, payload in rows]

    def journal_sha256(self) -> str:
        """Digest over number, time, type and payload of every entry in order."""
        digest = hashlib.sha256()
        for row in self._store.rows("SELECT id, at, type, payload FROM events ORDER BY id"):
            digest.update(("\t".join(map(str, row)) + "\n").encode())
        return digest.hexdigest()

    # -- incidents -----------------------------------------------------------------------------------

    def incident(self, at: float, incident: Incident) -> None:
        """Keep the incident's present state and journal the change."""
        self.event(at, "incident", incident)
        row = (incident.id, at, incident.state, incident.opened, canonical(incident))
        self._store.write(_INCIDENT, [row])

    def incidents(
        self, state: str | None = None, limit: int = 1000, before: tuple[float, str] | None = None
    ) -> list[Incident]:
        """Newest first; state None = all. before : (opened, id) of the last one already known, to go on after it."""
        opened, id = before or (None, "")
        rows = self._store.rows(
            "SELECT body FROM incidents WHERE (?1 IS NULL OR state = ?1) "
            "AND (?3 IS NULL OR opened < ?3 OR (opened = ?3 AND id > ?4)) ORDER BY opened DESC, id LIMIT ?2",
            (state, limit, opened, id),
        )
        return [decode(Incident, json.loads(body)) for (body,) in rows]

    def incident_of(self, id: str) -> Incident | None:
        """One incident as it was last kept; None when it was never mentioned."""
        rows = self._store.rows("SELECT body FROM incidents WHERE id = ?", (id,))
        return decode(Incident, json.loads(rows[0][0])) if rows else None

    def mentions(self, id: str, since: float, until: float, limit: int = 500) -> list[Entry]:
        """Entries from `since` to `until` that name an incident or a step by its id, oldest first."""
        rows = self._store.rows(
            "SELECT id, at, type, payload FROM events WHERE id >= ?1 AND at <= ?2 AND instr(payload, ?3) > 0 "
            "AND type <> 'forecast' ORDER BY id LIMIT ?4",
            (self._first_at(since), until, json.dumps(id), limit),
        )
        return [Entry(number, at, kind, json.loads(payload)) for number, at, kind, payload in rows]

    def _first_at(self, since: float) -> int:
        """Number of the first entry at or after a time, by bisection: numbers grow with time, times are not indexed."""
        low, high = 1, self._next
        while low < high:
            middle = (low + high) // 2
            rows = self._store.rows("SELECT at FROM events WHERE id >= ? ORDER BY id LIMIT 1", (middle,))
            if rows and rows[0][0] < since:
                low = middle + 1
            else:
                high = middle
        return low

    # -- steps ---------------------------------------------------------------------------------------

    def verdict(self, at: float, verdict: Verdict) -> None:
        """Keep what the guard said of a step; said again in the next tick, it is not journalled again."""
        word = (verdict.allowed, verdict.reason)
        if self._said.get(verdict.step.id) == word:
            return
        self._said[verdict.step.id] = word
        if len(self._said) > 10_000:
            del self._said[next(iter(self._said))]
        self.event(at, "verdict", verdict)
        row = (verdict.step.id, at, _state(verdict), canonical(verdict.step), canonical(verdict))
        self._store.write(_VERDICT, [row])

    def intent(self, at: float, step: Step) -> None:
        """Journal that `step` is about to be applied; durable on return.

        Raises RecordError when that is not possible: the step must not be applied then. A notify step never
        raises: it changes nothing in the cluster, and a full disk is what on-call must hear of.
        """
        number = self.event(at, "intent", step)
        self._store.write(_INTENT, [(step.id, at, canonical(step))], keep=True)
        if self.commit() or step.verb is Verb.NOTIFY:
            return
        self._store.withdraw(2)
        self._next = number
        raise RecordError(self.trouble)

    def outcome(self, outcome: Outcome) -> None:
        """Journal what became of a step. The first outcome stands; only an unknown one may be replaced."""
        at = self._latest if math.isnan(outcome.at) else outcome.at
        self.event(at, "outcome", outcome)
        row = (outcome.step.id, at, outcome.result.value, canonical(outcome.step), canonical(outcome))
        self._store.write(_OUTCOME, [row], keep=True)
        self._said.pop(outcome.step.id, None)
        self.commit()

    def open_intents(self) -> list[Step]:
        """Steps that were begun and whose end is not known, oldest first."""
        rows = self._store.rows(
            "SELECT step FROM steps WHERE intent_at IS NOT NULL AND outcome IS NULL ORDER BY intent_at, id"
        )
        return [decode(Step, json.loads(step)) for (step,) in rows]

    def step(self, id: str) -> StepRow | None:
        """All that is known of one step; None when it was never mentioned."""
        rows = self._store.rows(f"SELECT {_STEP_COLUMNS} FROM steps WHERE id = ?", (id,))
        return _step_row(rows[0]) if rows else None

    def steps(
        self,
        limit: int = 1000,
        state: str | None = None,
        before: tuple[float, str] | None = None,
        without: Verb | None = None,
    ) -> list[StepRow]:
        """Newest first; state None = all, `without` a verb. before : (at, id) of the last one already known."""
        at, id = before or (None, "")
        rows = self._store.rows(
            f"SELECT {_STEP_COLUMNS} FROM steps WHERE (?1 IS NULL OR state = ?1) "
            "AND (?3 IS NULL OR at < ?3 OR (at = ?3 AND id > ?4)) "
            "AND (?5 IS NULL OR json_extract(step, '$.verb') <> ?5) ORDER BY at DESC, id LIMIT ?2",
            (state, limit, at, id, without.value if without else None),
        )
        return [_step_row(row) for row in rows]

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self, at: float, state: Mapping[str, Any]) -> None:
        """Keep a dump of the core, and the two before it."""
        body = zlib.compress(canonical(state).encode(), 1)
        self._store.write("INSERT INTO snapshots VALUES (?, ?, ?)", [(self._next - 1, at, body)])
        self._store.write(
            "DELETE FROM snapshots WHERE rowid NOT IN (SELECT rowid FROM snapshots ORDER BY rowid DESC LIMIT ?)",
            [(SNAPSHOTS_KEPT,)],
        )

    def latest_snapshot(self) -> Snapshot | None:
        rows = self._store.rows("SELECT at, event, state FROM snapshots ORDER BY rowid DESC LIMIT 1")
        if not rows:
            return None
        at, event, body = rows[0]
        return Snapshot(at, event, json.loads(zlib.decompress(body)))

    # -- roll-ups ------------------------------------------------------------------------------------

    def rollup(self, rows: Iterable[tuple[str, str, str, float, float, float, float]]) -> None:
        """Keep five-minute rows (kind, entity, signal, at, mean, max, count); NaN mean = not measured, not kept."""
        self._rollups.add(rows)

    def series(self, kind: str, entity: str, signal: str, since: float, until: float) -> tuple[Array, Array]:
        """(row,) start times and (row,) means in [since, until), oldest first; what was not measured is absent."""
        return self._rollups.series(kind, entity, signal, since, until)

    def prune(self, at: float) -> None:
        """Fold five-minute rows older than 13 weeks into hours, drop hours older than 2 years and old letters."""
        self._rollups.prune(at)
        self.archive.prune(at)
        self.pictures.prune(at)
        self.outbox.prune(at)


_STEP_COLUMNS = "step, state, at, verdict, intent_at, outcome"


def canonical(payload: Any) -> str:
    """JSON with sorted keys and no spaces: the same value is the same text on every machine."""
    return json.dumps(
        to_plain(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _state(verdict: Verdict) -> str:
    if verdict.allowed:
        return "allowed"
    return "awaiting" if verdict.reason is Reason.AWAITS_APPROVAL else "withheld"


def _step_row(row: tuple[Any, ...]) -> StepRow:
    step, state, at, verdict, intent_at, outcome = row
    return StepRow(
        decode(Step, json.loads(step)),
        state,
        at,
        decode(Verdict, json.loads(verdict)) if verdict else None,
        math.nan if intent_at is None else intent_at,
        decode(Outcome, json.loads(outcome)) if outcome else None,
    )


def _check_version(store: Store) -> None:
    found = store.rows("SELECT value FROM meta WHERE key = 'schema'")
    if not found:
        store.write("INSERT INTO meta VALUES ('schema', ?)", [(str(SCHEMA_VERSION),)])
        if store.path is not None:
            store.write("INSERT INTO meta VALUES ('mark', ?)", [(f"{secrets.token_hex(2)}-",)])
        if not store.commit():
            raise RecordError(store.trouble)
    elif int(found[0][0]) > SCHEMA_VERSION:
        raise RecordError(
            f"{store.path}: written by a newer tidewarden (schema {found[0][0]}, this one reads {SCHEMA_VERSION}); "
            "upgrade, or set another state folder"
        )
