"""The composition root: what only it decides."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import fit_elsewhere, open_record, refuse_strangers
from daemon.model import RecordBusy, Track
from daemon.record import Record

HOURS = np.arange(24.0 * 14) * 3600.0
DEMAND = 100.0 + 50.0 * np.sin(HOURS / 86400.0 * 2 * np.pi)


async def test_a_worker_that_was_killed_is_replaced():
    async with fit_elsewhere() as fit:
        first = await fit(Track("chat", HOURS, DEMAND), 72 * 3600.0)
        for child in _children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        with pytest.raises(RuntimeError):  # BrokenProcessPool is one
            await asyncio.wait_for(fit(Track("chat", HOURS, DEMAND), 72 * 3600.0), 30)

        again = await asyncio.wait_for(fit(Track("chat", HOURS, DEMAND), 72 * 3600.0), 60)

    np.testing.assert_array_equal(first.quantiles, again.quantiles)
    assert first.quantiles.shape == (7, 72)


def _children(pid: int) -> list[int]:
    """Descendants that run a worker: the fork server is the parent of it."""
    found = []
    for task in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((task / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (task / "cmdline").read_bytes()
        except (OSError, IndexError, ValueError):
            continue
        if b"forkserver" in command and parent != pid and _is_below(parent, pid):
            found.append(int(task.name))
    return found


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


def test_a_folder_that_cannot_be_written_is_watched_from_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("in the way")

    record, trouble = open_record(tmp_path / "file" / "state")

    assert record.path is None
    assert str(tmp_path / "file" / "state") in trouble
    assert "nothing will be changed" in capsys.readouterr().err
    record.close()


def test_a_journal_in_use_is_never_gone_around(tmp_path: Path):
    held = Record.open(tmp_path)

    with pytest.raises(RecordBusy, match=f"in use by pid {os.getpid()}"):
        open_record(tmp_path)

    held.close()


def test_nobody_else_owns_our_package_names_here():
    assert refuse_strangers() == ""
