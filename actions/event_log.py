"""Incidents as Events of a Kubernetes cluster, for whoever asks `kubectl describe node`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from actions.backends.kubernetes_events import Said, write
from actions.backends.kubernetes_nodes import find_node
from actions.channel import Channel
from actions.gojson import alert_name
from actions.texts import text_of
from actions.wire import Verdict
from daemon.alerts import Alert, Letter
from daemon.kubernetes_api import Api, Conflict, Json, NotFound
from daemon.model import Hopeless, Severity, TryAgain


@dataclass(slots=True)
class EventLog:
    """Writes an Event on the node of each alert; what has no node there goes on the channel's namespace.

    An Event's name follows from letter and alert, so that one letter sent twice is one Event. identity : who reports.
    connect : (kubeconfig, context, timeout_s) -> the API; each connection is kept and closed by `close`.
    """

    identity: str
    connect: Callable[[str, str, float], Api] = Api
    _apis: dict[tuple[str, str], Api] = field(default_factory=dict)

    async def carry(self, channel: Channel, letter: Letter) -> Verdict:
        try:
            async with asyncio.timeout(channel.timeout_s):
                for alert in letter.message.alerts:
                    await self._write(channel, letter, alert)
                if not letter.message.alerts:  # a test, or a sign of life
                    await self._write(channel, letter, None)
        except Hopeless as error:
            return Verdict(str(error), is_final=True)
        except TryAgain as error:
            return Verdict(str(error), has_arrived=True)
        except TimeoutError:
            return Verdict(f"no answer of the API server within {channel.timeout_s:g} s", has_arrived=True)
        return Verdict()

    async def close(self) -> None:
        for api in self._apis.values():
            await api.close()
        self._apis.clear()

    async def _write(self, channel: Channel, letter: Letter, alert: Alert | None) -> None:
        where = (channel.kubeconfig, channel.context)
        api = self._apis.setdefault(where, self.connect(*where, channel.timeout_s))
        thing = await _thing(api, channel, alert)
        with contextlib.suppress(Conflict):  # it stands there already: the letter went once before
            await write(api, thing, _said(letter, alert, channel, self.identity))


async def _thing(api: Api, channel: Channel, alert: Alert | None) -> Json:
    """What an alert is about, as far as Kubernetes knows it."""
    node = alert.labels.get("node", "") if alert is not None else ""
    if node:
        with contextlib.suppress(NotFound):  # a node that is gone is told of all the same
            return await find_node(api, dict(channel.nodes).get(node, node))
    space = {"name": channel.topic, "namespace": channel.topic}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": space}


def _said(letter: Letter, alert: Alert | None, channel: Channel, identity: str) -> Said:
    message = letter.message
    if alert is None:
        text = text_of(message, channel.language, channel.zone)
        return Said(letter.id, letter.at, identity, message.kind, alert_name(message.kind), text.title)
    words = alert.words.get(channel.language) or alert.words.get("en") or alert.annotations
    parts = [words.get("summary", ""), words.get("description", "")]
    is_bad = alert.status == "firing" and alert.severity is not Severity.INFO
    return Said(
        key=f"{letter.id} {alert.key}",
        at=alert.at,
        by=identity,
        action="Firing" if alert.status == "firing" else "Resolved",
        reason=alert.labels.get("alertname", alert_name(message.kind)),
        note="\n".join(part for part in parts if part),
        kind="Warning" if is_bad else "Normal",
    )
