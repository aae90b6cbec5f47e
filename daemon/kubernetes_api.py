"""The Kubernetes API: credentials of a kubeconfig or of the pod, plain dictionaries as objects, errors as sentences."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.model import Hopeless, TryAgain

MANAGER = "tidewarden"
"""Our name as field manager, and of what reports Events."""
PAGE = 500
WATCH_S = 240.0
"""How long one watch lasts; bookmarks come about every minute. client-go asks for 5 to 10 minutes."""
SAID_MAX = 300
MERGE_PATCH = "application/merge-patch+json"

Json = dict[str, Any]

_SECRETS = re.compile(r"(?i)bearer\s+\S+|eyJ[\w-]+\.[\w-]+\.[\w-]+")


class NotFound(Hopeless):
    """404: no such object, or the API server does not know this kind of object."""


class Conflict(TryAgain):
    """409: somebody else changed the object since it was read."""


class Gone(TryAgain):
    """410: a watch asks for changes that the API server has forgotten."""


class Throttled(TryAgain):
    """429: asked too often, or a disruption budget forbids an eviction."""


@dataclass(slots=True)
class Api:
    """One API server.

    kubeconfig : path, "" = the service account of this pod, else $KUBECONFIG, else ~/.kube/config. context : of it,
    "" = the current one. timeout_s : for one whole request, however slowly the answer drips.
    """

    kubeconfig: str = ""
    context: str = ""
    timeout_s: float = 10.0
    _client: Any = field(default=None, repr=False, compare=False)
    _secrets: tuple[str, ...] = field(default=(), repr=False, compare=False)

    async def get(self, path: str, **query: str) -> Json:
        return await self._ask("GET", path, query)

    async def items(self, path: str, **query: str) -> list[Json]:
        """All objects of a list, page by page."""
        return (await self.listed(path, **query))[0]

    async def listed(self, path: str, **query: str) -> tuple[list[Json], str]:
        """All objects of a list, with the resourceVersion from which a watch goes on."""
        found: list[Json] = []
        cursor = {"limit": str(PAGE)}
        while True:
            page = await self._ask("GET", path, {**query, **cursor})
            found += page.get("items") or []
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return found, str(meta.get("resourceVersion", ""))
            cursor["continue"] = str(meta["continue"])

    async def patch(self, path: str, body: Json) -> Json:
        """A merge patch: None takes a key away, lists are replaced as a whole."""
        return await self._ask("PATCH", path, {"fieldManager": MANAGER}, body, MERGE_PATCH)

    async def post(self, path: str, body: Json) -> Json:
        return await self._ask("POST", path, {"fieldManager": MANAGER}, body, "application/json")

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[tuple[str, Json]]:
        """(type, object) of every change after `version`, bookmarks included, until the server ends the stream.

        Raises Gone when the server has forgotten `version`: list again. Raises TryAgain for a broken stream.
        """
        import httpx2

        asked = {**query, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        asked["timeoutSeconds"] = f"{WATCH_S:.0f}"
        # The server is to end the stream before: a connection that is silent for longer is dead.
        patience = httpx2.Timeout(self.timeout_s, read=WATCH_S + self.timeout_s)
        client = await self._connected()
        try:
            async with client.stream("GET", path, params=asked, timeout=patience) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise self._trouble(answer, "GET", path)
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield self._change(line, path)
        except httpx2.HTTPError as error:
            raise TryAgain(self._clean(f"Kubernetes: watching {path} broke off: {_word(error)}")) from None

    def _change(self, line: str, path: str) -> tuple[str, Json]:
        try:
            event = json.loads(line)
            kind, thing = str(event["type"]), event["object"]
        except (ValueError, KeyError, TypeError):
            raise TryAgain(f"Kubernetes: watching {path} broke off in the middle of a change") from None
        if kind == "ERROR":
            said = self._clean(str(thing.get("message", "no message")))
            if thing.get("code") == 410:
                raise Gone(f"Kubernetes: watching {path}: {said}")
            raise TryAgain(f"Kubernetes: watching {path}: {said}")
        return kind, thing

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # -- asking ------------------------------------------------------------------------------------------

    async def _connected(self) -> Any:
        """The client with its credentials, made at the first use: kubeconfig and certificates may come late."""
        if self._client is None:
            self._client = await asyncio.to_thread(self._connect)
        return self._client

    def _connect(self) -> Any:
        try:
            import httpx2
            from lightkube.config.client_adapter import AsyncClient, ConnectionParams
            from lightkube.config.kubeconfig import KubeConfig
            from lightkube.core.exceptions import ConfigError
        except ImportError:
            raise Hopeless(
                "Kubernetes needs the extra of that name: pip install 'tidewarden[kubernetes]'"
            ) from None
        where = self.kubeconfig or "the service account or the default kubeconfig"
        try:
            found = KubeConfig.from_file(self.kubeconfig) if self.kubeconfig else KubeConfig.from_env()
            chosen = found.get(self.context or None)
            if chosen is None or chosen.user is None:
                raise Hopeless(f"Kubernetes: {where} names no user; add one with a token or a certificate")
            self._secrets = tuple(s for s in (chosen.user.token, chosen.user.password) if s)
            return AsyncClient(chosen, ConnectionParams(timeout=httpx2.Timeout(self.timeout_s)))
        except (ConfigError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            what = (
                str(error)
                if isinstance(error, ConfigError | OSError)
                else f"{type(error).__name__}: it is not a kubeconfig"
            )
            raise Hopeless(
                self._clean(
                    f"Kubernetes: {where}: {what}; set kubeconfig and context of this backend, or run as a pod with a service account"
                )
            ) from None

    async def _ask(
        self, method: str, path: str, query: Mapping[str, str], body: Json | None = None, kind: str = ""
    ) -> Json:
        client = await self._connected()
        import httpx2

        headers = {"Accept": "application/json"} | ({"Content-Type": kind} if kind else {})
        content = None if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await client.request(
                    method, path, params=dict(query), content=content, headers=headers
                )
        except TimeoutError:
            raise TryAgain(
                f"Kubernetes: {method} {path} gave no answer within {self.timeout_s:g} s"
            ) from None
        except httpx2.HTTPError as error:
            raise self._unreached(method, path, error) from None
        except Exception as error:
            # A credential plugin or token file that fails says so only in the middle of a request.
            if type(error).__module__.startswith("lightkube"):
                raise Hopeless(
                    f"Kubernetes: no credentials: {type(error).__name__}; run the exec plugin or read the token file of the kubeconfig by hand"
                ) from None
            raise
        if answer.status_code >= 300:
            raise self._trouble(answer, method, path)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise TryAgain(
                f"Kubernetes: {method} {path} answered no JSON object; is this address an API server?"
            )
        return found

    def _unreached(self, method: str, path: str, error: Exception) -> Exception:
        word = _word(error)
        if "CERTIFICATE_VERIFY_FAILED" in word:
            return Hopeless(
                self._clean(
                    f"Kubernetes: the API server's certificate is not trusted ({word}); correct certificate-authority in the kubeconfig"
                )
            )
        return TryAgain(
            self._clean(f"Kubernetes: {method} {path}: {word}; is the API server up, and its address right?")
        )

    def _trouble(self, answer: Any, method: str, path: str) -> Exception:
        """A refused request as an exception that says what to do."""
        code = int(answer.status_code)
        said = self._said(answer)
        delay_s = _seconds(answer.headers.get("Retry-After", ""))
        asked = f"{method} {path}"
        if code == 401:
            return Hopeless(
                f"Kubernetes does not accept our credentials (401): {said}; renew the token or certificate of the kubeconfig"
            )
        if code == 403:
            return Hopeless(
                f"Kubernetes forbids {asked} (403): {said}; grant what `tidewarden config check --live` lists"
            )
        if code == 404:
            return NotFound(
                f"Kubernetes has no {path} (404): {said}; somebody removed or renamed it, or the name in the configuration is wrong"
            )
        if code == 409:
            return Conflict(f"Kubernetes: {asked} met a change by somebody else (409): {said}", 0.2)
        if code == 410:
            return Gone(f"Kubernetes: {asked} is too old (410): {said}")
        if code == 429:
            return Throttled(f"Kubernetes: {asked} is held back (429): {said}", delay_s)
        if code >= 500:
            return TryAgain(f"Kubernetes: {asked} failed with {code}: {said}", delay_s)
        return Hopeless(f"Kubernetes refused {asked} ({code}): {said}")

    def _said(self, answer: Any) -> str:
        try:
            status = answer.json()
            causes = [c.get("message", "") for c in (status.get("details") or {}).get("causes") or []]
            text = " ".join(part for part in [str(status.get("message", "")), *causes] if part)
        except (ValueError, AttributeError):
            text = "no reason given"
        return self._clean(" ".join(text.split())[:SAID_MAX] or "no reason given")

    def _clean(self, text: str) -> str:
        """Without anything that could be a credential, whoever put it there."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _SECRETS.sub("***", text)


def _word(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(text: str) -> float:
    """Of a Retry-After header; 1 when it is absent or a date.

    >>> _seconds("7"), _seconds(""), _seconds("Wed, 21 Oct 2026 07:28:00 GMT")
    (7.0, 1.0, 1.0)
    """
    try:
        found = float(text)
    except ValueError:
        return 1.0
    return found if math.isfinite(found) and found > 0 else 1.0


def annotated(thing: Json) -> dict[str, str]:
    return (thing.get("metadata") or {}).get("annotations") or {}


def labels(thing: Json) -> dict[str, str]:
    return (thing.get("metadata") or {}).get("labels") or {}


def gpus_of(spec: Json, resources: Sequence[str]) -> int:
    """GPUs a pod asks for: of its containers together, or of its largest init container.

    >>> gpus_of({"containers": [{"resources": {"requests": {"nvidia.com/gpu": "4", "cpu": "8"}}}]}, ("nvidia.com/",))
    4
    """

    def of(container: Json) -> int:
        limits = container.get("resources") or {}
        wanted = {**(limits.get("limits") or {}), **(limits.get("requests") or {})}
        return sum(
            int(count)
            for name, count in wanted.items()
            if name.startswith(tuple(resources)) and str(count).isdigit()
        )

    running = sum(of(c) for c in spec.get("containers") or [])
    return max([running, *(of(c) for c in spec.get("initContainers") or [])])


def version(thing: Json) -> str:
    """A patch that carries it is refused with 409 when somebody else was faster."""
    return str(thing["metadata"]["resourceVersion"])


def manager_of(thing: Json, *fields: str) -> str:
    """Who set a field last, "" when the API server does not tell.

    >>> manager_of({"metadata": {"managedFields": [{"manager": "kubectl-cordon", "fieldsV1": {"f:spec": {"f:unschedulable": {}}}}]}},
    ...            "spec", "unschedulable")
    'kubectl-cordon'
    """
    for entry in (thing.get("metadata") or {}).get("managedFields") or []:
        here: Any = entry.get("fieldsV1") or {}
        for name in fields:
            here = here.get(f"f:{name}") if isinstance(here, dict) else None
        if here is not None:
            return str(entry.get("manager", ""))
    return ""
