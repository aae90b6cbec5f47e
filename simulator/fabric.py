"""Network ports and host machines as rates and monotone counters."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from daemon.model import Array
from simulator.conditions import Conditions
from simulator.spec import PORT_BYTES_S, WorldSpec
from simulator.wiring import Wiring

PORT_GAUGES = ("rate_bytes_s", "state_id", "phys_state_id", "pcie_stall_ratio", "module_hot")
PORT_COUNTERS = (
    "tx_bytes_s", "rx_bytes_s", "xmit_wait_per_s", "symbol_errors_per_s", "link_recovery_per_s",
    "link_downed_per_s", "rx_errors_per_s", "tx_discards_per_s", "rx_discards_per_s", "remote_phys_errors_per_s",
    "cnp_sent_per_s", "ecn_marked_per_s", "cnp_handled_per_s", "cnp_ignored_per_s", "out_of_sequence_per_s",
    "seq_errors_per_s", "ack_timeouts_per_s", "rnr_naks_per_s", "out_of_buffer_per_s", "rx_pause_per_s",
    "tx_pause_per_s", "rx_pause_ratio", "tx_pause_ratio", "pause_storm_per_s", "rx_discards_phy_per_s",
    "buffer_passed_per_s", "crc_errors_per_s", "corrected_bits_per_s", "phy_bits_per_s", "link_flaps_per_s",
)  # fmt: skip
_P = {name: k for k, name in enumerate(PORT_COUNTERS)}
_PAUSE_FRAMES_PER_S = 4.0e4
"""Pause frames a port sends in a second in which it holds the other side all the time."""
_PACKET_BYTES = 4096.0


class Ports:
    """Every network port. gauges : (port, PORT_GAUGES). counters : (port, PORT_COUNTERS). speed : share of the
    healthy service a transfer through the port gets. overflow : (port,) bytes a second meant for it that found no room."""

    def __init__(self, spec: WorldSpec, rng: Generator) -> None:
        count = spec.nodes * spec.ports_per_node
        self.gauges = np.zeros((count, len(PORT_GAUGES)))
        self.gauges[:, 1:3] = 4.0, 5.0
        self.counters = np.zeros((count, len(PORT_COUNTERS)))
        self.counters[:, :2] = rng.uniform(1e13, 9e14, (count, 1))
        self.counters[:, _P["phy_bits_per_s"]] = self.counters[:, 1] * 8
        self.counters[:, _P["corrected_bits_per_s"]] = rng.uniform(1e6, 9e6, count)
        self.rates = np.zeros_like(self.counters)
        self.speed, self.overflow = np.ones(count), np.zeros(count)
        self.optic = np.exp(rng.normal(np.log(30.0), 0.4, count))
        self._revision = -1

    def step(self, wanted: Array, ills: Conditions, noise: Array) -> None:
        """Set gauges and rates from the traffic `wanted` (port,) in bytes per second each way."""
        if ills.revision != self._revision:
            self._take(ills)
        demand = wanted * np.maximum(1 + 0.05 * noise, 0.2)
        tx = np.minimum(demand, self._most_tx)
        meant = demand + self._incast
        rx = np.minimum(meant, self._most_rx)
        self.overflow = meant - rx
        use = rx / self.gauges[:, 0]
        self.speed = self._share * np.minimum(np.maximum((1 - use) / 0.15, 0.15), 1.0)
        r = self.rates
        marked = np.minimum(np.maximum(use - 0.6, 0), 1) * 2e4
        marked += self._ecn
        marked *= rx / PORT_BYTES_S * self._marks
        r[:, _P["tx_bytes_s"]], r[:, _P["rx_bytes_s"]] = tx, rx
        r[:, _P["xmit_wait_per_s"]] = (demand - tx) / 256.0 + self._paused
        r[:, _P["ecn_marked_per_s"]], r[:, _P["cnp_sent_per_s"]] = marked, marked * 0.5
        r[:, _P["cnp_handled_per_s"]] = self._handled + marked * 0.05

    def _take(self, ills: Conditions) -> None:
        """What follows from the conditions alone, until they change."""
        self._revision, a, r = ills.revision, ills.port, self.rates
        nominal = PORT_BYTES_S * ills.port_rate
        open_tx = np.clip(1 - a["rx_pause_ratio"], 0.02, 1) * np.clip(
            1 - 1e-4 * a["seq_errors_per_s"], 0.3, 1
        )
        open_rx = np.clip(1 - a["tx_pause_ratio"] - a["drain_ratio"] - a["credit_stall"], 0.01, 1)
        self._most_tx, self._most_rx = 0.97 * nominal * open_tx, 0.97 * nominal * open_rx
        self._incast, self._handled = a["incast_bytes_s"], a["cnp_handled_per_s"]
        self._ecn = a["ecn_share"] * (PORT_BYTES_S / _PACKET_BYTES * 0.02)
        loss = 1 / (
            1 + 0.05 * a["ack_timeouts_per_s"] + 0.002 * a["seq_errors_per_s"] + 0.02 * a["rnr_naks_per_s"]
        )
        down = 1 - np.minimum(a["link_downed_per_s"] * 20.0, 0.9)
        self._share = ills.port_rate * open_tx * open_rx * loss * down
        tx_pause, rx_pause = a["tx_pause_ratio"] + 0.6 * a["drain_ratio"], a["rx_pause_ratio"]
        self._paused = rx_pause * 1e7 + a["xmit_wait_per_s"]
        self._marks = 1.0 - a["unmarked"]
        self.gauges[:, 0] = nominal
        self.gauges[:, 3] = a["pcie_stall_ratio"]
        r[:, _P["tx_pause_ratio"]], r[:, _P["rx_pause_ratio"]] = tx_pause, rx_pause
        r[:, _P["tx_pause_per_s"]], r[:, _P["rx_pause_per_s"]] = (
            tx_pause * _PAUSE_FRAMES_PER_S,
            rx_pause * _PAUSE_FRAMES_PER_S,
        )
        r[:, _P["rx_errors_per_s"]] = a["symbol_errors_per_s"] * 0.1
        r[:, _P["crc_errors_per_s"]] = a["symbol_errors_per_s"] * 0.3
        r[:, _P["rx_discards_per_s"]] = a["rx_discards_phy_per_s"]
        r[:, _P["out_of_buffer_per_s"]] = a["rnr_naks_per_s"] * 3
        r[:, _P["corrected_bits_per_s"]] = self.optic + a["corrected_bits_per_s"]
        r[:, _P["phy_bits_per_s"]] = PORT_BYTES_S * 8.5
        r[:, _P["link_flaps_per_s"]] = a["link_downed_per_s"]
        for name in _PASSED_ON:
            r[:, _P[name]] = a[name]

    def count_on(self, span: float) -> None:
        self.counters += self.rates * span


_PASSED_ON = (
    "symbol_errors_per_s", "link_recovery_per_s", "link_downed_per_s", "remote_phys_errors_per_s",
    "out_of_sequence_per_s", "seq_errors_per_s", "ack_timeouts_per_s", "rnr_naks_per_s", "pause_storm_per_s",
    "rx_discards_phy_per_s", "buffer_passed_per_s",
)  # fmt: skip

NODE_GAUGES = (
    "boot_time_s", "clock_s", "load1", "cpus", "mem_total_bytes", "mem_available_bytes", "procs_blocked",
    "fs_size_bytes", "fs_avail_bytes", "fs_readonly",
)  # fmt: skip
NODE_COUNTERS = (
    "cpu_idle_s_per_s", "oom_kills_per_s", "net_rx_bytes_s", "net_tx_bytes_s", "net_errors_per_s", "net_drops_per_s",
)  # fmt: skip
CPUS = 64
_MEM_BYTES, _FS_BYTES = float(2**40), 1.8e12


class Hosts:
    """Every host machine. gauges : (node, NODE_GAUGES). counters : (node, NODE_COUNTERS)."""

    def __init__(self, wiring: Wiring, epoch: float, rng: Generator) -> None:
        count = len(wiring.nodes)
        self.gauges = np.zeros((count, len(NODE_GAUGES)))
        self.gauges[:, 0] = np.floor(epoch - rng.uniform(5e5, 9e6, count))
        self.gauges[:, 3:5] = float(CPUS), _MEM_BYTES
        self.gauges[:, 7:9] = _FS_BYTES, _FS_BYTES * 0.6
        self.counters = np.zeros((count, len(NODE_COUNTERS)))
        self.counters[:, 0] = (epoch - self.gauges[:, 0]) * CPUS * 0.85
        self.counters[:, 2:4] = rng.uniform(1e12, 1e13, (count, 2))
        self.rates = np.zeros_like(self.counters)

    def step(self, engines: Array, busy: Array, tokens_s: Array, ills: Conditions, noise: Array) -> None:
        """engines : processes on each node, busy : their busy shares together, tokens_s : what they stream."""
        cores = 1.5 + 1.2 * engines + 3.0 * busy + 20.0 * np.minimum(ills.cpu - 1, 2)
        cores *= 1 + 0.05 * noise
        cores = np.minimum(np.maximum(cores, 0.5), CPUS - 1.0)
        g, r = self.gauges, self.rates
        g[:, 2] = np.rint(cores * 105.0) / 100.0
        g[:, 5] = np.rint(_MEM_BYTES * (0.93 - 0.02 * engines) - 1e8 * np.abs(noise) - ills.host_used)
        g[:, 6] = 0.0
        r[:, 0] = CPUS - cores
        r[:, 2] = 4e4 + tokens_s * 12.0
        r[:, 3] = 9e4 + tokens_s * 260.0

    def count_on(self, span: float) -> None:
        self.counters += self.rates * span
