"""The installed service as an operator meets it: a process, a configuration file, signals, exit codes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

GOLDEN = Path(__file__).parent.parent / "golden"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Service:
    """One `tidewarden run` process on a configuration in a folder."""

    def __init__(self, folder: Path, sources: str, extra: str = "", **environment: str) -> None:
        self.folder, self.port = folder, free_port()
        self.config = folder / "tidewarden.yaml"
        self.config.write_text(
            f"cluster: test\nstate_dir: {folder}/state\nsources:\n{sources}\n"
            f"web: {{listen: '127.0.0.1:{self.port}'}}\ntuning: {{tick: 500ms, stale: 5s}}\n{extra}"
        )
        self.environment = {**os.environ, **environment}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Service":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", "-c", str(self.config)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        return self

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return json.load(answer)

    def until(self, check: Callable[[], bool], within_s: float = 30.0) -> None:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the daemon ended with {self.process.returncode}: {self.process.communicate()[1]}"
                )
            try:
                if check():
                    return
            except (OSError, urllib.error.URLError, KeyError):
                pass
            time.sleep(0.2)
        raise AssertionError("did not happen in time")

    def ready(self) -> "Service":
        self.until(
            lambda: urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2).status == 200
        )
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float, str]:
        """Exit code, seconds it took, and what it said on stderr."""
        assert self.process is not None
        self.process.send_signal(number)
        began = time.monotonic()
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, time.monotonic() - began, said


@pytest.fixture
def pages() -> Iterator[dict[str, str]]:
    """name -> address of a page server: a recorded vLLM page that changes every second, served for real."""
    bodies = [(GOLDEN / f"vllm-0.32-loaded-{n}.txt").read_bytes() for n in (1, 2, 3)]
    loop = asyncio.new_event_loop()
    began = time.monotonic()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(
            body=bodies[min(2, int(time.monotonic() - began) // 2)], content_type="text/plain"
        )

    async def serve() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_get("/metrics", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    import threading

    runner, port = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield {"vllm": f"127.0.0.1:{port}"}
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def http(*addresses: str) -> str:
    return (
        "  http: {interval: 500ms, timeout: 2s, static: [{targets: ["
        + ", ".join(f"'{a}'" for a in addresses)
        + "]}]}"
    )


def test_with_no_pool_configured_it_says_what_it_found_and_observes(tmp_path: Path, pages: dict[str, str]):
    service = Service(tmp_path, http(pages["vllm"], "127.0.0.1:1")).start().ready()
    service.until(lambda: bool(service.get("/api/v1/overview")))

    status = service.get("/api/v1/status")
    targets = json.dumps(service.get("/api/v1/targets"))
    code, took_s, said = service.end()

    assert "tiny" in json.dumps(status) + said  # the model of the recorded engine
    assert "observe" in json.dumps(status) + said
    assert "refused" in targets  # the dead target with its last error
    assert code == 0
    assert took_s < 10.0


def test_two_daemons_never_share_a_state_folder(tmp_path: Path, pages: dict[str, str]):
    first = Service(tmp_path, http(pages["vllm"])).start().ready()
    assert first.process is not None

    second = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "-c", str(first.config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    first.end()

    assert second.returncode == 1
    assert f"is in use by pid {first.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_wrong_configuration_ends_with_78_and_every_problem(tmp_path: Path):
    config = tmp_path / "bad.yaml"
    config.write_text("mode: automatic\ntuning: {tick: 15}\nweb: {token_file: /nonexistent}\n")

    done = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 78
    assert "bad.yaml:1: mode" in done.stderr
    assert "bad.yaml:2: tuning.tick" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_daemon_starts_again_with_its_journal(tmp_path: Path, pages: dict[str, str]):
    service = Service(tmp_path, http(pages["vllm"], "127.0.0.1:1")).start().ready()
    service.end(signal.SIGKILL)

    service.start().ready()
    code, _, said = service.end()

    assert code == 0
    assert "Traceback" not in said


def test_a_damaged_journal_is_moved_aside_and_the_daemon_watches_on(tmp_path: Path, pages: dict[str, str]):
    service = Service(tmp_path, http(pages["vllm"])).start().ready()
    service.end()
    database = tmp_path / "state" / "tidewarden.db"
    database.write_bytes(b"not a database at all" * 1000)
    for rest in (tmp_path / "state").glob("tidewarden.db-*"):
        rest.unlink()

    service.start().ready()
    code, _, said = service.end()

    assert code == 0
    assert "tidewarden.db" in said
    kept = [p for p in (tmp_path / "state").iterdir() if p != database and p.read_bytes()[:9] == b"not a dat"]
    assert kept, "the damaged file must still be there"


def test_a_broken_reload_keeps_the_old_policy_and_says_so(tmp_path: Path, pages: dict[str, str]):
    service = Service(tmp_path, http(pages["vllm"])).start().ready()
    good = service.config.read_text()
    service.config.write_text(good + "mode: automatic\n")
    assert service.process is not None

    service.process.send_signal(signal.SIGHUP)
    service.until(lambda: "automatic" in json.dumps(service.get("/api/v1/status")))
    service.config.write_text(good + "mode: advise\n")
    service.process.send_signal(signal.SIGHUP)
    service.until(lambda: "advise" in json.dumps(service.get("/api/v1/status")))
    code, _, _ = service.end()

    assert code == 0


def test_the_service_manager_hears_when_it_is_ready_and_when_it_stops(tmp_path: Path, pages: dict[str, str]):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        service = Service(tmp_path, http(pages["vllm"]), NOTIFY_SOCKET=address).start().ready()

        words = ""
        while "READY=1" not in words:
            words += manager.recv(4096).decode() + "\n"
        service.end()
        manager.settimeout(5)
        while "STOPPING=1" not in words:
            words += manager.recv(4096).decode() + "\n"

    assert words.index("READY=1") < words.index("STOPPING=1")


BACKEND = """
import json, pathlib, sys, time
here = pathlib.Path(__file__).parent
asked = json.load(sys.stdin)
with (here / "calls.jsonl").open("a") as log:
    log.write(json.dumps([asked["call"], asked["step"]["id"], asked["step"]["verb"], asked["step"]["target"]]) + "\\n")
state = here / "weight"
if asked["call"] == "apply":
    state.write_text(str(asked["step"]["amount"]))
    time.sleep(3)
    print(json.dumps({"detail": "weight set"}))
else:
    print(json.dumps({"weight": float(state.read_text()) if state.exists() else 1.0}))
"""


def calls(folder: Path) -> list[list[Any]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_daemon_killed_while_it_acts_looks_at_the_world_and_does_it_once(
    tmp_path: Path, pages: dict[str, str]
):
    (tmp_path / "backend.py").write_text(BACKEND)
    dying = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            "0",
            "--directory",
            str(tmp_path / "page"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "metrics").write_bytes((GOLDEN / "vllm-0.32-loaded-1.txt").read_bytes())
    assert dying.stdout is not None
    address = f"127.0.0.1:{dying.stdout.readline().split(' port ')[1].split()[0]}"
    extra = (
        f"mode: auto\nbackends: {{ours: {{kind: command, argv: ['{sys.executable}', '{tmp_path}/backend.py'], timeout: 20s}}}}\n"
        "actions: {reroute: ours}\n"
    )
    service = Service(tmp_path, http(pages["vllm"], address), extra).start().ready()
    service.until(lambda: len(service.get("/api/v1/overview")["pools"]) == 1)

    dying.kill()
    dying.wait()
    service.until(lambda: bool(calls(tmp_path)), within_s=60.0)
    service.end(signal.SIGKILL)
    first = calls(tmp_path)
    service.start().ready()
    service.until(lambda: any(call == "observe" for call, *_ in calls(tmp_path)[len(first) :]))
    service.until(lambda: "done" in json.dumps(service.get(f"/api/v1/actions/{first[0][1]}")))
    code, _, _ = service.end()

    applied = [(id, target["name"]) for call, id, _, target in calls(tmp_path) if call == "apply"]
    assert [call for call, *_ in first] == ["apply"]
    assert applied == [(first[0][1], address)]
    assert code == 0
