"""What a notification channel is, as its operator describes it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from daemon.model import Severity

REDACTED = "<redacted>"


class ChannelKind(StrEnum):
    WEBHOOK = "webhook"  # any receiver of Alertmanager's version 4 webhook format
    ALERTMANAGER = "alertmanager"  # API v2, every replica
    PAGERDUTY = "pagerduty"
    SLACK = "slack"
    TEAMS = "teams"
    FEISHU = "feishu"
    DINGTALK = "dingtalk"
    WECOM = "wecom"
    GRAFANA = "grafana"  # annotations
    MQTT = "mqtt"
    EMAIL = "email"
    KUBERNETES = "kubernetes"  # Events on nodes


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to reach on-call.

    urls           : webhook -> usually one; alertmanager -> the base URL of every replica; mqtt, email -> the server.
    Secret: never logged. secret, secret_file : HMAC key, routing key, token or password; the file is read at every use.
    severity_min   : below it nothing is sent. per_min, burst : token bucket; a receiver that throttles drops pages.
    timeout_s      : for one request. repeat_s : an Alertmanager is told again while it fires; hold_s : its alert
    ends by itself that long after the last word; resolve_s : how long a resolve is repeated.
    language, zone : of the texts. sends_resolved : whether the end is told. heartbeat_s : a sign of life that often, 0 = none.
    user, sender, recipients, tls, ca_file : of e-mail; topic : of MQTT, and the namespace of Kubernetes.
    kubeconfig, context, nodes : of Kubernetes; nodes : (node of the telemetry, Kubernetes node).
    Source of 60 s and 4 min: Prometheus resends each minute with an end four of them ahead.
    """

    name: str
    kind: ChannelKind
    urls: tuple[str, ...] = field(repr=False)
    secret: str = field(default="", repr=False)
    secret_file: str = ""
    severity_min: Severity = Severity.INFO
    per_min: float = 60.0
    burst: int = 20
    timeout_s: float = 10.0
    repeat_s: float = 60.0
    hold_s: float = 240.0
    resolve_s: float = 300.0
    language: str = "en"
    zone: str = "UTC"
    sends_resolved: bool = True
    heartbeat_s: float = 0.0
    user: str = ""
    sender: str = ""
    recipients: tuple[str, ...] = ()
    tls: str = "starttls"
    ca_file: str = ""
    topic: str = ""
    kubeconfig: str = ""
    context: str = ""
    nodes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError(f"channel {self.name!r} has no url")
        if self.per_min <= 0 or self.burst < 1:
            raise ValueError(f"channel {self.name!r}: per_min must be above 0 and burst at least 1")


def secret_of(channel: Channel) -> str:
    """The secret as it stands now. Raises OSError when its file cannot be read."""
    return Path(channel.secret_file).read_text().strip() if channel.secret_file else channel.secret


def redact(text: str, channel: Channel) -> str:
    """The text without the channel's URLs, their paths, user parts, query values and secret."""
    hidden = {channel.secret}
    if channel.secret_file:
        with suppress(OSError):
            hidden.add(secret_of(channel))
    for url in channel.urls:
        parts = urlsplit(url)
        hidden |= {url, parts.path, parts.query, parts.password or ""}
        hidden |= {value for _, value in parse_qsl(parts.query)}
        # A token is a long segment of the path; short ones like "v2" are words of any text.
        hidden |= {segment for segment in parts.path.split("/") if len(segment) >= 8}
    for secret in sorted(hidden, key=len, reverse=True):
        if len(secret) > 1:
            text = text.replace(secret, REDACTED)
    return text
