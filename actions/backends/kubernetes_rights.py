"""The least a role must allow for what is configured, as a manifest and as questions to the API server."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from daemon.model import Verb

WORKLOADS = {
    "Deployment": ("apps", "deployments"),
    "StatefulSet": ("apps", "statefulsets"),
    "LeaderWorkerSet": ("leaderworkerset.x-k8s.io", "leaderworkersets"),
}


class Right(NamedTuple):
    """space : namespace, "" = the whole cluster. resource : with its subresource after a slash."""

    space: str
    group: str
    resource: str
    verbs: tuple[str, ...]


def rights_of(
    verbs: Collection[Verb],
    *,
    space: str,
    workloads: Iterable[tuple[str, str]],
    has_label: bool,
    has_routes: bool,
    offline_space: str,
    queues: Collection[str],
    lease_space: str,
    evicts: bool,
    avoids: bool,
    has_events: bool,
) -> list[Right]:
    """workloads : (namespace, kind) of every pool. queues : kinds of offline queues that stand beside plain Jobs."""
    found: list[Right] = []
    if {Verb.ISOLATE, Verb.RELEASE} & set(verbs):
        found.append(Right("", "", "nodes", ("get", "list", "patch")))
        if evicts:
            found += [Right("", "", "pods", ("list",)), Right("", "", "pods/eviction", ("create",))]
    if {Verb.LEND, Verb.RECALL} & set(verbs):
        found.append(Right("", "", "nodes", ("get", "list", "patch")))
        found.append(Right(offline_space, "", "pods", ("list",)))
        if set(queues) != {"Queue"}:
            found.append(Right(offline_space, "batch", "jobs", ("get", "list", "patch")))
        if "ClusterQueue" in queues:
            found.append(Right("", "kueue.x-k8s.io", "clusterqueues", ("get", "patch")))
            found.append(Right(offline_space, "kueue.x-k8s.io", "workloads", ("list", "patch")))
        if "Queue" in queues:
            found.append(Right("", "scheduling.volcano.sh", "queues", ("get", "patch")))
            found.append(Right(offline_space, "batch.volcano.sh", "jobs", ("get", "list", "patch")))
            found += [
                Right(where, "bus.volcano.sh", "commands", ("create",))
                for where in (offline_space, "default")
            ]
    if Verb.SCALE in verbs:
        found.append(Right("", "", "nodes", ("get", "list", "patch") if avoids else ("list",)))
        for where, kind in sorted(set(workloads)):
            group, plural = WORKLOADS[kind]
            found.append(Right(where, group, plural, ("get", "patch")))
            found.append(Right(where, group, f"{plural}/scale", ("get", "patch")))
            found.append(Right(where, "autoscaling", "horizontalpodautoscalers", ("list", "patch")))
            found.append(Right(where, "keda.sh", "scaledobjects", ("list", "patch")))
            if kind == "Deployment":
                found.append(Right(where, "", "pods", ("get", "list", "patch")))
    if Verb.REROUTE in verbs and has_label:
        found.append(Right(space, "", "pods", ("get", "list", "patch")))
        found.append(Right(space, "", "services", ("list",)))
        found.append(Right(space, "inference.networking.k8s.io", "inferencepools", ("list",)))
    if {Verb.REROUTE, Verb.BALANCE} & set(verbs) and has_routes:
        found.append(Right(space, "gateway.networking.k8s.io", "httproutes", ("get", "patch")))
    if lease_space:
        found.append(Right(lease_space, "coordination.k8s.io", "leases", ("create", "get", "patch")))
    if has_events:
        # Events of nodes go to the default namespace.
        spaces = {r.space or "default" for r in found if not r.resource.startswith(("pods/", "leases"))}
        found += [Right(where, "events.k8s.io", "events", ("create",)) for where in sorted(spaces)]
    return _joined(found)


def _joined(rights: Iterable[Right]) -> list[Right]:
    """One row a resource and place."""
    merged: dict[tuple[str, str, str], set[str]] = {}
    for right in rights:
        merged.setdefault(right[:3], set()).update(right.verbs)
    return [Right(*key, tuple(sorted(verbs))) for key, verbs in sorted(merged.items())]


def manifest(rights: Iterable[Right], account: str = "tidewarden", home: str = "tidewarden") -> str:
    """A role for each namespace and one for the cluster, bound to one service account."""
    by_space: dict[str, list[Right]] = {}
    for right in rights:
        by_space.setdefault(right.space, []).append(right)
    return "---\n".join(_role(space, rows, account, home) for space, rows in sorted(by_space.items()))


def _role(space: str, rights: Iterable[Right], account: str, home: str) -> str:
    kind = "Role" if space else "ClusterRole"
    meta = f"metadata:\n  name: {account}\n" + (f"  namespace: {space}\n" if space else "")
    rows = "".join(
        f"- apiGroups: [{right.group or chr(34) * 2}]\n  resources: [{right.resource}]\n  verbs: [{', '.join(right.verbs)}]\n"
        for right in rights
    )
    return (
        f"apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\n{meta}rules:\n{rows}---\n"
        f"apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\n{meta}"
        f"roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: {kind}\n  name: {account}\n"
        f"subjects:\n- kind: ServiceAccount\n  name: {account}\n  namespace: {home}\n"
    )
