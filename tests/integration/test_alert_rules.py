"""The rule file under the real promtool: valid, and each alert fires, stays quiet, resolves."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dashboards.alerts import ALERTS
from dashboards.build import ROOT

pytestmark = pytest.mark.integration

RULES = ROOT / "dashboards" / "rules"


def test_the_rules_are_valid(binary: Callable[[str], str]) -> None:
    done = subprocess.run(
        [binary("promtool"), "check", "rules", "tidewarden.yaml"], cwd=RULES, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "SUCCESS" in done.stdout


def test_each_alert_stays_quiet_fires_and_resolves(binary: Callable[[str], str]) -> None:
    done = subprocess.run(
        [binary("promtool"), "test", "rules", "tests.yaml"], cwd=RULES, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_an_alert_would_be_missed_without_it(
    tmp_path: Path, binary: Callable[[str], str]
) -> None:
    rules = yaml.safe_load((RULES / "tidewarden.yaml").read_text())
    rules["groups"][1]["rules"] = [r for r in rules["groups"][1]["rules"] if r["alert"] != "TidewardenDown"]
    (tmp_path / "tidewarden.yaml").write_text(yaml.safe_dump(rules))
    tests = yaml.safe_load((RULES / "tests.yaml").read_text())
    tests["tests"] = [t for t in tests["tests"] if t["name"] == "TidewardenDown"]
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))

    done = subprocess.run(
        [binary("promtool"), "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 1


def test_every_alert_has_what_on_call_needs() -> None:
    found = yaml.safe_load((RULES / "tidewarden.yaml").read_text())["groups"][1]["rules"]

    assert [r["alert"] for r in found] == [a.name for a in ALERTS]
    for rule in found:
        assert rule["alert"].startswith("Tidewarden")
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
        assert rule["for"].endswith("m")
        # An alert without an address would say "on" nothing and link to no host.
        assert ("$labels.instance" in rule["annotations"]["runbook_url"]) == (
            rule["alert"] not in ("TidewardenHeartbeat", "TidewardenAbsent")
        )
        # Volatile numbers belong into annotations, or each new value is a new alert.
        assert not any("$value" in value for value in rule["labels"].values())
