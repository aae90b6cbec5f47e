"""Whether a region that was heard of has gone."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.model import NAN, Entity, Evidence, Finding, Frames, Severity
from detectors.claims import say

FRONT_S = 30.0


@dataclass(slots=True)
class RegionDetector:
    """Claims a region whose front door no longer answers, or of which nobody has heard for long.

    silent_s : silence of a region's own daemon that counts as a loss where no probe says otherwise. Judgement: as long as
    `regions.lost_after`. heard, shut : region -> when its health was last known; since when its probe fails.
    """

    silent_s: float = 120.0
    heard: dict[str, float] = field(default_factory=dict)
    shut: dict[str, float] = field(default_factory=dict)

    def update(self, frames: Frames) -> list[Finding]:
        frame = frames["region"]
        if not frame.entities:
            return []
        found = []
        rows = frame.columns(("health_ratio", "front_up", "requests_per_s")).tolist()
        for name, (health, front, _) in zip(frame.entities, rows, strict=True):
            if health == health:
                self.heard[name] = frames.at
            if front == 0.0:
                self.shut.setdefault(name, frames.at)
            else:
                self.shut.pop(name, None)
        self.heard = {n: at for n, at in self.heard.items() if n in frame.entities}
        fronts = {name: front for name, (_, front, _) in zip(frame.entities, rows, strict=True)}
        silent = sum(frames.at - at > self.silent_s and fronts[n] != 1.0 for n, at in self.heard.items())
        # When most fall silent together this daemon is rather cut off than they are.
        is_cut_off = 2 * silent > len(frame.entities)
        for name, front in fronts.items():
            found += self._claim(frames.at, name, front, is_cut_off)
        return found

    def _claim(self, at: float, name: str, front: float, is_cut_off: bool) -> list[Finding]:
        silent_s = at - self.heard.get(name, NAN)
        shut_s = at - self.shut.get(name, NAN)
        entity = Entity("region", name)
        if shut_s >= FRONT_S:
            evidence = Evidence("front_down", shut_s, "s")
            text = f"the front door of region {name} has not answered a probe for {shut_s:.0f} s"
            rule = "regions.front_down"
        elif silent_s > self.silent_s and front != 1.0 and not is_cut_off:
            evidence = Evidence("silent", silent_s, "s")
            text = f"nothing was heard of region {name} for {silent_s:.0f} s"
            rule = "regions.silent"
        else:
            return []
        since = self.shut.get(name, at) if rule == "regions.front_down" else self.heard[name]
        return [
            say(at, rule, entity, "region_lost", 0.95, Severity.CRITICAL, evidence, since=since, text=text)
        ]
