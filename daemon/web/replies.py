"""Remembers what a write was answered, so that one sent twice with the same Idempotency-Key is done once."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.web.errors import Conflict, Unusable

KEPT_S = 86400.0
KEPT_MAX = 10_000
KEY_MAX = 255


@dataclass(frozen=True, slots=True)
class Reply:
    """request : method, path and body it was given for."""

    at: float
    request: tuple[str, ...]
    status: int
    text: str


@dataclass(slots=True)
class Replies:
    """(caller, key) -> reply. Gone with the process, as are the commands that still wait for their tick."""

    kept: dict[tuple[str, str], Reply] = field(default_factory=dict)

    def find(self, caller: str, key: str | None, request: tuple[str, ...], at: float) -> Reply | None:
        """The reply to the same write sent before, None for a new one. Raises Unusable, Conflict."""
        if key is None:
            return None
        if not 0 < len(key) <= KEY_MAX or not all("!" <= c <= "~" for c in key):
            raise Unusable(
                f"Idempotency-Key has {len(key)} characters; give 1 to {KEY_MAX} visible ASCII ones"
            )
        found = self.kept.get((caller, key))
        if found is None or at - found.at > KEPT_S:
            return None
        if found.request != request:
            raise Conflict(
                "key used before", f"Idempotency-Key {key} was used for another request; take a new one"
            )
        return found

    def keep(self, caller: str, key: str | None, reply: Reply) -> None:
        if key is None:
            return
        if len(self.kept) >= KEPT_MAX:
            del self.kept[next(iter(self.kept))]
        self.kept[caller, key] = reply
