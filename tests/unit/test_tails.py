"""Lateness by load: what was seen is believed, what was not is guessed carefully."""

import itertools
import math

import pytest

from daemon.tails import (
    KNOWN_REQUESTS,
    Tails,
    full_load,
    lateness,
    note,
    prior,
    rebase,
    replicas_at,
    rising,
    settle,
)


def shown(*, good_to: float, requests: float = 50_000.0) -> Tails:
    """A pool whose replicas are in time up to a load, and from there on are not."""
    tails = Tails(unit=100.0)
    for load in range(5, 130, 3):
        note(tails, float(load), requests, 0.002 if load <= good_to else 0.3)
    settle(tails, 0.0)
    return tails


@pytest.mark.parametrize("good_to", [70.0, 100.0, 120.0])
def test_full_load_is_where_lateness_began(good_to: float):
    assert full_load(shown(good_to=good_to), 0.01) == pytest.approx(good_to, abs=5.0)


def test_before_evidence_the_prior_holds():
    tails = Tails(unit=100.0)

    assert full_load(tails, 0.01) == pytest.approx(100.0, rel=0.05)
    assert not tails.is_known


def test_nothing_is_learnt_from_what_is_not_known():
    tails = Tails(unit=100.0)

    note(tails, math.nan, 10.0, 0.1)
    note(tails, 50.0, math.nan, 0.1)
    note(tails, 50.0, 10.0, math.nan)

    assert sum(tails.requests) == 0.0


def test_a_pool_that_does_well_dares_a_little_more_and_no_further():
    tails = Tails(unit=100.0)
    for _ in range(10):
        note(tails, 80.0, KNOWN_REQUESTS, 0.001)
    settle(tails, 0.0)

    assert 85.0 < full_load(tails, 0.01) < 105.0


def test_what_was_seen_long_ago_fades():
    tails = shown(good_to=70.0)

    settle(tails, 60 * 86400.0)

    assert full_load(tails, 0.01) > full_load(shown(good_to=70.0), 0.01)


def test_taking_another_load_for_full_keeps_what_was_seen():
    tails = shown(good_to=70.0)
    before = full_load(tails, 0.01)

    rebase(tails, 70.0)
    settle(tails, 0.0)

    assert full_load(tails, 0.01) == pytest.approx(before, rel=0.06)


def test_lateness_never_falls_with_load():
    tails = shown(good_to=70.0)

    found = [lateness(tails, [float(load)], 1) for load in range(5, 200, 5)]

    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(found))
    assert rising([1.0, 3.0, 2.0], [1.0, 1.0, 1.0]) == [1.0, 2.5, 2.5]


@pytest.mark.parametrize("first", [1, 9, 40])
def test_the_fewest_replicas_that_keep_the_plan_are_found_from_anywhere(first: int):
    tails = shown(good_to=70.0)
    loads = [600.0, 650.0, 700.0]

    found = replicas_at(tails, loads, 0.01, first)

    assert lateness(tails, loads, found) <= 0.01 < lateness(tails, loads, found - 1)


def test_prior_doubles_and_more_within_a_tenth():
    assert prior(1.0) == pytest.approx(0.01)
    assert prior(1.1) > 4 * prior(1.0)
    assert prior(9.0) == 1.0
