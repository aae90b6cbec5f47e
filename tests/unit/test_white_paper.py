"""The page that maps the white paper: whatever it points to exists, and no checklist item is missing."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.checklist import ITEMS
from daemon.cli.commands import tidewarden
from daemon.patterns import PATTERNS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / language / "white-paper.md" for language in ("en", "zh")]


def test_every_checklist_item_stands_on_the_page_once() -> None:
    for page in PAGES:
        rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
        found = [item for row in rows for item in re.findall(r"\| `(\w+)` \|", row)]

        assert found == list(dict.fromkeys(found))
        assert set(found) == set(ITEMS)


def test_every_test_command_and_pattern_it_names_exists() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
            if f"def {name}(" not in (ROOT / file).read_text("utf-8"):
                missing.append(f"{file}::{name}")
        for command in re.findall(r"`tidewarden (\w+)", text):
            if command not in tidewarden.commands:
                missing.append(f"tidewarden {command}")
        for kinds in re.findall(r"(?:patterns?|模式) ((?:`\w+`(?:, |、)?)+)", text):
            missing += [k for k in re.findall(r"`(\w+)`", kinds) if k not in {*PATTERNS, *ITEMS}]

    assert missing == []


def test_both_languages_say_the_same_about_the_state() -> None:
    def states(page: Path) -> list[str]:
        last = (
            line.rsplit("|", 2)[-2] for line in page.read_text("utf-8").splitlines() if line.startswith("|")
        )
        return [
            s for cell in last for s in [STATES.get(re.split(r"[;:；：（(，, ]", cell.strip())[0], "")] if s
        ]

    assert len(states(PAGES[0])) > 40
    assert states(PAGES[0]) == states(PAGES[1])


STATES = {"works": "works", "part": "part", "open": "open", "outside": "outside"} | {
    "可用": "works",
    "部分": "part",
    "未做": "open",
    "范围外": "outside",
}
