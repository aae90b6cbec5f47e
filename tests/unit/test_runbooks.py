"""Every alert has a runbook in both languages, as a page and as a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from web_town import Town, lived, pages

from daemon.patterns import PATTERNS
from daemon.policy import Mode
from daemon.web.runbooks import KIND_TEXTS, LANGUAGES, NAMES, TEXTS, runbook
from dashboards.alerts import ALERTS, RECORDED
from docs.build_runbooks import pages as written

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.2, Mode.OBSERVE)
    yield found
    found.daemon.record.close()


def test_every_incident_kind_and_every_alert_rule_has_words_in_both_languages() -> None:
    assert set(KIND_TEXTS) == set(PATTERNS)
    assert set(TEXTS) == {alert.name for alert in ALERTS}
    for name in NAMES:
        for language in LANGUAGES:
            found = runbook(name, language)
            assert found["title"]
            assert any(found["steps"])
        assert re.search(r"[\u4e00-\u9fff]", runbook(name, "zh")["title"])


def test_the_written_runbooks_are_current() -> None:
    stale = [n for n, text in written().items() if not (DOCS / n).is_file() or (DOCS / n).read_text() != text]

    assert stale == [], "run: python docs/build_runbooks.py"


def test_what_a_runbook_tells_to_type_is_a_command_that_exists() -> None:
    from daemon.cli.commands import tidewarden

    text = " ".join(step for name in NAMES for step in runbook(name, "en")["steps"])
    typed = set(
        re.findall(r"(?<!systemctl status )(?<!restart )(?<!-u )tidewarden ([a-z]+)(?: ([a-z]+))?", text)
    )

    for noun, verb in typed:
        command = tidewarden.commands.get(noun)
        assert command is not None, noun
        if verb and hasattr(command, "commands") and noun != "status":
            assert verb in command.commands, f"{noun} {verb}"


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/runbooks/TidewardenGpuLost", {}, "Reboot the node"),
        ("/runbooks/TidewardenGpuLost", {"Accept-Language": "zh-CN,zh;q=0.9"}, "重启节点"),
        ("/runbooks/TidewardenGpuLost?lang=zh", {}, "重启节点"),
        ("/runbooks/TidewardenDown?lang=en", {"Accept-Language": "zh"}, "systemctl status tidewarden"),
        ("/runbooks", {}, "TidewardenSloBurnFast"),
    ],
)
async def test_a_runbook_is_served_in_the_readers_language(
    town: Town, path: str, headers: dict[str, str], expected: str
) -> None:
    async with pages(town) as client, client.get(path, headers=headers) as answer:
        text = await answer.text()

    assert answer.status == 200
    assert expected in text
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


async def test_an_unknown_runbook_is_not_found(town: Town) -> None:
    async with pages(town) as client, client.get("/runbooks/TidewardenNothing") as answer:
        assert answer.status == 404


async def test_every_metric_an_alert_reads_is_exported(town: Town) -> None:
    async with pages(town) as client, client.get("/metrics") as answer:
        text = await answer.text()
    exported = {family.name for family in text_string_to_metric_families(text)} | set(
        re.findall(r"^# TYPE (\S+)", text, re.M)
    )

    asked = {
        name
        for expr in (*RECORDED.values(), *(a.expr for a in ALERTS))
        for name in re.findall(r"(?<![\w:])tidewarden_\w+", expr)
    }

    assert asked
    assert sorted(n for n in asked if n not in exported and n.removesuffix("_total") not in exported) == []
