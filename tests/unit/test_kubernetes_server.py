"""What the protocol server of the Kubernetes tests promises of the API it stands for."""

import pytest
from kubernetes_server.store import KINDS, Refused, Store, json_patch, merge, strategic

NODES = next(k for k in KINDS if k.plural == "nodes")


def test_a_merge_patch_takes_away_by_null_and_replaces_lists() -> None:
    old = {"spec": {"taints": [{"key": "a"}], "unschedulable": True}}

    assert merge(old, {"spec": {"unschedulable": None, "taints": [{"key": "b"}]}}) == {
        "spec": {"taints": [{"key": "b"}]}
    }


def test_a_strategic_patch_merges_lists_by_their_key() -> None:
    old = {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "b"}]}}
    patch = {"spec": {"taints": [{"key": "b", "$patch": "delete"}, {"key": "c"}]}}

    assert strategic(old, patch) == {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "c"}]}}


def test_a_json_patch_tests_adds_and_removes_or_changes_nothing() -> None:
    old = {"metadata": {"annotations": {"a/b": "1"}}, "list": [1]}
    add = [
        {"op": "test", "path": "/metadata/annotations/a~1b", "value": "1"},
        {"op": "add", "path": "/list/-", "value": 2},
    ]

    assert json_patch(old, [*add, {"op": "remove", "path": "/metadata/annotations/a~1b"}]) == {
        "metadata": {"annotations": {}},
        "list": [1, 2],
    }
    with pytest.raises(Refused, match="test /list/0 failed"):
        json_patch(old, [{"op": "test", "path": "/list/0", "value": 7}])
    assert old["list"] == [1]


def test_versions_grow_with_changes_only_and_an_old_one_is_refused() -> None:
    store = Store()
    first = store.create(NODES, "", {"metadata": {"name": "n1"}, "spec": {}})["metadata"]["resourceVersion"]

    same = store.update(NODES, "", "n1", lambda old: old, "kim")
    changed = store.update(NODES, "", "n1", lambda old: merge(old, {"spec": {"unschedulable": True}}), "kim")
    with pytest.raises(Refused, match="the object has been modified") as refused:
        store.update(
            NODES,
            "",
            "n1",
            lambda old: merge(old, {"metadata": {"resourceVersion": first}, "spec": {"x": 1}}),
            "lee",
        )

    assert same["metadata"]["resourceVersion"] == first
    assert int(changed["metadata"]["resourceVersion"]) > int(first)
    assert refused.value.code == 409


def test_a_field_belongs_to_who_changed_it_last() -> None:
    store = Store()
    store.create(NODES, "", {"metadata": {"name": "n1"}, "spec": {}})

    for who, value in (("kim", True), ("lee", False), ("kim", False)):
        store.update(NODES, "", "n1", lambda old, v=value: merge(old, {"spec": {"unschedulable": v}}), who)  # type: ignore[misc]

    owners = [
        m["manager"]
        for m in store.get(NODES, "", "n1")["metadata"]["managedFields"]
        if "f:unschedulable" in m["fieldsV1"].get("f:spec", {})
    ]
    assert owners == ["lee"]  # who writes what stands there already changes nothing
