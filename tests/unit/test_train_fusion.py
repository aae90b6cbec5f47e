"""The fit behind detectors/fusion.json: what it may learn, and where its limit comes from."""

import numpy as np
import pytest

from bench.train_fusion import Rows, fit, limit_of, report, steady
from detectors.signs import FAMILIES

STEP, LEAD, FIRST = (FAMILIES.index(name) for name in ("step", "lead", "first_token"))


def rows(replicas: int, minutes: int, sick: int, seed: int = 1) -> Rows:
    """Noise of one deviation; the first `sick` replicas show four in two families and two less of a third."""
    rng = np.random.default_rng(seed)
    made = Rows([], [], [], [])
    for replica in range(replicas):
        for minute in range(minutes):
            signs = rng.standard_normal(len(FAMILIES))
            if replica < sick:
                signs[[STEP, LEAD]] += 4.0
                signs[FIRST] -= 2.0
            made.signs.append(signs)
            made.sick.append(int(replica < sick))
            made.of.append(replica)
            made.minute.append(minute)
    return made


def test_signs_that_agree_are_weighed_and_one_that_speaks_against_is_left_out() -> None:
    weights, intercept = fit(rows(40, 60, 4), 0)

    assert weights[STEP] == pytest.approx(weights[LEAD], rel=0.3)
    assert weights[STEP] > 0.5
    assert weights[FIRST] == 0.0
    assert weights.min() >= 0.0
    assert intercept < -3.0


def test_three_of_five_minutes_in_a_row_make_a_steady_sign_and_gaps_cut_it() -> None:
    made = Rows([], [0] * 8, [0] * 8, [0, 1, 2, 3, 4, 9, 10, 11])

    found = steady(made, np.array([1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 9.0, 9.0]))

    assert found.tolist() == [-np.inf] * 4 + [3.0] + [-np.inf] * 3


def test_the_limit_lies_beyond_what_sound_replicas_ever_showed() -> None:
    train, check = rows(40, 60, 4), rows(200, 120, 6, seed=2)
    weights, intercept = fit(train, 0)
    logits = np.array(check.signs) @ weights + intercept

    limit = limit_of(check, logits)
    told = report(check, logits, limit)

    sound = steady(check, logits)[np.array(check.sick) == 0]
    assert limit >= sound.max() + 0.5
    assert told["sound_replicas_claimed"] == 0.0
    assert told["sick_replicas"] == 6.0
