"""The language of the pages: which one a reader wants, and the words in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from markupsafe import Markup

from daemon.patterns import PATTERNS
from daemon.quantities import UNKNOWN, is_number, quantity
from daemon.web import measurements
from daemon.web.chinese import ZH
from daemon.web.runbooks import KIND_TEXTS, LANGUAGES
from daemon.web.sentences import in_chinese

COOKIE = "tidewarden_lang"
KEPT_S = 366 * 86400
Words = Callable[..., Markup]


def language_of(request: web.Request) -> str:
    """?lang= when it is known, else what was chosen before, else the browser's first language."""
    for asked in (request.query.get("lang", ""), request.cookies.get(COOKIE, "")):
        if asked in LANGUAGES:
            return asked
    return "zh" if request.headers.get("Accept-Language", "").lower().startswith("zh") else "en"


def words_in(language: str) -> Words:
    """What a template's `_` does: the words in the language, with values put in and escaped."""
    table = ZH if language == "zh" else {}

    def words(text: str, **values: Any) -> Markup:
        found = table.get(text, text)
        return Markup(found).format(**values) if values else Markup.escape(found)

    return words


def plain_in(language: str) -> Callable[[str], str]:
    """What was written in English, in the language as far as it is known."""
    return in_chinese if language == "zh" else str


def said_in(language: str) -> Callable[[str], Markup]:
    """A sentence that a decision wrote, in the language as far as it is known, escaped."""

    plain = plain_in(language)

    def said(text: str) -> Markup:
        return Markup.escape(plain(text))

    return said


def named_in(language: str) -> Callable[[str], str]:
    """The name of a measurement, in the language as far as it is known."""
    return measurements.named if language == "zh" else lambda name: name.replace("_", " ")


def amount_in(language: str) -> Callable[[Any, str], str]:
    """A measurement with its unit, in the language; a dash for what was not measured."""
    worded = measurements.amount if language == "zh" else str
    return lambda value, unit: worded(quantity(value, unit)) if is_number(value) else UNKNOWN


def titles_in(language: str) -> Callable[[str, str], str]:
    """A kind of incident and its English title -> its title in the language."""

    def title(kind: str, english: str) -> str:
        if language == "zh" and kind in KIND_TEXTS:
            return KIND_TEXTS[kind]["title"]
        return PATTERNS[kind].title if kind in PATTERNS else english

    return title
