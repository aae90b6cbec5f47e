"""The leaves' switches: what each of their ports has sent, and what it had to wait for credit with."""

from __future__ import annotations

import hashlib

import numpy as np

from simulator.conditions import Conditions
from simulator.fabric import Ports
from simulator.spec import PORT_BYTES_S
from simulator.wiring import Wiring

EXPORTER = "9315"
GAUGES = ("rate_bytes_s", "linked")
COUNTERS = ("tx_bytes_s", "rx_bytes_s", "xmit_wait_per_s", "discards_per_s")
TICK_BYTES = 8.0
"""What a tick of waiting would have sent. Source: the counter's quantum, reference notes on telemetry, section 3."""
MOST = 0.97
"""Share of its rate that a full link carries."""


class Switches:
    """Ports of every leaf's switch, those to hosts first and then its uplinks; none where the spec has no uplinks.

    host : (row,) index of the host's port, -1 = an uplink. leaf : (row,) index in leaves. gauges : (row, GAUGES). counters : (row, COUNTERS)
    since the start of the world.
    """

    def __init__(self, wiring: Wiring) -> None:
        uplinks = wiring.spec.uplinks
        self.leaves = tuple(dict.fromkeys(wiring.leaves)) if uplinks else ()
        self.targets = tuple(f"{leaf}:{EXPORTER}" for leaf in self.leaves)
        behind = [np.flatnonzero(wiring.port_leaf == k).tolist() for k in range(len(self.leaves))]
        self.host = np.array([p for ports in behind for p in (*ports, *[-1] * uplinks)], dtype=np.intp)
        self.leaf = np.repeat(np.arange(len(behind)), [len(ports) + uplinks for ports in behind])
        self.gauges = np.ones((self.host.size, len(GAUGES)))
        self.rates = np.zeros((self.host.size, len(COUNTERS)))
        self.counters = np.zeros_like(self.rates)
        total = sum(len(ports) for ports in behind)
        self._away = np.array([(total - len(p)) / max(total - 1, 1) for p in behind])
        self._uplinks = max(uplinks, 1)
        self._rate = np.array([len(ports) * PORT_BYTES_S / self._uplinks for ports in behind])

    def rows_of(self, target: str) -> slice:
        """The rows of one leaf's page."""
        rows = np.flatnonzero(self.leaf == self.targets.index(target))
        return slice(int(rows[0]), int(rows[-1]) + 1)

    def step(self, ports: Ports, ills: Conditions) -> None:
        """Rates from what the hosts' ports send and receive now."""
        if not self.leaves:
            return
        host, down = self.host, self.host >= 0
        sent, got = ports.rates[host, 0], ports.rates[host, 1]
        leaving = np.bincount(self.leaf[down], sent[down]) * self._away / self._uplinks
        full = np.array([ills.uplinks_full.get(leaf, 0.0) for leaf in self.leaves])
        carried = np.where(full > 0, MOST * self._rate, np.minimum(leaving, MOST * self._rate))
        rate = np.where(down, ports.gauges[host, 0], self._rate[self.leaf])
        held = np.where(down, ports.overflow[host] + ills.port["credit_stall"][host] * rate, 0.0)
        self.gauges[:, 0] = rate
        self.rates[:, 0] = np.where(down, got, carried[self.leaf])
        self.rates[:, 1] = np.where(down, sent, carried[self.leaf])
        self.rates[:, 2] = (held + np.where(down, 0.0, (full * self._rate)[self.leaf])) / TICK_BYTES

    def count_on(self, span: float) -> None:
        self.counters += self.rates * span


def guid(leaf: str) -> str:
    """A stable identity of a leaf's switch, the same in every run."""
    return "0x" + hashlib.sha256(f"switch {leaf}".encode()).hexdigest()[:16]
