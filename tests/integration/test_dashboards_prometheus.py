"""Every panel's query on a real Prometheus that scrapes the demo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dashboards.build import BOARDS
from dashboards.panel import Panel, board_json

pytestmark = pytest.mark.integration

RATE_WINDOW = "20s"
PATIENCE_S = 100.0
"""Of real time, 100 minutes of the demo's: how long a panel may take to draw something. All do in a quarter of it."""

Answers = Callable[[str, subprocess.Popen[bytes]], None]
Start = Callable[[list[str]], subprocess.Popen[bytes]]


def ask(url: str, expr: str) -> list[dict[str, Any]]:
    """The result of a query now. Fails the test with Prometheus' own words."""
    for name, value in (
        ("__rate_interval", RATE_WINDOW),
        ("job", ".+"),
        ("instance", ".+"),
        ("target", ".+"),
    ):
        expr = expr.replace(f"${name}", value)
    body = urllib.parse.urlencode({"query": expr}).encode()
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query", data=body, timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        pytest.fail(f"{error.read().decode()}\n{expr}")
    return found


def watch(url: str, panels: dict[str, Panel], for_s: float) -> tuple[set[str], dict[str, set[str]]]:
    """Panels that had data at one time or another, and the labels their results carried, asked again and again."""
    deadline = time.monotonic() + for_s
    drawn: set[str] = set()
    labels: dict[str, set[str]] = {}
    while True:
        for name, panel in panels.items():
            if name in drawn:
                continue
            results = [ask(url, query.expr) for query in panel.queries]
            rows = [row for rows in results for row in rows if row["value"][1] != "NaN"]
            labels.setdefault(name, set()).update(key for row in rows for key in row["metric"])
            # A legend of two queries: both must have something to say.
            if all(any(row["value"][1] != "NaN" for row in rows) for rows in results):
                drawn.add(name)
        if len(drawn) == len(panels) or time.monotonic() > deadline:
            return drawn, labels
        time.sleep(5.0)


@pytest.mark.timeout(240)
def test_every_panel_draws_something_of_the_demo_or_says_why_not(
    tmp_path: Path,
    binary: Callable[[str], str],
    free_port: Callable[[], int],
    start: Start,
    answers: Answers,
) -> None:
    own, port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    script = tmp_path / "script"
    script.write_text("5s dead-gpu\n12s slow-gpu\n18s link-errors\n")
    command = ["demo", "--for", "150s", "--port", str(own), "--nodes", "8", "--script", str(script)]
    demo = start(["env", f"TMPDIR={tmp_path}", sys.executable, "-m", "daemon", *command])
    answers(f"http://127.0.0.1:{own}/metrics", demo)
    [targets] = tmp_path.glob("tidewarden-demo-*/targets.json")
    config = {
        "global": {"scrape_interval": "2s"},
        "scrape_configs": [
            {
                "job_name": "exporters",
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}],
            },
            {"job_name": "tidewarden", "static_configs": [{"targets": [f"127.0.0.1:{own}"]}]},
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    prometheus = start(
        [
            binary("prometheus"),
            "--config.file=prometheus.yml",
            f"--web.listen-address=127.0.0.1:{port}",
            "--storage.tsdb.path=tsdb",
        ]
    )
    answers(f"{url}/-/ready", prometheus)
    panels = {f"{name}: {p.title.en}": p for name, board in BOARDS.items() for p in board.panels}

    drawn, labels = watch(url, {n: p for n, p in panels.items() if not p.quiet}, PATIENCE_S)
    quiet, _ = watch(url, {n: p for n, p in panels.items() if p.quiet}, 0.0)

    assert demo.poll() is None, "the demo ended before its panels were asked"
    assert sorted(n for n, p in panels.items() if not p.quiet and n not in drawn) == []
    print("with data although it need not:", sorted(quiet))
    assert labels["gpu: Temperature"] >= {"Hostname", "gpu", "instance"}
    for expr in (a["expr"] for a in board_json(BOARDS["overview"], "en")["annotations"]["list"]):
        ask(url, expr)
