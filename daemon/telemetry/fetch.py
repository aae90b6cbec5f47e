"""Asks one exporter for its page over HTTP, putting every failure into words an operator can act on."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from daemon.model import SourceError, Target

BODY_MAX = 64 * 1024 * 1024
"""Bytes of one page. Judgement: a thousand times the largest engine page recorded."""

_SECRET = re.compile(
    r"(?i)(//)[^/@\s]+@|((?:token|key|password|secret|authorization|bearer)[=: ]+)[^\s&,;'\"]+"
)


class FetchError(Exception):
    """One page could not be fetched; the text holds no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How the daemon shows who it is. Files are read at every use, so that a rotated secret just works.

    bearer_token_file, or user with password_file; ca_file : trusted certificates instead of the system's;
    verify : False accepts any certificate. Raises nothing until used.
    """

    bearer_token_file: str = ""
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    verify: bool = True

    def headers(self) -> dict[str, str]:
        """Raises FetchError when a secret's file cannot be read."""
        headers = {"Accept-Encoding": "identity", "Accept": "text/plain;version=0.0.4"}
        if self.bearer_token_file:
            headers["Authorization"] = "Bearer " + _secret(self.bearer_token_file)
        elif self.user:
            password = _secret(self.password_file) if self.password_file else ""
            headers["Authorization"] = aiohttp.encode_basic_auth(self.user, password)
        return headers

    def context(self) -> ssl.SSLContext | bool:
        """For aiohttp. Raises SourceError when the certificate file is unusable."""
        if not self.verify:
            return False
        if not self.ca_file:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as problem:
            raise SourceError(f"ca_file {self.ca_file}: {problem}; give a readable PEM file") from problem


NOBODY = Credentials()


def _secret(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8 text"
        raise FetchError(f"secret file {path} cannot be read: {reason}") from problem


def redact(text: str) -> str:
    """The text without users in URLs and without what follows words such as token or password."""
    return _SECRET.sub(lambda m: "//***@" if m.group(1) else f"{m.group(2)}***", text)


async def fetch(
    session: aiohttp.ClientSession, target: Target, headers: dict[str, str], body_max: int = BODY_MAX
) -> tuple[bytes, float]:
    """The body of one page with the loop time at which its first byte was there.

    Exporters write a page at once when they get to it, so a busy engine's figures are as young as its first byte.
    Raises FetchError, TimeoutError (the caller bounds the time).
    """
    url = f"{target.scheme}://{target.address}{target.path}"
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            began = asyncio.get_running_loop().time()
            if answer.status != 200:
                raise FetchError(f"HTTP status {answer.status}, 200 is needed")
            if (answer.content_length or 0) > body_max:
                raise FetchError(
                    f"bad body: {answer.content_length} bytes announced, at most {body_max} are read"
                )
            return await _read(answer, body_max), began
    except TimeoutError:  # aiohttp's own time-outs are both this and a ClientError
        raise
    except aiohttp.ClientError as problem:
        raise FetchError(describe(problem)) from problem
    except OSError as problem:
        raise FetchError(redact(f"connection failed: {problem.strerror or problem}")) from problem
    except ValueError as problem:  # an address that no URL can be made of
        raise FetchError(redact(f"address or header not usable: {problem}")) from problem


async def _read(answer: aiohttp.ClientResponse, body_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > body_max:
            raise FetchError(f"bad body: more than {body_max} bytes")
        parts.append(part)
    return b"".join(parts)


def describe(problem: aiohttp.ClientError) -> str:
    """What went wrong, in words that tell a dead process from a dead name from a dead network."""
    if isinstance(problem, aiohttp.ClientConnectorDNSError):
        return f"DNS failure: {problem.os_error.strerror or problem.os_error}"
    if isinstance(problem, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return redact(f"TLS failure: {problem}")
    if isinstance(problem, aiohttp.ClientOSError) and problem.errno is not None:
        words = {
            errno.ECONNREFUSED: "connection refused: nothing listens there",
            errno.ECONNRESET: "connection reset by the exporter",
            errno.EHOSTUNREACH: "no route to the host",
            errno.ENETUNREACH: "network unreachable",
        }
        return words.get(problem.errno, redact(f"connection failed: {problem.strerror or problem}"))
    if isinstance(problem, aiohttp.ServerDisconnectedError):
        return "connection closed before an answer"
    if isinstance(problem, aiohttp.ClientPayloadError):
        return "bad body: cut off before its announced end"
    return redact(f"{type(problem).__name__}: {problem}")
