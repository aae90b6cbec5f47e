"""The Ray backend on our protocol server, and on a real Ray where `TIDEWARDEN_TEST_RAY` names its program (`.../bin/ray`)."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from networks import has_networks, network
from ray_server import RayServer

from actions import CONFIGURED, VERBS, Site
from actions.backends.ray import Ray
from daemon.act import Executor, Patience
from daemon.model import Entity, Hopeless, Outcome, Result, Step, TryAgain, Verb
from daemon.record import Record
from daemon.settings_backends import RayBackend
from daemon.telemetry.jobs import ray_jobs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

OWNER = "tidewarden/prod"
RAY = os.environ.get("TIDEWARDEN_TEST_RAY", "")
NET = "10.211.78"
QUICK = Patience(backoff_s=0.05, backoff_max_s=0.2, poll_s=0.05, poll_max_s=0.2)
SHOP = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Chat:
    def __call__(self, request):
        return "hello"

app = Chat.bind()
"""


@dataclass
class Town:
    address: str
    folder: Path
    server: RayServer | None

    def backend(self, **settings: Any) -> Ray:
        known = {"kind": "ray", "address": self.address, "pools": {"chat": "shop/Chat"}} | settings
        site = Site(self.folder / "marks.json", OWNER, time.time)
        built = CONFIGURED["ray"](RayBackend.model_validate(known).model_dump(), site)
        assert isinstance(built, Ray)
        return built

    async def run(self, step: Step, backend: Ray | None = None, **settings: Any) -> Outcome:
        action = VERBS[step.verb](backend or self.backend(**settings))
        return await Executor({step.verb: action}, Record.open(None), time.time, QUICK).run(step)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.address + path, json=body) as answer,
        ):
            text = await answer.text()
            assert answer.status == 200, text
            return json.loads(text) if text else None


def scale(amount: float, id: str = "s1", pool: str = "chat", deadline_s: float = 20.0) -> Step:
    return Step(id, Verb.SCALE, Entity("pool", pool), amount, "more is coming", deadline_s=deadline_s)


def lend(id: str = "s1", node: str = "n1", for_s: float = 3600.0) -> Step:
    until = time.time() + for_s
    return Step(id, Verb.LEND, Entity("node", node), 1.0, "idle", deadline_s=20.0, until=until)


def recall(id: str = "s2", node: str = "n1") -> Step:
    return Step(id, Verb.RECALL, Entity("node", node), 1.0, "wanted back", deadline_s=20.0)


def launch(inside: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A Ray of one node, all of it one session, whose dashboard listens at the far end of the link."""
    command = (
        f"{RAY} start --head --block --node-ip-address=127.0.0.1 --node-name=n1 --port=6399 --dashboard-host={NET}.2 "
        "--dashboard-port=8265 --min-worker-port=20000 --max-worker-port=20999 --num-cpus=2 --num-gpus=2 "
        f"--object-store-memory=80000000 --disable-usage-stats --temp-dir={folder}/t"
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "ray.log").open("ab") as log:
        return subprocess.Popen(
            [*inside, *command.split()], stdout=log, stderr=log, env=environment, start_new_session=True
        )


@asynccontextmanager
async def real_ray(folder: Path) -> AsyncIterator[str]:
    """A Ray in a network namespace of its own, with an application that may be scaled from outside and one that may not."""
    (folder / "shop.py").write_text(SHOP)
    with network("tw-ray", NET) as inside:
        process = launch(inside, folder)
        try:
            town = Town(f"http://{NET}.2:8265", folder, None)
            await until(lambda: town.ask("GET", "/api/version"), 60)
            shop = {"name": "shop", "route_prefix": "/", "import_path": "shop:app"}
            closed = {"name": "closed", "route_prefix": "/closed", "import_path": "shop:app"}
            applications = [shop | {"external_scaler_enabled": True}, closed]
            await town.ask("PUT", "/api/serve/applications/", {"applications": applications})

            async def stands() -> None:
                found = (await town.ask("GET", "/api/serve/applications/"))["applications"]
                assert [found[name]["status"] for name in ("shop", "closed")] == ["RUNNING"] * 2

            await until(stands, 60)
            yield town.address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


async def until(check: Callable[[], Awaitable[Any]], within_s: float) -> None:
    end = time.monotonic() + within_s
    while True:
        try:
            await check()
            return
        except (aiohttp.ClientError, AssertionError, KeyError):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.3)


@pytest.fixture(params=["ours", "real"])
async def town(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Town]:
    if request.param == "real":
        if not RAY or not has_networks():
            pytest.skip("needs TIDEWARDEN_TEST_RAY and the right to make a network namespace")
        async with real_ray(tmp_path) as address:
            yield Town(address, tmp_path, None)
        return
    async with RayServer(applications=("shop", "closed")).running() as server:
        yield Town(f"http://127.0.0.1:{server.port}", tmp_path, server)


@pytest.fixture
async def ours(tmp_path: Path) -> AsyncIterator[tuple[Town, RayServer]]:
    async with RayServer().running() as server:
        yield Town(f"http://127.0.0.1:{server.port}", tmp_path, server), server


# -- on both ---------------------------------------------------------------------------------------------------


async def test_replicas_go_from_one_to_three_and_back_and_a_job_comes_and_goes(town: Town) -> None:
    """One story, since a real Ray takes half a minute to start."""
    offline = {"offline_entrypoint": "echo $TIDEWARDEN_NODE of $TIDEWARDEN_GPUS; exec sleep 600"}

    async def ready(count: int) -> None:
        assert (await town.backend().observe(scale(1)))["ready"] == count

    checks = await town.backend(nodes={"n1": "n1"}).check()
    await until(lambda: ready(1), 30)
    up = await town.run(scale(3, "s1"))
    await until(lambda: ready(3), 60)
    down = await town.run(scale(1, "s2"))
    await until(lambda: ready(1), 60)
    await town.ask("POST", "/api/jobs/", {"entrypoint": "sleep 600", "submission_id": "somebodys"})
    lent = await town.run(lend("s3"), **offline)
    again = await town.run(lend("s3"), **offline)
    jobs = {j["submission_id"]: j for j in await town.ask("GET", "/api/jobs/")}
    recalled = await town.run(recall("s4"), **offline)
    after = {j["submission_id"]: j["status"] for j in await town.ask("GET", "/api/jobs/")}
    seen = await town.backend(**offline).observe(recall())
    closed = await town.run(scale(3, "s5"), pools={"chat": "closed/Chat"})

    assert all(c.is_right for c in checks), checks
    assert up.result is down.result is Result.DONE, (up.detail, down.detail)
    assert lent.result is again.result is Result.DONE, (lent.detail, again.detail)
    assert {"somebodys", "tidewarden-n1-s3"} == set(jobs)
    assert jobs["tidewarden-n1-s3"]["metadata"]["tidewarden.io/owner"] == OWNER
    assert recalled.result is Result.DONE, recalled.detail
    assert after["tidewarden-n1-s3"] == "STOPPED"
    assert after["somebodys"] not in ("STOPPED", "FAILED")
    assert seen["lent"] is False
    if town.server is None:
        assert closed.result is Result.REFUSED
        assert "external_scaler_enabled: true" in closed.detail


async def test_a_lease_ends_by_itself_though_nobody_recalls_it(town: Town) -> None:
    if town.server is not None:
        pytest.skip("our server runs no program")
    lent = await town.run(lend(for_s=8.0), offline_entrypoint="exec sleep 600")

    async def over() -> None:
        assert (await town.backend().observe(recall()))["lent"] is False

    await until(over, 60)

    assert lent.result is Result.DONE, lent.detail


# -- on ours ---------------------------------------------------------------------------------------------------


async def test_what_stands_elsewhere_or_nowhere_is_said_with_the_remedy(ours: tuple[Town, RayServer]) -> None:
    town, server = ours
    offline = {"offline_entrypoint": "true"}

    said = [
        (await town.run(scale(2), pools={"chat": "gone/Chat"})).detail,
        (await town.run(scale(2), pools={"chat": "shop/Gone"})).detail,
        (await town.run(scale(2, pool="code"))).detail,
        (await town.run(lend(node="n9"), **offline)).detail,
        (await town.run(lend())).detail,
    ]
    server.is_external = False
    said.append((await town.run(scale(2))).detail)

    assert "no application gone" in said[0]
    assert "there now: shop" in said[0]
    assert "no deployment Gone" in said[1]
    assert "no deployment stands for pool code" in said[2]
    assert "no living node n9" in said[3]
    assert "map it under nodes" in said[3]
    assert "set offline_entrypoint" in said[4]
    assert "serve deploy" in said[5]
    assert [r for r in server.requests if r[0] != "GET"] == []


async def test_an_answer_that_is_lost_is_looked_for_and_nothing_is_done_twice(
    ours: tuple[Town, RayServer],
) -> None:
    town, server = ours
    server.lose = 1
    scaled = await town.run(scale(3))
    server.lose = 1
    lent = await town.run(lend("s7"), offline_entrypoint="true")

    posts = [path for method, path in server.requests if method == "POST"]
    assert scaled.result is lent.result is Result.DONE, (scaled.detail, lent.detail)
    assert len(posts) == 2
    assert list(server.jobs) == ["tidewarden-n1-s7"]


async def test_the_job_carries_its_end_its_node_and_its_gpus(ours: tuple[Town, RayServer]) -> None:
    town, server = ours
    env = {"env_vars": {"DATA": "/data"}, "working_dir": "/srv"}

    await town.run(lend("s1"), offline_entrypoint="python 'my train.py'", offline_runtime_env=env)

    job = server.jobs["tidewarden-n1-s1"]
    assert job["entrypoint"].startswith("timeout --kill-after=30 35")
    assert job["entrypoint"].endswith("""sh -c 'python '"'"'my train.py'"'"''""")
    assert (job["entrypoint_num_gpus"], job["entrypoint_resources"]) == (1, {"node:127.0.0.1": 0.001})
    assert job["runtime_env"]["env_vars"]["TIDEWARDEN_NODE"] == "n1"
    assert job["runtime_env"]["env_vars"]["DATA"] == "/data"
    assert job["runtime_env"]["working_dir"] == "/srv"
    (read,) = ray_jobs([job])
    assert (read.title, read.nodes, read.gpus) == ("python 'my train.py'", ("n1",), 1.0)


async def test_a_dashboard_that_restarts_mid_step_is_waited_for(tmp_path: Path) -> None:
    server = RayServer()
    async with server.running():
        town = Town(f"http://127.0.0.1:{server.port}", tmp_path, server)
    running = asyncio.create_task(town.run(scale(2)))
    await asyncio.sleep(0.2)
    async with server.running():
        outcome = await running

    assert outcome.result is Result.DONE, outcome.detail
    assert server.replicas == 2


async def test_a_half_open_connection_is_given_up_in_time(tmp_path: Path) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    town = Town(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", tmp_path, None)

    backend = town.backend(timeout="200ms")
    with pytest.raises(TryAgain, match=r"gave no answer to .* within 0\.2 s"):
        await backend.observe(scale(2))
    outcome = await town.run(scale(2, deadline_s=1.5), backend)
    silent.close()

    assert outcome.result is Result.UNKNOWN


async def test_an_application_deleted_between_two_steps_is_said(ours: tuple[Town, RayServer]) -> None:
    town, server = ours
    first = await town.run(scale(2, "s1"))
    server.applications = ()
    second = await town.run(scale(3, "s2"))

    assert first.result is Result.DONE
    assert second.result is Result.REFUSED
    assert "deleted or renamed" in second.detail


async def test_a_token_is_sent_read_anew_and_never_shown(
    ours: tuple[Town, RayServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    town, server = ours
    server.token = "sesame-token-1"
    path = town.folder / "token"
    path.write_text("sesame-token-1\n")
    backend = town.backend(token_path=str(path))

    before = await town.run(scale(2, "s1"), backend)
    server.token = "sesame-token-2"
    refused = await town.run(scale(3, "s2"), backend)
    path.write_text("sesame-token-2\n")
    after = await town.run(scale(3, "s3"), backend)
    path.unlink()
    missing = await town.run(scale(1, "s4"), backend)

    assert before.result is after.result is Result.DONE
    assert refused.result is missing.result is Result.REFUSED
    assert "put the cluster's token into a file" in refused.detail
    assert "cannot be read" in missing.detail
    shown = " ".join(
        [refused.detail, missing.detail, repr(backend), repr(await backend.check()), caplog.text]
    )
    assert "sesame" not in shown
    assert "***" in refused.detail


@pytest.mark.parametrize("body", [b"<html>proxy</html>", b'"words"'])
async def test_what_is_no_dashboard_is_said(tmp_path: Path, body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(answer, "127.0.0.1", 0)
    town = Town(f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", tmp_path, None)

    with pytest.raises(TryAgain, match="is this the dashboard of Ray"):
        await town.backend().observe(scale(1))
    proxy.close()


async def test_verbs_ray_does_not_have_are_refused(ours: tuple[Town, RayServer]) -> None:
    step = Step("s1", Verb.ISOLATE, Entity("node", "n1"), 1.0, "sick")

    with pytest.raises(Hopeless, match="cannot isolate"):
        await ours[0].backend().apply(step)
