"""What findings measured reads well in English and has its Chinese: names are read out of the source, so that a new one cannot be forgotten."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import daemon
import detectors
from daemon.model import NAN, Evidence
from daemon.quantities import measured
from daemon.web.measurements import amount, in_chinese, named
from detectors.burn import NAMES as BURNS
from detectors.exhaustion import STORES
from detectors.fields import GAUGES
from detectors.memory import STATES
from detectors.signs import FAMILIES

SOURCES = [p for m in (daemon, detectors) for p in sorted(Path(m.__file__ or "").parent.rglob("*.py"))]
MADE = (
    *(f"sign_{family}" for family in FAMILIES),
    *(f"{store}{end}" for store in STORES for end in ("_left", "_share_left")),
    *(signal for signal, *_ in STATES),
    *GAUGES.values(),
    *BURNS,
    "bubble_of_stage_0", "pcie_link_width", "pcie_link_gen", "answer_took", "lines_not_read", "gpu_lost", "nvml_hang",
    "fs_readonly", "oom_kills", "disk_free", "fabric_manager_up", "memory_free", "processes_blocked",
)  # fmt: skip
"""Names that are put together, or passed on, where the evidence is made."""


def made() -> Iterator[tuple[str, str]]:
    """(name, unit) of the evidence that the source spells out; a number for what it puts into a unit."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "Evidence"
                and len(node.args) > 2
            ):
                name, unit = node.args[0], node.args[2]
                if isinstance(name, ast.Constant) and isinstance(unit, ast.Constant):
                    yield str(name.value), str(unit.value)
                elif isinstance(name, ast.Constant) and isinstance(unit, ast.JoinedStr):
                    parts = (str(p.value) if isinstance(p, ast.Constant) else "12" for p in unit.values)
                    yield str(name.value), "".join(parts).replace("from 12", "from kernel_log")


def test_every_measurement_of_the_source_has_a_chinese_name_and_unit() -> None:
    found = {*made(), *((name, "") for name in MADE)}

    english = [name for name, _ in found if named(name) == name.replace("_", " ")]
    lines = {line: in_chinese(line) for line in (measured(Evidence(n, 0.5, u, 3.0)) for n, u in found)}

    assert len(found) > 130
    assert sorted(english) == []
    assert [line for line, chinese in lines.items() if chinese is None] == []


@pytest.mark.parametrize(
    ("evidence", "english", "chinese"),
    [
        (Evidence("slower_at_equal_load", 0.0833, "ratio", 0.0), "slower at equal load 8.33 % (against 0 %)", "同等负载下变慢 8.33 %（对照 0 %）"),
        (Evidence("inter_token_latency", 0.0343, "s"), "inter token latency 34 ms", "单步时间 34 ms"),
        (Evidence("clock_skew", -45.0, "s", 0.0), "clock skew -45 s (against 0 s)", "时钟偏差 -45 s（对照 0 s）"),
        (Evidence("waiting", NAN, "requests"), "waiting not measured", "等待中 未测得"),
        (Evidence("targets_silent", 3.0, "of 12"), "targets silent 3 of 12", "沉默的目标 3 / 12"),
        (Evidence("xid", 79.0, "from kernel_log"), "xid 79 from kernel log", "XID 79（来自内核日志）"),
        (Evidence("discards", 2.5, "1/s", 0.0), "discards 2.5/s (against 0/s)", "丢弃 2.5/s（对照 0/s）"),
        (Evidence("rises_by", 0.012, "ratio/min"), "rises by 1.2 %/min", "上升 1.2 %/min"),
        (Evidence("throttle_bits", 96.0, "bitmask"), "throttle bits 0x60", "降频位 0x60"),
        (Evidence("resident", 81e9, "B"), "resident 81 GB", "常驻内存 81 GB"),
    ],
)  # fmt: skip
def test_a_measurement_is_said_with_its_unit(evidence: Evidence, english: str, chinese: str) -> None:
    assert measured(evidence) == english
    assert in_chinese(english) == chinese


def test_a_name_that_begins_like_another_and_a_unit_with_a_comma_are_told_apart() -> None:
    line = "disk share left 2 %, share 5 %, confidence 0.7 inferred, no switch telemetry, senders waiting 3"

    assert in_chinese(line) == "磁盘剩余比例 2 %，比例 5 %，把握 0.7（推断，没有交换机遥测），等待的发送方 3"
    assert in_chinese("the share of prompts fell from 20% to 5%") is None
    assert amount("41 of sampled paths") == "41（按抽样路径）"
