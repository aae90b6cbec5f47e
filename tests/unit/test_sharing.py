"""Who gets the GPUs when there are not enough: first what saves most, and nothing from who needs it."""

from dataclasses import replace

from daemon.policy import PoolKind, PoolPolicy
from daemon.sharing import share
from daemon.sizing import Need


def wants(
    name: str,
    priority: int,
    wanted: int | None,
    standing: int,
    size: int = 4,
    *,
    least: int | None = None,
    bare: int | None = None,
    late_per_s: tuple[float, ...] = (),
) -> tuple[PoolPolicy, Need, int, int]:
    floor = (wanted or 0) if least is None else least
    need = Need(name, wanted, least=floor, bare=floor if bare is None else bare, late_per_s=late_per_s)
    return PoolPolicy(name, priority=priority), need, size, standing


def test_with_enough_gpus_everybody_gets_what_is_wanted():
    assert share([wants("chat", 10, 6, 4), wants("code", 5, 3, 2)], 40.0) == {"chat": 6, "code": 3}


def test_the_important_pool_grows_first_and_nobody_is_cut_for_it():
    assert share([wants("code", 5, 4, 2), wants("chat", 10, 6, 4)], 28.0) == {"chat": 5, "code": 2}


def test_what_one_pool_gives_up_another_may_have():
    assert share([wants("chat", 10, 2, 4), wants("code", 5, 4, 2)], 24.0) == {"chat": 2, "code": 4}


def test_a_pool_of_unknown_need_keeps_its_gpus_to_itself():
    """It is granted nothing new, and its replicas are not given away either."""
    granted = share([wants("chat", 10, 6, 4), wants("code", 5, None, 2)], 24.0)

    assert "code" not in granted
    assert granted["chat"] * 4 + 2 * 4 <= 24


def test_among_equals_a_replica_goes_where_it_saves_most_late_requests():
    granted = share(
        [
            wants("a", 0, 6, 4, late_per_s=(0.5, 0.3, 0.2)),
            wants("b", 0, 6, 4, late_per_s=(3.0, 0.4, 0.3)),
        ],
        40.0,
    )

    assert granted == {"a": 5, "b": 5}


def test_a_pool_that_holds_more_than_it_needs_gives_it_up_when_another_is_short():
    granted = share([wants("chat", 10, 20, 20, least=12), wants("code", 5, 12, 10, size=8)], 160.0)

    assert granted == {"chat": 16, "code": 12}


def test_what_is_kept_for_what_may_come_goes_to_who_is_late_now():
    calm = wants("chat", 10, 20, 20, least=20, bare=10)

    late = share([calm, wants("code", 5, 12, 10, size=8, bare=12)], 160.0)
    in_time = share([calm, wants("code", 5, 12, 10, size=8, bare=9)], 160.0)

    assert late == {"chat": 16, "code": 12}
    assert in_time == {"chat": 20, "code": 10}


def test_nobody_gives_below_what_the_demand_of_now_needs():
    granted = share([wants("chat", 0, 10, 10, bare=10), wants("code", 10, 14, 10, bare=14)], 80.0)

    assert granted == {"chat": 10, "code": 10}


def test_nothing_is_given_up_that_helps_nobody():
    """Three GPUs less than a replica needs are three GPUs idle."""
    granted = share([wants("small", 0, 6, 6, size=1, least=4), wants("big", 0, 2, 1, size=8)], 14.0)

    assert granted == {"small": 6, "big": 1}


# -- kinds ---------------------------------------------------------------------------------------------------


def of_kind(
    kind: PoolKind, claim: tuple[PoolPolicy, Need, int, int], least: int = 1
) -> tuple[PoolPolicy, Need, int, int]:
    policy, *rest = claim
    return replace(policy, kind=kind, replicas_min=least), *rest


def test_pre_processing_gives_way_to_what_serves_when_that_is_late_and_keeps_its_least():
    chat = wants("chat", 0, 8, 4, bare=8)
    embed = of_kind(PoolKind.PREPROCESSING, wants("embed", 99, 6, 6, bare=6), least=3)

    assert share([chat, embed], 40.0) == {"chat": 7, "embed": 3}


def test_pre_processing_keeps_what_it_needs_while_what_serves_is_in_time():
    chat = wants("chat", 0, 8, 4, bare=4)
    embed = of_kind(PoolKind.PREPROCESSING, wants("embed", 99, 6, 6, bare=6), least=3)

    assert share([chat, embed], 40.0) == {"chat": 4, "embed": 6}


def test_training_gives_way_to_growth_alone():
    chat = wants("chat", 0, 8, 4, bare=4)
    tune = of_kind(PoolKind.TRAINING, wants("tune", 99, 6, 6, bare=6), least=0)

    assert share([chat, tune], 40.0) == {"chat": 8, "tune": 2}


def test_training_goes_before_pre_processing_whatever_their_priorities():
    chat = wants("chat", 0, 6, 4, bare=6)
    embed = of_kind(PoolKind.PREPROCESSING, wants("embed", 1, 4, 4, bare=4))
    tune = of_kind(PoolKind.TRAINING, wants("tune", 50, 4, 4, bare=4))

    assert share([chat, embed, tune], 48.0) == {"chat": 6, "embed": 4, "tune": 2}


def test_what_serves_is_never_cut_for_a_lower_kind():
    embed = of_kind(PoolKind.PREPROCESSING, wants("embed", 99, 8, 4, bare=8))
    chat = wants("chat", 0, 6, 6, bare=6)

    assert share([embed, chat], 40.0) == {"chat": 6, "embed": 4}


def test_free_gpus_go_to_the_higher_kind_first():
    embed = of_kind(PoolKind.PREPROCESSING, wants("embed", 99, 6, 4))

    assert share([embed, wants("chat", 0, 6, 4)], 40.0) == {"chat": 6, "embed": 4}
