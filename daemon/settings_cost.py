"""Settings of what energy and GPUs cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from daemon.model import NAN
from daemon.policy import Cost
from daemon.units import Tree


class CostTree(Tree):
    currency: str = ""
    """Shown behind amounts, like EUR."""
    gpu_hour: float | None = Field(default=None, ge=0)
    """Price of one GPU for an hour, rented or written off."""
    gpu_hour_by_kind: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Part of a GPU's name, like H100 -> price of one for an hour, where a fleet has several kinds. A pool on several kinds then grows where a token is
    cheapest, and shrinks where it is dearest."""
    spot_gpu_hour: float | None = Field(default=None, ge=0)
    """Price of one GPU for an hour on nodes that may be taken back; the cost page then says what to buy how."""
    kwh: float | None = Field(default=None, ge=0)
    """Price of a kWh that is paid on top of it."""
    pue: float = Field(default=1.0, ge=1.0, le=5.0)
    """Energy of the facility over that of its computers; 1 = cooling is not counted."""
    carbon_g_per_kwh: float | None = Field(default=None, ge=0)
    """Carbon dioxide of the energy, in grams."""
    revenue_per_day: float | None = Field(default=None, gt=0)
    """What the inference earns a day; above a fifth of it spent, `tidewarden posture` advises to co-locate."""

    def cost(self) -> Cost:
        def given(value: float | None) -> float:
            return NAN if value is None else value

        return Cost(
            currency=self.currency,
            gpu_hour=given(self.gpu_hour),
            kwh=given(self.kwh),
            spot_gpu_hour=given(self.spot_gpu_hour),
            pue=self.pue,
            carbon_g_per_kwh=given(self.carbon_g_per_kwh),
            revenue_per_day=given(self.revenue_per_day),
            gpu_hour_by_kind=tuple(sorted(self.gpu_hour_by_kind.items())),
        )
