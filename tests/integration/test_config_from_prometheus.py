"""A first configuration from what a real Prometheus scrapes."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from daemon.cli import newconfig
from daemon.cli.trouble import Trouble
from daemon.config import parse
from daemon.policy import Mode

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parents[1] / "golden"
PAGES = {"/metrics": "vllm-0.32-loaded-1.txt", "/node": "node-exporter-1.5-real.txt"}


@pytest.fixture
def exporter() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (GOLDEN / PAGES[self.path]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
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


def wait_until_scraped(url: str, jobs: int) -> None:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/api/v1/query?query=sum(up)", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
        if result and float(result[0]["value"][1]) >= jobs:
            return
        time.sleep(0.2)
    pytest.fail("Prometheus did not scrape its targets in time")


def test_exporters_labels_and_models_are_found_and_the_file_is_valid(
    exporter: str,
    tmp_path: Path,
    binary: Callable[[str], str],
    free_port: Callable[[], int],
    start: Callable[[list[str]], subprocess.Popen[bytes]],
    answers: Callable[[str, subprocess.Popen[bytes]], None],
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "engines",
                "static_configs": [{"targets": [exporter], "labels": {"pool": "chat", "team": "x"}}],
            },
            {
                "job_name": "hosts",
                "metrics_path": "/node",
                "static_configs": [{"targets": [exporter], "labels": {"rack": "r1"}}],
            },
            {"job_name": "itself", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]},
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    process = start(
        [
            binary("prometheus"),
            "--config.file=prometheus.yml",
            f"--web.listen-address=127.0.0.1:{port}",
            "--storage.tsdb.path=tsdb",
        ]
    )
    answers(f"{url}/-/ready", process)
    wait_until_scraped(url, 3)

    found = newconfig.ask_prometheus(url)
    settings = parse(newconfig.render(found))

    assert settings.mode is Mode.OBSERVE
    assert settings.sources.http is not None
    by_job = {g.job: g for g in settings.sources.http.static}
    assert set(by_job) == {"vllm", "node"}
    assert by_job["vllm"].labels == {"pool": "chat"}
    assert by_job["node"].labels == {"rack": "r1", "__metrics_path__": "/node"}
    assert found.unknown == ("itself",)
    assert [p.match["model"] for p in settings.pools] == list(found.models)
    assert len(found.models) == 1


def test_what_is_no_prometheus_is_told_so() -> None:
    with pytest.raises(Trouble, match="cannot be asked"):
        newconfig.ask_prometheus("http://127.0.0.1:1")
    with pytest.raises(Trouble, match="an http:// or https:// address is needed"):
        newconfig.ask_prometheus("prometheus:9090")
