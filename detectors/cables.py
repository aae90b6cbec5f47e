"""Cables and optics: physical errors that load does not explain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.portrates import alike
from detectors.stats import groups, peers, rows


@dataclass(slots=True)
class Cables:
    """errors_m of errors_n ticks with physical errors make a bad cable; a link that went down does at once.

    ageing_decades : corrected bits this many decades above the peers' are an ageing optic. ageing_bits : and this many
    a second at least. flagged : port -> ticks with errors.
    """

    errors_m: int = 3
    errors_n: int = 8
    ageing_decades: float = 1.0
    ageing_bits: float = 100.0
    flagged: dict[str, list[int]] = field(default_factory=dict)
    ageing: list[Finding] = field(default_factory=list)
    ticks: int = 0

    def update(self, port: Frame, errors: Array, downed: Array, upstream: Array) -> list[Finding]:
        """errors : (port,) physical errors per second of all kinds. downed : link losses. upstream : remote errors."""
        self.ticks += 1
        has_errors = errors > 0
        if not self.flagged and not has_errors.any():
            return []
        for i in rows(has_errors):
            self.flagged.setdefault(port.entities[i], []).append(self.ticks)
        found = []
        place = {n: i for i, n in enumerate(port.entities)}
        for name, ticks in list(self.flagged.items()):
            ticks[:] = [t for t in ticks if t > self.ticks - self.errors_n]
            if not ticks:
                del self.flagged[name]
                continue
            i = place.get(name, -1)
            if i < 0 or (len(ticks) < self.errors_m and not downed[i] > 0):
                continue
            evidence = (
                Evidence("physical_errors", float(errors[i]), "1/s", 0.0),
                Evidence("ticks_with_errors", float(len(ticks)), f"of {self.errors_n}"),
            )
            is_upstream = bool(upstream[i] > 0)
            text = "the other end of the link counts the errors: look upstream first" if is_upstream else ""
            found.append(
                Finding(
                    port.at,
                    "congestion",
                    Entity("port", name),
                    "bad_cable",
                    0.7 if is_upstream else 0.95,
                    Severity.WARNING,
                    evidence,
                    port.at,
                    text,
                )
            )
        return found

    def optics(self, port: Frame, corrected: Array) -> list[Finding]:
        """Corrected bits far above the peers': the optic will fail, nothing is lost yet. corrected : (port,) bits/s."""
        if self.ticks % 4 != 1:  # it moves over days; between two looks the last word stands
            return [replace(claim, at=port.at) for claim in self.ageing if claim.entity.name in port.entities]
        known = np.isfinite(corrected)
        high = corrected > self.ageing_bits
        self.ageing = []
        if not high.any():
            return []
        bits = np.log10(np.maximum(np.where(known, corrected, 1.0), 1.0))
        bits[~known] = NAN
        around = peers(bits, groups(alike(port.entities)), least=3)
        high &= bits - around.median > self.ageing_decades
        self.ageing = [
            Finding(
                port.at,
                "congestion",
                Entity("port", port.entities[i]),
                "optic_ageing",
                0.7,
                Severity.WARNING,
                (Evidence("corrected_bits_log10", float(bits[i]), "log10 bit/s", float(around.median[i])),),
                port.at,
            )
            for i in rows(high)
        ]
        return self.ageing
