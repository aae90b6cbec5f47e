"""Three real daemons tell a fourth of their regions, two over HTTP and one over a real MQTT broker."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def engine() -> Iterator[str]:
    body = (GOLDEN / "vllm-0.32-loaded-1.txt").read_bytes()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Hall:
    """Processes on this host, each with a folder, all stopped at the end."""

    def __init__(self, folder: Path, free_port: Callable[[], int]) -> None:
        self.folder, self.ports, self.running = folder, free_port, dict[str, subprocess.Popen[bytes]]()
        self.at: dict[str, int] = {}

    def daemon(self, name: str, sources: str, more: str = "") -> None:
        self.at[name] = self.ports()
        config = self.folder / f"{name}.yaml"
        config.write_text(
            f"cluster: {name}\nstate_dir: {self.folder}/{name}\nsources: {sources}\n"
            f"web: {{listen: '127.0.0.1:{self.at[name]}'}}\ntuning: {{tick: 500ms, stale: 2s}}\n{more}"
        )
        log = (self.folder / f"{name}.log").open("wb")
        command = [sys.executable, "-m", "daemon", "run", "-c", str(config)]
        self.running[name] = subprocess.Popen(command, stderr=log, stdout=log)

    def get(self, name: str, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.at[name]}{path}", timeout=5) as answer:
            return json.load(answer)

    def until(self, wanted: dict[str, str], within_s: float = 40.0) -> None:
        """Wait until the view says of each region what is wanted."""
        end, seen = time.monotonic() + within_s, {}
        while time.monotonic() < end:
            try:
                seen = {r["name"]: r["state"] for r in self.get("globe", "/api/v1/regions")["regions"]}
            except OSError:
                seen = {}
            if seen == wanted:
                return
            time.sleep(0.3)
        raise AssertionError(
            f"wanted {wanted}, seen {seen}: {(self.folder / 'globe.log').read_text()[-2000:]}"
        )

    def stop(self, name: str) -> None:
        self.running[name].terminate()
        self.running.pop(name).wait(15)


@pytest.fixture
def hall(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Hall]:
    found = Hall(tmp_path, free_port)
    yield found
    for name in list(found.running):
        found.stop(name)


def test_a_region_that_falls_silent_is_lost_and_is_back_when_it_speaks(
    hall: Hall, engine: str, binary: Callable[[str], str], listens: Any, free_port: Callable[[], int]
) -> None:
    broker = free_port()
    (hall.folder / "broker.conf").write_text(f"listener {broker} 127.0.0.1\nallow_anonymous true\n")
    hall.running["broker"] = subprocess.Popen([binary("mosquitto"), "-c", str(hall.folder / "broker.conf")])
    listens(broker, hall.running["broker"])
    own = f"{{http: {{interval: 500ms, static: [{{targets: ['{engine}'], labels: {{pool: chat}}}}]}}}}"
    told = f"notify: {{mqtt: {{host: 127.0.0.1, port: {broker}, state_interval: 1s}}}}\n"
    for name in ("east", "west"):
        hall.daemon(name, own)
    hall.daemon("south", own, told)
    targets = ", ".join(f"'127.0.0.1:{hall.at[name]}'" for name in ("east", "west"))
    hall.daemon(
        "globe",
        f"{{http: {{interval: 500ms, static: [{{targets: [{targets}], job: tidewarden}}]}}, "
        f"mqtt: {{host: 127.0.0.1, port: {broker}, topics: ['tidewarden/+/region']}}}}",
        "regions: {members: {east: {}, west: {}, south: {}}, lost_after: 4s}\n",
    )
    hall.until({"east": "well", "west": "well", "south": "well"})

    hall.stop("south")
    hall.until({"east": "well", "west": "well", "south": "lost"})
    hall.daemon("south", own, told)
    hall.until({"east": "well", "west": "well", "south": "back"})
    hall.stop("east")
    hall.until({"east": "lost", "west": "well", "south": "back"})

    own_word = hall.get("west", "/api/v1/region")
    assert own_word["region"] == "west"
    assert own_word["health_ratio"] == 1.0
