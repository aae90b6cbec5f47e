"""What others do, on the same frames: static thresholds, own history, isolation forest, CUSUM, distances, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from bench.watch import Watcher
from daemon.model import NAN, Array, Entity, Frame, Frames
from detectors.stats import groups, peers

Alarms = Sequence[tuple[Entity, str]]

GPU = (
    "sm_clock_mhz",
    "power_w",
    "tensor_active_ratio",
    "dram_active_ratio",
    "sm_active_ratio",
    "nvlink_tx_bytes_s",
)
ENGINE = ("itl_mean_s", "ttft_mean_s", "running", "generation_tokens_s")
PORT = ("rx_bytes_s", "tx_bytes_s", "rx_pause_ratio", "tx_pause_ratio", "corrected_bits_per_s")
WATCHED: Mapping[str, tuple[str, ...]] = {"gpu": GPU, "engine": ENGINE, "port": PORT}
LEARN_MIN = 60
"""Minutes every baseline that learns may look before it judges."""


class Minutes:
    """Means over a minute of what the baselines look at.

    take gives, once a minute, the frame and (entity, signal) means; None meanwhile. Forgets all when entities change.
    """

    def __init__(self, kind: str, ticks: int = 4) -> None:
        self.kind, self._ticks = kind, ticks
        self._names: tuple[str, ...] = ()
        self._rows: list[Array] = []
        self.is_new = True

    def take(self, frames: Frames) -> tuple[Frame, Array] | None:
        frame = frames[self.kind]
        self.is_new = frame.entities != self._names
        if self.is_new:
            self._names, self._rows = frame.entities, []
        if not frame.entities:
            return None
        self._rows.append(frame.columns(WATCHED[self.kind]))
        if len(self._rows) < self._ticks:
            return None
        stack = np.stack(self._rows)
        self._rows = []
        known = np.isfinite(stack)
        number = known.sum(axis=0)
        mean = np.where(known, stack, 0.0).sum(axis=0) / np.maximum(number, 1)
        return frame, np.where(number > 0, mean, NAN)


def _named(frame: Frame, mask: NDArray[np.bool_], why: str) -> list[tuple[Entity, str]]:
    return [(Entity(frame.kind, frame.entities[i]), why) for i in np.flatnonzero(mask).tolist()]


class Static:
    """The usual alert rules: one threshold a signal, held for a minute. Source of the values: the rules that
    dcgm-exporter's, kube-prometheus' and vLLM's example alert files ship, as commonly written."""

    GPU_RULES = (
        ("temp_c", 88.0, "gpu_throttle"), ("ecc_dbe_per_s", 0.0, "gpu_uncontained"),
        ("row_remap_failed", 0.0, "gpu_memory"), ("ecc_sbe_per_s", 10.0, "gpu_memory"),
        ("nvlink_replay_per_s", 0.0, "nvlink_fault"), ("nvlink_recovery_per_s", 0.0, "nvlink_fault"),
        ("thermal_violation_ratio", 0.1, "gpu_throttle"), ("pcie_replay_per_s", 0.2, "pcie_downgrade"),
        ("xid_code", 0.0, "gpu_lost"),
    )  # fmt: skip
    PORT_RULES = (
        ("symbol_errors_per_s", 0.0, "bad_cable"), ("link_downed_per_s", 0.0, "bad_cable"),
        ("tx_pause_ratio", 0.1, "pfc_storm"), ("rx_discards_per_s", 10.0, "host_drain"),
        ("out_of_buffer_per_s", 1.0, "slow_receiver"), ("ecn_marked_per_s", 1000.0, "incast"),
        ("ack_timeouts_per_s", 0.1, "lossy_fabric"), ("corrected_bits_per_s", 1e4, "optic_ageing"),
    )  # fmt: skip
    HOLD_TICKS = 4

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], int] = {}

    def __call__(self, frames: Frames) -> Alarms:
        now: dict[tuple[str, str], tuple[Entity, str]] = {}
        for kind, rules in (("gpu", self.GPU_RULES), ("port", self.PORT_RULES)):
            frame = frames[kind]
            for signal, limit, why in rules:
                for entity, said in _named(frame, frame.column(signal) > limit, why):
                    now[(entity.name, said)] = (entity, said)
        engine, target = frames["engine"], frames["target"]
        for entity, said in _named(engine, engine.column("itl_mean_s") > 0.1, "replica_slow"):
            now[(entity.name, said)] = (entity, said)
        for entity, said in _named(target, target.column("silent_s") > 60.0, "target_down"):
            now[(entity.name, said)] = (entity, said)
        self._held = {key: self._held.get(key, 0) + 1 for key in now}
        at_once = {"gpu_lost", "gpu_uncontained"}
        return [now[k] for k, held in self._held.items() if held >= self.HOLD_TICKS or k[1] in at_once]


class OwnHistory:
    """Minute means against the entity's own exponentially weighted mean and deviation, three minutes in a row."""

    LIMIT, HALF_LIFE_MIN, IN_A_ROW = 20.0, 120.0, 3

    def __init__(self) -> None:
        self._minutes = {kind: Minutes(kind) for kind in WATCHED}
        self._state: dict[str, list[Array]] = {}
        self._seen: dict[str, int] = {}
        self._said: list[tuple[Entity, str]] = []

    def __call__(self, frames: Frames) -> Alarms:
        for kind, minutes in self._minutes.items():
            given = minutes.take(frames)
            if minutes.is_new:
                self._state.pop(kind, None)
            if given is not None:
                frame, row = given
                hit = self._judge(kind, row)
                self._said = [s for s in self._said if s[0].kind != kind] + _named(frame, hit, "own history")
        return self._said

    def _judge(self, kind: str, row: Array) -> NDArray[np.bool_]:
        if kind not in self._state:
            self._state[kind] = [row.copy(), np.zeros_like(row), np.zeros(row.shape)]
            self._seen[kind] = 0
        mean, square, streak = self._state[kind]
        self._seen[kind] += 1
        with np.errstate(invalid="ignore", divide="ignore"):
            sigma = np.sqrt(square) + 1e-3 * np.abs(mean) + 1e-9
            z = np.abs(row - mean) / sigma
        off = (z > self.LIMIT) & (self._seen[kind] > LEARN_MIN)
        streak[:] = np.where(off, streak + 1, 0)
        weight = np.where(off | ~np.isfinite(row), 0.0, 1 - 0.5 ** (1 / self.HALF_LIFE_MIN))
        weight = np.where(np.isfinite(mean), weight, np.where(np.isfinite(row), 1.0, 0.0))
        step = np.where(weight > 0, np.nan_to_num(row) - np.nan_to_num(mean), 0.0)
        known = np.isfinite(mean)
        mean[:] = np.where(known, mean + weight * step, row)
        square[:] = np.where(known & (weight > 0), (1 - weight) * (square + weight * step**2), square)
        return np.asarray((streak >= self.IN_A_ROW).any(axis=1))


class Forest:
    """scikit-learn's IsolationForest on minute means over the peer median, fitted on the first hour, asked every five
    minutes, twice in a row."""

    EVERY_MIN, KEPT_ROWS, QUANTILE = 5, 20_000, 1e-2

    def __init__(self) -> None:
        self._minutes = {kind: Minutes(kind) for kind in ("gpu", "engine")}
        self._past: dict[str, list[Array]] = {kind: [] for kind in self._minutes}
        self._model: dict[str, tuple[IsolationForest, float]] = {}
        self._seen = dict.fromkeys(self._minutes, 0)
        self._last: dict[str, frozenset[Entity]] = {}
        self._said: list[tuple[Entity, str]] = []

    def __call__(self, frames: Frames) -> Alarms:
        for kind, minutes in self._minutes.items():
            given = minutes.take(frames)
            if given is None:
                continue
            frame, row = given
            ratio = _over_peers(frame, row)
            self._seen[kind] += 1
            if kind not in self._model:
                self._learn(kind, ratio)
            elif self._seen[kind] % self.EVERY_MIN == 0:
                self._ask(kind, frame, ratio)
        return self._said

    def _learn(self, kind: str, ratio: Array) -> None:
        self._past[kind].append(ratio[np.isfinite(ratio).all(axis=1)])
        if self._seen[kind] < LEARN_MIN:
            return
        rows = np.concatenate(self._past[kind])
        self._past[kind] = []
        if len(rows) < 256:
            return
        if len(rows) > self.KEPT_ROWS:
            rows = rows[:: len(rows) // self.KEPT_ROWS + 1]
        model = IsolationForest(n_estimators=100, random_state=0).fit(rows)
        self._model[kind] = (model, float(np.quantile(model.score_samples(rows), self.QUANTILE)))

    def _ask(self, kind: str, frame: Frame, ratio: Array) -> None:
        model, limit = self._model[kind]
        known = np.isfinite(ratio).all(axis=1)
        score = np.full(len(ratio), np.inf)
        if known.any():
            score[known] = model.score_samples(ratio[known])
        odd = frozenset(e for e, _ in _named(frame, score < limit, ""))
        twice = odd & self._last.get(kind, frozenset())
        self._last[kind] = odd
        self._said = [s for s in self._said if s[0].kind != kind]
        self._said += [(e, "forest") for e in sorted(twice)]


def _over_peers(frame: Frame, row: Array) -> Array:
    """(entity, signal) log of each value over its peers' median; NaN where it has none."""
    where = groups(frame.facts.get("peer", ("",) * len(frame.entities)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = np.stack(
            [np.log(column / peers(column, where, least=2).median) for column in row.T], axis=1
        )
    ratio[~np.isfinite(ratio)] = NAN
    return ratio


class Cusum:
    """One-minute CUSUM of the residual over peers, in standard deviations of the entity's first hour; k 0.5.

    The textbook's limit of 8 gives 2,500 false alarms in 200 GPU-days; 300 was the best of those tried."""

    SLACK, LIMIT = 0.5, 300.0
    SLOW_SIGN: Mapping[str, tuple[float, ...]] = {"gpu": (-1, -1, 1, 1, 1, -1), "engine": (1, 1, 0, -1)}

    def __init__(self) -> None:
        self._minutes = {kind: Minutes(kind) for kind in self.SLOW_SIGN}
        self._past: dict[str, list[Array]] = {}
        self._usual: dict[str, tuple[Array, Array, Array]] = {}
        self._said: list[tuple[Entity, str]] = []

    def __call__(self, frames: Frames) -> Alarms:
        for kind, minutes in self._minutes.items():
            given = minutes.take(frames)
            if minutes.is_new:
                self._past.pop(kind, None)
                self._usual.pop(kind, None)
            if given is None:
                continue
            frame, row = given
            ratio = _over_peers(frame, row) * np.array(self.SLOW_SIGN[kind])
            hit = self._judge(kind, ratio)
            self._said = [s for s in self._said if s[0].kind != kind] + _named(frame, hit, "cusum")
        return self._said

    def _judge(self, kind: str, ratio: Array) -> NDArray[np.bool_]:
        if kind not in self._usual:
            past = self._past.setdefault(kind, [])
            past.append(ratio)
            if len(past) >= LEARN_MIN:
                stack = np.stack(past)
                known = np.isfinite(stack)
                number = np.maximum(known.sum(axis=0), 1)
                mean = np.where(known, stack, 0.0).sum(axis=0) / number
                sigma = np.sqrt(np.where(known, (stack - mean) ** 2, 0.0).sum(axis=0) / number)
                self._usual[kind] = (mean, np.maximum(sigma, 1e-3), np.zeros(ratio.shape))
            return np.zeros(len(ratio), dtype=bool)
        mean, sigma, total = self._usual[kind]
        z = np.nan_to_num((ratio - mean) / sigma)
        total[:] = np.clip(total + z - self.SLACK, 0.0, 3 * self.LIMIT)
        return np.asarray((total > self.LIMIT).any(axis=1))


class Distance:
    """Minder's idea without its neural denoising: who is far from all others, in the sum of pairwise distances over
    8-minute windows of each signal, four windows in a row. Source: Minder (NSDI 2025), as recalled."""

    WINDOW_MIN, IN_A_ROW, LIMIT = 8, 4, 6.0

    def __init__(self) -> None:
        self._minutes = {kind: Minutes(kind) for kind in ("gpu", "engine")}
        self._past: dict[str, list[Array]] = {}
        self._streak: dict[str, dict[Entity, int]] = {}
        self._said: list[tuple[Entity, str]] = []

    def __call__(self, frames: Frames) -> Alarms:
        for kind, minutes in self._minutes.items():
            given = minutes.take(frames)
            if minutes.is_new:
                self._past.pop(kind, None)
            if given is None:
                continue
            frame, row = given
            past = self._past.setdefault(kind, [])
            past.append(row)
            del past[: -self.WINDOW_MIN]
            if len(past) == self.WINDOW_MIN:
                self._judge(kind, frame, np.stack(past, axis=1))
        return self._said

    def _judge(self, kind: str, frame: Frame, window: Array) -> None:
        """window : (entity, minute, signal)."""
        where = groups(frame.facts.get("peer", ("",) * len(frame.entities)))
        outliers: set[Entity] = set()
        for member in where.member:
            rows = member[member >= 0]
            rows = rows[np.isfinite(window[rows]).all(axis=(1, 2))]
            if rows.size < 4:
                continue
            far = self._farthest(window[rows])
            if far >= 0:
                outliers.add(Entity(kind, frame.entities[int(rows[far])]))
        before = self._streak.get(kind, {})
        now = self._streak[kind] = {e: before.get(e, 0) + 1 for e in outliers}
        self._said = [s for s in self._said if s[0].kind != kind]
        self._said += [(e, "distance") for e in sorted(now) if now[e] >= self.IN_A_ROW]

    def _farthest(self, values: Array) -> int:
        """Row of the machine that stands out most in any signal, -1 = none."""
        best, which = self.LIMIT, -1
        for signal in range(values.shape[2]):
            part = values[:, :, signal]
            spread = part.max() - part.min()
            if spread <= 0:
                continue
            part = (part - part.min()) / spread
            square = (part**2).sum(axis=1)
            apart = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * part @ part.T, 0.0)).sum(
                axis=1
            )
            sigma = float(apart.std())
            top = int(apart.argmax())
            z = (float(apart[top]) - float(apart.mean())) / sigma if sigma > 0 else 0.0
            if z > best:
                best, which = z, top
        return which


class Score:
    """NVIDIA's resiliency extension: performance over the best of the peers, below 0.75, asked every 300 s."""

    LIMIT, EVERY_MIN = 0.75, 5

    def __init__(self) -> None:
        self._minutes = {kind: Minutes(kind, 4 * self.EVERY_MIN) for kind in ("gpu", "engine")}
        self._said: list[tuple[Entity, str]] = []

    def __call__(self, frames: Frames) -> Alarms:
        for kind, minutes in self._minutes.items():
            given = minutes.take(frames)
            if given is None:
                continue
            frame, row = given
            where = groups(frame.facts.get("peer", ("",) * len(frame.entities)))
            with np.errstate(divide="ignore", invalid="ignore"):
                speed = row[:, 0] if kind == "gpu" else 1.0 / row[:, 0]
            slow = np.zeros(len(speed), dtype=bool)
            for member in where.member:
                rows = member[member >= 0]
                known = rows[np.isfinite(speed[rows])]
                if known.size >= 2:
                    slow[known] = speed[known] < self.LIMIT * np.median(speed[known])
            self._said = [s for s in self._said if s[0].kind != kind] + _named(frame, slow, "score")
        return self._said


BASELINES: Mapping[str, Callable[[], Watcher]] = {
    "static": Static, "own history": OwnHistory, "forest": Forest, "cusum": Cusum, "distance": Distance,
    "score 0.75": Score,
}  # fmt: skip
