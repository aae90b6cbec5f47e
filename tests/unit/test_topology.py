"""Who sits where, from nothing but facts."""

import pytest
from small_frames import frame, frames

from daemon.model import Entity
from daemon.policy import Policy, PoolPolicy
from daemon.topology import complete, picture, pool_of_engine

ENGINE, GPU0, GPU5 = Entity("engine", "n1:8000"), Entity("gpu", "n1/gpu0"), Entity("gpu", "n1/gpu5")
NODE, PORT = Entity("node", "n1"), Entity("port", "n1/mlx5_0")


def test_gpus_find_their_engine_by_node_and_number():
    full = complete(
        {
            ENGINE: {"model": "llama", "node": "n1", "gpus": "0, 1"},
            GPU0: {"sku": "H100"},
            GPU5: {"sku": "H100"},
        },
        Policy(),
    )

    assert (full[GPU0]["engine"], full[GPU0]["pool"], full[GPU0]["peer"]) == (
        "n1:8000",
        "llama",
        "llama|H100",
    )
    assert full[ENGINE]["peer"] == "llama||llama|H100"
    assert "engine" not in full[GPU5]
    assert full[GPU5]["peer"] == "|H100"


def test_gpus_listed_stage_by_stage_get_their_stage_from_how_many_there_are():
    gpus = [Entity("gpu", f"n{k // 2}/gpu{k % 2}") for k in range(4)]
    listed = ",".join(g.name for g in gpus)
    facts = {ENGINE: {"model": "llama", "gpus": listed, "pp": "2"}} | {g: {} for g in gpus}
    odd = {ENGINE: {"model": "llama", "gpus": listed, "pp": "3"}} | {g: {} for g in gpus}

    assert [complete(facts, Policy())[g].get("stage") for g in gpus] == ["0", "0", "1", "1"]
    assert [complete(odd, Policy())[g].get("stage") for g in gpus] == [None] * 4


def test_gpus_find_their_engine_by_the_pod_both_name():
    full = complete({ENGINE: {"model": "llama", "pod": "llama-0"}, GPU5: {"pod": "llama-0"}}, Policy())

    assert full[GPU5]["engine"] == "n1:8000"


def test_places_are_inherited_from_the_node_and_never_overwritten():
    facts = {NODE: {"rack": "r7", "leaf": "l1"}, GPU0: {}, PORT: {"leaf": "l9"}, ENGINE: {"node": "n1"}}

    full = complete(facts, Policy())

    assert (full[GPU0]["rack"], full[GPU0]["leaf"]) == ("r7", "l1")
    assert (full[PORT]["rack"], full[PORT]["leaf"]) == ("r7", "l9")
    assert full[ENGINE]["rack"] == "r7"


def test_facts_given_are_not_changed_in_place():
    given = {GPU0: {"sku": "H100"}}

    complete(given, Policy())

    assert given == {GPU0: {"sku": "H100"}}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"model": "llama", "pool": "blue"}, "chat"),  # the operator's word comes first
        ({"model": "qwen", "pool": "blue"}, "blue"),
        ({"model": "qwen"}, "qwen"),
        ({"model": "qwen", "role": "mixed"}, "qwen"),
        ({"model": "qwen", "role": "prefill"}, "qwen:prefill"),
        ({}, ""),
    ],
)
def test_an_engine_belongs_to_the_pool_that_matches_else_to_its_model(facts: dict[str, str], expected: str):
    assert pool_of_engine(facts, [PoolPolicy("chat", match={"model": "llama"})]) == expected


def two_nodes():
    gpus = [f"n{n}/gpu{k}" for n in (1, 2) for k in range(4)]
    owner = {g: f"{g.split('/')[0]}:800{int(g[-1]) // 2}" for g in gpus}
    engines = sorted(set(owner.values()))
    return picture(
        frames(
            0.0,
            frame("gpu", 0.0, {g: {} for g in gpus}, {g: {"engine": owner[g]} for g in gpus}),
            frame(
                "engine",
                0.0,
                {e: {} for e in engines},
                {e: {"node": e.split(":")[0], "pool": "chat"} for e in engines},
            ),
            frame("node", 0.0, {"n1": {}, "n2": {}}, {n: {"rack": "r0", "leaf": "l0"} for n in ("n1", "n2")}),
            frame("target", 0.0, {"n1:9400": {}}, {"n1:9400": {"node": "n1"}}),
        )
    )


def test_the_picture_knows_who_suffers_from_whom():
    topology = two_nodes()

    assert topology.engines_touched(Entity("gpu", "n1/gpu3")) == ("n1:8001",)
    assert topology.engines_touched(Entity("node", "n2")) == ("n2:8000", "n2:8001")
    assert topology.engines_touched(Entity("port", "n2/mlx5_0")) == ("n2:8000", "n2:8001")
    assert len(topology.engines_touched(Entity("rack", "r0"))) == 4
    assert topology.engines_touched(Entity("gpu", "n9/gpu0")) == ()


def test_the_scopes_of_a_gpu_are_all_that_contain_it():
    assert two_nodes().scopes(Entity("gpu", "n1/gpu0")) == {
        Entity("gpu", "n1/gpu0"),
        Entity("node", "n1"),
        Entity("rack", "r0"),
        Entity("leaf", "l0"),
        Entity("pool", "chat"),
    }


def test_the_picture_counts_gpus_and_sizes_of_replicas():
    topology = two_nodes()

    assert topology.gpu_count == 8
    assert topology.gpus_per_replica("chat") == 2
    assert topology.gpus_per_replica("nobody") == 0
    assert topology.node_of(Entity("target", "n1:9400")) == "n1"
    assert topology.node_of(Entity("pool", "chat")) == ""


def test_an_engine_whose_gpus_are_unknown_still_sits_on_its_node():
    engine = frame("engine", 0.0, {"n3:8000": {}}, {"n3:8000": {"node": "n3", "pool": "chat"}})

    topology = picture(frames(0.0, engine))

    assert topology.nodes == ("n3",)
    assert topology.engines_touched(Entity("node", "n3")) == ("n3:8000",)
    assert topology.gpus_per_replica("chat") == 0


def test_nothing_scraped_is_an_empty_picture():
    topology = picture(frames(0.0))

    assert (topology.nodes, topology.gpu_count, topology.pools()) == ((), 0, ())


def test_a_replica_has_the_gpus_that_are_seen_else_those_it_was_started_with():
    engines = {"e0": {"running": 1.0}, "e1": {"running": 1.0}}
    told = {name: {"pool": "chat", "gpu_count": "4"} for name in engines}
    used = {"n1/gpu0": {"engine": "e0"}, "n1/gpu1": {"engine": "e0"}}

    unseen = picture(frames(0.0, frame("engine", 0.0, engines, told)))
    seen = picture(
        frames(
            0.0,
            frame("engine", 0.0, {"e0": engines["e0"]}, {"e0": told["e0"]}),
            frame("gpu", 0.0, {name: {"power_w": 300.0} for name in used}, used),
        )
    )

    assert unseen.gpus_per_replica("chat") == 4
    assert seen.gpus_per_replica("chat") == 2
