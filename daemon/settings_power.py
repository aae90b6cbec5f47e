"""Settings of what racks may draw."""

from __future__ import annotations

from pydantic import Field

from daemon.units import Tree


class PowerTree(Tree):
    rack_cap_w: float = Field(default=0.0, ge=0.0)
    """Most a rack may draw, in watts; 0 = none is known. No replica is started in a rack that it would exceed."""
    racks: dict[str, float] = {}
    """Rack -> its own cap in watts, over rack_cap_w."""
    host_factor: float = Field(default=1.25, ge=1.0, le=3.0)
    """What a node draws over what its GPUs draw: processors, memory, fans, network."""
