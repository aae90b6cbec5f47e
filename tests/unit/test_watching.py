"""The report of the last days, its file, the live view, completion."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from rich.console import Console
from web_town import Town, first_gpu, lived, pages

from daemon.cli.commands import tidewarden
from daemon.cli.watching import _view, alone
from daemon.model import Entity, Outcome, Result, Step, Verb
from daemon.policy import Mode
from daemon.record import StepRow
from daemon.web.report import leases, report
from simulator.faults import Fault

NAN = float("nan")


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.7, Mode.AUTO, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


def row(verb: Verb, node: str, at: float, until: float = NAN) -> StepRow:
    step = Step(
        id=f"{verb.value}-{node}-{at:g}",
        verb=verb,
        target=Entity("node", node),
        amount=8.0,
        reason="",
        until=until,
    )
    return StepRow(step, "done", at, None, at, Outcome(step, Result.DONE, "", 1.0, at))


def test_a_lease_counts_until_its_recall_its_end_or_the_end_of_the_report() -> None:
    rows = [
        row(Verb.LEND, "a", 100.0, 5000.0),
        row(Verb.RECALL, "a", 1100.0),
        row(Verb.LEND, "b", 100.0, 600.0),
        row(Verb.LEND, "c", 1500.0, 9000.0),
    ]

    found = leases(rows, 200.0, 2000.0)

    assert sorted(found) == [
        ("a", 8.0, 200.0, 1100.0),
        ("b", 8.0, 200.0, 600.0),
        ("c", 8.0, 1500.0, 2000.0),
    ]


def test_the_report_says_what_happened_what_was_done_and_who_offended(town: Town) -> None:
    found = report(town.daemon, 86400.0)

    assert found["opened"] >= 1
    assert "gpu_lost" in [r["kind"] for r in found["kinds"]]
    node = str(first_gpu()).split("/")[0].split()[-1]
    assert any(node in r["name"] for r in found["offenders"])
    assert any(r["verb"] == "isolate" and r["result"] == "done" for r in found["done"])
    assert "<svg" in found["incident_plot"]
    pools = {p["name"]: p for p in found["pools"]}
    assert 0.0 < pools["chat"]["slo_attained_ratio"] < 1.0  # it thrashed for a while
    assert 0.0 < pools["chat"]["slo_measured_ratio"] <= 1 / 24  # it lived for 42 minutes
    assert "<svg" in pools["chat"]["slo_plot"]


async def test_the_report_is_a_page_and_a_file_that_needs_no_server(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/report?last=24h") as answer:
            page = await answer.text()
        async with client.get("/static/style.css") as answer:
            style = await answer.text()

    text = alone(page, style)

    assert "GPU fell off the bus" in text
    assert "<style>" in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="[^#"]', text)


@pytest.mark.parametrize(("last", "said"), [("soon", "last"), ("5s", "1m to 366d"), ("999d", "1m to 366d")])
async def test_a_span_that_makes_no_sense_is_refused(town: Town, last: str, said: str) -> None:
    async with pages(town) as client, client.get(f"/report?last={last}") as answer:
        assert answer.status == 400
        assert said in await answer.text()


async def test_the_live_view_shows_what_the_overview_knows(town: Town) -> None:
    async with pages(town) as client, client.get("/api/v1/overview") as answer:
        data = await answer.json()
    data["changes"].insert(0, {"at": 0.0, "sentence": "brackets [red] stay as they are"})
    console = Console(file=io.StringIO(), width=160)

    console.print(_view(data))

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert data["health"] in shown
    assert all(row["id"] in shown for row in data["incidents"])
    assert "chat" in shown
    assert "brackets [red] stay" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "completion", shell], capture_output=True, text=True, check=True
    )

    assert "_TIDEWARDEN_COMPLETE" in done.stdout
    assert done.stderr == ""


def test_progress_shows_on_a_terminal_and_leaves_a_pipe_alone() -> None:
    code = (
        "from daemon.cli.show import busy\nimport time\nwith busy('drill x'): time.sleep(0.3)\nprint('done')"
    )
    terminal, end = os.openpty()

    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=end, text=True, check=True
    )
    os.close(end)
    seen = os.read(terminal, 65536).decode()
    os.close(terminal)

    assert (piped.stdout, piped.stderr) == ("done\n", "")
    assert shown.stdout == "done\n"
    assert "drill x" in seen


def test_a_bar_fills_from_another_thread_leaves_log_lines_whole_and_goes_when_it_is_full() -> None:
    code = """
import sys, threading, time
from daemon.cli.show import progress
with progress("reading the history") as advance:
    thread = threading.Thread(target=lambda: [(advance(n, 4), time.sleep(0.2)) for n in range(5)])
    thread.start(); time.sleep(0.3)
    print("a log line", file=sys.stderr)
    thread.join()
    print("after it", file=sys.stderr)
"""
    terminal, end = os.openpty()

    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    subprocess.run([sys.executable, "-c", code], stderr=end, check=True)
    os.close(end)
    seen = os.read(terminal, 65536).decode()
    os.close(terminal)

    assert piped.stderr == "a log line\nafter it\n"
    assert "reading the history" in seen
    assert "75%" in seen
    assert "\na log line\r\n" in seen.replace("\x1b[2K", "\n")
    assert "reading" not in seen.rpartition("after it")[2]


async def test_the_report_comes_as_numbers_too(town: Town) -> None:
    async with pages(town) as client:
        url = str(client._base_url).rstrip("/")

        told = await asyncio.to_thread(
            CliRunner().invoke, tidewarden, ["report", "--last", "1d", "--url", url]
        )
        data = await asyncio.to_thread(
            CliRunner().invoke, tidewarden, ["report", "--last", "1d", "--url", url, "-o", "json"]
        )
        bad = await asyncio.to_thread(
            CliRunner().invoke, tidewarden, ["report", "--last", "soon", "--url", url]
        )

    assert told.exit_code == 0, told.output
    assert "incidents opened" in told.output
    assert "MET OBJECTIVE" in told.output
    body = json.loads(data.output)
    assert body["opened"] == len(town.daemon.record.incidents())
    assert not any("plot" in key for key in body)
    assert bad.exit_code != 0
    assert "last" in str(bad.exception)
