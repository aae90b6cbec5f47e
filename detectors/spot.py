"""Nodes that their owner is about to take back."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.model import Entity, Evidence, Finding, Frames, Severity
from detectors.claims import say

GONE_S = 300.0


@dataclass(slots=True)
class SpotDetector:
    """Claims a node from its notice on until it has gone, or until `GONE_S` after it should have.

    until : node -> when it is taken. since : node -> when the notice came.
    """

    until: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    def update(self, frames: Frames) -> list[Finding]:
        for event in frames.events:
            if event.kind == "spot_reclaim" and event.code == event.code:
                self.until[event.entity.name] = event.at + event.code
                self.since.setdefault(event.entity.name, event.at)
        if not self.until:
            return []
        known = frames["node"].entities
        self.until = {n: t for n, t in self.until.items() if frames.at <= t + GONE_S}
        self.since = {n: t for n, t in self.since.items() if n in self.until}
        return [self._claim(frames.at, name) for name in self.until if not known or name in known]

    def _claim(self, at: float, name: str) -> Finding:
        left_s = self.until[name] - at
        text = (
            f"{name} is taken back in {left_s:.0f} s"
            if left_s > 0
            else f"{name} was to be taken back {-left_s:.0f} s ago"
        )
        evidence = Evidence("left", left_s, "s")
        return say(
            at, "spot.notice", Entity("node", name), "node_reclaimed", 1.0, Severity.WARNING, evidence,
            since=self.since[name], text=text,
        )  # fmt: skip
