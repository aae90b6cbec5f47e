"""Reads the InfiniBand and RoCE port counters of this host from sysfs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.clock import Clock
from daemon.model import Entity, Fact, Scrape, SourceError
from daemon.telemetry.columns import Columns

COUNTERS = {
    # The data counters are in 4-byte words whatever the link's width (IBTA 16.1.3.5).
    "counters/port_xmit_data": ("tx_bytes_s", 4.0),
    "counters/port_rcv_data": ("rx_bytes_s", 4.0),
    "counters/port_xmit_wait": ("xmit_wait_per_s", 1.0),
    "counters/symbol_error": ("symbol_errors_per_s", 1.0),
    "counters/link_error_recovery": ("link_recovery_per_s", 1.0),
    "counters/link_downed": ("link_downed_per_s", 1.0),
    "counters/port_rcv_errors": ("rx_errors_per_s", 1.0),
    "counters/port_xmit_discards": ("tx_discards_per_s", 1.0),
    "counters/port_rcv_remote_physical_errors": ("remote_phys_errors_per_s", 1.0),
    "hw_counters/np_cnp_sent": ("cnp_sent_per_s", 1.0),
    "hw_counters/np_ecn_marked_roce_packets": ("ecn_marked_per_s", 1.0),
    "hw_counters/rp_cnp_handled": ("cnp_handled_per_s", 1.0),
    "hw_counters/rp_cnp_ignored": ("cnp_ignored_per_s", 1.0),
    "hw_counters/out_of_sequence": ("out_of_sequence_per_s", 1.0),
    "hw_counters/packet_seq_err": ("seq_errors_per_s", 1.0),
    "hw_counters/local_ack_timeout_err": ("ack_timeouts_per_s", 1.0),
    "hw_counters/rnr_nak_retry_err": ("rnr_naks_per_s", 1.0),
    "hw_counters/out_of_buffer": ("out_of_buffer_per_s", 1.0),
}
_RATE = re.compile(r"([0-9.]+)\s*Gb/sec")
_STATE = re.compile(r"(\d+):")


def read_ports(root: Path, node: str) -> tuple[dict[tuple[Entity, str], float], tuple[Fact, ...]]:
    """Every port under `root`, canonical units. A file that is missing or unreadable (``N/A (no PMA)``) is left out."""
    readings: dict[tuple[Entity, str], float] = {}
    facts: list[Fact] = []
    for port in sorted(root.glob("*/ports/*")):
        device, number = port.parts[-3], port.parts[-1]
        entity = Entity("port", f"{node}/{device}" + ("" if number == "1" else f":{number}"))
        for name, (signal, scale) in COUNTERS.items():
            text = _text(port / name)
            if text.isdigit():
                readings[entity, signal] = int(text) * scale
        for name, signal in (("state", "state_id"), ("phys_state", "phys_state_id")):
            found = _STATE.match(_text(port / name))
            if found:
                readings[entity, signal] = float(found.group(1))
        rate = _RATE.match(_text(port / "rate"))
        if rate:
            readings[entity, "rate_bytes_s"] = float(rate.group(1)) * 1e9 / 8
        facts.append(Fact(entity, "node", node))
        layer = _text(port / "link_layer")
        if layer:
            facts.append(Fact(entity, "link_layer", layer))
    return readings, tuple(facts)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@dataclass(slots=True)
class SysfsPorts:
    """A Source over this host's ports. root : usually /sys/class/infiniband. Raises SourceError when it is not there."""

    root: Path
    node: str
    clock: Clock
    columns: Columns
    timeout_s: float = 5.0
    _reading: asyncio.Task[object] | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise SourceError(
                f"sysfs source: {self.root} is no folder; load the RDMA driver, mount the host's /sys, or drop the source"
            )

    async def read(self) -> Sequence[Scrape]:
        at = self.clock()
        if self._reading is not None and not self._reading.done():
            return [self._failed(at, "the last reading of sysfs has not returned: a driver call hangs")]
        task = asyncio.create_task(asyncio.to_thread(read_ports, self.root, self.node))
        self._reading = task
        try:
            readings, facts = await asyncio.wait_for(asyncio.shield(task), self.timeout_s)
        except TimeoutError:
            return [self._failed(at, f"sysfs did not answer within {self.timeout_s:g} s")]
        return [self.columns.scrape(at, readings, facts)]

    def _failed(self, at: float, error: str) -> Scrape:
        return Scrape(self.columns.target, at, None, None, error=error)

    async def close(self) -> None:
        """Nothing is held open between reads."""
