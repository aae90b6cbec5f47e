"""A version that fails more requests than those beside it."""

from __future__ import annotations

import pytest
from small_frames import frame, frames

from daemon.model import NAN, Finding
from detectors.canary import CanaryDetector


def lived(
    errors: dict[str, float], minutes: int = 15, done: float = 2.0, canary_from: int = 5
) -> list[Finding]:
    """Three replicas of v1 and, some minutes later, one of v2. errors : version -> failures a second and replica."""
    watch, found = CanaryDetector(), []
    for tick in range(minutes * 4):
        engines = {f"e{k}": {"lb_done_per_s": done, "lb_errors_per_s": errors["v1"]} for k in range(3)}
        facts = {e: {"pool": "chat", "version": "v1"} for e in engines}
        if tick >= canary_from * 4:
            engines["e3"] = {"lb_done_per_s": done, "lb_errors_per_s": errors["v2"]}
            facts["e3"] = {"pool": "chat", "version": "v2"}
        found += watch.update(frames(15.0 * tick, frame("engine", 15.0 * tick, engines, facts)))
    return found


def test_a_canary_that_fails_more_is_blamed_within_minutes() -> None:
    found = lived({"v1": 0.002, "v2": 0.2})

    assert found[0].kind == "deploy_regression"
    assert found[0].at <= 5 * 60.0 + 180.0
    assert "version v2 of chat fails" in found[0].text


@pytest.mark.parametrize(
    ("errors", "done"),
    [({"v1": 0.2, "v2": 0.2}, 2.0), ({"v1": 0.01, "v2": 0.03}, 2.0), ({"v1": 0.3, "v2": 0.01}, 2.0), ({"v1": 0.0, "v2": 0.1}, 0.1)],
    ids=["a storm for all", "a small gap", "the older one is worse", "few requests"],
)  # fmt: skip
def test_what_is_no_regression_is_none(errors: dict[str, float], done: float) -> None:
    assert lived(errors, done=done) == []


def test_failures_nobody_counts_are_unknown_and_no_zero() -> None:
    assert lived({"v1": 0.0, "v2": NAN}) == []


def test_what_a_version_did_in_an_earlier_roll_out_is_no_measure_in_the_next() -> None:
    """v2 failed in the minutes in which it came, and no more in the two hours after; back to v1 it is not blamed for them."""
    watch, found = CanaryDetector(), []
    for tick in range(4 * 150):
        minute = tick / 4
        versions = ["v1" if minute < 5 + 2 * k or minute >= 130 + 2 * k else "v2" for k in range(3)]
        facts = {f"e{k}": {"pool": "chat", "version": v} for k, v in enumerate(versions)}
        engines = {
            e: {
                "lb_done_per_s": 3.0,
                "lb_errors_per_s": 0.5 if minute < 9 and f["version"] == "v2" else 0.0,
            }
            for e, f in facts.items()
        }
        found += watch.update(frames(15.0 * tick, frame("engine", 15.0 * tick, engines, facts)))

    assert found
    assert max(f.at for f in found) < 15 * 60.0
