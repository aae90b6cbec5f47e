"""Kubernetes routing: the share of requests an engine or a region gets, by HTTPRoute weights, or an engine by the label of a selector."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actions.backends.kubernetes_events import Events
from daemon.kubernetes_api import Api, Conflict, Json, NotFound, annotated, labels, version
from daemon.model import Hopeless, Step, TryAgain, Verb

WEIGHT_STEP_MAX = 0.01
"""How far the whole weight may lie from the share asked for; `actions.reroute.WEIGHT_TOLERANCE` is the same."""
WEIGHT_WANTED = 100
MARKS = "tidewarden.io/weights"
OUT = "tidewarden.io/rerouted-by"
OUT_STEP = "tidewarden.io/rerouted-step"
TRIES = 4


@dataclass(frozen=True, slots=True)
class Routes:
    """Two ways, the first that fits: weights of HTTPRoute backends, or a pod label that Services and InferencePools select.

    routes : HTTPRoutes whose weights may be set. services : engine -> Service that holds it
    alone; region -> Service or ServiceImport that leads there.
    label  : of the pods, "true" while they serve; "" = labels are not touched. owner : our mark.
    """

    api: Api
    events: Events
    space: str
    owner: str
    routes: Sequence[str] = ()
    services: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    async def reroute(self, step: Step) -> str:
        service = self.services.get(step.target.name, "")
        if service and self.routes:
            return await self._weigh(step, service)
        if step.verb is Verb.BALANCE:
            raise Hopeless(
                f"no way to set the share of {step.target}: name the Service or ServiceImport that leads there under services, and the HTTPRoute "
                "under routes of this backend"
            )
        if not self.label:
            raise Hopeless(
                f"no way to reroute {step.target.name}: name its Service under services and the HTTPRoute under routes of this backend, "
                "or set label to a pod label that your Service selects"
            )
        return await self._relabel(step)

    async def seen(self, step: Step) -> Mapping[str, Any]:
        """{"weight"}: the one farthest from what the step wants; of a pod whether any selector takes it."""
        service = self.services.get(step.target.name, "")
        if service and self.routes:
            shares = []
            for name in self.routes:
                route = await self.api.get(self._route(name))
                shares += [_share(route, *place) for place in places_of(route, service)]
            return {"weight": max(shares, key=lambda s: abs(s - step.amount))} if shares else {}
        if not self.label or step.verb is Verb.BALANCE:
            return {}
        pod = await self.pod(step.target.name)
        if not await self._selectors(pod):
            return {"weight": 0.0}
        # On the way back the selector holds the pod whole, which is the nearest it can be to any share.
        is_partial = 0.0 < step.amount < 1.0 and annotated(pod).get(OUT) == self.owner
        return {"weight": step.amount if is_partial else 1.0}

    # -- weights -------------------------------------------------------------------------------------------

    async def _weigh(self, step: Step, service: str) -> str:
        changed = []
        routes = [await self.api.get(self._route(name)) for name in self.routes]
        if not any(places_of(route, service) for route in routes):
            raise Hopeless(
                f"no rule of {', '.join(self.routes)} has Service {service} as a backend; correct services or routes of this backend"
            )
        for route in routes:
            for _ in range(TRIES):
                new = weighed(route, service, step)
                if new is None:
                    break
                try:
                    route = await self.api.patch(self._route(route["metadata"]["name"]), new)
                    break
                except Conflict:
                    route = await self.api.get(self._route(route["metadata"]["name"]))
            else:
                raise TryAgain(
                    f"HTTPRoute {route['metadata']['name']} is being changed by others without a pause"
                )
            changed.append(route)
        told = f"{step.target.name} at {step.amount:.0%} of its weight in {', '.join(self.routes)}"
        for route in changed:
            await self.events.tell(route, step, "Rerouted", f"{step.reason}; {told}")
        return told

    def _route(self, name: str) -> str:
        return f"/apis/gateway.networking.k8s.io/v1/namespaces/{self.space}/httproutes/{name}"

    # -- labels --------------------------------------------------------------------------------------------

    async def _relabel(self, step: Step) -> str:
        """All or nothing: on the way back any share is all of it, and the mark stays until it is asked for in full."""
        pod = await self.pod(step.target.name)
        if step.amount > 0.0:
            return await self._select_again(pod, step)
        if labels(pod).get(self.label) != "true" and OUT not in annotated(pod):
            if labels(pod).get(self.label) is None:
                raise Hopeless(
                    f'pod {_name(pod)} has no label {self.label}; add `{self.label}: "true"` to the pod template and to the selector of the Service'
                )
            raise Hopeless(
                f"pod {_name(pod)} was taken out of the routing by somebody else; left to them. To hand it back: kubectl label pod "
                f"-n {self.space} {pod['metadata']['name']} {self.label}=true --overwrite"
            )
        await self._refuse_last(pod)
        await self.leave(pod, step.id)
        told = f"pod {_name(pod)} left the selector by {self.label}=false"
        await self.events.tell(pod, step, "Rerouted", f"{step.reason}; {told}")
        return told

    async def leave(self, pod: Json, step_id: str) -> None:
        """Take a pod out of every selector on the label; nothing where no label is configured."""
        if not self.label or labels(pod).get(self.label) != "true":
            return
        notes = {OUT: self.owner, OUT_STEP: step_id}
        await self.api.patch(
            _path(pod), {"metadata": {"labels": {self.label: "false"}, "annotations": notes}}
        )

    async def come_back(self, pod: Json) -> None:
        """Undo `leave`, where it was ours."""
        if self.label and annotated(pod).get(OUT) == self.owner:
            notes = dict.fromkeys((OUT, OUT_STEP))
            await self.api.patch(
                _path(pod), {"metadata": {"labels": {self.label: "true"}, "annotations": notes}}
            )

    async def _select_again(self, pod: Json, step: Step) -> str:
        is_in, holder = labels(pod).get(self.label) == "true", annotated(pod).get(OUT, "")
        if is_in and step.amount >= 1.0 and not holder:
            return f"pod {_name(pod)} was in the selector already"
        if is_in and holder != self.owner:
            raise Hopeless(
                f"a Service has no weights, so {step.amount:.0%} cannot be set for {step.target.name}: use HTTPRoute weights (routes and "
                "services of this backend), or reroute by a load balancer"
            )
        if holder != self.owner:
            raise Hopeless(
                f"pod {_name(pod)} was taken out of the routing by {holder or 'somebody else'}; left to them"
            )
        notes = {OUT: None, OUT_STEP: None} if step.amount >= 1.0 else {OUT: self.owner, OUT_STEP: step.id}
        await self.api.patch(_path(pod), {"metadata": {"labels": {self.label: "true"}, "annotations": notes}})
        if is_in:
            return f"pod {_name(pod)} is selected; a Service has no weights, all of its share is back"
        told = f"pod {_name(pod)} is selected again, with all of its share"
        await self.events.tell(pod, step, "Rerouted", f"{step.reason}; {told}")
        return told

    async def _refuse_last(self, pod: Json) -> None:
        """Raises Hopeless where nobody would be left to answer, or where the label changes nothing."""
        selectors = await self._selectors(pod)
        heedless = [name for name, wanted in selectors if self.label not in wanted]
        if heedless:
            raise Hopeless(
                f'{", ".join(heedless)} selects pod {_name(pod)} whatever {self.label} says; add `{self.label}: "true"` to its selector'
            )
        for name, wanted in selectors:
            text = ",".join(f"{k}={v}" for k, v in sorted(wanted.items()))
            others = await self.api.items(f"/api/v1/namespaces/{self.space}/pods", labelSelector=text)
            if not any(is_ready(p) and p["metadata"]["name"] != pod["metadata"]["name"] for p in others):
                raise Hopeless(f"pod {_name(pod)} is the last ready one of {name}; every request would fail")

    async def _selectors(self, pod: Json) -> list[tuple[str, Mapping[str, str]]]:
        """Services and InferencePools that select a pod now."""
        found = []
        for service in await self.api.items(f"/api/v1/namespaces/{self.space}/services"):
            found.append(
                (f"Service {service['metadata']['name']}", (service.get("spec") or {}).get("selector") or {})
            )
        try:
            pools = await self.api.items(
                f"/apis/inference.networking.k8s.io/v1/namespaces/{self.space}/inferencepools"
            )
        except NotFound:
            pools = []
        for pool in pools:
            wanted = ((pool.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
            found.append((f"InferencePool {pool['metadata']['name']}", wanted))
        has = labels(pod)
        return [
            (name, wanted)
            for name, wanted in found
            if wanted and all(has.get(k) == v for k, v in wanted.items())
        ]

    async def pod(self, engine: str) -> Json:
        """By address or by name. Raises NotFound."""
        where = f"/api/v1/namespaces/{self.space}/pods"
        host = engine.rpartition(":")[0].strip("[]")
        found = await self.api.items(where, fieldSelector=f"status.podIP={host}") if host else []
        found = [p for p in found if not p["metadata"].get("deletionTimestamp")] or found
        if len(found) == 1:
            return found[0] | {"apiVersion": "v1", "kind": "Pod"}
        if not host:
            return await self.api.get(f"{where}/{engine}")
        raise NotFound(
            f"Kubernetes has no pod with the address {host} in namespace {self.space}; it was replaced or moved: correct namespace, or wait for the next scrape"
        )


# -- deciding: pure ------------------------------------------------------------------------------------------


def is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions) and not pod[
        "metadata"
    ].get("deletionTimestamp")


def places_of(route: Json, service: str) -> list[tuple[int, int]]:
    """(rule, backend) positions in an HTTPRoute where a Service stands."""
    return [
        (i, j)
        for i, rule in enumerate((route.get("spec") or {}).get("rules") or [])
        for j, ref in enumerate(rule.get("backendRefs") or [])
        if ref.get("name") == service and ref.get("kind", "Service") in ("Service", "ServiceImport")
    ]


def weighed(route: Json, service: str, step: Step) -> Json | None:
    """The patch that gives a Service its share, None when it has it. Raises Hopeless before anything is changed."""
    rules = copy.deepcopy(route["spec"]["rules"])
    marks, name = _marks(route), route["metadata"]["name"]
    for i, j in places_of(route, service):
        ref, key = rules[i]["backendRefs"][j], f"{i}/{service}"
        mark, now = marks.get(key), int(ref.get("weight", 1))
        if mark is not None and now != mark["set"]:
            raise Hopeless(
                f"weight of {service} in HTTPRoute {name} is {now}, set by somebody else since we set {mark['set']}; left to them. To hand it back: "
                f"set it to {mark['was']} and remove the annotation {MARKS}"
            )
        if mark is None and now == 0:
            raise Hopeless(
                f"weight of {service} in HTTPRoute {name} is 0, set by somebody else; left to them. To hand it back: give it a weight"
            )
        was = mark["was"] if mark is not None else now
        wanted = round(step.amount * was)
        if abs(wanted / was - step.amount) > WEIGHT_STEP_MAX:
            raise Hopeless(
                f"{service} has weight {was} in HTTPRoute {name}, of which {step.amount:.0%} cannot be set; write weight: {WEIGHT_WANTED}"
            )
        others = [r for k, r in enumerate(rules[i]["backendRefs"]) if k != j and int(r.get("weight", 1)) > 0]
        if wanted == 0 and not others:
            raise Hopeless(
                f"{service} is the last backend with a weight in rule {i} of HTTPRoute {name}; every request would get a 500"
            )
        ref["weight"] = wanted
        if step.amount >= 1.0:
            marks.pop(key, None)
        else:
            marks[key] = {"was": was, "set": wanted, "step": step.id}
    if rules == route["spec"]["rules"] and marks == _marks(route):
        return None
    note = json.dumps(marks, sort_keys=True) if marks else None
    return {
        "metadata": {"resourceVersion": version(route), "annotations": {MARKS: note}},
        "spec": {"rules": rules},
    }


def _marks(route: Json) -> dict[str, Any]:
    try:
        found = json.loads(annotated(route).get(MARKS, "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Hopeless(
            f"the annotation {MARKS} of HTTPRoute {route['metadata']['name']} cannot be read; put the weights back by hand and remove it"
        )
    return found


def _share(route: Json, i: int, j: int) -> float:
    ref = route["spec"]["rules"][i]["backendRefs"][j]
    mark, now = _marks(route).get(f"{i}/{ref['name']}"), int(ref.get("weight", 1))
    if mark is not None:
        return float(now) / float(mark["was"])
    return 1.0 if now else 0.0


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _name(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
