"""GPU clocks held down by heat, power brakes, hardware slowdown."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.scales import Flags
from detectors.stats import Groups, groups, peers, rows

THERMAL, BRAKE, SLOWDOWN = 0x20 | 0x40, 0x80, 0x8


@dataclass(slots=True)
class Clocks:
    """best : highest clock each peer group has shown so far."""

    best: dict[str, float] = field(default_factory=dict)

    def throttled(self, gpu: Frame, share: float, whole: float) -> list[Finding]:
        """A bit that holds the clock **and** a clock that is held: below the peers, or below the group's own best."""
        bits, clock = gpu.column("throttle_bits"), gpu.column("sm_clock_mhz")
        where = groups(gpu.facts.get("peer", ("",) * len(gpu.entities)))
        best = self._best(gpu, clock, where)
        held_back = np.fmax(bits, 0.0).astype(np.int64) & (THERMAL | BRAKE | SLOWDOWN)
        if not held_back.any():
            return []
        around = peers(clock, where)
        with np.errstate(invalid="ignore"):
            deficit = 1.0 - clock / around.median
            # Peers that are held back alike show no deficit: a whole rack slow for days has gone unseen that way.
            below_best = 1.0 - clock / best > whole
        slow = (held_back > 0) & ((deficit > share) | ~np.isfinite(deficit) | below_best)
        slow |= _same_brake(gpu, held_back & BRAKE > 0, slow)
        return [self._claim(gpu, i, int(held_back[i]), clock, around.median, best) for i in rows(slow)]

    def _claim(self, gpu: Frame, i: int, bits: int, clock: Array, peer: Array, best: Array) -> Finding:
        temperature = gpu.value(gpu.entities[i], "temp_c")
        evidence = (
            Evidence("sm_clock", float(clock[i]), "MHz", float(peer[i])),
            Evidence("throttle_bits", float(bits), "bitmask"),
            Evidence("temperature", temperature, "C"),
            Evidence("best_clock_of_group", float(best[i]), "MHz"),
        )
        rejected = ["the software power cap alone: another reason bit is set"]
        if peer[i] == peer[i] and clock[i] < peer[i]:
            rejected.append("an idle GPU, or a change of the whole group: its peers hold their clock")
        if bits & BRAKE:
            rule, text = "fault.power_brake", "the power supply holds the clock down"
        elif bits & THERMAL:
            rule, text = "fault.thermal", "heat holds the clock down"
        else:
            rule, text = "fault.hw_slowdown", "the hardware holds the clock down and names no cause"
        return say(
            gpu.at,
            rule,
            Entity("gpu", gpu.entities[i]),
            "gpu_throttle",
            0.95,
            Severity.WARNING,
            *evidence,
            text=text,
            rejected=tuple(rejected),
        )

    def _best(self, gpu: Frame, clock: Array, where: Groups) -> Array:
        """(entity,) highest clock its peer group has shown so far, NaN outside a group."""
        keys = gpu.facts.get("peer", ())
        best = np.full(len(gpu.entities), NAN)
        for member in where.member:
            rows_of = member[member >= 0]
            key = keys[rows_of[0]]
            top = np.fmax.reduce(clock[rows_of], initial=self.best.get(key, NAN))
            if top == top:
                best[rows_of] = self.best[key] = float(top)
        return best


def _same_brake(gpu: Frame, braked: Flags, slow: Flags) -> Flags:
    """(entity,) GPUs under a brake that holds others of their rack down. The brake is a wire from the power supply: an idle
    GPU shows it in no clock, and is a witness all the same that it is the rack's."""
    racks = gpu.facts.get("rack", ("",) * len(gpu.entities))
    held = {racks[i] for i in rows(braked & slow)} - {""}
    same: Flags = braked & np.array([rack in held for rack in racks], dtype=bool)
    return same
