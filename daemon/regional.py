"""A daemon's word on its own region, as it is published."""

from __future__ import annotations

from typing import Any

from daemon import headroom
from daemon.loop import Daemon


def name_of_region(daemon: Daemon) -> str:
    policy = daemon.core.policy
    return policy.region or policy.cluster


def own_report(daemon: Daemon) -> dict[str, float]:
    """signal -> value of `daemon.headroom.report` as of the last tick, NaN = not known."""
    core = daemon.core
    return headroom.report(
        daemon.frames,
        core.topology,
        core.state.fleet,
        core.policy,
        core.state.memory.learnt,
        core.state.meter,
    )


def readings(daemon: Daemon) -> list[dict[str, Any]]:
    """The same in the form an MQTT source of another daemon reads; what is not known is left out, never zero."""
    entity = f"region {name_of_region(daemon)}"
    return [
        {"entity": entity, "signal": signal, "value": round(value, 6), "at": daemon.frames.at}
        for signal, value in own_report(daemon).items()
        if value == value
    ]
