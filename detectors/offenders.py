"""Nodes on which something was slow again and again within a week."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.model import Entity, Evidence, Finding, Frame, Severity

WEEK_S = 7 * 86_400.0
EPISODE_GAP_S = 3600.0


@dataclass(slots=True)
class Offenders:
    """Counts episodes of slowness by node over a week; one that comes back after an hour of quiet is another episode.

    least : episodes that make a repeat offender. apart_s : they must reach over at least this long, so that one bad
    afternoon is not yet a habit. episodes : node -> times at which one began. seen : node -> last time slow.
    """

    least: int = 3
    apart_s: float = 86_400.0
    episodes: dict[str, list[float]] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    def update(self, at: float, claims: Sequence[Finding], engine: Frame) -> list[Finding]:
        """claims : of this tick. Returns one finding a repeat offender."""
        if not claims and not self.episodes:
            return []
        for node in {_node(claim.entity, engine) for claim in claims} - {""}:
            if at - self.seen.get(node, -EPISODE_GAP_S) >= EPISODE_GAP_S:
                self.episodes.setdefault(node, []).append(at)
            self.seen[node] = at
        found = []
        for node, times in list(self.episodes.items()):
            times[:] = [t for t in times if at - t < WEEK_S]
            if not times:
                del self.episodes[node], self.seen[node]
            elif len(times) >= self.least and times[-1] - times[0] >= self.apart_s:
                found.append(
                    Finding(
                        at,
                        "straggler",
                        Entity("node", node),
                        "repeat_offender",
                        min(0.9, 0.4 + 0.1 * len(times)),
                        Severity.INFO,
                        (Evidence("episodes", float(len(times)), "in 7 days"),),
                        times[0],
                        f"{node} was slow {len(times)} times within a week: have its hardware looked at",
                    )
                )
        return found


def _node(entity: Entity, engine: Frame) -> str:
    if entity.kind == "gpu":
        return entity.name.split("/", 1)[0]
    return engine.fact(entity.name, "node") if entity.kind == "engine" else ""
