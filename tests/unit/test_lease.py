"""Tidal leases: who may be lent, until when, and when it must come back."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_frames import frame, frames

from daemon.fleet import Fleet, Lease, Mark
from daemon.jobs import Job, Jobs
from daemon.lease import Room, due, finer, held_bytes, loans, recall_lead_s, until_needed
from daemon.model import Entity, Outcome, Result, Step, Verb
from daemon.policy import Budgets, Policy
from daemon.topology import Topology

NODES = tuple(f"n{k}" for k in range(6))
TOPOLOGY = Topology(nodes=NODES, gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(8)) for n in NODES})
POLICY = Policy(lease_max_s=8 * 3600.0, lease_min_s=3600.0, recall_lead_s=900.0)
IDLE = dict.fromkeys(NODES[2:], True)
HOUR = 3600.0
ROOMY = Room(held=16.0, free=16.0, short=0.0)


def needing(*gpus: float) -> np.ndarray:
    return np.array(gpus)


def lend(
    needed: np.ndarray,
    *,
    at: float = 0.0,
    fleet: Fleet | None = None,
    policy: Policy = POLICY,
    idle: dict[str, bool] | None = None,
):
    return loans(at, TOPOLOGY, fleet or Fleet(), needed, HOUR, policy, IDLE if idle is None else idle, 16.0)


def test_idle_nodes_are_lent_and_one_of_them_stays():
    found = lend(needing(*[8.0] * 24))

    assert [loan.node for loan in found] == ["n2", "n3", "n4"]
    assert {loan.gpus for loan in found} == {8}


def test_a_single_idle_node_is_the_spare():
    assert lend(needing(*[8.0] * 24), idle={"n5": True}) == []


def test_a_busy_or_unknown_node_is_never_lent():
    assert lend(needing(*[8.0] * 24), idle={}) == []
    assert lend(needing(*[8.0] * 24), idle=dict.fromkeys(NODES, False)) == []


def test_an_unknown_future_lends_nothing():
    assert lend(np.empty(0)) == []
    assert lend(needing(8.0, np.nan, 8.0)) == []


def test_a_lease_ends_a_recall_lead_before_the_need():
    found = lend(needing(*[8.0] * 4, *[48.0] * 4))

    assert found[0].until == 4 * HOUR - POLICY.recall_lead_s


def test_each_further_node_leaves_less_and_ends_sooner():
    found = lend(needing(8.0, 8.0, 8.0, 20.0, 28.0, 36.0))

    assert [loan.until for loan in found] == sorted((loan.until for loan in found), reverse=True)
    assert found[0].until > found[-1].until


def test_a_lease_too_short_to_be_of_use_is_not_given():
    assert lend(needing(8.0, 48.0, 48.0)) == []


def test_no_lease_outlasts_what_the_operator_allows():
    assert {loan.until for loan in lend(needing(*[8.0] * 24))} == {POLICY.lease_max_s}


def test_no_lease_outlasts_the_forecast():
    assert (
        until_needed(needing(8.0, 8.0, 8.0), HOUR, 0.0, 40.0, POLICY, POLICY.recall_lead_s)
        == 3 * HOUR - POLICY.recall_lead_s
    )


def test_what_is_lent_counts_against_the_budget():
    policy = replace(POLICY, budgets=Budgets(lent_share_max=0.34))
    fleet = Fleet(leases={"n2": Lease(0.0, 9 * HOUR, 8.0)})

    assert [loan.node for loan in lend(needing(*[8.0] * 24), fleet=fleet, policy=policy)] == ["n3"]


def test_an_isolated_node_is_neither_lent_nor_counted():
    fleet = Fleet(isolated={Entity("gpu", "n2/gpu3"): Mark(0.0, "i1")})

    assert "n2" not in [loan.node for loan in lend(needing(*[8.0] * 24), fleet=fleet)]


def test_a_lease_that_begins_within_the_hour_still_ends_before_the_need():
    """Steps of a forecast are full hours: at 0:50 the step after this one begins in ten minutes, not in an hour."""
    at, need_begins = 50 * 60.0, 3 * HOUR

    found = lend(needing(8.0, 8.0, 8.0, 48.0, 48.0), at=at)

    assert found[0].until <= need_begins - POLICY.recall_lead_s


# -- coming back ---------------------------------------------------------------------------------------------


def test_a_lease_is_recalled_ahead_of_its_end():
    fleet = Fleet(leases={"n2": Lease(0.0, 10_000.0, 8.0), "n3": Lease(0.0, 90_000.0, 8.0)})

    early, late = due(9_800.0, fleet, ROOMY), due(9_900.0, fleet, ROOMY)

    assert early == {}
    assert list(late) == ["n2"]
    assert "100 s" in late["n2"]


def test_a_pool_in_need_has_back_what_it_lacks_and_the_reserve_those_that_end_first_first():
    fleet = Fleet(leases={f"n{k}": Lease(0.0, 90_000.0 - k, 8.0) for k in range(2, 6)})

    found = due(100.0, fleet, Room(held=16.0, free=0.0, short=4.0))

    assert list(found) == ["n5", "n4"]
    assert set(found.values()) == {"a pool needs more GPUs than are free"}


def test_what_is_being_used_up_of_the_reserve_is_filled_before_anybody_waits():
    fleet = Fleet(leases={n: Lease(0.0, 90_000.0, 8.0) for n in ("n2", "n3")})

    found = due(100.0, fleet, Room(held=16.0, free=4.0, short=0.0))

    assert list(found) == ["n2"]
    assert found["n2"] == "only 4 GPUs are left idle"


def test_what_is_on_its_way_back_is_asked_for_once():
    """It stays a lease until it is seen free: the same one is named again, and no other with it."""
    fleet = Fleet(leases={n: Lease(0.0, 90_000.0, 8.0) for n in ("n2", "n3", "n4")})
    room = Room(held=16.0, free=4.0, short=0.0)

    assert due(100.0, fleet, room) == due(115.0, fleet, room)


def test_a_lease_ends_by_itself_and_its_gpu_hours_are_counted_once():
    fleet = Fleet(leases={"n2": Lease(0.0, 3600.0, 8.0)})

    assert fleet.expire(3599.0) == []
    assert fleet.expire(3600.0) == []
    assert fleet.expire(4000.0) == ["n2"]
    assert fleet.expire(5000.0) == []
    assert fleet.lent_gpu_s == 8 * 3600.0


def test_a_lease_that_ended_while_nobody_was_there_is_recalled_once_more():
    fleet = Fleet(leases={"n2": Lease(0.0, 3600.0, 8.0)})
    room = Room(held=0.0, free=40.0, short=0.0)

    after_a_night = fleet.expire(40_000.0)
    found = due(40_000.0, fleet, room)

    assert after_a_night == []
    assert found == {"n2": "the lease is over; what is left of it is cleared away"}
    assert fleet.expire(40_300.0) == ["n2"]
    assert due(40_300.0, fleet, room) == {}


def test_the_lead_of_a_recall_is_the_operators_until_enough_were_measured():
    some, many = Fleet(recall_s=[100.0] * 5), Fleet(recall_s=[100.0] * 90 + [500.0] * 10)

    assert recall_lead_s(some, POLICY) == POLICY.recall_lead_s
    assert 500.0 < recall_lead_s(many, POLICY) <= 600.0


def test_a_measured_recall_is_remembered():
    fleet = Fleet(leases={"n2": Lease(0.0, 8 * HOUR, 8.0)})
    step = Step("s1", Verb.RECALL, Entity("node", "n2"), 1.0, "the lease ends")

    fleet.absorb(Outcome(step, Result.DONE, took_s=240.0), HOUR)

    assert fleet.recall_s == [240.0]
    assert fleet.lent_gpu_s == 8 * HOUR


def test_hours_become_a_path_between_their_middles():
    path, part_s = finer(needing(8.0, 16.0, 8.0), HOUR, 1800.0)

    assert part_s == HOUR / 4
    assert path[0] == 9.0  # seven and a half minutes after the middle of the first hour
    assert path.max() < 16.0
    assert path.size == 10


@pytest.mark.parametrize(("held", "kept"), [(8.0, 1), (100.0, 3), (300.0, 9)])
def test_the_reserve_is_a_share_of_what_pools_hold(held: float, kept: int):
    """A burst is a share of what is served: at night, when little is, more can go."""
    nodes = tuple(f"n{k:02d}" for k in range(50))
    topology = Topology(nodes=nodes, gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(8)) for n in nodes})
    policy = replace(POLICY, budgets=Budgets(lent_share_max=1.0))
    busy = math.ceil(held / 8)
    idle = {n: k >= busy for k, n in enumerate(nodes)}

    found = loans(0.0, topology, Fleet(), needing(*[held] * 24), HOUR, policy, idle, held)

    assert len(found) == 50 - busy - kept


def test_a_reserve_that_was_right_for_the_night_is_filled_up_as_pools_grow():
    fleet = lent_until(**{f"n{k}": 90_000.0 for k in range(6)})

    assert due(100.0, fleet, Room(held=30.0, free=8.0, short=0.0)) == {}
    assert len(due(100.0, fleet, Room(held=130.0, free=8.0, short=0.0))) == 3


def test_of_two_leases_the_one_whose_job_was_just_saved_comes_back() -> None:
    fleet = lent_until(n2=9_000.0, n3=20_000.0)
    jobs = Jobs(100.0, (running("a", "n2", saved=-3_500.0), running("b", "n3", saved=40.0)), True)

    found = due(100.0, fleet, Room(held=16.0, free=0.0, short=4.0), jobs)

    assert list(found) == ["n3", "n2"]
    assert list(due(100.0, fleet, Room(held=16.0, free=4.0, short=0.0), jobs)) == ["n3"]
    assert found["n3"].endswith("loses 0.1 GPU-hours of b (saved 1 min ago)")


def test_a_lease_whose_recall_has_begun_stays_chosen_whatever_others_save_meanwhile() -> None:
    fleet = lent_until(n2=9_000.0, n3=20_000.0)
    fleet.leases["n3"].recalled = 90.0
    jobs = Jobs(100.0, (running("a", "n2", saved=99.0), running("b", "n3", saved=40.0)), True)

    assert list(due(100.0, fleet, Room(held=16.0, free=4.0, short=0.0), jobs)) == ["n3"]


def test_what_ends_by_itself_is_recalled_before_anything_is_chosen() -> None:
    fleet = lent_until(n2=150.0, n3=20_000.0)
    jobs = Jobs(100.0, (running("a", "n2", saved=-3_500.0), running("b", "n3", saved=99.0)), True)

    assert list(due(100.0, fleet, Room(held=16.0, free=4.0, short=0.0), jobs)) == ["n2"]


def lent_until(**until: float) -> Fleet:
    return Fleet(leases={node: Lease(0.0, end, 8.0) for node, end in until.items()})


def running(name: str, node: str, saved: float) -> Job:
    return Job(name, "", "", "", (node,), 8.0, -9_000.0, saved, "comment", math.nan, math.nan)


def test_memory_counts_where_no_engine_has_the_gpu_and_unknown_is_not_free():
    topology = Topology(gpus_on={"n1": ("n1/gpu0", "n1/gpu1")}, engine_of={"n1/gpu1": "e1"})
    both = frames(
        0.0, frame("gpu", 0.0, {"n1/gpu0": {"hbm_used_bytes": 5e9}, "n1/gpu1": {"hbm_used_bytes": 7e10}})
    )
    none = frames(0.0, frame("gpu", 0.0, {"n1/gpu1": {"hbm_used_bytes": 7e10}}))

    assert held_bytes(both, topology, "n1") == 5e9
    assert math.isnan(held_bytes(none, topology, "n1"))
    assert math.isnan(held_bytes(both, topology, "n2"))
