"""Channels and the plan of who is told what, from the settings of `notify` as plain mappings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from actions.channel import Channel, ChannelKind
from actions.desk import Plan
from actions.dispatch import Flap
from actions.routing import DAYS, Hours, Pacing, Route
from daemon.alerts import Silence
from daemon.model import Severity

LIMITS: Mapping[ChannelKind, tuple[float, int]] = {
    ChannelKind.ALERTMANAGER: (600.0, 20),
    ChannelKind.DINGTALK: (18.0, 5),
    ChannelKind.WECOM: (18.0, 5),
    ChannelKind.FEISHU: (90.0, 5),
    ChannelKind.SLACK: (55.0, 3),
    ChannelKind.EMAIL: (20.0, 5),
}
"""Messages a minute and at once, below what each vendor takes: DingTalk and WeCom 20 a minute, Feishu 100 a minute and 5 a
second, Slack 1 a second; the others by judgement."""
USUAL = (60.0, 20)


def channel_of(tree: Mapping[str, Any], addresses: Sequence[str], notify: Mapping[str, Any]) -> Channel:
    """tree : one of notify.channels. addresses : where it sends to, read from files already."""
    kind = ChannelKind(tree["kind"])
    per_min, burst = LIMITS.get(kind, USUAL)
    if tree["per_minute"]:
        per_min, burst = tree["per_minute"], min(burst, max(1, int(tree["per_minute"])))
    return Channel(
        name=tree["name"],
        kind=kind,
        urls=tuple(addresses),
        secret_file=tree.get("secret_file") or tree.get("password_file") or "",
        severity_min=Severity(tree["severity"]),
        per_min=per_min,
        burst=burst,
        timeout_s=tree["timeout"],
        language=tree["language"] or notify["language"],
        zone=tree["zone"] or notify["zone"],
        sends_resolved=tree["send_resolved"],
        heartbeat_s=notify["heartbeat_interval"] if tree["heartbeat"] else 0.0,
        user=tree.get("username", ""),
        sender=tree.get("sender", ""),
        recipients=tuple(tree.get("to", ())),
        tls=tree.get("tls", "none"),
        ca_file=tree.get("ca_file", ""),
        topic=tree.get("topic") or tree.get("namespace", ""),
        kubeconfig=tree.get("kubeconfig", ""),
        context=tree.get("context", ""),
        nodes=tuple(sorted(tree.get("nodes", {}).items())),
    )


def plan_of(notify: Mapping[str, Any], windows: Sequence[Silence]) -> Plan:
    """The plan of notify.routes and the pacing around it. windows : planned maintenance, as silences."""
    pacing = Pacing(
        wait_s=notify["group_wait"],
        wait_critical_s=notify["group_wait_critical"],
        interval_s=notify["group_interval"],
        repeat_s=notify["repeat_interval"],
        group_by=tuple(notify["group_by"]),
    )
    everyone = tuple(channel["name"] for channel in notify["channels"])
    return Plan(
        root=Route(
            everyone,
            pacing=pacing,
            routes=tuple(_route(r, everyone, pacing, notify["zone"]) for r in notify["routes"]),
        ),
        pacing=pacing,
        flap=Flap(notify["flapping"]["changes"], notify["flapping"]["within"]),
        windows=tuple(windows) if notify["mute_in_maintenance"] else (),
        digest_min=notify["digest_from"],
    )


def _route(tree: Mapping[str, Any], above: tuple[str, ...], pacing: Pacing, zone: str) -> Route:
    own = Pacing(
        wait_s=_or(tree["group_wait"], pacing.wait_s),
        wait_critical_s=min(_or(tree["group_wait"], pacing.wait_critical_s), pacing.wait_critical_s),
        interval_s=_or(tree["group_interval"], pacing.interval_s),
        repeat_s=_or(tree["repeat_interval"], pacing.repeat_s),
        group_by=pacing.group_by,
    )
    channels = tuple(tree["channels"]) or above
    escalate = tree["escalate"]
    return Route(
        channels=channels,
        match={k: (v,) if isinstance(v, str) else tuple(v) for k, v in tree["match"].items()},
        hours=_hours(tree["hours"], zone) if tree["hours"] else None,
        pacing=own,
        goes_on=tree["continues"],
        routes=tuple(_route(r, channels, own, zone) for r in tree["routes"]),
        escalate_after_s=escalate["after"] if escalate else math.inf,
        escalate_to=tuple(escalate["to"]) if escalate else (),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _hours(tree: Mapping[str, Any], zone: str) -> Hours:
    return Hours(
        _minutes(tree["start"]), _minutes(tree["end"]), tuple(tree["days"]) or DAYS, tree["zone"] or zone
    )


def _minutes(text: str) -> int:
    hour, _, minute = text.partition(":")
    return int(hour) * 60 + int(minute)
