"""Faults of GPUs, nodes and hosts, from what the hardware states and from what falls silent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from daemon.model import NAN, Array, Entity, Event, Evidence, Finding, Frame, Frames, Severity
from detectors.stats import Groups, Streak, groups, peers, rows
from detectors.xid import classify

THERMAL, BRAKE, SLOWDOWN = 0x20 | 0x40, 0x80, 0x8
ALARMS = (
    "ecc_dbe_per_s",
    "ecc_sbe_per_s",
    "row_remap_failed",
    "row_remap_pending",
    "nvlink_crc_per_s",
    "nvlink_replay_per_s",
    "nvlink_recovery_per_s",
)
DUPLICATE_S = 90.0
"""The kernel log, NVML and the gauge tell of one event at different times; within this span they mean the same."""
BURST_S = 180.0
"""Application errors closer together than this are one crash seen by several programs."""
DAY_S = 86400.0
HOST_EVENTS = {
    "oom_kill": Severity.WARNING,
    "hung_task": Severity.WARNING,
    "io_error": Severity.WARNING,
    "fs_readonly": Severity.CRITICAL,
    "mce": Severity.WARNING,
}


@dataclass(slots=True)
class Claim:
    """A fault known from an event. It stands for `hold_s`, and longer while the GPU stays silent."""

    at: float
    severity: Severity
    score: float
    code: float
    origin: str
    text: str = ""


@dataclass(slots=True)
class FaultDetector:
    """Deterministic checks, seconds after the fact.

    hold_s : how long a claim from an event stands. vanish_s : silence of one GPU beside living siblings.
    throttle_share : clock below peers that makes throttle bits matter; throttle_whole : the same against the best
    clock of the peer group so far, for when the whole group is held back. nvlink_m of nvlink_n one-minute windows.
    sbe_per_s : correctable ECC storm. Sources: docs/en/reference/faults.md.
    """

    hold_s: float = 600.0
    vanish_s: float = 40.0
    throttle_share: float = 0.03
    throttle_whole: float = 0.25
    nvlink_m: int = 15
    nvlink_n: int = 30
    sbe_per_s: float = 10.0
    node_silent_s: float = 35.0
    claims: dict[tuple[str, str, str], Claim] = field(default_factory=dict)
    seen_codes: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    crashes: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    best_clock: dict[str, float] = field(default_factory=dict)
    flagged: dict[str, list[float]] = field(default_factory=dict)
    held: Streak = field(default_factory=Streak)

    def update(self, frames: Frames) -> list[Finding]:
        for event in frames.events:
            self._event(event)
        gpu = frames["gpu"]
        found = [*self._gpu_states(frames, gpu), *self._nodes(frames), *self._host(frames["node"])]
        return [*self._standing(frames, gpu), *found]

    # -- events -----------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        if event.kind == "xid":
            self._xid(event)
        elif event.kind == "gpu_lost":
            self._claim(event, "gpu_lost", Severity.CRITICAL, 1.0)
        elif event.kind == "nvml_hang":
            self._claim(event, "gpu_hang", Severity.CRITICAL, 0.9)
        elif event.kind in HOST_EVENTS:
            self._claim(event, "host_fault", HOST_EVENTS[event.kind], 0.8)

    def _xid(self, event: Event) -> None:
        name, code = event.entity.name, str(int(event.code))
        times = self.seen_codes.setdefault((name, code), [])
        if times and event.at - times[-1] < DUPLICATE_S:
            # No second event; but only the kernel log says what 154 asks for, and the gauge may have been first.
            said = classify(event.code, event.text)
            if event.code == 154 and said.kind:
                self._claim(event, said.kind, said.severity, said.certainty)
            return
        times[:] = [t for t in times if event.at - t < DAY_S] + [event.at]
        found = classify(event.code, event.text)
        kind, severity = found.kind, found.severity
        if kind == "gpu_contained" and len(times) >= 2:
            kind, severity = "gpu_uncontained", Severity.CRITICAL
        if kind == "gpu_app" and self._is_suspect(event):
            severity = Severity.WARNING
        if kind:
            self._claim(event, kind, severity, found.certainty)

    def _is_suspect(self, event: Event) -> bool:
        """One program that crashes says nothing of the GPU; two programs in two bursts within a day do.

        45 only says that a program was ended: it follows other trouble and is never counted.
        """
        if event.code == 45:
            return False
        crashes = self.crashes.setdefault(event.entity.name, [])
        crashes[:] = [c for c in crashes if event.at - c[0] < DAY_S] + [(event.at, event.app)]
        bursts = 1 + sum(later - earlier > BURST_S for (earlier, _), (later, _) in pairwise(crashes))
        return bursts >= 2 and len({app for _, app in crashes if app}) >= 2

    def _claim(self, event: Event, kind: str, severity: Severity, score: float) -> None:
        key = (event.entity.kind, event.entity.name, kind)
        self.claims[key] = Claim(event.at, severity, score, event.code, event.origin, event.text[:200])

    def _standing(self, frames: Frames, gpu: Frame) -> list[Finding]:
        age = dict(zip(gpu.entities, gpu.age_s, strict=True))
        found = []
        for (ekind, name, kind), claim in list(self.claims.items()):
            silent = ekind == "gpu" and name in age and age[name] > self.vanish_s
            if frames.at - claim.at > self.hold_s and not (silent and kind in ("gpu_lost", "gpu_hang")):
                del self.claims[(ekind, name, kind)]
                continue
            evidence = [Evidence("since_event", frames.at - claim.at, "s")]
            if claim.code == claim.code:
                evidence.insert(0, Evidence("xid", claim.code, f"from {claim.origin}"))
            found.append(
                Finding(
                    frames.at,
                    "fault",
                    Entity(ekind, name),
                    kind,
                    claim.score,
                    claim.severity,
                    tuple(evidence),
                    claim.at,
                    claim.text,
                )
            )
        return found

    # -- states -----------------------------------------------------------------------------------------

    def _gpu_states(self, frames: Frames, gpu: Frame) -> list[Finding]:
        if not gpu.entities:
            return []
        where = groups(gpu.facts.get("peer", ("",) * len(gpu.entities)))
        return [
            *self._vanished(gpu),
            *self._throttled(gpu, where),
            *self._alarms(gpu),
            *self._pcie(gpu),
            *self._hung(frames, gpu, where),
        ]

    def _vanished(self, gpu: Frame) -> list[Finding]:
        """A GPU that is silent while its siblings on the same page speak."""
        silent = gpu.age_s > self.vanish_s
        if not silent.any():
            return []
        nodes = [n.split("/", 1)[0] for n in gpu.entities]
        alive = {n for n, s in zip(nodes, silent, strict=True) if not s}
        return [
            self._say(
                gpu, i, "gpu_lost", 0.9, Severity.CRITICAL, Evidence("silent", float(gpu.age_s[i]), "s", 0.0)
            )
            for i in rows(silent)
            if nodes[i] in alive
        ]

    def _throttled(self, gpu: Frame, where: Groups) -> list[Finding]:
        bits, clock = gpu.column("throttle_bits"), gpu.column("sm_clock_mhz")
        best = self._best(gpu, clock, where)
        held_back = np.fmax(bits, 0.0).astype(np.int64) & (THERMAL | BRAKE | SLOWDOWN)
        if not held_back.any():
            return []
        around = peers(clock, where)
        with np.errstate(invalid="ignore"):
            deficit = 1.0 - clock / around.median
            # Peers that are held back alike show no deficit: a whole rack slow for days has gone unseen that way.
            whole = 1.0 - clock / best > self.throttle_whole
        slow = (held_back > 0) & ((deficit > self.throttle_share) | ~np.isfinite(deficit) | whole)
        found = []
        for i in rows(slow):
            evidence = (
                Evidence("sm_clock", float(clock[i]), "MHz", float(around.median[i])),
                Evidence("throttle_bits", float(bits[i]), "bitmask"),
                Evidence("temperature", gpu.value(gpu.entities[i], "temp_c"), "C"),
            )
            found.append(self._say(gpu, i, "gpu_throttle", 0.95, Severity.WARNING, *evidence))
        return found

    def _best(self, gpu: Frame, clock: Array, where: Groups) -> Array:
        """(entity,) highest clock its peer group has shown so far, NaN outside a group."""
        keys = gpu.facts.get("peer", ())
        best = np.full(len(gpu.entities), NAN)
        for member in where.member:
            rows_of = member[member >= 0]
            key = keys[rows_of[0]]
            top = np.fmax.reduce(clock[rows_of], initial=self.best_clock.get(key, NAN))
            if top == top:
                best[rows_of] = self.best_clock[key] = float(top)
        return best

    def _alarms(self, gpu: Frame) -> list[Finding]:
        """What is zero on sound hardware: in nearly every tick one look over all of it is enough."""
        if not self.flagged and not (gpu.columns(ALARMS) > 0).any():
            return []
        return [*self._memory(gpu), *self._links(gpu)]

    def _memory(self, gpu: Frame) -> list[Finding]:
        found = []
        checks = (
            ("ecc_dbe_per_s", 0.0, "gpu_uncontained", Severity.CRITICAL, 1.0),
            ("row_remap_failed", 0.0, "gpu_memory", Severity.CRITICAL, 1.0),
            ("row_remap_pending", 0.0, "gpu_memory", Severity.INFO, 0.8),
        )
        for signal, limit, kind, severity, score in checks:
            values = gpu.column(signal)
            for i in rows(values > limit):
                found.append(self._say(gpu, i, kind, score, severity, Evidence(signal, float(values[i]), "")))
        storms = gpu.column("ecc_sbe_per_s")
        names = [gpu.entities[i] for i in rows(storms > self.sbe_per_s)]
        for name, held_s in self.held.held(gpu.at, [f"sbe {n}" for n in names]).items():
            if held_s >= 300.0:
                i = gpu.entities.index(name.removeprefix("sbe "))
                found.append(
                    self._say(
                        gpu,
                        i,
                        "gpu_memory",
                        0.8,
                        Severity.WARNING,
                        Evidence("ecc_sbe", float(storms[i]), "1/s"),
                    )
                )
        return found

    def _links(self, gpu: Frame) -> list[Finding]:
        found = []
        errors = np.zeros(len(gpu.entities))
        for signal in ("nvlink_crc_per_s", "nvlink_replay_per_s", "nvlink_recovery_per_s"):
            errors += np.fmax(gpu.column(signal), 0.0)
        for i in rows(errors > 0):
            minutes = self.flagged.setdefault(gpu.entities[i], [])
            minute = gpu.at // 60.0
            if not minutes or minutes[-1] != minute:
                minutes.append(minute)
        for name, minutes in list(self.flagged.items()):
            minutes[:] = [m for m in minutes if m > gpu.at // 60.0 - self.nvlink_n]
            if not minutes:
                del self.flagged[name]
            elif len(minutes) > self.nvlink_m and name in gpu.entities:
                i = gpu.entities.index(name)
                evidence = Evidence("minutes_with_nvlink_errors", float(len(minutes)), f"of {self.nvlink_n}")
                found.append(self._say(gpu, i, "nvlink_fault", 0.9, Severity.WARNING, evidence))
        return found

    def _pcie(self, gpu: Frame) -> list[Finding]:
        """Width or generation below the maximum under load; idle links save power and mean nothing."""
        busy = gpu.column("util_ratio") > 0.1
        found = []
        for what in ("width", "gen"):
            now, most = gpu.column(f"pcie_link_{what}"), gpu.column(f"pcie_link_{what}_max")
            for i in rows(busy & (now < most)):
                evidence = Evidence(f"pcie_link_{what}", float(now[i]), "", float(most[i]))
                found.append(self._say(gpu, i, "pcie_downgrade", 1.0, Severity.WARNING, evidence))
        return found

    def _hung(self, frames: Frames, gpu: Frame, where: Groups) -> list[Finding]:
        """Busy by the driver's word, near idle by power, and its engine gives no tokens; or the driver hangs."""
        found = []
        for i in rows(gpu.column("nvml_hang") > 0):
            found.append(
                self._say(gpu, i, "gpu_hang", 0.9, Severity.CRITICAL, Evidence("nvml_hang", 1.0, ""))
            )
        for i in rows(gpu.column("gpu_lost") > 0):
            found.append(self._say(gpu, i, "gpu_lost", 1.0, Severity.CRITICAL, Evidence("gpu_lost", 1.0, "")))
        power, tensor = gpu.column("power_w"), gpu.column("tensor_active_ratio")
        busy = (gpu.column("util_ratio") > 0.98) & ~(tensor > 0.005)
        if not busy.any():
            return found
        around = peers(power, where)
        still = busy & (power < 0.4 * around.median)
        engines = frames["engine"]
        stuck = []
        for i in rows(still):
            engine = gpu.facts["engine"][i] if "engine" in gpu.facts else ""
            if not engines.value(engine, "generation_tokens_s") > 0:
                stuck.append(gpu.entities[i])
        for name, held_s in self.held.held(gpu.at, [f"hang {n}" for n in stuck]).items():
            if held_s >= 60.0:
                i = gpu.entities.index(name.removeprefix("hang "))
                evidence = (
                    Evidence("power", float(power[i]), "W", float(around.median[i])),
                    Evidence("held", held_s, "s"),
                )
                found.append(self._say(gpu, i, "gpu_hang", 0.7, Severity.CRITICAL, *evidence))
        return found

    # -- nodes ------------------------------------------------------------------------------------------

    def _nodes(self, frames: Frames) -> list[Finding]:
        """Every exporter of a node silent, and nothing served from it: a hang or a lost network, not an exporter."""
        target = frames["target"]
        homes = target.facts.get("node", ())
        silent, fails = target.column("silent_s"), target.column("fails")
        by_node: dict[str, list[int]] = {}
        for i, node in enumerate(homes):
            if node:
                by_node.setdefault(node, []).append(i)
        serving = _nodes_serving(frames["engine"])
        found = []
        for node, members in by_node.items():
            if (
                len(members) >= 2
                and all(silent[i] > self.node_silent_s and fails[i] > 0 for i in members)
                and node not in serving
            ):
                evidence = (
                    Evidence("targets_silent", float(len(members)), f"of {len(members)}"),
                    Evidence("silent", float(min(silent[i] for i in members)), "s"),
                )
                since = frames.at - max(silent[i] for i in members)
                entity = Entity("node", node)
                found.append(
                    Finding(frames.at, "fault", entity, "node_hang", 0.9, Severity.CRITICAL, evidence, since)
                )
        return found

    def _host(self, node: Frame) -> list[Finding]:
        found = []
        for signal in ("fs_readonly", "oom_kills_per_s"):
            values = node.column(signal)
            severity = Severity.CRITICAL if signal == "fs_readonly" else Severity.WARNING
            for i in rows(values > 0):
                entity = Entity("node", node.entities[i])
                evidence = (Evidence(signal, float(values[i]), ""),)
                found.append(
                    Finding(node.at, "fault", entity, "host_fault", 0.8, severity, evidence, node.at)
                )
        return found

    def _say(
        self, gpu: Frame, row: int, kind: str, score: float, severity: Severity, *evidence: Evidence
    ) -> Finding:
        entity = Entity("gpu", gpu.entities[row])
        return Finding(gpu.at, "fault", entity, kind, score, severity, evidence, gpu.at)


def _nodes_serving(engines: Frame) -> set[str]:
    """Nodes from which the load balancer still sees completed requests."""
    done = engines.column("lb_done_per_s")
    homes: Iterable[str] = engines.facts.get("node", ())
    return {node for node, rate in zip(homes, done, strict=False) if rate > 0}
