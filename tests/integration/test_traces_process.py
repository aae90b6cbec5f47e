"""The service sends its traces to a collector, over real HTTP, decoded by the protocol's own schema."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from test_service_process import Service, free_port, http, pages
from test_telling_process import Receiver, dying, notify, receiver

__all__ = ["dying", "pages", "receiver"]  # fixtures of theirs

pytestmark = pytest.mark.integration


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.tokens: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.tokens.add(self.headers.get("Authorization", ""))
                for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
                    facts = {a.key: a.value.string_value for a in batch.resource.attributes}
                    outer.services.add(f"{facts['service.name']} {facts['service.instance.id']}")
                    for scope in batch.scope_spans:
                        outer.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)

    def named(self, name: str) -> list[Span]:
        return [s for s in self.spans if s.name == name]

    def below(self, span: Span) -> list[Span]:
        return [s for s in self.spans if s.parent_span_id == span.span_id]


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def facts(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_step_is_seen_from_the_scrape_that_led_to_it_to_its_verification(
    tmp_path: Path,
    pages: dict[str, str],
    collector: Collector,
    receiver: Receiver,
    dying: tuple[str, Callable[[], None]],
) -> None:
    address, die = dying
    (tmp_path / "headers").write_text("Authorization: Bearer open-sesame\n")
    port = collector.server_address[1]
    extra = notify(f"{{name: hook, kind: webhook, urls: ['{receiver.url}']}}")
    extra += (
        f"traces: {{endpoint: 'http://127.0.0.1:{port}/v1/traces', headers_file: '{tmp_path}/headers'}}\n"
    )
    service = Service(tmp_path, http(pages["vllm"], address), extra).start().ready()
    service.until(lambda: len(service.get("/api/v1/overview")["pools"]) == 1)
    die()
    service.until(lambda: len(receiver.got) > 0, within_s=90.0)
    service.until(lambda: len(collector.named("step")) > 0)
    code, _, said = service.end()

    assert code == 0
    assert "sesame" not in said
    assert collector.services == {"tidewarden test"}
    assert collector.tokens == {"Bearer open-sesame"}
    step = collector.named("step")[0]
    (tick,) = [s for s in collector.spans if s.span_id == step.parent_span_id]
    names = [s.name for s in sorted(collector.below(tick), key=lambda s: s.start_time_unix_nano)]
    stages = ["scrape", "frame", "look", "detect", "incident", "plan", "guard", "record"]
    assert [n for n in names if n != "step"] == stages
    assert {s.name for s in collector.below(step)} == {"apply", "verify"}
    assert tick.trace_id == step.trace_id
    assert facts(step)["tidewarden.verb"] == "notify"
    assert facts(step)["tidewarden.result"] == "done"
    assert facts(tick)["tidewarden.opened"] >= 1
    for span in collector.spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert sum(s.end_time_unix_nano - s.start_time_unix_nano for s in collector.below(tick) if s.name != "step") <= (
        tick.end_time_unix_nano - tick.start_time_unix_nano
    )  # fmt: skip


def test_a_collector_that_is_away_delays_neither_decisions_nor_the_end(
    tmp_path: Path, pages: dict[str, str]
) -> None:
    extra = f"traces: {{endpoint: 'http://127.0.0.1:{free_port()}/v1/traces'}}\n"
    service = Service(tmp_path, http(pages["vllm"]), extra).start().ready()
    service.until(lambda: service.get("/api/v1/status")["ticks"] > 15)
    code, took_s, said = service.end()

    assert code == 0
    assert "Transient error" not in said
    assert 1 <= said.count("traces not sent") <= 3  # the first, then at doubling intervals
    assert took_s < 10.0  # what every shutdown promises


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, pages: dict[str, str]) -> None:
    (tmp_path / "hidden" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "hidden" / "opentelemetry" / "__init__.py").write_text("")  # an empty one hides the real one
    extra = "traces: {endpoint: 'http://127.0.0.1:9/v1/traces'}\n"
    service = Service(tmp_path, http(pages["vllm"]), extra, PYTHONPATH=str(tmp_path / "hidden")).start()
    assert service.process is not None

    _, said = service.process.communicate(timeout=30)

    assert service.process.returncode == 1
    assert "pip install 'tidewarden[otlp]'" in said
    assert "Traceback" not in said
