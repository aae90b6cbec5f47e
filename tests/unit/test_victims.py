"""Which replica goes first when a pool shrinks."""

import math
from dataclasses import replace

import numpy as np

from daemon.fleet import Fleet
from daemon.model import Entity, Frame
from daemon.topology import Topology
from daemon.victims import leaving

GPUS_OF = {
    "a:1": ("n0/gpu0", "n0/gpu1"),
    "a:2": ("n0/gpu2", "n0/gpu3"),
    "b:1": ("n1/gpu0", "n1/gpu1"),
    "c:1": ("n2/gpu0", "n2/gpu1"),
}
NODE_OF = {"a:1": "n0", "a:2": "n0", "b:1": "n1", "c:1": "n2"}
TOPOLOGY = Topology(
    nodes=("n0", "n1", "n2"),
    gpus_on={n: tuple(f"{n}/gpu{g}" for g in range(4)) for n in ("n0", "n1", "n2")},
    engines_on={"n0": ("a:1", "a:2"), "n1": ("b:1",), "n2": ("c:1",)},
    gpus_of=GPUS_OF,
    engine_of={gpu: engine for engine, gpus in GPUS_OF.items() for gpu in gpus},
    pool_of=dict.fromkeys(GPUS_OF, "chat"),
    node_of_engine=NODE_OF,
)


def going(
    number: int = 1,
    *,
    running: dict[str, float] | None = None,
    fleet: Fleet | None = None,
    blamed: tuple[Entity, ...] = (),
    spot: tuple[str, ...] = (),
    room: int = 0,
):
    held = {"a:1": 5.0, "a:2": 5.0, "b:1": 5.0, "c:1": 5.0} | (running or {})
    engines = Frame(
        0.0, "engine", tuple(held), ("running",), np.array([[v] for v in held.values()]), np.zeros(4)
    )
    topology = replace(TOPOLOGY, place={n: {"capacity": "spot"} for n in spot})
    return list(leaving("chat", number, topology, fleet or Fleet(), engines, blamed, room))


def test_the_node_nearest_to_empty_is_emptied():
    assert set(going(2)) == {"b:1", "c:1"}


def test_among_equals_the_least_loaded_goes():
    assert going(running={"c:1": 2.0}) == ["c:1"]


def test_a_flagged_replica_goes_before_a_lonely_one():
    assert going(blamed=(Entity("gpu", "n0/gpu2"),)) == ["a:2"]
    assert going(fleet=Fleet(weights={"a:1": 0.5})) == ["a:1"]


def test_one_that_serves_nobody_goes_first_of_all():
    assert going(running={"a:1": math.nan}, blamed=(Entity("engine", "c:1"),)) == ["a:1"]


def test_what_stands_on_spot_nodes_came_last_and_goes_before_the_rest():
    assert set(going(2, spot=("n0",))) == {"a:1", "a:2"}
    assert going(blamed=(Entity("gpu", "n1/gpu0"),), spot=("n0",)) == ["b:1"]


def test_who_goes_for_another_pool_makes_room_on_one_node():
    """A replica of four: n1 and n2 have two free and two of the pool's, n0 would have to give both of its replicas."""
    taken = replace(TOPOLOGY, engine_of={g: e for e, gpus in GPUS_OF.items() for g in gpus})
    engines = Frame(
        0.0, "engine", tuple(GPUS_OF), ("running",), np.array([[9.0], [9.0], [5.0], [1.0]]), np.zeros(4)
    )

    def gone(number: int, room: int) -> list[str]:
        return list(leaving("chat", number, taken, Fleet(), engines, (), room))

    assert gone(1, 0) == ["c:1"]
    assert gone(1, 4) == ["b:1"]
    assert gone(2, 3) == ["b:1", "c:1"]


def test_room_that_no_node_could_have_changes_nothing():
    assert going(2, room=64) == going(2)
