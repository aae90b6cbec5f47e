"""Faults of GPUs, nodes and hosts, from what the hardware states and from what falls silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon.model import NAN, Entity, Event, Evidence, Finding, Frame, Frames, Severity
from detectors import links, xid
from detectors.bursts import Bursts
from detectors.claims import Claim, say
from detectors.clocks import Clocks
from detectors.host import Hosts, silent_nodes
from detectors.links import Links
from detectors.memory import Memory
from detectors.stats import Streak, groups, peers, rows

LIMITS = {
    "ecc_dbe_per_s": 0.0,
    "ecc_sbe_per_s": 0.0,
    "row_remap_failed": 0.0,
    "row_remap_pending": 0.0,
    "pages_retired_pending": 0.0,
    "banks_no_rows": 0.0,
    "nvlink_crc_per_s": 0.0,
    "nvlink_replay_per_s": 0.0,
    "nvlink_recovery_per_s": 0.0,
    "pcie_replay_per_s": links.REPLAYS_PER_S,
    "fabric_health": 1.0,
    "fabric_manager_status": 3.0,
    "recovery_action": 0.0,
    "nvml_hang": 0.0,
    "gpu_lost": 0.0,
}
"""What sound hardware never exceeds: in nearly every tick one look over all of it is enough."""
_SIGNALS, _LIMITS = tuple(LIMITS), np.array(list(LIMITS.values()))


@dataclass(slots=True)
class FaultDetector:
    """Deterministic checks, seconds after the fact.

    hold_s : how long a claim from an event stands. vanish_s : silence of one GPU beside living siblings;
    vanish_idle_s : the same of one that carries nothing, which may be under reconfiguration (MIG, a reset).
    throttle_share : clock below peers that makes throttle bits matter; throttle_whole : the same against the best
    clock of the peer group so far, for when the whole group is held back. nvlink_m of nvlink_n one-minute windows.
    sbe_per_s : correctable ECC storm. node_silent_s : silence of all pages of a node; node_fails : or so many scrapes that each of them
    has failed. Sources: docs/en/reference/faults.md.
    """

    hold_s: float = 600.0
    vanish_s: float = 40.0
    vanish_idle_s: float = 300.0
    throttle_share: float = 0.03
    throttle_whole: float = 0.25
    nvlink_m: int = 15
    nvlink_n: int = 30
    sbe_per_s: float = 10.0
    node_silent_s: float = 35.0
    node_fails: int = 2
    hang_s: float = 60.0
    bursts: Bursts = field(default_factory=Bursts)
    driver: dict[tuple[Entity, str], Claim] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    links: Links = field(default_factory=Links)
    clocks: Clocks = field(default_factory=Clocks)
    hosts: Hosts = field(default_factory=Hosts)
    held: Streak = field(default_factory=Streak)

    def update(self, frames: Frames) -> list[Finding]:
        told = frames.told.get("xid", {})
        # One cause is often told by several lines of the same instant: in order of time, whoever delivered them.
        for event in sorted(frames.events, key=lambda e: e.at):
            self._hear(event, told)
        gpu = frames["gpu"]
        silent = gpu.age_s > self.vanish_s
        gone = frozenset(gpu.entities[i] for i in rows(silent)) if silent.any() else frozenset()
        found = [
            *self.bursts.standing(frames.at, self.hold_s, gone),
            *self._driver(frames.at, gone),
            *self.hosts.standing(frames.at, self.hold_s),
            *self.hosts.levels(frames["node"]),
            *silent_nodes(frames, self.node_silent_s, self.node_fails, self.hosts.rebooting),
        ]
        return [*found, *self._gpus(frames, gpu, silent)] if gpu.entities else found

    # -- events -----------------------------------------------------------------------------------------

    def _hear(self, event: Event, told: Mapping[str, str]) -> None:
        if event.kind == "xid":
            self.bursts.hear(event, told)
        elif event.kind in ("gpu_lost", "nvml_hang"):
            kind, rule = (
                ("gpu_lost", "fault.nvml_lost")
                if event.kind == "gpu_lost"
                else ("gpu_hang", "fault.nvml_hang")
            )
            score = 1.0 if event.kind == "gpu_lost" else 0.9
            self.driver[event.entity, kind] = Claim(
                event.at, kind, rule, Severity.CRITICAL, score, NAN, event.origin, event.text[:200]
            )
        else:
            self.hosts.hear(event)

    def _driver(self, at: float, gone: frozenset[str]) -> list[Finding]:
        for key in [k for k, c in self.driver.items() if at - c.at > self.hold_s and k[0].name not in gone]:
            del self.driver[key]
        return [claim.finding(at, entity) for (entity, _), claim in self.driver.items()]

    # -- states -----------------------------------------------------------------------------------------

    def _gpus(self, frames: Frames, gpu: Frame, silent: np.ndarray) -> list[Finding]:
        found = [
            *(self._vanished(gpu, silent) if silent.any() else ()),
            *self.clocks.throttled(gpu, self.throttle_share, self.throttle_whole),
            *self.links.pcie(gpu),
            *self._hung(frames, gpu),
            *self.memory.slope(gpu),
        ]
        if self.links.flagged or (gpu.columns(_SIGNALS) > _LIMITS).any():
            found += self.memory.states(gpu, self.sbe_per_s)
            found += self.links.nvlink(gpu, self.nvlink_m, self.nvlink_n)
            found += self.links.replays(gpu)
            found += links.fabric(gpu)
            found += self._stated(gpu)
        return found

    def _vanished(self, gpu: Frame, silent: np.ndarray) -> list[Finding]:
        """A GPU that is silent while its siblings on the same page speak."""
        nodes = [n.split("/", 1)[0] for n in gpu.entities]
        alive = {n for n, s in zip(nodes, silent, strict=True) if not s}
        engines = gpu.facts.get("engine", ("",) * len(gpu.entities))
        found = []
        for i in rows(silent):
            limit = self.vanish_s if engines[i] else self.vanish_idle_s
            if nodes[i] not in alive or not gpu.age_s[i] > limit:
                continue
            evidence = Evidence("silent", float(gpu.age_s[i]), "s", 0.0)
            why = ["the outage of an exporter: its siblings on the same page speak"]
            if engines[i]:
                why.append(f"a reconfiguration: it carries {engines[i]}")
            entity = Entity("gpu", gpu.entities[i])
            since = gpu.at - float(gpu.age_s[i])
            found.append(
                say(
                    gpu.at,
                    "fault.gpu_vanished",
                    entity,
                    "gpu_lost",
                    0.9,
                    Severity.CRITICAL,
                    evidence,
                    since=since if np.isfinite(since) else NAN,
                    rejected=tuple(why),
                )
            )
        return found

    def _stated(self, gpu: Frame) -> list[Finding]:
        """What the driver says of a GPU in so many words: hanging, lost, to be reset."""
        found = []
        for signal, rule, kind, score in (
            ("nvml_hang", "fault.nvml_hang", "gpu_hang", 0.9),
            ("gpu_lost", "fault.nvml_lost", "gpu_lost", 1.0),
        ):
            for i in rows(gpu.column(signal) > 0):
                entity = Entity("gpu", gpu.entities[i])
                evidence = Evidence(signal, 1.0, "bool")
                found.append(say(gpu.at, rule, entity, kind, score, Severity.CRITICAL, evidence))
        action = gpu.column("recovery_action")
        for i in rows(action > 0):
            stated = xid.ACTION_CODES.get(int(action[i]))
            if stated is None:
                continue
            found.append(
                say(
                    gpu.at,
                    "fault.recovery_action",
                    Entity("gpu", gpu.entities[i]),
                    stated.kind,
                    stated.certainty,
                    stated.severity,
                    Evidence("recovery_action", float(action[i]), "code", 0.0),
                    text="the driver itself states what is needed",
                )
            )
        return found

    def _hung(self, frames: Frames, gpu: Frame) -> list[Finding]:
        """Busy by the driver's word, near idle by power, and its engine gives no tokens."""
        power, tensor = gpu.column("power_w"), gpu.column("tensor_active_ratio")
        busy = (gpu.column("util_ratio") > 0.98) & ~(tensor > 0.005)
        if not busy.any():
            return []
        around = peers(power, groups(gpu.facts.get("peer", ("",) * len(gpu.entities))))
        stuck = self._without_tokens(frames, gpu, busy & (power < 0.4 * around.median))
        place = {gpu.entities[i]: i for i in stuck}
        return [
            say(
                gpu.at,
                "fault.hang_power",
                Entity("gpu", name),
                "gpu_hang",
                0.7,
                Severity.CRITICAL,
                Evidence("power", float(power[place[name]]), "W", float(around.median[place[name]])),
                Evidence("held", held_s, "s"),
                since=gpu.at - held_s,
                rejected=(
                    "work: it draws the power of an idle GPU",
                    "idleness: the driver calls it busy throughout",
                ),
            )
            for name, held_s in self.held.held(gpu.at, list(place)).items()
            if held_s >= self.hang_s
        ]

    def _without_tokens(self, frames: Frames, gpu: Frame, still: np.ndarray) -> list[int]:
        engines = frames["engine"]
        owner = gpu.facts.get("engine", ("",) * len(gpu.entities))
        return [i for i in rows(still) if not engines.value(owner[i], "generation_tokens_s") > 0]
