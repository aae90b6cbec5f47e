"""`tidewarden run` as the service manager runs it: ready, reload, stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def exporter() -> Iterator[str]:
    body = (ROOT / "tests" / "golden" / "vllm-0.32-loaded-1.txt").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Manager:
    """The service manager's end of the notify socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(60.0)
        self.said: list[str] = []

    def wait_for(self, word: str) -> str:
        while True:
            message = self.socket.recv(4096).decode()
            self.said.append(message)
            if message.startswith(word):
                return message


def test_a_service_becomes_ready_reloads_and_stops_cleanly(tmp_path: Path, exporter: str) -> None:
    config = tmp_path / "c.yaml"
    text = (
        f"cluster: lab\nstate_dir: {tmp_path}/state\nmode: %s\n"
        f"sources: {{http: {{interval: 1s, static: [{{targets: ['{exporter}'], labels: {{node: n0, pool: chat}}}}]}}}}\n"
        "web: {listen: '127.0.0.1:0'}\ntuning: {tick: 1s}\n"
    )
    config.write_text(text % "observe")
    manager = Manager(tmp_path / "notify")
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon", "run", "-c", str(config)],
        cwd=ROOT,
        env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        manager.wait_for("READY=1")
        assert "observe mode, 1/1 targets up" in manager.wait_for("STATUS=observe mode, 1/1")
        assert process.stderr is not None
        log: list[str] = []
        for line in process.stderr:
            log.append(line)
            if " event=discovered " in line or "event=discovered" in line:
                break
        url = next(m.group(1) for m in (re.search(r"url=(http://\S+)", line) for line in log) if m)
        with urllib.request.urlopen(f"{url}/api/v1/overview", timeout=10) as answer:
            overview = json.load(answer)
        assert overview["discovered"]["engines"] == 1
        assert overview["pools"][0]["name"] == "chat"

        config.write_text(text % "advise")
        process.send_signal(signal.SIGHUP)
        manager.wait_for("STATUS=advise mode")

        config.write_text(text % "sometimes")
        process.send_signal(signal.SIGHUP)
        assert "last reload failed" in manager.wait_for(
            "STATUS=advise mode, 1/1 targets up, 0 GPUs, 1 pools, 0 open incidents, last"
        )

        process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == ""
        assert "found 'sometimes'" in err
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()
        manager.socket.close()
    assert (tmp_path / "state" / "tidewarden.db").exists()


def test_a_wrong_configuration_ends_with_78_and_says_where(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("mode: sometimes\n")

    found = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "-c", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert found.returncode == 78
    assert found.stderr.startswith(f"{config}:1: mode: found 'sometimes'")
