"""Talks to the running daemon over its API."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.cli.trouble import Trouble

DEFAULT_URL = "http://127.0.0.1:9095"
TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Client:
    """url : without a path. token_file : "" = none."""

    url: str
    token_file: str = ""

    def get(self, path: str) -> Any:
        """The answer's JSON. Raises Trouble."""
        return self._ask(
            urllib.request.Request(self.url + path, headers={"Accept": "application/json", **self._known()})
        )

    def text(self, path: str) -> str:
        """The answer as text, e.g. a page. Raises Trouble."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "text/*", **self._known()})
        return self._open(request).decode("utf-8")

    def post(self, path: str, body: Any = None) -> Any:
        """Send a write with the token. Raises Trouble, also when there is no token to send."""
        if not self.token_file:
            raise Trouble(
                "this changes something and needs the token: give --token-file FILE, set TIDEWARDEN_TOKEN_FILE, or -c "
                "with the configuration that names web.token_file"
            )
        headers = {
            **self._token(),
            "Content-Type": "application/json",
            "X-Operator": os.environ.get("SUDO_USER") or os.environ.get("USER") or "cli",
        }
        data = b"" if body is None else json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + path, data=data, headers=headers, method="POST"))

    def _known(self) -> dict[str, str]:
        """The header with the token where it can be read: most daemons let everybody look."""
        try:
            return self._token() if self.token_file else {}
        except Trouble:
            return {}

    def _token(self) -> dict[str, str]:
        """The header with the token. Raises Trouble."""
        try:
            token = Path(self.token_file).read_text("utf-8").strip()
        except OSError as error:
            raise Trouble(
                f"token file {self.token_file}: {error.strerror}; run as a user who may read it"
            ) from error
        return {"Authorization": f"Bearer {token}"}

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            return json.loads(self._open(request))
        except ValueError as error:
            raise Trouble(f"{self.url} is no tidewarden daemon: {error}; check --url") from error

    def _open(self, request: urllib.request.Request) -> bytes:
        # The daemon is asked directly: a proxy of the environment is meant for the world outside.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            raise Trouble(_refusal(error)) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                raise Trouble(
                    f"nothing answers at {self.url}: start the daemon (systemctl start tidewarden, or tidewarden run -c "
                    "FILE), or name its address with --url"
                ) from error
            raise Trouble(f"{self.url} cannot be reached: {error.reason}; check --url") from error
        except TimeoutError as error:
            raise Trouble(f"{self.url} did not answer within {TIMEOUT_S:g} s; see its log") from error
        except (ValueError, OSError) as error:
            raise Trouble(f"{self.url} is no tidewarden daemon: {error}; check --url") from error


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        body = json.loads(error.read())
        return str(body["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {error.code} from {error.url}; is this a tidewarden daemon?"
