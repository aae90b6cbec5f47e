"""The truth about requests and GPU hours of a simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from daemon.model import Array
from simulator.fleet import Engine
from simulator.serving import Serving
from simulator.spec import WorldSpec

if TYPE_CHECKING:
    from simulator.world import World

ARRIVED, LOST, SLOW, FINISHED = range(4)
TROUBLED_SHARE = 0.1
"""A pool is in trouble in a minute in which more of its requests than this are slow or lost."""


class Ledger:
    """Counts by pool since the epoch. GPU hours: serving, lent, isolated, idle, and of offline work that was lost.

    cut_off : requests in flight in replicas that were well and had to go before they were done.
    """

    def __init__(self, spec: WorldSpec) -> None:
        self._names = [pool.name for pool in spec.pools]
        count = len(self._names)
        self._requests = np.zeros((4, count))
        self._base = np.zeros((4, count))
        self._gpu_s = {"serving": 0.0, "lent": 0.0, "isolated": 0.0, "idle": 0.0, "lost_offline": 0.0}
        self._minute: list[Array] = []
        self._edge = 0
        self.troubled_at = np.full(count, np.nan)
        self.cut_off = 0

    def open(self, world: World) -> None:
        """Everything before this moment does not count, except that requests in flight arrive now."""
        self._base = self._present(world)
        in_flight = np.zeros(len(self._names))
        for engine in world.fleet.engines.values():
            in_flight[engine.pool] += world.serving.held(engine.slot)
        self._base[ARRIVED] -= in_flight
        self._gpu_s = dict.fromkeys(self._gpu_s, 0.0)

    def arrived(self, pools: Array) -> None:
        self._requests[ARRIVED] += np.bincount(pools.astype(np.intp), minlength=len(self._names))

    def turned_away(self, pools: Array) -> None:
        """Requests that found no replica at all."""
        self._requests[LOST] += np.bincount(pools.astype(np.intp), minlength=len(self._names))

    def fold(self, serving: Serving, engine: Engine) -> None:
        """Move a slot's counts to its pool before the slot serves another one."""
        for row, counts in ((LOST, serving.lost), (SLOW, serving.slow), (FINISHED, serving.finished)):
            self._requests[row, engine.pool] += counts[engine.slot]
            counts[engine.slot] = 0.0

    def lost_offline(self, gpu_s: float) -> None:
        """Work of an offline job that was not saved when it was stopped."""
        self._gpu_s["lost_offline"] += gpu_s

    def note(self, world: World, span: float) -> None:
        """Add up GPU time, and judge each pool once a minute."""
        fleet = world.fleet
        serving = int((fleet.gpu_slot >= 0).sum())
        lent = sum(len(lease.gpus) for lease in fleet.lent.values())
        aside = int((fleet.set_aside() & (fleet.gpu_slot < 0)).sum()) if fleet.isolated else 0
        for name, count in (("serving", serving), ("lent", lent), ("isolated", aside)):
            self._gpu_s[name] += count * span
        self._gpu_s["idle"] += (world.spec.gpus - serving - lent - aside) * span
        self._edge += 1
        if self._edge % 12 == 0:
            self._judge(world)

    def _judge(self, world: World) -> None:
        now = self._present(world)
        before = self._minute[-1] if self._minute else self._base
        self._minute = [now]
        bad = now[LOST] + now[SLOW] - before[LOST] - before[SLOW]
        done = now[LOST] + now[FINISHED] - before[LOST] - before[FINISHED]
        troubled = bad > TROUBLED_SHARE * np.maximum(done, 1.0)
        self.troubled_at[troubled] = world.epoch + world._stepped

    def _present(self, world: World) -> Array:
        total = self._requests.copy()
        serving = world.serving
        for engine in world.fleet.engines.values():
            for row, counts in ((LOST, serving.lost), (SLOW, serving.slow), (FINISHED, serving.finished)):
                total[row, engine.pool] += counts[engine.slot]
        return total

    def read(self, world: World) -> Mapping[str, Any]:
        """requests_total, _finished, _lost, _slow, _in_flight, _cut_off (of the lost); gpu_hours_serving, _lent, _isolated, _idle,
        _lost_offline; pools.

        requests_total = finished + lost + in flight, whatever happened. slow : finished, but over the pool's latency
        objectives. pools : the same request counts by pool name.
        """
        counts = self._present(world) - self._base
        in_flight = np.zeros(len(self._names))
        for engine in world.fleet.engines.values():
            in_flight[engine.pool] += world.serving.held(engine.slot)
        rows = dict(
            zip(("total", "lost", "slow", "finished", "in_flight"), (*counts, in_flight), strict=True)
        )  # fmt: skip
        result: dict[str, Any] = {f"requests_{k}": round(float(v.sum())) for k, v in rows.items()}
        result["requests_cut_off"] = self.cut_off
        result |= {f"gpu_hours_{k}": v / 3600.0 for k, v in self._gpu_s.items()}
        result["pools"] = {
            name: {f"requests_{k}": round(float(v[p])) for k, v in rows.items()}
            for p, name in enumerate(self._names)
        }
        return result
