"""Kubernetes: every verb on the objects of one cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actions.backends.kubernetes_kueue import Kueue
from actions.backends.kubernetes_lease import Leadership
from actions.backends.kubernetes_lend import Lending
from actions.backends.kubernetes_nodes import Nodes
from actions.backends.kubernetes_rights import Right, manifest, rights_of
from actions.backends.kubernetes_routes import Routes
from actions.backends.kubernetes_scale import Scaling
from actions.backends.kubernetes_volcano import Volcano
from daemon.kubernetes_api import Api, Json
from daemon.model import Check, Hopeless, Step, TryAgain, Verb

REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """verbs : those that the configuration gives to this backend; rights and checks are about them alone.

    lending : None = nothing is lent. leadership : None = this is the only instance that acts.
    """

    api: Api
    nodes: Nodes
    scaling: Scaling
    routes: Routes
    lending: Lending | None
    leadership: Leadership | None
    verbs: Collection[Verb]

    async def apply(self, step: Step) -> str:
        if self.leadership is not None:
            await self.leadership.hold()
        match step.verb:
            case Verb.ISOLATE:
                return await self.nodes.isolate(step)
            case Verb.RELEASE:
                return await self.nodes.release(step)
            case Verb.SCALE:
                return await self.scaling.scale(step)
            case Verb.REROUTE | Verb.BALANCE:
                return await self.routes.reroute(step)
            case Verb.LEND:
                return await self._lending().lend(step)
            case Verb.RECALL:
                return await self._lending().recall(step)
        raise Hopeless(f"Kubernetes cannot {step.verb}: messages go through notify.channels")

    async def observe(self, step: Step) -> Mapping[str, Any]:
        match step.verb:
            case Verb.ISOLATE | Verb.RELEASE:
                return await self.nodes.seen(step)
            case Verb.SCALE:
                return await self.scaling.seen(step)
            case Verb.REROUTE | Verb.BALANCE:
                return await self.routes.seen(step)
            case Verb.LEND | Verb.RECALL:
                return await self._lending().seen(step)
        return {}

    async def close(self) -> None:
        await self.api.close()

    def _lending(self) -> Lending:
        if self.lending is None:
            raise Hopeless(
                "nothing can be lent: set offline_namespace of this backend to where the offline Jobs are"
            )
        return self.lending

    # -- before anything is enabled ----------------------------------------------------------------------

    @property
    def rights(self) -> str:
        return manifest(self._needed())

    async def check(self) -> Sequence[Check]:
        """Whether the API server answers, grants each right, and knows each name."""
        where = self.api.kubeconfig or "Kubernetes"
        rows: list[Check] = []
        try:
            answers = await asyncio.gather(*(self._granted(right) for right in self._needed()))
            missing = [m for found in answers for m in found]
        except (Hopeless, TryAgain) as trouble:
            return [Check(False, where, "does not work", str(trouble))]
        if missing:
            fix = "apply the manifest below with kubectl apply -f, as an administrator"
            rows.append(Check(False, where, f"not allowed: {'; '.join(missing)}", fix))
        else:
            rows.append(
                Check(True, where, f"answers and grants {sum(len(r.verbs) for r in self._needed())} rights")
            )
        if Verb.SCALE in self.verbs:
            rows += [await self._looked(f"pool {pool}", self._pool(pool)) for pool in self.scaling.pools]
        if {Verb.REROUTE, Verb.BALANCE} & set(self.verbs):
            rows += [
                await self._looked(f"HTTPRoute {name}", self._route(name)) for name in self.routes.routes
            ]
        if self.lending is not None and isinstance(self.lending.work, Kueue | Volcano):
            rows.append(await self._looked(f"queue {self.lending.work.queue}", self.lending.work.looked()))
        return rows

    async def _looked(self, what: str, look: Any) -> Check:
        try:
            return Check(True, what, await look)
        except (Hopeless, TryAgain) as trouble:
            return Check(False, what, "does not work", str(trouble))

    async def _pool(self, pool: str) -> str:
        held = await self.scaling.held(self.scaling.workload(pool))
        return f"{'the floor' if held.is_floor else 'replicas'} of {held} stand at {held.now}"

    async def _route(self, name: str) -> str:
        route = await self.api.get(
            f"/apis/gateway.networking.k8s.io/v1/namespaces/{self.routes.space}/httproutes/{name}"
        )
        return f"{len(route['spec'].get('rules') or [])} rules"

    async def _granted(self, right: Right) -> list[str]:
        """What of a right is missing, as an administrator would say it."""
        resource, _, subresource = right.resource.partition("/")
        missing = []
        for verb in right.verbs:
            asked: Json = {"verb": verb, "group": right.group, "resource": resource}
            asked |= {"subresource": subresource} if subresource else {}
            asked |= {"namespace": right.space} if right.space else {}
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            answer = await self.api.post(REVIEW, body)
            if not (answer.get("status") or {}).get("allowed"):
                missing.append(
                    f"{verb} {right.resource} {'in ' + right.space if right.space else 'in the cluster'}"
                )
        return missing

    def _queues(self) -> list[str]:
        if self.lending is None:
            return []
        kinds = (("ClusterQueue", Kueue), ("Queue", Volcano))
        return [name for name, kind in kinds if isinstance(self.lending.work, kind)]

    def _needed(self) -> list[Right]:
        workloads = [self.scaling.workload(pool) for pool in self.scaling.pools]
        return rights_of(
            self.verbs,
            space=self.routes.space,
            workloads=[(w.space, w.kind) for w in workloads],
            has_label=bool(self.routes.label),
            has_routes=bool(self.routes.routes),
            offline_space=self.lending.space if self.lending else "",
            queues=self._queues(),
            lease_space=self.leadership.space if self.leadership else "",
            evicts=self.nodes.evict != "none",
            avoids=self.scaling.avoidance.is_on,
            has_events=self.nodes.events.is_on,
        )
