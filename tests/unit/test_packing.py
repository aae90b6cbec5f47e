"""Replicas of one node need their GPUs together: what is free in pieces is no room."""

from __future__ import annotations

import pytest

from daemon.packing import Growth, packed


def test_pieces_are_no_room() -> None:
    assert packed([Growth("chat", 4, 5, 0, 6)], {"n0": 2, "n1": 2}, 8) == {"chat": 5}


def test_what_fits_is_left_as_granted_and_goes_where_it_fills_best() -> None:
    both = [Growth("chat", 4, 5, 0, 6), Growth("code", 8, 1, 0, 2)]

    assert packed(both, {"n0": 8, "n1": 4}, 8) == {}


def test_what_was_ordered_takes_its_place_before_anything_new() -> None:
    assert packed([Growth("small", 2, 3, 0, 4), Growth("chat", 4, 5, 1, 6)], {"n0": 4}, 8) == {"small": 3}


def test_some_of_many_fit() -> None:
    assert packed([Growth("chat", 4, 0, 0, 5)], {"n0": 8, "n1": 3}, 8) == {"chat": 2}


@pytest.mark.parametrize("size", [0, 16])
def test_of_unknown_size_or_of_several_nodes_nothing_is_said(size: int) -> None:
    assert packed([Growth("big", size, 0, 0, 2)], {"n0": 8}, 8) == {}


def test_without_any_node_nothing_is_said() -> None:
    assert packed([Growth("chat", 4, 0, 0, 2)], {}, 0) == {}
