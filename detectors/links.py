"""The links of a GPU inside its node: NVLink, its fabric, PCIe."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daemon.model import Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.stats import Streak, rows

ERRORS = ("nvlink_crc_per_s", "nvlink_replay_per_s", "nvlink_recovery_per_s")
PCIE = ("util_ratio", "pcie_link_width", "pcie_link_width_max", "pcie_link_gen", "pcie_link_gen_max")
REPLAYS_PER_S = 0.2
REPLAYS_HELD_S = 600.0
GEN_HELD_S = 10.0
"""A generation below the maximum is believed when a second scrape shows it: an idle link trains down to save power, and a page may
hold the link of a moment ago beside the work of now. The width is not lowered for that. Source: docs/en/reference/faults.md."""
SWITCH_SHARE = 0.5


@dataclass(slots=True)
class Links:
    """flagged : GPU -> minutes with NVLink errors. held : how long PCIe replays have come. below : how long a GPU has worked at a
    lower PCIe generation."""

    flagged: dict[str, list[float]] = field(default_factory=dict)
    held: Streak = field(default_factory=Streak)
    below: Streak = field(default_factory=Streak)

    def nvlink(self, gpu: Frame, m: int, n: int) -> list[Finding]:
        """Errors in more than m of the last n one-minute windows: a counter reset flags one at most."""
        errors = np.fmax(gpu.columns(ERRORS), 0.0)
        for i in rows(np.nansum(errors, axis=1) > 0):
            minutes = self.flagged.setdefault(gpu.entities[i], [])
            if not minutes or minutes[-1] != gpu.at // 60.0:
                minutes.append(gpu.at // 60.0)
        sick: dict[str, int] = {}
        place = {name: i for i, name in enumerate(gpu.entities)} if self.flagged else {}
        for name, minutes in list(self.flagged.items()):
            minutes[:] = [t for t in minutes if t > gpu.at // 60.0 - n]
            if not minutes:
                del self.flagged[name]
            elif len(minutes) > m and name in place:
                sick[name] = len(minutes)
        return [self._claim(gpu, name, count, sick, n) for name, count in sick.items()]

    def _claim(self, gpu: Frame, name: str, count: int, sick: dict[str, int], n: int) -> Finding:
        """Both ends report: the link. Most GPUs of the node report: the switch they share."""
        node = name.split("/", 1)[0] + "/"
        siblings = sum(g.startswith(node) for g in gpu.entities)
        ill = sum(g.startswith(node) for g in sick)
        where = "this GPU or its switch port"
        if ill == 2:
            where = "the link between the two GPUs that report"
        elif ill >= 3 and ill > SWITCH_SHARE * siblings:
            where = "the switch: most GPUs of the node report"
        evidence = (
            Evidence("minutes_with_nvlink_errors", float(count), f"of {n}"),
            Evidence("gpus_reporting", float(ill), f"of {siblings} on the node"),
        )
        return say(
            gpu.at,
            "fault.nvlink_errors",
            Entity("gpu", name),
            "nvlink_fault",
            0.9,
            Severity.WARNING,
            *evidence,
            text=f"errors minute after minute; to blame: {where}",
            rejected=("a counter reset: it flags one minute, not " + str(count),),
        )

    def pcie(self, gpu: Frame) -> list[Finding]:
        """Width or generation below the maximum under load; idle links save power and mean nothing."""
        table = gpu.columns(PCIE)
        works = table[:, 0] > 0.1
        narrow, slow = works & (table[:, 1] < table[:, 2]), works & (table[:, 3] < table[:, 4])
        held = self.below.held(gpu.at, [gpu.entities[i] for i in rows(slow)]) if slow.any() else {}
        found = []
        for i in rows(narrow | slow):
            is_slow = held.get(gpu.entities[i], 0.0) >= GEN_HELD_S
            for what, is_below, now, most in (
                ("width", narrow[i], *table[i, 1:3]),
                ("gen", is_slow, *table[i, 3:5]),
            ):
                if is_below:
                    found.append(
                        say(
                            gpu.at,
                            "fault.pcie_downtrain",
                            Entity("gpu", gpu.entities[i]),
                            "pcie_downgrade",
                            1.0,
                            Severity.WARNING,
                            Evidence(f"pcie_link_{what}", float(now), "", float(most)),
                            Evidence("busy", float(table[i, 0]), "ratio"),
                            rejected=(
                                "power saving of an idle link: the GPU is busy "
                                f"{table[i, 0]:.0%} of the time",
                            ),
                        )
                    )
        return found

    def replays(self, gpu: Frame) -> list[Finding]:
        """PCIe packets sent again, minute after minute: the slot, the riser or the card."""
        rate = gpu.column("pcie_replay_per_s")
        place = {gpu.entities[i]: i for i in rows(rate > REPLAYS_PER_S)}
        return [
            say(
                gpu.at,
                "fault.pcie_replay",
                Entity("gpu", name),
                "pcie_errors",
                0.7,
                Severity.INFO,
                Evidence("pcie_replay", float(rate[place[name]]), "1/s", 0.0),
                Evidence("held", held_s, "s"),
                since=gpu.at - held_s,
            )
            for name, held_s in self.held.held(gpu.at, list(place)).items()
            if held_s >= REPLAYS_HELD_S
        ]


def fabric(gpu: Frame) -> list[Finding]:
    """What the GPU says of its NVLink fabric: 2 unhealthy, 3 limited; Fabric Manager 4 failed."""
    health = gpu.column("fabric_health")
    words = {2: ("unhealthy", Severity.CRITICAL), 3: ("limited", Severity.WARNING)}
    failed = [
        say(
            gpu.at,
            "fault.fabric_manager",
            Entity("gpu", gpu.entities[i]),
            "nvlink_fault",
            0.9,
            Severity.WARNING,
            Evidence("fabric_manager_status", 4.0, "code", 3.0),
            text="Fabric Manager has failed for this GPU",
        )
        for i in rows(gpu.column("fabric_manager_status") == 4.0)
    ]
    return failed + [
        say(
            gpu.at,
            "fault.fabric_health",
            Entity("gpu", gpu.entities[i]),
            "nvlink_fault",
            0.9,
            words[int(health[i])][1],
            Evidence("fabric_health", float(health[i]), "code", 1.0),
            text=f"the fabric is {words[int(health[i])][0]}, says the GPU",
        )
        for i in rows((health == 2.0) | (health == 3.0))
    ]
