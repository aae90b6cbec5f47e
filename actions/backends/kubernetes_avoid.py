"""Nodes that new replicas should rather not go to: a soft taint of ours, or the line that sets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actions.backends.kubernetes_nodes import Nodes, node_path
from daemon.kubernetes_api import Json, annotated, version
from daemon.model import Entity, Hopeless, Step, TryAgain

TAINT = "tidewarden.io/avoid"
EFFECT = "PreferNoSchedule"
"""The scheduler tries to avoid the node and takes it when there is no other; what runs there stays. Source: Kubernetes, Taints
and Tolerations. An affinity in the pod template would do the same and restart every replica."""
BY = "tidewarden.io/avoided-by"
NAMED = 4


@dataclass(frozen=True, slots=True)
class Avoidance:
    """nodes : how a node of the telemetry is found. is_on : taints are set; off, they are only proposed."""

    nodes: Nodes
    owner: str
    is_on: bool = False

    async def steer(self, step: Step) -> str:
        """Before replicas are added: mark what `avoid` names, unmark of ours what it no longer names. Soft as the taint
        itself: what cannot be marked is said, and the replicas are added all the same."""
        names = [name for name in step.arg("avoid").split(",") if name]
        if not self.is_on:
            if not names:
                return ""
            shown = " ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
            return f"; nothing keeps them off {len(names)} nodes whose rack cannot feed them: kubectl taint nodes {shown} {TAINT}=true:{EFFECT}"
        try:
            wanted = [await self._find(step, name) for name in names]
            marked = await self._marked()
            fresh = [n for n in wanted if _name(n) not in map(_name, marked)]
            over = [n for n in marked if _name(n) not in map(_name, wanted)]
            for node in fresh:
                taints = [*_taints(node), {"key": TAINT, "value": "true", "effect": EFFECT}]
                await self._write(node, self.owner, taints)
            for node in over:
                await self._write(node, None, [t for t in _taints(node) if t.get("key") != TAINT])
        except (Hopeless, TryAgain) as trouble:
            return f"; nodes to avoid could not be marked: {trouble}"
        return f"; {len(names)} nodes are avoided" if names else ""

    async def _find(self, step: Step, name: str) -> Json:
        return await self.nodes.find(replace(step, target=Entity("node", name), args=(("node", name),)))

    async def _marked(self) -> list[Json]:
        """Nodes with a taint of ours."""
        nodes: Sequence[Json] = await self.nodes.api.items("/api/v1/nodes")
        return [n for n in nodes if annotated(n).get(BY) == self.owner]

    async def _write(self, node: Json, owner: str | None, taints: list[Json]) -> None:
        await self.nodes.api.patch(
            node_path(_name(node)),
            {
                "metadata": {"annotations": {BY: owner}, "resourceVersion": version(node)},
                "spec": {"taints": taints or None},
            },
        )


def _name(node: Json) -> str:
    return str(node["metadata"]["name"])


def _taints(node: Json) -> list[Json]:
    return (node.get("spec") or {}).get("taints") or []
