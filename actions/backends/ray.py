"""Ray: replicas of a Serve deployment, and a job on a lent node as its offline work, over the dashboard's REST interface."""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from daemon.model import Check, Hopeless, Step, TryAgain, Verb

OWNER = "tidewarden.io/owner"
NODE = "tidewarden.io/node"
UNTIL = "tidewarden.io/until"
OVER = ("STOPPED", "SUCCEEDED", "FAILED")
PINNED = 0.001
"""Share of a node's own resource `node:ADDRESS` that ties a job to it. Source: Ray's page on resources."""
GRACE_S = 30
"""Between the end of a lease and the kill: time to write a checkpoint."""
SAID_MAX = 300

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ray:
    """One Ray cluster.

    address : URL of the dashboard. pools : pool -> (application, deployment) of Serve. nodes : node of the telemetry -> address
    or name of Ray's node. entrypoint : command of the offline job, "" = nothing is lent. runtime_env : of it, as Ray takes it.
    token_path : file with the token of a cluster that asks for one, read at each request. timeout_s : for one answer.

    The declarative PUT of all applications is never used: what it does not name it deletes. Source: docs/en/backends/ray.md.
    """

    address: str
    owner: str
    clock: Callable[[], float]
    pools: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    entrypoint: str = ""
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    token_path: str = ""
    timeout_s: float = 10.0

    async def apply(self, step: Step) -> str:
        match step.verb:
            case Verb.SCALE:
                return await self._scale(step)
            case Verb.LEND:
                return await self._lend(step)
            case Verb.RECALL:
                return await self._recall(step)
        raise Hopeless(
            f"Ray scales deployments and runs jobs; it cannot {step.verb}: name another backend under actions"
        )

    async def observe(self, step: Step) -> Mapping[str, Any]:
        match step.verb:
            case Verb.SCALE:
                found = await self._deployment(step.target.name)
                running = [r for r in found.get("replicas") or [] if r.get("state") == "RUNNING"]
                target = found.get("target_num_replicas")
                return {"ready": len(running)} | ({"replicas": int(target)} if target is not None else {})
            case Verb.LEND | Verb.RECALL:
                jobs = await self._jobs_on(_node_of(step))
                ends = [float(j["metadata"].get(UNTIL, "nan")) for j in jobs]
                return {"lent": bool(jobs), "until": min(ends, default=0.0)}
        return {}

    # -- Serve ---------------------------------------------------------------------------------------------

    async def _scale(self, step: Step) -> str:
        application, deployment = self._place(step.target.name)
        found, wanted = await self._deployment(step.target.name), int(step.amount)
        now = found.get("target_num_replicas")
        if now == wanted:
            return f"{deployment} of {application} has {wanted} replicas"
        path = f"/api/v1/applications/{quote(application, safe='')}/deployments/{quote(deployment, safe='')}/scale"
        await self._ask("POST", path, {"target_num_replicas": wanted})
        return f"{deployment} of {application} asked for {wanted} replicas, {now} before; Ray drains those that go"

    def _place(self, pool: str) -> tuple[str, str]:
        if pool not in self.pools:
            known = ", ".join(sorted(self.pools)) or "none"
            raise Hopeless(
                f"no deployment stands for pool {pool}; add APPLICATION/DEPLOYMENT under pools of this backend ({known} there now)"
            )
        return self.pools[pool]

    async def _deployment(self, pool: str) -> Json:
        application, deployment = self._place(pool)
        found = (await self._ask("GET", "/api/serve/applications/")).get("applications") or {}
        if application not in found:
            raise Hopeless(
                f"Ray Serve has no application {application}: it was deleted or renamed, or Serve was restarted without it "
                f"(there now: {', '.join(sorted(found)) or 'none'}); correct pools of this backend, or deploy it again"
            )
        if not found[application].get("external_scaler_enabled"):
            raise Hopeless(
                f"Ray Serve lets nobody scale {application} from outside; write external_scaler_enabled: true beside its name in the "
                "Serve configuration, take autoscaling_config out of its deployments, and run serve deploy"
            )
        known: Json = found[application].get("deployments") or {}
        if deployment not in known:
            raise Hopeless(
                f"application {application} has no deployment {deployment} (there now: {', '.join(sorted(known)) or 'none'}); correct pools of this backend"
            )
        row: Json = known[deployment]
        return row

    # -- jobs ----------------------------------------------------------------------------------------------

    async def _lend(self, step: Step) -> str:
        """One job a lease, tied to the node, with an end of its own: `timeout` ends it even if this daemon is dead."""
        if not self.entrypoint:
            raise Hopeless(
                "nothing can be lent: set offline_entrypoint of this backend to the command of the offline work"
            )
        node, left_s = _node_of(step), math.floor(step.until - self.clock())
        if left_s <= 0:
            raise Hopeless(f"the lease of {node} would have ended before it began")
        if await self._jobs_on(node):
            return f"{node} has its offline job already"
        where = await self._address(node)
        gpus = max(0, int(step.amount))
        told = {
            "TIDEWARDEN_NODE": node,
            "TIDEWARDEN_GPUS": str(gpus),
            "TIDEWARDEN_UNTIL": f"{step.until:.0f}",
        }
        env = dict(self.runtime_env)
        env["env_vars"] = {**(env.get("env_vars") or {}), **told}
        name = f"tidewarden-{node}-{step.id}".replace("/", "-")
        body = {
            "entrypoint": f"timeout --kill-after={GRACE_S} {left_s} sh -c {shlex.quote(self.entrypoint)}",
            "submission_id": name,
            "metadata": {OWNER: self.owner, NODE: node, UNTIL: f"{step.until:.0f}"},
            "entrypoint_num_gpus": gpus,
            "entrypoint_resources": {f"node:{where}": PINNED},
            "runtime_env": env,
        }
        await self._ask("POST", "/api/jobs/", body)
        return f"job {name} submitted to {node} with {gpus} GPUs for {left_s} s"

    async def _recall(self, step: Step) -> str:
        node = _node_of(step)
        jobs = await self._jobs_on(node)
        for job in jobs:
            await self._ask("POST", f"/api/jobs/{quote(str(job['submission_id']), safe='')}/stop")
        return f"{len(jobs)} offline jobs of {node} told to stop"

    async def _jobs_on(self, node: str) -> list[Json]:
        """Jobs of ours on a node that have not ended; those of others are none of our business."""
        found = await self._ask("GET", "/api/jobs/")
        return [
            job
            for job in found.get("items", [])
            if (job.get("metadata") or {}).get(OWNER) == self.owner
            and job["metadata"].get(NODE) == node
            and job.get("status") not in OVER
        ]

    async def _address(self, node: str) -> str:
        """Ray's address of a node, by our mapping, its name or its address."""
        wanted = self.nodes.get(node, node)
        rows = (await self._ask("GET", "/api/v0/nodes?limit=10000"))["data"]["result"]["result"]
        alive = [r for r in rows if r.get("state") == "ALIVE"]
        for row in alive:
            if wanted in (row.get("node_name"), row.get("node_ip")):
                return str(row["node_ip"])
        known = ", ".join(sorted(str(r.get("node_name")) for r in alive)[:10])
        raise Hopeless(
            f"Ray has no living node {wanted} ({known} there now); start it there, or map it under nodes of this backend"
        )

    # -- asking --------------------------------------------------------------------------------------------

    async def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """The answer as an object; a list stands under "items"."""
        import aiohttp

        try:
            async with (
                asyncio.timeout(self.timeout_s),
                aiohttp.ClientSession() as session,
                session.request(
                    method, self.address + path, json=body, headers=self._headers(), allow_redirects=False
                ) as answer,
            ):
                text = await answer.text()
                if answer.status >= 300:
                    raise self._trouble(answer.status, method, path, text)
                found = await answer.json(content_type=None)
        except TimeoutError:
            raise TryAgain(
                f"Ray at {self.address} gave no answer to {path} within {self.timeout_s:g} s"
            ) from None
        except aiohttp.ClientError as error:
            why = getattr(error, "strerror", "") or str(error) or type(error).__name__
            raise TryAgain(
                f"Ray at {self.address} cannot be reached: {why}; does its dashboard run?"
            ) from None
        except ValueError:
            raise TryAgain(f"{self.address}{path} answered no JSON; is this the dashboard of Ray?") from None
        if isinstance(found, list):
            return {"items": found}
        if not isinstance(found, dict):
            raise TryAgain(f"{self.address}{path} answered no JSON object; is this the dashboard of Ray?")
        return found

    def _headers(self) -> dict[str, str]:
        if not self.token_path:
            return {}
        try:
            return {"Authorization": f"Bearer {Path(self.token_path).read_text('utf-8').strip()}"}
        except (OSError, UnicodeDecodeError) as problem:
            reason = getattr(problem, "strerror", None) or "not UTF-8 text"
            raise Hopeless(f"token_path {self.token_path} cannot be read: {reason}") from None

    def _trouble(self, status: int, method: str, path: str, text: str) -> Exception:
        """A refused request as an exception that says what to do. A traceback is told by its last line."""
        lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 1]
        said = self._clean(lines[-1] if lines else "no reason given")[:SAID_MAX]
        asked = f"{method} {path.partition('?')[0]}"
        if status in (401, 403):
            return Hopeless(
                f"Ray does not let us {asked} ({status}): {said}; put the cluster's token into a file and name it as token_path"
            )
        if status == 404:
            return Hopeless(
                f"Ray has no {asked} (404): {said}; it was deleted or renamed, or this Ray is too old for it"
            )
        if status == 412:
            return Hopeless(f"Ray Serve refused to scale (412): {said}")
        if status >= 500:
            return TryAgain(f"Ray failed at {asked} ({status}): {said}", 2.0)
        return Hopeless(f"Ray refused {asked} ({status}): {said}")

    def _clean(self, text: str) -> str:
        try:
            token = Path(self.token_path).read_text("utf-8").strip() if self.token_path else ""
        except (OSError, UnicodeDecodeError):
            token = ""
        return text.replace(token, "***") if token else text

    # -- before anything is enabled ------------------------------------------------------------------------

    @property
    def rights(self) -> str:
        return (
            "The dashboard's port reachable from this host. Ray knows no roles: whoever reaches it, or has its token, can run any\n"
            "program there; keep it from everybody else. external_scaler_enabled: true on every application under pools"
        )

    async def check(self) -> Sequence[Check]:
        try:
            version = (await self._ask("GET", "/api/version")).get("ray_version", "of an unknown version")
        except (Hopeless, TryAgain) as trouble:
            return [Check(False, self.address, "does not work", str(trouble))]
        rows = [Check(True, self.address, f"Ray {version}")]
        for pool in self.pools:
            try:
                found = await self._deployment(pool)
            except (Hopeless, TryAgain) as trouble:
                rows.append(Check(False, f"pool {pool}", "does not work", str(trouble)))
                continue
            rows.append(Check(True, f"pool {pool}", f"{found.get('target_num_replicas')} replicas wanted"))
        for node in self.nodes:
            try:
                rows.append(Check(True, f"node {node}", f"is {await self._address(node)}"))
            except (Hopeless, TryAgain) as trouble:
                rows.append(Check(False, f"node {node}", "does not work", str(trouble)))
        return rows


def _node_of(step: Step) -> str:
    return step.arg("node") or step.target.name
