"""Trouble on the network: which pattern of the table, and at which port, link or leaf."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from daemon.model import Array, Entity, Evidence, Finding, Frame, Frames, Severity
from detectors.stats import Streak, groups, peers, rows

PHYSICAL = (
    "symbol_errors_per_s",
    "crc_errors_per_s",
    "link_recovery_per_s",
    "link_downed_per_s",
    "link_flaps_per_s",
)


@dataclass(slots=True)
class CongestionDetector:
    """Signatures on host ports; without switch telemetry a leaf is inferred, and the score says so.

    storm_ratio : share of time a port pauses the network. busy_ratio, idle_ratio : of the link rate.
    errors_m of errors_n ticks with physical errors make a bad cable; a link that went down does at once.
    odd_share : a larger share of equal ports below the others is a generation or a setting, and nobody's fault.
    Source: docs/en/reference/congestion.md.
    """

    storm_ratio: float = 0.2
    busy_ratio: float = 0.85
    idle_ratio: float = 0.10
    errors_m: int = 3
    errors_n: int = 8
    naks_per_s: float = 1.0
    marks_per_s: float = 100.0
    ageing_decades: float = 1.0
    odd_share: float = 0.05
    flagged: dict[str, list[int]] = field(default_factory=dict)
    best_rate: dict[str, float] = field(default_factory=dict)
    was_active: set[str] = field(default_factory=set)
    pause_began: dict[str, float] = field(default_factory=dict)
    ageing: list[Finding] = field(default_factory=list)
    held: Streak = field(default_factory=Streak)
    ticks: int = 0

    def update(self, frames: Frames) -> list[Finding]:
        port = frames["port"]
        if not port.entities:
            return []
        self.ticks += 1
        rate = port.column("rate_bytes_s")
        errors = sum_known([port.column(s) for s in PHYSICAL])
        return [
            *self._downgrade(port, rate),
            *self._cable(port, errors),
            *self._storm(port, rate, errors),
            *self._incast(port, rate),
            *self._software(port, errors),
            *self._lossy(port, errors),
            *self._ageing(port),
        ]

    def _downgrade(self, port: Frame, rate: Array) -> list[Finding]:
        """Deterministic: the negotiated rate is below what the same port had, or below what all its peers have.

        A port that was never up while we looked is not in use: its state and rate say nothing.
        """
        state = port.column("state_id")
        self.was_active |= {port.entities[i] for i in rows(state == 4)}
        in_use = np.array([n in self.was_active for n in port.entities]) | ~np.isfinite(state)
        rate = np.where(in_use, rate, np.nan)
        best = np.array([self.best_rate.get(n, 0.0) for n in port.entities])
        for i in rows(rate > best):
            best[i] = self.best_rate[port.entities[i]] = float(rate[i])
        # Only when some rate differs from another is there anything to compare.
        if np.nanmin(rate, initial=np.inf) < 0.9 * np.nanmax(rate, initial=0.0):
            best = np.fmax(best, self._best_of_peers(port, rate))
        found = []
        for i in rows(rate < 0.9 * best):
            evidence = Evidence("rate", float(rate[i]), "B/s", float(best[i]))
            found.append(_say(port, i, "nic_downgrade", 1.0, Severity.WARNING, evidence))
        for i in rows((state < 4) & in_use):
            evidence = Evidence("state", float(state[i]), "code", 4.0)
            found.append(_say(port, i, "bad_cable", 0.9, Severity.CRITICAL, evidence))
        return found

    def _best_of_peers(self, port: Frame, rate: Array) -> Array:
        """(port,) rate of equal ports elsewhere, NaN where too many differ for one of them to be at fault."""
        where = groups(_device(port.entities))
        best = peers(rate, where, least=3).median
        for member in where.member:
            rows_of = member[member >= 0]
            below = int((rate[rows_of] < 0.9 * best[rows_of]).sum())
            if below > max(1.0, self.odd_share * rows_of.size):
                best[rows_of] = np.nan
        return best

    def _cable(self, port: Frame, errors: Array) -> list[Finding]:
        """Physical errors in m of n ticks, or a retrained or lost link; independent of load."""
        if not self.flagged and not (errors > 0).any():
            return []
        downed = sum_known([port.column("link_downed_per_s"), port.column("link_flaps_per_s")])
        for i in rows(errors > 0):
            self.flagged.setdefault(port.entities[i], []).append(self.ticks)
        found = []
        place = {n: i for i, n in enumerate(port.entities)}
        for name, ticks in list(self.flagged.items()):
            ticks[:] = [t for t in ticks if t > self.ticks - self.errors_n]
            if not ticks:
                del self.flagged[name]
                continue
            i = place.get(name, -1)
            if i < 0 or (len(ticks) < self.errors_m and not downed[i] > 0):
                continue
            evidence = (
                Evidence("physical_errors", float(errors[i]), "1/s", 0.0),
                Evidence("ticks_with_errors", float(len(ticks)), f"of {self.errors_n}"),
            )
            upstream = port.column("remote_phys_errors_per_s")[i] > 0
            score = 0.7 if upstream else 0.95
            found.append(_say(port, i, "bad_cable", score, Severity.WARNING, *evidence))
        return found

    def _storm(self, port: Frame, rate: Array, errors: Array) -> list[Finding]:
        """The port whose transmitted pause led and that receives next to nothing is the root; others are victims."""
        sent, got = port.column("tx_pause_ratio"), port.column("rx_pause_ratio")
        receive = port.column("rx_bytes_s")
        storms = port.column("pause_storm_per_s")
        if not self.pause_began and not ((sent > 0.05) | (got > 0.05) | (storms > 0)).any():
            return []
        for i in rows(sent > 0.5 * self.storm_ratio):
            self.pause_began.setdefault(port.entities[i], port.at)
        for name in [
            n
            for n in self.pause_began
            if n not in {port.entities[i] for i in rows(sent > 0.1 * self.storm_ratio)}
        ]:
            del self.pause_began[name]
        stormy = (sent > self.storm_ratio) | (storms > 0)
        leaves = port.facts.get("leaf", ("",) * len(port.entities))
        # Without a receive rate the pause alone could be a slow host: then a victim or the driver must testify too.
        blind = ~np.isfinite(receive) & ~(storms > 0)
        hurt = {leaves[i] for i in rows(got > 0.05)}
        quiet = (receive <= self.idle_ratio * rate) | (~np.isfinite(receive) & ~blind)
        quiet |= blind & np.array([leaf in hurt for leaf in leaves])
        drains = (
            (sent > self.storm_ratio)
            & (receive > self.idle_ratio * rate)
            & (receive < self.busy_ratio * rate)
        )
        found = []
        roots = sorted(
            rows(stormy & quiet), key=lambda i: (self.pause_began.get(port.entities[i], port.at), -sent[i])
        )
        usual = float(np.nanmedian(sent)) if np.isfinite(sent).any() else np.nan
        blamed: set[str] = set()
        for i in roots:
            # One root a leaf: whoever paused later on the same leaf only passes the pressure on.
            if leaves[i] and leaves[i] in blamed:
                continue
            blamed.add(leaves[i])
            paused = [k for k in rows(got > 0.05) if leaves[k] == leaves[i] and k != i]
            evidence = (
                Evidence("tx_pause", float(sent[i]), "ratio", usual),
                Evidence("receive", float(receive[i]), "B/s"),
                Evidence("ports_paused_on_its_leaf", float(len(paused)), ""),
            )
            score = 0.95 if paused else 0.8
            found.append(_say(port, i, "pfc_storm", score, Severity.CRITICAL, *evidence))
        for i in rows(drains):
            pause = Evidence("tx_pause", float(sent[i]), "ratio")
            flow = Evidence("receive", float(receive[i]), "B/s", float(rate[i]))
            found.append(_say(port, i, "slow_receiver", 0.7, Severity.WARNING, pause, flow))
        clean = ~(errors > 0)
        for i in rows((got > 0.05) & clean & ~stormy):
            paused_for = Evidence("rx_pause", float(got[i]), "ratio")
            found.append(_say(port, i, "pause_victim", 0.5, Severity.INFO, paused_for))
        return found

    def _incast(self, port: Frame, rate: Array) -> list[Finding]:
        """Marks on one receiver near line rate while many senders slow down; many marked receivers mean the uplink."""
        marks = np.fmax(port.column("cnp_sent_per_s"), port.column("ecn_marked_per_s"))
        slowed = port.column("cnp_handled_per_s") > self.marks_per_s
        marked = rows(marks > self.marks_per_s)
        if not marked:
            return []
        found = []
        near = port.column("rx_bytes_s") > self.busy_ratio * rate
        leaves = port.facts.get("leaf", ("",) * len(port.entities))
        if len(marked) >= 3 and slowed.any():
            senders = {leaves[i] for i in rows(slowed)}
            others = {leaves[i] for i in marked} - senders
            if len(senders) == 1 and others and "" not in senders:
                both = (
                    Evidence("receivers_marked", float(len(marked)), ""),
                    Evidence("senders_slowed", float(int(slowed.sum())), "on one leaf"),
                )
                leaf = Entity("leaf", senders.pop())
                found.append(
                    Finding(
                        port.at, "congestion", leaf, "uplink_congestion", 0.6, Severity.WARNING, both, port.at
                    )
                )
                return found
        for i in marked:
            if near[i] and slowed.sum() >= 2:
                evidence = (
                    Evidence("marks", float(marks[i]), "1/s"),
                    Evidence("receive", float(port.column("rx_bytes_s")[i]), "B/s", float(rate[i])),
                    Evidence("senders_slowed", float(int(slowed.sum())), ""),
                )
                found.append(_say(port, i, "incast", 0.8, Severity.INFO, *evidence))
        return found

    def _software(self, port: Frame, errors: Array) -> list[Finding]:
        """Receiver not ready, buffers empty, links clean: the process is slow, not the wire."""
        slow = np.fmax(port.column("rnr_naks_per_s"), port.column("out_of_buffer_per_s"))
        if not (slow > self.naks_per_s).any():
            return []
        clean = ~(errors > 0)
        names = [port.entities[i] for i in rows((slow > self.naks_per_s) & clean)]
        held = self.held.held(port.at, [f"slow {n}" for n in names])
        place = {n: i for i, n in enumerate(port.entities)}
        return [
            _say(
                port,
                place[n.removeprefix("slow ")],
                "slow_receiver",
                0.7,
                Severity.INFO,
                Evidence("receiver_not_ready", float(slow[place[n.removeprefix("slow ")]]), "1/s"),
            )
            for n, s in held.items()
            if s >= 60.0
        ]

    def _lossy(self, port: Frame, errors: Array) -> list[Finding]:
        """Retransmits and time-outs with no mark and no pause anywhere near: configuration. A port with physical
        errors of its own, or alone with time-outs, is the other end of a bad cable."""
        lost = (port.column("seq_errors_per_s") > 0) & (port.column("ack_timeouts_per_s") > 0)
        if not lost.any():
            return []
        signs = sum_known(
            [errors, *(port.column(s) for s in ("cnp_sent_per_s", "ecn_marked_per_s", "rx_pause_ratio"))]
        )
        found = []
        for i in rows(lost & ~(signs > 0)):
            evidence = (
                Evidence("ack_timeouts", float(port.column("ack_timeouts_per_s")[i]), "1/s", 0.0),
                Evidence("sequence_errors", float(port.column("seq_errors_per_s")[i]), "1/s", 0.0),
            )
            found.append(_say(port, i, "ack_timeouts", 0.5, Severity.INFO, *evidence))
        leaves = port.facts.get("leaf", ("",) * len(port.entities))
        by_leaf: dict[str, int] = {}
        for i in rows(lost & ~(signs > 0)):
            by_leaf[leaves[i]] = by_leaf.get(leaves[i], 0) + 1
        for leaf, number in by_leaf.items():
            size = leaves.count(leaf)
            if leaf and number >= 3 and 2 * number >= size:
                losing = (Evidence("ports_losing", float(number), f"of {size}"),)
                found.append(
                    Finding(
                        port.at,
                        "congestion",
                        Entity("leaf", leaf),
                        "lossy_fabric",
                        0.6,
                        Severity.WARNING,
                        losing,
                        port.at,
                    )
                )
        return found

    def _ageing(self, port: Frame) -> list[Finding]:
        """Corrected bits a decade above the peers: the optic will fail, nothing is lost yet."""
        if not np.isfinite(port.column("corrected_bits_per_s")).any():
            self.ageing = []
            return []
        if self.ticks % 4 != 1:  # it moves over days; between two looks the last word stands
            return [replace(claim, at=port.at) for claim in self.ageing if claim.entity.name in port.entities]
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = np.log10(np.maximum(port.column("corrected_bits_per_s"), 1.0))
        bits[~np.isfinite(port.column("corrected_bits_per_s"))] = np.nan
        around = peers(bits, groups(_device(port.entities)), least=3)
        high = (bits - around.median > self.ageing_decades) & (bits > 2.0)
        self.ageing = [
            _say(
                port,
                i,
                "optic_ageing",
                0.7,
                Severity.WARNING,
                Evidence("corrected_bits_log10", float(bits[i]), "log10 bit/s", float(around.median[i])),
            )
            for i in rows(high)
        ]
        return self.ageing


@lru_cache(maxsize=8)
def _device(ports: tuple[str, ...]) -> tuple[str, ...]:
    """Ports of the same name on different nodes are peers: they are cabled alike."""
    return tuple(name.split("/", 1)[-1] for name in ports)


def sum_known(columns: list[Array]) -> Array:
    """Sum ignoring what is missing; NaN only where all of them are."""
    stacked = np.vstack(columns)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total, np.nan)


def _say(port: Frame, row: int, kind: str, score: float, severity: Severity, *evidence: Evidence) -> Finding:
    entity = Entity("port", port.entities[row])
    return Finding(port.at, "congestion", entity, kind, score, severity, evidence, port.at)
