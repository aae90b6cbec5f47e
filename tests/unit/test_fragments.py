"""Free GPUs in pieces: what fits, what would, and the one move that helps."""

from __future__ import annotations

from daemon.fleet import Fleet, Lease
from daemon.fragments import pieces, wishes
from daemon.policy import Policy, PoolPolicy
from daemon.topology import Topology

POLICY = Policy(pools=(PoolPolicy("code", gpus_per_replica=8), PoolPolicy("small", gpus_per_replica=2)))


def hall(replicas: dict[str, int], nodes: str = "abc", each: int = 8) -> Topology:
    """replicas : engine, as NODE:PORT -> its GPUs, of pool small; one replica of code elsewhere makes its size known."""
    gpus_on = {n: tuple(f"{n}/gpu{k}" for k in range(each)) for n in nodes}
    used = dict.fromkeys(nodes, 0)
    gpus_of = {}
    for engine, count in replicas.items():
        node = engine[0]
        gpus_of[engine] = gpus_on[node][used[node] : used[node] + count]
        used[node] += count
    return Topology(
        nodes=tuple(nodes),
        gpus_on=gpus_on,
        engines_on={n: tuple(e for e in replicas if e[0] == n) for n in nodes},
        gpus_of=gpus_of,
        engine_of={g: e for e, gpus in gpus_of.items() for g in gpus},
        node_of_engine={e: e[0] for e in replicas},
        pool_of={e: "small" if not e.endswith("9") else "code" for e in replicas},
    )


def test_the_smallest_move_that_makes_room_is_named() -> None:
    topology = hall({"a:1": 2, "b:1": 2, "b:2": 2, "c:9": 8})

    (worst, *_) = pieces(topology, Fleet(), POLICY)
    (wish,) = wishes(topology, Fleet(), POLICY)

    assert (worst.pool, worst.free, worst.fits, worst.could, worst.stranded) == ("code", 10, 0, 1, 10)
    assert worst.ratio == 0.8
    assert "moving a:1 (small) from a to b makes room for one" in wish.text


def test_what_lies_in_one_piece_is_no_fragment() -> None:
    assert wishes(hall({"a:1": 2, "a:2": 2, "c:9": 8}), Fleet(), POLICY) == ()


def test_where_no_single_move_helps_it_says_so() -> None:
    topology = hall({"a:1": 2, "a:2": 2, "b:1": 2, "b:2": 2, "c:9": 8})

    (wish,) = wishes(topology, Fleet(), POLICY)

    assert "no single move helps" in wish.text


def test_lent_gpus_are_not_free() -> None:
    topology = hall({"a:1": 2, "b:1": 2, "c:9": 8})

    assert pieces(topology, Fleet(leases={"b": Lease(0.0, 1e9, 6.0)}), POLICY)[0].free == 6


def test_a_pool_wider_than_a_node_is_left_out() -> None:
    wide = Policy(pools=(PoolPolicy("code", gpus_per_replica=16),))

    assert [p.pool for p in pieces(hall({"a:1": 2, "c:9": 8}), Fleet(), wide)] == ["small"]
