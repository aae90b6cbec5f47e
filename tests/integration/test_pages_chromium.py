"""The pages in a real browser: nothing goes wrong, nothing leaves the host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGES = {"overview": "/", "incidents": "/incidents", "forecast": "/forecast"}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[str]:
    """The address of a demo in which a GPU has died, as a user starts it."""
    script = tmp_path / "script.txt"
    script.write_text("1s dead-gpu\n")
    argv = [
        sys.executable,
        "-m",
        "daemon",
        "demo",
        "--for",
        "200s",
        "--port",
        "0",
        "--nodes",
        "8",
        "--rate",
        "60",
        "--script",
        str(script),
    ]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    address, seen = "", set()
    for line in process.stdout:
        found = re.match(r"pages: (http://127\.0\.0\.1:\d+)", line)
        address = found.group(1) if found else address
        seen |= {word for word in ("DETECT", "FORECAST", "VERIFY") if f"  {word}" in line}
        if address and len(seen) == 3:
            break
    else:
        pytest.fail(f"the demo ended with {process.wait()} before it showed anything")
    # Whatever it says from now on is read away, so that it never waits for a full pipe.
    reader = threading.Thread(target=process.stdout.read, daemon=True)
    reader.start()
    yield address
    process.terminate()
    process.wait(90)
    reader.join(10)
    process.stdout.close()


def test_pages_load_without_an_error_and_ask_no_other_host(
    demo: str, tmp_path: Path, binary: Callable[[str], str]
) -> None:
    chromium = binary("chromium")
    for name, path in PAGES.items():
        shot, netlog = tmp_path / f"{name}.png", tmp_path / f"{name}.json"
        said = subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
                f"--user-data-dir={tmp_path}/profile-{name}", "--window-size=1400,1200", "--hide-scrollbars",
                "--enable-logging=stderr", "--v=0", f"--log-net-log={netlog}", f"--screenshot={shot}", demo + path,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )  # fmt: skip

        console = [line for line in said.stderr.splitlines() if "CONSOLE" in line]
        pages = requests_of_pages(netlog.read_text())

        assert console == []
        assert f"{demo}{path}" in pages
        assert f"{demo}/static/style.css" in pages
        assert f"{demo}/api/v1/stream" in pages
        assert [url for url in pages if not url.startswith((demo, "data:"))] == []
        assert shot.stat().st_size > 20_000


def requests_of_pages(text: str) -> set[str]:
    """URLs that a document asked for, as against the browser's own chatter.

    A request on behalf of a page names the site it is for; the browser's own have no initiator and another isolation.
    """
    log = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = set()
    for event in log["events"]:
        params = event.get("params", {})
        if event["type"] == start and "url" in params and is_of_a_page(params):
            found.add(params["url"])
    return found


def is_of_a_page(params: dict[str, str]) -> bool:
    key = params.get("network_isolation_key", "")
    return params.get("initiator", "not an origin") != "not an origin" or "127.0.0.1" in key
