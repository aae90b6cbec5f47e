"""A daemon's word on its own region, as it is published."""

from __future__ import annotations

from typing import Any

from daemon import headroom, regions
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


def turned_away(daemon: Daemon) -> dict[str, float]:
    """region -> requests a second turned away that it could serve; {} where this daemon keeps no view over regions."""
    core = daemon.core
    if not core.policy.federation.members:
        return {}
    return regions.turned_away(core.state.view, core.state.fleet, core.policy.federation)


def readings(daemon: Daemon) -> list[dict[str, Any]]:
    """The same in the form an MQTT source of another daemon reads, and what a view turns away on behalf of each region;
    what is not known is left out, never zero."""
    entity = f"region {name_of_region(daemon)}"
    said = [(entity, signal, value) for signal, value in own_report(daemon).items() if value == value]
    said += [(f"region {name}", "turned_away_per_s", rate) for name, rate in turned_away(daemon).items()]
    return [
        {"entity": entity, "signal": signal, "value": round(value, 6), "at": daemon.frames.at}
        for entity, signal, value in said
    ]
