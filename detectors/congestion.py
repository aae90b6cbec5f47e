"""Trouble on the network: which pattern of the table, and at which port, link or leaf."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import Array, Finding, Frame, Frames
from detectors.cables import Cables
from detectors.flow import Flow
from detectors.portrates import PortRates
from detectors.switches import Switches, without
from detectors.transfers import Transfers

PHYSICAL = (
    "symbol_errors_per_s", "crc_errors_per_s", "link_recovery_per_s", "link_downed_per_s", "link_flaps_per_s",
)  # fmt: skip
WATCHED = (
    *PHYSICAL, "rate_bytes_s", "state_id", "remote_phys_errors_per_s", "tx_pause_ratio", "rx_pause_ratio",
    "pause_storm_per_s", "rx_bytes_s", "rx_discards_phy_per_s", "buffer_passed_per_s", "pcie_stall_ratio",
    "cnp_sent_per_s", "ecn_marked_per_s", "cnp_handled_per_s", "cnp_ignored_per_s", "rnr_naks_per_s",
    "out_of_buffer_per_s", "seq_errors_per_s", "ack_timeouts_per_s", "corrected_bits_per_s",
    "xmit_wait_per_s", "tx_bytes_s",
)  # fmt: skip
_AT = {name: k for k, name in enumerate(WATCHED)}


@dataclass(slots=True)
class CongestionDetector:
    """All ports are looked over at once; a pattern is only taken up where its signals are there at all."""

    rates: PortRates = field(default_factory=PortRates)
    cables: Cables = field(default_factory=Cables)
    flow: Flow = field(default_factory=Flow)
    transfers: Transfers = field(default_factory=Transfers)
    switches: Switches = field(default_factory=Switches)

    def update(self, frames: Frames) -> list[Finding]:
        port = frames["port"]
        found = [*self.transfers.update(frames), *self.switches.update(frames)]
        return [*found, *without(self._ports(port), self.switches.told)] if port.entities else found

    def _ports(self, port: Frame) -> list[Finding]:
        table = port.columns(WATCHED)
        most = np.fmax.reduce(table, axis=0, initial=-np.inf).tolist()

        def top(*signals: str) -> float:
            return float(max(most[_AT[s]] for s in signals))

        errors: Array = np.fmax.reduce(table[:, : len(PHYSICAL)], axis=1)
        c = {name: table[:, k] for k, name in enumerate(WATCHED)}
        found = self.rates.update(port, c["rate_bytes_s"], c["state_id"])
        downed = np.fmax(c["link_downed_per_s"], c["link_flaps_per_s"])
        found += self.cables.update(port, errors, downed, c["remote_phys_errors_per_s"])
        flow = self.flow
        is_held = top("tx_pause_ratio", "rx_pause_ratio") > 0.5 * flow.held_ratio
        if flow.pause_began or is_held or top("pause_storm_per_s") > 0:
            found += flow.pauses(port, c, errors)
        if top("cnp_sent_per_s", "ecn_marked_per_s") > flow.marks_per_s:
            found += flow.marks(port, c)
        if top("xmit_wait_per_s") > flow.waits_per_s:
            found += flow.downlinks(port, c)
        if flow.slow.last or top("rnr_naks_per_s", "out_of_buffer_per_s") > flow.naks_per_s:
            found += flow.software(port, c, errors)
        if min(top("seq_errors_per_s"), top("ack_timeouts_per_s")) > 0:
            found += flow.losses(port, c, errors)
        if most[_AT["corrected_bits_per_s"]] > -np.inf:
            found += self.cables.optics(port, c["corrected_bits_per_s"])
        return found
