"""What a command reports instead of a result."""

from __future__ import annotations


class Trouble(Exception):
    """One sentence with the remedy. code : the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
