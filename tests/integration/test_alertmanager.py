"""Notifications against the real Alertmanager of the distribution."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from actions.channel import Channel, ChannelKind
from actions.channels.alertmanager import alert_object
from actions.channels.webhook import webhook_body
from actions.desk import Desk
from actions.letters import single
from actions.notify import Notify, alert_of
from actions.postman import AiohttpClient, Postman
from actions.silencing import Mirror
from daemon.alerts import Alert, Silence
from daemon.clock import wall_clock
from daemon.model import NAN, Entity, Step, Verb
from daemon.record import Record

pytestmark = pytest.mark.integration

EXTERNAL = "http://tidewarden.example"
PROGRAM = shutil.which("prometheus-alertmanager")
if PROGRAM is None and os.environ.get("CI") != "true":
    pytest.skip("prometheus-alertmanager is not installed", allow_module_level=True)


def notice(status: str, started: float, description: str = "XID 79 at 83 C & <rising>") -> Step:
    args = {
        "cluster": "prod",
        "description": description,
        "ends_at": "",
        "family": "hardware",
        "kind": "gpu_lost",
        "scope": "n03/gpu5",
        "scope_kind": "gpu",
        "severity": "critical",
        "starts_at": f"{started:.3f}",
        "status": status,
        "summary": 'GPU 丢失: "gpu n03/gpu5"',
    }
    return Step(
        f"s-{status}-{description}",
        Verb.NOTIFY,
        Entity("incident", "i1"),
        1.0,
        "told",
        "i1",
        args=tuple(args.items()),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """Alertmanagers, a session, and the raw webhook bodies they sent."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.bodies: list[bytes] = []
        self.came: dict[str, float] = {}
        self.urls: list[str] = []
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    async def hook(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        for alert in json.loads(self.bodies[-1])["alerts"]:
            self.came.setdefault(alert["labels"]["kind"], asyncio.get_running_loop().time())
        return web.Response()

    async def start_alertmanager(self, hook_port: int) -> None:
        port = free_port()
        folder = self._folder / f"am{port}"
        folder.mkdir()
        config = folder / "alertmanager.yml"
        config.write_text(
            "route: {receiver: hook, group_by: [alertname, cluster], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}\n"
            f"receivers: [{{name: hook, webhook_configs: [{{url: 'http://127.0.0.1:{hook_port}/', send_resolved: true}}]}}]\n"
        )
        assert PROGRAM is not None
        command = [
            PROGRAM,
            f"--config.file={config}",
            f"--storage.path={folder}",
            "--cluster.listen-address=",
        ]
        address = f"127.0.0.1:{port}"
        command += [
            f"--web.listen-address={address}",
            f"--web.external-url={EXTERNAL}",
            "--web.route-prefix=/",
        ]
        self._running.append(_start(command, folder / "log"))
        self.urls.append(f"http://{address}")
        await until(lambda: self._is_ready(self.urls[-1]))

    async def _is_ready(self, url: str) -> bool:
        try:
            async with self.session.get(f"{url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def tell_directly(self, alert: Alert) -> None:
        """Hand one alert to the first Alertmanager as any other program would, with no end while it fires."""
        shown = alert_object(alert, NAN)
        async with self.session.post(f"{self.urls[0]}/api/v2/alerts", json=[shown]) as response:
            assert response.status == 200

    async def alerts(self, url: str) -> list[Any]:
        async with self.session.get(f"{url}/api/v2/alerts") as response:
            found: list[Any] = await response.json()
            return found

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
            process.wait(timeout=20)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so, 30 s at most."""
    async with asyncio.timeout(30):
        while not await is_so():  # noqa: ASYNC110  # another process tells nobody
            await asyncio.sleep(0.05)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    if PROGRAM is None:
        pytest.fail("prometheus-alertmanager is not installed; run tests/integration/install.sh")
    async with aiohttp.ClientSession() as session:
        bench = Bench(tmp_path, session)
        app = web.Application()
        app.router.add_post("/", bench.hook)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            await bench.start_alertmanager(runner.addresses[0][1])
            await bench.start_alertmanager(runner.addresses[0][1])
            yield bench
        finally:
            bench.stop()
            await runner.cleanup()


async def test_an_alert_appears_everywhere_is_refreshed_and_resolves(bench: Bench) -> None:
    channel = Channel(
        "pager", ChannelKind.ALERTMANAGER, tuple(bench.urls), repeat_s=0.5, hold_s=60.0, resolve_s=2.0
    )
    record = Record.open(None)
    postman = Postman((channel,), record.outbox, AiohttpClient(bench.session, wall_clock), wall_clock)
    notify = Notify(Desk((channel,), record.outbox, wall_clock, wake=postman.wake))
    run = asyncio.create_task(postman.run())

    async def all_show(count: int) -> bool:
        return all([len(await bench.alerts(url)) == count for url in bench.urls])

    started = wall_clock() - 30.0
    await notify.apply(notice("firing", started))
    await until(lambda: all_show(1))
    (first,) = await bench.alerts(bench.urls[0])
    assert first["labels"] == {
        "alertname": "TidewardenGpuLost",
        "cluster": "prod",
        "family": "hardware",
        "gpu": "n03/gpu5",
        "kind": "gpu_lost",
        "node": "n03",
        "severity": "critical",
    }
    assert first["annotations"]["summary"] == 'GPU 丢失: "gpu n03/gpu5"'

    async def is_refreshed() -> bool:
        (now,) = await bench.alerts(bench.urls[0])
        return bool(now["endsAt"] > first["endsAt"] and now["startsAt"] == first["startsAt"])

    await until(is_refreshed)
    await notify.apply(notice("firing", started, "XID 79 at 91 C"))

    async def has_new_text() -> bool:
        (now,) = await bench.alerts(bench.urls[0])
        return bool(now["annotations"]["description"] == "XID 79 at 91 C")

    await until(has_new_text)
    assert await all_show(1)
    await notify.apply(notice("resolved", started))
    await until(lambda: all_show(0))

    async def is_quiet() -> bool:
        return not record.outbox.live()

    await until(is_quiet)
    run.cancel()
    await asyncio.wait([run])


async def test_our_webhook_message_is_alertmanagers_own_byte_for_byte(bench: Bench) -> None:
    started = wall_clock() - 30.0
    told = [
        replace(alert_of(notice(status, started), wall_clock()), url="http://tidewarden.example/i1")
        for status in ("firing", "resolved")
    ]

    for number, alert in enumerate(told, start=1):
        await bench.tell_directly(alert)

        async def has_come(number: int = number) -> bool:
            return len(bench.bodies) >= number

        await until(has_come)

    assert [body.decode() for body in bench.bodies] == [
        as_alertmanager(webhook_body(single(a), "hook")) for a in told
    ]


def as_alertmanager(ours: str) -> str:
    """Our message without what only we send, and with the address the real one has for itself."""
    theirs, own = ours.split(',"tidewarden":')
    assert json.loads(own[:-2])["scope"] == {"kind": "gpu", "name": "n03/gpu5"}
    return (
        theirs.replace('"externalURL":"http://tidewarden.example/i1"', f'"externalURL":"{EXTERNAL}"') + "}\n"
    )


async def test_a_rejected_alert_is_not_sent_again(bench: Bench) -> None:
    channel = Channel("pager", ChannelKind.ALERTMANAGER, (bench.urls[0],))
    record = Record.open(None)
    postman = Postman((channel,), record.outbox, AiohttpClient(bench.session, wall_clock), wall_clock)
    step = notice("firing", wall_clock())
    bad = replace(step, args=tuple((k, "bad label " * 10 if k == "scope_kind" else v) for k, v in step.args))
    await Notify(Desk((channel,), record.outbox, wall_clock, wake=postman.wake)).apply(bad)
    run = asyncio.create_task(postman.run())

    async def is_settled() -> bool:
        return not record.outbox.live()

    await until(is_settled)
    (letter,) = record.outbox.letters()
    assert letter.state == "given_up"
    assert letter.error.startswith("HTTP 400: ")
    run.cancel()
    await asyncio.wait([run])


async def test_from_a_finding_to_alertmanagers_receiver_takes_two_seconds_at_most(bench: Bench) -> None:
    """100 incidents, one after another, each its own group there, whose group_wait is 0 here."""
    channel = Channel("pager", ChannelKind.ALERTMANAGER, tuple(bench.urls), per_min=60.0)
    record = Record.open(None)
    postman = Postman((channel,), record.outbox, AiohttpClient(bench.session, wall_clock), wall_clock)
    notify = Notify(Desk((channel,), record.outbox, wall_clock, wake=postman.wake))
    run = asyncio.create_task(postman.run())
    loop = asyncio.get_running_loop()
    told: dict[str, float] = {}
    for n in range(100):
        step = notice("firing", wall_clock())
        args = {**dict(step.args), "kind": f"kind_{n}"}
        told[f"kind_{n}"] = loop.time()
        await notify.apply(replace(step, id=f"s{n}", args=tuple(args.items())))
        await asyncio.sleep(0.05)

    async def all_came() -> bool:
        return len(bench.came) >= len(told)

    await until(all_came)
    run.cancel()
    await asyncio.wait([run])

    took = sorted(bench.came[kind] - at for kind, at in told.items())
    print(f"P50 {took[50]:.2f} s, P99 {took[98]:.2f} s, worst {took[-1]:.2f} s")
    assert took[98] <= 2.0


async def test_a_bad_alert_in_a_storm_harms_no_other(bench: Bench) -> None:
    channel = Channel("pager", ChannelKind.ALERTMANAGER, (bench.urls[0],), per_min=6000.0)
    record = Record.open(None)
    postman = Postman((channel,), record.outbox, AiohttpClient(bench.session, wall_clock), wall_clock)
    notify = Notify(Desk((channel,), record.outbox, wall_clock, wake=postman.wake))
    for n in range(300):
        step = notice("firing", wall_clock())
        args = {**dict(step.args), "kind": f"kind_{n}"} | ({"scope_kind": "bad label"} if n == 150 else {})
        await notify.apply(replace(step, id=f"s{n}", args=tuple(args.items())))
    run = asyncio.create_task(postman.run())

    async def all_known() -> bool:
        return len(await bench.alerts(bench.urls[0])) == 299 and not any(
            letter.state in ("queued", "sending") for letter in record.outbox.live()
        )

    await until(all_known)
    run.cancel()
    await asyncio.wait([run])

    assert [x.id for x in record.outbox.letters() if x.state == "given_up"] == ["s150/pager/0"]


async def test_a_silence_here_keeps_alertmanager_quiet_too_and_nobody_elses_alerts(bench: Bench) -> None:
    channel = Channel("pager", ChannelKind.ALERTMANAGER, tuple(bench.urls))
    record, http = Record.open(None), AiohttpClient(bench.session, wall_clock)
    postman = Postman((channel,), record.outbox, http, wall_clock)
    desk = Desk((channel,), record.outbox, wall_clock, wake=postman.wake)
    mirror = Mirror("prod", lambda: desk.channels, desk.silences, http, wall_clock)
    desk.hushed = mirror.wake
    runs = [asyncio.create_task(postman.run()), asyncio.create_task(mirror.run())]

    async def states(url: str) -> dict[str, str]:
        return {a["labels"].get("node", ""): a["status"]["state"] for a in await bench.alerts(url)}

    async def all_are(state: str, of: str) -> bool:
        return all([(await states(url)).get(of) == state for url in bench.urls])

    theirs = {"labels": {"alertname": "TheirOwn", "node": "theirs", "cluster": "prod"}}
    for url in bench.urls:
        async with bench.session.post(f"{url}/api/v2/alerts", json=[theirs]) as response:
            assert response.status == 200
    await Notify(desk).apply(notice("firing", wall_clock() - 30.0))
    await until(lambda: all_are("active", "n03"))

    now = wall_clock()
    desk.silence(Silence("a1", {"node": "*"}, now, now + 3600.0, "kim", "swap"))
    await until(lambda: all_are("suppressed", "n03"))
    assert [(await states(url))["theirs"] for url in bench.urls] == ["active", "active"]
    await mirror.look()
    for url in bench.urls:
        async with bench.session.get(f"{url}/api/v2/silences") as response:
            (held,) = await response.json()
        assert (held["createdBy"], held["comment"].startswith("swap [tidewarden prod/")) == ("kim", True)

    desk.unsilence("a1")
    await until(lambda: all_are("active", "n03"))
    assert mirror.troubles == {}

    bench.stop()
    await mirror.look()
    assert "does not hold our silences" in mirror.troubles["pager"]
    assert all(url not in mirror.troubles["pager"] for url in bench.urls)
    for run in runs:
        run.cancel()
    await asyncio.wait(runs)
