"""How long replicas take to start: measured once each, by source, and believed by degrees."""

import math

import pytest
from small_frames import frame, frames

from daemon.codec import decode, to_plain
from daemon.coldstart import MEMORY, Start, Starts, expected_s, with_measured, with_starts
from daemon.model import NAN, Frames
from daemon.policy import Policy, PoolPolicy

TICK = 15.0
EPOCH = 1_780_272_000.0
CHAT = PoolPolicy("chat", cold_start_s=120.0)


def engine(at: float, name: str, begun: float, running: float = 0.0, **more: float) -> Frames:
    row = {"running": running, "start_time_s": begun, **more}
    facts = {name: {"pool": "chat", "node": "n01"}}
    return frames(at, frame("engine", at, {name: row}, facts))


def reading(at: float, disk: float, mount: float, given: Frames) -> Frames:
    rows = {"n01/nvme0n1": {"read_bytes_s": disk}, "n01/nas:/models": {"read_bytes_s": mount}}
    facts = {
        "n01/nvme0n1": {"node": "n01", "source": "nvme"},
        "n01/nas:/models": {"node": "n01", "source": "nfs"},
    }
    return frames(at, given["engine"], frame("store", at, rows, facts))


def test_a_replica_that_starts_while_one_looks_is_measured_once() -> None:
    starts = Starts()
    starts.watch(frames(EPOCH), {})

    for k in range(1, 8):
        begun = EPOCH + 10.0
        running = 0.0 if k >= 5 else math.nan
        starts.watch(engine(EPOCH + TICK * k, "e1", begun, running), {})

    (start,) = starts.kept["chat"]
    assert (start.at, start.took_s, start.source, start.node) == (EPOCH + 75.0, 65.0, "", "n01")


def test_who_served_before_one_looked_has_not_just_started() -> None:
    starts = Starts()

    starts.watch(engine(EPOCH, "e1", EPOCH - 300.0, 3.0), {})
    starts.watch(engine(EPOCH + TICK, "e1", EPOCH - 300.0, 3.0), {})

    assert starts.kept == {}


def test_after_a_gap_nobody_can_say_when_who_serves_began() -> None:
    starts = Starts()
    starts.watch(frames(EPOCH), {})

    starts.watch(engine(EPOCH + 1800.0, "e1", EPOCH + 20.0, 1.0), {})

    assert starts.kept == {}


def test_an_engine_that_tells_its_own_start_is_believed_even_about_the_past() -> None:
    starts = Starts()

    starts.watch(engine(EPOCH, "e1", NAN, 2.0, startup_s=52.0, weights_load_s=31.0), {})

    (start,) = starts.kept["chat"]
    assert (start.took_s, start.weights_s, start.source) == (52.0, 31.0, "")


def watched_for(seconds: float) -> Starts:
    starts = Starts()
    for k in range(int(seconds / TICK), -1, -1):
        starts.watch(frames(EPOCH - TICK * k), {})
    return starts


def test_a_page_that_comes_late_is_not_a_start() -> None:
    starts = watched_for(60.0)

    starts.watch(engine(EPOCH, "e1", EPOCH - 300.0, 3.0), {})
    starts.watch(engine(EPOCH, "e2", NAN, 3.0, startup_s=55.0), {})

    (told,) = starts.kept["chat"]
    assert (told.took_s, told.source) == (55.0, "")


def test_waiting_for_a_node_is_a_part_of_the_start() -> None:
    starts = watched_for(60.0)

    starts.watch(engine(EPOCH + TICK, "e1", EPOCH - 20.0, 0.0), {"chat": EPOCH - 200.0})

    assert starts.kept["chat"][0].took_s == 215.0


def test_a_restart_waited_for_nobody() -> None:
    starts = watched_for(60.0)
    starts.watch(engine(EPOCH - 30.0, "e1", EPOCH - 9000.0, 2.0), {})

    starts.watch(engine(EPOCH + TICK, "e1", EPOCH - 20.0, 0.0), {"chat": EPOCH - 200.0})

    assert starts.kept["chat"][0].took_s == 35.0


def test_an_order_of_hours_ago_is_not_what_a_restart_waited_for() -> None:
    starts = watched_for(60.0)

    starts.watch(engine(EPOCH + TICK, "e1", EPOCH - 20.0, 0.0), {"chat": EPOCH - 7200.0})

    assert starts.kept["chat"][0].took_s == 35.0


@pytest.mark.parametrize(
    ("disk", "mount", "source"), [(1e6, 900e6, "nfs"), (2e9, 1e6, "nvme"), (1e6, 1e6, MEMORY)]
)
def test_the_source_is_what_the_node_read_meanwhile(disk: float, mount: float, source: str) -> None:
    starts = Starts()

    for k in range(6):
        at = EPOCH + TICK * k
        running = 0.0 if k == 5 else math.nan
        starts.watch(reading(at, disk, mount, engine(at, "e1", EPOCH + 5.0, running)), {})

    assert starts.kept["chat"][0].source == source


def test_what_was_measured_stands_over_the_configuration_by_degrees() -> None:
    def seen(*took: float) -> list[Start]:
        return [Start(EPOCH, s, NAN, "nfs", "n01") for s in took]

    assert expected_s([], CHAT) == 120.0
    assert expected_s(seen(40.0), CHAT) == 120.0
    assert expected_s(seen(300.0), CHAT) == 300.0
    assert expected_s(seen(*[40.0] * 5), CHAT) == 40.0


def test_the_planner_is_given_what_was_measured_and_the_rest_stays() -> None:
    starts = Starts(kept={"chat": [Start(EPOCH, 60.0, NAN, "nvme", "n01")] * 6})
    policy = Policy(pools=(CHAT, PoolPolicy("code", cold_start_s=200.0)))

    found = with_measured(policy, starts)

    assert [p.cold_start_s for p in found.pools] == [60.0, 200.0]
    assert policy.pools[0].cold_start_s == 120.0


def test_a_detector_sees_the_last_start_beside_those_before_it() -> None:
    kept = [Start(EPOCH, 60.0, NAN, "nfs", "n01")] * 6 + [Start(EPOCH + 60.0, 150.0, NAN, "nfs", "n02")]

    shown = with_starts(frames(EPOCH + 90.0), Starts(kept={"chat": kept}))["pool_start"]
    later = with_starts(frames(EPOCH + 7200.0), Starts(kept={"chat": kept}))["pool_start"]

    assert shown.value("chat", "cold_start_last_s") == 150.0
    assert shown.value("chat", "cold_start_p50_s") == 60.0
    assert math.isnan(later.value("chat", "cold_start_last_s"))


def test_what_is_remembered_survives_a_restart() -> None:
    starts = Starts(kept={"chat": [Start(EPOCH, 60.0, NAN, "nvme", "n01")]}, known={"e1": 5.0}, at=EPOCH)

    again = decode(Starts, to_plain(starts))

    assert to_plain(again) == to_plain(starts)
