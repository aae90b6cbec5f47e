"""Traces over OTLP/HTTP, an optional extra: a trace for each tick, and in it every step that the tick set going."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from daemon.model import Result, SourceError
from daemon.settings import Settings
from daemon.spans import Stretch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = structlog.get_logger("tidewarden")

STEPS_MAX = 10_000
"""Steps whose tick is remembered; one that ends later than so many others begins a trace of its own."""
EXPORT_S = 5.0
CLOSE_S = 3.0
"""A collector that is away must not hold up the end of the daemon."""


@dataclass(slots=True)
class Tracing:
    """Turns stretches of time into spans. Sending happens in a thread of the exporter; what it cannot keep is dropped."""

    provider: TracerProvider
    _ticks: OrderedDict[str, Any] = field(default_factory=OrderedDict)

    def hear(self, stretch: Stretch) -> None:
        """Take in what has just ended; never blocks."""
        above = self._ticks.pop(stretch.step, None) if stretch.step else None
        made = self._span(stretch, above)
        for step in stretch.starts:
            self._ticks[step] = made
        while len(self._ticks) > STEPS_MAX:
            self._ticks.popitem(last=False)

    async def close(self) -> None:
        """Send what waits, for a short while."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.to_thread(self.provider.shutdown)
        except TimeoutError:
            pass

    def _span(self, stretch: Stretch, above: Any) -> Any:
        from opentelemetry import trace
        from opentelemetry.trace import Status, StatusCode

        span = self.provider.get_tracer("tidewarden").start_span(
            stretch.name,
            context=above,
            start_time=_ns(stretch.begun),
            attributes={f"tidewarden.{name}": value for name, value in _facts(stretch).items()},
        )
        context = trace.set_span_in_context(span)
        for part in stretch.parts:
            self._span(part, context)
        said = str(stretch.facts.get("error", ""))
        if stretch.facts.get("result") in (Result.FAILED.value, Result.UNKNOWN.value):
            said = str(stretch.facts.get("detail", ""))
        if said:
            span.set_status(Status(StatusCode.ERROR, said))
        span.end(end_time=_ns(stretch.ended))
        return context


@dataclass(slots=True)
class Counted:
    """An exporter whose failures are told once, then at doubling intervals, in our own words."""

    exporter: SpanExporter
    failures: int = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self.exporter.export(spans)
        if result.name == "SUCCESS":
            self.failures = 0
            return result
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:
            log.warning("traces not sent", why="the collector does not take them", failures=self.failures)
        return result

    def shutdown(self) -> None:
        self.exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.exporter.force_flush(timeout_millis)


def tracing_of(settings: Settings) -> Tracing | None:
    """As configured; None = nobody asked for it. Raises SourceError without the extra, OSError for a headers file."""
    tree = settings.traces
    if tree is None:
        return None
    try:
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        batches = importlib.import_module("opentelemetry.sdk.trace.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        http = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise SourceError(
            f"traces: the packages are not installed ({error}); pip install 'tidewarden[otlp]'"
        ) from error
    exporter = http.OTLPSpanExporter(
        endpoint=tree.endpoint, headers=_headers(tree.headers_file), timeout=EXPORT_S
    )
    resource = resources.Resource.create(
        {
            "service.name": "tidewarden",
            "service.version": metadata.version("tidewarden"),
            "service.instance.id": settings.cluster,
        }
    )
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    # It would tell of every try, in lines of its own shape.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    provider.add_span_processor(batches.BatchSpanProcessor(Counted(exporter)))
    return Tracing(provider)


def _headers(path: str) -> dict[str, str]:
    """Headers of a file, ``Name: value`` a line; they are secrets. Raises OSError."""
    if not path:
        return {}
    pairs = (line.partition(":") for line in Path(path).read_text("utf-8").splitlines() if line.strip())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _facts(stretch: Stretch) -> Mapping[str, str | float | int | bool]:
    own = {name: value for name, value in stretch.facts.items() if value != ""}
    return {**own, "step": stretch.step} if stretch.step else own


def _ns(at: float) -> int:
    return int(at * 1e9)
