"""The reference pages follow from the code, and every name in them exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.model import Reason, Severity
from daemon.patterns import PATTERNS
from daemon.settings import Settings
from detectors.xid import XID
from docs.build_reference import MEANINGS, PAGES, REASONS, TO_DO, rows

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "en" / "reference"


def test_the_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/build_reference.py", "--check"],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, "all pages are current\n", ""), (
        "run: python docs/build_reference.py"
    )


def test_every_pattern_and_every_reason_has_its_words() -> None:
    assert set(TO_DO) == set(PATTERNS)
    assert set(REASONS) == set(Reason)


def test_every_key_of_the_configuration_says_what_it_is_for() -> None:
    keys = {key: meaning for key, _, _, meaning in rows(Settings)}

    assert [key for key, meaning in keys.items() if not meaning] == []
    assert set(MEANINGS) <= set(keys)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_generated_page_warns_whoever_edits_it(page: str) -> None:
    assert "build_reference.py" in (REFERENCE / page).read_text().splitlines()[0]


def test_every_xid_the_detector_knows_stands_on_its_page() -> None:
    text = (REFERENCE / "xid.md").read_text()
    table = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if (len(cells) >= 4 and cells[0].startswith("`gpu_")) or cells[0].startswith("`nvlink_"):
            for part in cells[1].replace(",", " ").split():
                low, _, high = part.partition("-")
                table |= dict.fromkeys(range(int(low), int(high or low) + 1), (cells[0].strip("`"), cells[2]))

    assert table == {code: (cls.kind, cls.severity.value) for code, cls in XID.items()}
    assert {severity for _, severity in table.values()} <= {s.value for s in Severity}


def test_links_between_the_pages_live() -> None:
    dead = []
    for page in [*(ROOT / "docs").rglob("*.md")]:
        words = re.sub(r"`[^`\n]*`", "", page.read_text())
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", words):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")

    assert dead == []


@pytest.mark.parametrize("page", ["alerts.md", "architecture.md", "quickstart.md"])
def test_the_chinese_pages_have_the_same_sections(page: str) -> None:
    def shape(language: str) -> list[int]:
        text = (ROOT / "docs" / language / page).read_text()
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        return [len(m) for m in re.findall(r"^(#+) ", outside, flags=re.MULTILINE)]

    assert shape("zh") == shape("en")


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "en" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:daemon|detectors|actions|simulator|docs|tests)/[\w/]+\.\w+)`", text))

    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
