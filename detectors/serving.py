"""Trouble in serving: full caches, growing queues, missed objectives, engines that hang."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.stats import Streak, rows

SPANS_S = (60.0, 300.0, 3600.0)


@dataclass(slots=True)
class ServingDetector:
    """Engine page and gateway are judged together: a hung engine looks idle on its own page.

    kv_full : share of blocks in use. thrash_per_s : preemptions a replica. burn_fast, burn_slow : multiples of the
    error budget over (1, 5) min and (5, 60) min; source: multi-window burn rates of the SRE workbook, for 30 days.
    start_s : an engine that has never served may still be loading its weights for so long.
    hung_s : sessions open and nothing completed for so long; two scrapes.
    """

    kv_full: float = 0.92
    thrash_per_s: float = 0.05
    queue_share: float = 0.25
    queue_least: float = 4.0
    slo_target: float = 0.99
    burn_fast: float = 14.4
    burn_slow: float = 6.0
    hung_s: float = 14.0
    hung_sessions: float = 3.0
    uneven: float = 0.6
    start_s: float = 900.0
    replica_full_s: float = 300.0
    first_seen: dict[str, float] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)
    held: Streak = field(default_factory=Streak)
    burn: dict[str, list[float]] = field(default_factory=dict)
    burn_at: float = NAN

    def update(self, frames: Frames) -> list[Finding]:
        engine, pool = frames["engine"], frames["pool"]
        if not engine.entities:
            return []
        return [
            *self._cache(engine, pool),
            *self._queues(pool),
            *self._burn(pool),
            *self._silent_engines(frames),
            *self._uneven(engine, pool),
        ]

    def _cache(self, engine: Frame, pool: Frame) -> list[Finding]:
        """KV full and thrashing; of the pool when at least half of its replicas are, else of the replica."""
        kv, thrash = engine.column("kv_used_ratio"), engine.column("preemptions_per_s")
        # A full cache that keeps nobody waiting is a cache well used.
        hurts = (engine.column("waiting") > 0) | (thrash > 0)
        found = []
        for kind, mask, severity in (
            ("kv_saturated", (kv > self.kv_full) & hurts, Severity.WARNING),
            ("kv_thrash", (thrash > self.thrash_per_s) & (kv > 0.8), Severity.WARNING),
        ):
            blamed = _half_of_pool(engine, mask)
            lasting = self.held.held(engine.at, [f"{kind} {e.name}" for e, _ in blamed if e.kind == "engine"])
            for entity, members in blamed:
                # One replica's cache fills now and then by the luck of long requests.
                if entity.kind == "engine" and lasting[f"{kind} {entity.name}"] < self.replica_full_s:
                    continue
                evidence = (
                    Evidence("kv_used", float(np.nanmean(kv[members])), "ratio"),
                    Evidence(
                        "preemptions",
                        float(np.nansum(thrash[members])) if _known(thrash[members]) else NAN,
                        "1/s",
                    ),
                    Evidence("replicas", float(len(members)), ""),
                )
                found.append(Finding(engine.at, "serving", entity, kind, 0.9, severity, evidence, engine.at))
        return found

    def _queues(self, pool: Frame) -> list[Finding]:
        waiting, running = pool.column("waiting"), pool.column("running")
        late = pool.column("over_slo_ratio") > 1.0 - self.slo_target
        mask = (waiting > self.queue_least) & (waiting > self.queue_share * running) & late
        found = []
        for i in rows(mask):
            evidence = (
                Evidence("waiting", float(waiting[i]), "requests"),
                Evidence("running", float(running[i]), "requests"),
                Evidence("ttft_p95", float(pool.column("ttft_p95_s_max")[i]), "s"),
            )
            entity = Entity("pool", pool.entities[i])
            found.append(
                Finding(pool.at, "serving", entity, "queue_growth", 0.85, Severity.WARNING, evidence, pool.at)
            )
        return found

    def _burn(self, pool: Frame) -> list[Finding]:
        """Multi-window burn: the short window says it is still so, the long one that it matters."""
        over = pool.column("over_slo_ratio")
        elapsed = pool.at - self.burn_at if self.burn_at == self.burn_at else 0.0
        self.burn_at = pool.at
        found = []
        for i, name in enumerate(pool.entities):
            rates = self.burn.setdefault(name, [0.0] * len(SPANS_S))
            if over[i] == over[i]:
                value = float(over[i]) / (1.0 - self.slo_target)
                for k, span in enumerate(SPANS_S):
                    rates[k] += (value - rates[k]) * min(1.0, elapsed / span)
            fast = min(rates[0], rates[1]) > self.burn_fast
            slow = min(rates[1], rates[2]) > self.burn_slow
            if fast or slow:
                evidence = (
                    Evidence("burn_1m", rates[0], "x budget"),
                    Evidence("burn_5m", rates[1], "x budget"),
                    Evidence("burn_1h", rates[2], "x budget"),
                    Evidence("ttft_p95", float(pool.column("ttft_p95_s_max")[i]), "s"),
                )
                severity = Severity.CRITICAL if fast else Severity.WARNING
                entity = Entity("pool", name)
                found.append(
                    Finding(pool.at, "serving", entity, "slo_burn", 0.9, severity, evidence, pool.at)
                )
        return found

    def _silent_engines(self, frames: Frames) -> list[Finding]:
        """Two witnesses. The gateway sees sessions and no completions: hung. The page is gone and the gateway does not
        contradict: down. A page that is gone or stale while requests complete is telemetry trouble and nothing else."""
        engine, target = frames["engine"], frames["target"]
        sessions, done = engine.column("lb_sessions"), engine.column("lb_done_per_s")
        tokens, lb_up = engine.column("generation_tokens_s"), engine.column("lb_up")
        pages = engine.facts.get("target", ("",) * len(engine.entities))
        silent = dict(zip(target.entities, target.column("silent_s"), strict=True))
        fails = dict(zip(target.entities, target.column("fails"), strict=True))
        hung = (sessions >= self.hung_sessions) & (done <= 0.0) & ~(tokens > 0.0)
        found = []
        for name, held_s in self.held.held(frames.at, [engine.entities[i] for i in rows(hung)]).items():
            if held_s < self.hung_s:
                continue
            i = engine.entities.index(name)
            evidence = (
                Evidence("sessions_at_gateway", float(sessions[i]), ""),
                Evidence("completed_at_gateway", 0.0, "1/s"),
                Evidence("running_on_its_page", float(engine.column("running")[i]), ""),
                Evidence("held", held_s, "s"),
            )
            since = frames.at - held_s
            entity = Entity("engine", name)
            found.append(
                Finding(frames.at, "serving", entity, "engine_hung", 0.9, Severity.CRITICAL, evidence, since)
            )
        for i in rows(self._should_serve(engine)):
            name, page = engine.entities[i], pages[i]
            is_gone = bool(page) and fails.get(page, 0.0) >= 2.0
            is_out = lb_up[i] == 0.0
            if is_out or (is_gone and not done[i] > 0.0):
                witnesses = (
                    Evidence("page_silent", float(silent.get(page, NAN)), "s"),
                    Evidence("up_at_gateway", float(lb_up[i]), ""),
                    Evidence("completed_at_gateway", float(done[i]), "1/s"),
                )
                # What the load balancer has taken out gets no requests: there is nothing left to reroute.
                kind, severity = (
                    ("engine_out", Severity.WARNING) if is_out else ("engine_down", Severity.CRITICAL)
                )
                entity = Entity("engine", name)
                found.append(Finding(frames.at, "serving", entity, kind, 0.9, severity, witnesses, frames.at))
        return found

    def _should_serve(self, engine: Frame) -> np.ndarray:
        """(engine,) bool: has served before, or has had `start_s` to load its weights. A start is not a failure."""
        running = engine.column("running")
        for i, name in enumerate(engine.entities):
            self.first_seen.setdefault(name, engine.at)
            if running[i] == running[i]:
                self.served[name] = engine.at
        for name in self.first_seen.keys() - set(engine.entities):
            del self.first_seen[name]
            self.served.pop(name, None)
        return np.array(
            [n in self.served or engine.at - self.first_seen[n] > self.start_s for n in engine.entities]
        )

    def _uneven(self, engine: Frame, pool: Frame) -> list[Finding]:
        """(max - mean) / mean of the load of a pool's replicas."""
        load = engine.column("running") + np.fmax(engine.column("waiting"), 0.0)
        found = []
        for name, members in _members(engine).items():
            values = load[members]
            values = values[np.isfinite(values)]
            if values.size < 3 or values.mean() < 4.0:
                continue
            deviation = float((values.max() - values.mean()) / values.mean())
            if deviation > self.uneven:
                evidence = (
                    Evidence("load_deviation", deviation, "ratio"),
                    Evidence("most_loaded", float(values.max()), "requests", float(values.mean())),
                )
                entity = Entity("pool", name)
                found.append(
                    Finding(
                        engine.at, "serving", entity, "imbalance", 0.6, Severity.INFO, evidence, engine.at
                    )
                )
        return found


def _known(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _members(engine: Frame) -> dict[str, list[int]]:
    """pool -> rows of its engines."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(engine.facts.get("pool", ())):
        if name:
            found.setdefault(name, []).append(i)
    return found


def _half_of_pool(engine: Frame, mask: np.ndarray) -> list[tuple[Entity, list[int]]]:
    """(entity, rows) to blame: a pool of which half shows it, otherwise each replica."""
    if not mask.any():
        return []
    found = []
    for name, members in _members(engine).items():
        hit = [i for i in members if mask[i]]
        if hit and 2 * len(hit) >= len(members):
            found.append((Entity("pool", name), hit))
        else:
            found += [(Entity("engine", engine.entities[i]), [i]) for i in hit]
    return found
