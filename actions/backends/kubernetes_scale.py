"""Kubernetes workloads: how many replicas a pool has, by its autoscaler's floor or by the scale subresource."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actions.backends.kubernetes_avoid import Avoidance
from actions.backends.kubernetes_events import Events
from actions.backends.kubernetes_routes import Routes, is_ready
from actions.backends.metrics_page import Busy
from daemon.kubernetes_api import (
    MANAGER,
    Api,
    Conflict,
    Json,
    NotFound,
    annotated,
    manager_of,
    version,
)
from daemon.model import Hopeless, Step, TryAgain

BY = "tidewarden.io/scaled-by"
TO = "tidewarden.io/scaled-to"
FROM = "tidewarden.io/scaled-from"
STEP = "tidewarden.io/scaled-step"
UNDER_WAY = "tidewarden.io/scaling"
"""There while replicas are being set: either of TO and FROM may be found after a crash."""
LEAVING = "tidewarden.io/leaving-step"
COST = "controller.kubernetes.io/pod-deletion-cost"
COST_LEAVING = "-2147483647"
"""The least that fits the API's 32 bits: nothing leaves before it."""
DRAIN_SHARE = 0.4
POLL_S = 1.0

KINDS = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments/{}",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets/{}",
    "LeaderWorkerSet": "/apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets/{}",
}
FLOORS: tuple[tuple[str, str, str, int, str, int], ...] = (
    (
        "ScaledObject",
        "/apis/keda.sh/v1alpha1/namespaces/{}/scaledobjects",
        "minReplicaCount",
        0,
        "maxReplicaCount",
        100,
    ),
    (
        "HorizontalPodAutoscaler",
        "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
        "minReplicas",
        1,
        "maxReplicas",
        1,
    ),
)
"""Autoscalers by kind: path, field of the floor with its default, field of the ceiling with its. KEDA's own HPA is
written by KEDA, so a ScaledObject is looked for first."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a pool is in the cluster, from ``[NAMESPACE/]KIND/NAME``."""

    space: str
    kind: str
    name: str

    @property
    def path(self) -> str:
        return KINDS[self.kind].format(self.space, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.space}/{self.name}"


@dataclass(frozen=True, slots=True)
class Held:
    """The object that holds a number of replicas. spec : the field in it; now : its value; most : the ceiling."""

    thing: Json
    path: str
    spec: str
    now: int
    most: float
    is_floor: bool

    def __str__(self) -> str:
        meta = self.thing["metadata"]
        return f"{self.thing['kind']} {meta['namespace']}/{meta['name']}"


@dataclass(frozen=True, slots=True)
class Scaling:
    """Moves the floor of the autoscaler that stands over a workload; without one sets the replicas themselves.

    pools : pool -> ``[NAMESPACE/]KIND/NAME``. owner : our mark. routes : how a pod leaves the routing.
    busy  : what a pod's metrics page says of requests running and waiting; port : of that page.
    avoidance : keeps new pods off nodes whose rack cannot feed them. drain_s : how long a pod that is to go is waited for; what remains then is the kubelet's grace period.
    """

    api: Api
    events: Events
    pools: Mapping[str, str]
    space: str
    owner: str
    routes: Routes
    busy: Busy
    avoidance: Avoidance
    port: int = 8000
    drain_s: float = 30.0
    _leaving: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    async def scale(self, step: Step) -> str:
        wanted = int(step.amount)
        workload = self.workload(step.target.name)
        held = await self.held(workload)
        _refuse_foreign(held, wanted)
        if wanted > held.most:
            raise Hopeless(
                f"{held} allows at most {held.most:g} replicas, {wanted} are wanted; raise its maximum"
            )
        leaving: Sequence[Json] = ()
        told = ""
        if not held.is_floor and workload.kind == "Deployment":
            pods = await self._pods(workload, held)
            leaving, staying = _chosen(
                pods, wanted, await self._load(pods) if wanted < len(pods) else {}, await self._cordoned()
            )
            await self._welcome_back(staying)
            told = await self._say_goodbye(leaving, step) if leaving else ""
        if wanted > held.now:
            told += await self.avoidance.steer(step)
        if held.now != wanted:
            try:
                await self._write(held, wanted, step)
            except Hopeless:
                await self._welcome_back(leaving)
                raise
        what = "the floor" if held.is_floor else "replicas"
        told = f"{what} of {held} {held.now} -> {wanted}{told}"
        await self.events.tell(held.thing, step, "Scaled", f"{step.reason}; {told}")
        return told

    async def seen(self, step: Step) -> Mapping[str, Any]:
        """{"replicas", "ready"}: {"replicas", "is_floor"} where an autoscaler stands over it, and then nothing of ready ones."""
        held = await self.held(self.workload(step.target.name))
        if held.is_floor:
            return {"replicas": held.now, "is_floor": True}
        return {"replicas": held.now, "ready": int((held.thing.get("status") or {}).get("readyReplicas", 0))}

    def workload(self, pool: str) -> Workload:
        """Raises Hopeless for a pool nobody has mapped."""
        if pool not in self.pools:
            known = ", ".join(sorted(self.pools)) or "none"
            raise Hopeless(
                f"no workload stands for pool {pool}; name it under pools of this backend ({known} there now)"
            )
        return workload_of(self.pools[pool], self.space)

    async def held(self, workload: Workload) -> Held:
        """What decides how many replicas there are. Raises NotFound when the workload is gone."""
        thing = await self.api.get(workload.path)
        for kind, path, least, least_default, most, most_default in FLOORS:
            where = path.format(workload.space)
            try:
                found = await self.api.items(where)
            except NotFound:
                continue  # this kind of autoscaler is not installed
            for scaler in found:
                if not _stands_over(scaler, workload):
                    continue
                spec = scaler["spec"]
                return Held(
                    scaler
                    | {"kind": kind, "apiVersion": where.removeprefix("/apis/").partition("/namespaces")[0]},
                    f"{where}/{scaler['metadata']['name']}",
                    least,
                    int(spec.get(least, least_default)),
                    float(spec.get(most, most_default)),
                    True,
                )
        return Held(thing, workload.path, "replicas", int(thing["spec"].get("replicas", 1)), math.inf, False)

    async def _write(self, held: Held, wanted: int, step: Step) -> None:
        marks = {BY: self.owner, TO: str(wanted), FROM: str(held.now), STEP: step.id}
        meta = {"annotations": marks, "resourceVersion": version(held.thing)}
        try:
            if held.is_floor:
                await self.api.patch(held.path, {"metadata": meta, "spec": {held.spec: wanted}})
                return
            # The mark first: replicas without one, after a crash, would look like a person's.
            await self.api.patch(
                held.path, {"metadata": {**meta, "annotations": {**marks, UNDER_WAY: step.id}}}
            )
            scale = await self.api.get(f"{held.path}/scale")
            if int((scale.get("spec") or {}).get("replicas", 0)) != held.now:
                raise Conflict(f"{held} was scaled by somebody else this moment")
            body = {"metadata": {"resourceVersion": version(scale)}, "spec": {"replicas": wanted}}
            await self.api.patch(f"{held.path}/scale", body)
            await self.api.patch(held.path, {"metadata": {"annotations": {UNDER_WAY: None}}})
        except Conflict as conflict:
            raise TryAgain(f"{held} changed while it was read: {conflict}", 0.2) from None

    # -- who goes ------------------------------------------------------------------------------------------

    async def _pods(self, workload: Workload, held: Held) -> list[Json]:
        wanted = held.thing["spec"]["selector"].get("matchLabels", {})
        selector = ",".join(f"{k}={v}" for k, v in sorted(wanted.items()))
        pods = await self.api.items(f"/api/v1/namespaces/{workload.space}/pods", labelSelector=selector)
        return [p for p in pods if not p["metadata"].get("deletionTimestamp")]

    async def _say_goodbye(self, leaving: Sequence[Json], step: Step) -> str:
        """Out of the routing, first to be deleted, then their last requests are waited for."""
        for pod in leaving:
            notes = {COST: COST_LEAVING, LEAVING: step.id}
            await self.api.patch(_path(pod), {"metadata": {"annotations": notes}})
            await self.routes.leave(pod, step.id)
        waited = await self._until_idle(leaving, step)
        names = ", ".join(p["metadata"]["name"] for p in leaving)
        return f"; {names} {'goes' if len(leaving) == 1 else 'go'}, {waited}"

    async def _welcome_back(self, pods: Sequence[Json]) -> None:
        """Pods that were to go and stay after all."""
        for pod in pods:
            try:
                now = await self.api.get(_path(pod))
            except NotFound:
                continue
            if LEAVING in annotated(now):
                await self.api.patch(_path(now), {"metadata": {"annotations": {COST: None, LEAVING: None}}})
                await self.routes.come_back(now)

    async def _cordoned(self) -> set[str]:
        try:
            nodes = await self.api.items("/api/v1/nodes")
        except Hopeless:
            return set()  # without the right to read nodes the choice is a little worse, that is all
        return {n["metadata"]["name"] for n in nodes if (n.get("spec") or {}).get("unschedulable")}

    async def _load(self, pods: Sequence[Json]) -> dict[str, float]:
        """Pod uid -> requests running and waiting there, NaN = it does not tell."""
        found = await asyncio.gather(*(self._busy(p) for p in pods))
        return {p["metadata"]["uid"]: x for p, x in zip(pods, found, strict=True)}

    async def _busy(self, pod: Json) -> float:
        """Requests on a pod, NaN when its page does not tell."""
        address = (pod.get("status") or {}).get("podIP", "")
        if not address or not is_ready(pod):
            return math.nan
        host = f"[{address}]" if ":" in address else address
        return await self.busy(f"http://{host}:{self.port}/metrics")

    async def _until_idle(self, pods: Sequence[Json], step: Step) -> str:
        loop = asyncio.get_running_loop()
        end = loop.time() + min(self.drain_s, DRAIN_SHARE * step.deadline_s)
        while True:
            load = await asyncio.gather(*(self._busy(p) for p in pods))
            if all(math.isnan(x) for x in load):
                return "nobody can tell whether idle"
            if not any(x > 0 for x in load):
                return "idle"
            if loop.time() + POLL_S > end:
                return f"with {sum(x for x in load if x > 0):g} requests still running: their grace period is all they have"
            await asyncio.sleep(POLL_S)


# -- deciding: pure ------------------------------------------------------------------------------------------


def workload_of(text: str, space: str) -> Workload:
    """Raises Hopeless for what is not ``[NAMESPACE/]KIND/NAME`` of a known kind.

    >>> workload_of("Deployment/chat", "inference")
    Workload(space='inference', kind='Deployment', name='chat')
    """
    parts = text.split("/")
    if len(parts) == 2:
        parts = [space, *parts]
    if len(parts) != 3 or parts[1] not in KINDS or not all(parts):
        raise Hopeless(
            f"{text!r} is no workload; write [NAMESPACE/]KIND/NAME with a kind of {', '.join(KINDS)}"
        )
    return Workload(*parts)


def _stands_over(scaler: Json, workload: Workload) -> bool:
    ref = scaler["spec"].get("scaleTargetRef") or {}
    return ref.get("name") == workload.name and ref.get("kind", "Deployment") == workload.kind


def _refuse_foreign(held: Held, wanted: int) -> None:
    """What others set since is taken over as the least: we go above it, never below. Taken back at once, it is a fight."""
    marks = annotated(held.thing)
    ours = {marks.get(TO), marks.get(FROM) if UNDER_WAY in marks else None}
    if TO not in marks or str(held.now) in ours:
        return
    who = manager_of(held.thing, "spec", held.spec)
    who = who if who not in ("", MANAGER) else "somebody else"
    hand_back = f"To hand it back: kubectl annotate {held.thing['kind'].lower()} -n {held.thing['metadata']['namespace']} {held.thing['metadata']['name']} {TO}-"
    if str(held.now) == marks.get(FROM):
        raise Hopeless(
            f"{who} took {held.spec} of {held} back from {marks[TO]} to {held.now}; we do not fight: let it ignore spec.{held.spec} "
            f"(Argo CD: ignoreDifferences). {hand_back}"
        )
    if wanted < held.now:
        raise Hopeless(
            f"{who} set {held.spec} of {held} to {held.now} since we set {marks[TO]}; left to them. {hand_back}"
        )


def _chosen(
    pods: Sequence[Json], wanted: int, load: Mapping[str, float], cordoned: set[str]
) -> tuple[list[Json], list[Json]]:
    """Who goes so that `wanted` stay, and who stays.

    A choice once made holds; then who serves nobody anyway, who stands on a cordoned node, who has least to do, the youngest.
    """

    def rank(pod: Json) -> tuple[bool, bool, bool, float, str]:
        requests = load.get(pod["metadata"]["uid"], math.nan)
        return (
            LEAVING not in annotated(pod),
            is_ready(pod),
            (pod.get("spec") or {}).get("nodeName", "") not in cordoned,
            math.inf if math.isnan(requests) else requests,
            _reversed(pod["metadata"].get("creationTimestamp", "")),
        )

    order = sorted(pods, key=rank)
    count = max(0, len(pods) - wanted)
    return order[:count], order[count:]


def _reversed(text: str) -> str:
    """So that later times come first."""
    return "".join(chr(0x10FFFF - ord(c)) for c in text)


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
