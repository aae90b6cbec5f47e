"""One way to write a finding down, and which witness of an event is believed first."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.model import NAN, Entity, Evidence, Finding, Severity

WITNESSES = ("gauge", "nvml", "kernel_log")
"""From the worst: a gauge keeps one code and no text, the driver's event has the code, the log has it all."""


def trust(origin: str) -> int:
    """How good a witness is; -1 for one without a name."""
    return WITNESSES.index(origin) if origin in WITNESSES else -1


def say(
    at: float,
    rule: str,
    entity: Entity,
    kind: str,
    score: float,
    severity: Severity,
    *evidence: Evidence,
    since: float = NAN,
    text: str = "",
    rejected: tuple[str, ...] = (),
    p: float = NAN,
) -> Finding:
    """A finding of the rule `<detector>.<name>`. since : NaN = since now."""
    return Finding(
        at,
        rule.partition(".")[0],
        entity,
        kind,
        score,
        severity,
        evidence,
        since if since == since else at,
        text,
        rule,
        p,
        rejected,
    )


@dataclass(slots=True)
class Claim:
    """A fault known from an event. It stands for a while, and longer while the entity stays silent.

    at : when it was first told. origin, text : of the best witness so far. count : bursts within the rule's span.
    """

    at: float
    kind: str
    rule: str
    severity: Severity
    score: float
    code: float
    origin: str
    text: str = ""
    count: int = 1
    rejected: tuple[str, ...] = ()

    def hear(self, origin: str, text: str) -> None:
        """Another witness of the same event: the best one's words stand."""
        if trust(origin) > trust(self.origin):
            self.origin, self.text = origin, text or self.text

    def finding(self, now: float, entity: Entity) -> Finding:
        evidence = [Evidence("since_event", now - self.at, "s")]
        if self.count > 1:
            evidence.insert(0, Evidence("bursts", float(self.count), ""))
        if self.code == self.code:
            evidence.insert(0, Evidence("xid", self.code, f"from {self.origin}"))
        return say(
            now,
            self.rule,
            entity,
            self.kind,
            self.score,
            self.severity,
            *evidence,
            since=self.at,
            text=self.text,
            rejected=self.rejected,
        )
