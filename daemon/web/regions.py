"""What the regions page says: this region's own word, and the view over all of them where it is kept here."""

from __future__ import annotations

import math

from daemon import regions
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.regional import name_of_region, own_report, readings
from daemon.web.views import Row


def own(daemon: Daemon) -> Row:
    """This region by itself. readings : the same as an MQTT source of another daemon reads it."""
    at = daemon.frames.at or NAN
    return {"at": at, "region": name_of_region(daemon), **own_report(daemon), "readings": readings(daemon)}


def of(daemon: Daemon) -> Row:
    """Every member with its state, shares and words; [] where this daemon keeps no view."""
    core, view = daemon.core, daemon.core.state.view
    federation = core.policy.federation
    shares = regions.current(view, core.state.fleet, federation) if view.seen else {}
    at = daemon.frames.at
    rows = []
    for name, member in federation.members.items():
        seen = view.seen.get(name) or regions.Seen()
        rows.append(
            {
                "name": name,
                "state": view.states.get(name, regions.UNKNOWN),
                "share": shares.get(name, NAN),
                "wanted": view.wanted.get(name, NAN),
                "health_ratio": seen.health,
                "requests_per_s": seen.rate,
                "carries_per_s": seen.carries,
                "could_carry_per_s": seen.could,
                "ttft_s": seen.ttft_s,
                "round_trip_s": member.round_trip_s,
                "heard_s": at - seen.heard_at if math.isfinite(seen.heard_at) else NAN,
            }
        )
    return {
        "at": at or NAN,
        "own": own(daemon),
        "regions": rows,
        "total_per_s": max((t[1] for t in view.totals), default=NAN),
        "short": view.short,
        "overflow": federation.overflow,
        "note": view.note,
    }
