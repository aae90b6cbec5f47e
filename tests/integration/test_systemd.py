"""What the service says to its manager, and what systemd's own tools say of the units. Nothing is ever started by it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_service_process import Service

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
PAGE = (ROOT / "tests" / "golden" / "vllm-0.32-loaded-1.txt").read_bytes()
NAMES = ("tidewarden.service", "tidewarden@.service")


@pytest.fixture
def exporter() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Manager:
    """A service manager's socket: what came, in order, with the time it came at."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.heard: list[tuple[float, str]] = []

    def until(self, check: Callable[[str], bool], within_s: float = 40.0) -> str:
        """The first message from now on that fits. Fails the test when none comes."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                text = self.socket.recv(65536).decode()
            except TimeoutError:
                break
            self.heard.append((time.monotonic(), text))
            if check(text):
                return text
        raise AssertionError(f"not heard; heard: {[t for _, t in self.heard]}")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


def test_the_service_tells_its_manager_of_start_reload_and_end(
    tmp_path: Path, exporter: str, manager: Manager
) -> None:
    sources = f"  http: {{static: [{{targets: ['{exporter}'], labels: {{pool: chat, node: n1}}}}]}}"
    service = Service(tmp_path, sources, NOTIFY_SOCKET=str(tmp_path / "notify")).start()
    assert service.process is not None
    manager.until(lambda t: "READY=1" in t)
    manager.until(lambda t: t == "WATCHDOG=1")

    before = time.monotonic()
    service.process.send_signal(signal.SIGHUP)
    begun = manager.until(lambda t: t.startswith("RELOADING=1"))
    ended = manager.until(lambda t: t.startswith("READY=1"))
    service.config.write_text(service.config.read_text() + "\nnonsense: 1\n")
    service.process.send_signal(signal.SIGHUP)
    manager.until(lambda t: t.startswith("RELOADING=1"))
    refused = manager.until(lambda t: t.startswith("READY=1"))
    code, _, _ = service.end()
    manager.until(lambda t: t == "STOPPING=1")

    [stamp] = re.findall(r"MONOTONIC_USEC=(\d+)", begun)
    assert before <= int(stamp) / 1e6 <= time.monotonic()
    assert "STATUS=observe mode" in ended
    assert "last reload failed" in refused
    assert "nonsense" in refused
    assert code == 0
    # STATUS may come first; a watchdog before READY would be a lie of a loop that has not decided.
    kinds = [t.partition("=")[0] for _, t in manager.heard]
    assert kinds.index("READY") < kinds.index("RELOADING") < kinds.index("STOPPING")


def test_a_process_that_stands_still_feeds_no_watchdog(
    tmp_path: Path, exporter: str, manager: Manager
) -> None:
    sources = f"  http: {{static: [{{targets: ['{exporter}'], labels: {{pool: chat, node: n1}}}}]}}"
    service = Service(tmp_path, sources, NOTIFY_SOCKET=str(tmp_path / "notify")).start()
    assert service.process is not None
    manager.until(lambda t: t == "WATCHDOG=1")

    service.process.send_signal(signal.SIGSTOP)
    with pytest.raises(AssertionError, match="not heard"):
        manager.until(lambda t: t == "WATCHDOG=1", within_s=7.0)
    service.process.send_signal(signal.SIGCONT)

    assert manager.until(lambda t: t == "WATCHDOG=1") == "WATCHDOG=1"
    service.end()


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_is_hardened(name: str) -> None:
    analyze = _analyze()

    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", "--threshold=15", UNITS / name],
        capture_output=True,
        text=True,
    )

    [level] = re.findall(r"Overall exposure level for \S+ ([\d.]+)", done.stdout)
    assert float(level) <= 1.5
    assert done.returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_has_no_key_that_systemd_does_not_know(name: str, tmp_path: Path) -> None:
    # verify looks for the program; everything else stays as shipped.
    text = (UNITS / name).read_text().replace("/opt/tidewarden/bin/tidewarden", sys.executable)
    unit = tmp_path / name.replace("@", "@a")
    unit.write_text(text)

    done = subprocess.run([_analyze(), "verify", "--man=no", unit], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_two_units_differ_only_in_what_belongs_to_an_instance() -> None:
    one, many = ((UNITS / name).read_text().splitlines() for name in NAMES)

    assert len(one) == len(many)
    differing = {b.partition("=")[0] for a, b in zip(one, many, strict=True) if a != b}
    assert differing == {
        "Description", "ExecStart", "WorkingDirectory", "StateDirectory", "RuntimeDirectory", "LoadCredential",
        "SyslogIdentifier",
    }  # fmt: skip
    assert "RestartPreventExitStatus=78" in one
    assert "Type=notify" in one


def _analyze() -> str:
    import shutil

    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    return found
