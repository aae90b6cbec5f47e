"""Whether the telemetry itself can be believed: silence, frozen pages, clocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daemon.model import Entity, Evidence, Finding, Frames, Severity
from detectors.stats import rows


@dataclass(slots=True)
class IntegrityDetector:
    """silent_s : two missed scrapes of 15 s and a little. frozen_s : a page of live hardware always moves.

    lost_share : share of targets silent at once that is one event, not many. skew_s : clock error worth a word.
    start_s : grace of a target that has never answered.
    Source: judgement, see docs/decisions/0004-incident-patience.md.
    """

    silent_s: float = 35.0
    frozen_s: float = 180.0
    lost_share: float = 0.3
    skew_s: float = 30.0
    start_s: float = 900.0

    def update(self, frames: Frames) -> list[Finding]:
        return [*self._silent(frames), *self._frozen(frames), *self._skewed(frames)]

    def _silent(self, frames: Frames) -> list[Finding]:
        target = frames["target"]
        silent, fails = target.column("silent_s"), target.column("fails")
        # What has never answered is not down yet: an engine that starts shows up before its page does.
        starting = (target.column("series") == 0) & (silent < self.start_s)
        down = rows((silent > self.silent_s) & (fails > 0) & ~starting)
        found = []
        if len(down) >= 3 and len(down) > self.lost_share * len(target.entities):
            share = (Evidence("targets_silent", float(len(down)), f"of {len(target.entities)}"),)
            scope = Entity("cluster", "telemetry")
            found.append(
                Finding(
                    frames.at, "integrity", scope, "telemetry_lost", 0.9, Severity.CRITICAL, share, frames.at
                )
            )
        errors = target.facts.get("error", ("",) * len(target.entities))
        for i in down:
            evidence = (
                Evidence("silent", float(silent[i]), "s"),
                Evidence("failed_scrapes", float(fails[i]), ""),
            )
            entity = Entity("target", target.entities[i])
            since = frames.at - float(silent[i])
            found.append(
                Finding(
                    frames.at,
                    "integrity",
                    entity,
                    "target_down",
                    1.0,
                    Severity.WARNING,
                    evidence,
                    since,
                    errors[i],
                )
            )
        return found

    def _frozen(self, frames: Frames) -> list[Finding]:
        """A page that answers and never changes. GPUs and hosts always move a little; an engine only when the
        load balancer sees it working, because an idle engine's page stands still by right."""
        target, engine = frames["target"], frames["engine"]
        unchanged = target.column("unchanged_s")
        fresh = target.column("silent_s") < self.silent_s
        names = engine.facts.get("target", ("",) * len(engine.entities))
        owner = {t: i for i, t in enumerate(names) if t}
        done, sessions = engine.column("lb_done_per_s"), engine.column("lb_sessions")
        found = []
        for i in rows(fresh & (unchanged > self.frozen_s) & (target.column("series") > 0)):
            name = target.entities[i]
            if name in owner and not done[owner[name]] > 0:
                continue
            if name not in owner and not target.facts.get("node", ("",) * len(target.entities))[i]:
                continue
            evidence = [Evidence("unchanged", float(unchanged[i]), "s")]
            if name in owner:
                evidence.append(Evidence("completed_at_gateway", float(done[owner[name]]), "1/s"))
                evidence.append(Evidence("sessions_at_gateway", float(sessions[owner[name]]), ""))
            since = frames.at - float(unchanged[i])
            entity = Entity("target", name)
            found.append(
                Finding(
                    frames.at,
                    "integrity",
                    entity,
                    "telemetry_frozen",
                    0.8,
                    Severity.WARNING,
                    tuple(evidence),
                    since,
                )
            )
        return found

    def _skewed(self, frames: Frames) -> list[Finding]:
        node = frames["node"]
        skew = node.column("clock_s") - (frames.at - node.age_s)
        return [
            Finding(
                frames.at,
                "integrity",
                Entity("node", node.entities[i]),
                "clock_skew",
                0.9,
                Severity.WARNING,
                (Evidence("clock_skew", float(skew[i]), "s", 0.0),),
                frames.at,
            )
            for i in rows(np.abs(skew) > self.skew_s)
        ]
