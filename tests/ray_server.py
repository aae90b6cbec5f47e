"""What the dashboard of Ray answers, as far as our backend asks: Serve's details and scaling, jobs, nodes.

Written from Ray's pages on the Serve and Jobs REST interfaces and from the answers of Ray 2.60.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]


@dataclass
class RayServer:
    """replicas : of the one deployment Chat of shop. jobs : by submission id. token : asked for when set. requests : (method,
    path). lose : the next so many answers are lost after the work was done. fail : the next so many requests give 500."""

    port: int = 0
    replicas: int = 1
    is_external: bool = True
    applications: tuple[str, ...] = ("shop",)
    jobs: dict[str, Json] = field(default_factory=dict)
    token: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    lose: int = 0
    fail: int = 0
    said: str = "internal"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RayServer]:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/serve/applications/", self._details)
        app.router.add_post("/api/v1/applications/{app}/deployments/{name}/scale", self._scale)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        app.router.add_get("/api/v0/nodes", self._nodes)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = int(runner.addresses[0][1])
        try:
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            sent = request.headers.get("Authorization", "no token")
            return web.Response(status=403, text=f"Forbidden: Invalid authentication token: {sent}")
        if self.fail:
            self.fail -= 1
            return web.Response(
                status=500, text=f"Traceback (most recent call last):\n  x\nError: {self.said}\n"
            )
        answer: web.StreamResponse = await handler(request)
        if self.lose and request.method == "POST":
            self.lose -= 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0"})

    async def _details(self, _: web.Request) -> web.Response:
        running = [{"state": "RUNNING", "node_ip": "127.0.0.1"}] * self.replicas
        chat = {"status": "HEALTHY", "target_num_replicas": self.replicas, "replicas": running}
        shop = {
            "status": "RUNNING",
            "external_scaler_enabled": self.is_external,
            "deployments": {"Chat": chat},
        }
        return web.json_response({"applications": dict.fromkeys(self.applications, shop)})

    async def _scale(self, request: web.Request) -> web.Response:
        if request.match_info["app"] not in self.applications:
            return web.json_response({"error": "Application or Deployment not found"}, status=404)
        if not self.is_external:
            error = "Cannot update replicas: Current value: external_scaler_enabled=false."
            return web.json_response({"error": error}, status=412)
        self.replicas = (await request.json())["target_num_replicas"]
        return web.json_response({"message": "Scaling request received."})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["submission_id"]
        if name in self.jobs:
            text = f"ValueError: Job with submission_id {name} already exists. Please use a different submission_id.\n.\n"
            return web.Response(status=500, text=text)
        self.jobs[name] = body | {"type": "SUBMISSION", "status": "RUNNING", "start_time": time.time() * 1000}
        return web.json_response({"job_id": name, "submission_id": name})

    async def _stop(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.Response(status=404, text=f"Job {request.match_info['id']} does not exist")
        asyncio.get_running_loop().call_later(0.1, job.update, {"status": "STOPPED"})
        return web.json_response({"stopped": True})

    async def _nodes(self, _: web.Request) -> web.Response:
        node = {"node_ip": "127.0.0.1", "node_name": "n1", "state": "ALIVE"}
        dead = {"node_ip": "10.0.0.9", "node_name": "n9", "state": "DEAD"}
        return web.json_response({"result": True, "data": {"result": {"total": 2, "result": [node, dead]}}})
