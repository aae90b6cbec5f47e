"""Sentences that a decision wrote in English, in another language: recognised by their shape, said with the same values.

The journal keeps what was said at the time; a sentence of last year is translated as well as one of this tick.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

import yaml

from daemon.casefile import HYPOTHESES, TO_DO
from daemon.patterns import PATTERNS
from daemon.web import measurements
from daemon.web.chinese import ZH
from daemon.web.runbooks import KIND_TEXTS, VERBS_ZH
from daemon.web.words import REASONS

SENTENCES: Mapping[str, str] = yaml.load(
    resources.files("daemon.web").joinpath("sentences.yaml").read_text("utf-8"),
    Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
)
"""English sentence with {holes} -> the Chinese one."""

_HOLES = (
    (r"n[a-z]?", r"[-+]?\d[\d.,]*(?: ?%)?"),  # a number
    (r"kind", "|".join(PATTERNS)),
    (r"w[bc]?", r"[^\s;]+?"),  # a word: a kind, a verb, a severity; it may also be a name
    (r"name|wid", r"[^\s;]+?"),  # a name, an id
    (r"scope", r"[a-z_]+ [^\s;]+?"),  # a thing: kind and name
    (r"t", r"[\d.]+ (?:ms|s|min|h|d)(?: \d+ (?:s|min|h))?"),  # a duration
    (r"time", r".+?[^.]"),  # a day and an hour
    (r"\w+", r".+?"),  # text, which is looked up in turn
)

_GOES_ON = re.compile(r"\)(?:\. |: )|% sure\)$")
"""What stands in the first brackets is not all that follows, or has a shape of its own."""
_AS_IT_IS = r"n[a-z]?|t|wid|names?|time|argument|price"
"""Holes of values and of names people gave: a pool may be called like any word."""


class Shape(NamedTuple):
    """A sentence as a pattern, and what it is in Chinese."""

    pattern: re.Pattern[str]
    chinese: str


def _shape(english: str, chinese: str) -> Shape:
    parts = re.split(r"\{(\w+)\}", english)
    made = "".join(
        re.escape(part) if number % 2 == 0 else f"(?P<{part}>{_hole(part)})"
        for number, part in enumerate(parts)
    )
    return Shape(re.compile(made, re.DOTALL), chinese)


def _hole(name: str) -> str:
    return next(pattern for rule, pattern in _HOLES if re.fullmatch(rule, name))


def _literal(english: str) -> int:
    return len(re.sub(r"\{\w+\}", "", english))


# What says most in its own words goes first: it is the least likely to fit by accident.
_SHAPES = [_shape(e, c) for e, c in sorted(SENTENCES.items(), key=lambda pair: -_literal(pair[0]))]

_NAMED: Mapping[str, str] = {
    **{word: ZH[word] for word in ("critical", "warning", "info")},
    **{
        "rack": "机架",
        "leaf": "叶交换机",
        "pool": "资源池",
        "version": "版本",
        "cluster": "集群",
        "gateway": "网关",
        "storage": "存储",
        "etcd": " etcd ",
        "serving": "服务",
        "preprocessing": "预处理",
        "training": "训练",
    },
    **{verb.value: word for verb, word in VERBS_ZH.items()},
    **{reason.value: ZH[text] for reason, text in REASONS.items()},
    **{kind: KIND_TEXTS[kind]["title"] for kind in PATTERNS},
}
"""Words that stand for one thing wherever they stand; any other single word may be somebody's name for something."""
_WORDS: Mapping[str, str] = {
    **ZH,
    **_NAMED,
    **{said: KIND_TEXTS[kind]["title"] for kind, said in HYPOTHESES.items()},
    **{pattern.title: KIND_TEXTS[kind]["title"] for kind, pattern in PATTERNS.items()},
    **{said: KIND_TEXTS[kind]["to_do"] for kind, said in TO_DO.items()},
}


@lru_cache(maxsize=8192)
def in_chinese(text: str) -> str:
    """The sentence in Chinese; what is not known stays as it was written.

    >>> in_chinese("weight 0.00: gpu_lost at gpu n01/gpu2 (i00001)")
    '权重 0.00：因 GPU n01/gpu2 的“GPU 掉卡”（i00001）'
    >>> in_chinese("NVRM: something else")
    'NVRM: something else'
    """
    if text in _WORDS:
        return _WORDS[text]
    if (told := measurements.in_chinese(text)) is not None:
        return told
    reason, mark, detail = text.partition(" (")
    if mark and reason in _WORDS and detail.endswith(")") and not _GOES_ON.search(detail):
        return f"{_WORDS[reason]}（{in_chinese(detail[:-1])}）"
    for shape in _SHAPES:
        found = shape.pattern.fullmatch(text)
        if found is not None:
            return shape.chinese.format(
                **{name: _held(name, text) for name, text in found.groupdict().items()}
            )
    title, mark, rest = text.partition(": ")
    if mark and title in _WORDS:
        return f"{_WORDS[title]}：{in_chinese(rest)}"
    for border, joint in ((r"(?<=\.) (?=[A-Z0-9])", ""), ("; ", "；")):
        parts = re.split(border, text)
        if len(parts) > 1:
            said = [in_chinese(part) for part in parts]
            # Beside what stays English the space stays as well.
            return (joint if joint or not set(said) & set(parts) else " ").join(said)
    if mark and (known := in_chinese(title)) != title:
        return f"{known}：{in_chinese(rest)}"
    if text.endswith(".") and in_chinese(text[:-1]) != text[:-1]:
        return in_chinese(text[:-1]) + "。"
    return text


def _held(name: str, text: str) -> str:
    """What stands in a hole: names and numbers stay as they are, text is a sentence of its own."""
    if re.fullmatch(_AS_IT_IS, name):
        return text
    return _NAMED.get(text, text) if re.fullmatch("w[bc]?", name) else in_chinese(text)
