"""XIDs in bursts, in repeats, alone and in company, and what the driver itself says over them."""

from __future__ import annotations

import json

import pytest
from small_frames import frames, kinds
from test_detector_fault import GPUS, gpus, say, xid

from daemon.codec import decode, to_plain
from daemon.model import Entity, Event, Severity
from detectors.fault import FaultDetector

HOUR = 3600.0


def rules(found: list) -> list[str]:
    return [f.rule for f in found]


def test_events_of_one_code_within_three_minutes_are_one_burst() -> None:
    detector = FaultDetector()
    found = []
    for k in range(200):
        found = say(detector, 1000.0 + k, xid(1000.0 + k, 48))

    assert kinds(found) == [("gpu_uncontained", "gpu n0/gpu0")]
    assert found[0].since == 1000.0


@pytest.mark.parametrize(("gap_s", "bursts"), [(10.0, 1), (20.0, 2)])
def test_a_burst_of_13_ends_after_fifteen_seconds(gap_s: float, bursts: int) -> None:
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 13, app="vllm"))
    say(detector, gap_s, xid(gap_s, 13, app="vllm"))

    assert len(detector.bursts.seen[Entity("gpu", GPUS[0]), 13]) == bursts


def test_a_fatal_code_in_five_bursts_within_a_day_is_to_be_replaced() -> None:
    detector = FaultDetector()
    seen = [say(detector, k * HOUR, xid(k * HOUR, 95)) for k in range(5)]

    assert [kinds(found)[-1][0] for found in seen] == ["gpu_uncontained"] * 4 + ["gpu_repeat"]
    assert seen[-1][0].text.startswith("XID 95 in 5 bursts within 24 h: replace the GPU")


def test_a_second_loss_within_thirty_days_says_replace_and_a_later_one_does_not() -> None:
    day = 86400.0
    detector = FaultDetector()
    say(detector, 0.0, xid(0.0, 79))

    soon = say(detector, 29 * day, xid(29 * day, 79))
    late = say(detector, 80 * day, xid(80 * day, 79))

    assert (soon[0].rule, soon[0].text[:38]) == ("fault.lost_again", "loss number 2 within 30 days: replace ")
    assert rules(late) == ["fault.xid_lost"]


def test_two_firmware_time_outs_within_five_minutes_are_a_wedged_driver() -> None:
    detector = FaultDetector()
    once = say(detector, 0.0, xid(0.0, 119))
    twice = say(detector, 200.0, xid(200.0, 120))
    apart = FaultDetector()
    say(apart, 0.0, xid(0.0, 119))
    later = say(apart, 400.0, xid(400.0, 119))

    assert kinds(once) == [("gpu_firmware", "gpu n0/gpu0")]
    assert ("driver_wedged", "gpu n0/gpu0") in kinds(twice)
    assert kinds(later) == [("gpu_firmware", "gpu n0/gpu0")]


def test_45_alone_is_told_and_in_company_is_not() -> None:
    solo = say(FaultDetector(), 10.0, xid(9.0, 45))
    company = say(FaultDetector(), 10.0, xid(8.0, 48), xid(9.0, 45))

    assert kinds(solo) == [("gpu_app", "gpu n0/gpu0")]
    assert kinds(company) == [("gpu_uncontained", "gpu n0/gpu0")]


def test_672_repeats_of_45_in_three_hours_never_escalate() -> None:
    detector = FaultDetector()

    found = [f for k in range(672) for f in say(detector, 16.0 * k, xid(16.0 * k, 45, app=("a", "b")[k % 2]))]

    assert {(f.kind, f.severity) for f in found} == {("gpu_app", Severity.INFO)}


def test_162_cancels_163() -> None:
    detector = FaultDetector()
    noted = say(detector, 10.0, xid(9.0, 163))
    over = say(detector, 20.0, xid(19.0, 162))

    assert kinds(noted) == [("gpu_notice", "gpu n0/gpu0")]
    assert over == []


def test_167_is_a_notice_until_the_gpu_goes_with_it() -> None:
    detector = FaultDetector()
    noted = say(detector, 10.0, xid(9.0, 167))
    silent = detector.update(frames(100.0, gpus(100.0, silent={GPUS[0]: 60.0})))

    assert kinds(noted) == [("gpu_notice", "gpu n0/gpu0")]
    assert ("gpu_lost", "gpu n0/gpu0") in kinds(silent)
    assert "fault.xid_lost" in rules(silent)


def test_the_drivers_own_word_replaces_what_the_table_made_of_the_same_burst() -> None:
    to_reset = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
    to_none = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"

    reset = say(FaultDetector(), 10.0, xid(8.0, 94), xid(9.0, 154, text=to_reset))
    none = say(FaultDetector(), 10.0, xid(8.0, 48), xid(9.0, 154, text=to_none))
    lost = say(FaultDetector(), 10.0, xid(8.0, 79), xid(9.0, 154, text=to_none))

    assert [(f.kind, f.rule) for f in reset] == [("gpu_firmware", "fault.xid_action")]
    assert none == []
    assert kinds(lost) == [("gpu_lost", "gpu n0/gpu0")]


def test_a_table_code_right_after_the_drivers_word_does_not_overrule_it() -> None:
    to_reboot = "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"

    found = say(FaultDetector(), 10.0, xid(8.0, 154, text=to_reboot), xid(9.0, 94))

    assert kinds(found) == [("gpu_lost", "gpu n0/gpu0")]


def test_of_several_gpus_that_report_their_nvlink_the_first_is_blamed() -> None:
    detector = FaultDetector()
    text = "NVLink: fatal error detected on link 4(0x10000, 0x0)"

    found = say(detector, 10.0, *[xid(5.0 + 0.1 * k, 74, g, text=text) for k, g in enumerate(GPUS[:6])])

    assert kinds(found) == [("nvlink_fault", f"gpu {GPUS[0]}")]
    assert found[0].text.startswith("6 GPUs of the node report within a minute, this one first")


def test_the_link_a_message_names_is_told_and_a_nonfatal_one_is_a_notice() -> None:
    fatal = say(FaultDetector(), 10.0, xid(9.0, 74, text="NVLink: fatal error detected on link 4(0x1)"))
    mild = say(FaultDetector(), 10.0, xid(9.0, 145, text="RLW_REMAP Nonfatal XC0 i0 Link -1 (0x4 0x0)"))

    assert fatal[0].text.startswith("link 4: ")
    assert kinds(mild) == [("gpu_notice", "gpu n0/gpu0")]


@pytest.mark.parametrize("order", [("gauge", "nvml", "kernel_log"), ("kernel_log", "gauge", "nvml")])
def test_three_witnesses_tell_of_one_event_and_the_best_has_the_word(order: tuple[str, ...]) -> None:
    detector = FaultDetector()
    words = {"kernel_log": "NVRM: Xid: 48, name=python3", "nvml": "Xid 48", "gauge": ""}
    found = []
    for k, origin in enumerate(order):
        at = 1000.0 + 15.0 * k
        found = say(detector, at, xid(at, 48, origin=origin, text=words[origin]))

    assert [(f.text, f.since) for f in found] == [(words["kernel_log"], 1000.0)]
    assert found[0].evidence[0].unit == "from kernel_log"


def test_events_delivered_out_of_order_are_taken_in_order_of_time() -> None:
    late_first = (xid(9.0, 48, GPUS[1]), xid(5.0, 74, GPUS[2]), xid(4.0, 74, GPUS[3]))

    found = say(FaultDetector(), 10.0, *late_first)

    assert ("nvlink_fault", f"gpu {GPUS[3]}") in kinds(found)
    assert ("nvlink_fault", f"gpu {GPUS[2]}") not in kinds(found)


def test_what_is_remembered_survives_a_dump_in_midstream() -> None:
    detector = FaultDetector()
    for k in range(4):
        say(
            detector, k * HOUR, xid(k * HOUR, 95), Event(k * HOUR, Entity("node", "n0"), "io_error", text="x")
        )
    loaded = decode(FaultDetector, json.loads(json.dumps(to_plain(detector))))

    assert to_plain(say(loaded, 4 * HOUR, xid(4 * HOUR, 95))) == to_plain(
        say(detector, 4 * HOUR, xid(4 * HOUR, 95))
    )
