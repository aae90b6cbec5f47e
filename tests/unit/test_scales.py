"""What a group of many shows by chance."""

import numpy as np
import pytest

from daemon.model import NAN
from detectors.scales import Scales, chance_limit
from detectors.stats import groups

RNG = np.random.default_rng(5)
NAMES = tuple(f"n{i:03d}:8000" for i in range(600))
ONE_POOL = groups(("chat|v1",) * len(NAMES))


def _days(values: np.ndarray, scales: Scales) -> set[str]:
    """values : (minute, entity). Who was beyond the limits at any minute."""
    accused: set[str] = set()
    for minute in values:
        scales.push(NAMES, minute)
        hit, _ = scales.beyond(ONE_POOL)
        scales.learn(hit)
        accused |= {name for name, is_hit in zip(NAMES, hit, strict=True) if is_hit}
    return accused


def _spells(minutes: int) -> np.ndarray:
    """Noise with long tails that lasts for minutes, as of replicas with a few long prompts."""
    return np.repeat(RNG.laplace(scale=0.025, size=(minutes // 5, len(NAMES))), 5, axis=0)


def test_spells_of_long_prompts_among_many_replicas_accuse_nobody() -> None:
    quiet = Scales((0.40, 0.22, 0.15, 0.11, 0.085, 0.07, 0.06), sigmas=5.0, margin=1.15)

    accused = _days(_spells(720), quiet)

    assert accused == set()


def test_one_slow_replica_among_many_is_still_accused() -> None:
    scales = Scales((0.40, 0.22, 0.15, 0.11, 0.085, 0.07, 0.06), sigmas=5.0, margin=1.15)
    values = _spells(480)
    values[360:, 17] += 0.45

    accused = _days(values, scales)

    assert accused == {NAMES[17]}


def test_a_large_group_that_knows_its_own_tail_needs_less_than_the_usual_floor() -> None:
    """One of 600 becomes a tenth slower: by its 15 minutes, where others wait for the hour."""
    values = RNG.normal(scale=0.02, size=(395, len(NAMES)))
    values[360:, 17] += 0.10

    told, waiting = (
        _days(values, Scales((0.40, 0.22, 0.15, 0.11, 0.085, 0.07, 0.06), sigmas=5.0, tail_floor=share))
        for share in (0.6, 1.0)
    )

    assert told == {NAMES[17]}
    assert waiting == set()


def _in_unrest(spare: float) -> tuple[Scales, np.ndarray]:
    """Thirty replicas in a pool whose caches have been full for half an hour, which makes every step four times as noisy. spare : what
    the first of them is slower by, since then."""
    rng = np.random.default_rng(8)
    values = rng.normal(scale=0.01, size=(270, 30))
    values[240:] *= 4.0
    values[240:, 0] += spare
    return Scales((0.03,) * 7, sigmas=5.0), values


@pytest.mark.parametrize(("spare", "found"), [(0.0, set()), (0.6, {0})])
def test_a_group_that_is_noisier_than_it_was_is_measured_by_what_it_shows_now(
    spare: float, found: set[int]
) -> None:
    scales, values = _in_unrest(spare)
    names, where = tuple(f"n{i}:8000" for i in range(30)), groups(("chat",) * 30)
    beyond: set[int] = set()
    for minute in values:
        scales.push(names, minute)
        hit, _ = scales.beyond(where)
        scales.learn(hit)
        beyond |= set(hit.nonzero()[0].tolist())

    assert beyond == found


def test_a_group_just_met_does_not_know_its_tail_yet() -> None:
    """The same tenth after twenty minutes is held to the usual floor."""
    values = RNG.normal(scale=0.01, size=(40, len(NAMES)))
    values[20:, 17] += 0.1

    accused = _days(values, Scales((0.40, 0.22, 0.15, 0.11, 0.085, 0.07, 0.06), sigmas=5.0, tail_floor=0.6))

    assert accused == set()


def test_limit_of_chance_grows_with_the_group_not_with_its_stragglers() -> None:
    even = (np.arange(600) + 0.5) / 600
    largest = 0.1 - 0.02 * np.log(-np.log(even))
    with_stragglers = largest.copy()
    with_stragglers[::10] = 0.9

    everyone = chance_limit(largest, ONE_POOL, 1.0)[0]
    some_slow = chance_limit(with_stragglers, ONE_POOL, 1.0)[0]
    quarter = chance_limit(np.where(np.arange(600) % 4 == 0, largest, 0.0), ONE_POOL, 1.0)[0]

    assert 0.30 < everyone < 0.45
    assert abs(some_slow - everyone) < 0.15
    assert quarter < everyone


def test_small_groups_and_strangers_have_no_limit_of_chance() -> None:
    limit = chance_limit(np.array([0.1, 0.2, 0.3, NAN]), groups(("a", "a", "a", "")), 1.0)

    assert np.isnan(limit).all()


def test_the_first_quarter_of_an_hour_is_measured_by_how_far_apart_all_are():
    """Who cannot be judged yet still shows how much ranks differ: without them a lead of a tenth had only the floor to pass."""
    leads = 0.025 * np.random.default_rng(1).standard_normal(60)
    leads[7] = 0.105
    names = tuple(f"g{k}" for k in range(leads.size))
    scales = Scales(
        (0.20, 0.12, 0.05, 0.04, 0.035, 0.03, 0.03),
        usual_max=0.06,
        prior=0.0,
        settled=24.0,
        tail_least=np.inf,
    )
    hits = []
    for _ in range(15):
        scales.push(names, leads)
        hits.append(bool(scales.beyond()[0].any()))
        scales.learn(np.zeros(leads.size, dtype=bool))

    assert not any(hits)
