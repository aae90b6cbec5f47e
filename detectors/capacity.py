"""Whether the forecast demand will outgrow the GPUs that stand."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.model import NAN, Entity, Evidence, Finding, Frames, Severity


@dataclass(slots=True)
class CapacityDetector:
    """Warns when the 90 % level of what all pools need exceeds the usable GPUs.

    settled_s : hours of learning behind it at least. confirm : forecasts in a row that must say so. clear_share : it must stay below this share of what stands for the
    warning to end. The core gives the outlook as the frame of kind "cluster".
    """

    confirm: int = 2
    clear_share: float = 0.97
    settled_s: float = 3 * 3600.0
    made_at: float = NAN
    in_a_row: int = 0
    is_raised: bool = False

    def update(self, frames: Frames) -> list[Finding]:
        frame = frames["cluster"]
        if not frame.entities:
            return []
        name = frame.entities[0]
        usable, need = frame.value(name, "gpus_usable"), frame.value(name, "gpus_needed_q90")
        # What a replica holds is guessed from few hours at first: a warning built on that would cry wolf.
        if need != need or frame.value(name, "learnt_s") < self.settled_s:
            return []
        made_at = frame.value(name, "made_at_s")
        limit = usable * self.clear_share if self.is_raised else usable
        if made_at != self.made_at:
            self.made_at = made_at
            self.in_a_row = self.in_a_row + 1 if need > limit else 0
            self.is_raised = self.in_a_row >= self.confirm
        if not self.is_raised:
            return []
        lead = frame.value(name, "short_in_s")
        median = frame.value(name, "gpus_needed_q50")
        severity = Severity.CRITICAL if median > usable and lead < 86400.0 else Severity.WARNING
        evidence = (
            Evidence("gpus_needed_q90", need, "GPUs", usable),
            Evidence("gpus_needed_q50", median, "GPUs", usable),
            Evidence("short_in", lead / 3600.0, "h"),
            Evidence("deficit", frame.value(name, "short_gpu_hours"), "GPU-hours at q90"),
        )
        text = f"{need:.0f} GPUs may be needed (1 in 10) and {usable:.0f} stand"
        if need > usable:
            text += (
                f"; first short in {lead / 3600.0:.0f} h. {need - usable:.0f} more GPUs would close the gap."
            )
        else:
            text += "; just enough, and too close to call it over."
        score = 0.9 if median > usable else 0.6
        entity = Entity("cluster", name)
        return [
            Finding(
                frames.at, "capacity", entity, "capacity_short", score, severity, evidence, frames.at, text
            )
        ]
