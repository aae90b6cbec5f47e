"""What a tick teaches about rules: whose claims count, which are borne out by another's."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.incident import DECIDE_S, Book
from daemon.ledger import Ledger
from daemon.model import Finding, Incident
from daemon.rules import RuleState

Findings = tuple[Finding, ...]


def by_state(findings: Findings, ledger: Ledger, told: Mapping[str, RuleState]) -> tuple[Findings, Findings]:
    """Findings that count, and those of rules in shadow. Claims of a rule that is off are dropped."""
    if not findings:
        return (), ()
    state_of = {rule: ledger.state_of(rule, told) for rule in {f.rule_id for f in findings}}
    return (
        tuple(f for f in findings if state_of[f.rule_id] is RuleState.ON),
        tuple(f for f in findings if state_of[f.rule_id] is RuleState.SHADOW),
    )


def rules_of(incident: Incident) -> tuple[str, ...]:
    """Rules that claim what the incident is about; those of mere consequences are left out."""
    return tuple(sorted({f.rule_id for f in incident.findings if f.kind == incident.kind}))


def witness_of(book: Book, shadowed: Incident) -> str:
    """An incident of another rule at the same place and time, "" when there was none."""
    mine = set(rules_of(shadowed))
    for other in (*book.open.values(), *book.closed):
        overlaps = other.seen >= shadowed.opened - DECIDE_S and other.opened <= shadowed.closed
        if other.scope == shadowed.scope and overlaps and not mine & set(rules_of(other)):
            return f"{other.id} ({other.kind})"
    return ""
