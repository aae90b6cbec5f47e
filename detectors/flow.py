"""Traffic that is held back: which pattern of pauses, marks and losses, and whose fault it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.locate import vote
from detectors.stats import Streak, rows

Columns = Mapping[str, Array]
Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Flow:
    """Signatures on host ports; without switch telemetry a leaf is inferred, and the score says so.

    storm_ratio : share of time a port pauses the network that is a storm. held_ratio : that is worth a look.
    busy_ratio, idle_ratio : shares of the link rate that are near line rate, and next to nothing. naks_per_s, marks_per_s : receiver-not-ready and
    congestion marks a second that count, waits_per_s : ticks a second without credit to send. pause_began : port -> when it began to pause the network.
    Source: docs/en/reference/congestion.md.
    """

    storm_ratio: float = 0.2
    held_ratio: float = 0.05
    busy_ratio: float = 0.85
    idle_ratio: float = 0.10
    naks_per_s: float = 1.0
    marks_per_s: float = 100.0
    waits_per_s: float = 1e5
    pause_began: dict[str, float] = field(default_factory=dict)
    slow: Streak = field(default_factory=Streak)

    def pauses(self, port: Frame, c: Columns, errors: Array) -> list[Finding]:
        """A storm's root, hosts that cannot drain, and their victims.

        The root pauses the network and is driver-stated, or others of its leaf are paused in turn, or it receives next to
        nothing. Who pauses it while traffic still comes in, or with discards or PCIe stalls to show for it, is a host
        that cannot drain its port. Who is paused and clean is a victim, and never blamed.
        """
        sent, got, storms = c["tx_pause_ratio"], c["rx_pause_ratio"], c["pause_storm_per_s"]
        self._remember(port, sent)
        leaves = port.facts.get("leaf", ("",) * len(port.entities))
        hurt = got > self.held_ratio
        victims: dict[str, int] = {}
        for i in rows(hurt):
            victims[leaves[i]] = victims.get(leaves[i], 0) + 1
        others = np.array([victims.get(leaf, 0) for leaf in leaves]) - hurt
        flow, rate = c["rx_bytes_s"], c["rate_bytes_s"]
        strain = (c["rx_discards_phy_per_s"] > 0) | (c["pcie_stall_ratio"] > 0.05)
        # Either the driver says so, or others are held in turn, or next to nothing comes in and no host strain explains it.
        much = sent > self.storm_ratio
        testified = (storms > 0) | (much & (others > 0)) | (much & (flow <= self.idle_ratio * rate) & ~strain)
        stormy = testified & ((sent > self.held_ratio) | (storms > 0)) & ~(flow > self.busy_ratio * rate)
        held_up = (sent > self.held_ratio) & ~stormy & (flow < self.busy_ratio * rate)
        held_up &= strain | (c["buffer_passed_per_s"] > 0) | much
        found = self._roots(port, c, stormy, others, leaves)
        for i in rows(held_up):
            evidence = (
                Evidence("tx_pause", float(sent[i]), "ratio"),
                Evidence("receive", float(c["rx_bytes_s"][i]), "B/s", float(c["rate_bytes_s"][i])),
                Evidence("pcie_stall", float(c["pcie_stall_ratio"][i]), "ratio", 0.0),
                Evidence("discards", float(c["rx_discards_phy_per_s"][i]), "1/s", 0.0),
            )
            score = 0.9 if strain[i] else 0.6
            found.append(_say(port, i, "host_drain", score, Severity.WARNING, *evidence))
        for i in rows(hurt & ~(errors > 0) & ~stormy):
            found.append(
                _say(
                    port, i, "pause_victim", 0.5, Severity.INFO, Evidence("rx_pause", float(got[i]), "ratio")
                )
            )
        return found

    def _remember(self, port: Frame, sent: Array) -> None:
        present = {port.entities[i] for i in rows(sent > 0.5 * self.held_ratio)}
        for name in present:
            self.pause_began.setdefault(name, port.at)
        self.pause_began = {n: t for n, t in self.pause_began.items() if n in present}

    def _roots(
        self, port: Frame, c: Columns, stormy: Flags, others: Array, leaves: tuple[str, ...]
    ) -> list[Finding]:
        """One root a leaf: whoever paused later on the same leaf only passes the pressure on."""
        sent = c["tx_pause_ratio"]
        order = sorted(
            rows(stormy), key=lambda i: (self.pause_began.get(port.entities[i], port.at), -sent[i])
        )
        known = sent[np.isfinite(sent)]
        usual = float(np.median(known)) if known.size else NAN
        found, blamed = [], set()
        for i in order:
            if leaves[i] and leaves[i] in blamed:
                continue
            blamed.add(leaves[i])
            evidence = (
                Evidence("tx_pause", float(sent[i]), "ratio", usual),
                Evidence("storm_events", float(c["pause_storm_per_s"][i]), "1/s", 0.0),
                Evidence("ports_paused_on_its_leaf", float(others[i]), ""),
            )
            score = 0.95 if others[i] > 0 else 0.8
            found.append(_say(port, i, "pfc_storm", score, Severity.CRITICAL, *evidence))
        return found

    def marks(self, port: Frame, c: Columns) -> list[Finding]:
        """Congestion marks: one receiver at line rate with many senders slowed, or many receivers and the senders of
        one leaf. A receiver at line rate whose senders show nothing is its own link."""
        marks = np.fmax(c["cnp_sent_per_s"], c["ecn_marked_per_s"])
        slowed = c["cnp_handled_per_s"] > self.marks_per_s
        marked = marks > self.marks_per_s
        near = c["rx_bytes_s"] > self.busy_ratio * c["rate_bytes_s"]
        if int((marked & ~near).sum()) >= 2 and slowed.any():
            # Receivers of a leaf with full uplinks are not behind them: slowed without a mark are its senders alone.
            place = vote(slowed & ~marked, port.facts)
            if place is not None and place[0].kind == "leaf":
                leaf, confidence = place
                others = [i for i, name in enumerate(port.facts["leaf"]) if name != leaf.name]
                away = [i for i in others if marked[i]]
                evidence = (
                    Evidence("receivers_marked", float(len(away)), "behind other leaves"),
                    Evidence("senders_slowed", float(int(slowed.sum())), ""),
                    Evidence("confidence", confidence, "inferred, no switch telemetry"),
                )
                # Behind a leaf of two hosts there are no three receivers: then all that there are, two or more.
                if len(away) >= max(2, min(3, len(others))):
                    return [
                        Finding(
                            port.at, "congestion", leaf, "uplink_congestion", 0.5 + 0.4 * confidence,
                            Severity.WARNING, evidence, port.at,
                        )
                    ]  # fmt: skip
        found = []
        for i in rows(marked & near):
            senders = int(slowed.sum()) - int(slowed[i])
            seen = (
                Evidence("marks", float(marks[i]), "1/s"),
                Evidence("receive", float(c["rx_bytes_s"][i]), "B/s", float(c["rate_bytes_s"][i])),
                Evidence("senders_slowed", float(senders), ""),
            )
            kind = "incast" if senders >= 2 else "downlink_congestion"
            found.append(_say(port, i, kind, 0.8 if senders >= 2 else 0.5, Severity.INFO, *seen))
        return found

    def downlinks(self, port: Frame, c: Columns) -> list[Finding]:
        """A fabric that marks nothing, as InfiniBand: one receiver at line rate while others wait for credit to send."""
        marks = np.fmax(c["cnp_sent_per_s"], c["ecn_marked_per_s"])
        near = (c["rx_bytes_s"] > self.busy_ratio * c["rate_bytes_s"]) & ~(marks > self.marks_per_s)
        # Who sends at line rate itself waits for its own link.
        waiting = (c["xmit_wait_per_s"] > self.waits_per_s) & ~(
            c["tx_bytes_s"] > self.busy_ratio * c["rate_bytes_s"]
        )
        found = []
        for i in rows(near):
            senders = int(waiting.sum()) - int(waiting[i])
            if senders >= 1:
                seen = (
                    Evidence("receive", float(c["rx_bytes_s"][i]), "B/s", float(c["rate_bytes_s"][i])),
                    Evidence("senders_waiting", float(senders), ""),
                )
                found.append(_say(port, i, "downlink_congestion", 0.8, Severity.INFO, *seen))
        return found

    def software(self, port: Frame, c: Columns, errors: Array) -> list[Finding]:
        """Receiver not ready, buffers empty, links clean: the process is slow, not the wire."""
        slow = np.fmax(c["rnr_naks_per_s"], c["out_of_buffer_per_s"])
        late = (slow > self.naks_per_s) & ~(errors > 0)
        held = self.slow.held(port.at, [port.entities[i] for i in rows(late)])
        place = {port.entities[i]: i for i in rows(late)}
        return [
            _say(
                port, place[n], "slow_receiver", 0.7, Severity.INFO,
                Evidence("receiver_not_ready", float(slow[place[n]]), "1/s", 0.0),
            )
            for n, held_s in held.items()
            if held_s >= 60.0
        ]  # fmt: skip

    def losses(self, port: Frame, c: Columns, errors: Array) -> list[Finding]:
        """Retransmits and time-outs with no mark and no pause anywhere near: configuration of a leaf. A port with
        physical errors of its own, or alone with time-outs, is the other end of a bad cable."""
        lost = (c["seq_errors_per_s"] > 0) & (c["ack_timeouts_per_s"] > 0)
        signs = (
            (errors > 0) | (c["cnp_sent_per_s"] > 0) | (c["ecn_marked_per_s"] > 0) | (c["rx_pause_ratio"] > 0)
        )
        lost &= ~signs
        found = []
        place = vote(lost, port.facts)
        if place is not None and place[0].kind == "leaf" and int(lost.sum()) >= 3:
            leaf, confidence = place
            evidence = (
                Evidence("ports_losing", float(int(lost.sum())), ""),
                Evidence(
                    "cnp_ignored", float(np.fmax.reduce(c["cnp_ignored_per_s"], initial=0.0)), "1/s", 0.0
                ),
                Evidence("confidence", confidence, "inferred, no switch telemetry"),
            )
            found.append(
                Finding(
                    port.at, "congestion", leaf, "lossy_fabric", 0.4 + 0.5 * confidence, Severity.WARNING, evidence,
                    port.at,
                )
            )  # fmt: skip
        for i in rows(lost):
            timed_out = (
                Evidence("ack_timeouts", float(c["ack_timeouts_per_s"][i]), "1/s", 0.0),
                Evidence("sequence_errors", float(c["seq_errors_per_s"][i]), "1/s", 0.0),
            )
            found.append(_say(port, i, "ack_timeouts", 0.5, Severity.INFO, *timed_out))
        return found


def _say(port: Frame, row: int, kind: str, score: float, severity: Severity, *evidence: Evidence) -> Finding:
    entity = Entity("port", port.entities[row])
    return Finding(port.at, "congestion", entity, kind, score, severity, evidence, port.at)
