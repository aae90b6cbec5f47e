"""Coloured noise as real fleets show it."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from daemon.model import Array

# Two AR(1) processes whose mix, averaged over minutes, has autocorrelation 0.7 at 1 min, 0.35 at 5, 0.2 at 15, 0 at
# 60; a slowly varying volatility gives the excess kurtosis of 1 to 3; the common mode carries 13 % of the variance.
# Source: real fail-slow telemetry of 1,480 devices, reference notes on stragglers, section 1; the table that compares
# is printed by bench/noise.py.
FAST_S, SLOW_S = 51.0, 1020.0
FAST_SHARE, COMMON_SHARE = 0.614, 0.13
VOLATILITY = 0.35
DEGREES = 8.0
_CELLS = 100_000
"""Values drawn at once: some hours of a small fleet, minutes of a large one."""


class ColouredNoise:
    """Zero-mean unit-variance noise for `groups` of devices, one vector a step of `step_s` seconds.

    groups : sizes; devices of one group share a common mode.
    """

    def __init__(self, groups: tuple[int, ...], step_s: float, rng: Generator) -> None:
        self._rng = rng
        self._sizes = groups
        self.size = sum(groups)
        width = self.size + len(groups)  # one extra channel a group is its common mode
        decay = np.array([np.exp(-step_s / FAST_S), np.exp(-step_s / SLOW_S), np.exp(-step_s / 3600.0)])
        share = np.array([FAST_SHARE, 1 - FAST_SHARE, VOLATILITY**2])
        self._decay = decay[:, None]
        self._gain = np.sqrt(share * (1 - decay**2))[:, None]
        self._state = np.sqrt(share)[:, None] * rng.standard_normal((3, width))
        self._common = np.repeat(np.arange(self.size, width), groups)
        self._own_gain, self._common_gain = np.sqrt(1 - COMMON_SHARE), np.sqrt(COMMON_SHARE)
        self._block = int(np.clip(_CELLS / width, 8, 240))
        self._values = np.empty((0, self.size))
        self._next = 0

    def step(self) -> Array:
        """(device,) the next value of every device."""
        if self._next >= len(self._values):
            self._draw()
        self._next += 1
        now: Array = self._values[self._next - 1]
        return now

    def _draw(self) -> None:
        """The next values of all devices, many steps at once."""
        scale = np.sqrt((DEGREES - 2) / DEGREES)
        shocks = self._rng.standard_t(DEGREES, (self._block, *self._state.shape)) * (scale * self._gain)
        for shock in shocks:
            self._state *= self._decay
            self._state += shock
            shock[:] = self._state
        # exp(-s^2) keeps the variance at one however volatile the devices are
        mixed = (shocks[:, 0] + shocks[:, 1]) * np.exp(shocks[:, 2] - VOLATILITY**2)
        self._values = mixed[:, : self.size] * self._own_gain
        self._values += mixed[:, self._common] * self._common_gain
        self._next = 0


class Excursions:
    """Benign short slow-downs of single devices: 0.5 to 2 % of the time, a few percent deep, decaying in minutes."""

    def __init__(self, size: int, step_s: float, rng: Generator, per_day: float = 2.0) -> None:
        self._rng = rng
        self._size = size
        self._decay = float(np.exp(-step_s / 240.0))
        self._chance = per_day * step_s / 86400.0
        self.depth = np.zeros(size)

    def step(self) -> Array:
        """(device,) relative depth now, 0 = none."""
        self.depth *= self._decay
        for _ in range(int(self._rng.poisson(self._chance * self._size))):
            self.depth[int(self._rng.integers(self._size))] = self._rng.uniform(0.02, 0.06)
        return self.depth
