"""Hears that nodes are about to be taken back: from a file, the cloud's metadata address, taints of Kubernetes nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from daemon.clock import Clock
from daemon.kubernetes_api import Api
from daemon.model import NAN, Entity, Event, Hopeless, Scrape, SourceError, TryAgain

KIND = "spot_reclaim"
TIMEOUT_S = 3.0
"""A metadata service answers from the host itself."""
CLOUDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "aws": ("/latest/meta-data/spot/instance-action", {}),
    "gcp": ("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}),
    "azure": ("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}),
}
"""Cloud -> path of its notice, headers it wants. Sources: the vendors' documentation of spot instances."""
WARNING_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
"""How long a node stays after a notice that names no time."""


@dataclass(frozen=True, slots=True)
class Notice:
    """node : the one that goes. until : when, seconds since the epoch."""

    node: str
    until: float


def notices_in(text: str, now: float) -> list[Notice]:
    """Notices of a file: JSON lines or a JSON list of {"node": .., "until": ISO time or seconds since the epoch}.

    Past ones are left out. Raises ValueError that names the entry that is none.
    """
    found = []
    text = text.strip()
    rows = (
        json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    )
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("node"), str) or "until" not in row:
            raise ValueError(
                f'found {json.dumps(row)[:80]}; write {{"node": "n01", "until": "2026-12-24T18:00:00Z"}}'
            )
        until = seconds(row["until"])
        if until > now:
            found.append(Notice(row["node"], until))
    return found


def seconds(value: Any) -> float:
    """Seconds since the epoch of an ISO time with a zone, an HTTP date, or a number. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    from email.utils import parsedate_to_datetime

    text = str(value)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = parsedate_to_datetime(text)
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write 2026-12-24T18:00:00Z")
    return when.timestamp()


def notice_of(cloud: str, status: int, text: str, node: str, now: float) -> Notice | None:
    """What the metadata service of a cloud says of this node. None = nothing is to happen. Raises ValueError."""
    if status == 404 or not text.strip():
        return None
    if cloud == "gcp":
        return Notice(node, now + WARNING_S[cloud]) if text.strip().upper() == "TRUE" else None
    told = json.loads(text)
    if cloud == "aws":
        return (
            Notice(node, seconds(told["time"]))
            if told.get("action") in ("terminate", "stop", "hibernate")
            else None
        )
    for event in told.get("Events", []):
        if event.get("EventType") == "Preempt":
            return Notice(
                node, seconds(event["NotBefore"]) if event.get("NotBefore") else now + WARNING_S[cloud]
            )
    return None


def tainted(
    nodes: Sequence[Mapping[str, Any]], taints: Sequence[str], now: float, warning_s: float
) -> list[Notice]:
    """Nodes of the Kubernetes API that carry one of the taints; they go `warning_s` after it was set, where it says when."""
    found = []
    for node in nodes:
        for taint in (node.get("spec") or {}).get("taints") or []:
            if taint.get("key") in taints:
                since = seconds(taint["timeAdded"]) if taint.get("timeAdded") else now
                found.append(Notice(str(node["metadata"]["name"]), max(since + warning_s, now + 1.0)))
    return found


@dataclass(slots=True)
class SpotNotices:
    """A Source whose events are notices; each is told once. node : this host's, for the metadata address.

    url, cloud : of the metadata service, "" = it is not asked. api : None = no Kubernetes is asked. Raises SourceError when
    one of them cannot be asked; the others have been heard then.
    """

    clock: Clock
    node: str
    files: Sequence[Path] = ()
    url: str = ""
    cloud: str = "aws"
    api: Api | None = None
    taints: Sequence[str] = ()
    warning_s: float = 120.0
    _told: dict[str, float] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None

    async def read(self) -> Sequence[Scrape]:
        now, troubles, found = self.clock(), [], []
        for path in self.files:
            try:
                found += notices_in(path.read_text("utf-8"), now) if path.exists() else []
            except (OSError, ValueError) as error:
                troubles.append(f"{path}: {error}")
        try:
            notice = await self._ask(now) if self.url else None
            found += [notice] if notice is not None else []
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            troubles.append(f"{self.url}: {error or type(error).__name__}")
        try:
            if self.api is not None:
                found += tainted(await self.api.items("/api/v1/nodes"), self.taints, now, self.warning_s)
        except (TryAgain, Hopeless) as error:
            troubles.append(str(error))
        self._told = {node: until for node, until in self._told.items() if until > now}
        new = [n for n in found if n.node not in self._told]
        self._told |= {n.node: n.until for n in new}
        if troubles and not new:
            raise SourceError("; ".join(troubles))
        events = tuple(
            Event(now, Entity("node", n.node), KIND, n.until - now, "spot", f"{n.node} is taken back in {n.until - now:.0f} s")
            for n in new
        )  # fmt: skip
        return [Scrape("spot", now, None, None, events)] if events else []

    async def _ask(self, now: float) -> Notice | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        path, headers = CLOUDS[self.cloud]
        async with self._session.get(self.url.rstrip("/") + path, headers=headers) as answer:
            if answer.status not in (200, 404):
                raise ValueError(f"answered {answer.status}")
            return notice_of(self.cloud, answer.status, await answer.text(), self.node, now)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self.api is not None:
            await self.api.close()


def spot_notices(settings: Mapping[str, Any], clock: Clock, node: str) -> SpotNotices:
    """From settings of `daemon.settings_sources.SpotSource`."""
    metadata, kubernetes = settings.get("metadata"), settings.get("kubernetes")
    return SpotNotices(
        clock=clock,
        node=(metadata or {}).get("node") or node,
        files=[Path(path) for path in settings.get("files", ())],
        url=metadata["url"] if metadata else "",
        cloud=metadata["cloud"] if metadata else "aws",
        api=Api(kubernetes["kubeconfig"], kubernetes["context"]) if kubernetes else None,
        taints=kubernetes["taints"] if kubernetes else (),
        warning_s=kubernetes["warning"] if kubernetes else NAN,
    )
