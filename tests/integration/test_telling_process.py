"""The service tells people: killed in the middle of a letter, and given other channels while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_service_process import GOLDEN, Service, http, pages

__all__ = ["pages"]  # a fixture of theirs

pytestmark = pytest.mark.integration


class Receiver(ThreadingHTTPServer):
    """Takes messages. before_answer : done once with the first message, before it is answered."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.before_answer: Callable[[], object] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.headers["X-Tidewarden-Delivery"], json.loads(body)))
                hook, outer.before_answer = outer.before_answer, None
                if hook is not None:
                    hook()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def about(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        return [(id, body) for id, body in self.got if body["commonLabels"]["kind"] == kind]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of an engine's page, and what ends its server."""
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "metrics").write_bytes((GOLDEN / "vllm-0.32-loaded-1.txt").read_bytes())
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
    server = subprocess.Popen(
        [*command, "--directory", str(tmp_path / "page")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert server.stdout is not None

    def end() -> None:
        server.kill()
        server.wait()

    yield f"127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}", end
    end()


def notify(*channels: str, more: str = "") -> str:
    waits = "group_wait: 0s, group_wait_critical: 0s"
    return f"notify: {{{waits}, channels: [{', '.join(channels)}]{more}}}\n"


def test_killed_between_sending_and_recording_it_sends_once_more_and_says_so(
    tmp_path: Path, pages: dict[str, str], receiver: Receiver, dying: tuple[str, Callable[[], None]]
) -> None:
    address, die = dying
    extra = notify(f"{{name: hook, kind: webhook, urls: ['{receiver.url}']}}")
    service = Service(tmp_path, http(pages["vllm"], address), extra).start().ready()
    service.until(lambda: len(service.get("/api/v1/overview")["pools"]) == 1)
    process = service.process
    assert process is not None

    def kill() -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    receiver.before_answer = kill
    die()
    assert process.wait(timeout=90) == -signal.SIGKILL
    service.start().ready()
    service.until(lambda: len(receiver.got) > 1)
    service.until(
        lambda: (
            all(x["state"] == "delivered" for x in service.get("/api/v1/alerts")["letters"])
            and service.get("/api/v1/status")["ticks"] > 20
        )
    )
    code, _, _ = service.end()

    (first, once), (second, again) = receiver.got
    assert first == second
    assert (once["tidewarden"]["perhaps_repeated"], again["tidewarden"]["perhaps_repeated"]) == (False, True)
    assert once["alerts"] == again["alerts"]
    assert code == 0


def test_other_channels_come_into_force_at_a_reload_and_a_mistake_changes_nothing(
    tmp_path: Path, pages: dict[str, str], receiver: Receiver, dying: tuple[str, Callable[[], None]]
) -> None:
    address, die = dying
    service = Service(tmp_path, http(pages["vllm"], address)).start().ready()
    bare = service.config.read_text()
    service.until(lambda: len(service.get("/api/v1/overview")["pools"]) == 1)
    assert service.process is not None

    def reload(extra: str, until: Callable[[dict[str, Any]], bool]) -> None:
        service.config.write_text(bare + extra)
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: until(service.get("/api/v1/status")))

    hook = f"{{name: hook, kind: webhook, urls: ['{receiver.url}']}}"
    over_mqtt = "{name: mq, kind: mqtt}"
    reload(notify(hook), lambda status: status["reloads"] == 1)
    broker = ", mqtt: {host: 127.0.0.1}"
    reload(notify(hook, over_mqtt, more=broker), lambda status: status["reload_error"] != "")
    assert "is new: restart the daemon" in service.get("/api/v1/status")["reload_error"]
    die()
    service.until(lambda: len(receiver.got) > 0, within_s=90.0)
    reload(notify(hook, hook.replace("name: hook", "name: second")), lambda status: status["reloads"] == 2)
    service.until(lambda: len(receiver.got) > 1)
    code, _, _ = service.end()

    assert [body["receiver"] for _, body in receiver.got] == ["hook", "second"]
    assert code == 0
