"""Who may do what: bearer tokens with scopes, and browser sessions opened with one."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from aiohttp import web

from daemon.settings import Settings
from daemon.web.errors import Refused

COOKIE = "tidewarden_session"
SESSION_S = 12 * 3600.0
SESSIONS_MAX = 1000
TRIES_MAX = 10
TRIES_S = 60.0
"""Wrong tokens an address may present within this time before it has to wait."""


class Scope(IntEnum):
    """Each includes the ones before it."""

    READ = 1
    APPROVE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """name : of the token, "" for the one of web.token_file. digest : of the token that was shown."""

    name: str
    scope: Scope
    digest: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser. csrf : what its forms must carry."""

    caller: Caller
    csrf: str
    until: float


@dataclass(slots=True)
class Door:
    """Remembers who is signed in, and who tried wrong tokens. Both are gone with the process."""

    sessions: dict[str, Session] = field(default_factory=dict)
    tries: dict[str, list[float]] = field(default_factory=dict)

    def open(self, caller: Caller, at: float) -> str:
        """Sign a browser in; its secret for the cookie."""
        self.sessions = {k: s for k, s in self.sessions.items() if at < s.until}
        while len(self.sessions) >= SESSIONS_MAX:
            del self.sessions[next(iter(self.sessions))]
        secret = secrets.token_urlsafe(32)
        self.sessions[_hashed(secret)] = Session(caller, secrets.token_urlsafe(24), at + SESSION_S)
        return secret

    def close(self, secret: str) -> None:
        self.sessions.pop(_hashed(secret), None)

    def session(self, secret: str, settings: Settings, at: float) -> Session | None:
        """The session of a cookie, None when there is none, it is over, or its token is no longer valid."""
        found = self.sessions.get(_hashed(secret))
        if found is None or at >= found.until:
            return None
        is_valid = any(hmac.compare_digest(c.digest, found.caller.digest) for c in callers(settings))
        return found if is_valid else None

    def check_tries(self, address: str, at: float) -> None:
        """Raises Refused when the address has shown too many wrong tokens lately."""
        recent = [t for t in self.tries.get(address, ()) if at - t < TRIES_S]
        self.tries[address] = recent
        if len(recent) >= TRIES_MAX:
            raise Refused(
                429, f"{TRIES_MAX} wrong tokens within {TRIES_S:.0f} s; wait a minute and try again"
            )

    def tried(self, address: str, at: float) -> None:
        """Count a wrong token."""
        if len(self.tries) > SESSIONS_MAX:
            self.tries = {a: t for a, t in self.tries.items() if t and at - t[-1] < TRIES_S}
        self.tries.setdefault(address, []).append(at)


def callers(settings: Settings) -> Iterator[Caller]:
    """Who holds a token now; the files are read at every use. Raises Refused when one cannot be read."""
    own = settings.web
    named = [(t.name, t.token_file, Scope[t.scope.upper()]) for t in own.tokens]
    for name, file, scope in [*([("", own.token_file, Scope.ADMIN)] if own.token_file else []), *named]:
        key = f"web.tokens {name}" if name else "web.token_file"
        try:
            secret = Path(file).read_bytes().strip()
        except OSError as error:
            raise Refused(503, f"{key} {file}: {error.strerror}; make it readable for this user") from error
        if secret:
            yield Caller(name, scope, hashlib.sha256(secret).digest())


def caller_of_token(settings: Settings, token: str) -> Caller | None:
    """Whose token this is; every one is compared, so that the time taken tells nothing."""
    digest = hashlib.sha256(token.strip().encode()).digest()
    found = None
    for caller in callers(settings):
        if hmac.compare_digest(caller.digest, digest):
            found = caller
    return found


def may_sign_in(settings: Settings) -> bool:
    return bool(settings.web.token_file or settings.web.tokens)


def identify(
    door: Door, settings: Settings, request: web.Request, at: float
) -> tuple[Caller | None, Session | None]:
    """Who asks: by the Authorization header, else by the session's cookie. Raises Refused for a wrong token."""
    header = request.headers.get("Authorization", "")
    if header:
        return _of_header(door, settings, header, request.remote or "", at), None
    secret = request.cookies.get(COOKIE, "")
    session = door.session(secret, settings, at) if secret else None
    return (session.caller, session) if session else (None, None)


def require(settings: Settings, caller: Caller | None, scope: Scope) -> Caller:
    """Let pass who has the scope. Raises Refused with the remedy."""
    if not may_sign_in(settings):
        raise Refused(
            403,
            "writes are switched off: put a secret into a file and name it in web.token_file, then restart",
        )
    if caller is None:
        raise Refused(
            401,
            "this needs the header `Authorization: Bearer TOKEN`, with a token of web.token_file or web.tokens",
        )
    if caller.scope < scope:
        raise Refused(
            403,
            f"the token {caller.name or 'of web.token_file'} has the scope {caller.scope.name.lower()}, and this "
            f"needs {scope.name.lower()}; use another token, or raise its scope in web.tokens",
        )
    return caller


def check_form(session: Session | None, given: str, request: web.Request) -> None:
    """Let a form pass only when our own page was the one to send it. Raises Refused."""
    origin = request.headers.get("Origin", "")
    is_ours = not origin or origin == "null" or origin.split("://", 1)[-1] == request.host
    if session is None or not is_ours or not hmac.compare_digest(given.encode(), session.csrf.encode()):
        raise Refused(
            403, "this form did not come from a page of this daemon, or its session is over; load it again"
        )


def _of_header(door: Door, settings: Settings, header: str, address: str, at: float) -> Caller | None:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return None
    door.check_tries(address, at)
    caller = caller_of_token(settings, token)
    if caller is None and may_sign_in(settings):
        door.tried(address, at)
        raise Refused(403, "the token is not one of web.token_file or web.tokens")
    return caller


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
