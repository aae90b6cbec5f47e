"""The language of the pages: which one a reader wants, and the words in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from markupsafe import Markup

from daemon.web.chinese import ZH
from daemon.web.runbooks import KIND_TEXTS, LANGUAGES

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


def said_in(language: str) -> Words:
    """A guard's answer, "reason (detail)": the reason in the language, the detail as it stands."""
    words = words_in(language)

    def said(text: str) -> Markup:
        reason, mark, detail = text.partition(" (")
        return words(reason) + mark + detail

    return said


def titles_in(language: str) -> Callable[[str, str], str]:
    """A kind of incident and its English title -> its title in the language."""

    def title(kind: str, english: str) -> str:
        return KIND_TEXTS[kind]["title"] if language == "zh" and kind in KIND_TEXTS else english

    return title
