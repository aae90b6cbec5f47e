"""Settings of who is told what, through which channel, at what pace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from daemon.model import Severity
from daemon.units import Duration, Tree

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class ChannelTree(Tree):
    name: str = Field(min_length=1, max_length=80)
    """Its name."""
    severity: Severity = Severity.WARNING
    """Least severity that is sent."""
    language: Literal["", "en", "zh"] = ""
    """Of the texts; as in `notify.language` when empty."""
    zone: str = ""
    """IANA time zone of the times in the texts; as in `notify.zone` when empty."""
    send_resolved: bool = True
    """Whether the end is told as well."""
    heartbeat: bool = False
    """Also sends a sign of life every `notify.heartbeat_interval`, for a service that pages when it stops."""
    per_minute: float = Field(default=0.0, ge=0.0, le=6000.0)
    """Most messages in a minute; 0 = what the vendor allows."""
    timeout: Duration = 10.0
    """For one message."""

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        return known_zone(zone)

    def addresses(self) -> list[str]:
        """Where it sends to. Raises OSError when a file with them cannot be read."""
        return []


class HttpChannel(ChannelTree):
    kind: Literal["webhook", "alertmanager", "slack", "teams", "feishu", "dingtalk", "wecom"]
    """What listens there: docs/en/alerts.md."""
    urls: list[str] = []
    """Addresses; they are secrets, prefer `url_file`."""
    url_file: str = ""
    """A file with one URL a line: URLs are secrets."""
    secret_file: str = ""
    """Key of the signature of a webhook, or of a robot of Feishu or DingTalk."""

    @model_validator(mode="after")
    def _addressed(self) -> HttpChannel:
        if bool(self.urls) == bool(self.url_file):
            raise ValueError("give either urls or url_file")
        return self

    def addresses(self) -> list[str]:
        return [*self.urls] or _lines(self.url_file)


class PagerDutyChannel(ChannelTree):
    kind: Literal["pagerduty"]
    """What listens there: docs/en/alerts.md."""
    secret_file: str = Field(min_length=1)
    """The routing key of an Events API v2 integration."""
    urls: list[str] = [PAGERDUTY_URL]
    """Another address for the service region of the account."""

    def addresses(self) -> list[str]:
        return [*self.urls]


class GrafanaChannel(ChannelTree):
    kind: Literal["grafana"]
    """What listens there: docs/en/alerts.md."""
    urls: list[str] = Field(min_length=1)
    """Base URL of Grafana; alerts become annotations there."""
    secret_file: str = Field(min_length=1)
    """Token of a service account that may write annotations."""

    def addresses(self) -> list[str]:
        return [*self.urls]


class EmailChannel(ChannelTree):
    kind: Literal["email"]
    """What listens there: docs/en/alerts.md."""
    host: str = Field(min_length=1)
    """Of the mail server."""
    port: int = Field(default=587, ge=1, le=65535)
    """Of the mail server."""
    tls: Literal["starttls", "tls", "none"] = "starttls"
    """starttls is required where it is asked for, never merely tried; none is for a relay on this host."""
    ca_file: str = ""
    """Certificate authority of the server, where it is not one of the system's."""
    username: str = ""
    """To sign in with; none = no signing in."""
    password_file: str = ""
    """Its password."""
    sender: str = Field(min_length=3)
    """Address mails come from."""
    to: list[str] = Field(min_length=1)
    """Addresses they go to."""

    def addresses(self) -> list[str]:
        return [f"smtp://{self.host}:{self.port}"]


class MqttChannel(ChannelTree):
    kind: Literal["mqtt"]
    """What listens there: docs/en/alerts.md."""
    topic: str = "alerts"
    """Below tidewarden/CLUSTER/, by the connection of `notify.mqtt`."""

    def addresses(self) -> list[str]:
        return [f"mqtt:{self.topic}"]


class KubernetesChannel(ChannelTree):
    kind: Literal["kubernetes"]
    """What listens there: docs/en/alerts.md."""
    kubeconfig: str = ""
    """Path; empty = the service account of this pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str = ""
    """Of the kubeconfig; empty = its current one."""
    namespace: str = "default"
    """Gets the Events of what has no node."""
    nodes: dict[str, str] = {}
    """Node of the telemetry -> Kubernetes node, where neither name nor hostname label is the same."""

    def addresses(self) -> list[str]:
        return [f"kubernetes://{self.namespace}"]


Channel = HttpChannel | PagerDutyChannel | GrafanaChannel | EmailChannel | MqttChannel | KubernetesChannel


class HoursTree(Tree):
    start: str = "00:00"
    """Like 08:00."""
    end: str = "24:00"
    """Not after it; before or equal to start = over midnight."""
    days: list[Day] = []
    """Days on which it begins; all when empty."""
    zone: str = ""
    """IANA time zone; as in `notify.zone` when empty."""

    @field_validator("start", "end")
    @classmethod
    def _timely(cls, text: str) -> str:
        minutes_of(text)
        return text

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        return known_zone(zone)


class EscalateTree(Tree):
    after: Duration
    """How long nobody has acknowledged."""
    to: list[str] = Field(min_length=1)
    """Channels that are told then."""


class RouteTree(Tree):
    match: dict[str, list[str] | str] = {}
    """Label (severity, pool, kind, family, cluster, node, rack, ...) -> pattern with * and ?, or a list of which one must fit."""
    hours: HoursTree | None = None
    """Only within these hours."""
    channels: list[str] = []
    """Channels that are told; those of the route above when empty."""
    continues: bool = False
    """Whether the routes after it are asked as well."""
    group_wait: Duration | None = None
    """As `notify.group_wait`, for this route."""
    group_interval: Duration | None = None
    """As `notify.group_interval`."""
    repeat_interval: Duration | None = None
    """As `notify.repeat_interval`."""
    escalate: EscalateTree | None = None
    """Who hears of what nobody acknowledges."""
    routes: list[RouteTree] = []
    """Routes within this one; the first that matches takes an alert."""


class FlappingTree(Tree):
    changes: int = Field(default=3, ge=2)
    """Changes of status within `within` after which an alert is told once as flapping and then no more."""
    within: Duration = 1800.0
    """See `changes`."""


class MqttTree(Tree):
    host: str = Field(min_length=1)
    """Of the broker."""
    port: int = Field(default=1883, ge=1, le=65535)
    """Of the broker."""
    username: str = ""
    """To sign in with; none = no signing in."""
    password_file: str = ""
    """Its password, read at every connection."""
    tls: bool = False
    """Whether the connection is encrypted."""
    ca_file: str = ""
    """Certificate authority of the broker, where it is not one of the system's."""
    client_id: str = ""
    """tidewarden-CLUSTER when empty; two clients of one name push each other out."""
    prefix: str = "tidewarden"
    """First part of every topic."""
    state_interval: Duration = 15.0
    """How often retained state is published, if it changed."""
    expiry: Duration = 3600.0
    """After that the broker drops events nobody fetched and state nobody renewed."""
    commands: bool = False
    """Whether pause, resume, approve, reject and ack are taken from PREFIX/CLUSTER/command; each carries a token."""
    command_token_file: str = ""
    """Secret that a command must be signed with."""
    home_assistant: str = ""
    """Discovery prefix of Home Assistant, usually homeassistant; empty = none."""

    @model_validator(mode="after")
    def _guarded(self) -> MqttTree:
        if self.commands and not self.command_token_file:
            raise ValueError(
                "commands need command_token_file: without it whoever reaches the broker could act"
            )
        return self


class Notify(Tree):
    external_url: str = ""
    """Where people reach the web pages; links in messages start with it."""
    language: Literal["en", "zh"] = "en"
    """Of the texts, where a channel does not say otherwise."""
    zone: str = "UTC"
    """IANA time zone of the times in the texts."""
    channels: list[Annotated[Channel, Field(discriminator="kind")]] = []
    """Who is told."""
    routes: list[RouteTree] = []
    """Who is told what; without any, every channel is told what its severity allows."""
    group_by: list[str] = ["cluster", "pool", "kind"]
    """Alerts alike in these labels are told in one message."""
    group_wait: Duration = 30.0
    """From the first alert of a group to its message, so that those that follow at once are in it."""
    group_wait_critical: Duration = 5.0
    """The same when one of them is critical."""
    group_interval: Duration = 300.0
    """Between two messages about one group."""
    repeat_interval: Duration = 14_400.0
    """What still fires and nobody has acknowledged is told again."""
    digest_from: int = Field(default=5, ge=2)
    """From that many groups at once a channel gets one message for all of them."""
    flapping: FlappingTree = FlappingTree()
    mute_in_maintenance: bool = True
    """Nothing is told of what lies within a window of `maintenance`; what still fires after it is."""
    heartbeat_interval: Duration = 60.0
    """How often channels with `heartbeat` get a sign of life."""
    link_life: Duration = 86_400.0
    """How long the links to acknowledge and approve are good."""
    mqtt: MqttTree | None = None
    """State and events for programs, over MQTT."""

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        return known_zone(zone)

    @model_validator(mode="after")
    def _joined(self) -> Notify:
        names = [c.name for c in self.channels]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"channels: the name {twice[0]!r} stands twice; names are unique")
        for name in _named(self.routes):
            if name not in names:
                known = ", ".join(names) or "none is configured"
                raise ValueError(f"routes: no channel {name!r}; channels: {known}")
        if self.mqtt is None and any(isinstance(c, MqttChannel) for c in self.channels):
            raise ValueError("channels: a channel of kind mqtt needs notify.mqtt with the broker")
        return self


def _named(routes: list[RouteTree]) -> list[str]:
    """Every channel that routes name."""
    found = [name for r in routes for name in [*r.channels, *(r.escalate.to if r.escalate else [])]]
    return found + [name for r in routes for name in _named(r.routes)]


def _lines(path: str) -> list[str]:
    return [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]


def known_zone(zone: str) -> str:
    """The zone, if it is one. Raises ValueError."""
    try:
        ZoneInfo(zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"zone {zone!r} is not known; write an IANA name like Asia/Shanghai") from error
    return zone


def minutes_of(text: str) -> int:
    """Minutes since midnight of "08:30". Raises ValueError."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if not found or int(found[1]) > 24 or int(found[2]) > 59 or (int(found[1]) == 24 and int(found[2])):
        raise ValueError(f"{text!r} is not a time of day; write 08:00, with quotes")
    return int(found[1]) * 60 + int(found[2])
