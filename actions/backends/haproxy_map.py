"""The map of an HAProxy process that says which share of a class or pool is let in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from daemon.model import Hopeless, TryAgain

Ask = Callable[[str], Awaitable[str]]
"""A command of the runtime socket -> what HAProxy answers."""
UNKNOWN = ("Unknown map", "unknown map")


async def set_share(ask: Ask, path: str, key: str, share: float) -> None:
    """Write whole per cent under the key. Raises Hopeless when HAProxy refuses."""
    percent = round(100.0 * share)
    verb = "set" if await share_of(ask, path, key) is not None else "add"
    answer = (await ask(f"{verb} map {path} {key} {percent}")).strip()
    if answer:
        raise Hopeless(
            f"HAProxy refused `{verb} map {path} {key} {percent}`: {answer}{_remedy(answer, path)}"
        )


async def share_of(ask: Ask, path: str, key: str) -> float | None:
    """The share under the key, None when the map has no such key: then all is let in. Raises Hopeless."""
    answer = await ask(f"show map {path}")
    if any(word in answer for word in UNKNOWN):
        raise Hopeless(f"HAProxy answers {answer.strip()!r}{_remedy(answer, path)}")
    # "0x55d0c4e7b2a0 chat/batch 0"
    rows = [line.split() for line in answer.splitlines()]
    found = [row[2] for row in rows if len(row) == 3 and row[1] == key]
    if not found:
        return None
    if not found[-1].isdigit():
        raise TryAgain(f"map {path} holds {found[-1]!r} for {key}; write whole per cent")
    return int(found[-1]) / 100.0


def farthest(shares: Sequence[float | None], wanted: float) -> float:
    """Of several processes the one farthest from what is wanted; a key that is absent lets all in."""
    return max((1.0 if s is None else s for s in shares), key=lambda s: abs(s - wanted))


def _remedy(answer: str, path: str) -> str:
    if any(word in answer for word in UNKNOWN):
        return f"; haproxy.cfg must use the map, as `map_str_int({path},100)`: see docs/en/gateway.md"
    return "; give the socket `level admin` in haproxy.cfg" if "ermission" in answer else ""
