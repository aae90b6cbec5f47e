"""What makes an Alertmanager hold the silences that are held here, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from actions.silencing import body_of, mark_in, moves, regex_of
from daemon.alerts import Silence

NOW = 1_700_000_000.0
SWAP = Silence("a1", {"node": "n0?", "kind": "gpu_lost"}, NOW - 60.0, NOW + 3600.0, "kim", "swap")


def entry(silence: Silence, cluster: str = "prod", state: str = "active") -> dict[str, object]:
    """A silence as an Alertmanager lists it."""
    return {"id": f"am-{silence.id}", "status": {"state": state}, **body_of(cluster, silence)}


def test_a_silence_is_made_once_and_ended_when_it_is_over_here() -> None:
    first = moves("prod", [SWAP], [], NOW)
    then = moves("prod", [SWAP], [entry(SWAP)], NOW)
    over = moves("prod", [replace(SWAP, end=NOW)], [entry(SWAP)], NOW)

    assert ([b["createdBy"] for b in first.create], first.expire) == (["kim"], [])
    assert (then.create, then.expire) == ([], [])
    assert (over.create, over.expire) == ([], ["am-a1"])


def test_one_that_a_person_ended_there_is_not_made_again() -> None:
    assert moves("prod", [SWAP], [entry(SWAP, state="expired")], NOW).create == []


def test_silences_of_people_and_of_other_clusters_are_left_alone() -> None:
    others = [
        entry(SWAP, "dev"),
        {"id": "x", "status": {"state": "active"}, "comment": "by hand", "matchers": []},
    ]

    found = moves("prod", [], others, NOW)

    assert (found.create, found.expire) == ([], [])


def test_a_window_that_is_moved_is_ended_and_made_anew() -> None:
    window = Silence("window 0", {"rack": "r1"}, NOW, NOW + 3600.0, "maintenance", "swap")
    moved = replace(window, end=NOW + 7200.0)

    found = moves("prod", [moved], [entry(window)], NOW)

    assert (len(found.create), found.expire) == (1, ["am-window 0"])


def test_it_can_only_fit_alerts_of_this_clusters_daemon() -> None:
    everything = body_of("prod", replace(SWAP, match={}))

    assert {m["name"]: m["value"] for m in everything["matchers"]} == {"cluster": "prod", "family": ".+"}
    wide = body_of("prod", replace(SWAP, match={"cluster": "*"}))
    assert {"name": "cluster", "value": "prod", "isRegex": False, "isEqual": True} in wide["matchers"]


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("gpu_*", "gpu_lost", "xgpu_lost"),
        ("n0?", "n03", "n033"),
        ("a.b", "a.b", "axb"),
        ("n[0-3]", "n2", "n4"),
        ("n[!0-3]", "n4", "n2"),
        ("x(y)+[", "x(y)+[", "xy"),
    ],
)
def test_a_pattern_fits_there_what_it_fits_here(pattern: str, fits: str, fits_not: str) -> None:
    assert re.fullmatch(regex_of(pattern), fits)
    assert not re.fullmatch(regex_of(pattern), fits_not)


def test_a_comment_that_looks_like_ours_is_no_mark() -> None:
    assert mark_in("prod", "see [tidewarden prod/0123456789ab] for why") == ""
