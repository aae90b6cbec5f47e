"""Objects with resource versions, field managers, a history for watches.

Written from the Kubernetes API concepts page (resource versions, watch, bookmarks, 410), the server-side apply page
(managedFields of updates) and the API reference of each kind.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

MERGE_KEYS = {
    "containers": "name",
    "taints": "key",
    "conditions": "type",
    "env": "name",
    "ports": "containerPort",
}


@dataclass(frozen=True)
class Kind:
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    subresources: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


KINDS = [
    Kind("", "v1", "namespaces", "Namespace", False),
    Kind("", "v1", "nodes", "Node", False, ("status",)),
    Kind("", "v1", "pods", "Pod", True, ("status", "eviction", "binding")),
    Kind("", "v1", "services", "Service", True),
    Kind("apps", "v1", "deployments", "Deployment", True, ("scale", "status")),
    Kind("apps", "v1", "statefulsets", "StatefulSet", True, ("scale", "status")),
    Kind("batch", "v1", "jobs", "Job", True, ("status",)),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease", True),
    Kind("events.k8s.io", "v1", "events", "Event", True),
    Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute", True),
    Kind("inference.networking.k8s.io", "v1", "inferencepools", "InferencePool", True),
    Kind("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject", True),
    Kind("kueue.x-k8s.io", "v1beta1", "clusterqueues", "ClusterQueue", False, ("status",)),
    Kind("kueue.x-k8s.io", "v1beta1", "localqueues", "LocalQueue", True),
    Kind("kueue.x-k8s.io", "v1beta1", "workloads", "Workload", True, ("status",)),
    Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet", True, ("scale",)),
    Kind("scheduling.volcano.sh", "v1beta1", "queues", "Queue", False, ("status",)),
    Kind("batch.volcano.sh", "v1alpha1", "jobs", "Job", True, ("status",)),
    Kind("bus.volcano.sh", "v1alpha1", "commands", "Command", True),
]


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(
        self, code: int, reason: str, message: str, causes: list[Json] | None = None, retry_after: int = 0
    ):
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.causes, self.retry_after = causes or [], retry_after


Key = tuple[Kind, str, str]


@dataclass
class Store:
    """changed : called after every write, with the kind; controllers hang there."""

    objects: dict[Key, Json] = field(default_factory=dict)
    version: int = 1000
    history: list[tuple[int, str, Kind, Json]] = field(default_factory=list)
    forgotten: int = 1000
    changed: Callable[[], None] = lambda: None
    wake: Callable[[], None] = lambda: None

    def get(self, kind: Kind, space: str, name: str) -> Json:
        found = self.objects.get((kind, space, name))
        if found is None:
            raise Refused(
                404, "NotFound", f'{kind.plural}{"." + kind.group if kind.group else ""} "{name}" not found'
            )
        return found

    def all(self, plural: str, space: str = "", group: str | None = None) -> list[Json]:
        """group : None = of every API group that has such a plural."""
        return [
            o
            for (k, s, _), o in sorted(self.objects.items(), key=lambda e: e[0][1:])
            if k.plural == plural and space in ("", s) and group in (None, k.group)
        ]

    def create(self, kind: Kind, space: str, body: Json, manager: str = "test") -> Json:
        thing = copy.deepcopy(body)
        meta = thing.setdefault("metadata", {})
        if not meta.get("name"):
            if not meta.get("generateName"):
                raise Refused(
                    422,
                    "Invalid",
                    f"{kind.kind} is invalid: metadata.name: Required value: name or generateName is required",
                )
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        name = meta["name"]
        if (kind, space, name) in self.objects:
            raise Refused(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        if kind.namespaced:
            if not any(o["metadata"]["name"] == space for o in self.all("namespaces")):
                raise Refused(404, "NotFound", f'namespaces "{space}" not found')
            meta["namespace"] = space
        thing |= {"apiVersion": kind.api_version, "kind": kind.kind}
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        validate(kind, None, thing)
        meta["managedFields"] = managed([], {}, thing, manager)
        return self._put("ADDED", kind, space, thing)

    def update(self, kind: Kind, space: str, name: str, change: Callable[[Json], Json], manager: str) -> Json:
        """Raises Refused(409) when the change names another resourceVersion than the object has."""
        old = self.get(kind, space, name)
        new = change(copy.deepcopy(old))
        meta, was = new.setdefault("metadata", {}), old["metadata"]
        if str(meta.get("resourceVersion") or was["resourceVersion"]) != was["resourceVersion"]:
            raise Refused(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {kind.plural} "{name}": the object has been modified; '
                "please apply your changes to the latest version and try again",
            )
        for fixed in (
            "uid",
            "creationTimestamp",
            "name",
            "namespace",
            "resourceVersion",
            "managedFields",
            "deletionTimestamp",
        ):
            if fixed in was:
                meta[fixed] = was[fixed]
            else:
                meta.pop(fixed, None)
        new |= {"apiVersion": old["apiVersion"], "kind": old["kind"]}
        if new == old:
            return old
        validate(kind, old, new)
        if new.get("spec") != old.get("spec"):
            meta["generation"] = was.get("generation", 1) + 1
        meta["managedFields"] = managed(was.get("managedFields", []), old, new, manager)
        return self._put("MODIFIED", kind, space, new)

    def delete(self, kind: Kind, space: str, name: str, grace_s: int | None = None, uid: str = "") -> Json:
        thing = self.get(kind, space, name)
        if uid and uid != thing["metadata"]["uid"]:
            raise Refused(
                409,
                "Conflict",
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {thing['metadata']['uid']}",
            )
        # A pod on a node is only gone when the kubelet says so.
        if kind.plural == "pods" and grace_s != 0 and thing.get("spec", {}).get("nodeName"):
            if "deletionTimestamp" not in thing["metadata"]:
                dying = copy.deepcopy(thing)
                dying["metadata"]["deletionTimestamp"] = now()
                return self._put("MODIFIED", kind, space, dying)
            return thing
        gone = copy.deepcopy(thing)
        del self.objects[(kind, space, name)]
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._log("DELETED", kind, gone)
        if kind.plural == "namespaces":
            for key in [k for k in self.objects if k[1] == name]:
                self.delete(*key, grace_s=0)
        return gone

    def _put(self, type: str, kind: Kind, space: str, thing: Json) -> Json:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.objects[(kind, space, thing["metadata"]["name"])] = thing
        self._log(type, kind, thing)
        return thing

    def _log(self, type: str, kind: Kind, thing: Json) -> None:
        self.history.append((self.version, type, kind, thing))
        self.wake()
        self.changed()

    def forget(self) -> None:
        """As after a compaction: watches of before get 410."""
        self.history.clear()
        self.forgotten = self.version


# -- patches -------------------------------------------------------------------------------------------------


def merge(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merge(new.get(key), value)
    return new


def strategic(old: Any, patch: Any, name: str = "") -> Any:
    """Maps are merged, lists with a merge key by it, other lists replaced."""
    if isinstance(patch, list) and name in MERGE_KEYS and isinstance(old, list):
        key = MERGE_KEYS[name]
        new = {item[key]: item for item in old}
        for item in patch:
            if item.get("$patch") == "delete":
                new.pop(item[key], None)
            else:
                new[item[key]] = strategic(new.get(item[key], {}), item)
        return list(new.values())
    if not isinstance(patch, dict):
        return patch
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = strategic(found.get(key), value, key)
    return found


def json_patch(old: Json, operations: list[Json]) -> Json:
    """RFC 6902: add, replace, remove, test."""
    new = copy.deepcopy(old)
    for op in operations:
        parts = [p.replace("~1", "/").replace("~0", "~") for p in op["path"].split("/")[1:]]
        here: Any = new
        for part in parts[:-1]:
            here = here[int(part)] if isinstance(here, list) else here.get(part)
            if here is None:
                raise Refused(
                    422,
                    "Invalid",
                    f"the server rejected our request due to an error in our request: path {op['path']} is missing",
                )
        last: Any = int(parts[-1]) if isinstance(here, list) and parts[-1] != "-" else parts[-1]
        if op["op"] == "test":
            found = here[last] if isinstance(here, list) else here.get(last)
            if found != op["value"]:
                raise Refused(
                    422,
                    "Invalid",
                    f"the server rejected our request due to an error in our request: test {op['path']} failed",
                )
        elif op["op"] == "remove":
            del here[last]
        elif last == "-":
            here.append(op["value"])
        else:
            here[last] = op["value"]
    return new


def managed(entries: list[Json], old: Json, new: Json, manager: str) -> list[Json]:
    """managedFields after an update: what changed belongs to who changed it, and to nobody else. Lists count as one field."""
    changed = {p for p in leaves(new) | leaves(old) if at(old, p) != at(new, p)}
    owned = {
        e["manager"]: {p for p in unfold(e["fieldsV1"]) if at(new, p) is not None} - changed for e in entries
    }
    mine = {p for p in changed if at(new, p) is not None}
    owned[manager] = owned.get(manager, set()) | mine
    return [
        {
            "manager": name,
            "operation": "Update",
            "apiVersion": new["apiVersion"],
            "time": now(),
            "fieldsType": "FieldsV1",
            "fieldsV1": fold(paths),
        }
        for name, paths in owned.items()
        if paths
    ]


Path = tuple[str, ...]
_OWN = ("resourceVersion", "managedFields", "generation", "uid", "creationTimestamp")


def leaves(thing: Any, here: Path = ()) -> set[Path]:
    if isinstance(thing, dict) and thing:
        return {
            p
            for k, v in thing.items()
            if not (here == ("metadata",) and k in _OWN)
            for p in leaves(v, (*here, k))
        }
    return {here} if here and here[0] not in ("apiVersion", "kind") else set()


def at(thing: Any, path: Path) -> Any:
    for part in path:
        thing = thing.get(part) if isinstance(thing, dict) else None
    return thing


def fold(paths: set[Path]) -> Json:
    tree: Json = {}
    for path in sorted(paths):
        here = tree
        for part in path:
            here = here.setdefault(f"f:{part}", {})
    return tree


def unfold(tree: Json, here: Path = ()) -> set[Path]:
    if not tree:
        return {here}
    return {p for k, v in tree.items() for p in unfold(v, (*here, k.removeprefix("f:")))}


# -- validation ----------------------------------------------------------------------------------------------

_LABEL = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")


def validate(kind: Kind, old: Json | None, new: Json) -> None:
    """Raises Refused(422), in the API server's words."""
    spec = new.get("spec") or {}

    def invalid(where: str, value: object, why: str) -> Refused:
        name = new["metadata"].get("name", "")
        text = f"{where}: Invalid value: {value!r}: {why}"
        return Refused(
            422,
            "Invalid",
            f'{kind.kind}.{kind.group} "{name}" is invalid: {text}',
            [{"field": where, "message": text}],
        )

    for key, value in (new["metadata"].get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or not _LABEL.match(value):
            raise invalid(
                f"metadata.labels[{key}]",
                value,
                "a valid label must be an empty string or consist of alphanumeric characters",
            )
    for value in (new["metadata"].get("annotations") or {}).values():
        if not isinstance(value, str):
            raise Refused(
                400,
                "BadRequest",
                "json: cannot unmarshal into Go struct field ObjectMeta.metadata.annotations of type string",
            )
    for taint in spec.get("taints") or []:
        if taint.get("effect") not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise invalid("spec.taints.effect", taint.get("effect"), "Unsupported value")
    if kind.plural == "horizontalpodautoscalers":
        least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 1)
        if least < 1:
            raise invalid("spec.minReplicas", least, "must be greater than or equal to 1")
        if most < least:
            raise invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")
    if "scale" in kind.subresources and spec.get("replicas", 1) < 0:
        raise invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0")
    if kind.group == "kueue.x-k8s.io" and spec.get("stopPolicy", "None") not in (
        "None",
        "Hold",
        "HoldAndDrain",
    ):
        raise invalid("spec.stopPolicy", spec["stopPolicy"], "Unsupported value")
    if kind.plural == "jobs" and old is not None and old["spec"].get("template") != spec.get("template"):
        raise invalid("spec.template", "...", "field is immutable")
    if kind.plural == "pods" and old is not None and old["spec"].get("containers") != spec.get("containers"):
        raise Refused(
            422,
            "Invalid",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.activeDeadlineSeconds`",
        )


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
