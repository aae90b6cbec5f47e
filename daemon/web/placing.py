"""What the placement answer says: where replicas should rather stand, with what to tell the scheduler."""

from __future__ import annotations

import dataclasses

from daemon import fragments, placement
from daemon.loop import Daemon
from daemon.model import NAN
from daemon.web.views import Row


def all_wishes(daemon: Daemon) -> tuple[placement.Wish, ...]:
    core = daemon.core
    return (
        *placement.wishes(daemon.frames, core.topology, core.state.fleet),
        *fragments.wishes(core.topology, core.state.fleet, core.policy),
    )


def of(daemon: Daemon) -> Row:
    core, frames = daemon.core, daemon.frames
    found = all_wishes(daemon)
    places = core.topology.place
    return {
        "at": frames.at or NAN,
        "wishes": [dataclasses.asdict(wish) | {"subject": str(wish.subject)} for wish in found],
        "free": [
            {
                "pool": p.pool,
                "gpus": p.size,
                "fits": p.fits,
                "could": p.could,
                "stranded": p.stranded,
                "ratio": p.ratio,
            }
            for p in fragments.pieces(core.topology, core.state.fleet, core.policy)
        ],
        "crossing_bytes_s": placement.crossing_bytes_s(found),
        "leaves": len({p["leaf"] for p in places.values() if p.get("leaf")}),
        "racks": len({p["rack"] for p in places.values() if p.get("rack")}),
        "unplaced": sorted(n for n in core.topology.gpus_on if not places.get(n, {}).get("leaf"))[:100],
    }
