"""An engine-shaped HTTP server: real-time continuous batching, vLLM's metric names, and faults on request.

Run as `engine_program.py [HOST:]PORT...`, one engine each, on 127.0.0.1 unless told. POST /fault?kind=KIND with: "" (sound), slow (five times the step), hung (the core
computes nothing, the API server answers), metrics_hang (the page never comes), metrics_stale (the page stands still).
"""

import asyncio
import sys
import time
from dataclasses import dataclass, field

from aiohttp import web

STEP_S = 0.02
TOKENS = 50
ANSWER = "x" * 20_000
"""As much as a streamed answer of some hundred tokens weighs: what a throttled network has to carry."""
UP_S = 3600.0
"""The engines say that they have stood for an hour, so that nobody takes their first minute for a warm-up."""
BATCH_MAX = 64
EDGES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


@dataclass
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        self.total += value
        self.counts[next((i for i, edge in enumerate(EDGES) if value <= edge), len(EDGES))] += 1

    def text(self, name: str) -> str:
        lines, seen = [f"# TYPE {name} histogram"], 0
        for edge, count in zip([*map(str, EDGES), "+Inf"], self.counts, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{le="{edge}",model_name="tiny"}} {seen}')
        lines += [
            f'{name}_sum{{model_name="tiny"}} {self.total}',
            f'{name}_count{{model_name="tiny"}} {seen}',
        ]
        return "\n".join(lines)


@dataclass(eq=False)
class Request:
    at: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    made: int = 0
    last: float = 0.0


@dataclass
class Engine:
    fault: str = ""
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    tokens: int = 0
    prompts: int = 0
    finished: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    started: float = field(default_factory=lambda: time.time() - UP_S)
    page: str = ""

    async def compute(self) -> None:
        """The engine core: one token for everybody in the batch a step."""
        while True:
            await asyncio.sleep(STEP_S * (5 if self.fault == "slow" else 1))
            if self.fault == "hung":
                continue
            while self.waiting and len(self.running) < BATCH_MAX:
                self.running.append(self.waiting.pop(0))
                self.prompts += 20
            now = time.monotonic()
            for request in list(self.running):
                (self.itl if request.made else self.ttft).add(
                    now - (request.last if request.made else request.at)
                )
                request.made, request.last, self.tokens = request.made + 1, now, self.tokens + 1
                if request.made == TOKENS:
                    self.running.remove(request)
                    self.finished += 1
                    self.e2e.add(now - request.at)
                    request.done.set()

    def metrics(self) -> str:
        label = '{model_name="tiny"}'
        values = {
            "vllm:num_requests_running": ("gauge", len(self.running)),
            "vllm:num_requests_waiting": ("gauge", len(self.waiting)),
            "vllm:kv_cache_usage_perc": ("gauge", len(self.running) / BATCH_MAX),
            "vllm:generation_tokens_total": ("counter", self.tokens),
            "vllm:prompt_tokens_total": ("counter", self.prompts),
        }
        lines = [f"# TYPE {n} {kind}\n{n}{label} {value}" for n, (kind, value) in values.items()]
        lines.append("# TYPE vllm:request_success_total counter")
        lines.append(
            f'vllm:request_success_total{{finished_reason="stop",model_name="tiny"}} {self.finished}'
        )
        lines.append(f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {self.started}")
        lines.append(self.ttft.text("vllm:time_to_first_token_seconds"))
        lines.append(self.itl.text("vllm:inter_token_latency_seconds"))
        lines.append(self.e2e.text("vllm:e2e_request_latency_seconds"))
        return "\n".join(lines) + "\n"


async def serve(host: str, port: int) -> None:
    engine = Engine()

    async def complete(_: web.Request) -> web.Response:
        request = Request(time.monotonic())
        engine.waiting.append(request)
        await request.done.wait()
        return web.json_response({"object": "text_completion", "model": "tiny", "text": ANSWER})

    async def metrics(_: web.Request) -> web.Response:
        if engine.fault == "metrics_hang":
            await asyncio.Event().wait()
        if engine.fault != "metrics_stale":
            engine.page = engine.metrics()
        return web.Response(text=engine.page)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny"}]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def fault(request: web.Request) -> web.Response:
        engine.fault = request.query["kind"]
        return web.Response()

    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/completions", complete),
            web.get("/metrics", metrics),
            web.get("/v1/models", models),
            web.get("/health", health),
            web.post("/fault", fault),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    await engine.compute()


async def serve_all(places: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        for place in places:
            host, _, port = place.rpartition(":")
            group.create_task(serve(host or "127.0.0.1", int(port)))


if __name__ == "__main__":
    asyncio.run(serve_all(sys.argv[1:]))
