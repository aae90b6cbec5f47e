"""What detectors write has its Chinese: read out of their source, so that a new text cannot be forgotten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import pytest

import detectors
from daemon.web.sentences import in_chinese

SOURCES = sorted(Path(detectors.__file__).parent.glob("*.py"))
ENGLISH = re.compile(r"[A-Za-z]{3,} [a-z]{2,} [a-z]{2,}")
STANDS_FOR = ("12", "n04", "12 min")
"""What may stand in a hole without a format: a number, a name, a time. One of them must do."""
WHOLE_ONLY = {
    "{chance:.0%} chance that {name} runs short within {horizon_s / 86400.0:.0f} days: it may need {need:.0f} replicas (1 in 10)",
    "the fabric is {words[int(health[i])][0]}, says the GPU",
    "load is spread unevenly over {what}",
}
"""Never said like this: what stands in the hole, or follows, belongs to the sentence. `test_what_is_said_in_parts` has them."""


def texts(source: Path) -> Iterator[ast.expr]:
    """Expressions that are the text of a finding, or a reason to reject another cause."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg in ("text", "rejected"):
            yield node.value
        if isinstance(node, ast.Assign) and {getattr(t, "id", "") for t in node.targets} & {"text", "why"}:
            yield node.value


def written(node: ast.expr) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The strings that an expression may become, its conditions left out."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node
    elif isinstance(node, ast.IfExp):
        yield from (*written(node.body), *written(node.orelse))
    elif isinstance(node, ast.Tuple):
        yield from (s for part in node.elts for s in written(part))


def samples(node: ast.Constant | ast.JoinedStr) -> Iterable[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    parts = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue) and part.format_spec is not None:
            parts.append(("12%" if ast.unparse(part.format_spec).endswith("%'") else "12",))
        else:
            parts.append((str(part.value),) if isinstance(part, ast.Constant) else STANDS_FOR)
    return map("".join, product(*parts))


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_every_text_of_a_detector_has_its_chinese(source: Path) -> None:
    missing = [
        ast.unparse(each)
        for node in texts(source)
        for each in written(node)
        if ast.unparse(each).strip("f\"'") not in WHOLE_ONLY
        and all(ENGLISH.search(in_chinese(text)) for text in samples(each))
    ]

    assert missing == []


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        (
            "41% chance that chat runs short within 7 days: it may need 31 replicas (1 in 10) and may have 24; more likely than not by "
            "Tuesday 14:00 UTC. Raise its maximum to 31 by Wednesday 10:00 UTC, or move load.",
            "7 天内 chat 有 41% 的可能不足：可能需要 31 个副本（十分之一的可能），上限为 24 个；更可能在 Tuesday 14:00 UTC 前。"
            "请在 Wednesday 10:00 UTC 前把上限提高到 31，或移走负载。",
        ),
        ("the fabric is limited, says the GPU", "GPU 报告互连受限"),
        ("load is spread unevenly over nodes", "负载在节点间分布不均"),
        (
            "n01/gpu3 is 8% slower: clock below busy peers, and its replica's steps are longer (compared with its own past only: fewer than "
            "three peers, low confidence)",
            "n01/gpu3 慢 8%：频率低于忙碌的同类，且其副本单步更长（只与自身过去相比：同类不足三个，把握低）",
        ),
        (
            "no longer exported: sm_clock_mhz, power_w; renamed by a new exporter version, most likely",
            "不再导出：sm_clock_mhz, power_w；很可能被新版采集器改名",
        ),
        (
            "the root filesystem of n07 loses 3.1 GB a day and has 7.2 GB left: full in about 56 h (40 to 81 h), by Friday 09:12 UTC",
            "n07 的根文件系统每天减少 3.1 GB，还剩 7.2 GB：约 56 小时后满（40 至 81 小时），Friday 09:12 UTC 前",
        ),
        ("a disk does not read or write what it is asked to: I/O error, dev nvme0n1", "磁盘无法完成读写：I/O error, dev nvme0n1"),
        (
            "The replicas of the node take longer for the same work than their peers (node n02; 85% sure). 4 replicas of n02 take 5% longer a "
            "step than their peers at equal load (median)",
            "节点上的副本做同样的工作慢于同类（节点 n02；把握 85%）。同等负载下 n02 的 4 个副本单步比同类长 5%（中位数）",
        ),
        (
            "9% chance of running short within 7 days: 140 GPUs may be needed (1 in 10) and 128 stand; first short in 60 h. Mostly chat: 2 "
            "more replicas of chat (8 GPUs) by Wednesday 10:00 UTC would serve it. 12 more GPUs would close the gap.",
            "7 天内有 9% 的可能不足：可能需要 140 块 GPU（十分之一的可能），现有 128 块；60 小时后首次不足。主要是 chat：Wednesday 10:00 UTC 前"
            "再有 2 个 chat 副本（8 块 GPU）即可满足。再有 12 块 GPU 可补足缺口。",
        ),
        ("a sick exporter: all 3 of the node are silent", "采集器故障：该节点全部 3 个都没有数据"),
    ],
)  # fmt: skip
def test_what_is_said_in_parts(english: str, chinese: str) -> None:
    assert in_chinese(english) == chinese
