"""Events on the objects we touch, for whoever asks `kubectl describe`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from daemon.kubernetes_api import MANAGER, Api, Json
from daemon.model import Hopeless, Step, TryAgain

NOTE_MAX = 1000
"""The API takes 1,024 bytes."""


@dataclass(frozen=True, slots=True)
class Events:
    """clock : wall time. identity : the instance that reports. is_on : off where the right to write them is not given."""

    api: Api
    clock: Callable[[], float]
    identity: str
    is_on: bool = True

    async def tell(self, thing: Json, step: Step, reason: str, note: str) -> None:
        """Best effort: what was done stands, whether it could be told or not. Once for a step and object."""
        if not self.is_on:
            return
        said = Said(f"{step.id} {reason}", self.clock(), self.identity, step.verb.value, reason, note)
        with contextlib.suppress(Hopeless, TryAgain):
            await write(self.api, thing, said)


@dataclass(frozen=True, slots=True)
class Said:
    """One Event. key : with the object, what makes it one: the same key twice is the same Event. at : seconds since the
    epoch. by : the instance that reports. kind : Normal or Warning."""

    key: str
    at: float
    by: str
    action: str
    reason: str
    note: str
    kind: str = "Normal"


async def write(api: Api, thing: Json, said: Said) -> None:
    """Write an Event on an object, which needs apiVersion, kind and metadata. Raises Conflict when it stands there already."""
    meta = thing["metadata"]
    # Only the default namespace takes Events on what has no namespace.
    space = meta.get("namespace") or "default"
    key = hashlib.sha256(f"{said.key} {meta.get('uid', '')}".encode()).hexdigest()[:16]
    await api.post(
        f"/apis/events.k8s.io/v1/namespaces/{space}/events",
        {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{key}"[-253:], "namespace": space},
            "eventTime": micro_time(said.at),
            "reportingController": f"tidewarden.io/{MANAGER}",
            "reportingInstance": said.by[:128],
            "action": said.action,
            "reason": said.reason,
            "type": said.kind,
            "note": said.note.encode()[:NOTE_MAX].decode(errors="ignore"),
            "regarding": {
                "apiVersion": thing.get("apiVersion", ""),
                "kind": thing.get("kind", ""),
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "uid": meta.get("uid", ""),
            },
        },
    )


def micro_time(at: float) -> str:
    """A MicroTime of the API.

    >>> micro_time(1_700_000_000.25)
    '2023-11-14T22:13:20.250000Z'
    """
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_of(text: str) -> float:
    """Seconds since the epoch of a time of the API. Raises ValueError.

    >>> seconds_of("2023-11-14T22:13:20Z"), seconds_of("2023-11-14T22:13:20.250000Z")
    (1700000000.0, 1700000000.25)
    """
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
