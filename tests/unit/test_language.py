"""The pages in Chinese: no word is missing, and readers get the language they asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

import pytest
from web_town import Town, first_gpu, lived, pages

from daemon.casefile import RULED_OUT
from daemon.checklist import ITEMS
from daemon.policy import Mode
from daemon.rules import RULES
from daemon.web.chinese import ZH
from daemon.web.fleetmap import MARKED, MEASURES
from daemon.web.language import said_in, words_in
from daemon.web.pages import PAGES
from daemon.web.standing import TIERS
from daemon.web.traces import UNITS
from daemon.web.views import MODE_WORDS
from daemon.web.words import REASONS, STATES
from simulator.faults import Fault

TEMPLATES = resources.files("daemon.web").joinpath("templates")
SHOWN = ("/", "/alerts", "/incidents", "/actions", "/forecast", "/fleet", "/nodes", "/nodes/n00", "/targets", "/rules", "/posture",
         "/cost", "/regions", "/pools", "/pools/chat", "/storage", "/jobs", "/config", "/report", "/login")  # fmt: skip


def asked_for() -> set[str]:
    """Every word the templates ask for, and those that come out of the code."""
    found = set()
    for template in TEMPLATES.iterdir():
        for match in re.finditer(r'_\("((?:[^"\\]|\\.)*)"', template.read_text("utf-8")):
            found.add(match.group(1).replace('\\"', '"'))
    from_code = (
        STATES, STATES.values(), REASONS.values(), MODE_WORDS.values(), TIERS.values(), MARKED, dict(PAGES).values(),
        (r.text for r in RULES.values()), (said for all_ in RULED_OUT.values() for said in all_),
        (i.title for i in ITEMS.values()), (m.title for m in MEASURES.values()), (u[0] for u in UNITS.values()),
    )  # fmt: skip
    return found.union(*from_code)


def test_every_word_has_its_chinese_and_keeps_its_names() -> None:
    missing = sorted(asked_for() - ZH.keys())

    assert missing == []
    for english, chinese in ZH.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), english


def test_values_are_escaped() -> None:
    words = words_in("zh")

    assert words("Pool {name}", name="<b>") == "资源池 &lt;b&gt;"
    assert words("<script>") == "&lt;script&gt;"
    assert said_in("zh")("the pool's budget is used up (3 of 12 GPUs)") == "资源池预算已用尽（3 of 12 GPUs）"
    assert said_in("en")("the pool's budget is used up") == "the pool&#39;s budget is used up"


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(0.5, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 7200.0))
    yield found
    found.daemon.record.close()


async def test_a_reader_gets_the_language_of_choice_and_keeps_it(town: Town) -> None:
    async with pages(town) as client:
        async with client.get("/", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.5"}) as answer:
            assert '<html lang="zh">' in await answer.text()
        async with client.get("/?lang=zh") as answer:
            assert "未结束的事件" in await answer.text()
        async with client.get("/nodes", headers={"Accept-Language": "en"}) as answer:
            assert "机架" in await answer.text()
        async with client.get("/?lang=en") as answer:
            assert "Open incidents" in await answer.text()
        async with client.get("/nodes", headers={"Accept-Language": "zh"}) as answer:
            assert '<html lang="en">' in await answer.text()


async def test_headings_and_column_names_of_every_page_are_chinese(town: Town) -> None:
    id = next(i.id for i in town.daemon.record.incidents())
    english = []
    async with pages(town) as client:
        for path in (*SHOWN, f"/incidents/{id}"):
            async with client.get(path, params={"lang": "zh"}) as answer:
                text = await answer.text()

            assert answer.status == 200
            for heading in re.findall(r"<(?:h1|h2|th|dt)[^>]*>([^<]+)<", text):
                plain = heading.strip()
                if re.fullmatch(r"[A-Za-z][a-z ,.'-]{4,}", plain) and plain not in KEPT:
                    english.append((path, plain))

    assert english == []


KEPT = {"chat", "code", "small", "running", "waiting", "asleep"}
"""Names of pools and signals, which are the same in every language."""
