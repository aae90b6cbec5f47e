"""Letters to on-call, from the moment they are rendered until they are delivered or given up."""

from __future__ import annotations

import json

from daemon.alertbook import BOOK_SCHEMA, AlertBook
from daemon.alerts import Letter
from daemon.codec import decode, to_plain
from daemon.model import RecordError
from daemon.store import Store

FINISHED = ("delivered", "cancelled", "given_up")
KEPT_S = 30 * 86_400.0
"""How long a finished letter is kept, for whoever asks what on-call was told. Judgement: a month."""

OUTBOX_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS outbox (seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, lane TEXT NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL, at REAL NOT NULL, letter TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS outbox_by_lane ON outbox (lane, seq)",
    "CREATE INDEX IF NOT EXISTS outbox_by_state ON outbox (state, seq)",
    *BOOK_SCHEMA,
)


class Outbox:
    """The letters of one store. Those not finished are also held in memory: a full disk must not silence a page."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.book = AlertBook(store)
        self._live: dict[str, Letter] = {}
        self._newest: dict[str, str] = {}
        for (text,) in store.rows(f"SELECT letter FROM outbox WHERE state NOT IN {FINISHED} ORDER BY seq"):
            letter = _read(text)
            if letter is not None:
                self._remember(letter)
        self._next = 1 + int(store.rows("SELECT coalesce(max(seq), 0) FROM outbox")[0][0])

    def put(self, letter: Letter) -> None:
        """Add a letter; one whose id already stands there is ignored. Durable on return if the disk is willing."""
        if self.get(letter.id) is not None:
            return
        row = (self._next, letter.id, _lane(letter), letter.state, letter.status, letter.at, _text(letter))
        self._next += 1
        self._remember(letter)
        self._store.write("INSERT OR IGNORE INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?)", [row], keep=True)
        self._settle()

    def update(self, *letters: Letter) -> None:
        """Replace the letters with these ids, all or none. Durable on return if the disk is willing."""
        for letter in letters:
            self._remember(letter)
        self._store.write(
            "UPDATE outbox SET state = ?, letter = ? WHERE id = ?",
            [(letter.state, _text(letter), letter.id) for letter in letters],
            keep=True,
        )
        self._settle()

    def get(self, id: str) -> Letter | None:
        """The letter as it stands, finished ones too for 30 days; None when there is none."""
        if id in self._live:
            return self._live[id]
        return self._first("SELECT letter FROM outbox WHERE id = ?", id)

    def live(self) -> list[Letter]:
        """Letters that are not finished, oldest first."""
        return list(self._live.values())

    def last(self, channel: str, address: int, key: str) -> Letter | None:
        """The newest letter about `key` to one address, in whatever state."""
        lane = f"{channel}\t{address}\t{key}"
        if lane in self._newest:
            return self._live[self._newest[lane]]
        return self._first("SELECT letter FROM outbox WHERE lane = ? ORDER BY seq DESC LIMIT 1", lane)

    def counts(self) -> dict[str, int]:
        """Letters by state, finished ones of the last 30 days included."""
        return dict(self._store.rows("SELECT state, count(*) FROM outbox GROUP BY state"))

    def letters(self, limit: int = 1000) -> list[Letter]:
        """All letters, newest first."""
        rows = self._store.rows("SELECT letter FROM outbox ORDER BY seq DESC LIMIT ?", (limit,))
        return [letter for (text,) in rows if (letter := _read(text)) is not None]

    def prune(self, at: float) -> None:
        """Drop letters finished for 30 days, but never the last word about something still firing."""
        self._store.write(
            f"DELETE FROM outbox WHERE state IN {FINISHED} AND at < ? AND (status = 'resolved' OR seq < "
            "(SELECT max(newer.seq) FROM outbox AS newer WHERE newer.lane = outbox.lane))",
            [(at - KEPT_S,)],
        )
        self.book.prune(at)

    def _settle(self) -> None:
        # In trouble the tick's own commit tries again; a try for every letter would stall the loop.
        if self._store.healthy:
            self._store.commit()

    def _remember(self, letter: Letter) -> None:
        lane = _lane(letter)
        if letter.state in FINISHED:
            self._live.pop(letter.id, None)
            if self._newest.get(lane) == letter.id:
                del self._newest[lane]
        else:
            if letter.id not in self._live:
                self._newest[lane] = letter.id
            self._live[letter.id] = letter

    def _first(self, sql: str, value: str) -> Letter | None:
        try:
            rows = self._store.rows(sql, (value,))
        except RecordError:
            # An unreadable file must not silence a page; at worst it is sent twice.
            return None
        return _read(rows[0][0]) if rows else None


def _lane(letter: Letter) -> str:
    return f"{letter.channel}\t{letter.address}\t{letter.key}"


def _text(letter: Letter) -> str:
    return json.dumps(to_plain(letter), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _read(text: str) -> Letter | None:
    """None for a letter of a version that wrote them otherwise."""
    try:
        return decode(Letter, json.loads(text))
    except (KeyError, TypeError, ValueError):
        return None
