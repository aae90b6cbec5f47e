"""The composition root: the only place that knows every part."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.act import Executor
from daemon.almanac import CalendarError
from daemon.clock import Clock, SteadyClock
from daemon.core import Core, Journal
from daemon.foresight import SIGNALS, Calendar, Fit, no_days
from daemon.frame import FrameBuilder
from daemon.lease import held_bytes
from daemon.loop import Daemon, News, Pace
from daemon.model import (
    Action,
    Array,
    Backend,
    Check,
    Checked,
    Closing,
    Forecast,
    RecordBusy,
    RecordError,
    Source,
    SourceError,
    Step,
    Track,
    Verb,
)
from daemon.past import History
from daemon.policy import Policy
from daemon.record import Record
from daemon.worker import yield_cpu

if TYPE_CHECKING:
    from daemon import telling
    from daemon.replay import Replay
    from daemon.settings import Settings
    from detectors.forecast import Ahead

PACKAGES = ("daemon", "detectors", "actions", "simulator", "dashboards")


@dataclass(frozen=True, slots=True)
class Parts:
    """What differs between the service, the demo, the drill and a test.

    backends : by name, for `action_of` (verb -> backend name) and `action_in` (pool -> the same, over the former).
    notify : tells on-call, None = nobody is told.
    """

    policy: Policy
    sources: Mapping[str, Source]
    record: Record
    clock: Clock
    fit: Fit
    backends: Mapping[str, Backend]
    action_of: Mapping[Verb, str]
    action_in: Mapping[str, Mapping[Verb, str]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    calendar: Calendar = no_days
    plugin: str = ""
    signals: tuple[str, ...] = ()
    history: History | None = None
    notify: Action | None = None
    listeners: tuple[Callable[[News], None], ...] = ()


def assemble(parts: Parts) -> Daemon:
    """A Daemon from its parts. Every way of running goes through here, so that all run the same code."""
    from detectors import DETECTORS

    def held(node: str) -> float:
        return held_bytes(daemon.frames, daemon.core.topology, node)

    actions = _actions(parts.action_of, parts.backends, held)
    own = {pool: _actions(named, parts.backends, held) for pool, named in parts.action_in.items()}
    if parts.notify is not None:
        actions[Verb.NOTIFY] = parts.notify
    able_in = {pool: frozenset(found) for pool, found in own.items()}
    policy = replace(parts.policy, able=frozenset(actions), able_in=able_in)

    def action(step: Step) -> Action | None:
        return own.get(step.pool, {}).get(step.verb) or actions.get(step.verb)

    daemon = Daemon(
        core=Core(policy, {name: make() for name, make in DETECTORS.items()}, parts.record.mark),
        builder=FrameBuilder(policy),
        sources=parts.sources,
        executor=Executor(action, parts.record, parts.clock),
        record=parts.record,
        clock=parts.clock,
        fit=parts.fit,
        pace=parts.pace,
        calendar=parts.calendar,
        plugin=parts.plugin,
        signals=parts.signals,
        history=parts.history,
        listeners=parts.listeners,
    )
    return daemon


def _actions(
    named: Mapping[Verb, str], backends: Mapping[str, Backend], held: Callable[[str], float]
) -> dict[Verb, Action]:
    """The action of each verb that has a backend; what isolates also releases, what lends also recalls. held : see
    `actions.lend.Recall`."""
    from actions import VERBS

    both = dict(named)
    for there, back in ((Verb.ISOLATE, Verb.RELEASE), (Verb.LEND, Verb.RECALL)):
        if there in both:
            both.setdefault(back, both[there])
    known = {verb: backends[name] for verb, name in both.items() if name in backends}
    more = {Verb.RECALL: (held,)}
    return {verb: VERBS[verb](backend, *more.get(verb, ())) for verb, backend in known.items()}


async def fit_here(track: Track, horizon_s: float) -> Forecast:
    """Fit at once and cheaply, for the virtual loop, which has no other processes."""
    from detectors.forecast import fit
    from detectors.forecast_blend import INLINE

    return fit(track, horizon_s, INLINE)


@asynccontextmanager
async def fit_elsewhere() -> AsyncIterator[Fit]:
    """Fit in a worker process, so that the loop never waits for arithmetic."""
    import multiprocessing

    from detectors.forecast import fit

    def worker() -> ProcessPoolExecutor:
        # forkserver: a fork of a process with threads and sockets could hang.
        context = multiprocessing.get_context("forkserver")
        return ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=yield_cpu)

    pools = [worker()]

    async def run(track: Track, horizon_s: float) -> Forecast:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(pools[-1], fit, track, horizon_s)
        except BrokenProcessPool:
            # Killed for memory, most likely. A broken pool stays broken: the next forecast gets a new one.
            pools.append(worker())
            raise

    try:
        yield run
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def open_record(folder: Path) -> tuple[Record, str]:
    """The journal, and why it is only held in memory ("" = it is not). Raises RecordBusy.

    A damaged file is moved aside by the first try, so that the second begins a new one. Where nothing can be
    written at all the daemon still watches and pages, and changes nothing.
    """
    trouble = ""
    for _ in range(2):
        try:
            return Record.open(folder), ""
        except RecordBusy:
            raise
        except RecordError as error:
            if str(error) != trouble:
                print(f"tidewarden: {error}", file=sys.stderr)
            trouble = str(error)
    print("tidewarden: watching without a journal: nothing will be changed", file=sys.stderr)
    return Record.open(None), trouble


def backends_of(settings: Settings, clock: Clock) -> dict[str, Backend]:
    from actions import CONFIGURED, Site
    from actions.backends.metrics_page import busy_by
    from daemon.telemetry import load_catalogue
    from daemon.telemetry.requests import requests_on

    busy = busy_by(partial(requests_on, catalogue=load_catalogue()))
    named = [settings.actions, *(pool.actions for pool in settings.pools)]
    built: dict[str, Backend] = {}
    for name, tree in settings.backends.items():
        verbs = frozenset(verb for actions in named for verb, backend in actions.items() if backend == name)
        built[name] = CONFIGURED[tree.kind](
            tree.model_dump(),
            Site(
                marks=settings.folder / f"backend-{name}.json",
                owner=f"tidewarden/{settings.cluster}",
                clock=clock,
                busy=busy,
                verbs=verbs,
                others=built,
            ),
        )
    return built


async def close_all(backends: Mapping[str, Backend]) -> None:
    """Let go of what backends hold open."""
    for backend in backends.values():
        if isinstance(backend, Closing):
            await backend.close()


def _look(settings: Settings) -> dict[str, tuple[str, list[Check]]]:
    """Backend -> minimal rights, and what it found when it looked at its system. Changes nothing."""

    async def look() -> dict[str, tuple[str, list[Check]]]:
        backends = backends_of(settings, SteadyClock())
        try:
            return {
                name: (backend.rights, list(await backend.check()))
                for name, backend in backends.items()
                if isinstance(backend, Checked)
            }
        finally:
            await close_all(backends)

    return asyncio.run(look())


def pace_of(settings: Settings) -> Pace:
    tuning = settings.tuning
    return Pace(
        tick_s=tuning.tick,
        forecast_every_s=tuning.forecast_every,
        horizon_s=tuning.forecast_horizon,
        backfill_s=settings.sources.prometheus.history_span if settings.sources.prometheus else 35 * 86400.0,
    )


async def serve(settings: Settings, config: Path | None, told: Callable[[float, float], None]) -> int:
    """The service: run until SIGTERM or SIGINT; SIGHUP reads the configuration again. Returns the exit code.

    told : (done, total) of the history that is read at the first start.
    """
    import aiohttp

    from daemon import otlp, service, telling, web
    from daemon.systemd import notify

    record, trouble = open_record(settings.folder)
    try:
        async with AsyncExitStack() as stack:
            clock = SteadyClock()
            catalogue, sources, history = service.sources_of(settings, clock)
            if history is not None:
                history = replace(history, told=told)
            for source in sources.values():
                stack.push_async_callback(source.close)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            tell = telling.compose(settings, record, clock, session)
            stack.push_async_callback(tell.events.close)
            backends = backends_of(settings, clock)
            stack.push_async_callback(close_all, backends)
            daemon = assemble(
                Parts(
                    policy=settings.policy(),
                    sources=sources,
                    record=record,
                    clock=clock,
                    fit=await stack.enter_async_context(fit_elsewhere()),
                    backends=backends,
                    action_of=settings.actions,
                    action_in={pool.name: pool.actions for pool in settings.pools},
                    pace=pace_of(settings),
                    calendar=settings.almanac(),
                    plugin=settings.tuning.forecaster,
                    signals=SIGNALS,
                    history=history,
                    notify=tell.notify,
                )
            )
            if trouble:
                daemon.core.absorb(Journal(is_healthy=False))
            service.bind_gpu_names(sources, daemon)
            tell.bind(daemon)
            tracing = otlp.tracing_of(settings)
            if tracing is not None:
                daemon.traced = tracing.hear
                stack.push_async_callback(tracing.close)
            await stack.enter_async_context(web.serving(daemon, settings, config, catalogue))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, daemon.stop)
            loop.add_signal_handler(signal.SIGHUP, service.reload_and_tell, daemon, config, notify)
            side = [*tell.tasks(), loop.create_task(service.report(daemon, notify))]
            for task in side:
                # They run for ever: one that ends by itself has crashed, and a daemon that cannot page must not go on.
                task.add_done_callback(lambda _: daemon.stop())
            try:
                await daemon.run()
            finally:
                notify("STOPPING=1")
                crashed = [task.exception() for task in side if task.done() and not task.cancelled()]
                for task in side:
                    task.cancel()
                await asyncio.gather(*side, return_exceptions=True)
            for error in crashed:
                if error is not None:
                    raise error
    finally:
        record.close()
    return 0


def refuse_strangers() -> str:
    """Another distribution that owns one of our package names, as a sentence; "" when there is none."""
    owners = metadata.packages_distributions()
    for package in PACKAGES:
        others = sorted(set(owners.get(package, ())) - {"tidewarden"})
        if others:
            return (
                f"the package {package!r} also belongs to the distribution {others[0]!r}; tidewarden is an application: "
                "install it into a virtual environment of its own"
            )
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    trouble = refuse_strangers()
    if trouble:
        print(f"tidewarden: {trouble}", file=sys.stderr)
        return 1
    from daemon.cli import Roots, run

    return run(Roots(_serve, _demo, _drill, _replay, _forecast_csv, _backtest, _look, _try_channel), argv)


def _try_channel(settings: Settings, name: str) -> list[telling.Tried]:
    from daemon import telling

    return asyncio.run(telling.try_channel(settings, name, SteadyClock()))


def _serve(config: Path, told: Callable[[float, float], None]) -> int:
    from daemon.config import EXIT_CONFIG, ConfigError, load

    try:
        return asyncio.run(serve(load(config), config, told))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except (CalendarError, RecordError, SourceError) as error:
        print(f"tidewarden: {error}", file=sys.stderr)
        return 1


def _demo(**options: Any) -> int:
    from simulator.demo import demo

    return demo(assemble, Parts, fit_elsewhere, **options)


def _replay(policy: Policy, step_s: float) -> Replay:
    from daemon.replay import Replay
    from detectors import DETECTORS
    from detectors.forecast import fit
    from detectors.forecast_blend import INLINE

    core = Core(policy, {name: make() for name, make in DETECTORS.items()})
    return Replay(core, FrameBuilder(policy), lambda track, horizon_s: fit(track, horizon_s, INLINE), step_s)


def _drill(**options: Any) -> dict[str, Any]:
    from simulator.drill import drill

    return drill(assemble, Parts, fit_here, **options)


def _forecast_csv(values: Array, horizon: int) -> Ahead:
    from detectors.forecast import forecast_series

    return forecast_series(values, horizon)


def _backtest(values: Array, told: Callable[[float, float], None]) -> list[dict[str, Any]]:
    from detectors.forecast_backtest import backtest

    return backtest(values, told)


if __name__ == "__main__":
    sys.exit(main())
