"""Settings of the view over several regions."""

from __future__ import annotations

from pydantic import model_validator

from daemon.policy import Federation, Member
from daemon.units import Duration, Share, Tree


class RegionTree(Tree):
    round_trip: Duration = 0.0
    """From most of the clients to this region and back; added to its own time to the first token."""
    share_max: Share = 1.0
    """Most of all requests it may get, by contract or by its line."""


class RegionsTree(Tree):
    members: dict[str, RegionTree] = {}
    """Region, as its own daemon calls itself (`region` there) -> what is known of it. Empty = this daemon balances nothing."""
    load_max: Share = 0.85
    """Most of what its ready replicas carry that a region is given."""
    step_min: Share = 0.05
    """A share that would move by less stays where it is."""
    rise_per_minute: Share = 0.1
    """How fast a region gets more while no other is in need: caches are cold and a relapse should meet little traffic."""
    settle: Duration = 120.0
    """Between two moves while no region is in need."""
    lost_after: Duration = 120.0
    """A region nobody has heard of for so long is lost, unless a probe says that its front door answers."""
    hold: Duration = 300.0
    """A region that was lost must be well for so long before it gets requests again."""
    latency_span: Duration = 1.0
    """A region that is later than the fastest by this much gets a tenth of the preference."""
    overflow: str = ""
    """Name the balancer has for what answers "too busy"; it gets what fits nowhere. Empty = all regions share it."""

    @model_validator(mode="after")
    def _alone(self) -> RegionsTree:
        if self.overflow in self.members:
            raise ValueError(f"overflow: {self.overflow!r} is one of the members; name a server of its own")
        if not self.members and self.overflow:
            raise ValueError("overflow: there are no members; name the regions under regions.members")
        if self.latency_span <= 0:
            raise ValueError("latency_span: 0 is no span; write a time like 1s")
        return self

    def federation(self) -> Federation:
        values = self.model_dump(exclude={"members", "settle", "lost_after", "hold", "latency_span"})
        return Federation(
            members={n: Member(m.round_trip, m.share_max) for n, m in self.members.items()},
            settle_s=self.settle,
            lost_after_s=self.lost_after,
            hold_s=self.hold,
            latency_span_s=self.latency_span,
            **values,
        )
