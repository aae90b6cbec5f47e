"""How soon a claim becomes a change: from a finding to a verified HAProxy weight, and to an accepted Kubernetes cordon.

    python -m bench.acting                       HAProxy of this machine, and the protocol server of the tests
    python -m bench.acting --kubeconfig FILE     a real API server: --node NAME is cordoned and released again and again

The clock runs from the tick that is handed the finding to the outcome: merging, planning, guarding, the intent on disk, the backend, the
look at the world. Scraping and detecting are not in it: see tests/integration/test_closed_loop.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actions import CONFIGURED, VERBS, Site
from daemon.act import Executor
from daemon.core import Core
from daemon.frame import FrameBuilder
from daemon.model import Backend, Entity, Finding, Frames, Result, Severity, Step, Verb
from daemon.policy import Mode, Policy
from daemon.record import Record
from daemon.settings_backends import HAProxyBackend, KubernetesBackend
from simulator.defaults import default_spec
from simulator.policies import policy_of
from simulator.world import World

EPOCH = 1_780_272_000.0
GPUS = 64
TICKS = 4
OWNER = "tidewarden/bench"
GOAL_MS = {"haproxy weight": 150.0, "kubernetes cordon": 500.0}


@dataclass(slots=True)
class Says:
    """A detector that says one thing."""

    finding: Finding

    def update(self, frames: Frames) -> list[Finding]:
        return [replace(self.finding, at=frames.at)]


def fleet() -> tuple[Policy, Frames]:
    """A simulated fleet in full service, as the core sees it."""
    spec = default_spec(GPUS)
    world = World(spec, 1, EPOCH)
    policy = replace(policy_of(spec, "bench"), mode=Mode.AUTO, able=frozenset(Verb))
    builder = FrameBuilder(policy)
    for beat in range(TICKS):
        world.advance(EPOCH + beat * 15.0)
        for scrape in world.sweep():
            builder.absorb(scrape)
    return policy, builder.build(EPOCH + (TICKS - 1) * 15.0)


async def measured(
    backend: Backend,
    folder: Path,
    verb: Verb,
    back: Verb,
    kind: str,
    entities: Sequence[Entity],
    trials: int,
) -> list[float]:
    """Seconds from a finding to the outcome of its step. back : verb that undoes it between two trials."""
    policy, frames = fleet()
    record = Record.open(folder)
    hands = Executor({v: VERBS[v](backend) for v in (verb, back)}, record, time.time)

    def decided(entity: Entity) -> list[Step]:
        finding = Finding(0.0, "bench", entity, kind, 1.0, Severity.CRITICAL)
        decision = Core(policy, {"bench": Says(finding)}).tick(frames)
        return [v.step for v in decision.verdicts if v.allowed and v.step.verb is verb]

    # Some have no peer to take over: there the guard refuses, as it should.
    spared = [entity for entity in entities if decided(entity)]
    took = []
    for trial in range(trials):
        begun = time.perf_counter()
        steps = decided(spared[trial % len(spared)])
        outcomes = [await hands.run(replace(step, id=f"b{trial}-{step.id}")) for step in steps]
        took.append(time.perf_counter() - begun)
        wrong = [o.detail for o in outcomes if o.result is not Result.DONE]
        if wrong or len(outcomes) != 1:
            raise SystemExit(f"trial {trial} of {verb}: {len(outcomes)} steps, {wrong}")
        undone = await hands.run(_undo(outcomes[0].step, back, trial))
        if undone.result is not Result.DONE:
            raise SystemExit(f"trial {trial} of {back}: {undone.detail}")
    record.close()
    return took


def _undo(step: Step, back: Verb, trial: int) -> Step:
    return replace(step, id=f"u{trial}-{step.id}", verb=back, amount=1.0)


# -- the systems -----------------------------------------------------------------------------------------


async def haproxy(folder: Path, trials: int) -> list[float]:
    """On a HAProxy with a server an engine of the fleet."""
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if binary is None:
        raise SystemExit("haproxy is not installed; apt install haproxy")
    _, frames = fleet()
    engines, socket = frames["engine"].entities, folder / "h.sock"
    servers = "".join(f"  server {name} 127.0.0.1:9\n" for name in engines)
    (folder / "h.cfg").write_text(
        f"global\n  stats socket {socket} mode 600 level admin\ndefaults\n  mode http\n  timeout connect 1s\n"
        "  timeout client 1s\n  timeout server 1s\n  default-server weight 100\n"
        f"backend all\n  balance roundrobin\n{servers}"
    )
    process = await asyncio.create_subprocess_exec(
        binary, "-f", str(folder / "h.cfg"), stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while not socket.exists():  # noqa: ASYNC110  # another process makes it
                await asyncio.sleep(0.02)
        tree = HAProxyBackend.model_validate({"kind": "haproxy", "processes": [{"socket": str(socket)}]})
        backend = CONFIGURED["haproxy"](tree.model_dump(), _site(folder))
        entities = [Entity("engine", name) for name in engines]
        return await measured(backend, folder, Verb.REROUTE, Verb.REROUTE, "engine_hung", entities, trials)
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def api_server(folder: Path, nodes: Sequence[str]) -> AsyncIterator[str]:
    """The kubeconfig of the tests' protocol server, with these nodes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from kubernetes_server import KubernetesServer
    from kubernetes_server.store import KINDS

    kind = next(k for k in KINDS if k.plural == "nodes")
    async with KubernetesServer().running() as server:
        for name in nodes:
            server.store.create(kind, "", {"metadata": {"name": name}, "spec": {}})
        yield server.kubeconfig(folder)


async def kubernetes(folder: Path, trials: int, kubeconfig: str, node: str) -> list[float]:
    """Cordon, mark, Event and eviction of nobody; on a real API server of one node that is named."""
    _, frames = fleet()
    names = frames["node"].entities
    async with AsyncExitStack() as stack:
        mapped = dict.fromkeys(names, node) if kubeconfig else {}
        path = kubeconfig or await stack.enter_async_context(api_server(folder, names))
        given = {"kind": "kubernetes", "kubeconfig": path, "nodes": mapped}
        backend = CONFIGURED["kubernetes"](
            KubernetesBackend.model_validate(given).model_dump(), _site(folder)
        )
        entities = [Entity("node", name) for name in names]
        try:
            return await measured(
                backend, folder, Verb.ISOLATE, Verb.RELEASE, "node_reclaimed", entities, trials
            )
        finally:
            await backend.close()  # type: ignore[attr-defined]


def _site(folder: Path) -> Site:
    return Site(folder / "marks.json", OWNER, time.time)


def row(name: str, took: Sequence[float]) -> dict[str, Any]:
    p50, p99 = (float(np.quantile(took, q)) * 1e3 for q in (0.5, 0.99))
    found = {"what": name, "trials": len(took), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}
    return found | {"goal_p99_ms": GOAL_MS[name], "is_met": p99 <= GOAL_MS[name]}


def main(argv: Sequence[str] | None = None) -> int:
    """1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.acting", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kubeconfig", default="", help="of a real API server")
    parser.add_argument("--node", default="", help="node of it that may be cordoned")
    given = parser.parse_args(argv)
    if bool(given.kubeconfig) != bool(given.node):
        parser.error("--kubeconfig and --node belong together")
    runs: dict[str, Callable[[Path], Any]] = {
        "haproxy weight": lambda folder: haproxy(folder, given.trials),
        "kubernetes cordon": lambda folder: kubernetes(folder, given.trials, given.kubeconfig, given.node),
    }
    rows = []
    for name, run in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, asyncio.run(run(Path(folder)))))
        found = rows[-1]
        print(
            f"{name:<18} p50 {found['p50_ms']:6.1f} ms   p99 {found['p99_ms']:6.1f} ms   goal {found['goal_p99_ms']:.0f} ms"
            f"   {'met' if found['is_met'] else 'MISSED'}   ({found['trials']} trials)"
        )
    print(json.dumps({"bench": "acting", "rows": rows}))
    return 0 if all(r["is_met"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
