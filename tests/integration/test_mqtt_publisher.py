"""What the daemon publishes, on a real mosquitto with TLS, passwords and an access list."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from actions.carriers import Mqtt
from actions.channel import Channel, ChannelKind
from actions.desk import Desk
from actions.postman import Postman
from daemon import herald
from daemon.broadcast import signature
from daemon.clock import wall_clock
from daemon.herald import Herald, NotConnected
from daemon.model import Decision, Entity, Incident, Outcome, Result, Severity, Step, Verb
from daemon.record import Record
from daemon.settings_notify import MqttTree

pytestmark = pytest.mark.integration

SECRET = "let me in"
ACL = """\
user warden
topic readwrite tidewarden/prod/#
topic write homeassistant/#
user reader
topic read tidewarden/#
topic read homeassistant/#
user operator
topic write tidewarden/prod/command
topic read tidewarden/#
"""
INCIDENT = Incident("i1", "gpu_lost", Entity("gpu", "n03/gpu5"), 100.0, 100.0, Severity.CRITICAL, ())
STEP = Step("s1", Verb.REROUTE, Entity("engine", "e3"), 0.0, "gpu_lost", incident="i1")


@dataclass
class Broker:
    """A mosquitto that can be stopped and started again at the same port."""

    port: int
    ca: Path
    begin: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = self.begin()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


def certificates(folder: Path) -> None:
    """A certificate authority with a certificate for 127.0.0.1."""
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def broker(
    tmp_path: Path,
    binary: Callable[[str], str],
    start: Callable[[list[str]], subprocess.Popen[bytes]],
    free_port: Callable[[], int],
    listens: Callable[[int, subprocess.Popen[bytes]], None],
) -> Broker:
    certificates(tmp_path)
    port = free_port()
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwords.chmod(0o600)
    for user in ("warden", "reader", "operator"):
        subprocess.run(
            [binary("mosquitto_passwd"), "-b", str(passwords), user, "secret"], check=True, timeout=10
        )
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "acl").write_text(ACL)
    (tmp_path / "acl").chmod(0o600)
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\ncafile {tmp_path}/ca.crt\ncertfile {tmp_path}/server.crt\n"
        f"keyfile {tmp_path}/server.key\nallow_anonymous false\npassword_file {passwords}\n"
        f"acl_file {tmp_path}/acl\npersistence false\nuser root\n"
    )

    def begin() -> subprocess.Popen[bytes]:
        process = start([binary("mosquitto"), "-c", str(tmp_path / "mosquitto.conf")])
        listens(port, process)
        return process

    found = Broker(port, tmp_path / "ca.crt", begin)
    found.start()
    return found


@dataclass
class Ear:
    """All that a subscriber hears: topic, payload, retained, seconds until it expires."""

    client: aiomqtt.Client
    got: list[tuple[str, str, bool, int]] = field(default_factory=list)

    async def listen(self) -> None:
        async for message in self.client.messages:
            payload = message.payload.decode() if isinstance(message.payload, bytes) else ""
            expiry = getattr(message.properties, "MessageExpiryInterval", 0)
            self.got.append((str(message.topic), payload, bool(message.retain), expiry))

    async def until(self, is_so: Callable[[list[tuple[str, str, bool, int]]], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so(self.got):  # noqa: ASYNC110  # another process tells nobody
                await asyncio.sleep(0.02)

    def of(self, topic: str) -> list[str]:
        return [payload for where, payload, _, _ in self.got if where == topic]


@asynccontextmanager
async def ear(broker: Broker, user: str = "reader", *topics: str) -> AsyncIterator[Ear]:
    async with aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        username=user,
        password="secret",
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=ssl.create_default_context(cafile=str(broker.ca)),
    ) as client:
        found = Ear(client)
        task = asyncio.create_task(found.listen())
        for topic in topics or ("tidewarden/#", "homeassistant/#"):
            await client.subscribe(topic, qos=1)
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.wait([task])


def tree(broker: Broker, **changes: Any) -> MqttTree:
    own: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": broker.port,
        "username": "warden",
        "password_file": str(broker.ca.parent / "password"),
        "tls": True,
        "ca_file": str(broker.ca),
        "state_interval": "200ms",
        **changes,
    }
    return MqttTree.model_validate(own)


@asynccontextmanager
async def published(
    settings: MqttTree, state: dict[str, dict[str, Any]], said: list[tuple[str, str, str]] | None = None
) -> AsyncIterator[Herald]:
    def obey(word: str, argument: str, by: str) -> str:
        if argument == "nobody":
            raise ValueError("no action nobody")
        if said is not None:
            said.append((word, argument, by))
        return "it counts at the next tick"

    made = Herald(settings, "prod", wall_clock, lambda: state, obey)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def connected(made: Herald) -> None:
    async with asyncio.timeout(20):
        while made.error:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.02)


async def test_birth_state_events_and_the_end_as_they_are_promised(broker: Broker) -> None:
    state = {"state": {"gpus": 8}, "incidents/i1": {"id": "i1"}}
    async with ear(broker) as heard:
        async with published(tree(broker, home_assistant="homeassistant"), state) as made:
            await connected(made)
            await heard.until(lambda got: len(got) >= 9)
            made.hear(Decision(100.0, opened=(INCIDENT,)))
            made.hear(Outcome(STEP, Result.DONE, "seen", 4.0, 104.0))
            await heard.until(lambda got: any("events/action" in topic for topic, *_ in got))
            del state["incidents/i1"]
            await heard.until(lambda got: ("tidewarden/prod/incidents/i1", "") in [x[:2] for x in got])
        await heard.until(lambda got: ("tidewarden/prod/status", "offline") in [x[:2] for x in got])

    assert heard.of("tidewarden/prod/status") == ["online", "offline"]
    assert json.loads(heard.of("tidewarden/prod/state")[0]) == {"gpus": 8}
    incident = json.loads(heard.of("tidewarden/prod/events/incident")[0])
    assert (incident["event"], incident["scope"], incident["severity"]) == (
        "opened",
        "gpu n03/gpu5",
        "critical",
    )
    action = json.loads(heard.of("tidewarden/prod/events/action")[0])
    assert (action["verb"], action["result"], action["incident"]) == ("reroute", "done", "i1")
    assert {expiry for topic, _, _, expiry in heard.got if "/events/" in topic} <= {3599, 3600}
    config = json.loads(heard.of("homeassistant/sensor/tidewarden_prod/gpus/config")[0])
    assert config["state_topic"] == "tidewarden/prod/state"
    assert config["availability_topic"] == "tidewarden/prod/status"

    async with ear(broker) as later:
        await later.until(lambda got: any(topic == "tidewarden/prod/state" for topic, *_ in got))
        await asyncio.sleep(0.2)
    kept = {topic for topic, _, retained, _ in later.got if retained and topic.startswith("tidewarden")}
    assert kept == {"tidewarden/prod/status", "tidewarden/prod/state"}


async def test_a_daemon_that_dies_is_offline_by_its_last_will(broker: Broker) -> None:
    async with ear(broker) as heard, published(tree(broker), {}) as made:
        await connected(made)
        await heard.until(lambda got: len(got) >= 1)
        client = made._client
        assert client is not None
        sock = client._client.socket()
        assert sock is not None
        sock.shutdown(2)
        await heard.until(lambda got: "offline" in heard.of("tidewarden/prod/status"))
        await heard.until(lambda got: heard.of("tidewarden/prod/status")[-1] == "online")


async def test_a_broker_that_restarts_forgets_nothing_we_know_and_loses_no_event(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time for the reader to be there before us: events are not retained.
    monkeypatch.setattr(herald, "BACK_OFF_S", (2.0, 2.0))
    async with published(tree(broker), {"state": {"gpus": 8}}) as made:
        await connected(made)
        await asyncio.to_thread(broker.kill)
        for n in range(5):
            made.hear(Outcome(STEP, Result.DONE, f"number {n}", 4.0, 100.0 + n))
        async with asyncio.timeout(20):
            while not made.error:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.02)
        await asyncio.to_thread(broker.start)
        async with ear(broker) as heard:
            await heard.until(lambda got: len(heard.of("tidewarden/prod/events/action")) >= 5)
            await heard.until(lambda got: bool(heard.of("tidewarden/prod/state")))

    events = heard.of("tidewarden/prod/events/action")
    assert [json.loads(event)["detail"] for event in events] == [f"number {n}" for n in range(5)]


async def test_a_wrong_password_or_certificate_is_an_error_that_names_the_broker(
    broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text("guess")
    for changes in ({"password_file": str(tmp_path / "wrong")}, {"ca_file": ""}):
        async with published(tree(broker, **changes), {}) as made:
            async with asyncio.timeout(20):
                while made.error == "not connected yet":  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)
            assert f"127.0.0.1:{broker.port}" in made.error
            assert "guess" not in made.error


def order(do: str, argument: str = "", id: str = "c1", secret: str = SECRET, at: float = 0.0) -> str:
    when = at or wall_clock()
    sign = signature(secret, id, when, do, argument, "kim")
    return json.dumps({"id": id, "at": when, "do": do, "argument": argument, "by": "kim", "sign": sign})


async def test_a_signed_command_is_obeyed_once_and_every_other_is_refused_with_the_reason(
    broker: Broker,
) -> None:
    said: list[tuple[str, str, str]] = []
    own = tree(broker, commands=True, command_token_file=str(broker.ca.parent / "token"))
    async with (
        published(own, {}, said) as made,
        ear(broker, "operator", "tidewarden/prod/command/result") as heard,
    ):
        await connected(made)
        for payload, retain in (
            (order("pause", "600"), False),
            (order("pause", "600"), False),
            (order("resume", id="c2", secret="wrong"), False),
            (order("resume", id="c3", at=wall_clock() - 600.0), False),
            (order("reboot", id="c4"), False),
            (order("approve", "nobody", id="c5"), False),
            ("{", False),
            (order("resume", id="c6"), True),
        ):
            before = len(heard.got)
            await heard.client.publish("tidewarden/prod/command", payload, qos=1, retain=retain)
            await heard.until(lambda got, before=before: len(got) > before)  # type: ignore[misc]
    # The broker hands a retained command over again to whoever subscribes later: it must not count then either. Answers are not
    # retained, so who is to hear this one must be there first.
    async with (
        ear(broker, "operator", "tidewarden/prod/command/result") as later,
        published(own, {}, said),
    ):
        await later.until(lambda got: len(got) >= 1)

    answers = [json.loads(payload) for _, payload, _, _ in heard.got]
    assert said == [("pause", "600", "kim")]
    assert [a["ok"] for a in answers] == [True, False, False, False, False, False, False, False]
    for answer, why in zip(
        answers[1:],
        (
            "taken already",
            "signature is wrong",
            "600 s old",
            "one of pause",
            "no action nobody",
            "no JSON",
            "retained",
        ),
        strict=True,
    ):
        assert why in answer["text"]
    assert "retained" in json.loads(later.got[0][1])["text"]


async def test_without_commands_nothing_is_obeyed(broker: Broker) -> None:
    said: list[tuple[str, str, str]] = []
    async with published(tree(broker), {}, said) as made, ear(broker, "operator") as heard:
        await connected(made)
        await heard.client.publish("tidewarden/prod/command", order("pause"), qos=1)
        await heard.until(lambda got: any(topic.endswith("/command") for topic, *_ in got))
        await asyncio.sleep(0.3)

    assert said == []


async def test_an_alert_goes_out_by_mqtt_and_waits_while_the_broker_is_away(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(herald, "BACK_OFF_S", (0.05, 0.2))
    await asyncio.to_thread(broker.stop)
    channel = Channel("mq", ChannelKind.MQTT, ("mqtt:alerts",), topic="alerts", language="zh")
    record = Record.open(None)
    async with published(tree(broker), {}) as made:
        carriers = {ChannelKind.MQTT: Mqtt(made.publish, NotConnected, aiomqtt.MqttError)}
        http: Any = None
        postman = Postman((channel,), record.outbox, http, wall_clock, carriers)
        desk = Desk((channel,), record.outbox, wall_clock, wake=postman.wake)
        run = asyncio.create_task(postman.run())
        async with asyncio.timeout(10):
            while made.error == "not connected yet":  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.02)
        desk.test(channel)
        async with asyncio.timeout(10):
            while record.outbox.letters()[0].tries < 1:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.02)
        waiting = record.outbox.letters()[0]
        await asyncio.to_thread(broker.start)
        async with ear(broker) as heard:
            await heard.until(lambda got: bool(heard.of("tidewarden/prod/alerts")))
        run.cancel()
        await asyncio.wait([run])

    assert waiting.state == "queued"
    assert "127.0.0.1" in waiting.error
    (shown,) = heard.of("tidewarden/prod/alerts")
    assert json.loads(shown)["title"].startswith("[测试]")
