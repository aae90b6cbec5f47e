"""GPUs as heat, clocks and counters that follow the load on them."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from daemon.model import Array
from simulator.conditions import Conditions
from simulator.spec import CLOCK_MHZ, HBM_BYTES, POWER_W, WorldSpec

GAUGES = (
    "sm_clock_mhz", "mem_clock_mhz", "temp_c", "mem_temp_c", "power_w", "util_ratio", "gr_active_ratio",
    "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio", "pcie_tx_bytes_s", "pcie_rx_bytes_s",
    "nvlink_tx_bytes_s", "nvlink_rx_bytes_s", "hbm_used_bytes", "hbm_free_bytes", "hbm_total_bytes", "xid_code",
    "throttle_bits", "rows_remapped_correctable", "rows_remapped_uncorrectable", "row_remap_failed",
    "row_remap_pending", "pcie_link_gen", "pcie_link_gen_max", "pcie_link_width", "pcie_link_width_max",
    "fabric_health",
)  # fmt: skip
COUNTERS = (
    "energy_j_per_s", "power_violation_ratio", "thermal_violation_ratio", "ecc_sbe_per_s", "ecc_dbe_per_s",
    "nvlink_crc_per_s", "nvlink_replay_per_s", "nvlink_recovery_per_s", "pcie_replay_per_s",
)  # fmt: skip
_G = {name: k for k, name in enumerate(GAUGES)}
_C = {name: k for k, name in enumerate(COUNTERS)}

AMBIENT_C, HEAT_C_PER_W, THERMAL_S = 28.0, 0.068, 70.0
THROTTLE_FROM_C, THROTTLE_FULL_C = 83.0, 88.0
IDLE_W, IDLE_MHZ = 72.0, 345.0
HBM_RESERVED_BYTES = 600 * 2**20
BIT_IDLE, BIT_POWER_CAP, BIT_SW_THERMAL, BIT_HW_THERMAL = 0x1, 0x4, 0x20, 0x40
_SHARES = [_G[name] for name in ("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio")]
NOISE = 0.006


class _Ails:
    """What the present conditions mean for each GPU, see Gpus._take. All (gpu,) once a revision was taken."""

    revision = -1
    clock: Array
    governor: Array
    resistance: Array
    capped: Array
    limit_w: Array
    decode: Array
    prefill: Array
    nvlink: Array
    bits: NDArray[np.int64]
    is_uncooled: NDArray[np.bool_]


class Gpus:
    """State of every GPU.

    gauges : (gpu, GAUGES). counters : (gpu, COUNTERS) monotone totals, in the units of the catalogue times seconds.
    prefill_slow, decode_slow : (gpu,) how much longer a rank takes than a perfect one.
    """

    def __init__(self, spec: WorldSpec, rng: Generator) -> None:
        count = spec.gpus
        self.count = count
        self.gauges = np.zeros((count, len(GAUGES)))
        self.counters = np.zeros((count, len(COUNTERS)))
        self.counters[:, _C["energy_j_per_s"]] = rng.uniform(1e9, 3e9, count)
        self.counters[:, _C["power_violation_ratio"]] = rng.uniform(0, 1e4, count)
        self.rates = np.zeros_like(self.counters)
        self.silicon = 1.0 + spec.device_spread * np.clip(rng.standard_normal(count), -2.5, 2.5)
        self.warmth = 1.0 + 0.05 * rng.standard_normal(count)
        self.temp = np.full(count, 40.0)
        self.clock = np.ones(count)
        self.prefill_slow, self.decode_slow = np.ones(count), np.ones(count)
        self._ails = _Ails()
        self._constants()

    def _constants(self) -> None:
        fixed = {
            "mem_clock_mhz": 2619.0, "hbm_total_bytes": float(HBM_BYTES), "pcie_link_gen": 5.0,
            "pcie_link_gen_max": 5.0, "pcie_link_width": 16.0, "pcie_link_width_max": 16.0, "fabric_health": 1.0,
        }  # fmt: skip
        for name, value in fixed.items():
            self.gauges[:, _G[name]] = value

    def step(self, span: float, load: Load, ills: Conditions, noise: Array, dips: Array) -> None:
        """Advance heat and clocks by `span` seconds and set every gauge and counter rate."""
        if ills.revision != self._ails.revision:
            self._take(ills)
        self._clock_and_slowness(load, noise, dips)
        power = self._power(load, noise)
        # towards where heat and cooling balance
        away = AMBIENT_C + self._ails.resistance * power - self.temp
        self.temp += away * (1 - math.exp(-span / THERMAL_S))
        np.minimum(self.temp, 96.0, out=self.temp)
        self._show(load, power, noise)
        self._pace(load, power)

    def _take(self, ills: Conditions) -> None:
        """What follows from the conditions alone, until they change."""
        a, g, r = self._ails, self.gauges, self.rates
        a.revision, a.clock, a.bits = ills.revision, ills.clock, ills.bits
        a.is_uncooled = ills.cooling > 0.0
        # a GPU with its cooling intact hardly ever throttles; without it the governor takes `cooling` of the clock
        a.governor = np.maximum(ills.cooling, 0.03) / (THROTTLE_FULL_C - THROTTLE_FROM_C)
        # without its fan a GPU sheds a fifth of the heat: under load it gets as hot as the governor lets it
        a.resistance = HEAT_C_PER_W * self.warmth * (1 + 4 * np.minimum(10 * ills.cooling, 1.0))
        a.capped = np.sqrt(ills.power_cap)
        a.limit_w = POWER_W * ills.power_cap
        a.decode = 0.5 / (ills.dram * self.silicon) + 0.15 / ills.nvlink
        a.prefill = 0.1 / ills.dram + 0.1 / ills.nvlink + 0.08 / ills.pcie
        a.nvlink = ills.nvlink
        np.copyto(g[:, _G["xid_code"]], ills.xid, where=ills.xid > 0)
        g[:, _G["row_remap_pending"]] = ills.remap_pending
        g[:, _G["pcie_link_width"]] = np.rint(16 * ills.pcie)
        r[:, _C["ecc_sbe_per_s"]] = ills.ecc_sbe
        r[:, _C["nvlink_crc_per_s"]] = ills.nvlink_errors * 4
        r[:, _C["nvlink_replay_per_s"]] = ills.nvlink_errors
        r[:, _C["nvlink_recovery_per_s"]] = ills.nvlink_errors * 0.02
        r[:, _C["pcie_replay_per_s"]] = ills.pcie_replays

    def _clock_and_slowness(self, load: Load, noise: Array, dips: Array) -> None:
        a = self._ails
        hot = np.minimum(np.maximum(self.temp - THROTTLE_FROM_C, 0.0), THROTTLE_FULL_C - THROTTLE_FROM_C)
        clock = np.minimum(a.clock, 1.0 - hot * a.governor)
        clock *= 1 - dips
        speed = clock * self.silicon
        speed *= 1 + NOISE * noise
        speed *= a.capped
        self.clock = np.where(load.bound, clock * a.capped, clock)
        self.decode_slow = 0.35 / speed + a.decode
        self.prefill_slow = 0.72 / speed + a.prefill

    def _power(self, load: Load, noise: Array) -> Array:
        power = 0.18 * load.busy + 0.5 * load.tensor + 0.42 * load.dram
        power *= (POWER_W - IDLE_W - 38.0) * self.clock**1.6
        power += IDLE_W + load.bound * 38.0
        power *= 1 + 0.01 * noise
        limited: Array = np.minimum(np.maximum(power, 60.0), self._ails.limit_w)
        return limited

    def _show(self, load: Load, power: Array, noise: Array) -> None:
        g = self.gauges
        wobble = 1 + 0.02 * noise
        clock = np.where(load.bound, CLOCK_MHZ * self.clock * np.minimum(1.0, 1 + 0.002 * noise), IDLE_MHZ)
        g[:, _G["sm_clock_mhz"]] = np.floor(clock / 15.0) * 15.0
        g[:, _G["temp_c"]] = np.floor(self.temp)
        g[:, _G["mem_temp_c"]] = np.floor(self.temp * 1.08 + 3)
        g[:, _G["power_w"]] = power
        # a rank that waits for a slower one spins in the collective: busy, but its tensor cores idle
        g[:, _G["util_ratio"]] = np.rint(load.busy * 100) / 100
        g[:, _G["gr_active_ratio"]] = load.busy * 0.985
        active = np.minimum(load.share, 1.0) * wobble
        sm_active = load.busy * (0.35 * wobble + 0.5 * active)
        g[:, _SHARES] = np.minimum(
            np.stack((sm_active, load.tensor * active, load.dram * active), axis=1), 1.0
        )
        g[:, _G["pcie_tx_bytes_s"]] = 2e7 * load.bound + load.pcie_bytes_s * 0.4
        g[:, _G["pcie_rx_bytes_s"]] = 3e7 * load.bound + load.pcie_bytes_s
        nvlink = load.nvlink_bytes_s * self._ails.nvlink * wobble
        g[:, _G["nvlink_tx_bytes_s"]] = g[:, _G["nvlink_rx_bytes_s"]] = nvlink
        used = np.floor((HBM_BYTES - HBM_RESERVED_BYTES) / 2**20 * load.memory) * 2**20
        g[:, _G["hbm_used_bytes"]] = used
        g[:, _G["hbm_free_bytes"]] = HBM_BYTES - HBM_RESERVED_BYTES - used

    def _pace(self, load: Load, power: Array) -> None:
        """Throttle bits, and the counters that follow from them."""
        a, r = self._ails, self.rates
        at_cap = power >= 0.985 * a.limit_w
        warm = (self.temp > THROTTLE_FROM_C + 1) & a.is_uncooled
        bits = a.bits | np.where(load.bound, 0, BIT_IDLE)
        bits |= np.where(at_cap, BIT_POWER_CAP, 0)
        bits |= np.where(warm, BIT_SW_THERMAL, 0)
        bits |= np.where(warm & (self.temp > THROTTLE_FULL_C), BIT_HW_THERMAL, 0)
        r[:, _C["energy_j_per_s"]] = power
        r[:, _C["power_violation_ratio"]] = np.where(at_cap | (a.bits & 0x80 > 0), 0.9, 0.0)
        is_hot = bits & (BIT_SW_THERMAL | BIT_HW_THERMAL) > 0
        r[:, _C["thermal_violation_ratio"]] = np.where(is_hot, 0.95, 0.0)
        self.gauges[:, _G["throttle_bits"]] = bits

    def count_on(self, span: float) -> None:
        """Counters move on at the present rates."""
        self.counters += self.rates * span


class Load:
    """What runs on each GPU, averaged since the last step. All (gpu,).

    bound : a process holds the GPU. busy, tensor, dram : shares of time at a healthy clock. share : how much of the
    group's time this rank itself works, 1 = the slowest. memory : share of HBM in use. *_bytes_s : traffic.
    """

    def __init__(self, count: int) -> None:
        self.bound = np.zeros(count, dtype=bool)
        self.busy, self.tensor, self.dram = np.zeros(count), np.zeros(count), np.zeros(count)
        self.share, self.memory = np.ones(count), np.zeros(count)
        self.nvlink_bytes_s, self.pcie_bytes_s = np.zeros(count), np.zeros(count)
