"""Where replicas should rather stand, on clusters drawn by hand."""

from __future__ import annotations

import json

import pytest
from small_frames import frame, frames

from daemon.fleet import Fleet, Lease
from daemon.model import Entity, Frame, Frames
from daemon.placement import Wish, crossing_bytes_s, wishes
from daemon.policy import Policy
from daemon.topology import complete, picture


def cluster(
    engines: dict[str, str], leaves: dict[str, str], racks: dict[str, str] | None = None, gpus: int = 4
) -> Frames:
    """engines : name -> its GPUs as the target's label has them; all of pool chat. Every port sends 8 GB/s."""
    facts: dict[Entity, dict[str, str]] = {}
    for node, leaf in leaves.items():
        facts[Entity("node", node)] = {"leaf": leaf, "rack": (racks or {}).get(node, f"r-{node}")}
        for k in range(gpus):
            facts[Entity("gpu", f"{node}/gpu{k}")] = {"node": node}
    for engine, held in engines.items():
        facts[Entity("engine", engine)] = {"node": engine.split(":")[0], "gpus": held, "pool": "chat"}
    full = complete(facts, Policy())

    def of(kind: str, **signals: float) -> Frame:
        told = {e.name: known for e, known in full.items() if e.kind == kind}
        return frame(kind, 0.0, dict.fromkeys(told, signals), told)

    port = frame("port", 0.0, {f"{n}/mlx5_0": {"tx_bytes_s": 8e9} for n in leaves})
    return frames(0.0, of("node", load1=1.0), of("gpu", util_ratio=0.5), of("engine", running=3.0), port)


def found(given: Frames, fleet: Fleet | None = None) -> tuple[Wish, ...]:
    return wishes(given, picture(given), fleet or Fleet())


def test_a_replica_under_two_leaves_is_wished_under_the_one_with_room() -> None:
    given = cluster(
        {"a:8000": "a/gpu0,a/gpu1,c/gpu0,c/gpu1", "d:8000": "0,1,2,3"},
        {"a": "l0", "b": "l0", "c": "l1", "d": "l1"},
    )

    (wish,) = found(given)

    assert (wish.kind, wish.subject, wish.to) == ("cross_leaf", Entity("engine", "a:8000"), "l0")
    assert wish.bytes_s == pytest.approx(16e9)
    assert crossing_bytes_s((wish,)) == pytest.approx(16e9)
    assert "kubectl label node a b network.topology.nvidia.com/leaf=l0" in wish.kubernetes
    patch = json.loads(wish.kubernetes.rpartition("patch: ")[2])
    assert "podAffinity" in patch["spec"]["template"]["spec"]["affinity"]


def test_traffic_of_a_node_is_shared_by_what_its_gpus_carry() -> None:
    engines = {"a:8000": "a/gpu0,a/gpu1,c/gpu0,c/gpu1", "a:8001": "a/gpu2,a/gpu3"}

    wish = found(cluster(engines, {"a": "l0", "b": "l0", "c": "l1"}))[0]

    # Half of a's 8 GB/s, all of c's.
    assert wish.bytes_s == pytest.approx(12e9)


def test_without_room_it_says_so_and_names_no_place() -> None:
    engines = {"a:8000": "a/gpu0,a/gpu1,c/gpu0,c/gpu1", "a:8001": "a/gpu2,a/gpu3", "c:8001": "c/gpu2,c/gpu3"}

    (wish,) = [w for w in found(cluster(engines, {"a": "l0", "c": "l1"})) if w.kind == "cross_leaf"]

    assert wish.to == ""
    assert "no leaf has room" in wish.text


def test_gpus_that_are_lent_or_isolated_are_no_room() -> None:
    given = cluster({"a:8000": "a/gpu0,a/gpu1,c/gpu0,c/gpu1"}, {"a": "l0", "b": "l0", "c": "l1"}, gpus=2)
    lent = Fleet(leases={"b": Lease(0.0, 1e9, 2.0)})

    assert found(given)[0].to == "l0"
    assert found(given, lent)[0].to == ""


def test_stages_that_go_to_and_fro_are_a_detour() -> None:
    engines = {"a:8000": "a/gpu0,a/gpu1,c/gpu0,c/gpu1,b/gpu0,b/gpu1,d/gpu0,d/gpu1"}
    given = cluster(engines, {"a": "l0", "b": "l0", "c": "l1", "d": "l1"}, gpus=2)

    (wish,) = [w for w in found(given) if w.kind != "one_rack"]

    assert wish.kind == "detour"
    assert "l0 > l1 > l0 > l1: 3 ways across switches where 1 would do" in wish.text


def test_a_replica_on_two_nodes_of_one_leaf_is_well_placed() -> None:
    given = cluster({"a:8000": "a/gpu0,b/gpu0"}, {"a": "l0", "b": "l0", "c": "l1"})

    assert found(given) == ()
    assert crossing_bytes_s(()) == 0.0


def test_unknown_leaves_are_no_wish() -> None:
    given = cluster({"a:8000": "a/gpu0,c/gpu0"}, {"a": "l0", "b": "l0", "c": ""})

    assert found(given) == ()


def test_a_pool_in_one_rack_is_wished_apart_where_there_is_room() -> None:
    engines = {"a:8000": "0,1", "b:8000": "0,1"}
    racks = {"a": "r1", "b": "r1", "c": "r2"}

    (wish,) = found(cluster(engines, dict.fromkeys("abc", "l0"), racks))

    assert (wish.kind, wish.pool, wish.to) == ("one_rack", "chat", "r2")
    assert "podAntiAffinity" in wish.kubernetes


def test_both_nodes_of_a_wide_replica_touch_it() -> None:
    topology = picture(cluster({"a:8000": "a/gpu0,c/gpu0"}, {"a": "l0", "c": "l1"}))

    assert topology.engines_touched(Entity("node", "c")) == ("a:8000",)
    assert topology.engines_touched(Entity("gpu", "c/gpu0")) == ("a:8000",)
