"""Engines judged by two witnesses at once: their own page, and the gateway in front of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import say
from detectors.crowds import Crowds
from detectors.stats import Streak, rows
from detectors.usual import Usual

Flags = NDArray[np.bool_]
SIGNALS = (
    "lb_sessions",
    "lb_done_per_s",
    "generation_tokens_s",
    "lb_up",
    "running",
    "requests_done_per_s",
    "lb_weight",
)
EXPECTED = 8.0
"""Completions that should have come and did not: by chance once in e^8, 3,000 looks (Poisson)."""
ALONE_S = 75.0
DOWN_S = 15.0
"""Until a page that is gone is an engine that is gone, where the gateway cannot tell: a restart of the exporter is over
by then. See docs/decisions/0004-incident-patience.md."""
RESTART_S = 240.0
"""Out at the load balancer for this long is no restart any more: most cold starts are over. Judgement."""
REFUSED = ("refused", "reset by peer", "connection reset")
LATE = ("no answer", "timed out", "timeout")


@dataclass(slots=True)
class Witnesses:
    """The gateway sees sessions and no completions: hung. The page is gone and the gateway does not contradict: down.

    A page that is gone or stale while requests complete is telemetry trouble and nothing else. What a page said before
    it stopped answering counts for nothing.
    An engine that has just come in has nothing to complete yet, and what it did before it went says nothing of it.
    first_seen, served : when an engine was first known, and last showed a running count. starts : pool -> measured
    cold starts in seconds, the newest last. proven : engines that have completed a request since they came in.
    """

    completions: Usual = field(default_factory=Usual)
    crowds: Crowds = field(default_factory=Crowds)
    held: Streak = field(default_factory=Streak)
    alone: Streak = field(default_factory=Streak)
    out: Streak = field(default_factory=Streak)
    gone: Streak = field(default_factory=Streak)
    first_seen: dict[str, float] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)
    proven: frozenset[str] = frozenset()
    began: float = NAN
    at: float = NAN

    def update(self, frames: Frames, hung_sessions: float, hung_s: float, start_s: float) -> list[Finding]:
        engine = frames["engine"]
        elapsed = frames.at - self.at
        self.began = frames.at if self.began != self.began else self.began
        self.at = frames.at
        table = engine.columns(SIGNALS)
        should = self._should_serve(engine, table[:, 4], start_s)
        done = table[:, 1]
        usual = self.completions.before(engine.entities, done, elapsed, done > 0)
        due = usual * elapsed
        fails = _page_fails(frames, engine)
        found = [
            *self._down(frames, engine, table, should, due),
            *self.crowds.update(engine, fails, elapsed),
        ]
        self._prove(engine, table, fails, hung_sessions)
        if (done > 0).all():
            return found
        # By Little's law an engine with fewer sessions than usual completes as many fewer: one that is drained, say.
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = usual * np.fmin(table[:, 0] / self.crowds.usual.level, 1.0)
        return [
            *self._hung(engine, table, fails, rate, elapsed, hung_sessions, hung_s),
            *self._alone(engine, table),
            *found,
        ]

    # -- hung -------------------------------------------------------------------------------------------

    def _prove(self, engine: Frame, table: Array, fails: Flags, least: float) -> None:
        """Who has completed a request since it came in. One that is out, or silent, with hardly a session left is going
        or coming; a frozen one keeps its sessions."""
        completes = table[:, 1] > 0
        away = ((table[:, 3] == 0.0) | fails) & ~completes & ~(table[:, 0] >= least)
        names = np.array(engine.entities, dtype=object)
        self.proven = (self.proven & set(names[~away])) | set(names[completes])

    def _hung(
        self,
        engine: Frame,
        table: Array,
        fails: Flags,
        rate: Array,
        elapsed: float,
        least: float,
        hung_s: float,
    ) -> list[Finding]:
        """Sessions open at the gateway, none completed, no tokens. One scrape is enough where many should have
        completed in it; two where its page shows no token made; where its page is silent, as long as it takes for many to
        be due. fails : (engine,) its page did not answer. rate : (engine,) completions a second to be expected.
        elapsed : seconds since the last tick."""
        sessions, done = table[:, 0], table[:, 1]
        tokens = np.where(fails, NAN, table[:, 2])
        hung = (sessions >= least) & (done <= 0.0) & ~(tokens > 0.0)
        if not hung.any():
            return []
        place = {engine.entities[i]: i for i in rows(hung)}
        idle = tokens == 0.0
        # A page that answers and has no token rate yet is that of a process that has just begun.
        fresh = np.array([name not in self.proven for name in engine.entities]) | ~(idle | fails)
        at_once = (rate * elapsed >= EXPECTED) & ~fresh
        patience_s = np.where(fresh, ALONE_S, hung_s)
        found = []
        for name, held_s in self.held.held(engine.at, list(place)).items():
            i = place[name]
            # All that should have completed since it was first seen like this: the longer, the less by chance.
            missed = float(rate[i] * (held_s + elapsed))
            lasts = held_s >= patience_s[i] and (idle[i] or missed >= EXPECTED)
            if not (lasts or at_once[i]):
                continue
            evidence = (
                Evidence("sessions_at_gateway", float(sessions[i]), ""),
                Evidence("completed_at_gateway", 0.0, "1/s"),
                Evidence("completions_missed", missed, ""),
                Evidence("running_on_its_page", float(table[i, 4]), ""),
                Evidence("held", held_s, "s"),
            )
            rejected = ["an idle engine: the gateway holds sessions open with it"]
            if tokens[i] == tokens[i]:
                rejected.append("long answers: its page shows no token made")
            if missed >= EXPECTED:
                rejected.append(f"chance: {missed:.0f} requests should have completed since then")
            found.append(
                say(
                    engine.at,
                    "serving.engine_hung",
                    Entity("engine", name),
                    "engine_hung",
                    0.9,
                    Severity.CRITICAL,
                    *evidence,
                    since=engine.at - held_s,
                    rejected=tuple(rejected),
                    p=float(np.exp(-missed)) if missed >= EXPECTED else NAN,
                )
            )
        return found

    def _alone(self, engine: Frame, table: Array) -> list[Finding]:
        """Without a gateway only the page speaks: requests running, none finished, no token for over a minute."""
        still = (table[:, 4] > 0) & (table[:, 2] == 0.0) & ~(table[:, 5] > 0) & ~np.isfinite(table[:, 0])
        if not still.any():
            return []
        names = [engine.entities[i] for i in rows(still)]
        return [
            say(
                engine.at,
                "serving.engine_hung_page",
                Entity("engine", name),
                "engine_hung",
                0.6,
                Severity.WARNING,
                Evidence("running", engine.value(name, "running"), "requests"),
                Evidence("tokens", 0.0, "1/s"),
                Evidence("held", held_s, "s"),
                since=engine.at - held_s,
                text="one witness only: no gateway is scraped that could contradict",
            )
            for name, held_s in self.alone.held(engine.at, names).items()
            if held_s >= ALONE_S
        ]

    # -- down -------------------------------------------------------------------------------------------

    def _down(
        self, frames: Frames, engine: Frame, table: Array, should: np.ndarray, due: Array
    ) -> list[Finding]:
        """Two scrapes without a page. Where the gateway sees that nothing completes and much was due, that is enough;
        where it cannot tell, silence must last. due : (engine,) completions expected since the last tick."""
        target = frames["target"]
        is_out = table[:, 3] == 0.0
        failing = {target.entities[i] for i in rows(target.column("fails") >= 2.0)}
        if not failing and not is_out.any():
            return []
        pages = engine.facts.get("target", ("",) * len(engine.entities))
        is_gone = np.array([bool(p) and p in failing for p in pages])
        found = []
        out = self.out.held(engine.at, [engine.entities[i] for i in rows(should & is_out)])
        # Weight zero and no session left is one that was drained: it goes, and its page with it.
        has_left = (table[:, 6] == 0.0) & ~(table[:, 0] > 0)
        silent_now = should & ~is_out & is_gone & ~(table[:, 1] > 0) & ~has_left
        gone = self.gone.held(engine.at, [engine.entities[i] for i in rows(silent_now)])
        agreed = (table[:, 1] == 0.0) & (due >= EXPECTED)
        lasting = np.array([gone.get(name, 0.0) >= DOWN_S for name in engine.entities])
        for i in rows((should & is_out) | (silent_now & (agreed | lasting))):
            # What the load balancer has taken out gets no requests: there is nothing left to reroute, and a planned
            # restart looks the same until it has lasted longer than a start does.
            kind, severity = ("engine_down", Severity.CRITICAL)
            if is_out[i]:
                lasts = out[engine.entities[i]] >= RESTART_S
                kind, severity = "engine_out", Severity.WARNING if lasts else Severity.INFO
            silent = target.value(pages[i], "silent_s") if pages[i] else NAN
            cause, why = _cause(target, engine, i, table, pages[i]) if is_gone[i] else ("", "")
            evidence = (
                Evidence("page_silent", silent, "s"),
                Evidence("up_at_gateway", float(table[i, 3]), ""),
                Evidence("completed_at_gateway", float(table[i, 1]), "1/s"),
            )
            found.append(
                say(
                    frames.at,
                    f"serving.{kind}",
                    Entity("engine", engine.entities[i]),
                    kind,
                    0.9,
                    severity,
                    *evidence,
                    text=f"{cause}: {why}" if cause else "",
                    rejected=("a sick exporter: the gateway sees nothing completed either",)
                    if is_gone[i] and table[i, 1] == 0.0
                    else (),
                )
            )
        return found

    # -- starts -----------------------------------------------------------------------------------------

    def _should_serve(self, engine: Frame, running: Array, start_s: float) -> np.ndarray:
        """(engine,) bool: has served before, or has had the time that starts of its pool take. A start is no failure."""
        pools = engine.facts.get("pool", ("",) * len(engine.entities))
        known = np.isfinite(running)
        if len(self.first_seen) != len(engine.entities) or not known.all() or len(self.served) != len(known):
            for i, name in enumerate(engine.entities):
                first = self.first_seen.setdefault(name, engine.at)
                if known[i] and name not in self.served:
                    self.served[name] = engine.at
                    # Engines that stood when we began tell nothing about starting.
                    if first > self.began and engine.at - first >= 1.0 and pools[i]:
                        self.starts[pools[i]] = [*self.starts.get(pools[i], []), engine.at - first][-20:]
            for name in self.first_seen.keys() - set(engine.entities):
                del self.first_seen[name]
                self.served.pop(name, None)
            return np.array(
                [
                    n in self.served or engine.at - self.first_seen[n] > self.patience_s(pools[i], start_s)
                    for i, n in enumerate(engine.entities)
                ]
            )
        return np.ones(len(engine.entities), dtype=bool)

    def patience_s(self, pool: str, start_s: float) -> float:
        """How long a start of this pool may take: twice the slowest of the last, once three were measured."""
        known = self.starts.get(pool, [])
        return min(start_s, max(120.0, 2.0 * max(known))) if len(known) >= 3 else start_s


def _page_fails(frames: Frames, engine: Frame) -> Flags:
    """(engine,) its page did not answer the last time."""
    target = frames["target"]
    failing = {target.entities[i] for i in rows(target.column("fails") > 0.0)}
    if not failing:
        return np.zeros(len(engine.entities), dtype=bool)
    pages = engine.facts.get("target", ("",) * len(engine.entities))
    return np.array([page in failing for page in pages], dtype=bool)


def _cause(target: Frame, engine: Frame, i: int, table: Array, page: str) -> tuple[str, str]:
    """What a page that does not answer means: killed, frozen or network, with the words why."""
    error = target.fact(page, "error").lower()
    node = engine.facts.get("node", ("",) * len(engine.entities))[i]
    homes = target.facts.get("node", ("",) * len(target.entities))
    others = [k for k, home in enumerate(homes) if home and home == node and target.entities[k] != page]
    fails = target.column("fails")
    alive = sum(1 for k in others if fails[k] == 0.0)
    if any(word in error for word in REFUSED):
        return "killed", "its host refuses the connection: nobody listens any more"
    if others and not alive:
        return "network", "nothing of its node answers: the network or the whole node"
    if any(word in error for word in LATE):
        held = f", {table[i, 0]:.0f} sessions hang at the gateway" if table[i, 0] > 0 else ""
        return "frozen", f"it accepts connections and answers nobody{held}"
    return "gone", error or "its page does not answer"
