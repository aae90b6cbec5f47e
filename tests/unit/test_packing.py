"""Replicas of one node need their GPUs together: what is free in pieces is no room."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from daemon.fleet import Fleet, Lease
from daemon.packing import Growth, packed
from daemon.topology import Topology


def cluster(held: Mapping[str, Mapping[str, int]], width: int = 8) -> Topology:
    """held : node -> engine -> GPUs of it; the pool is the engine's name up to the dash."""
    gpus_on = {n: tuple(f"{n}/gpu{k}" for k in range(width)) for n in held}
    gpus_of, engine_of = {}, {}
    for node, engines in held.items():
        rest = list(gpus_on[node])
        for engine, count in engines.items():
            gpus_of[engine], rest = tuple(rest[:count]), rest[count:]
            engine_of.update(dict.fromkeys(gpus_of[engine], engine))
    return Topology(
        nodes=tuple(held),
        gpus_on=gpus_on,
        engines_on={n: tuple(engines) for n, engines in held.items()},
        gpus_of=gpus_of,
        engine_of=engine_of,
        pool_of={e: e.partition("-")[0] for e in gpus_of},
    )


PIECES = cluster({"n0": {"small-0": 6}, "n1": {"small-1": 6}})
WHOLE = cluster({"n0": {}, "n1": {"small-1": 4}})


def test_pieces_are_no_room() -> None:
    assert packed([Growth("chat", 4, 5, 5, 6)], PIECES, Fleet()) == {"chat": 5}


def test_what_fits_is_left_as_granted_and_goes_where_it_fills_best() -> None:
    assert packed([Growth("chat", 4, 5, 5, 6), Growth("code", 8, 1, 1, 2)], WHOLE, Fleet()) == {}


def test_some_of_many_fit() -> None:
    assert packed([Growth("chat", 4, 0, 0, 5)], WHOLE, Fleet()) == {"chat": 3}


def test_what_was_ordered_takes_its_place_before_anything_new() -> None:
    both = [Growth("code", 8, 1, 1, 2), Growth("chat", 4, 0, 2, 2)]

    assert packed(both, WHOLE, Fleet()) == {"code": 1}


@pytest.mark.parametrize(("gone", "cut"), [({"shut": {"n0"}}, 1), ({"lent": "n0"}, 1), ({}, 3)])
def test_a_node_that_may_take_nothing_is_no_room(gone: Mapping[str, object], cut: int) -> None:
    fleet = Fleet()
    if "lent" in gone:
        fleet.leases["n0"] = Lease("n0", 8, 1e9)

    assert packed([Growth("chat", 4, 0, 0, 9)], WHOLE, fleet, gone.get("shut", ())) == {"chat": cut}  # type: ignore[arg-type]


def test_what_another_pool_gives_up_is_room_only_where_it_is_enough_together() -> None:
    """Two of small on each node: two of them going may free four GPUs beside the two that are free, never eight."""
    shared = cluster({n: {f"big-{n}": 2, f"small-{n}a": 2, f"small-{n}b": 2} for n in ("n0", "n1")})
    gives = Growth("small", 2, 4, 4, 2)

    assert packed([Growth("chat", 4, 0, 0, 1), gives], shared, Fleet()) == {}
    assert packed([Growth("code", 8, 0, 0, 1), gives], shared, Fleet()) == {"code": 0}


@pytest.mark.parametrize("size", [0, 16])
def test_of_unknown_size_or_of_several_nodes_nothing_is_said(size: int) -> None:
    assert packed([Growth("big", size, 0, 0, 2)], PIECES, Fleet()) == {}


def test_without_any_node_nothing_is_said() -> None:
    assert packed([Growth("chat", 4, 0, 0, 2)], Topology(), Fleet()) == {}
