"""What may be wrong with a request.

Refused  a write that may not be made now, or not by this caller
Missing  what is asked for does not exist
Unusable the query or the body cannot be understood
Conflict the write does not fit what is the case now
"""

from __future__ import annotations


class Refused(Exception):
    """status : 401, 403, 429 or 503; the message says why with the remedy."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Missing(Exception):
    """The message names what is missing, and where to look."""


class Unusable(Exception):
    """The message says what was found and what is allowed."""


class Conflict(Exception):
    """title : in a few words; the message says what is the case instead."""

    def __init__(self, title: str, message: str) -> None:
        super().__init__(message)
        self.title = title
