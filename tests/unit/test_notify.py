"""Telling on-call: what is rendered, what is sent, what is sent again, what is kept quiet."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from actions.channel import Channel, ChannelKind
from actions.channels.webhook import webhook_body
from actions.desk import Desk, Plan
from actions.dispatch import Flap
from actions.gojson import fingerprint, rfc3339
from actions.letters import single
from actions.notify import Notify, alert_of
from actions.postman import AiohttpClient, Postman
from actions.routing import Pacing
from actions.wire import NotSent, PerhapsSent, Reply
from daemon.alerts import Letter
from daemon.clock import VirtualLoop, loop_clock, run_virtual, wall_clock
from daemon.model import Entity, Hopeless, Result, Severity, Step, Verb
from daemon.record import Record

EPOCH = 1_700_000_000.0
HOOK = Channel("hook", ChannelKind.WEBHOOK, ("http://127.0.0.1:9/hook",))
PAGER = Channel("pager", ChannelKind.ALERTMANAGER, ("http://127.0.0.1:1", "http://127.0.0.1:2/"))
AT_ONCE = Plan(pacing=Pacing(0.0, 0.0, 0.0, 14_400.0, ()), flap=Flap(changes=1000))
"""Every alert for itself and without delay: what is tested here is delivery. Grouping: tests/unit/test_desk.py."""


def notice(status: str = "firing", id: str = "", **args: str) -> Step:
    words = {
        "cluster": "prod",
        "kind": "gpu_lost",
        "scope": "gpu n03/gpu5",
        "severity": "critical",
        "summary": "GPU lost: gpu n03/gpu5",
        "description": "XID 79 <at> 83 C & rising",
        "starts_at": f"{EPOCH - 30:.3f}",
        "status": status,
        **args,
    }
    return Step(
        id or f"s-{status}",
        Verb.NOTIFY,
        Entity("incident", "i1"),
        1.0,
        "told",
        incident="i1",
        args=tuple(sorted(words.items())),
    )


@dataclass
class Receiver:
    """What arrives, and what is answered: a status, or an exception; `answers` in order, then 200."""

    answers: list[int | Exception] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    got: list[tuple[float, str, Any, dict[str, str]]] = field(default_factory=list)
    latency_s: float = 0.0

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Reply:
        self.got.append((asyncio.get_running_loop().time(), url, json.loads(body), headers))
        await asyncio.sleep(self.latency_s)
        if any(part in url for part in self.down):
            return Reply(503, "down")
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer, "words of the receiver")

    def times(self, part: str = "") -> list[float]:
        return [at for at, url, _, _ in self.got if part in url]

    def statuses(self) -> list[str]:
        return [body["status"] for _, _, body, _ in self.got]


class Office:
    """Notify, desk and postman of one journal under virtual time."""

    def __init__(
        self, loop: VirtualLoop, record: Record, receiver: Receiver, channels: tuple[Channel, ...]
    ) -> None:
        clock = loop_clock(loop, EPOCH)
        self.outbox = record.outbox
        self.postman = Postman(channels, record.outbox, receiver, clock)
        self.desk = Desk(channels, record.outbox, clock, AT_ONCE, wake=self.postman.wake)
        self.notify = Notify(self.desk)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.postman.run())
            group.create_task(self.desk.run())

    async def tell(self, step: Step) -> None:
        outcome = await self.notify.apply(step)
        assert outcome.result is Result.DONE
        assert await self.notify.verify(step)

    def letter(self, id: str) -> Letter:
        letter = self.outbox.get(id)
        assert letter is not None
        return letter


def play(
    receiver: Receiver,
    story: Callable[[Office], Coroutine[Any, Any, Any]],
    *channels: Channel,
    record: Record | None = None,
) -> Office:
    async def main(loop: VirtualLoop) -> Office:
        desk = Office(loop, record or Record.open(None), receiver, channels or (HOOK,))
        run = asyncio.create_task(desk.run())
        await story(desk)
        run.cancel()
        await asyncio.wait([run])
        return desk

    return run_virtual(main)


def telling(*steps: tuple[float, Step], until: float = 10.0) -> Callable[[Office], Coroutine[Any, Any, None]]:
    """Tell each step at its time, then wait until `until`."""

    async def story(desk: Office) -> None:
        loop = asyncio.get_running_loop()
        for at, step in steps:
            await asyncio.sleep(at - loop.time())
            await desk.tell(step)
        await asyncio.sleep(until - loop.time())

    return story


# -- rendering ------------------------------------------------------------------------------------------


def test_a_webhook_message_is_alertmanagers_and_ours_after_it() -> None:
    body = webhook_body(single(alert_of(notice(), EPOCH)), "hook")

    labels = (
        '{"alertname":"TidewardenGpuLost","cluster":"prod","gpu":"n03/gpu5","kind":"gpu_lost",'
        '"node":"n03","severity":"critical"}'
    )
    annotations = '{"description":"XID 79 \\u003cat\\u003e 83 C \\u0026 rising","incident":"i1","summary":"GPU lost: gpu n03/gpu5"}'
    assert body == (
        '{"receiver":"hook","status":"firing","alerts":[{"status":"firing","labels":' + labels + ',"annotations":'
        + annotations + ',"startsAt":"2023-11-14T22:12:50Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"",'
        '"fingerprint":"' + fingerprint(json.loads(labels)) + '"}],'
        '"groupLabels":{"alertname":"TidewardenGpuLost","cluster":"prod"},"commonLabels":' + labels
        + ',"commonAnnotations":' + annotations + ',"externalURL":"","version":"4",'
        '"groupKey":"{}:{alertname=\\"TidewardenGpuLost\\", cluster=\\"prod\\"}","truncatedAlerts":0,'
        '"tidewarden":{"version":1,"step":"s-firing","incident":"i1","reason":"told",'
        '"scope":{"kind":"gpu","name":"n03/gpu5"},"message":"news","perhaps_repeated":false,"deeds":[],"links":{}}}\n'
    )  # fmt: skip


def test_numbers_stay_out_of_labels_so_that_a_new_reading_is_the_same_alert() -> None:
    first = alert_of(notice(temp_c="83", description="83 C"), EPOCH)
    second = alert_of(notice(temp_c="91", description="91 C"), EPOCH + 60)

    assert first.labels == second.labels
    assert first.key == second.key
    assert second.annotations["temp_c"] == "91"


def test_the_core_may_name_the_scope_in_two_words() -> None:
    in_one = alert_of(notice(), EPOCH)

    in_two = alert_of(notice(scope="n03/gpu5", scope_kind="gpu", ends_at="", family="hardware"), EPOCH)

    assert in_two.key == in_one.key
    assert in_two.labels == {**in_one.labels, "family": "hardware"}


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"status": "maybe"}, "args status is 'maybe', allowed: firing or resolved"),
        ({"severity": "bad"}, "allowed: info or warning or critical"),
        ({"summary": ""}, "args summary is '', allowed: any text"),
        ({"starts_at": "yesterday"}, "args starts_at is 'yesterday', allowed: seconds since the epoch"),
        ({"ends_at": "nan"}, "args ends_at is 'nan'"),
    ],
)
async def test_a_notice_that_cannot_be_rendered_is_refused_with_the_reason(
    args: dict[str, str], why: str
) -> None:
    notify = Notify(Desk((HOOK,), Record.open(None).outbox, lambda: EPOCH, AT_ONCE))

    with pytest.raises(Hopeless, match=re.escape(why)):
        await notify.apply(notice(**args))


async def test_without_a_channel_nobody_is_told_and_that_is_said() -> None:
    with pytest.raises(Hopeless, match="no notification channel is configured"):
        await Notify(Desk((), Record.open(None).outbox, lambda: EPOCH, AT_ONCE)).apply(notice())


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (EPOCH + 0.123456, "2023-11-14T22:13:20.123456Z"),
        (EPOCH - 1e-9, "2023-11-14T22:13:20Z"),
    ],
)
def test_times_are_written_as_go_writes_them(at: float, text: str) -> None:
    assert rfc3339(at) == text


# -- sending --------------------------------------------------------------------------------------------


def test_a_notice_is_sent_at_once_and_once() -> None:
    receiver = Receiver()

    desk = play(receiver, telling((5.0, notice()), until=7200.0))

    assert receiver.times() == [5.0]
    assert desk.letter("s-firing/hook/0").state == "delivered"
    assert receiver.got[0][3]["X-Tidewarden-Delivery"] == "s-firing/hook/0"


def test_below_its_severity_a_channel_hears_nothing_not_even_the_resolve() -> None:
    receiver = Receiver()
    quiet = Channel("hook", ChannelKind.WEBHOOK, HOOK.urls, severity_min=Severity.CRITICAL)

    play(
        receiver,
        telling((0.0, notice(severity="warning")), (5.0, notice("resolved", severity="warning"))),
        quiet,
    )

    assert receiver.got == []


def test_a_resolve_follows_its_firing() -> None:
    receiver = Receiver()

    play(receiver, telling((0.0, notice()), (5.0, notice("resolved", ends_at=f"{EPOCH + 4}"))))

    assert receiver.statuses() == ["firing", "resolved"]
    assert receiver.got[1][2]["alerts"][0]["endsAt"] == "2023-11-14T22:13:24Z"


def test_a_resolve_cancels_a_firing_that_never_arrived_and_is_not_sent_itself() -> None:
    receiver = Receiver(answers=[503] * 3)

    desk = play(receiver, telling((0.0, notice()), (5.0, notice("resolved")), until=600.0))

    assert receiver.statuses() == ["firing"] * 3
    assert desk.letter("s-firing/hook/0").state == "cancelled"
    assert desk.outbox.get("s-resolved/hook/0") is None


def test_a_resolve_is_sent_when_its_firing_may_have_arrived() -> None:
    receiver = Receiver(answers=[PerhapsSent("no answer within 10 s"), NotSent("refused"), 503])

    play(receiver, telling((0.0, notice()), (5.0, notice("resolved")), until=600.0))

    assert receiver.statuses() == ["firing", "firing", "firing", "resolved"]


def test_a_resolve_that_comes_while_its_firing_is_on_the_way_is_sent_after_it() -> None:
    receiver = Receiver(latency_s=4.0)

    desk = play(receiver, telling((0.0, notice()), (1.0, notice("resolved")), until=60.0))

    assert receiver.statuses() == ["firing", "resolved"]
    assert receiver.times() == [0.0, 4.0]
    assert desk.letter("s-resolved/hook/0").state == "delivered"


def test_what_fires_again_before_its_end_was_delivered_is_not_told_twice_and_resolved_later() -> None:
    receiver = Receiver(answers=[200, 503, 503])

    play(
        receiver,
        telling(
            (0.0, notice()),
            (5.0, notice("resolved")),
            (6.5, notice(id="again")),
            (20.0, notice("resolved", "end")),
            until=600.0,
        ),
    )

    assert receiver.statuses() == ["firing", "resolved", "resolved", "resolved"]
    assert receiver.times()[3:] == [20.0]


def test_server_errors_and_throttling_are_tried_again_later_and_later() -> None:
    receiver = Receiver(answers=[500, 429, 408, PerhapsSent("no answer"), NotSent("refused")])

    desk = play(receiver, telling((0.0, notice()), until=120.0))

    waits = [after - before for before, after in zip(receiver.times(), receiver.times()[1:], strict=False)]
    assert len(waits) == 5
    for wait, least in zip(waits, [1, 2, 4, 8, 16], strict=True):
        assert least <= wait <= least * 1.25 + 0.02
    assert desk.letter("s-firing/hook/0").state == "delivered"
    assert desk.letter("s-firing/hook/0").error == ""


def test_a_refusal_is_final_and_another_channel_hears_of_it() -> None:
    receiver = Receiver(answers=[400])
    spare = Channel(
        "spare", ChannelKind.WEBHOOK, ("http://127.0.0.1:9/spare",), severity_min=Severity.CRITICAL
    )

    desk = play(receiver, telling((0.0, notice(severity="warning")), until=600.0), HOOK, spare)

    assert len(receiver.times("/hook")) == 1
    assert desk.letter("s-firing/hook/0").state == "given_up"
    assert desk.letter("s-firing/hook/0").error == "HTTP 400: words of the receiver"
    (word,) = [body for _, url, body, _ in receiver.got if "/spare" in url]
    assert word["commonLabels"]["alertname"] == "TidewardenNotificationUndelivered"
    assert word["commonLabels"]["channel"] == "hook"
    assert "HTTP 400" in word["commonAnnotations"]["description"]
    assert "gpu_lost" in word["commonAnnotations"]["description"]


def test_after_an_hour_it_is_given_up_and_a_word_of_it_goes_elsewhere_once() -> None:
    receiver = Receiver(down={"/hook"})
    spare = Channel("spare", ChannelKind.WEBHOOK, ("http://127.0.0.1:9/spare",))

    desk = play(receiver, telling((0.0, notice()), until=3.9 * 3600.0), HOOK, spare)

    assert 3600.0 <= receiver.times("/hook")[-1] <= 3600.0 + 375.0
    assert desk.letter("s-firing/hook/0").state == "given_up"
    firing, word = [body for _, url, body, _ in receiver.got if "/spare" in url]
    assert firing["commonLabels"]["alertname"] == "TidewardenGpuLost"
    assert word["commonLabels"]["alertname"] == "TidewardenNotificationUndelivered"


def test_when_every_channel_is_down_words_about_words_do_not_multiply() -> None:
    receiver = Receiver(down={"http"})
    spare = Channel("spare", ChannelKind.WEBHOOK, ("http://127.0.0.1:9/spare",))

    desk = play(receiver, telling((0.0, notice()), until=3.9 * 3600.0), HOOK, spare)

    assert desk.outbox.live() == []
    assert len(desk.outbox.letters()) == 4


def test_a_jump_of_the_wall_clock_gives_nothing_up() -> None:
    receiver = Receiver(answers=[503, 503])
    offset = [0.0]

    async def main(loop: VirtualLoop) -> str:
        clock = loop_clock(loop, EPOCH)
        outbox = Record.open(None).outbox
        postman = Postman((HOOK,), outbox, receiver, lambda: clock() + offset[0])
        desk = Desk((HOOK,), outbox, lambda: clock() + offset[0], AT_ONCE, wake=postman.wake)
        await Notify(desk).apply(notice())
        run = asyncio.create_task(postman.run())
        await asyncio.sleep(0.5)
        offset[0] = 7200.0
        await asyncio.sleep(2.0)
        offset[0] = -7200.0
        postman.wake()
        await asyncio.sleep(1.0)
        run.cancel()
        await asyncio.wait([run])
        return str(outbox.letters()[0].state)

    assert run_virtual(main) == "delivered"
    assert len(receiver.got) == 3


def test_a_channel_is_not_flooded_and_the_worst_goes_first() -> None:
    receiver = Receiver()
    slow = Channel("hook", ChannelKind.WEBHOOK, HOOK.urls, per_min=20.0, burst=5)

    async def story(desk: Office) -> None:
        for n in range(30):
            await desk.tell(notice(id=f"w{n}", scope=f"node n{n:02d}", severity="warning"))
        await desk.tell(notice(id="worst"))
        await asyncio.sleep(600.0)

    play(receiver, story, slow)

    assert len(receiver.got) == 31
    assert receiver.got[0][2]["commonLabels"]["severity"] == "critical"
    assert len([at for at in receiver.times() if at < 60.0]) <= 5 + 20
    assert receiver.times()[4] == 0.0


def test_a_hanging_channel_delays_no_other() -> None:
    class Stuck(Receiver):
        async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Reply:
            if "/hook" in url:
                await asyncio.sleep(timeout_s)
                raise PerhapsSent("no answer")
            return await super().post(url, body, headers, timeout_s)

    receiver = Stuck()
    spare = Channel("spare", ChannelKind.WEBHOOK, ("http://127.0.0.1:9/spare",))

    play(receiver, telling((0.0, notice()), (3.0, notice("resolved")), until=600.0), HOOK, spare)

    assert receiver.times("/spare") == [0.0, 3.0]


# -- Alertmanager ---------------------------------------------------------------------------------------


def test_every_alertmanager_is_told_each_minute_until_five_minutes_after_the_end() -> None:
    receiver = Receiver()

    play(receiver, telling((0.0, notice()), (150.0, notice("resolved")), until=3600.0), PAGER)

    for address in ("http://127.0.0.1:1/api/v2/alerts", "http://127.0.0.1:2/api/v2/alerts"):
        sent = [(at, body[0]["endsAt"]) for at, url, body, _ in receiver.got if url == address]
        assert [at for at, _ in sent][:3] == [0.0, 60.0, 120.0]
        assert [ends for _, ends in sent][:3] == [rfc3339(EPOCH + at + 240.0) for at in (0, 60, 120)]
        assert [at for at, _ in sent][3:] == [150.0, 210.0, 270.0, 330.0, 390.0]
        assert {ends for _, ends in sent[3:]} == {rfc3339(EPOCH + 150.0)}


def test_an_alertmanager_that_was_away_for_hours_hears_of_what_still_fires() -> None:
    receiver = Receiver(down={":1"})

    async def story(desk: Office) -> None:
        await desk.tell(notice())
        await asyncio.sleep(3 * 3600.0)
        receiver.down.clear()
        await asyncio.sleep(600.0)

    desk = play(receiver, story, PAGER, HOOK)

    assert desk.letter("s-firing/pager/0").state == "standing"
    words = [b for _, url, b, _ in receiver.got if "/hook" in url and b["commonLabels"]["kind"] != "gpu_lost"]
    assert len(words) == 1


def test_a_new_firing_ends_the_repeated_resolve_of_the_one_before() -> None:
    receiver = Receiver()
    one = Channel("pager", ChannelKind.ALERTMANAGER, ("http://127.0.0.1:1",))

    play(
        receiver,
        telling((0.0, notice()), (10.0, notice("resolved")), (30.0, notice(id="again")), until=300.0),
        one,
    )

    ends_after_30 = [body[0]["endsAt"] for at, _, body, _ in receiver.got if at >= 30.0]
    assert ends_after_30 == [rfc3339(EPOCH + at + 240.0) for at in (30, 90, 150, 210, 270)]


# -- restarts -------------------------------------------------------------------------------------------


def test_what_was_queued_and_what_stands_goes_on_after_a_restart(tmp_path: Path) -> None:
    before, after = Receiver(down={"/hook"}), Receiver()
    record = Record.open(tmp_path)
    play(before, telling((0.0, notice()), until=10.0), HOOK, PAGER, record=record)
    record.close()

    again = Record.open(tmp_path)
    desk = play(after, telling(until=120.0), HOOK, PAGER, record=again)

    assert len(after.times("/hook")) == 1
    assert len(after.times("127.0.0.1:1")) >= 2
    assert desk.letter("s-firing/hook/0").state == "delivered"
    assert after.got[0][2] != []
    again.close()


def test_a_letter_under_way_at_the_crash_goes_again_and_its_resolve_too(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    play(Receiver(latency_s=60.0), telling((0.0, notice()), until=5.0), record=record)
    record.close()
    again = Record.open(tmp_path)
    receiver = Receiver(answers=[503])

    play(receiver, telling((0.5, notice("resolved")), until=60.0), record=again)

    assert receiver.statuses() == ["firing", "resolved"]
    again.close()


def test_letters_of_a_channel_that_is_gone_are_given_up() -> None:
    record = Record.open(None)
    play(Receiver(down={"/hook"}), telling((0.0, notice()), until=10.0), record=record)

    desk = play(Receiver(), telling(until=10.0), PAGER, record=record)

    assert desk.letter("s-firing/hook/0").state == "given_up"
    assert "not configured any more" in desk.letter("s-firing/hook/0").error


# -- over real HTTP -------------------------------------------------------------------------------------


@dataclass
class Server:
    """A real webhook receiver that checks the signature as its owner would."""

    secret: str
    answers: list[int] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    port: int = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        parts = dict(part.split("=", 1) for part in request.headers["X-Tidewarden-Signature"].split(","))
        wanted = hmac.new(self.secret.encode(), parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(wanted, parts["v1"]) or abs(int(parts["t"]) - wall_clock()) > 300:
            return web.Response(status=401, text=f"bad signature at {request.path_qs}")
        if self.answers:
            return web.Response(status=self.answers.pop(0), text=f"no, not at {request.path_qs}")
        self.bodies.append(json.loads(body))
        return web.Response()


async def deliver(server: Server, channel: Channel, step: Step) -> Letter:
    """Send one notice over real HTTP and return its letter once it is finished, or failed twice."""
    record = Record.open(None)
    settled = asyncio.Event()

    class Watched:
        """The journal's outbox, which says when the letter's fate is known."""

        def __getattr__(self, name: str) -> Any:
            return getattr(record.outbox, name)

        def update(self, *letters: Letter) -> None:
            record.outbox.update(*letters)
            if any(x.state in ("delivered", "given_up", "cancelled") or x.tries > 1 for x in letters):
                settled.set()

    outbox: Any = Watched()
    async with aiohttp.ClientSession() as session:
        postman = Postman((channel,), outbox, AiohttpClient(session, wall_clock), wall_clock)
        await Notify(Desk((channel,), outbox, wall_clock, AT_ONCE, wake=postman.wake)).apply(step)
        run = asyncio.create_task(postman.run())
        await asyncio.wait_for(settled.wait(), 20)
        run.cancel()
        await asyncio.wait([run])
    return record.outbox.letters()[0]


@pytest.fixture
async def server() -> Any:
    server = Server("open sesame")
    app = web.Application()
    app.router.add_post("/hook/t0ken", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


def hook_at(server: Server, **changes: Any) -> Channel:
    return Channel(
        "hook", ChannelKind.WEBHOOK, (f"http://127.0.0.1:{server.port}/hook/t0ken?key=hush",), **changes
    )


async def test_a_real_receiver_accepts_the_signature_of_a_secret_from_a_file(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("open sesame\n")

    letter = await deliver(
        server, hook_at(server, secret_file=str(tmp_path / "secret")), notice(summary="GPU 丢失 <5>")
    )

    assert letter.state == "delivered"
    assert server.bodies[0]["alerts"][0]["annotations"]["summary"] == "GPU 丢失 <5>"


async def test_a_wrong_secret_is_a_final_refusal_and_the_url_is_not_in_its_text(server: Server) -> None:
    letter = await deliver(server, hook_at(server, secret="wrong"), notice())

    assert letter.state == "given_up"
    assert letter.error.startswith("HTTP 401: bad signature at ")
    assert "t0ken" not in letter.error
    assert "hush" not in letter.error
    assert "t0ken" not in repr(hook_at(server, secret="wrong"))


async def test_a_real_receiver_that_fails_once_is_asked_again(server: Server) -> None:
    server.answers.append(503)

    letter = await deliver(server, hook_at(server, secret="open sesame"), notice())

    assert letter.state == "delivered"
    assert len(server.bodies) == 1


async def test_nobody_listening_is_tried_again_without_showing_the_url(
    server: Server, unused_tcp_port: int
) -> None:
    channel = Channel("hook", ChannelKind.WEBHOOK, (f"http://127.0.0.1:{unused_tcp_port}/t0ken",))

    letter = await deliver(server, channel, notice())

    assert (letter.state, letter.tries) == ("queued", 2)
    assert "ClientConnectorError" in letter.error
    assert "t0ken" not in letter.error
