"""The benchmark of acting on a real HAProxy and on the protocol server, a few trials long."""

import json
import shutil

import pytest

from bench import acting

pytestmark = pytest.mark.integration


def test_it_prints_how_soon_a_finding_is_a_weight_and_a_cordon(capsys: pytest.CaptureFixture[str]) -> None:
    if not (shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")):
        pytest.skip("haproxy is not installed")

    acting.main(["--trials", "6"])

    *_, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert [(r["what"], r["trials"]) for r in rows] == [("haproxy weight", 6), ("kubernetes cordon", 6)]
    assert all(0 < r["p50_ms"] <= r["p99_ms"] for r in rows)
