"""Faults of GPUs, nodes and hosts: what the hardware states, what falls silent, and what must be left alone."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from small_frames import frame, frames, kinds, last

from daemon.frame import FrameBuilder
from daemon.model import Entity, Event, Finding, Frame, Frames, Layout, Scrape, Series, Severity, Shape
from daemon.policy import Policy
from detectors.fault import FaultDetector
from detectors.xid import XID, classify

GPUS = tuple(f"n0/gpu{k}" for k in range(8))
TICK = 15.0


def gpus(
    at: float, odd: Mapping[str, Mapping[str, float]] | None = None, silent: Mapping[str, float] | None = None
) -> Frame:
    """Eight equal GPUs at work; `odd` says what some of them show instead."""
    usual = {
        "sm_clock_mhz": 1900.0,
        "util_ratio": 0.95,
        "power_w": 600.0,
        "tensor_active_ratio": 0.3,
        "throttle_bits": 0.0,
    }
    rows = {g: usual | dict((odd or {}).get(g, {})) for g in GPUS}
    facts = {g: {"peer": "chat|H100", "engine": "e0"} for g in GPUS}
    return frame("gpu", at, rows, facts, silent)


def xid(
    at: float, code: float, gpu: str = GPUS[0], *, origin: str = "kernel_log", text: str = "", app: str = ""
) -> Event:
    return Event(at, Entity("gpu", gpu), "xid", code, origin, text, app)


def say(detector: FaultDetector, at: float, *events: Event) -> list[Finding]:
    return detector.update(frames(at, gpus(at), events=events))


# -- XIDs -----------------------------------------------------------------------------------------------


def test_xid_79_is_a_lost_gpu_at_once():
    found = say(FaultDetector(), 100.0, xid(98.0, 79))

    assert kinds(found) == [("gpu_lost", "gpu n0/gpu0")]
    assert (found[0].severity, found[0].since) == (Severity.CRITICAL, 98.0)


def test_the_gauge_that_repeats_the_kernel_log_is_no_second_event():
    detector = FaultDetector()
    say(detector, 100.0, xid(98.0, 94))

    found = say(detector, 115.0, xid(112.0, 94, origin="gauge"))

    assert kinds(found) == [("gpu_contained", "gpu n0/gpu0")]


def test_a_sticky_gauge_read_after_a_restart_says_nothing():
    layout = Layout("n0:9400", (Series("xid_code", Entity("gpu", GPUS[0]), Shape.LAST_CODE),))
    builder, detector = FrameBuilder(Policy()), FaultDetector()

    found = []
    for k in range(20):
        builder.absorb(Scrape("n0:9400", TICK * k, layout, np.array([79.0])))
        found += detector.update(builder.build(TICK * k))

    assert found == []


def test_one_crashing_program_never_makes_the_gpu_suspect():
    detector = FaultDetector()

    found = [f for k in range(20) for f in say(detector, 600.0 * k, xid(600.0 * k, 13, app="train.py"))]

    assert {(f.kind, f.severity) for f in found} == {("gpu_app", Severity.INFO)}


def test_one_program_crashing_on_every_gpu_at_once_accuses_none():
    found = say(FaultDetector(), 100.0, *[xid(99.0, 31, g, app="python3") for g in GPUS])

    assert len(found) == 8
    assert {f.severity for f in found} == {Severity.INFO}


def test_two_programs_in_two_bursts_on_one_gpu_make_it_suspect():
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 13, app="vllm"))

    found = say(detector, 1800.0, xid(1800.0, 31, app="sglang"))

    assert [(f.kind, f.severity) for f in found] == [("gpu_app", Severity.WARNING)]


def test_two_programs_killed_in_the_same_burst_are_one_event():
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 13, app="vllm"))

    found = say(detector, 60.0, xid(60.0, 31, app="sglang"))

    assert {f.severity for f in found} == {Severity.INFO}


def test_what_another_program_did_last_week_counts_no_more():
    detector, week = FaultDetector(), 7 * 86400.0
    say(detector, 0.0, xid(0.0, 13, app="vllm"))
    say(detector, week, xid(week, 13, app="sglang"))

    found = say(detector, week + 1800.0, xid(week + 1800.0, 13, app="sglang"))

    assert {f.severity for f in found} == {Severity.INFO}


def test_repeats_of_45_never_escalate():
    detector = FaultDetector()

    found = [
        f
        for k in range(30)
        for f in say(detector, 600.0 * k, xid(600.0 * k, 45, app=("vllm", "sglang")[k % 2]))
    ]

    assert {f.severity for f in found} == {Severity.INFO}


def test_a_second_contained_error_within_a_day_escalates():
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 94))

    found = say(detector, 80_000.0, xid(80_000.0, 94))

    assert kinds(found) == [("gpu_uncontained", "gpu n0/gpu0")]
    assert found[0].severity is Severity.CRITICAL


def test_a_contained_error_a_day_later_is_a_first_one_again():
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 94))

    found = say(detector, 90_000.0, xid(90_000.0, 94))

    assert kinds(found) == [("gpu_contained", "gpu n0/gpu0")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", "gpu_firmware"),
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", "gpu_lost"),
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", "gpu_firmware"),
        ("GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)", ""),
    ],
)
def test_the_text_of_154_decides(text: str, kind: str):
    found = say(FaultDetector(), 100.0, xid(99.0, 154, text=text))

    assert [f.kind for f in found] == ([kind] if kind else [])


def test_the_text_of_154_decides_also_when_the_gauge_was_first():
    detector = FaultDetector()
    say(detector, 100.0, xid(99.0, 154, origin="gauge"))

    found = say(
        detector, 115.0, xid(101.0, 154, text="changed from 0x0 (None) to 0x2 (Node Reboot Required)")
    )

    assert kinds(found) == [("gpu_lost", "gpu n0/gpu0")]


def test_an_unknown_code_is_noted_and_never_acted_on():
    assert say(FaultDetector(), 100.0, xid(99.0, 9999)) == []
    assert all(classify(code).kind == cls.kind for code, cls in XID.items())


def test_a_claim_ends_while_the_gpu_speaks_and_stands_while_it_is_silent():
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 79))

    lost = detector.update(frames(3600.0, gpus(3600.0, silent=dict.fromkeys(GPUS, 3600.0))))
    back = say(detector, 3615.0)

    assert kinds(lost) == [("gpu_lost", "gpu n0/gpu0")]
    assert back == []


# -- silence --------------------------------------------------------------------------------------------


def test_a_gpu_that_vanishes_beside_living_siblings_is_lost():
    found = FaultDetector().update(frames(500.0, gpus(500.0, silent={GPUS[3]: 60.0})))

    assert kinds(found) == [("gpu_lost", "gpu n0/gpu3")]


def test_the_silence_of_a_whole_page_is_no_lost_gpu():
    found = FaultDetector().update(frames(500.0, gpus(500.0, silent=dict.fromkeys(GPUS, 60.0))))

    assert found == []


def targets(
    at: float,
    silent_s: float,
    serving_per_s: float,
    fails: float = 4.0,
    pages: tuple[str, ...] = ("n0:9400", "n0:9100", "n0:8000"),
) -> Frames:
    rows = {p: {"silent_s": silent_s, "fails": fails} for p in pages}
    target = frame("target", at, rows, {p: {"node": "n0"} for p in pages})
    engine = frame("engine", at, {"e0": {"lb_done_per_s": serving_per_s}}, {"e0": {"node": "n0"}})
    return frames(at, target, engine)


def test_a_node_whose_exporters_are_all_silent_and_that_serves_nobody_hangs():
    found = FaultDetector().update(targets(500.0, 60.0, 0.0))

    assert kinds(found) == [("node_hang", "node n0")]
    assert found[0].since == 440.0


def test_a_silent_node_that_still_serves_has_an_exporter_problem_and_no_hang():
    assert FaultDetector().update(targets(500.0, 60.0, 3.0)) == []


def test_one_missed_scrape_of_every_page_is_no_hang_and_two_are():
    once, twice = (FaultDetector().update(targets(500.0, s, 0.0, f)) for s, f in ((25.0, 1.0), (30.0, 2.0)))

    assert once == []
    assert kinds(twice) == [("node_hang", "node n0")]


def test_two_missed_scrapes_of_two_pages_may_be_chance_and_three_are_a_hang():
    """A node that serves nobody has no page but its exporters', and no gateway speaks for it."""
    idle = ("n0:9400", "n0:9100")
    twice, thrice = (
        FaultDetector().update(targets(500.0, s, 0.0, f, idle)) for s, f in ((30.0, 2.0), (45.0, 3.0))
    )

    assert twice == []
    assert kinds(thrice) == [("node_hang", "node n0")]


def test_two_scrapes_missed_within_seconds_are_no_hang():
    assert FaultDetector().update(targets(500.0, 10.0, 0.0, 2.0)) == []


# -- clocks, memory, links ---------------------------------------------------------------------------------


def test_a_hot_gpu_whose_clock_has_fallen_is_throttled():
    found = FaultDetector().update(
        frames(0.0, gpus(0.0, {GPUS[2]: {"throttle_bits": 0x20, "sm_clock_mhz": 1400.0}}))
    )

    assert kinds(found) == [("gpu_throttle", "gpu n0/gpu2")]


def test_throttle_bits_without_a_clock_deficit_are_quiet():
    assert (
        FaultDetector().update(
            frames(0.0, gpus(0.0, {GPUS[2]: {"throttle_bits": 0x20, "sm_clock_mhz": 1890.0}}))
        )
        == []
    )


def test_the_software_power_cap_alone_is_quiet_however_low_the_clock():
    assert (
        FaultDetector().update(
            frames(0.0, gpus(0.0, {GPUS[2]: {"throttle_bits": 0x4, "sm_clock_mhz": 1200.0}}))
        )
        == []
    )


def test_a_power_brake_over_all_gpus_that_could_be_compared_is_seen_against_their_own_past():
    detector = FaultDetector()
    detector.update(frames(0.0, gpus(0.0)))

    found = detector.update(
        frames(15.0, gpus(15.0, {g: {"throttle_bits": 0x80, "sm_clock_mhz": 900.0} for g in GPUS}))
    )

    assert kinds(found) == [("gpu_throttle", f"gpu {g}") for g in GPUS]


def test_an_idle_gpu_under_the_brake_of_its_rack_is_a_witness_and_one_elsewhere_is_not():
    braked = {"throttle_bits": 0x80}
    odd = dict.fromkeys(GPUS[:2], braked | {"sm_clock_mhz": 900.0}) | dict.fromkeys(GPUS[2:4], braked)
    frame_of = gpus(0.0, odd)
    racks = ("r1", "r1", "r1", "r2", "r1", "r1", "r2", "r2")

    found = FaultDetector().update(frames(0.0, replace(frame_of, facts={**frame_of.facts, "rack": racks})))

    assert kinds(found) == [("gpu_throttle", f"gpu {g}") for g in GPUS[:3]]


def test_a_double_bit_error_is_uncontained_and_a_counter_reset_is_not():
    layout = Layout("t", tuple(Series("ecc_dbe_per_s", Entity("gpu", g), Shape.COUNTER) for g in GPUS))
    builder, detector = FrameBuilder(Policy()), FaultDetector()

    seen = []
    for at, count in ((0.0, 5.0), (15.0, 5.0), (30.0, 0.0), (45.0, 0.0), (60.0, 1.0)):
        builder.absorb(Scrape("t", at, layout, np.array([count, *[0.0] * 7])))
        seen.append(kinds(detector.update(builder.build(at))))

    assert seen == [[], [], [], [], [("gpu_uncontained", "gpu n0/gpu0")]]


def test_a_storm_of_corrected_errors_is_told_after_five_minutes():
    detector = FaultDetector()
    storm = {GPUS[1]: {"ecc_sbe_per_s": 200.0}}

    early = last(detector, (frames(TICK * k, gpus(TICK * k, storm)) for k in range(20)))
    late = last(detector, (frames(TICK * k, gpus(TICK * k, storm)) for k in range(20, 22)))

    assert early == []
    assert kinds(late) == [("gpu_memory", "gpu n0/gpu1")]


def test_a_failed_row_remap_is_critical_and_a_pending_one_can_wait():
    given = {GPUS[1]: {"row_remap_failed": 1.0}, GPUS[2]: {"row_remap_pending": 1.0}}

    found = FaultDetector().update(frames(0.0, gpus(0.0, given)))

    assert {(str(f.entity), f.severity) for f in found} == {
        ("gpu n0/gpu1", Severity.CRITICAL),
        ("gpu n0/gpu2", Severity.INFO),
    }


def test_nvlink_errors_count_when_most_minutes_of_half_an_hour_have_them():
    detector = FaultDetector()

    def stream(minutes: range, step: int):
        return (
            frames(60.0 * m, gpus(60.0 * m, {GPUS[0]: {"nvlink_replay_per_s": float(m % step == 0)}}))
            for m in minutes
        )

    now_and_then = last(detector, stream(range(0, 60), 3))
    mostly = last(detector, stream(range(60, 90), 1))

    assert now_and_then == []
    assert kinds(mostly) == [("nvlink_fault", "gpu n0/gpu0")]


def test_a_narrow_pcie_link_matters_under_load_only():
    narrow = {"pcie_link_width": 8.0, "pcie_link_width_max": 16.0}

    busy = FaultDetector().update(frames(0.0, gpus(0.0, {GPUS[0]: narrow})))
    idle = FaultDetector().update(frames(0.0, gpus(0.0, {GPUS[0]: narrow | {"util_ratio": 0.0}})))

    assert kinds(busy) == [("pcie_downgrade", "gpu n0/gpu0")]
    assert idle == []


def test_a_low_pcie_generation_is_believed_when_a_second_scrape_shows_it():
    """An idle link trains down; a page may hold it beside the work that has just begun."""
    detector, low = FaultDetector(), {"pcie_link_gen": 1.0, "pcie_link_gen_max": 5.0}

    first = detector.update(frames(0.0, gpus(0.0, {GPUS[0]: low})))
    second = detector.update(frames(15.0, gpus(15.0, {GPUS[0]: low})))
    woken = detector.update(frames(300.0, gpus(300.0, {GPUS[0]: low})))

    assert (first, kinds(second), woken) == ([], [("pcie_downgrade", "gpu n0/gpu0")], [])


def test_a_gpu_that_is_busy_at_idle_power_and_gives_no_tokens_hangs():
    detector = FaultDetector()
    stuck = {GPUS[0]: {"util_ratio": 1.0, "power_w": 110.0, "tensor_active_ratio": 0.0}}

    def given(at: float, tokens_s: float) -> Frames:
        engine = frame("engine", at, {"e0": {"generation_tokens_s": tokens_s}})
        return frames(at, gpus(at, stuck), engine)

    working = last(FaultDetector(), (given(TICK * k, 500.0) for k in range(8)))
    hanging = last(detector, (given(TICK * k, 0.0) for k in range(8)))

    assert working == []
    assert kinds(hanging) == [("gpu_hang", "gpu n0/gpu0")]


@pytest.mark.parametrize(
    ("kind", "entity", "expected"),
    [
        ("nvml_hang", Entity("gpu", "n0/gpu1"), ("gpu_hang", "gpu n0/gpu1")),
        ("gpu_lost", Entity("gpu", "n0/gpu1"), ("gpu_lost", "gpu n0/gpu1")),
        ("oom_kill", Entity("node", "n0"), ("host_fault", "node n0")),
        ("fs_readonly", Entity("node", "n0"), ("host_fault", "node n0")),
    ],
)
def test_events_of_driver_and_host_are_taken_at_their_word(
    kind: str, entity: Entity, expected: tuple[str, str]
):
    assert kinds(say(FaultDetector(), 10.0, Event(9.0, entity, kind))) == [expected]


# -- hosts and links ---------------------------------------------------------------------------------------


def host(at: float, **shown: float) -> Frames:
    usual = {
        "fs_avail_bytes": 5e11,
        "fs_size_bytes": 1e12,
        "mem_available_bytes": 1e12,
        "mem_total_bytes": 2e12,
    }
    return frames(at, frame("node", at, {"n0": usual | shown, "n1": usual}))


@pytest.mark.parametrize(
    ("shown", "rule", "minutes"),
    [
        ({"fs_avail_bytes": 1e10}, "fault.host_disk_full", 0),
        ({"fs_readonly": 1.0}, "fault.host_fs_readonly", 0),
        ({"oom_kills_per_s": 0.1}, "fault.host_oom_kill", 0),
        ({"fabric_manager_up": 0.0}, "fault.host_fabric_manager", 0),
        ({"mem_available_bytes": 1e10}, "fault.host_memory_short", 5),
        ({"procs_blocked": 40.0}, "fault.host_blocked", 5),
    ],
)
def test_what_a_hosts_page_shows_is_told_once_it_lasts(shown: dict[str, float], rule: str, minutes: int):
    detector = FaultDetector()
    early = detector.update(host(0.0, **shown))

    late = last(detector, (host(TICK * k, **shown) for k in range(1, 24)))

    assert [f.rule for f in early] == ([] if minutes else [rule])
    assert [(f.rule, str(f.entity)) for f in late] == [(rule, "node n0")]


def test_a_nonfatal_nvswitch_message_is_nobodys_fault():
    node = Entity("node", "n0")
    mild = Event(
        9.0, node, "nvlink", text="nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20001, Non-fatal, Link 3"
    )
    fatal = Event(9.0, node, "nvlink", text="nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 3")

    assert say(FaultDetector(), 10.0, mild) == []
    assert kinds(say(FaultDetector(), 10.0, fatal)) == [("nvlink_fault", "node n0")]


def test_spare_rows_that_run_out_within_a_fortnight_are_told_ahead():
    detector = FaultDetector()

    found = last(
        detector,
        (
            frames(
                3600.0 * h,
                gpus(
                    3600.0 * h,
                    {GPUS[2]: {"rows_remapped_correctable": 200.0 + h, "rows_remapped_uncorrectable": 3.0}},
                ),
            )
            for h in range(30)
        ),
    )

    assert [(f.rule, str(f.entity)) for f in found] == [("fault.rows_slope", "gpu n0/gpu2")]
    assert "run out in 12 days" in found[0].text


def test_nvlink_errors_of_most_gpus_of_a_node_accuse_the_switch():
    detector = FaultDetector()
    sick = {g: {"nvlink_crc_per_s": 3.0} for g in GPUS[:6]}

    found = last(detector, (frames(60.0 * m, gpus(60.0 * m, sick)) for m in range(20)))

    assert len(found) == 6
    assert all("to blame: the switch" in f.text for f in found)


def test_an_idle_gpu_that_vanishes_is_given_the_time_of_a_reconfiguration():
    def silent(age_s: float) -> list[Finding]:
        rows = {g: {"util_ratio": 0.0} for g in GPUS}
        return FaultDetector().update(frames(500.0, frame("gpu", 500.0, rows, None, {GPUS[3]: age_s})))

    assert silent(120.0) == []
    assert kinds(silent(400.0)) == [("gpu_lost", "gpu n0/gpu3")]
