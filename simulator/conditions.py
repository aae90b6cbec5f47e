"""What ails the hardware now: plain arrays that faults write and physics reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array
from simulator.spec import WorldSpec

Flags = NDArray[np.bool_]


@dataclass
class Conditions:
    """All healthy when fresh. Ratios are 1 when healthy, rates and delays 0; one row a GPU, node, port or pool.

    clock, dram, nvlink, pcie : share of the healthy speed. power_cap : share of the power limit. cooling : how much
    of the cooling is gone, 0..1. bits : throttle bits the hardware reports on top. lost : off the bus.
    cpu : how much slower the host is, 1 = healthy. hung : the node answers nobody.
    port_rate : negotiated over nominal; the rest of the port arrays are events per second or shares of time.
    revision : changes whenever anything here does. stage_slow : engine address -> pipeline stage and times its layers take longer.
    uplinks_full : leaf -> share of what its uplinks had to send that waits. engine_slow, engine_hung, leaked (bytes) : by engine address.
    disk_slow : (node,) times a read of the local disk takes longer; share_slow, share_errors : of the shared store, times and
    time-outs a second and node. pool_hits, pool_accept : share of the usual cache hits, of the usual acceptance of drafted tokens, that is left. host_used : bytes a node's processes hold too much. outage : exporter target -> "refused", "hang", "error", "stale".
    """

    spec: WorldSpec
    clock: Array = field(init=False)
    dram: Array = field(init=False)
    nvlink: Array = field(init=False)
    pcie: Array = field(init=False)
    power_cap: Array = field(init=False)
    cooling: Array = field(init=False)
    bits: NDArray[np.int64] = field(init=False)
    lost: Flags = field(init=False)
    xid: Array = field(init=False)
    ecc_sbe: Array = field(init=False)
    nvlink_errors: Array = field(init=False)
    pcie_replays: Array = field(init=False)
    remap_pending: Flags = field(init=False)
    cpu: Array = field(init=False)
    hung: Flags = field(init=False)
    port_rate: Array = field(init=False)
    port: dict[str, Array] = field(init=False)
    engine_slow: dict[str, float] = field(default_factory=dict)
    engine_hung: set[str] = field(default_factory=set)
    stage_slow: dict[str, tuple[int, float]] = field(default_factory=dict)
    uplinks_full: dict[str, float] = field(default_factory=dict)
    pool_rate: Array = field(init=False)
    pool_prompt: Array = field(init=False)
    pool_output: Array = field(init=False)
    pool_hits: Array = field(init=False)
    pool_accept: Array = field(init=False)
    host_used: Array = field(init=False)
    disk_slow: Array = field(init=False)
    share_slow: float = 1.0
    share_errors: float = 0.0
    leaked: dict[str, float] = field(default_factory=dict)
    outage: dict[str, str] = field(default_factory=dict)
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skew_s: dict[str, float] = field(default_factory=dict)
    revision: int = 0

    def __post_init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        """Everything healthy again; faults that still last are applied afterwards."""
        self.revision += 1
        gpus, nodes, pools = self.spec.gpus, self.spec.nodes, len(self.spec.pools)
        ports = nodes * self.spec.ports_per_node
        self.clock, self.dram, self.nvlink = np.ones(gpus), np.ones(gpus), np.ones(gpus)
        self.pcie, self.power_cap = np.ones(gpus), np.ones(gpus)
        self.cooling, self.ecc_sbe, self.nvlink_errors = np.zeros(gpus), np.zeros(gpus), np.zeros(gpus)
        self.pcie_replays, self.xid = np.zeros(gpus), np.zeros(gpus)
        self.bits = np.zeros(gpus, dtype=np.int64)
        self.lost, self.remap_pending = np.zeros(gpus, dtype=bool), np.zeros(gpus, dtype=bool)
        self.cpu, self.hung = np.ones(nodes), np.zeros(nodes, dtype=bool)
        self.port_rate = np.ones(ports)
        self.port = {name: np.zeros(ports) for name in PORT_AILMENTS}
        self.pool_rate, self.pool_prompt, self.pool_output = np.ones(pools), np.ones(pools), np.ones(pools)
        self.pool_hits, self.pool_accept, self.host_used = np.ones(pools), np.ones(pools), np.zeros(nodes)
        self.disk_slow, self.share_slow, self.share_errors = np.ones(nodes), 1.0, 0.0
        self.engine_slow, self.engine_hung, self.leaked = {}, set(), {}
        self.stage_slow, self.uplinks_full = {}, {}
        self.outage, self.absent, self.skew_s = {}, {}, {}


PORT_AILMENTS = (
    "tx_pause_ratio", "rx_pause_ratio", "drain_ratio", "symbol_errors_per_s", "link_recovery_per_s",
    "link_downed_per_s", "ack_timeouts_per_s", "remote_phys_errors_per_s", "seq_errors_per_s",
    "out_of_sequence_per_s", "ecn_share", "cnp_handled_per_s", "rx_discards_phy_per_s", "buffer_passed_per_s",
    "pcie_stall_ratio", "corrected_bits_per_s", "pause_storm_per_s", "rnr_naks_per_s", "incast_bytes_s",
    "xmit_wait_per_s", "unmarked", "credit_stall",
)  # fmt: skip
"""What can ail a port: events per second, bytes per second, shares of time (*_ratio, credit_stall), or 1 where nothing is marked."""
