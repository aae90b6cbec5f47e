"""Publishes state and events over MQTT, through whatever happens to the broker."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from daemon.broadcast import BadCommand, Payload, as_json, command_of, discovery_of, events_of, name_of
from daemon.clock import Clock
from daemon.loop import News
from daemon.settings_notify import MqttTree

log = structlog.get_logger("tidewarden")

BACK_OFF_S = (1.0, 60.0)
TIMEOUT_S = 10.0
EVENTS_MAX = 1000
"""Events kept while the broker is away; the oldest go first. They carry their time, and the journal has them all."""
IDS_MAX = 1000


class NotConnected(Exception):
    """There is no broker now; the message says why."""


@dataclass(slots=True)
class Herald:
    """One MQTT connection of the daemon: `run` keeps it, `hear` takes news, `publish` sends one message now.

    look : what stands now, topic below the cluster's -> payload. obey : (what, argument, by) -> a sentence; raises
    ValueError with the reason when it will not. is_guest : only `publish`, beside the daemon that says whether it is online.
    error : why there is no connection, "" when there is one. lost : events given up while the broker was away.
    """

    settings: MqttTree
    cluster: str
    clock: Clock
    look: Callable[[], Mapping[str, Payload]]
    obey: Callable[[str, str, str], str]
    is_guest: bool = False
    error: str = "not connected yet"
    lost: int = 0
    _client: aiomqtt.Client | None = None
    _events: deque[tuple[str, str]] = field(default_factory=deque)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _joined: asyncio.Event = field(default_factory=asyncio.Event)
    _shown: dict[str, str] = field(default_factory=dict)
    _shown_at: float = 0.0
    _ids: deque[str] = field(default_factory=lambda: deque(maxlen=IDS_MAX))

    @property
    def base(self) -> str:
        return f"{self.settings.prefix}/{name_of(self.cluster)}"

    def hear(self, news: News) -> None:
        """Queue what happened; never blocks."""
        for topic, event in events_of(news):
            if len(self._events) >= EVENTS_MAX:
                self._events.popleft()
                self.lost += 1
            self._events.append((topic, as_json(event)))
            self._woken.set()

    async def publish(self, topic: str, payload: str) -> None:
        """One event below the cluster's topic, taken by the broker on return. Raises NotConnected, aiomqtt.MqttError."""
        client = self._client
        if client is None:
            raise NotConnected(self.error)
        await self._put(client, f"{self.base}/{topic}", payload, retain=False)

    @contextlib.asynccontextmanager
    async def connected(self, timeout_s: float) -> AsyncIterator[None]:
        """Run beside the body of the context, which begins when there is a connection or the time is over."""
        task = asyncio.create_task(self.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._joined.wait()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def run(self) -> None:
        """Connect, publish, connect again, until cancelled."""
        pause_s = BACK_OFF_S[0]
        while True:
            try:
                async with self._connect() as client:
                    pause_s = BACK_OFF_S[0]
                    await self._serve(client)
            except (aiomqtt.MqttError, OSError, ssl.SSLError) as problem:
                if not self.error:
                    log.warning("MQTT broker lost", broker=self._broker, error=str(problem))
                self.error = f"MQTT broker {self._broker}: {problem}"
            finally:
                self._client = None
            await asyncio.sleep(pause_s)
            pause_s = min(BACK_OFF_S[1], pause_s * 2)

    # -- one connection ---------------------------------------------------------------------------------

    @property
    def _broker(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"

    def _connect(self) -> aiomqtt.Client:
        own = self.settings
        password = Path(own.password_file).read_text("utf-8").strip() if own.password_file else None
        return aiomqtt.Client(
            own.host,
            own.port,
            username=own.username or None,
            password=password,
            identifier=own.client_id or f"tidewarden-{name_of(self.cluster)}",
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=ssl.create_default_context(cafile=own.ca_file or None) if own.tls else None,
            will=None
            if self.is_guest
            else aiomqtt.Will(f"{self.base}/status", "offline", qos=1, retain=True),
            timeout=TIMEOUT_S,
            keepalive=30,
            max_queued_incoming_messages=100,
        )

    async def _serve(self, client: aiomqtt.Client) -> None:
        """All that is done on one connection; ends with an error when it breaks."""
        if self.is_guest:
            self._client, self.error = client, ""
            self._joined.set()
            return await self._listen(client)
        if self.settings.commands:
            # As published: a command that was retained must be known as such also when it comes at once.
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            await client.subscribe(f"{self.base}/command", options=options)
        await client.publish(f"{self.base}/status", "online", qos=1, retain=True)
        if self.settings.home_assistant:
            found = discovery_of(self.settings.home_assistant, self.base, self.cluster)
            for topic, payload in found.items():
                await client.publish(topic, as_json(payload), qos=1, retain=True)
        self._client, self.error = client, ""
        log.info("MQTT broker connected", broker=self._broker)
        # A broker that was restarted may have forgotten what it retained.
        forgotten, self._shown = set(self._shown), {}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._show(client, forgotten))
                group.create_task(self._listen(client))
        except asyncio.CancelledError:
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                await client.publish(f"{self.base}/status", "offline", qos=1, retain=True, timeout=2.0)
            raise
        except ExceptionGroup as found_wrong:
            _, others = found_wrong.split((aiomqtt.MqttError, OSError))
            if others is not None:
                raise others from None
            raise found_wrong.exceptions[0] from None

    async def _show(self, client: aiomqtt.Client, gone: set[str]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self._woken.clear()
            while self._events:
                topic, payload = self._events[0]
                await self._put(client, f"{self.base}/{topic}", payload, retain=False)
                # Dropped only now: what breaks on the way is sent again over the next connection.
                if self._events and self._events[0] == (topic, payload):
                    self._events.popleft()
            if loop.time() >= due:
                await self._retain(client, gone)
                gone = set()
                due = loop.time() + self.settings.state_interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due - loop.time(), 0.01)):
                    await self._woken.wait()

    async def _retain(self, client: aiomqtt.Client, gone: set[str]) -> None:
        """Publish what changed, all of it before the broker would drop it, and clear what is no more."""
        now = asyncio.get_running_loop().time()
        is_stale = now - self._shown_at >= self.settings.expiry / 2
        found = {topic: as_json(payload) for topic, payload in self.look().items()}
        for topic in sorted((gone | set(self._shown)) - set(found)):
            await client.publish(f"{self.base}/{topic}", b"", qos=1, retain=True)
        for topic, payload in found.items():
            if is_stale or self._shown.get(topic) != payload:
                await self._put(client, f"{self.base}/{topic}", payload, retain=True)
        self._shown = found
        self._shown_at = now if is_stale or not self._shown_at else self._shown_at

    async def _put(self, client: aiomqtt.Client, topic: str, payload: str, *, retain: bool) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = int(self.settings.expiry)
        await client.publish(topic, payload, qos=1, retain=retain, properties=properties)

    # -- commands ---------------------------------------------------------------------------------------

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            answer = self._answer(payload, bool(message.retain))
            await self._put(client, f"{self.base}/command/result", as_json(answer), retain=False)

    def _answer(self, payload: bytes, is_retained: bool) -> dict[str, Any]:
        """Obey one command, or say why not."""
        id = ""
        try:
            secret = Path(self.settings.command_token_file).read_text("utf-8").strip()
            command = command_of(payload, is_retained, secret, self.clock())
            id = command["id"]
            if id in self._ids:
                raise BadCommand("a command with this id was taken already")
            self._ids.append(id)
            said = self.obey(command["do"], command["argument"], command["by"] or "mqtt")
        except (BadCommand, ValueError) as problem:
            log.warning("MQTT command refused", id=id, reason=str(problem))
            return {"id": id, "ok": False, "text": str(problem)}
        except OSError as problem:
            return {"id": id, "ok": False, "text": f"command_token_file cannot be read: {problem.strerror}"}
        log.info(
            "MQTT command taken", id=id, do=command["do"], argument=command["argument"], by=command["by"]
        )
        return {"id": id, "ok": True, "text": said}
