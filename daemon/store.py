"""One SQLite file with one writer that keeps in memory what the disk refuses until it can be written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from daemon.model import RecordBusy, RecordError

FILE = "tidewarden.db"
LOCK = "tidewarden.lock"
BACKLOG_MAX = 20_000
"""Statements kept while the disk refuses them. Judgement: a day of ticks, a few tens of megabytes."""

# What a disk or another process does to us; every other sqlite3 error is a mistake in this program and crashes.
_TROUBLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_REMEDY = {
    sqlite3.SQLITE_FULL: "free space on its disk; writing resumes by itself",
    sqlite3.SQLITE_IOERR: "check the disk and the kernel log; writing resumes by itself",
    sqlite3.SQLITE_READONLY: "make file and folder writable for the daemon's user",
    sqlite3.SQLITE_CANTOPEN: "make file and folder readable and writable for the daemon's user",
    sqlite3.SQLITE_PERM: "make file and folder readable and writable for the daemon's user",
    sqlite3.SQLITE_BUSY: "end the other program that writes to it; writing resumes by itself",
    sqlite3.SQLITE_CORRUPT: "restart the daemon, which moves the damaged file aside",
    sqlite3.SQLITE_NOTADB: "restart the daemon, which moves the damaged file aside",
}


class Store:
    """The file, its lock and its health.

    Writes are collected in one transaction until `commit`. A write the disk refuses is not lost: it waits in
    memory with all that follow and is repeated at every commit.

    trouble : "" while writing works, otherwise path, what happened and the remedy.
    dropped : writes given up because more than BACKLOG_MAX waited.
    path    : the file, None in memory.
    """

    def __init__(self, db: sqlite3.Connection, path: Path | None, lock: FileIO | None) -> None:
        self.path = path
        self.trouble = ""
        self.dropped = 0
        self._db = db
        self._lock = lock
        self._inode = os.stat(path).st_ino if path else 0
        # (statement, rows, keep): everything since the last commit, in order.
        self._backlog: list[tuple[str, Sequence[Sequence[Any]], bool]] = []

    @property
    def healthy(self) -> bool:
        return not self.trouble

    def write(self, sql: str, rows: Sequence[Sequence[Any]], *, keep: bool = False) -> None:
        """Add one statement for each row to the open transaction. keep : never dropped from a full backlog."""
        self._backlog.append((sql, rows, keep))
        if self.trouble:
            self._trim()
            return
        try:
            self._begin()
            self._db.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            self._fail(error)

    def commit(self) -> bool:
        """Make durable what was written, repeating what failed before. True when nothing is left in memory."""
        if not self._backlog and not self.trouble:
            return True
        try:
            self._check_file()
            if self.trouble:
                self._begin()
                for sql, rows, _ in self._backlog:
                    self._db.executemany(sql, rows)
            if self._db.in_transaction:
                self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            self._fail(error)
            return False
        except RecordError as error:
            self._rollback()
            self.trouble = str(error)
            return False
        self._backlog.clear()
        self.trouble = ""
        return True

    def withdraw(self, statements: int) -> None:
        """Forget the newest statements of a failed commit: what asked for them was refused."""
        del self._backlog[len(self._backlog) - statements :]

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read. Raises RecordError when the file cannot be read."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            if _code(error) not in _TROUBLE | _CORRUPT:
                raise
            raise RecordError(_sentence(self.path, error)) from error

    def close(self) -> None:
        self.commit()
        self._rollback()
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN")

    def _rollback(self) -> None:
        # SQLite may have rolled back by itself, and on a sick disk a rollback can fail like anything else.
        with contextlib.suppress(sqlite3.DatabaseError):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _fail(self, error: sqlite3.DatabaseError) -> None:
        if _code(error) not in _TROUBLE | _CORRUPT:
            raise error
        self._rollback()
        self.trouble = _sentence(self.path, error)

    def _check_file(self) -> None:
        """A deleted file still takes writes, and every one of them is lost at the next start."""
        if self.path is None:
            return
        try:
            inode = os.stat(self.path).st_ino
        except OSError:
            inode = 0
        if inode != self._inode:
            raise RecordError(f"{self.path}: removed or replaced while open; restart the daemon")

    def _trim(self) -> None:
        if len(self._backlog) <= BACKLOG_MAX:
            return
        oldest = next((i for i, (_, _, keep) in enumerate(self._backlog) if not keep), None)
        if oldest is not None:
            del self._backlog[oldest]
            self.dropped += 1


def open_store(folder: Path | None, schema: Sequence[str], check: Iterable[str]) -> Store:
    """Open or create the file of a state folder; None = in memory.

    schema : statements that create what is missing. check : tables whose pages are checked.
    Raises RecordError when the folder is in use, not writable, full, or the file is damaged. A damaged file is
    moved aside first, so that the next call starts a fresh one; nothing is deleted.
    """
    if folder is None:
        db = sqlite3.connect(":memory:", isolation_level=None)
        _create(db, schema)
        return Store(db, None, None)
    path = folder / FILE
    with contextlib.ExitStack() as undo:
        lock = undo.enter_context(_take_lock(folder))
        try:
            store = Store(_connect(path, schema, check), path, lock)
        except sqlite3.DatabaseError as error:
            raise RecordError(_refusal(path, error)) from error
        undo.pop_all()
    return store


def open_view(folder: Path) -> Store:
    """Open the file for reading beside the running daemon. Raises RecordError when there is none."""
    path = folder / FILE
    if not path.is_file():
        raise RecordError(f"{path}: no such journal; name the state folder of the daemon")
    try:
        db = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1.0
        )
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise RecordError(_sentence(path, error)) from error
    return Store(db, path, None)


def _take_lock(folder: Path) -> FileIO:
    path = folder / LOCK
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = open(path, "ab+", buffering=0)  # noqa: SIM115  # held open as long as the store
    except OSError as error:
        raise RecordError(
            f"state folder {folder}: {error.strerror}; make it writable for the daemon's user or set another one"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().decode(errors="replace").strip() or "unknown"
        lock.close()
        raise RecordBusy(
            f"state folder {folder} is in use by pid {holder}; stop that daemon or set another state folder"
        ) from None
    # On a full disk the pid cannot be written; the lock itself holds all the same.
    with contextlib.suppress(OSError):
        lock.truncate(0)
        lock.write(b"%d\n" % os.getpid())
    return lock


def _connect(path: Path, schema: Sequence[str], check: Iterable[str]) -> sqlite3.Connection:
    # A quarter of a second: another program's lock must not stall the decision loop.
    db = sqlite3.connect(path, isolation_level=None, timeout=0.25)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        # FULL for everything: one fsync a tick is nothing, and an intent shares the transaction of its tick.
        db.execute("PRAGMA synchronous=FULL")
        known = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        for table in check:
            if table in known:
                (verdict,) = db.execute(f"PRAGMA quick_check('{table}')").fetchone()
                if verdict != "ok":
                    raise _corrupt(f"table {table}: {verdict}")
        _create(db, schema)
    except BaseException:
        db.close()
        raise
    return db


def _create(db: sqlite3.Connection, schema: Sequence[str]) -> None:
    db.execute("BEGIN")
    for statement in schema:
        db.execute(statement)
    db.execute("COMMIT")


def _corrupt(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 when the error did not come from SQLite itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _sentence(path: Path | None, error: sqlite3.Error) -> str:
    code = _code(error)
    # The index of the journal is mapped into memory, and there a full disk shows as an I/O error.
    if code == sqlite3.SQLITE_IOERR and path is not None and _is_full(path.parent):
        code = sqlite3.SQLITE_FULL
        error = sqlite3.OperationalError(f"{error}, no space left on device")
    remedy = _REMEDY.get(code, "check the disk; writing resumes by itself")
    return f"{path or 'journal in memory'}: {error}; {remedy}"


def _is_full(folder: Path) -> bool:
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize < 1_000_000


def _refusal(path: Path, error: sqlite3.DatabaseError) -> str:
    if _code(error) not in _CORRUPT:
        if _code(error) not in _TROUBLE:
            raise error
        return _sentence(path, error).replace("writing resumes by itself", "then start the daemon again")
    aside = _move_aside(path)
    return (
        f"{path}: the journal is damaged ({error}); it was moved to {aside}. Start the daemon again for a fresh "
        f"journal, or bring back what is readable first: sqlite3 {aside} .recover | sqlite3 {path}"
    )


def _move_aside(path: Path) -> Path:
    """Rename the file with its -wal and -shm to the first free .corrupt-N."""
    number = 1
    while path.with_name(f"{path.name}.corrupt-{number}").exists():
        number += 1
    aside = path.with_name(f"{path.name}.corrupt-{number}")
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    return aside
