"""The manifest that is shipped, and the least rights that are printed."""

from pathlib import Path

import pytest
import yaml

from actions.backends.kubernetes_rights import Right, manifest, rights_of
from daemon.model import Verb

SHIPPED = Path(__file__).parents[2] / "deploy" / "kubernetes" / "rbac.yaml"


def all_rights(verbs: frozenset[Verb]) -> list[Right]:
    return rights_of(
        verbs,
        space="inference",
        workloads=[("inference", kind) for kind in ("Deployment", "StatefulSet", "LeaderWorkerSet")],
        has_label=True,
        has_routes=True,
        offline_space="batch",
        queues=("ClusterQueue", "Queue"),
        lease_space="tidewarden",
        evicts=True,
        has_events=True,
    )


def test_the_shipped_manifest_is_the_one_the_backend_asks_for() -> None:
    documents = list(yaml.safe_load_all(SHIPPED.read_text()))

    assert [d["kind"] for d in documents[:2]] == ["Namespace", "ServiceAccount"]
    assert documents[2:] == list(yaml.safe_load_all(manifest(all_rights(frozenset(Verb)))))


@pytest.mark.parametrize("verb", [Verb.SCALE, Verb.REROUTE])
def test_who_never_isolates_gets_no_right_to_change_nodes(verb: Verb) -> None:
    rights = all_rights(frozenset({verb}))

    assert not [r for r in rights if r.resource == "nodes" and "patch" in r.verbs]
    assert not [r for r in rights if r.resource == "pods/eviction"]


def test_nobody_gets_to_read_secrets_or_to_delete() -> None:
    rights = all_rights(frozenset(Verb))

    assert not [r for r in rights if "secrets" in r.resource or "delete" in r.verbs or "*" in r.verbs]
