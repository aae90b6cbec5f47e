"""GPU memory: what its error counters, spare rows, retired pages say."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.stats import Streak, rows

ROWS_MAX = 512.0
"""Rows that can be remapped in all. Source: NVIDIA's A100/H100 memory error management, section row remapping."""
AHEAD_S = 14 * 86400.0
LOOK_EVERY_S = 3600.0
STORM_S = 300.0

STATES = (
    ("ecc_dbe_per_s", "gpu_uncontained", Severity.CRITICAL, 1.0, "fault.ecc_uncorrectable"),
    ("row_remap_failed", "gpu_memory", Severity.CRITICAL, 1.0, "fault.remap_failed"),
    ("banks_no_rows", "gpu_memory", Severity.WARNING, 0.9, "fault.rows_exhausted"),
    ("row_remap_pending", "gpu_memory", Severity.INFO, 0.8, "fault.remap_pending"),
    ("pages_retired_pending", "gpu_memory", Severity.INFO, 0.8, "fault.retire_pending"),
)
"""signal above 0, kind, severity, score, rule."""
TEXTS = {
    "ecc_uncorrectable": "uncorrectable error in this interval: drain, reset",
    "remap_failed": "a row could not be remapped: drain, replace",
    "rows_exhausted": "a memory bank has no spare row left: the next bad row cannot be repaired; plan its replacement",
    "remap_pending": "finish the work, reset at the next quiet hour",
    "retire_pending": "a page waits to be retired: reset at the next quiet hour",
}


@dataclass(slots=True)
class Memory:
    """held : how long corrected errors have stormed. looked_at, remapped : the last look at the slope, in rows a GPU."""

    held: Streak = field(default_factory=Streak)
    looked_at: float = -np.inf
    remapped: dict[str, list[float]] = field(default_factory=dict)

    def states(self, gpu: Frame, sbe_per_s: float) -> list[Finding]:
        """What is zero on sound memory. Called only when something is not."""
        found = []
        for signal, kind, severity, score, rule in STATES:
            values = gpu.column(signal)
            for i in rows(values > 0.0):
                entity, evidence = Entity("gpu", gpu.entities[i]), Evidence(signal, float(values[i]), "")
                text = TEXTS[rule.partition(".")[2]]
                found.append(say(gpu.at, rule, entity, kind, score, severity, evidence, text=text))
        return [*found, *self._storm(gpu, sbe_per_s)]

    def _storm(self, gpu: Frame, limit: float) -> list[Finding]:
        """Corrected errors in numbers that no layer reports: 4,647/s went on for hours in the field."""
        rate = gpu.column("ecc_sbe_per_s")
        place = {gpu.entities[i]: i for i in rows(rate > limit)}
        return [
            say(
                gpu.at,
                "fault.ecc_storm",
                Entity("gpu", name),
                "gpu_memory",
                0.8,
                Severity.WARNING,
                Evidence("ecc_sbe", float(rate[place[name]]), "1/s", 0.0),
                Evidence("held", held_s, "s"),
                since=gpu.at - held_s,
                text="a storm of corrected errors: avoid it, plan a drain",
                rejected=(f"single corrected errors: above {limit:g}/s for {held_s / 60.0:.0f} min",),
            )
            for name, held_s in self.held.held(gpu.at, list(place)).items()
            if held_s >= STORM_S
        ]

    def slope(self, gpu: Frame) -> list[Finding]:
        """Once an hour: remapped rows that will run out within a fortnight at the pace of the last day."""
        if gpu.at - self.looked_at < LOOK_EVERY_S:
            return []
        self.looked_at = gpu.at
        total = gpu.column("rows_remapped_correctable") + gpu.column("rows_remapped_uncorrectable")
        found = []
        for i in rows(total > 0):
            name, count = gpu.entities[i], float(total[i])
            past = self.remapped.setdefault(name, [])
            past[:] = [*past, count][-25:]
            a_day = (count - past[0]) / max(1, len(past) - 1) * 24.0
            if count >= ROWS_MAX or (a_day > 0 and (ROWS_MAX - count) / a_day * 86400.0 < AHEAD_S):
                days = max(0.0, (ROWS_MAX - count) / a_day) if a_day > 0 else 0.0
                evidence = (
                    Evidence("rows_remapped", count, "rows", ROWS_MAX),
                    Evidence("rows_a_day", a_day, "rows"),
                )
                text = f"spare rows run out in {days:.0f} days at this pace: plan its replacement"
                entity = Entity("gpu", name)
                found.append(
                    say(
                        gpu.at,
                        "fault.rows_slope",
                        entity,
                        "gpu_memory",
                        0.6,
                        Severity.INFO,
                        *evidence,
                        text=text,
                    )
                )
        for name in self.remapped.keys() - set(gpu.entities):
            del self.remapped[name]
        return found
