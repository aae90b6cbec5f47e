"""KV caches on their way from prefill to decode: a slow sender, a slow receiver, or one slow pair."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.minutes import Minutes
from detectors.scales import spread_of
from detectors.stats import groups, peers, rows
from detectors.twoway import median_polish

SIGNALS = ("kv_transfer_s_per_s", "kv_transfer_bytes_s")
ARROW = ">"
LEAST_BYTES_S = 1e6
"""Fewer bytes a second are a few small transfers, whose time is not the link's. Judgement."""
SLOWER = math.log(1.5)
SIGMAS = 6.0
LEAST_ENDS = 3
"""A sender is told from its receivers by three of each."""
KEPT, MOST = 5, 3
"""So many of the last minutes must show it."""


@dataclass(slots=True)
class Transfers:
    """Time a byte, log, each minute. Where a router tells sender and receiver of each transfer the table is taken apart into
    rows and columns; engines by themselves tell one end, and are compared with others of their role.

    seen : (kind of end, name) -> which of the last minutes showed it, newest last. claims : what stands.
    Source: docs/en/reference/congestion.md.
    """

    pairs: Minutes = field(default_factory=Minutes)
    ends: Minutes = field(default_factory=Minutes)
    seen: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
    claims: list[Finding] = field(default_factory=list)

    def update(self, frames: Frames) -> list[Finding]:
        pair, engine = frames["pair"], frames["engine"]
        by_pair = self.pairs.push(pair, pair.columns(SIGNALS)) if pair.entities else None
        by_end = self.ends.push(engine, engine.columns(SIGNALS)) if engine.entities else None
        if by_pair is None and by_end is None:
            return self.claims if pair.entities or engine.entities else []
        found = [
            *(_of_table(pair, _time_a_byte(by_pair), engine) if by_pair is not None else ()),
            *(_of_ends(engine, _time_a_byte(by_end)) if by_end is not None else ()),
        ]
        keys = {(f.rule_id, f.entity.name): f for f in found}
        for key in [*self.seen, *(k for k in keys if k not in self.seen)]:
            self.seen[key] = [*self.seen.get(key, []), key in keys][-KEPT:]
            if not any(self.seen[key]):
                del self.seen[key]
        stand = {(c.rule_id, c.entity.name): c for c in self.claims} | keys
        self.claims = [claim for key, claim in stand.items() if sum(self.seen.get(key, ())) >= MOST]
        return self.claims


def _time_a_byte(minute: Array) -> Array:
    """(entity,) log of seconds a byte, NaN where hardly anything was moved."""
    seconds, moved = minute.T
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where((moved >= LEAST_BYTES_S) & (seconds > 0), np.log(seconds / moved), NAN)
    return found


def _of_table(pair: Frame, log_time: Array, engine: Frame) -> list[Finding]:
    """Row, column or cell of the table of senders and receivers."""
    names = [name.partition(ARROW)[::2] for name in pair.entities]
    senders, receivers = sorted({s for s, _ in names}), sorted({r for _, r in names})
    if len(senders) < LEAST_ENDS or len(receivers) < LEAST_ENDS:
        return []
    table = np.full((len(senders), len(receivers)), NAN)
    for (sender, receiver), value in zip(names, log_time.tolist(), strict=True):
        table[senders.index(sender), receivers.index(receiver)] = value
    parts = median_polish(table)
    found = []
    for rule, ends, effect in (("sender", senders, parts.rows), ("receiver", receivers, parts.columns)):
        limit = max(SLOWER, SIGMAS * _spread(effect))
        for i in rows(effect > limit):
            entity = Entity("engine" if ends[i] in engine.entities else "node", ends[i])
            found.append(
                _claim(
                    pair.at, f"kv_slow_{rule}", entity, float(effect[i]), f"the {rule} of slow KV transfers"
                )
            )
    limit = max(SLOWER, SIGMAS * parts.sigma)
    for i, j in zip(*np.nonzero(parts.cells > limit), strict=True):
        entity = Entity("pair", f"{senders[i]}{ARROW}{receivers[j]}")
        words = "one pair alone, both ends are well elsewhere: the path between them"
        found.append(_claim(pair.at, "kv_slow_pair", entity, float(parts.cells[i, j]), words))
    return found


def _of_ends(engine: Frame, log_time: Array) -> list[Finding]:
    """Engines whose own page tells what their transfers took, against others of their pool and role."""
    around = peers(log_time, groups(engine.facts.get("peer", ("",) * len(engine.entities))), least=LEAST_ENDS)
    over = log_time - around.median
    limit = np.fmax(SLOWER, SIGMAS * np.nan_to_num(around.sigma))
    words = "its KV transfers are slow, whichever end is to blame: engines do not tell the other"
    return [
        _claim(engine.at, "kv_slow_end", Entity("engine", engine.entities[i]), float(over[i]), words)
        for i in rows(over > limit)
    ]


def _spread(effect: Array) -> float:
    found = spread_of(effect)
    return found if found == found else 0.0


def _claim(at: float, rule: str, entity: Entity, slower: float, words: str) -> Finding:
    return say(
        at,
        f"congestion.{rule}",
        entity,
        "kv_transfer_slow",
        0.6,
        Severity.WARNING if rule in ("kv_slow_sender", "kv_slow_receiver") else Severity.INFO,
        Evidence("time_a_byte", math.exp(slower), "times", 1.0),
        text=f"{words} ({math.exp(slower):.1f} times the time a byte)",
        rejected=("little traffic: enough bytes moved to judge by",),
    )
