"""What the switches' own counters say of the links to hosts and to other switches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from daemon.model import Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.scales import Flags
from detectors.stats import rows

SIGNALS = ("tx_bytes_s", "rate_bytes_s", "xmit_wait_per_s", "ecn_marked_per_s", "discards_per_s")
TX, RATE, WAIT, MARKS, DROPS = range(len(SIGNALS))
TICK_BYTES = 8.0
"""What a tick of waiting would have sent. Source: the counter's quantum, reference notes on telemetry, section 3."""
SWITCH = frozenset({"SW", "SWITCH"})
_ADAPTER = re.compile(r"HCA-(\d+)")


@dataclass(slots=True)
class Switches:
    """A port that faces a host and is full while more waits is that host's link; one that is not full and waits for credit faces
    a host that does not take what comes; full ports towards other switches are the leaf's uplinks.

    busy_ratio : share of the rate that is near line rate. waiting : share of what was to be sent that had to wait.
    not_taken : the same, of a port that is not full. marks_per_s : congestion marks a second that count.
    told : ports of hosts, and leaves, of which a switch says how they are: what host ports let guess of them is not needed.
    Source: docs/en/reference/congestion.md.
    """

    busy_ratio: float = 0.85
    waiting: float = 0.05
    not_taken: float = 0.20
    marks_per_s: float = 100.0
    told: frozenset[Entity] = field(default_factory=frozenset)

    def update(self, frames: Frames) -> list[Finding]:
        ports = frames["switchport"]
        if not ports.entities:
            self.told = frozenset()
            return []
        table = ports.columns(SIGNALS)
        with np.errstate(invalid="ignore", divide="ignore"):
            lost = TICK_BYTES * table[:, WAIT]
            waits = lost / (lost + table[:, TX])
            full = table[:, TX] > self.busy_ratio * table[:, RATE]
            queued = (waits > self.waiting) | (table[:, MARKS] > self.marks_per_s) | (table[:, DROPS] > 0)
        ends = far_ends(
            *(ports.facts.get(key, ("",) * len(ports.entities)) for key in ("far", "far_port", "far_kind")),
            frames["port"].entities,
        )
        measured = np.isfinite(table[:, TX] + table[:, RATE]) & np.isfinite(table[:, WAIT:]).any(axis=1)
        switch = ports.facts.get("switch", ("",) * len(ports.entities))
        self.told = frozenset(
            end if end.kind else Entity("leaf", switch[i])
            for i, end in enumerate(ends)
            if measured[i] and end is not None
        )
        found = []
        for i in rows((full & queued) | (~full & (waits > self.not_taken))):
            end = ends[i]
            if end is not None and end.kind:
                found.append(self._host(ports, i, end, table[i], float(waits[i]), bool(full[i])))
        return [*found, *self._uplinks(ports, switch, ends, table, full & queued)]

    def _host(self, ports: Frame, i: int, end: Entity, row: Array, waits: float, full: bool) -> Finding:
        name = f"{ports.facts.get('switch', ports.entities)[i]} port {ports.entities[i].rpartition('/')[2]}"
        return say(
            ports.at,
            "congestion.downlink_switch" if full else "congestion.host_drain_switch",
            end,
            "downlink_congestion" if full else "host_drain",
            0.95 if full else 0.8,
            Severity.INFO if full else Severity.WARNING,
            *_evidence(row, waits),
            text=f"{name} sends at line rate to {end.name} and more waits"
            if full
            else f"{name} has {waits:.0%} of what it has for {end.name} wait for credit below line rate",
            rejected=("a guess from host ports: the switch itself counts it",),
        )

    def _uplinks(
        self,
        ports: Frame,
        switch: tuple[str, ...],
        ends: tuple[Entity | None, ...],
        table: Array,
        congested: Flags,
    ) -> list[Finding]:
        """Leaves half of whose ports towards other switches are full while more waits."""
        found = []
        ups = np.array([end is not None and not end.kind for end in ends])
        for name in dict.fromkeys(switch[i] for i in rows(ups)):
            mine = np.array([i for i in rows(ups) if switch[i] == name])
            bad = mine[congested[mine]]
            if not name or 2 * bad.size < mine.size or not bad.size:
                continue
            with np.errstate(invalid="ignore"):
                share = float(np.nanmean(table[bad, TX] / table[bad, RATE]))
            found.append(
                say(
                    ports.at,
                    "congestion.uplink_switch",
                    Entity("leaf", name),
                    "uplink_congestion",
                    0.95,
                    Severity.WARNING,
                    Evidence("uplinks_full", float(bad.size), f"of {mine.size}"),
                    Evidence("uplink_use", share, "ratio"),
                    text=f"{bad.size} of {mine.size} uplinks of {name} are full while more waits",
                    rejected=("a guess from host ports: the switch itself counts it",),
                )
            )
        return found


def without(found: Iterable[Finding], told: frozenset[Entity]) -> list[Finding]:
    """The findings but those that host ports let guess of a link or leaf that a switch tells about."""
    return [
        f for f in found if f.kind not in ("downlink_congestion", "uplink_congestion") or f.entity not in told
    ]


def _evidence(row: Array, waits: float) -> tuple[Evidence, ...]:
    return (
        Evidence("switch_transmit", float(row[TX]), "B/s", float(row[RATE])),
        Evidence("waiting_share", waits, "ratio", 0.0),
        Evidence("marks", float(row[MARKS]), "1/s", 0.0),
        Evidence("discards", float(row[DROPS]), "1/s", 0.0),
    )


@lru_cache(maxsize=8)
def far_ends(
    far: tuple[str, ...], far_port: tuple[str, ...], kind: tuple[str, ...], ports: tuple[str, ...]
) -> tuple[Entity | None, ...]:
    """(switch port,) what it faces: a host's port where that is known by name, else the node; an Entity without a kind for
    another switch; None where the page does not say.

    far : name of the adapter, as "n01 HCA-1", "n01 mlx5_0" or "n01". far_port : its port. ports : host ports that are scraped.

    >>> far_ends(("n01 HCA-2", "n02", "s01"), ("1", "1", "7"), ("CA", "CA", "SW"), ("n01/mlx5_1",))
    (Entity(kind='port', name='n01/mlx5_1'), Entity(kind='node', name='n02'), Entity(kind='', name='s01'))
    """
    known, found = set(ports), list[Entity | None]()
    for name, number, what in zip(far, far_port, kind, strict=True):
        host, _, adapter = name.partition(" ")
        if not name:
            found.append(None)
            continue
        if what.upper() in SWITCH:
            found.append(Entity("", name))
            continue
        numbered = _ADAPTER.fullmatch(adapter)
        device = f"mlx5_{int(numbered[1]) - 1}" if numbered else adapter
        port = f"{host}/{device}" + ("" if number in ("", "1") else f":{number}")
        found.append(Entity("port", port) if port in known else Entity("node", host))
    return tuple(found)
