"""Telemetry that is silent, frozen, out of step, or gone as a whole."""

from collections.abc import Mapping

from small_frames import frame, frames, kinds

from daemon.model import Finding, Severity
from detectors.integrity import IntegrityDetector

PAGES = tuple(f"n{k}:9400" for k in range(10))
AT = 10_000.0


def say(
    odd: Mapping[str, Mapping[str, float]],
    *,
    node: bool = True,
    engine: Mapping[str, float] | None = None,
    clock: Mapping[str, float] | None = None,
) -> list[Finding]:
    usual = {"silent_s": 5.0, "fails": 0.0, "series": 120.0, "unchanged_s": 5.0}
    rows = {p: usual | dict(odd.get(p, {})) for p in PAGES}
    facts = {
        p: {"node": p.split(":")[0] if node else "", "error": "refused" if p in odd else ""} for p in PAGES
    }
    engines = frame("engine", AT, {"e0": engine} if engine else {}, {"e0": {"target": PAGES[0]}})
    nodes = frame("node", AT, {n: {"clock_s": t} for n, t in (clock or {}).items()})
    return IntegrityDetector().update(frames(AT, frame("target", AT, rows, facts), engines, nodes))


SILENT = {"silent_s": 60.0, "fails": 4.0}


def test_a_healthy_fleet_says_nothing():
    assert say({}, clock={"n0": AT}) == []


def test_a_silent_exporter_is_down_with_its_error_and_since_when():
    found = say({PAGES[1]: SILENT})

    assert kinds(found) == [("target_down", f"target {PAGES[1]}")]
    assert (found[0].text, found[0].since) == ("refused", AT - 60.0)


def test_two_missed_scrapes_are_patience_and_not_an_outage():
    assert say({PAGES[1]: {"silent_s": 30.0, "fails": 2.0}}) == []


def test_a_target_that_never_answered_is_starting_for_a_while():
    starting = {"silent_s": 60.0, "fails": 4.0, "series": 0.0}

    assert say({PAGES[1]: starting}) == []
    assert kinds(say({PAGES[1]: starting | {"silent_s": 1000.0}})) == [("target_down", f"target {PAGES[1]}")]


def test_the_loss_of_much_telemetry_is_one_event_of_its_own():
    found = say(dict.fromkeys(PAGES[:5], SILENT))

    assert next((f.kind, f.severity) for f in found) == ("telemetry_lost", Severity.CRITICAL)
    assert [f.kind for f in found].count("target_down") == 5


def test_a_few_silent_targets_are_not_the_loss_of_telemetry():
    assert {f.kind for f in say(dict.fromkeys(PAGES[:2], SILENT))} == {"target_down"}


def test_a_page_of_hardware_that_never_changes_is_frozen():
    assert kinds(say({PAGES[2]: {"unchanged_s": 400.0}})) == [("telemetry_frozen", f"target {PAGES[2]}")]


def test_an_idle_engines_page_stands_still_by_right_and_a_working_ones_does_not():
    still = {PAGES[0]: {"unchanged_s": 400.0}}

    assert say(still, engine={"lb_done_per_s": 0.0, "lb_sessions": 0.0}) == []
    assert kinds(say(still, engine={"lb_done_per_s": 3.0, "lb_sessions": 5.0})) == [
        ("telemetry_frozen", f"target {PAGES[0]}")
    ]


def test_a_page_that_does_not_answer_is_silent_and_not_frozen():
    assert kinds(say({PAGES[2]: SILENT | {"unchanged_s": 400.0}})) == [("target_down", f"target {PAGES[2]}")]


def test_a_page_of_no_known_node_may_stand_still():
    assert say({PAGES[2]: {"unchanged_s": 400.0}}, node=False) == []


def test_a_clock_that_is_off_is_skewed_either_way():
    found = say({}, clock={"n0": AT + 90.0, "n1": AT - 90.0, "n2": AT + 10.0})

    assert kinds(found) == [("clock_skew", "node n0"), ("clock_skew", "node n1")]
