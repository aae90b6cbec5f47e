"""The asyncio shell: scrape, tick, act, record, at an even pace until told to stop."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import structlog

from daemon.act import Executor
from daemon.alerts import OnCall
from daemon.casefile import case_of
from daemon.clock import Clock
from daemon.codec import decode
from daemon.core import Command, Core, Input, Journal
from daemon.demand import BUCKET_S, Buckets
from daemon.foresight import Calendar, Fit, Foresight, no_days
from daemon.frame import FrameBuilder
from daemon.model import (
    NAN,
    Decision,
    Forecast,
    Frame,
    Frames,
    Judgement,
    Outcome,
    Result,
    Source,
    SourceError,
    Step,
    Verb,
)
from daemon.outlook import cluster_now
from daemon.past import History, Past
from daemon.policy import Policy, tier_of
from daemon.recent import Recent, pictured
from daemon.record import Record
from daemon.replica import WORK
from daemon.spans import Fact, Stopwatch, Stretch

if TYPE_CHECKING:
    from daemon.settings import Settings

log = structlog.get_logger("tidewarden")

SETTLE_TICKS = 3
"""Ticks after which decisions begin though a source has not had its first round."""


@runtime_checkable
class Urgent(Protocol):
    """A source that hears of events as they happen and need not wait to be asked."""

    async def changed(self) -> None:
        """Return once there is an event to read."""
        ...


@runtime_checkable
class Paced(Protocol):
    """A source that asks at a pace of its own."""

    async def settled(self) -> None:
        """Return once what it asked for first had its time to answer."""
        ...


HEARERS = frozenset({"fault"})
"""Detectors that live on events; between two ticks they alone are asked, the others count scrapes."""
EARLY_GAP_S = 0.5
"""Between two early ticks at least: a log storm must not keep the daemon busy with itself."""

News = Decision | Outcome | Forecast


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen, in seconds. stop_s : how long a shutdown waits for steps that are under way."""

    tick_s: float = 15.0
    forecast_every_s: float = 3600.0
    horizon_s: float = 168 * 3600.0
    history_s: float = 91 * 86400.0
    backfill_s: float = 35 * 86400.0
    snapshot_every_s: float = 300.0
    prune_every_s: float = 86400.0
    stop_s: float = 5.0


@dataclass(slots=True)
class Status:
    """What the shell knows of itself, for the health page and the metrics."""

    ticks: int = 0
    early: int = 0
    missed: int = 0
    tick_s: float = NAN
    started: float = NAN
    is_ready: bool = False
    source_errors: dict[str, str] = field(default_factory=dict)
    source_failures: dict[str, int] = field(default_factory=dict)
    reloads: int = 0
    reload_error: str = ""
    forecast_error: str = ""


class Daemon:
    """One cluster's daemon. All collaborators are given; it owns the tasks and nothing else.

    sources   : by name. fit, calendar, plugin, signals : see daemon.foresight. history : None = no back-fill. listeners : told of every decision, outcome
    and forecast as it happens, in order; they must not block.
    """

    def __init__(
        self,
        *,
        core: Core,
        builder: FrameBuilder,
        sources: Mapping[str, Source],
        executor: Executor,
        record: Record,
        clock: Clock,
        fit: Fit,
        pace: Pace = Pace(),
        calendar: Calendar = no_days,
        plugin: str = "",
        signals: tuple[str, ...] = (),
        history: History | None = None,
        listeners: Sequence[Callable[[News], None]] = (),
    ) -> None:
        self.core, self.builder, self.sources = core, builder, sources
        self.executor, self.record, self.clock = executor, record, clock
        self.pace = pace
        self.past = Past(record, history, pace.backfill_s)
        self.foresight = Foresight(
            record,
            fit,
            pace.horizon_s,
            pace.history_s,
            calendar,
            plugin,
            signals,
            lambda entity: core.topology.scopes(entity),
        )
        self.listeners = list(listeners)
        self.oncall: OnCall | None = None
        self.link_key = b""
        self.traced: Callable[[Stretch], None] | None = None
        """Told how long a tick, or a step, took and what with; None = nobody asks."""
        self.followers: list[Callable[[Settings], Callable[[Policy], Policy]]] = []
        """What else follows the configuration. Each makes ready and returns the switch, which gives the policy as it may
        be then; raises OSError or ConfigError."""
        self.frames = Frames(0.0, {})
        self.decision = Decision(0.0)
        self.status = Status()
        self._inputs: asyncio.Queue[Input] = asyncio.Queue(maxsize=10_000)
        self._policy: Policy | None = None
        self._buckets = Buckets()
        self.recent = Recent()
        self._stop = asyncio.Event()
        self._nudge = asyncio.Event()
        self._sees_pools = asyncio.Event()
        self._joint = math.inf
        self._reads_past = False
        self._steps: set[asyncio.Task[None]] = set()
        self._forecaster: asyncio.Task[None] | None = None
        self._forecast_at = -math.inf
        self._snapshot_at = -math.inf
        self._prune_at = -math.inf
        self._was_healthy = True
        self._watch = Stopwatch(clock)
        self._stretches: defaultdict[str, list[Stretch]] = defaultdict(list)
        executor.watched = lambda step, part: self._stretches[step].append(part)

    # -- from outside -----------------------------------------------------------------------------------

    def stop(self) -> None:
        self._stop.set()
        self._nudge.set()

    def command(self, command: Command) -> None:
        """Queue an operator's word; it counts at the next tick edge. Raises asyncio.QueueFull when flooded."""
        self._inputs.put_nowait(command)
        self.record.event(self.clock(), "command", command)

    def reload(self, policy: Policy) -> None:
        """Swap the policy at the next tick edge."""
        self._policy = policy

    def note_days(self, calendar: Calendar) -> None:
        """Know other days from now on; the next tick forecasts anew when they differ."""
        if calendar != self.foresight.calendar:
            self.foresight.calendar = calendar
            self._forecast_at = -math.inf

    # -- life -------------------------------------------------------------------------------------------

    async def run(self, ticks: int | None = None) -> None:
        """Restore, then tick until `stop`, or for a number of ticks."""
        self.status.started = self.clock()
        self.restore()
        self._reads_past = self.past.is_wanted
        try:
            async with asyncio.TaskGroup() as group:
                recovery = group.create_task(self._recover())
                backfill = group.create_task(self._backfill())
                ears = [
                    group.create_task(self._listen(s)) for s in self.sources.values() if isinstance(s, Urgent)
                ]
                await self._ticking(ticks)
                for task in (recovery, backfill, *ears):
                    task.cancel()
                await self._wind_down()
        finally:
            self._save(self.clock())
            self.record.rollup(self._buckets.flush())
            self.record.commit()

    async def _ticking(self, ticks: int | None) -> None:
        """At an even pace. A tick that came too late is skipped and counted, never caught up."""
        loop = asyncio.get_running_loop()
        await self._settle_in()
        start = loop.time()
        beat = 0
        while not self._stop.is_set() and (ticks is None or self.status.ticks < ticks):
            self._start_watch()
            await self._read(self.sources)
            begun = loop.time()
            self.tick()
            self._report("tick", tick=self.status.ticks)
            self.status.tick_s = loop.time() - begun
            self.status.ticks += 1
            beat += 1
            late = int((loop.time() - start) / self.pace.tick_s) - beat
            if late > 0:
                self.status.missed += late
                beat += late
            await self._until(start + beat * self.pace.tick_s)

    async def _settle_in(self) -> None:
        """Wait for the first pages, for some ticks' time at most: decisions then come right after scrapes for good. A fault
        seen in a scrape would else wait for the tick after the next one."""
        paced = [s for s in self.sources.values() if isinstance(s, Paced)]
        if not paced:
            return
        await self._read(self.sources)  # which is what sets them going
        settled = asyncio.gather(*(s.settled() for s in paced))
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait(
            (settled, stopped), timeout=SETTLE_TICKS * self.pace.tick_s, return_when=asyncio.FIRST_COMPLETED
        )
        settled.cancel()
        stopped.cancel()

    async def _until(self, due: float) -> None:
        """Wait for the next tick; what happens meanwhile and cannot wait gets an early one."""
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            self._nudge.clear()
            alarm = loop.call_at(due, self._nudge.set)
            await self._nudge.wait()
            alarm.cancel()
            if loop.time() >= due:
                return
            if not self._stop.is_set() and due - loop.time() > EARLY_GAP_S:
                self._start_watch()
                await self._read({n: s for n, s in self.sources.items() if isinstance(s, Urgent)})
                self._edge()
                self._decide(HEARERS)
                self._report("early tick")
                self.status.early += 1

    async def _listen(self, source: Urgent) -> None:
        """Nudge the loop whenever a source has something that should not wait."""
        while True:
            await source.changed()
            self._nudge.set()
            await asyncio.sleep(EARLY_GAP_S)

    async def _read(self, sources: Mapping[str, Source]) -> None:
        """Take what every source has; a source that fails is reported at doubling intervals and never stops a tick."""
        for name, source in sources.items():
            try:
                async with asyncio.timeout(self.pace.tick_s):
                    scrapes = await source.read()
            except (SourceError, TimeoutError, OSError) as error:
                count = self.status.source_failures.get(name, 0) + 1
                self.status.source_failures[name] = count
                self.status.source_errors[name] = str(error) or type(error).__name__
                if count & (count - 1) == 0:
                    log.warning(
                        "source failed", source=name, error=self.status.source_errors[name], failures=count
                    )
                self._watch.passed("scrape", source=name, error=self.status.source_errors[name])
                continue
            self.status.source_errors.pop(name, None)
            self.status.source_failures.pop(name, None)
            for scrape in scrapes:
                self.builder.absorb(scrape)
            self._watch.passed("scrape", source=name, scrapes=len(scrapes))

    def tick(self) -> None:
        """One decision with all that follows from it, short of waiting for anything."""
        self._edge()
        at = self._decide(None)
        self.recent.push(self.frames)
        self.record.rollup(self._buckets.add(self.frames["pool"], self._cluster_now()))
        if self.frames["pool"].entities and not self._sees_pools.is_set():
            self._joint = at // BUCKET_S * BUCKET_S
            self._sees_pools.set()
        if at - self._forecast_at >= self.pace.forecast_every_s and self._can_forecast():
            self._forecast_at = at
            self._forecaster = asyncio.ensure_future(self._forecast(at))
        if at - self._prune_at >= self.pace.prune_every_s:
            self._prune_at = at
            self.record.prune(at)
        if at - self._snapshot_at >= self.pace.snapshot_every_s:
            self._save(at)
        self.status.is_ready = (
            self.status.is_ready or bool(self.frames["target"].entities) or not self.sources
        )

    def _cluster_now(self) -> Frame:
        core = self.core
        return cluster_now(
            self.frames, core.topology, core.state.fleet, core.policy, core.state.memory.learnt
        )

    def _decide(self, asked: Collection[str] | None) -> float:
        """Ask the core about what is known now and set going what it allows. Returns the time it was asked for."""
        at = self.clock()
        self.frames = self.builder.build(at)
        self._watch.passed("frame")
        self.decision = self.core.tick(self.frames, asked, self._watch.passed)
        self._write(self.decision)
        for verdict in self.decision.verdicts:
            if verdict.allowed:
                self._spawn(verdict.step)
        self._tell(self.decision)
        self.record.commit()
        self._watch.passed("record")
        return at

    def _start_watch(self) -> None:
        if self.traced is not None:
            self._watch.restart()

    def _report(self, name: str, **facts: Fact) -> None:
        """Say how long a tick took."""
        if self.traced is None:
            return
        decision = self.decision
        self.traced(
            Stretch(
                name,
                self._watch.begun,
                self.clock(),
                {
                    **facts,
                    "findings": len(decision.findings),
                    "opened": len(decision.opened),
                    "closed": len(decision.closed),
                    "sentence": decision.sentence,
                },
                tuple(self._watch.parts),
                starts=tuple(v.step.id for v in decision.verdicts if v.allowed),
            )
        )

    def _edge(self) -> None:
        """Absorb what came since the last tick, in order."""
        if self._policy is not None:
            self.core.policy = self.builder.policy = self._policy
            self.builder.revision += 1  # pools and places follow from the policy
            self._policy = None
            self.status.reloads += 1
        if self.record.healthy != self._was_healthy:
            self._was_healthy = self.record.healthy
            self.core.absorb(Journal(self._was_healthy))
        while not self._inputs.empty():
            self.core.absorb(self._inputs.get_nowait())

    def _write(self, decision: Decision) -> None:
        for incident in (*decision.opened, *decision.changed, *decision.closed):
            self.record.incident(decision.at, incident)
        for incident in decision.opened:
            self.record.event(decision.at, "case", {"incident": incident.id, "case": case_of(incident)})
        for incident in decision.closed:
            self.record.pictures.keep(decision.at, incident.id, pictured(self.recent, incident))
        for incident in decision.shadowed:
            self.record.event(decision.at, "shadow", incident)
        for said in decision.judged:
            self.record.event(decision.at, "rule", said)
        for verdict in decision.verdicts:
            self.record.verdict(decision.at, verdict)
        for effect in decision.effects:
            self.record.event(decision.at, "effect", effect)
            log.info("effect", step=effect.step, state=effect.state, text=effect.text, took_s=effect.took_s)
        if decision.sentence:
            self.record.event(decision.at, "decision", {"sentence": decision.sentence})
            log.info(decision.sentence, tick=self.status.ticks)

    def _tell(self, news: News) -> None:
        for listener in self.listeners:
            listener(news)

    def _report_step(self, outcome: Outcome) -> None:
        """Say how long a step took, from its first try on."""
        step, now = outcome.step, self.clock()
        parts = tuple(self._stretches.pop(step.id, ()))
        if self.traced is None:
            return
        facts: dict[str, Fact] = {
            "verb": step.verb.value,
            "target": str(step.target),
            "amount": step.amount,
            "incident": step.incident,
            "reason": step.reason,
            "result": outcome.result.value,
            "detail": outcome.detail,
        }
        self.traced(Stretch("step", parts[0].begun if parts else now, now, facts, parts, step.id))

    # -- acting -----------------------------------------------------------------------------------------

    def _spawn(self, step: Step) -> None:
        task = asyncio.ensure_future(self._carry_out(step))
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)

    async def _carry_out(self, step: Step) -> None:
        outcome = await self.executor.run(step)
        await self._settle(outcome)

    async def _settle(self, outcome: Outcome) -> None:
        await self._inputs.put(outcome)
        self._report_step(outcome)
        if outcome.step.verb is not Verb.NOTIFY:
            log.info(
                "outcome",
                step=outcome.step.id,
                verb=outcome.step.verb.value,
                target=str(outcome.step.target),
                result=outcome.result.value,
                detail=outcome.detail,
                incident=outcome.step.incident,
            )
        self._tell(outcome)

    async def _recover(self) -> None:
        for outcome in await self.executor.recover():
            await self._settle(outcome)
            if outcome.step.verb is Verb.NOTIFY and outcome.result is Result.UNKNOWN:
                # A page that may not have left is sent again under a new id: twice is better than never.
                self._spawn(replace(outcome.step, id=f"{outcome.step.id}r"))

    async def _wind_down(self) -> None:
        """Let steps that are under way end; what does not is left open in the journal and looked for at the start."""
        waiting = {*self._steps} | (
            {self._forecaster} if self._forecaster and not self._forecaster.done() else set()
        )
        if not waiting:
            return
        _, late = await asyncio.wait(waiting, timeout=self.pace.stop_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
        while not self._inputs.empty():
            self.core.absorb(self._inputs.get_nowait())

    # -- looking ahead ----------------------------------------------------------------------------------

    def _can_forecast(self) -> bool:
        """Not twice at once, and not from nothing while the past is still being read."""
        return not self._reads_past and (self._forecaster is None or self._forecaster.done())

    async def _forecast(self, at: float) -> None:
        """Forecast every pool from what is recorded, score what has elapsed. One with too little history stays without."""
        self.foresight.look_back(at)
        pools = self.frames["pool"].entities
        for pool in pools:
            try:
                forecast = await self.foresight.of(pool, pools, at)
            except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
                self.status.forecast_error = f"{pool}: {error}"
                log.warning("forecast failed", pool=pool, error=str(error))
                continue
            if forecast is None:
                continue
            await self._inputs.put(forecast)
            for signal in WORK:
                work = self.foresight.others.get((pool, signal))
                if work is not None and work.at == forecast.at:
                    await self._inputs.put(work)
            self.record.event(at, "forecast", summary(forecast))
            self._tell(forecast)
        core = self.core
        self.past.count_gpus(at, core.topology, core.policy, core.state.memory.learnt)
        cluster = core.policy.cluster
        try:
            await self.foresight.of_cluster(cluster, at)
        except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
            self.status.forecast_error = f"{cluster}: {error}"
            log.warning("forecast failed", cluster=cluster, error=str(error))

    async def _backfill(self) -> None:
        """Read the past once; a second start finds it in the record."""
        if not self._reads_past:
            return
        await self._sees_pools.wait()
        try:
            await self.past.read(self.frames, self.core.policy, self.clock(), self._joint)
        except SourceError as error:
            self.status.source_errors["history"] = str(error)
            log.warning("history cannot be read", error=str(error))
        finally:
            self._reads_past = False

    # -- memory -----------------------------------------------------------------------------------------

    def _save(self, at: float) -> None:
        if self.record.path is not None:
            self.record.snapshot(at, self.core.dump())
            self._snapshot_at = at

    def restore(self) -> None:
        """Take up where the last run ended: the newest snapshot, then every outcome recorded after it."""
        snapshot = self.record.latest_snapshot()
        since = -math.inf
        if snapshot is not None:
            try:
                self.core.load(snapshot.state)
                since = snapshot.at
            except (KeyError, TypeError, ValueError) as error:
                log.warning("snapshot is of another version and is not used", error=str(error))
        heard = snapshot.event if snapshot is not None and since > -math.inf else 0
        for entry in self.record.events(after=heard, type="rule", limit=1_000_000):
            self.core.absorb(decode(Judgement, entry.payload))
        rows = self.record.steps(limit=100_000)
        for row in sorted(
            (r for r in rows if r.outcome is not None), key=lambda r: r.outcome.at if r.outcome else 0.0
        ):
            if row.outcome is not None and row.outcome.at > since:
                self.core.absorb(row.outcome)
        state = self.core.state
        state.in_flight = {s.id: s for s in self.record.open_intents() if s.verb is not Verb.NOTIFY}
        # Ids are never given twice, whatever the snapshot missed.
        state.serial = max([state.serial, *(_number(r.step.id) for r in rows)])
        state.book.serial = max([state.book.serial, *(_number(i.id) for i in self.record.incidents())])
        self._reopen(since)

    def _reopen(self, since: float) -> None:
        """Incidents that opened or closed after the snapshot."""
        book = self.core.state.book
        for incident in self.record.incidents():
            if incident.state == "closed":
                book.open.pop(incident.id, None)
            elif incident.opened > since:
                book.open.setdefault(incident.id, incident)

    # -- for people -------------------------------------------------------------------------------------

    def discovered(self) -> dict[str, Any]:
        """What was found without being told: targets, engines, models, nodes, GPUs, SKUs, tier."""
        gpu, engine, node = self.frames["gpu"], self.frames["engine"], self.frames["node"]
        nodes = self.core.topology.nodes
        return {
            "targets": len(self.frames["target"].entities),
            "nodes": len(nodes) or len(node.entities),
            "gpus": len(gpu.entities),
            "skus": sorted({s for s in gpu.facts.get("sku", ()) if s}),
            "engines": len(engine.entities),
            "engine_kinds": sorted({s for s in engine.facts.get("engine", ()) if s}),
            "models": sorted({s for s in engine.facts.get("model", ()) if s}),
            "pools": list(self.frames["pool"].entities),
            "tier": self.core.policy.tier or tier_of(len(nodes), len(gpu.entities)),
        }


def _number(id: str) -> int:
    """The running number an id ends with: ``s3fa1-000042`` -> 42."""
    found = re.search(r"(\d+)r*$", id)
    return int(found.group(1)) if found else 0


def summary(forecast: Forecast) -> dict[str, Any]:
    """What the journal keeps of a forecast."""
    return {
        "pool": forecast.target,
        "signal": forecast.signal,
        "from": forecast.at,
        "step_s": forecast.step_s,
        "model": forecast.model,
        "skill": forecast.skill,
        "note": forecast.note,
        "levels": forecast.levels,
        "quantiles": [[round(float(v), 3) for v in row] for row in forecast.quantiles],
    }
