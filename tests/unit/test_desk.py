"""Who is told what when: groups, pacing, digests, flapping, silences, escalation, restarts, storms."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from actions.channel import Channel, ChannelKind
from actions.desk import Desk, Plan
from actions.dispatch import Flap
from actions.notify import alert_of
from actions.postman import Postman
from actions.routing import Hours, Pacing, Route, routes_of
from actions.wire import NotSent, PerhapsSent, Reply
from daemon.alerts import Alert, Bundle, Letter, Silence
from daemon.clock import VirtualLoop, loop_clock, run_virtual
from daemon.codec import decode, to_plain
from daemon.model import Entity, Severity, Step, Verb
from daemon.record import Record

EPOCH = 1_700_000_000.0  # a Tuesday, 22:13:20 UTC
CHAT = Channel("chat", ChannelKind.SLACK, ("http://127.0.0.1:9/chat",), per_min=6000.0)
PHONE = Channel("phone", ChannelKind.PAGERDUTY, ("http://127.0.0.1:9/phone",), secret="k", per_min=6000.0)
SPARE = Channel("spare", ChannelKind.WEBHOOK, ("http://127.0.0.1:9/spare",), per_min=6000.0)


def notice(
    status: str = "firing", node: str = "n03", at: float = 0.0, severity: str = "warning", **args: str
) -> tuple[Alert, str]:
    told = {
        "cluster": "prod",
        "kind": "gpu_lost",
        "scope": f"{node}/gpu5",
        "scope_kind": "gpu",
        "severity": severity,
        "summary": f"GPU lost: {node}/gpu5",
        "starts_at": f"{EPOCH + at}",
        "status": status,
        **args,
    }
    id = f"s-{status}-{node}-{at:g}"
    step = Step(id, Verb.NOTIFY, Entity("incident", "i1"), 1.0, "told", "i1", args=tuple(told.items()))
    return alert_of(step, EPOCH + at), id


@dataclass
class Town:
    """The receivers behind all channels: what came when, and which of them are down."""

    got: list[tuple[float, str, str]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    fails: Exception | None = None
    latency_s: float = 0.0

    async def carry(self, channel: Channel, letter: Letter) -> Any:
        raise NotImplementedError

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Reply:
        name = url.rpartition("/")[2]
        await asyncio.sleep(self.latency_s)
        if name in self.down:
            if self.fails is not None:
                raise self.fails
            return Reply(503, "down")
        self.got.append((asyncio.get_running_loop().time(), name, body.decode()))
        return Reply(202 if name == "phone" else 200, "ok" if name == "chat" else "{}")

    def times(self, name: str = "chat") -> list[float]:
        return [at for at, who, _ in self.got if who == name]

    def texts(self, name: str = "chat") -> list[str]:
        return [body for _, who, body in self.got if who == name]


@dataclass
class Office:
    """A desk and its postman on one journal under virtual time, which starts at `begin` seconds after EPOCH."""

    town: Town
    record: Record
    desk: Desk
    postman: Postman
    loop: VirtualLoop
    begin: float

    def use(self, *channels: Channel, plan: Plan | None = None) -> None:
        """What a reload does."""
        self.desk.use(channels, plan or Plan())
        self.postman.use(channels)

    async def at(self, when: float, *said: tuple[Alert, str]) -> None:
        """Wait until `when` (seconds after EPOCH), then tell the desk."""
        await asyncio.sleep(when - self.begin - self.loop.time())
        for alert, step in said:
            self.desk.tell(replace(alert, at=EPOCH + when), step)


Story = Callable[[Office], Coroutine[Any, Any, None]]


def play(
    story: Story,
    *channels: Channel,
    plan: Plan | None = None,
    town: Town | None = None,
    record: Record | None = None,
    begin: float = 0.0,
    **more: Any,
) -> Office:
    town, record = town or Town(), record or Record.open(None)

    async def main(loop: VirtualLoop) -> Office:
        clock = loop_clock(loop, EPOCH + begin)
        own = channels or (CHAT,)
        postman = Postman(own, record.outbox, town, clock)
        desk = Desk(own, record.outbox, clock, plan or Plan(), wake=postman.wake, **more)
        office = Office(town, record, desk, postman, loop, begin)
        tasks = [asyncio.create_task(postman.run()), asyncio.create_task(desk.run())]
        await story(office)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
        return office

    return run_virtual(main)


# -- groups and pace ------------------------------------------------------------------------------------


def test_alerts_of_one_cause_that_come_together_are_one_message_after_the_wait() -> None:
    async def story(office: Office) -> None:
        for n in range(3):
            await office.at(n * 5.0, notice(node=f"n0{n}", at=n * 5.0))
        await office.at(200.0)

    office = play(story)

    assert office.town.times() == [30.0]
    for node in ("n00/gpu5", "n01/gpu5", "n02/gpu5"):
        assert node in office.town.texts()[0]


def test_another_kind_or_pool_is_another_message() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice(), notice(node="n04", kind="slo_burn"), notice(node="n05", pool="code"))
        await office.at(200.0)

    assert play(story).town.times() == [30.0, 30.0, 30.0]


def test_a_critical_alert_waits_five_seconds() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(10.0, notice(node="n04", severity="critical", at=10.0))
        await office.at(200.0)

    assert play(story).town.times() == [15.0]


def test_what_joins_a_group_later_waits_for_the_interval_and_the_end_too() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(60.0, notice(node="n04", at=60.0))
        await office.at(400.0, notice("resolved", at=400.0), notice("resolved", node="n04", at=400.0))
        await office.at(20_000.0)

    office = play(story)

    assert office.town.times() == [30.0, 330.0, 630.0]
    assert "[RESOLVED]" in office.town.texts()[2]
    assert office.record.outbox.book.bundles == {}


def test_a_warning_that_becomes_critical_does_not_wait_for_the_interval() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(60.0, notice(severity="critical", at=60.0))
        await office.at(200.0)

    assert play(story).town.times() == [30.0, 65.0]


def test_the_same_word_twice_is_told_once() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice(), notice())
        await office.at(100.0, notice(at=100.0))
        await office.at(3000.0)

    assert play(story).town.times() == [30.0]


def test_what_nobody_acknowledges_is_repeated_every_four_hours_and_what_somebody_did_is_not() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(20_000.0)
        assert office.desk.ack("i1", "kim") == ["prod / gpu_lost / gpu / n03/gpu5"]
        await office.at(60_000.0)

    office = play(story)

    assert office.town.times() == [30.0, 14_430.0]
    assert "still firing" in office.town.texts()[1]


def test_what_is_over_before_it_was_told_is_never_mentioned() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(20.0, notice("resolved", at=20.0))
        await office.at(3000.0)

    assert play(story).town.got == []


def test_many_groups_at_once_are_one_digest_for_people_and_an_incident_each_for_pagerduty() -> None:
    async def story(office: Office) -> None:
        for n in range(12):
            await office.at(0.0, notice(node=f"n{n:02d}", kind=f"kind_{n}"))
        await office.at(1000.0)
        for n in range(12):
            await office.at(1000.0, notice("resolved", node=f"n{n:02d}", kind=f"kind_{n}", at=1000.0))
        await office.at(3000.0)

    office = play(story, CHAT, PHONE)

    assert office.town.times() == [30.0, 1001.0]
    assert "12 groups of alerts: 12 firing" in office.town.texts()[0]
    assert "12 groups of alerts: 12 resolved" in office.town.texts()[1]
    assert len(office.town.times("phone")) == 24


def test_a_channel_that_wants_no_ends_gets_none() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(600.0, notice("resolved", at=600.0))
        await office.at(3000.0)

    assert play(story, replace(CHAT, sends_resolved=False)).town.times() == [30.0]


def test_the_end_carries_the_labels_of_the_beginning() -> None:
    """An engine that is gone belongs to no pool when its incident closes."""
    pager = Channel("pager", ChannelKind.ALERTMANAGER, ("http://127.0.0.1:9",))

    async def story(office: Office) -> None:
        await office.at(0.0, notice(pool="chat"))
        await office.at(100.0, notice("resolved", at=100.0))
        await office.at(400.0)

    office = play(story, pager, SPARE)

    (first, *_, last) = [json.loads(body)[0]["labels"] for body in office.town.texts("alerts")]
    assert first == last
    assert first["pool"] == "chat"
    assert [json.loads(body)["status"] for body in office.town.texts("spare")] == ["firing", "resolved"]


# -- flapping -------------------------------------------------------------------------------------------


def test_what_comes_and_goes_is_told_once_as_flapping_and_once_when_it_is_calm() -> None:
    async def story(office: Office) -> None:
        for n in range(10):
            at = n * 200.0
            await office.at(at, notice("firing" if n % 2 == 0 else "resolved", at=at))
        await office.at(10_000.0)

    office = play(story, plan=Plan(pacing=Pacing(30.0, 5.0, 60.0)))

    first, second, flapping, calm = office.town.texts()
    assert "[WARNING]" in first
    assert "[RESOLVED]" in second
    assert "FLAPPING" in flapping
    assert "half an hour" in flapping
    assert "[RESOLVED]" in calm


# -- routes ---------------------------------------------------------------------------------------------


def names(root: Route, at: float = EPOCH, **labels: str) -> list[str]:
    return [name for route in routes_of(root, labels, at) for name in route.channels]


def test_the_first_route_that_matches_takes_an_alert_and_continue_goes_on() -> None:
    root = Route(
        ("default",),
        routes=(
            Route(("audit",), {"family": ("fault", "serving")}, goes_on=True),
            Route(
                ("team-a",), {"pool": ("chat*",)}, routes=(Route(("a-phone",), {"severity": ("critical",)}),)
            ),
            Route(("night",), {"severity": ("critical",)}),
        ),
    )

    assert names(root, pool="code", severity="warning") == ["default"]
    assert names(root, pool="chat-1", severity="warning") == ["team-a"]
    assert names(root, pool="chat-1", severity="critical") == ["a-phone"]
    assert names(root, pool="code", severity="critical", family="fault") == ["audit", "night"]
    assert names(root, family="fault", severity="info") == ["audit"]


@pytest.mark.parametrize(
    ("hours", "at", "holds"),
    [
        (Hours(8 * 60, 20 * 60), EPOCH, False),  # 22:13 UTC
        (Hours(8 * 60, 20 * 60, zone="America/New_York"), EPOCH, True),  # 17:13
        (Hours(20 * 60, 8 * 60), EPOCH, True),
        (Hours(20 * 60, 8 * 60, ("tue",)), EPOCH + 6 * 3600, True),  # Wednesday 04:13 is Tuesday's night
        (Hours(20 * 60, 8 * 60, ("wed",)), EPOCH + 6 * 3600, False),
        (Hours(0, 24 * 60, ("sat", "sun")), EPOCH, False),
        (Hours(20 * 60, 20 * 60), EPOCH, True),  # the whole day, from 20:00
    ],
)
def test_hours_know_nights_days_and_zones(hours: Hours, at: float, holds: bool) -> None:
    assert hours.holds(at) is holds


def test_by_night_the_phone_is_told_and_the_end_goes_where_the_beginning_went() -> None:
    night = Route(("phone",), hours=Hours(20 * 60, 8 * 60))
    plan = Plan(root=Route(("chat",), routes=(night,)))

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(12 * 3600.0, notice("resolved", at=12 * 3600.0))
        await office.at(13 * 3600.0)

    office = play(story, CHAT, PHONE, plan=plan)

    assert office.town.times() == []
    assert ["resolve" in body for body in office.town.texts("phone")][-1] is True


def test_what_nobody_acknowledges_reaches_the_second_line_and_what_somebody_did_does_not() -> None:
    plan = Plan(root=Route(("chat",), escalate_after_s=900.0, escalate_to=("phone",)))

    async def left(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(2000.0, notice("resolved", at=2000.0))
        await office.at(4000.0)

    async def taken(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(600.0)
        office.desk.ack("prod /  / gpu_lost", "kim")
        await office.at(4000.0)

    first, second = play(left, CHAT, PHONE, plan=plan), play(taken, CHAT, PHONE, plan=plan)

    assert first.town.times("phone") == [900.0, 2001.0]
    assert "nobody has acknowledged it" in first.town.texts("phone")[0]
    assert '"resolve"' in first.town.texts("phone")[1]
    assert second.town.times("phone") == []


def actions_at(office: Office) -> list[tuple[float, str, str]]:
    """When the phone was told what about which incident of its own."""
    events = [(at, json.loads(body)) for at, who, body in office.town.got if who == "phone"]
    return [(at, event["event_action"], event["dedup_key"]) for at, event in events]


def test_pagerduty_hears_that_all_of_its_incident_is_taken_on_and_that_it_is_over() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice(node="n01"), notice(node="n02"))
        await office.at(100.0)
        office.desk.ack("prod / gpu_lost / gpu / n01/gpu5", "kim")
        await office.at(200.0)
        assert [word for _, word, _ in actions_at(office)] == ["trigger"], "half of it is not all of it"
        office.desk.ack("prod / gpu_lost / gpu / n02/gpu5", "kim")
        office.desk.ack("prod / gpu_lost / gpu / n02/gpu5", "lee")
        await office.at(900.0, notice("resolved", "n01", 900.0), notice("resolved", "n02", 900.0))
        await office.at(2000.0)

    office = play(story, PHONE)

    assert actions_at(office) == [
        (30.0, "trigger", "prod /  / gpu_lost"),
        (200.0, "acknowledge", "prod /  / gpu_lost"),
        (901.0, "resolve", "prod /  / gpu_lost"),
    ]


def test_an_acknowledgement_follows_the_page_that_could_not_be_delivered_before_it() -> None:
    town = Town(down={"phone"})

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(60.0)
        office.desk.ack("i1", "kim")
        await office.at(600.0)
        town.down.clear()
        await office.at(2000.0)

    office = play(story, PHONE, town=town)

    assert [word for _, word, _ in actions_at(office)] == ["trigger", "acknowledge"]


def test_what_joins_an_incident_that_was_taken_on_is_told_and_can_be_taken_on_too() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice(node="n01"))
        await office.at(100.0)
        office.desk.ack("i1", "kim")
        await office.at(500.0, notice(node="n02", at=500.0))
        await office.at(1000.0)
        office.desk.ack("i1", "kim")
        await office.at(2000.0)

    office = play(story, PHONE)

    assert [word for _, word, _ in actions_at(office)] == ["trigger", "acknowledge", "trigger", "acknowledge"]


def test_the_second_line_hears_that_the_first_has_taken_it_on() -> None:
    root = Route(("chat",), escalate_after_s=600.0, escalate_to=("phone",))

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(700.0)
        office.desk.ack("i1", "kim")
        await office.at(1000.0)

    office = play(story, CHAT, PHONE, plan=Plan(root))

    assert [word for _, word, _ in actions_at(office)] == ["trigger", "acknowledge"]
    assert len(office.town.times("chat")) == 1


def test_an_acknowledgement_ends_with_the_alert() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        office.desk.ack("i1", "kim")
        await office.at(1000.0, notice("resolved", at=1000.0))
        await office.at(4000.0, notice(at=4000.0))

    (raised,) = play(story).record.outbox.book.raised.values()

    assert (raised.acked_by, raised.first) == ("", EPOCH + 4000.0)


# -- silences -------------------------------------------------------------------------------------------


def silence(match: dict[str, str], start: float, end: float) -> Silence:
    return Silence("x1", match, EPOCH + start, EPOCH + end, "kim", "swap of the rack")


def test_a_silenced_alert_is_told_when_the_silence_ends_if_it_still_fires() -> None:
    async def story(office: Office) -> None:
        office.desk.silence(silence({"node": "n0*"}, 0.0, 1000.0))
        await office.at(0.0, notice(), notice(node="n99", kind="slo_burn"), notice(node="n04"))
        await office.at(500.0, notice("resolved", node="n04", at=500.0))
        await office.at(3000.0)

    office = play(story)

    assert office.town.times() == [30.0, 1000.0]
    assert "n99/gpu5" in office.town.texts()[0]
    assert "n03/gpu5" in office.town.texts()[1]
    assert "n04/gpu5" not in "".join(office.town.texts())


def test_a_silence_taken_back_early_lets_the_alert_out_at_once() -> None:
    async def story(office: Office) -> None:
        office.desk.silence(silence({}, 0.0, 10_000.0))
        await office.at(0.0, notice())
        await office.at(500.0)
        assert office.desk.unsilence("x1")
        assert not office.desk.unsilence("x1")
        await office.at(600.0)

    assert play(story).town.times() == [500.0]


def test_the_end_of_what_was_told_before_is_told_in_spite_of_a_silence() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(100.0)
        office.desk.silence(silence({}, 100.0, 90_000.0))
        await office.at(1000.0, notice("resolved", at=1000.0))
        await office.at(20_000.0)

    office = play(story)

    assert office.town.times() == [30.0, 1001.0]
    assert "[RESOLVED]" in office.town.texts()[1]


def test_in_a_maintenance_window_its_node_is_quiet() -> None:
    window = replace(silence({"node": "n03"}, 0.0, 3600.0), id="window 0")

    async def story(office: Office) -> None:
        await office.at(0.0, notice(), notice(node="n04"))
        await office.at(1000.0, notice("resolved", at=1000.0))
        await office.at(5000.0)

    office = play(story, plan=Plan(windows=(window,)))

    assert office.town.times() == [30.0]
    assert "n04/gpu5" in office.town.texts()[0]
    assert "n03/gpu5" not in office.town.texts()[0]


# -- trouble --------------------------------------------------------------------------------------------


def test_a_storm_of_5000_findings_of_one_cause_is_one_message_a_channel() -> None:
    pager = Channel("pager", ChannelKind.ALERTMANAGER, ("http://127.0.0.1:9",), per_min=6000.0)

    async def story(office: Office) -> None:
        await office.at(0.0, *(notice(node=f"n{n:04d}") for n in range(5000)))
        await office.at(55.0)

    office = play(story, CHAT, PHONE, SPARE, pager)

    for name in ("chat", "phone", "spare"):
        assert len(office.town.times(name)) == 1
    assert "5000 firing" in office.town.texts("chat")[0]
    assert '"truncatedAlerts":4950' in office.town.texts("spare")[0]
    assert len(office.town.times("alerts")) == 5  # 1,000 alerts a request, each of them once


def test_a_channel_that_was_down_for_an_hour_loses_nothing_and_repeats_nothing() -> None:
    town = Town(down={"chat"})

    async def story(office: Office) -> None:
        await office.at(0.0, notice(node="n01"))
        await office.at(600.0, notice(node="n02", at=600.0), notice(node="n03", kind="slo_burn", at=600.0))
        await office.at(1200.0, notice("resolved", node="n01", at=1200.0))
        await office.at(3600.0)
        town.down.clear()
        await office.at(3 * 3600.0)

    office = play(story, CHAT, SPARE, town=town)

    told = "".join(office.town.texts())
    assert len(office.town.texts()) == 2
    assert len([text for text in office.town.texts() if "n02/gpu5" in text]) == 1
    assert "n01/gpu5" not in told  # over before the channel could hear of it
    assert "n03/gpu5" in told
    assert "notification_undelivered" not in "".join(office.town.texts("spare"))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_every_channel_ends_up_knowing_what_fires(seed: int, tmp_path: Path) -> None:
    """Alerts at random, channels down, unclear or slow at random, restarts in between; then two quiet hours."""
    draw = random.Random(seed)
    plan = Plan(pacing=Pacing(10.0, 2.0, 60.0, 1800.0), flap=Flap(changes=1000))
    firing: dict[str, str] = {}
    now = 0.0
    town = Town()

    async def chaos(office: Office) -> None:
        nonlocal now
        for _ in range(25):
            now += draw.choice([0.5, 3.0, 20.0, 100.0])
            town.down = {"spare"} if draw.random() < 0.5 else set()
            town.fails = draw.choice([None, PerhapsSent("no answer"), NotSent("refused")])
            town.latency_s = draw.choice([0.0, 0.0, 5.0])
            node = f"n{draw.randrange(4):02d}"
            status = "resolved" if firing.get(node) == "firing" else "firing"
            firing[node] = status
            await office.at(now, notice(status, node=node, at=now))

    async def quiet(office: Office) -> None:
        town.down, town.latency_s = set(), 0.0
        await office.at(now + 7200.0)

    for _ in range(4):
        record = Record.open(tmp_path)
        play(chaos, SPARE, plan=plan, town=town, record=record, begin=now)
        record.close()
    record = Record.open(tmp_path)
    play(quiet, SPARE, plan=plan, town=town, record=record, begin=now)

    known: dict[str, str] = {}
    for body in town.texts("spare"):
        for alert in json.loads(body)["alerts"]:
            known[alert["labels"]["node"]] = alert["status"]
    wanted = {node for node, status in firing.items() if status == "firing"}
    assert {node for node, status in known.items() if status == "firing"} == wanted
    record.close()


def test_a_letter_under_way_when_the_daemon_was_killed_goes_once_more_and_says_so(tmp_path: Path) -> None:
    record, town = Record.open(tmp_path), Town(latency_s=20.0)

    async def killed(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(40.0)

    async def again(office: Office) -> None:
        town.latency_s = 0.0
        await office.at(1000.0)

    play(killed, town=town, record=record)
    record.close()
    record = Record.open(tmp_path)
    play(again, town=town, record=record, begin=60.0)

    (text,) = town.texts()
    assert "This may be a repeat" in text
    record.close()


def test_a_group_that_was_waiting_at_the_restart_is_told_after_it_once(tmp_path: Path) -> None:
    record, town = Record.open(tmp_path), Town()

    async def before(office: Office) -> None:
        await office.at(0.0, notice(), notice(node="n04"))
        await office.at(10.0)

    async def after(office: Office) -> None:
        await office.at(5000.0)

    play(before, town=town, record=record)
    record.close()
    record = Record.open(tmp_path)
    play(after, town=town, record=record, begin=100.0)
    record.close()
    record = Record.open(tmp_path)
    play(after, town=town, record=record, begin=5000.0)

    assert len(town.got) == 1
    assert "2 firing" in town.texts()[0]
    record.close()


def test_what_was_given_up_after_an_hour_is_told_again_later_if_it_still_fires() -> None:
    town = Town(down={"chat"})

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(8000.0)
        assert office.town.times() == []
        town.down.clear()
        await office.at(20_000.0)

    office = play(story, CHAT, SPARE, town=town)

    assert len(office.town.times()) == 1
    words = [body for body in office.town.texts("spare") if "NotificationUndelivered" in body]
    assert len(words) == 1


def test_a_channel_that_refuses_everything_is_told_of_once_an_hour() -> None:
    class Refusing(Town):
        async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Reply:
            if url.endswith("chat"):
                return Reply(404, "no_service")
            return await super().post(url, body, headers, timeout_s)

    async def story(office: Office) -> None:
        for n in range(10):
            at = n * 100.0
            await office.at(at, notice(node=f"n{n:02d}", kind=f"kind_{n}", at=at))
        await office.at(3000.0)

    office = play(story, CHAT, SPARE, town=Refusing())

    words = [body for body in office.town.texts("spare") if "NotificationUndelivered" in body]
    assert len(words) == 1
    assert "make a new one" in words[0]
    assert '"perhaps_repeated":true' not in "".join(office.town.texts("spare"))


# -- signs of life --------------------------------------------------------------------------------------


def test_a_heartbeat_goes_out_regularly_while_the_daemon_decides_and_stops_with_it() -> None:
    beating = [True]

    async def story(office: Office) -> None:
        await office.at(200.0)
        beating[0] = False
        await office.at(1000.0)

    office = play(story, replace(SPARE, heartbeat_s=60.0), CHAT, alive=lambda: beating[0])

    assert office.town.times("spare") == [0.0, 60.0, 120.0, 180.0]
    assert "TidewardenWatchdog" in office.town.texts("spare")[0]
    assert office.town.times() == []


def test_a_test_message_goes_to_one_channel_at_once() -> None:
    async def story(office: Office) -> None:
        (id,) = office.desk.test(CHAT)
        await office.at(1.0)
        letter = office.record.outbox.get(id)
        assert letter is not None
        assert (letter.state, letter.severity) == ("delivered", Severity.INFO)

    office = play(story, CHAT, SPARE)

    assert len(office.town.got) == 1
    assert "[TEST]" in office.town.texts()[0]


# -- other channels and routes while it runs --------------------------------------------------------------


def test_a_channel_that_is_added_hears_of_what_fires_and_the_others_hear_nothing_twice() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice(), notice(node="n07", kind="gpu_slow"))
        await office.at(100.0, notice("resolved", "n07", 100.0, kind="gpu_slow"))
        await office.at(1000.0)
        office.use(CHAT, SPARE)
        await office.at(2000.0, notice("resolved", at=2000.0))
        await office.at(3000.0)

    office = play(story)

    assert [json.loads(text)["status"] for text in office.town.texts("spare")] == ["firing", "resolved"]
    assert office.town.times("spare") == [1030.0, 2001.0]
    assert len(office.town.texts("chat")) == 4  # two that began and two that ended


def test_what_a_channel_that_is_removed_could_not_deliver_is_told_by_the_one_in_its_place() -> None:
    town = Town(down={"chat"})

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(100.0)
        office.use(SPARE)
        await office.at(1000.0)

    office = play(story, town=town)

    assert [json.loads(text)["status"] for text in office.town.texts("spare")] == ["firing"]
    assert office.record.outbox.live() == []


def test_a_reload_waits_for_the_answer_of_a_letter_under_way_and_sends_it_once() -> None:
    town = Town(latency_s=8.0)

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(33.0)  # sent at 30 s, answered at 38 s
        office.use(replace(CHAT, per_min=600.0), SPARE)
        await office.at(200.0)

    office = play(story, town=town)

    assert office.town.times("chat") == [38.0]
    assert all("may be a repeat" not in text for text in office.town.texts("chat"))
    assert office.town.times("spare") == [71.0]


def test_a_reload_does_not_fill_the_bucket_of_a_channel_that_stays() -> None:
    slow = replace(CHAT, per_min=1.0, burst=1)

    async def story(office: Office) -> None:
        await office.at(0.0, notice(node="n01"), notice(node="n02", kind="gpu_slow"))
        await office.at(40.0)
        office.use(slow)
        await office.at(600.0)

    office = play(story, slow)

    first, second = office.town.times("chat")
    assert second - first >= 60.0


def test_other_routes_take_what_fires_and_its_end_still_goes_where_its_beginning_went() -> None:
    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(100.0)
        office.use(CHAT, SPARE, plan=Plan(Route(("spare",))))
        await office.at(1000.0, notice("resolved", at=1000.0))
        await office.at(2000.0)

    office = play(story, CHAT, SPARE, plan=Plan(Route(("chat",))))

    assert [json.loads(text)["status"] for text in office.town.texts("spare")] == ["firing", "resolved"]
    assert ["RESOLVED" in text for text in office.town.texts("chat")] == [False, True]


def test_an_alertmanager_that_is_added_is_told_what_fires_and_one_that_stays_is_not_disturbed() -> None:
    one = Channel("alerts", ChannelKind.ALERTMANAGER, ("http://127.0.0.1:9/a",), per_min=6000.0)
    two = replace(one, urls=(*one.urls, "http://127.0.0.1:8/b"))

    async def story(office: Office) -> None:
        await office.at(0.0, notice())
        await office.at(90.0)
        office.use(two)
        await office.at(200.0)

    office = play(story, one)

    assert all(len(json.loads(text)) == 1 for text in office.town.texts("alerts"))
    times = office.town.times("alerts")
    assert times == [0.0, 60.0, 90.0, 120.0, 150.0, 180.0]
    assert {x.state for x in office.record.outbox.letters()} == {"standing"}


def test_a_book_written_before_acknowledgements_were_told_can_be_read() -> None:
    old = {k: v for k, v in to_plain(Bundle("chat", 0, "g", {}, 1.0)).items() if k != "acked"}

    assert decode(Bundle, old).acked is False
