"""What the posture page says: tier, checklists, what the white paper would have one consider."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from daemon import energy, evolution, fragments, placement, posture, replica
from daemon.checklist import ITEMS
from daemon.core import Core
from daemon.loop import Daemon
from daemon.model import NAN, Frames
from daemon.web.errors import Unusable
from daemon.web.views import Row

ATTESTABLE = tuple(
    name for name, item in ITEMS.items() if item.over == "now" and item.how.startswith("attested")
)
LONGEST_S = 366 * 86400.0
SIGNS = {"pass": "✓", "fail": "✗", "unknown": "?", "not_applicable": "–"}
TIERS = {
    "small": "Small: 1-64 GPUs, memory comes first",
    "medium": "Medium: 64-400 GPUs, communication comes first",
    "large": "Large: above 400 GPUs, stability comes first",
}


def of(daemon: Daemon) -> Row:
    return read(daemon.core, daemon.frames, past(daemon))


def past(daemon: Daemon) -> list[Sequence[float]]:
    """GPUs of past days by the demand on record, back-filled history included; empty while a pool's capacity is not known."""
    core, at = daemon.core, daemon.frames.at
    found = []
    for pool in core.topology.pools():
        learnt = core.state.memory.learnt.get(pool)
        fits = replica.room(learnt) * replica.LOAD_TARGET if learnt is not None else NAN
        if not fits > 0:
            return []
        times, values = daemon.record.series(
            "pool", pool, "concurrency", at - posture.DAYS_KEPT * 86_400.0, at
        )
        found.append((np.asarray(times), np.asarray(values), core.topology.gpus_per_replica(pool) / fits))
    return evolution.of_demand(found, core.state.day.daily)


def read(core: Core, frames: Frames, before: Sequence[Sequence[float]] = ()) -> Row:
    """Every item of the three checklists with its state; those of the cluster's own tier count."""
    tier, why = evolution.tier(frames, core.policy)
    scores = posture.assess(core.state.day, frames, core.topology, core.policy, core.outlook)
    rows = [_row(score) for score in scores]
    return {
        "at": frames.at or NAN,
        "tier": tier,
        "tier_why": why,
        "posture": rows,
        "counts": dict(Counter(row["state"] for row in rows if row["tier"] == tier)),
        "advice": [
            *evolution.advice(
                core.state.day,
                frames,
                core.policy,
                energy.share_of_revenue(core.state.meter, core.policy.cost),
                before,
            ),
            *(wish.text for wish in placement.wishes(frames, core.topology, core.state.fleet)),
            *(wish.text for wish in fragments.wishes(core.topology, core.state.fleet, core.policy)),
        ],
        # The cluster's own first.
        "tiers": {name: TIERS[name] for name in sorted(TIERS, key=lambda name: name != tier)},
    }


def _row(score: posture.Score) -> Row:
    return {
        "item": score.item,
        "tier": score.tier,
        "title": score.title,
        "state": score.state,
        "sign": SIGNS[score.state],
        "value": score.value,
        "target": score.target,
        "unit": score.unit,
        "value_text": words_of(score.value, score.unit),
        "target_text": asked(score),
        "evidence": score.evidence,
        "missing": score.missing,
        "todo": score.todo,
    }


def asked(score: posture.Score) -> str:
    """ "at least 85 %", "yes"."""
    text = words_of(score.target, score.unit)
    return text if score.unit == "yes" else f"{'at least' if score.is_floor else 'at most'} {text}"


def words_of(value: float, unit: str) -> str:
    """
    >>> words_of(0.853, "ratio"), words_of(0.08, "s"), words_of(1.0, "yes"), words_of(float("nan"), "h")
    ('85.3 %', '80 ms', 'yes', '–')
    """
    if not math.isfinite(value):
        return "–"
    if unit == "ratio":
        return f"{100 * value:.3g} %"
    if unit == "yes":
        return "yes" if value else "no"
    if unit == "s" and value < 1:
        return f"{1000 * value:.0f} ms"
    return (f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}").strip()


def attestation(text: str, at: float) -> str:
    """The argument of an "attest" command out of a request's body. Raises Unusable."""
    try:
        body: Any = json.loads(text)
    except ValueError as error:
        raise Unusable(f"the body is no JSON ({error}); send {example()}") from None
    if not isinstance(body, dict):
        raise Unusable(f"the body is a {type(body).__name__}; send {example()}")
    item, value, hours = body.get("item"), body.get("value"), body.get("valid_hours")
    if item not in ATTESTABLE:
        raise Unusable(f"item is {item!r}; items that can be attested: {', '.join(ATTESTABLE)}")
    return f"{item} {_number('value', value, math.inf)!r} {at + 3600.0 * _number('valid_hours', hours, LONGEST_S / 3600.0)!r}"


def _number(name: str, found: Any, top: float) -> float:
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    if not is_number or not 0 <= found <= top:
        raise Unusable(
            f"{name} is {found!r}; give a number from 0" + (f" to {top:g}" if top < math.inf else "")
        )
    return float(found)


def example() -> str:
    return '{"item": "quantisation_loss", "value": 0.012, "valid_hours": 720}'
