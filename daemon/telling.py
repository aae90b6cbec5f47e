"""Composes everything that tells people: the desk, the postman, the mirror of silences, the MQTT herald."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiohttp
import aiomqtt

from actions.carriers import Mail, Mqtt
from actions.channel import Channel, ChannelKind
from actions.configured import channel_of, plan_of
from actions.desk import Desk, Plan
from actions.dispatch import letter_of
from actions.event_log import EventLog
from actions.letters import plain_message
from actions.notify import KindWords, Notify
from actions.postman import AiohttpClient, Postman, send
from actions.silencing import Mirror
from actions.wire import Carrier
from daemon import links
from daemon.alerts import Silence
from daemon.broadcast import state_of
from daemon.clock import Clock
from daemon.config import ConfigError, Problem
from daemon.herald import Herald, NotConnected
from daemon.loop import Daemon
from daemon.model import Verb
from daemon.policy import Policy
from daemon.record import Record
from daemon.settings import Settings
from daemon.web import oncall
from daemon.web.errors import Missing
from daemon.web.runbooks import alert_name, runbook
from daemon.web.sentences import in_chinese
from daemon.web.views import is_deciding


@dataclass(slots=True)
class Telling:
    """All that tells people. herald : None without a broker. `bind` it to the daemon before `run`."""

    desk: Desk
    postman: Postman
    mirror: Mirror
    notify: Notify
    herald: Herald | None
    events: EventLog
    settings: Settings
    key: bytes

    def bind(self, daemon: Daemon) -> None:
        """Let it look at the daemon: what was done about an incident, whether it still decides."""
        self.desk.deeds = lambda incident: oncall.deeds(daemon, incident, self._approve_url)
        self.desk.alive = lambda: is_deciding(daemon)
        daemon.core.policy = daemon.builder.policy = self._able(daemon.core.policy)
        self._show(daemon)
        daemon.followers.append(partial(self.follow, daemon))
        if self.herald is not None:
            self.herald.look = lambda: state_of(daemon)
            self.herald.obey = partial(oncall.obey, daemon)
            daemon.listeners.append(self.herald.hear)

    def follow(self, daemon: Daemon, settings: Settings) -> Callable[[Policy], Policy]:
        """Make ready for other channels, routes and windows; the switch that is returned puts them in force.

        Raises OSError for a URL file that cannot be read, ConfigError where the broker would have to change.
        """
        channels, plan = channels_of(settings), plan_for(settings)
        over_mqtt = [c.name for c in channels if c.kind is ChannelKind.MQTT]
        if over_mqtt and self.herald is None:
            said = f"{over_mqtt[0]!r} needs the broker of notify.mqtt, which is new: restart the daemon"
            raise ConfigError([Problem("-", 0, "notify.channels", said)])

        def switch(policy: Policy) -> Policy:
            self.settings = settings
            self.notify.pages = settings.notify.external_url.rstrip("/")
            self.key = self.key or key_of(settings)
            self.desk.use(channels, plan)
            self.postman.use(channels)
            self._show(daemon)
            return self._able(policy)

        return switch

    def _show(self, daemon: Daemon) -> None:
        daemon.oncall = self.desk if self.desk.channels else None
        daemon.link_key = self.key if may_link(self.settings) else b""

    def _able(self, policy: Policy) -> Policy:
        """Only who has a channel can tell anybody."""
        others = policy.able - {Verb.NOTIFY}
        return replace(policy, able=others | {Verb.NOTIFY} if self.desk.channels else others)

    def tasks(self) -> list[asyncio.Task[None]]:
        """What runs beside the loop, started."""
        runs = [self.postman.run(), self.desk.run(), self.mirror.run()]
        runs += [self.herald.run()] if self.herald else []
        return [asyncio.ensure_future(run) for run in runs]

    def _approve_url(self, step: str) -> str:
        return self.link("approve", step, self.desk.clock()) if may_link(self.settings) else ""

    def links(self, group: str, at: float) -> Mapping[str, str]:
        """What a message about an alert group offers."""
        return {"ack": self.link("ack", group, at)} if may_link(self.settings) else {}

    def link(self, word: str, argument: str, at: float) -> str:
        """A URL that does one thing for whoever opens it and confirms."""
        until = int(at + self.settings.notify.link_life)
        token = links.sign(self.key, links.Order(word, argument, until))
        return f"{self.settings.notify.external_url.rstrip('/')}/go/{token}"


def may_link(settings: Settings) -> bool:
    """Whether messages carry links that do something: people must be able to reach the pages."""
    return bool(settings.notify.external_url)


def compose(settings: Settings, record: Record, clock: Clock, session: aiohttp.ClientSession) -> Telling:
    """As configured. Raises OSError for a URL file that cannot be read."""
    desk = Desk(channels_of(settings), record.outbox, clock, plan_for(settings))
    herald, http = herald_of(settings, clock), AiohttpClient(session, clock)
    events = EventLog(f"tidewarden/{settings.cluster}")
    postman = Postman(desk.channels, record.outbox, http, clock, carriers_of(herald, events))
    mirror = Mirror(settings.cluster, lambda: desk.channels, desk.silences, http, clock, desk.troubles)
    desk.wake, desk.hushed = postman.wake, mirror.wake
    notify = Notify(desk, kind_words, settings.notify.external_url.rstrip("/"), in_chinese)
    made = Telling(desk, postman, mirror, notify, herald, events, settings, key_of(settings))
    desk.links = made.links
    return made


def key_of(settings: Settings) -> bytes:
    return links.key_of(settings.folder) if may_link(settings) else b""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a test message. where : kind and number of the address, never the address itself. failure : "" = taken."""

    where: str
    failure: str
    is_final: bool


async def try_channel(settings: Settings, name: str, clock: Clock) -> list[Tried]:
    """Send a message marked as a test to every address of a channel, beside a running daemon or without one.

    Raises KeyError for a name that is not configured, OSError for a URL file that cannot be read.
    """
    tree = settings.notify.model_dump()
    found = {c.name: (c, own) for c, own in zip(settings.notify.channels, tree["channels"], strict=True)}
    asked, own = found[name]
    channel = channel_of(own, asked.addresses(), tree)
    # A name of its own: two clients of one name push each other out of the broker.
    mqtt = settings.notify.mqtt and settings.notify.mqtt.model_copy(
        update={
            "client_id": f"tidewarden-test-{secrets.token_hex(4)}",
            "commands": False,
            "home_assistant": "",
        }
    )
    herald = Herald(mqtt, settings.cluster, clock, _nothing, _deaf, is_guest=True) if mqtt else None
    events = EventLog(f"tidewarden/{settings.cluster}")
    tried = []
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        stack.push_async_callback(events.close)
        carriers = carriers_of(herald, events)
        if channel.kind is ChannelKind.MQTT and herald is not None:
            await stack.enter_async_context(herald.connected(channel.timeout_s))
        for number in range(len(channel.urls)):
            now = clock()
            letter = letter_of(
                plain_message("test", channel, now), name, number, f"test/{now:.3f}/{name}/{number}"
            )
            verdict = await send(channel, [letter], AiohttpClient(session, clock), carriers, now)
            where = f"{channel.kind.value}, address {number + 1} of {len(channel.urls)}"
            tried.append(Tried(where, verdict.failure, verdict.is_final))
    return tried


def channels_of(settings: Settings) -> list[Channel]:
    """Who can be told. Raises OSError for a URL file that cannot be read."""
    tree = settings.notify.model_dump()
    return [
        channel_of(own, channel.addresses(), tree)
        for channel, own in zip(settings.notify.channels, tree["channels"], strict=True)
    ]


def plan_for(settings: Settings) -> Plan:
    """Who is told what, when."""
    windows = [
        Silence(f"window {number}", window_match(w.scope), w.start, w.end, "maintenance", w.reason)
        for number, w in enumerate(settings.maintenance)
    ]
    return plan_of(settings.notify.model_dump(), windows)


def herald_of(settings: Settings, clock: Clock) -> Herald | None:
    tree = settings.notify.mqtt
    if tree is None:
        return None
    return Herald(tree, settings.cluster, clock, look=_nothing, obey=_deaf)


def carriers_of(herald: Herald | None, events: EventLog) -> dict[ChannelKind, Carrier]:
    found: dict[ChannelKind, Carrier] = {ChannelKind.EMAIL: Mail(), ChannelKind.KUBERNETES: events}
    if herald is not None:
        found[ChannelKind.MQTT] = Mqtt(herald.publish, NotConnected, aiomqtt.MqttError)
    return found


def window_match(scope: str) -> dict[str, str]:
    """Labels of what lies in a maintenance window; {} = everything."""
    kind, _, name = scope.partition(" ")
    return {kind: name} if name else {}


def kind_words(kind: str, language: str) -> KindWords | None:
    """An incident's kind in the words of its runbook; None when it has no page."""
    try:
        page = runbook(alert_name(kind), language)
    except Missing:
        return None
    return KindWords(page["title"], "；".join(page["response"]), next(iter(page["steps"]), ""))


def _nothing() -> Mapping[str, Mapping[str, Any]]:
    return {}


def _deaf(word: str, argument: str, by: str) -> str:
    raise ValueError("the daemon is not ready yet")
