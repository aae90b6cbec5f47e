"""Telemetry that is silent, frozen, out of step, or gone as a whole."""

import math
from collections.abc import Callable, Mapping

import pytest
from small_frames import frame, frames, kinds, last

from daemon.frame import FrameBuilder
from daemon.model import Finding, Frames, Scrape, Severity, Target
from daemon.policy import Policy
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
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


def clocks_over(ticks: int, **per_tick_s: float) -> list[Finding]:
    """n0 runs 90 s ahead, n1 as much behind, n2 is right; per_tick_s : how far each moves a tick (15 = it runs)."""
    detector, found = IntegrityDetector(), []
    begun = {"n0": AT + 90.0, "n1": AT - 90.0, "n2": AT + 10.0}
    for k in range(ticks):
        at = AT + 15.0 * k
        nodes = frame("node", at, {n: {"clock_s": t + k * per_tick_s.get(n, 15.0)} for n, t in begun.items()})
        found = detector.update(frames(at, frame("target", at, {}, {}), frame("engine", at, {}, {}), nodes))
    return found


def test_a_clock_that_is_off_is_skewed_either_way():
    assert kinds(clocks_over(2)) == [("clock_skew", "node n0"), ("clock_skew", "node n1")]


def test_a_clock_that_stands_still_is_an_old_page_and_not_skewed():
    assert kinds(clocks_over(12, n1=0.0, n2=0.0)) == [("clock_skew", "node n0")]


# -- fields ------------------------------------------------------------------------------------------------------


def fleet(at: float, odd: Mapping[str, Mapping[str, float]], moving: bool = True) -> Frames:
    """Twenty nodes of one GPU; `odd` says what some of them show instead."""
    wobble = (at // 60.0) % 5 if moving else 0.0
    rows = {
        f"n{k:02d}/gpu0": {"power_w": 500.0 + wobble + k, "temp_c": 60.0, "sm_clock_mhz": 1900.0}
        for k in range(20)
    }
    rows = {name: row | dict(odd.get(name, {})) for name, row in rows.items()}
    nodes = {name.split("/")[0]: {"clock_s": at} for name in rows}
    return frames(at, frame("gpu", at, rows), frame("node", at, nodes))


def lived(minutes: int, odd: Callable[[int], Mapping[str, Mapping[str, float]]]) -> list[Finding]:
    detector = IntegrityDetector()
    return last(detector, (fleet(60.0 * m, odd(m)) for m in range(minutes)))


NONE = float("nan")


def test_a_field_that_was_there_for_long_and_is_gone_is_told() -> None:
    found = lived(40, lambda m: {"n03/gpu0": {"temp_c": NONE if m >= 25 else 60.0}})

    assert kinds(found) == [("field_lost", "node n03")]
    assert "no longer exported: temp_c" in found[0].text
    assert found[0].severity is Severity.INFO


def test_a_field_that_never_was_or_comes_and_goes_is_nobodys_loss() -> None:
    assert lived(40, lambda m: {"n03/gpu0": {"temp_c": NONE}}) == []
    assert lived(40, lambda m: {"n03/gpu0": {"temp_c": NONE if m % 6 == 0 else 60.0}}) == []


def test_a_field_that_many_nodes_lose_at_once_was_renamed() -> None:
    def renamed(m: int) -> Mapping[str, Mapping[str, float]]:
        return {f"n{k:02d}/gpu0": {"power_w": NONE} for k in range(12)} if m >= 25 else {}

    found = lived(40, renamed)

    assert kinds(found) == [("field_lost", "cluster telemetry")]
    assert "renamed by a new exporter version" in found[0].text


def test_a_gauge_that_stands_still_beside_others_that_move_is_stuck() -> None:
    found = lived(50, lambda m: {"n07/gpu0": {"power_w": 512.0}})

    assert kinds(found) == [("gauge_stuck", "gpu n07/gpu0")]


def test_gauges_that_all_stand_still_are_not_stuck() -> None:
    detector = IntegrityDetector()

    assert last(detector, (fleet(60.0 * m, {}, moving=False) for m in range(60))) == []


def test_an_engines_counter_that_stands_still_while_it_completes_is_frozen() -> None:
    detector = IntegrityDetector()
    row = {"e0": {"generation_tokens_s": 0.0, "lb_done_per_s": 2.0}}

    found = last(detector, (frames(15.0 * k, frame("engine", 15.0 * k, row)) for k in range(6)))

    assert kinds(found) == [("telemetry_frozen", "engine e0")]
    assert found[0].rejected == ("a hung engine: the gateway sees its requests complete",)


@pytest.mark.parametrize(
    ("signal", "value", "kind"), [("took_s", 7.0, "exporter_slow"), ("dropped", 3.0, "page_broken")]
)
def test_a_page_that_answers_late_or_repeats_a_series_is_told_once_it_lasts(
    signal: str, value: float, kind: str
) -> None:
    detector = IntegrityDetector()
    row = {"silent_s": 5.0, "fails": 0.0, "series": 10.0, "unchanged_s": 5.0, "up": 1.0, signal: value}

    def stream(ticks: int) -> list[Finding]:
        return last(
            detector, (frames(15.0 * k, frame("target", 15.0 * k, {PAGES[0]: row})) for k in range(ticks))
        )

    assert stream(10) == []
    assert kinds(stream(25)) == [(kind, f"target {PAGES[0]}")]


def test_a_counter_at_its_end_is_unknown_and_not_quiet() -> None:
    catalogue = load_catalogue()
    page = Page(catalogue.wanted, catalogue.keep)
    target = Target("n0:9100", labels=(("node", "n0"),))

    def rate(before: int, now: int) -> float:
        builder = FrameBuilder(Policy())
        identity = None
        for at, count in ((0.0, before), (15.0, now)):
            body = f'node_infiniband_symbol_error_total{{device="mlx5_0",port="1"}} {count}\n'
            reading = page.parse(body.encode())
            identity = identity or catalogue.identify(target, reading.keys)
            builder.absorb(Scrape("n0:9100", at, identity.layout, identity.values(reading.values)))
        return builder.build(16.0)["port"].value("n0/mlx5_0", "symbol_errors_per_s")

    assert rate(10, 40) == 2.0
    assert math.isnan(rate(65535, 65535))
    assert math.isnan(rate(255, 255))
