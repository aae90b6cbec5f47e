"""The command line as an operator meets it: output, exit codes, sentences for what is wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from web_town import Town, first_gpu, lived

from daemon import web
from daemon.__main__ import _backtest, _drill, _forecast_csv, _look, _replay, _try_channel
from daemon.cli import Roots, run
from daemon.cli.ahead import read_csv
from daemon.cli.logs import to_stderr
from daemon.config import parse
from daemon.model import Result, Verb
from daemon.policy import Mode
from daemon.settings import Settings
from daemon.telemetry import load_catalogue
from simulator.faults import Fault

ROOT = Path(__file__).parents[2]


def roots(**changed: Any) -> Roots:
    parts: dict[str, Any] = {
        "serve": lambda config: 0,
        "demo": lambda **o: 0,
        "drill": _drill,
        "replay": _replay,
        "forecast": _forecast_csv,
        "backtest": _backtest,
        "look": _look,
        "try_channel": _try_channel,
    }
    return Roots(**(parts | changed))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIDEWARDEN_CONFIG", "TIDEWARDEN_TOKEN_FILE", "TIDEWARDEN_URL"):
        monkeypatch.delenv(name, raising=False)
    to_stderr(logging.ERROR)


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.25, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


async def against(town: Town, *argv: str, settings: Settings | None = None) -> int:
    """Run one command against the real server; it blocks, so it runs beside the loop."""
    listen = {"listen": "127.0.0.1:0", "token_file": settings.web.token_file if settings else ""}
    async with web.serving(
        town.daemon, Settings.model_validate({"web": listen}), None, load_catalogue()
    ) as url:
        return await asyncio.to_thread(run, roots(), [*argv, "--url", url])


# -- asking the daemon ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["status"], "32 GPUs"),
        (["targets"], "vllm"),
        (["nodes"], "n00"),
        (["incidents"], "GPU fell off the bus"),
        (["incidents", "list"], "GPU fell off the bus"),
        (["incidents", "i00001"], "Hypothesis: The GPU fell off the bus"),
        (["incidents", "show", "i00001"], "Was it right: nobody has said (fault.xid_lost)"),
        (["rules"], "fault.xid_lost"),
        (["rules", "--all"], "serving.kv_thrash"),
        (["blindspots"], "rules are blind; deploy/exporters has the settings"),
        (["actions", "list"], "isolate"),
        (["actions", "list", "--state", "awaiting"], "it waits for an operator's approval"),
        (["forecast"], "chat"),
        (["forecast", "chat"], "PEAK, 90%"),
    ],
)
async def test_a_table_goes_to_stdout(
    town: Town, capsys: pytest.CaptureFixture[str], argv: list[str], shown: str
) -> None:
    code = await against(town, *argv)

    said = capsys.readouterr()
    assert code == 0
    assert shown in said.out
    assert said.err == ""


async def test_json_and_yaml_hold_the_same(town: Town, capsys: pytest.CaptureFixture[str]) -> None:
    await against(town, "nodes", "-o", "json")
    as_json = json.loads(capsys.readouterr().out)
    await against(town, "nodes", "-o", "yaml")
    as_yaml = yaml.safe_load(capsys.readouterr().out)

    assert len(as_json["nodes"]) == 4
    assert as_yaml == as_json


async def test_an_action_is_explained_and_approved(
    town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    id = next(r.step.id for r in town.daemon.record.steps(state="awaiting") if r.step.verb is Verb.REROUTE)
    (tmp_path / "token").write_text("open-sesame")
    settings = Settings.model_validate({"web": {"token_file": str(tmp_path / "token")}})

    explained = await against(town, "actions", "explain", id)
    words = capsys.readouterr().out
    refused = await against(town, "actions", "approve", id, settings=settings)
    why = capsys.readouterr().err
    approved = await against(
        town, "actions", "approve", id, "--token-file", str(tmp_path / "token"), settings=settings
    )
    await town.beat()
    outcome = await town.outcomes.get()

    assert (explained, refused, approved) == (0, 1, 0)
    assert "The guard did not allow it: it waits for an operator's approval" in words
    assert f"tidewarden actions approve {id}" in words
    assert "needs the token" in why
    assert (outcome.step.id, outcome.result) == (id, Result.DONE)


async def test_what_the_daemon_refuses_is_said_in_its_words(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    code = await against(town, "actions", "explain", "nothing")

    assert code == 1
    assert (
        capsys.readouterr().err
        == "tidewarden: no action nothing; GET /api/v1/actions lists those there are\n"
    )


def test_no_daemon_is_one_clear_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    code = run(roots(), ["targets", "--url", f"http://127.0.0.1:{port}"])

    said = capsys.readouterr()
    assert (code, said.out) == (1, "")
    assert said.err == (
        f"tidewarden: nothing answers at http://127.0.0.1:{port}: start the daemon (systemctl start tidewarden, or "
        "tidewarden run -c FILE), or name its address with --url\n"
    )


# -- configuration -------------------------------------------------------------------------------------


def test_config_check_lists_every_problem_and_exits_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("mode: sometimes\nweb:\n  lisen: x\ntuning: {tick: 15}\n")

    code = run(roots(), ["config", "check", "-c", str(path)])

    said = capsys.readouterr()
    assert (code, said.out) == (78, "")
    assert [line.split(": ")[0] for line in said.err.splitlines()[:3]] == [f"{path}:{n}" for n in (1, 3, 4)]


def test_config_init_is_valid_observes_and_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "c.yaml"

    first = run(roots(), ["config", "init", "--file", str(path)])
    second = run(roots(), ["config", "init", "--file", str(path)])

    assert (first, second) == (0, 1)
    assert "exists; give another --file" in capsys.readouterr().err
    assert parse(path.read_text()).mode is Mode.OBSERVE
    assert run(roots(), ["config", "check", "-c", str(path)]) == 0


def test_config_show_hides_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "cluster: lab\nnotify:\n  channels: [{name: a, kind: webhook, urls: ['http://h/secret-part']}]\n"
    )

    run(roots(), ["config", "show", "-c", str(path)])
    own = capsys.readouterr().out
    run(roots(), ["config", "show", "-c", str(path), "--resolved", "-o", "json"])
    resolved = json.loads(capsys.readouterr().out)

    assert yaml.safe_load(own) == {
        "cluster": "lab",
        "notify": {"channels": [{"name": "a", "kind": "webhook", "urls": ["********"]}]},
    }
    assert resolved["tuning"]["tick"] == 15.0
    assert "secret-part" not in own + json.dumps(resolved)


def test_config_schema_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    run(roots(), ["config", "schema"])

    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Settings.model_fields)


def test_no_configuration_is_exit_78(capsys: pytest.CaptureFixture[str]) -> None:
    if Path("/etc/tidewarden/config.yaml").exists():
        pytest.skip("this host has a configuration in the default place")
    code = run(roots(), ["run"])

    assert code == 78
    assert "tidewarden config init writes one" in capsys.readouterr().err


# -- running -------------------------------------------------------------------------------------------


def test_demo_passes_its_options_through() -> None:
    given: dict[str, Any] = {}

    def demo(**options: Any) -> int:
        given.update(options)
        return 5

    code = run(
        roots(demo=demo), ["demo", "--for", "2m", "--json", "--port", "0", "--seed", "3", "--nodes", "4"]
    )

    assert code == 5
    assert given == {
        "for_s": 120.0, "as_json": True, "script": None, "port": 0, "seed": 3, "rate": 60.0, "nodes": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["drill"], "--list names them"),
        (["drill", "--scenario", "nonsense"], "no scenario 'nonsense'; there are: healthy-day"),
        (["demo", "--for", "3 parsecs"], "unknown unit 'parsecs'"),
        (["targets", "-o", "xml"], "'table', 'json', 'yaml'"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_allowed(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    code = run(roots(), argv)

    assert code == 2
    assert said in capsys.readouterr().err


def test_a_drill_is_told_to_people_and_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["drill", "--scenario", "xid79", "--gpus", "16", "--hours", "0.3"]

    run(roots(), argv)
    for_people = capsys.readouterr().out
    run(roots(), [*argv, "--json"])
    for_programs = json.loads(capsys.readouterr().out)
    run(roots(), [*argv, "-o", "yaml"])
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    run(roots(), ["drill", "--list"])
    names = capsys.readouterr().out.split()

    assert for_people.startswith("xid79, seed 1: 0.3 h of 16 GPUs")
    assert "false findings: " in for_people
    assert (for_programs["scenario"], for_programs["gpus"]) == ("xid79", 16)
    assert as_yaml | {"wall_s": 0.0} == for_programs | {"wall_s": 0.0}
    assert names[:2] == ["healthy-day", "xid79"]


def test_version_needs_no_daemon_and_logs_nothing() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "daemon", "version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert found.stdout.startswith("tidewarden ")
    assert found.stderr == ""


# -- forecast of a file --------------------------------------------------------------------------------


def test_a_csv_is_forecast_with_its_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "load.csv"
    hours = np.arange(21 * 24)
    values = 100 + 40 * np.sin(2 * np.pi * hours / 24)
    path.write_text(
        "time,value\n"
        + "".join(f"{1_780_272_000 + h * 3600},{v}\n" for h, v in zip(hours, values, strict=True))
    )

    code = run(roots(), ["forecast", "--csv", str(path), "--horizon", "24h", "-o", "json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["hours_read"] == 21 * 24
    middle = [row["q50"] for row in found["forecast"]]
    assert np.abs(np.array(middle) - values[:24]).max() < 10.0
    assert all(row["q05"] <= row["q50"] <= row["q95"] for row in found["forecast"])
    assert found["forecast"][0]["at"] == 1_780_272_000 + 21 * 24 * 3600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time,value\n", "no row with a time and a number"),
        ("2026-06-01T00:00,1\nyesterday,2\n", ":2: found 'yesterday,2'"),
        ("2026-06-01T00:00,1\n2026-06-01T01:00,2\n", "not enough history (have 2 h, need 48 h"),
        ("time,value\nnan,2\n", ":2: found 'nan,2'"),
        ("time,value\ninf,2\n", ":2: found 'inf,2'"),
        ("time;value\n2026-06-01T00:00;1,5\n", ":2: found '2026-06-01T00:00,1,5'"),
        ("2026-06-01T00:00,NaN\n2026-06-01T01:00,\n", "none of 2 rows has a value"),
        ("0001-01-01T00:00,1\n2026-06-01T01:00,2\n", "more than ten years"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "load.csv"
    path.write_text(text)

    code = run(roots(), ["forecast", "--csv", str(path)])

    assert code == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--horizon", "1m"], "is not within 1h and 672h"),
        (["--horizon", "400d"], "is not within 1h and 672h"),
        (["chat"], "either the pool chat of the running daemon or --csv"),
    ],
)
def test_what_no_forecast_can_tell_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    path = tmp_path / "load.csv"
    path.write_text("2026-06-01T00:00,1\n")

    code = run(roots(), ["forecast", "--csv", str(path), *more])

    assert code == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("value", "said"),
    [("0", "no origin to test on: nothing but zeros"), ("7", "OF WEEKLY NAIVE")],
)
def test_a_backtest_of_a_flat_file_ends_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str, said: str
) -> None:
    path = tmp_path / "load.csv"
    path.write_text("".join(f"{1_780_272_000 + h * 3600},{value}\n" for h in range(10 * 24)))

    code = run(roots(), ["forecast", "--csv", str(path), "--backtest"])

    told = capsys.readouterr()
    assert said in told.out + told.err
    assert code == (1 if value == "0" else 0)


def test_a_file_that_is_no_text_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "load.csv"
    path.write_bytes("time,value\n2026-06-01T00:00,1\n".encode("utf-16"))

    code = run(roots(), ["forecast", "--csv", str(path)])

    assert code == 1
    assert "save it as CSV in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(("mark", "unit"), [(",", 1), (";", 1), ("\t", 1), (",", 1000)])
def test_other_separators_and_milliseconds_read_the_same(tmp_path: Path, mark: str, unit: int) -> None:
    path = tmp_path / "load.csv"
    path.write_text(
        f"time{mark}value\n" + "".join(f"{(1_780_272_000 + h * 3600) * unit}{mark}{h}.5\n" for h in range(3))
    )

    assert read_csv(path) == (1_780_272_000.0, [0.5, 1.5, 2.5])


# -- doctor --------------------------------------------------------------------------------------------


def test_doctor_fails_with_a_fix_for_each_thing_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        path = tmp_path / "c.yaml"
        path.write_text(
            f"state_dir: {tmp_path}/state\nweb: {{listen: '127.0.0.1:{port}'}}\n"
            "sources: {http: {static: [{targets: ['127.0.0.1:1']}]}}\n"
            "backends: {b: {kind: command, argv: [/nowhere/program]}}\nactions: {scale: b}\n"
        )

        code = run(roots(), ["doctor", "-c", str(path), "--json"])

    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert code == 1
    assert rows["state folder"]["state"] == "OK"
    assert rows[f"web address 127.0.0.1:{port}"]["found"].startswith(f"held by pid {os.getpid()}")
    assert rows["backend b"]["state"] == "FAIL"
    assert rows["target 127.0.0.1:1"]["found"] == "connection refused: nothing listens there"
    assert all(row["fix"] for row in rows.values() if row["state"] == "FAIL")


def test_doctor_names_the_extras_that_the_configuration_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    sources = "sources: {http: {static: [{targets: ['127.0.0.1:9']}]}}"
    path.write_text(
        f"state_dir: {tmp_path}/state\n{sources}\ntraces: {{endpoint: 'http://127.0.0.1:9/v1/traces'}}\n"
    )

    run(roots(), ["doctor", "-c", str(path), "--json"])
    with_it = {row["what"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    path.write_text(f"state_dir: {tmp_path}/state\n{sources}\n")
    run(roots(), ["doctor", "-c", str(path), "--json"])
    without = {row["what"] for row in json.loads(capsys.readouterr().out)}

    assert with_it["extra otlp"] == "OK"
    assert not {what for what in without if what.startswith("extra")}


def test_doctor_reports_what_the_scraped_exporters_leave_unseen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], golden_exporter: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"state_dir: {tmp_path}/state\nweb: {{listen: '127.0.0.1:0'}}\n"
        f"sources: {{http: {{static: [{{targets: ['{golden_exporter}']}}]}}}}\n"
    )

    code = run(roots(), ["doctor", "-c", str(path)])

    out = capsys.readouterr().out
    assert code == 0
    assert "OK    source http: 1 target answered" in out
    assert "WARN  coverage engine: " in out
    assert "WARN  coverage gpu: nothing is exported at all" in out


@pytest.fixture
def golden_exporter() -> Iterator[str]:
    """The page of a real engine under load, served over HTTP."""
    import http.server
    import threading

    body = (ROOT / "tests" / "golden" / "vllm-0.32-loaded-1.txt").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
