"""Leadership by a Lease: of several tidewardens over one cluster, one acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actions.backends.kubernetes_events import micro_time, seconds_of
from daemon.kubernetes_api import Api, Conflict, Json, NotFound
from daemon.model import Hopeless, TryAgain

PATH = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"


@dataclass(frozen=True, slots=True)
class Leadership:
    """Taken at the first change, kept for `duration_s` after the last one, so that it lapses by itself.

    identity : of this instance. clock : wall time; instances must agree on it to well within `duration_s`.
    """

    api: Api
    clock: Callable[[], float]
    space: str
    name: str
    identity: str
    duration_s: float = 60.0

    async def hold(self) -> None:
        """Raises Hopeless while another instance holds the Lease, TryAgain when both reach for it at once."""
        path, now = PATH.format(self.space), self.clock()
        try:
            lease = await self.api.get(f"{path}/{self.name}")
        except NotFound:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name},
                "spec": self._spec(now, 0),
            }
            try:
                await self.api.post(path, body)
            except Conflict:
                raise TryAgain(
                    f"another instance took the Lease {self.space}/{self.name} this moment"
                ) from None
            return
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder and holder != self.identity and now < _end(spec):
            raise Hopeless(
                f"{holder} leads this cluster and acts (Lease {self.space}/{self.name}); this instance only watches until it is {_end(spec) - now:.0f} s silent"
            )
        if holder == self.identity and _end(spec) - now > self.duration_s / 2:
            return
        changes = int(spec.get("leaseTransitions") or 0) + (holder != self.identity)
        kept: Json = (
            {"acquireTime": spec["acquireTime"]} if holder == self.identity and "acquireTime" in spec else {}
        )
        body = {
            "metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]},
            "spec": self._spec(now, changes) | kept,
        }
        try:
            await self.api.patch(f"{path}/{self.name}", body)
        except Conflict:
            raise TryAgain(f"another instance took the Lease {self.space}/{self.name} this moment") from None

    def _spec(self, now: float, changes: int) -> Json:
        at = micro_time(now)
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.duration_s),
            "acquireTime": at,
            "renewTime": at,
            "leaseTransitions": changes,
        }


def _end(spec: Json) -> float:
    """When a Lease lapses; one that never was renewed has lapsed."""
    try:
        return seconds_of(spec["renewTime"]) + float(spec.get("leaseDurationSeconds") or 0)
    except (KeyError, ValueError, TypeError):
        return 0.0
