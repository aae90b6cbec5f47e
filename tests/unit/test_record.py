"""The journal: what is written, what survives, what is said when the disk refuses."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daemon import store
from daemon.alerts import Letter, Message
from daemon.model import (
    NAN,
    Entity,
    Evidence,
    Finding,
    Incident,
    Outcome,
    Reason,
    RecordError,
    Result,
    Severity,
    Step,
    Verb,
    Verdict,
)
from daemon.record import Record

AT = 1_700_000_000.0
DAY_S = 86_400.0


def a_step(id: str = "s000001", **changes: object) -> Step:
    step = Step(id, Verb.SCALE, Entity("pool", "chat"), 4.0, "demand rises", args=(("pool", "chat"),))
    return replace(step, **changes)  # type: ignore[arg-type]


def an_incident(**changes: object) -> Incident:
    finding = Finding(
        AT,
        "fault",
        Entity("gpu", "n03/gpu5"),
        "gpu_lost",
        0.9,
        Severity.CRITICAL,
        (Evidence("xid_code", 79.0, "code"),),
    )
    incident = Incident(
        "i000001", "gpu_lost", Entity("gpu", "n03/gpu5"), AT, AT, Severity.CRITICAL, (finding,)
    )
    return replace(incident, **changes)  # type: ignore[arg-type]


def same(left: object, right: object) -> bool:
    """Equal, NaN counted equal to NaN."""
    return repr(left) == repr(right)


def fill(record: Record) -> None:
    """Make the disk full, as SQLite sees it."""
    db = record._store._db
    record.commit()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")


def make_room(record: Record) -> None:
    record._store._db.execute("PRAGMA max_page_count = 1000000")


# -- what is written comes back -------------------------------------------------------------------------


def test_everything_written_is_there_after_a_restart(tmp_path: Path) -> None:
    record = Record.open(tmp_path / "state")
    record.event(AT, "reload", {"b": 1, "a": [NAN, math.inf]})
    record.incident(AT + 1, an_incident())
    record.verdict(AT + 2, Verdict(a_step(), True, Reason.ALLOWED))
    record.intent(AT + 3, a_step())
    record.outcome(Outcome(a_step(), Result.DONE, "4 replicas", 2.5, AT + 6))
    record.snapshot(AT + 7, {"state": {"x": NAN}})
    digest = record.journal_sha256()
    record.close()

    again = Record.open(tmp_path / "state")

    assert again.journal_sha256() == digest
    assert [e.type for e in again.events()] == ["reload", "incident", "verdict", "intent", "outcome"]
    assert again.events()[0].payload == {"a": [None, "inf"], "b": 1}
    assert same(again.incidents(), [an_incident()])
    (row,) = again.steps()
    assert same(row.step, a_step())
    assert (row.state, row.intent_at) == ("done", AT + 3)
    assert same(row.outcome, Outcome(a_step(), Result.DONE, "4 replicas", 2.5, AT + 6))
    snapshot = again.latest_snapshot()
    assert snapshot is not None
    assert (snapshot.at, snapshot.event, snapshot.state) == (AT + 7, 5, {"state": {"x": None}})
    again.close()


def test_events_are_numbered_without_gaps_and_can_be_read_from_either_end() -> None:
    record = Record.open(None)

    numbers = [record.event(AT + i, "odd" if i % 2 else "even", i) for i in range(6)]

    assert numbers == [1, 2, 3, 4, 5, 6]
    assert [e.payload for e in record.events(after=4)] == [4, 5]
    assert [e.payload for e in record.events(type="odd", limit=2, newest_first=True)] == [5, 3]


def test_the_digest_depends_on_order_and_content_and_on_nothing_else() -> None:
    one, two, other = Record.open(None), Record.open(None), Record.open(None)

    one.event(AT, "a", {"x": 1, "y": 2})
    one.event(AT, "b", 1)
    two.event(AT, "a", {"y": 2, "x": 1})
    two.event(AT, "b", 1)
    other.event(AT, "b", 1)
    other.event(AT, "a", {"x": 1, "y": 2})

    assert one.journal_sha256() == two.journal_sha256()
    assert one.journal_sha256() != other.journal_sha256()


def test_only_the_last_three_snapshots_are_kept() -> None:
    record = Record.open(None)

    for n in range(10):
        record.snapshot(AT + n, {"n": n})

    latest = record.latest_snapshot()
    assert latest is not None
    assert latest.state == {"n": 9}
    assert record._store.rows("SELECT count(*) FROM snapshots") == [(3,)]


def test_an_incident_is_listed_once_in_its_present_state() -> None:
    record = Record.open(None)

    record.incident(AT, an_incident())
    record.incident(AT + 60, an_incident(state="closed", closed=AT + 60))

    assert [i.state for i in record.incidents()] == ["closed"]
    assert record.incidents(state="open") == []
    assert len(record.events(type="incident")) == 2


# -- steps ----------------------------------------------------------------------------------------------


def test_a_refusal_repeated_every_tick_is_journalled_once() -> None:
    record = Record.open(None)
    refused = Verdict(a_step(), False, Reason.COOL_DOWN)

    for tick in range(100):
        record.verdict(AT + 15 * tick, refused)
    record.verdict(AT + 1500, Verdict(a_step(), True, Reason.ALLOWED))

    assert [e.payload["reason"] for e in record.events(type="verdict")] == ["cool_down", "allowed"]


def test_steps_awaiting_approval_survive_a_restart(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    record.verdict(AT, Verdict(a_step("s1"), False, Reason.AWAITS_APPROVAL))
    record.verdict(AT, Verdict(a_step("s2"), False, Reason.BUDGET_POOL, "2 of 8 isolated"))
    record.close()

    again = Record.open(tmp_path)

    assert [row.step.id for row in again.steps(state="awaiting")] == ["s1"]
    (withheld,) = again.steps(state="withheld")
    assert withheld.verdict is not None
    assert withheld.verdict.detail == "2 of 8 isolated"
    again.close()


def test_a_verdict_changes_nothing_of_a_step_that_has_begun() -> None:
    record = Record.open(None)
    record.intent(AT, a_step())

    record.verdict(AT + 15, Verdict(a_step(), False, Reason.IN_FLIGHT))

    assert [s.id for s in record.open_intents()] == ["s000001"]
    assert record.steps(state="intent") != []


def test_the_first_outcome_stands_unless_nobody_could_tell() -> None:
    record = Record.open(None)
    for id in ("s1", "s2"):
        record.intent(AT, a_step(id))
    record.outcome(Outcome(a_step("s1"), Result.DONE, "", 1.0, AT + 1))
    record.outcome(Outcome(a_step("s2"), Result.UNKNOWN, "", 1.0, AT + 1))

    record.outcome(Outcome(a_step("s1"), Result.FAILED, "late", 1.0, AT + 2))
    record.outcome(Outcome(a_step("s2"), Result.DONE, "seen by alice", 1.0, AT + 2))

    assert {row.step.id: row.state for row in record.steps()} == {"s1": "done", "s2": "done"}
    assert record.open_intents() == []


# -- roll-ups -------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_absent_from_a_series() -> None:
    record = Record.open(None)

    record.rollup(
        [
            ("pool", "chat", "demand", AT, 1.0, 2.0, 20),
            ("pool", "chat", "demand", AT + 300, NAN, NAN, 0),
            ("pool", "chat", "demand", AT + 600, 3.0, 4.0, 20),
            ("pool", "code", "demand", AT, 9.0, 9.0, 20),
        ]
    )

    at, mean = record.series("pool", "chat", "demand", AT, AT + 900)
    np.testing.assert_array_equal(at, [AT, AT + 600])
    np.testing.assert_array_equal(mean, [1.0, 3.0])
    assert record.series("pool", "nobody", "demand", AT, AT + 900)[0].shape == (0,)


def test_old_rows_are_folded_into_hours_weighted_by_their_count_then_dropped(tmp_path: Path) -> None:
    start = math.floor(AT / 3600) * 3600.0
    record = Record.open(tmp_path)
    record.rollup([("pool", "chat", "d", start + 300 * i, float(i), float(i), 1 + i) for i in range(24)])
    weights = np.arange(12) + 1.0

    record.prune(start + 13 * 7 * DAY_S + 3600)

    at, mean = record.series("pool", "chat", "d", start, start + 7200)
    assert at[:2].tolist() == [start, start + 3600]
    assert mean[0] == pytest.approx((np.arange(12) * weights).sum() / weights.sum())
    assert len(at) == 1 + 12
    record.close()
    again = Record.open(tmp_path)
    again.prune(start + 2 * 365 * DAY_S + 7 * DAY_S)
    assert len(again.series("pool", "chat", "d", 0, AT * 2)[0]) == 0
    again.close()


# -- one writer -----------------------------------------------------------------------------------------


def test_a_second_daemon_on_the_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    program = (
        f"from pathlib import Path; from daemon.record import Record; Record.open(Path({str(tmp_path)!r}))"
    )

    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert second.returncode != 0
    assert f"in use by pid {os.getpid()}" in second.stderr
    assert str(tmp_path) in second.stderr
    assert "stop that daemon" in second.stderr
    record.close()
    Record.open(tmp_path).close()


def test_a_reader_beside_the_daemon_sees_what_was_committed(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    record.event(AT, "a", 1)
    record.commit()
    record.event(AT, "b", 2)

    view = Record.view(tmp_path)

    assert [e.type for e in view.events()] == ["a"]
    view.close()
    record.close()
    with pytest.raises(RecordError, match="no such journal"):
        Record.view(tmp_path / "elsewhere")


# -- a disk that refuses --------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_may_be_begun_and_nothing_is_lost(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    record.intent(AT, a_step("before"))
    fill(record)

    for n in range(200):
        record.event(AT + n, "tick", {"n": n, "padding": "x" * 500})
        record.commit()
    with pytest.raises(RecordError, match=r"tidewarden\.db: database or disk is full; free space") as refusal:
        record.intent(AT + 300, a_step("during"))

    assert str(tmp_path) in str(refusal.value)
    assert not record.healthy
    assert record.trouble == str(refusal.value)
    record.outcome(Outcome(a_step("before"), Result.DONE, "", 1.0, AT + 301))

    make_room(record)

    assert record.commit()
    assert record.healthy
    record.close()
    again = Record.open(tmp_path)
    assert [e.payload["n"] for e in again.events(type="tick")] == list(range(200))
    assert [e.id for e in again.events(limit=5000)] == list(range(1, 203))
    assert {row.step.id: row.state for row in again.steps()} == {"before": "done"}
    again.close()


def test_a_page_may_be_sent_while_the_disk_is_full(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    fill(record)
    record.event(AT, "tick", "x" * 20_000)
    assert not record.commit()

    record.intent(AT, a_step("page", verb=Verb.NOTIFY))
    record.outbox.put(a_letter("page/hook/0"))

    assert record.outbox.get("page/hook/0") is not None
    assert [letter.id for letter in record.outbox.live()] == ["page/hook/0"]
    make_room(record)
    record.close()
    again = Record.open(tmp_path)
    assert [letter.id for letter in again.outbox.live()] == ["page/hook/0"]
    assert [s.id for s in again.open_intents()] == ["page"]
    again.close()


def test_when_more_waits_than_memory_holds_the_journal_says_how_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BACKLOG_MAX", 50)
    record = Record.open(tmp_path)
    fill(record)

    for n in range(120):
        record.event(AT + n, "tick", {"n": n, "padding": "x" * 2000})
        record.commit()
    make_room(record)
    record.commit()

    kept = [e.payload["n"] for e in record.events(type="tick")]
    (gap,) = record.events(type="journal_gap")
    assert kept[-1] == 119
    assert gap.payload["lost"] == 120 - len(kept) > 0
    record.close()


def test_a_file_removed_under_the_daemon_stops_it_from_acting(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    (tmp_path / "tidewarden.db").unlink()

    with pytest.raises(RecordError, match="removed or replaced while open; restart the daemon"):
        record.intent(AT, a_step())

    assert not record.healthy


def test_another_programs_write_lock_is_trouble_that_passes(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    other = sqlite3.connect(tmp_path / "tidewarden.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(RecordError, match="locked; end the other program"):
        record.intent(AT, a_step())
    other.execute("ROLLBACK")
    other.close()
    record.intent(AT, a_step())

    assert record.healthy
    assert [s.id for s in record.open_intents()] == ["s000001"]
    assert [e.id for e in record.events()] == [1]
    record.close()


@pytest.mark.parametrize("damage", ["garbage", "overwritten page", "half written"])
def test_a_damaged_file_is_moved_aside_and_the_next_start_is_fresh(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tidewarden.db"
    record = Record.open(tmp_path)
    for n in range(500):
        record.event(AT, "tick", {"n": n, "padding": "x" * 300})
    record.close()
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"not a database\n" * 1000)
    elif damage == "half written":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(whole[:8192] + b"\xa5" * 40_960 + whole[8192 + 40_960 :])
    broken = path.read_bytes()

    with pytest.raises(RecordError, match=r"damaged .* moved to .*tidewarden\.db\.corrupt-1") as refusal:
        Record.open(tmp_path)

    assert str(path) in str(refusal.value)
    assert "Start the daemon again" in str(refusal.value)
    assert (tmp_path / "tidewarden.db.corrupt-1").read_bytes() == broken
    again = Record.open(tmp_path)
    assert again.events() == []
    again.close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    record.close()
    db = sqlite3.connect(tmp_path / "tidewarden.db")
    with db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.close()

    with pytest.raises(RecordError, match="schema 99, this one reads 1"):
        Record.open(tmp_path)

    assert (tmp_path / "tidewarden.db").exists()


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RecordError, match=r"state folder .*file/state: .*make it writable"):
        Record.open(tmp_path / "file" / "state")


# -- the outbox -----------------------------------------------------------------------------------------


def a_letter(id: str = "s1/hook/0", **changes: object) -> Letter:
    message = Message(AT, "news", "firing", Severity.CRITICAL, "k", {}, ())
    letter = Letter(id, "hook", 0, "k", "firing", Severity.CRITICAL, AT, message)
    return replace(letter, **changes)  # type: ignore[arg-type]


def test_a_letter_put_twice_stands_once_and_survives_a_restart(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    record.outbox.put(a_letter())
    record.outbox.put(a_letter(key="other"))
    record.close()

    again = Record.open(tmp_path)

    assert same(again.outbox.live(), [a_letter()])
    again.outbox.update(a_letter(state="delivered"))
    assert again.outbox.live() == []
    assert again.outbox.counts() == {"delivered": 1}
    assert same(again.outbox.last("hook", 0, "k"), a_letter(state="delivered"))
    again.close()


def test_old_letters_go_but_never_the_last_word_about_something_still_firing() -> None:
    record = Record.open(None)
    record.outbox.put(a_letter("1", state="delivered"))
    record.outbox.put(a_letter("2", state="delivered"))
    record.outbox.put(a_letter("3", state="delivered", key="over"))
    record.outbox.put(a_letter("4", state="delivered", key="over", status="resolved"))
    record.outbox.put(a_letter("5", state="standing", key="stands"))

    record.prune(AT + 31 * DAY_S)

    assert [letter.id for letter in record.outbox.letters()] == ["5", "2"]
