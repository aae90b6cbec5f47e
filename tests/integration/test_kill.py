"""The journal of a daemon that is killed with SIGKILL at any moment."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.model import Result
from daemon.record import Record

pytestmark = pytest.mark.integration

KILLS = 20

# Says an id on standard output only after the call has returned: what was said must be in the journal for ever.
DAEMON = """
import sys
from pathlib import Path
from daemon.alerts import Letter, Message
from daemon.model import Entity, Outcome, Result, Severity, Step, Verb
from daemon.record import Record

record = Record.open(Path(sys.argv[1]))
life = sys.argv[2]
for n in range(1_000_000):
    at = 1_700_000_000.0 + n
    step = Step(f"{life}-{n}", Verb.SCALE, Entity("pool", "chat"), 4.0, "x" * 200)
    record.event(at, "tick", {"n": n})
    record.intent(at, step)
    print("intent", step.id, flush=True)
    record.event(at, "tick", {"n": n, "padding": "y" * 500})
    record.outcome(Outcome(step, Result.DONE, "done", 1.0, at))
    print("outcome", step.id, flush=True)
    message = Message(at, "news", "firing", Severity.WARNING, step.id, {}, ())
    record.outbox.put(Letter(f"{step.id}/hook/0", "hook", 0, step.id, "firing", Severity.WARNING, at, message))
    print("letter", step.id, flush=True)
    record.rollup([("pool", "chat", "demand", at * 300, 1.0, 1.0, 1.0)])
    if n % 5 == 0:
        record.snapshot(at, {"n": n, "padding": "z" * 5000})
        record.commit()
"""


def live_and_die(folder: Path, life: int, lines_max: int) -> list[tuple[str, str]]:
    """Run the daemon until it has said `lines_max` lines, kill it wherever it is then, return what it had said."""
    child = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder), str(life)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    said = []
    for line in child.stdout:
        said.append(line)
        if len(said) == lines_max:
            break
    os.kill(child.pid, signal.SIGKILL)
    rest, complaint = child.communicate(timeout=30)
    assert complaint == ""
    said += rest.splitlines(keepends=True)
    return [(line.split()[0], line.split()[1]) for line in said if line.endswith("\n")]


def test_killed_twenty_times_nothing_that_was_promised_is_lost(tmp_path: Path) -> None:
    draw = random.Random(20_260_101)
    promised: dict[str, set[str]] = {"intent": set(), "outcome": set(), "letter": set()}

    for life in range(KILLS):
        for kind, id in live_and_die(tmp_path, life, draw.randint(1, 400)):
            promised[kind].add(id)
        record = Record.open(tmp_path)
        rows = {row.step.id: row for row in record.steps(limit=1_000_000)}
        begun = {id for id, row in rows.items() if row.intent_at == row.intent_at}
        over = {id for id, row in rows.items() if row.outcome is not None}
        assert promised["intent"] <= begun
        assert promised["outcome"] <= over <= begun
        assert {row.outcome.result for row in rows.values() if row.outcome} == {Result.DONE}
        assert {s.id for s in record.open_intents()} == begun - over
        assert len(begun - over) <= life + 1
        assert promised["letter"] <= {letter.id.partition("/")[0] for letter in record.outbox.live()}
        entries = record.events(limit=1_000_000)
        assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
        assert {e.payload["id"] for e in entries if e.type == "intent"} == begun
        snapshot = record.latest_snapshot()
        assert snapshot is None or len(snapshot.state["padding"]) == 5000
        record.close()

    db = sqlite3.connect(tmp_path / "tidewarden.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()
    assert len(promised["intent"]) > KILLS
