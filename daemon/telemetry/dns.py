"""Asks the system's name server for SRV records, which the standard library cannot."""

from __future__ import annotations

import asyncio
import secrets
import struct
from pathlib import Path

from daemon.model import SourceError

_SRV = 33
_CODES = {1: "malformed question", 2: "the server failed", 3: "no such name", 5: "refused"}


async def ask_srv(name: str, servers: tuple[tuple[str, int], ...] = ()) -> list[str]:
    """host:port of every SRV record, sorted. Raises SourceError or OSError; bounded by the caller's time-out.

    servers : (host, port) of name servers; empty = those of /etc/resolv.conf. Over UDP, one server after the other.
    """
    problem: Exception = SourceError("no name server in /etc/resolv.conf")
    for server in servers or system_servers(Path("/etc/resolv.conf")):
        try:
            async with asyncio.timeout(2.0):
                return await _ask(name, server)
        except (OSError, SourceError, TimeoutError) as found:
            problem = (
                found if str(found) else SourceError(f"name server {server[0]} did not answer within 2 s")
            )
    raise problem


def system_servers(path: Path) -> tuple[tuple[str, int], ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    return tuple((w[1], 53) for w in words if len(w) > 1 and w[0] == "nameserver")


async def _ask(name: str, server: tuple[str, int]) -> list[str]:
    loop = asyncio.get_running_loop()
    number = secrets.randbelow(65536)
    answer: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Waiting(number, answer), remote_addr=server)
    try:
        transport.sendto(question(name, number))
        return read_srv(await answer)
    finally:
        transport.close()


class _Waiting(asyncio.DatagramProtocol):
    """Hands over the first datagram that answers the question."""

    def __init__(self, number: int, answer: asyncio.Future[bytes]) -> None:
        self._number = number
        self._answer = answer

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answer.done() and data[:2] == struct.pack(">H", self._number):
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


def question(name: str, number: int) -> bytes:
    """A recursive SRV question (RFC 1035, RFC 2782)."""
    labels = [label.encode("idna") for label in name.strip(".").split(".")]
    if not all(0 < len(label) < 64 for label in labels):
        raise SourceError(f"{name!r} is no DNS name: every part needs 1-63 bytes")
    body = b"".join(bytes([len(label)]) + label for label in labels)
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + body + b"\0" + struct.pack(">2H", _SRV, 1)


def read_srv(message: bytes) -> list[str]:
    """host:port of the SRV records of an answer, sorted. Raises SourceError for an error or a broken message."""
    try:
        _, flags, questions, answers, _, _ = struct.unpack_from(">6H", message)
        if flags & 0x0F:
            raise SourceError(_CODES.get(flags & 0x0F, f"error code {flags & 0x0F}"))
        if flags & 0x0200:
            raise SourceError("the answer did not fit into one datagram; split the service name")
        at = 12
        for _ in range(questions):
            at = _name(message, at)[1] + 4
        found = []
        for _ in range(answers):
            at = _name(message, at)[1]
            kind, _, _, length = struct.unpack_from(">HHIH", message, at)
            at += 10
            if kind == _SRV:
                port = struct.unpack_from(">H", message, at + 4)[0]
                found.append(f"{_name(message, at + 6)[0]}:{port}")
            at += length
    except (struct.error, IndexError, UnicodeDecodeError) as problem:
        raise SourceError(f"broken DNS answer of {len(message)} bytes") from problem
    return sorted(found)


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A possibly compressed name and the offset behind it; at most 64 jumps, so that a loop ends."""
    parts: list[str] = []
    end = -1
    for _ in range(192):
        length = message[at]
        if length >= 0xC0:
            end = at + 2 if end < 0 else end
            at = ((length & 0x3F) << 8) | message[at + 1]
        elif length == 0:
            return ".".join(parts), at + 1 if end < 0 else end
        else:
            parts.append(message[at + 1 : at + 1 + length].decode("ascii"))
            at += 1 + length
    raise SourceError("broken DNS answer: a name refers to itself")
