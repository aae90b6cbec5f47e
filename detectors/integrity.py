"""Whether the telemetry itself can be believed: silence, frozen pages, lost fields, clocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.fields import Fields
from detectors.stats import Streak, rows


@dataclass(slots=True)
class IntegrityDetector:
    """silent_s : two missed scrapes of 15 s and a little. frozen_s : a page of live hardware always moves.

    page_s : silence worth a page: of ten thousand exporters some miss two scrapes by chance every hour.
    lost_share : share of targets silent at once that is one event, not many. skew_s : clock error worth a word.
    start_s : grace of a target that has never answered. slow_s : an answer that takes longer nearly misses its slot;
    held_s : for so long, or lines that could not be read.
    Source: judgement, see docs/decisions/0004-incident-patience.md; docs/en/reference/integrity.md.
    """

    silent_s: float = 35.0
    page_s: float = 90.0
    frozen_s: float = 180.0
    lost_share: float = 0.3
    skew_s: float = 30.0
    start_s: float = 900.0
    slow_s: float = 5.0
    held_s: float = 300.0
    held: Streak = field(default_factory=Streak)
    clocks: dict[str, float] = field(default_factory=dict)
    fields: Fields = field(default_factory=Fields)

    def update(self, frames: Frames) -> list[Finding]:
        worst = frames["target"].columns(("silent_s", "unchanged_s", "took_s", "dropped"))
        found = []
        # In nearly every tick one look over all pages is enough.
        if (worst > (self.silent_s, self.frozen_s, self.slow_s, 0.0)).any():
            found = [*self._silent(frames), *self._frozen(frames), *self._pages(frames)]
        return [*found, *self._skewed(frames), *self.fields.update(frames)]

    def _silent(self, frames: Frames) -> list[Finding]:
        target = frames["target"]
        silent, fails = target.column("silent_s"), target.column("fails")
        failing = (silent > self.silent_s) & (fails > 0)
        if not failing.any():
            return []
        # What has never answered is not down yet: an engine that starts shows up before its page does.
        starting = (target.column("series") == 0) & (silent < self.start_s)
        down = rows(failing & ~starting)
        found = []
        if len(down) >= 3 and len(down) > self.lost_share * len(target.entities):
            share = Evidence("targets_silent", float(len(down)), f"of {len(target.entities)}")
            scope = Entity("cluster", "telemetry")
            found.append(
                say(
                    frames.at,
                    "integrity.telemetry_lost",
                    scope,
                    "telemetry_lost",
                    0.9,
                    Severity.CRITICAL,
                    share,
                    text="look at what the silent exporters share: a network, an account, this daemon's host",
                    rejected=("many faults at once: so much does not fail together by chance",),
                )
            )
        errors = target.facts.get("error", ("",) * len(target.entities))
        serving = _serving(frames["engine"]) if down else {}
        for i in down:
            name = target.entities[i]
            evidence = [
                Evidence("silent", float(silent[i]), "s"),
                Evidence("failed_scrapes", float(fails[i]), ""),
            ]
            why: tuple[str, ...] = ()
            if name in serving:
                evidence.append(Evidence("completed_at_gateway", serving[name], "1/s"))
                why = ("a fault of the engine: the gateway sees its requests complete",)
            found.append(
                say(
                    frames.at,
                    "integrity.target_down",
                    Entity("target", name),
                    "target_down",
                    1.0,
                    Severity.WARNING if silent[i] >= self.page_s else Severity.INFO,
                    *evidence,
                    since=frames.at - float(silent[i]),
                    text=errors[i],
                    rejected=why,
                )
            )
        return found

    def _frozen(self, frames: Frames) -> list[Finding]:
        """A page that answers and never changes. GPUs and hosts always move a little; an engine only when the
        load balancer sees it working, because an idle engine's page stands still by right."""
        target = frames["target"]
        unchanged = target.column("unchanged_s")
        still = (
            (target.column("silent_s") < self.silent_s)
            & (unchanged > self.frozen_s)
            & (target.column("series") > 0)
        )
        if not still.any():
            return []
        engine = frames["engine"]
        pages = engine.facts.get("target", ("",) * len(engine.entities))
        owner = {t: i for i, t in enumerate(pages) if t}
        done, sessions = engine.column("lb_done_per_s"), engine.column("lb_sessions")
        homes = target.facts.get("node", ("",) * len(target.entities))
        found = []
        for i in rows(still):
            name = target.entities[i]
            if (name in owner and not done[owner[name]] > 0) or (name not in owner and not homes[i]):
                continue
            evidence = [Evidence("unchanged", float(unchanged[i]), "s")]
            if name in owner:
                evidence.append(Evidence("completed_at_gateway", float(done[owner[name]]), "1/s"))
                evidence.append(Evidence("sessions_at_gateway", float(sessions[owner[name]]), ""))
            found.append(
                say(
                    frames.at,
                    "integrity.page_frozen",
                    Entity("target", name),
                    "telemetry_frozen",
                    0.8,
                    Severity.WARNING,
                    *evidence,
                    since=frames.at - float(unchanged[i]),
                    rejected=("an idle engine: the gateway sees it work",) if name in owner else (),
                )
            )
        return found

    def _skewed(self, frames: Frames) -> list[Finding]:
        """A clock that runs and is off. One that stands still is that of a page that no longer changes."""
        node = frames["node"]
        told = node.column("clock_s")
        skew = told - (frames.at - node.age_s)
        off = rows(np.abs(skew) > self.skew_s)
        before, self.clocks = self.clocks, {node.entities[i]: float(told[i]) for i in off}
        return [
            say(
                frames.at,
                "integrity.clock_skew",
                Entity("node", node.entities[i]),
                "clock_skew",
                0.9,
                Severity.WARNING,
                Evidence("clock_skew", float(skew[i]), "s", 0.0),
            )
            for i in off
            if before.get(node.entities[i], told[i]) != told[i]
        ]

    def _pages(self, frames: Frames) -> list[Finding]:
        """Pages that answer late, or of which lines cannot be read, scrape after scrape."""
        target = frames["target"]
        took, dropped = target.column("took_s"), target.column("dropped")
        up = target.column("up") == 1.0
        slow, torn = up & (took > self.slow_s), up & (dropped > 0)
        if not (slow | torn).any():
            return []
        place = {f"slow {target.entities[i]}": i for i in rows(slow)}
        place |= {f"torn {target.entities[i]}": i for i in rows(torn)}
        return [
            self._page(target, place[name], name.startswith("slow"), held_s)
            for name, held_s in self.held.held(frames.at, list(place)).items()
            if held_s >= self.held_s
        ]

    def _page(self, target: Frame, i: int, is_slow: bool, held_s: float) -> Finding:
        signal, unit = ("took_s", "s") if is_slow else ("dropped", "lines")
        kind = "exporter_slow" if is_slow else "page_broken"
        return say(
            target.at,
            f"integrity.{kind}",
            Entity("target", target.entities[i]),
            kind,
            0.9,
            Severity.INFO if is_slow else Severity.WARNING,
            Evidence("answer_took" if is_slow else "lines_not_read", float(target.column(signal)[i]), unit),
            Evidence("held", held_s, "s"),
            since=target.at - held_s,
            text="it answers later and later scrapes miss it"
            if is_slow
            else "lines are malformed, or repeat a series that was written already (duplicate labels)",
        )


def _serving(engine: Frame) -> dict[str, float]:
    """page -> requests a second that the gateway sees completed by its engine, where there are any."""
    done = engine.column("lb_done_per_s")
    pages = engine.facts.get("target", ("",) * len(engine.entities))
    return {pages[i]: float(done[i]) for i in rows(done > 0) if pages[i]}
