"""What findings measured, in Chinese: lines that daemon.quantities wrote in English."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources

import yaml

_TOLD = yaml.load(
    resources.files("daemon.web").joinpath("measurements.yaml").read_text("utf-8"),
    Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
)
NAMES: Mapping[str, str] = _TOLD["names"]
"""Name of a measurement, with spaces and perhaps {n} -> the Chinese one."""
UNITS: Mapping[str, str] = _TOLD["units"]
"""Unit that is a word, perhaps with {n} -> what stands behind the number in Chinese."""

_NUMBER = r"-?[\d.,]+(?:e[+-]\d+)?"
_BEGIN = rf"(?:{_NUMBER}|not measured|without end)"


def _pattern(english: str) -> str:
    return re.escape(english).replace(re.escape("{n}"), r"(\d+)")


# The longest first: "share" must not be taken for the beginning of "share left".
_ORDERED = sorted(NAMES, key=len, reverse=True)
_NAME = "|".join(re.sub(r"\(\\d\+\)", r"\\d+", _pattern(name)) for name in _ORDERED)
_ONE = re.compile(rf"({_NAME}) ({_BEGIN}[^()]*?)(?: \(against ([^()]+)\))?")
_NEXT = re.compile(rf", (?=(?:{_NAME}) {_BEGIN})")
_VALUE = re.compile(rf"({_NUMBER}(?: ?%)?)(?: (?=\D))?(.*)")


def in_chinese(text: str) -> str | None:
    """The measurements of a line in Chinese, None where it is no such line.

    >>> in_chinese("sm clock 1300 MHz (against 1900 MHz), slower by 46.1 %, replicas slow 3 of 12")
    'SM 频率 1300 MHz（对照 1900 MHz），变慢 46.1 %，变慢的副本 3 / 12'
    >>> in_chinese("something else 3")
    """
    found = [_ONE.fullmatch(part) for part in _NEXT.split(text)]
    if not all(found):
        return None
    return "，".join(_said(*one.groups()) for one in found if one is not None)


def named(name: str) -> str:
    """The Chinese name of a measurement, with underscores or spaces; itself where it has none.

    >>> named("slower_at_equal_load"), named("bubble_of_stage_2"), named("else_where")
    ('同等负载下变慢', '第 2 级的气泡', 'else where')
    """
    plain = name.replace("_", " ")
    return _filled(NAMES, plain) or plain


def _said(name: str, value: str, against: str | None) -> str:
    beside = f"（对照 {amount(against)}）" if against else ""
    return f"{named(name)} {amount(value)}{beside}"


def amount(text: str) -> str:
    """A value with its unit as daemon.quantities writes it, in Chinese.

    >>> amount("3 of 12 on the node"), amount("22 requests"), amount("34 ms"), amount("not measured")
    ('3 / 12（该节点）', '22 个请求', '34 ms', '未测得')
    """
    if text in ("not measured", "without end"):
        return {"not measured": "未测得", "without end": "没有尽头"}[text]
    found = _VALUE.fullmatch(text)
    unit = _filled(UNITS, found[2]) if found else None
    return f"{found[1]} {unit}".replace(" （", "（") if found and unit else text


def _filled(words: Mapping[str, str], text: str) -> str | None:
    if text in words:
        return words[text]
    for english, chinese in words.items():
        if "{n}" in english and (found := re.fullmatch(_pattern(english), text)):
            return chinese.replace("{n}", found[1])
    return None
