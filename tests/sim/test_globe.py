"""Three daemons and a fourth that keeps the view over them, on 1,400 simulated GPUs, one region lost and back."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.__main__ import Parts as parts
from daemon.__main__ import assemble, fit_here
from simulator.drill import drill
from simulator.globe import OVERFLOW


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    return drill(assemble, parts, fit_here, scenario="region-loss", seed=1, gpus=1400, hours=2.4)


def test_a_lost_region_is_found_and_its_requests_are_moved_within_three_minutes(
    story: dict[str, Any],
) -> None:
    assert story["regions"] == {"east": 800, "west": 400, "south": 200}
    assert story["found_s"] <= 195.0
    assert story["moved_s"] <= story["found_s"] + 15.0
    # What was lost is what clients sent in the time between, and no more.
    assert story["requests_lost"] / story["requests_total"] < 0.03


def test_the_rest_is_never_given_more_than_it_holds(story: dict[str, Any]) -> None:
    assert (
        story["load_of_the_rest_p95"] < 1.6
    )  # of what is planned for, which is three quarters of what it holds
    assert story["requests_slow"] / story["requests_total"] < 0.02


def test_the_region_comes_back_by_degrees_and_takes_its_share_again(story: dict[str, Any]) -> None:
    assert story["returned_s"] >= 300.0
    assert story["shares_at_the_end"]["east"] == pytest.approx(800 / 1400, abs=0.15)
    assert story["shares_at_the_end"][OVERFLOW] == 0.0


def test_nothing_is_moved_before_there_is_a_reason(story: dict[str, Any]) -> None:
    before = [line for line in story["story"] if "all requests" in line and float(line[1:].split()[0]) < 40.0]

    assert len({line.split()[0] for line in before}) <= 1
