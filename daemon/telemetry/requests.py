"""Counts the requests that one engine has, from its page as it stands."""

from __future__ import annotations

import math

from daemon.model import NAN, Target
from daemon.telemetry.catalogue import Catalogue
from daemon.telemetry.exposition import Page

SIGNALS = ("running", "waiting", "waiting_deferred")


def requests_on(page: bytes, catalogue: Catalogue) -> float:
    """Requests running and waiting, over all engines of the page; NaN when it does not tell those running."""
    reading = Page(catalogue.wanted, catalogue.keep).parse(page)
    # The address only gives engines a name, and here all are one.
    identity = catalogue.identify(Target("engine:1"), reading.keys)
    values = identity.values(reading.values)
    found = {
        (series.entity, series.signal): value
        for series, value in zip(identity.layout.series, values.tolist(), strict=True)
        if series.entity.kind == "engine" and series.signal in SIGNALS
    }
    if not any(signal == "running" and not math.isnan(value) for (_, signal), value in found.items()):
        return NAN
    return float(sum(value for value in found.values() if not math.isnan(value)))
