"""What gateways say of pools and of classes of requests: what comes, what fails, what is held, how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from daemon.loop import Daemon
from daemon.model import NAN, Frame
from daemon.pools import latency_s
from daemon.web.views import Row

NEEDS = "no gateway tells of pools: scrape HAProxy, nginx (vts module), Envoy or the endpoint picker, and name pools and classes as docs/en/gateway.md says"
LATENCY = ("latency_s", "latency_s_per_s", "answered_per_s")


def of(daemon: Daemon) -> Row:
    frames, limits = daemon.frames, daemon.core.state.fleet.limits
    pools = [_pool(frames["pool"], name, limits) for name in frames["pool"].entities]
    told = [
        row
        for row in pools
        if any(not math.isnan(row[key]) for key in ("arrivals_per_s", "queue", "members"))
    ]
    classes = classes_of(daemon)
    return {
        "at": frames.at or NAN,
        "pools": told,
        "classes": classes,
        "missing": "" if told or classes else NEEDS,
    }


def _pool(frame: Frame, name: str, limits: Mapping[str, float]) -> Row:
    return {
        "name": name,
        "arrivals_per_s": frame.value(name, "gateway_arrivals_per_s"),
        "errors_per_s": frame.value(name, "gateway_errors_per_s"),
        "refused_per_s": frame.value(name, "refused_per_s"),
        "queue": frame.value(name, "gateway_queue"),
        "latency_s": frame.value(name, "gateway_latency_s"),
        "members": frame.value(name, "members"),
        "members_up": frame.value(name, "members_up"),
        "admitted": limits.get(name, 1.0),
    }


def classes_of(daemon: Daemon) -> list[Row]:
    """Classes that a gateway tells of, and those that are configured or limited without a word of one."""
    frame, limits = daemon.frames["class"], daemon.core.state.fleet.limits
    known = [f"{p.name}/{c}" for p in daemon.core.policy.pools for c in p.classes]
    means = dict(zip(frame.entities, latency_s(frame.columns(LATENCY)).tolist(), strict=True))
    return [
        {
            "name": name,
            "pool": name.partition("/")[0],
            "arrivals_per_s": frame.value(name, "arrivals_per_s"),
            "errors_per_s": frame.value(name, "errors_per_s"),
            "refused_per_s": frame.value(name, "refused_per_s"),
            "queue": frame.value(name, "queue"),
            "latency_s": means.get(name, NAN),
            "admitted": limits.get(name, 1.0),
        }
        for name in sorted({*frame.entities, *known})
    ]
