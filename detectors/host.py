"""The host around the GPUs: what its kernel log reports, what its page shows, what its silence means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from daemon.model import Entity, Event, Evidence, Finding, Frame, Frames, Severity
from detectors.claims import Claim, say, trust
from detectors.stats import Streak, rows

EVENTS = {
    "oom_kill": ("host_fault", Severity.WARNING, "the kernel ended a process for lack of memory"),
    "hung_task": ("host_fault", Severity.WARNING, "a task has been stuck in the kernel for minutes"),
    "io_error": ("host_fault", Severity.WARNING, "a disk does not read or write what it is asked to"),
    "fs_readonly": ("host_fault", Severity.CRITICAL, "a filesystem has gone read-only"),
    "mce": ("host_fault", Severity.WARNING, "the processor reports a hardware error"),
    "nvlink": ("nvlink_fault", Severity.WARNING, "the driver reports a fatal NVLink or NVSwitch error"),
}
DISK_SHARE = 0.05
MEMORY_SHARE = 0.03
BLOCKED = 16.0
HELD_S = 300.0
REBOOT_S = 900.0
"""A node that says that it reboots may be silent for so long. Judgement: servers with 8 GPUs take 5 to 12 minutes."""
RECENT_S = 20.0
"""Two scrapes of 15 s that failed are more than this; two of a target that is read every few seconds are not."""
ALL_FAILS = 5
"""Failed scrapes of all exporters of a node together, before RECENT_S tells: four were lost by chance, two of each of the two exporters
of a node that served nobody (published healthy 300, where one scrape of 160 is lost)."""
ALARMS = ("fs_readonly", "oom_kills_per_s")
LEVELS = ("fs_avail_bytes", "fs_size_bytes", "mem_available_bytes", "mem_total_bytes", "procs_blocked")


@dataclass(slots=True)
class Hosts:
    """claims : (node, event kind) -> what its log said. held : how long a level has been bad.

    rebooting : node -> when it said so.
    """

    claims: dict[tuple[Entity, str], Claim] = field(default_factory=dict)
    held: Streak = field(default_factory=Streak)
    rebooting: dict[str, float] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        """Take one event of a host in; kinds that are not the host's are left alone."""
        if event.kind == "reboot":
            self.rebooting[event.entity.name] = event.at
        if event.kind not in EVENTS:
            return
        words = event.text.lower()
        if event.kind == "nvlink" and ("fatal" not in words or "non-fatal" in words or "nonfatal" in words):
            return
        kind, severity, meaning = EVENTS[event.kind]
        text = f"{meaning}: {event.text[:160]}" if event.text else meaning
        known = self.claims.get((event.entity, event.kind))
        if known is not None and trust(event.origin) <= trust(known.origin):
            known.count += 1
            known.at = max(known.at, event.at)
            return
        self.claims[event.entity, event.kind] = Claim(
            event.at, kind, f"fault.host_{event.kind}", severity, 0.8, np.nan, event.origin, text
        )

    def standing(self, at: float, hold_s: float) -> list[Finding]:
        for key in [k for k, c in self.claims.items() if at - c.at > hold_s]:
            del self.claims[key]
        return [claim.finding(at, entity) for (entity, _), claim in self.claims.items()]

    def levels(self, node: Frame) -> list[Finding]:
        """What the node's page shows: disk full, memory short, tasks stuck, filesystem read-only, Fabric Manager down."""
        if not node.entities:
            return []
        alarms, table = node.columns(ALARMS), node.columns(LEVELS)
        with np.errstate(divide="ignore", invalid="ignore"):
            disk, memory = table[:, 0] / table[:, 1], table[:, 2] / table[:, 3]
        manager = node.column("fabric_manager_up")
        found = []
        if (alarms > 0).any():
            for i in rows(alarms[:, 0] > 0):
                found.append(_host(node, i, "host_fs_readonly", "fs_readonly", 1.0, "", Severity.CRITICAL))
            for i in rows(alarms[:, 1] > 0):
                rate = float(alarms[i, 1])
                found.append(_host(node, i, "host_oom_kill", "oom_kills", rate, "1/s", Severity.WARNING))
        for i in rows(disk < DISK_SHARE):
            found.append(
                _host(node, i, "host_disk_full", "disk_free", float(disk[i]), "ratio", Severity.WARNING)
            )
        for i in rows(manager == 0.0):
            found.append(
                _host(node, i, "host_fabric_manager", "fabric_manager_up", 0.0, "bool", Severity.WARNING)
            )
        low = {f"memory {node.entities[i]}": i for i in rows(memory < MEMORY_SHARE)}
        stuck = {f"blocked {node.entities[i]}": i for i in rows(table[:, 4] > BLOCKED)}
        if low or stuck or self.held.last:
            for name, held_s in self.held.held(node.at, [*low, *stuck]).items():
                if held_s < HELD_S:
                    continue
                if name in low:
                    i, value = low[name], float(memory[low[name]])
                    found.append(
                        _host(node, i, "host_memory_short", "memory_free", value, "ratio", Severity.WARNING)
                    )
                else:
                    i, value = stuck[name], float(table[stuck[name], 4])
                    found.append(
                        _host(node, i, "host_blocked", "processes_blocked", value, "", Severity.WARNING)
                    )
        return found


def _host(node: Frame, i: int, rule: str, name: str, value: float, unit: str, severity: Severity) -> Finding:
    return say(
        node.at,
        f"fault.{rule}",
        Entity("node", node.entities[i]),
        "host_fault",
        0.8,
        severity,
        Evidence(name, value, unit),
        text=TEXTS[rule],
    )


TEXTS = {
    "host_fs_readonly": "a filesystem that work is written to is read-only",
    "host_oom_kill": "the kernel ends processes for lack of memory",
    "host_disk_full": "the root filesystem is nearly full",
    "host_fabric_manager": "Fabric Manager does not run: NVLink fabrics fail at the next start of a process",
    "host_memory_short": "memory is all but used up: the kernel will end a process",
    "host_blocked": "many processes wait in the kernel, for a disk or a driver",
}


def silent_nodes(
    frames: Frames, silent_s: float, least_fails: int, rebooting: dict[str, float]
) -> list[Finding]:
    """Every exporter of a node silent, and nothing served from it: a hang or a lost network, not an exporter.

    silent_s : for so long, with a scrape of each failed. least_fails : or so many of each, one after another, over RECENT_S or
    more, and ALL_FAILS together. A single failed scrape of all of them may be a network that was gone for a second. A node that has said that it reboots is
    given the time for it.
    """
    target = frames["target"]
    silent, fails = target.column("silent_s"), target.column("fails")
    long = (silent > silent_s) & (fails > 0)
    quiet = long | ((silent > RECENT_S) & (fails >= least_fails))
    if not quiet.any():
        return []
    by_node: dict[str, list[int]] = {}
    for i, node in enumerate(target.facts.get("node", ())):
        if node:
            by_node.setdefault(node, []).append(i)
    serving = _nodes_serving(frames["engine"])
    found = []
    for node, members in by_node.items():
        if len(members) < 2 or not all(quiet[i] for i in members) or node in serving:
            continue
        if not long[members].all() and fails[members].sum() < ALL_FAILS:
            continue
        if frames.at - rebooting.get(node, -np.inf) < REBOOT_S:
            continue
        evidence = (
            Evidence("targets_silent", float(len(members)), f"of {len(members)}"),
            Evidence("silent", float(min(silent[i] for i in members)), "s"),
        )
        found.append(
            say(
                frames.at,
                "fault.node_silent",
                Entity("node", node),
                "node_hang",
                0.9,
                Severity.CRITICAL,
                *evidence,
                since=frames.at - float(max(silent[i] for i in members)),
                rejected=(
                    f"a sick exporter: all {len(members)} of the node are silent",
                    "telemetry alone: the gateway sees nothing completed from it",
                ),
            )
        )
    return found


def _nodes_serving(engines: Frame) -> set[str]:
    """Nodes from which the load balancer still sees completed requests."""
    done = engines.column("lb_done_per_s")
    homes: Iterable[str] = engines.facts.get("node", ())
    return {node for node, rate in zip(homes, done, strict=False) if rate > 0}
