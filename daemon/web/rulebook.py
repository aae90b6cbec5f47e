"""What the pages say about rules: how often each was right, which cannot fire at all."""

from __future__ import annotations

from daemon.core import Core
from daemon.ledger import Tally
from daemon.loop import Daemon, Urgent
from daemon.model import NAN, Incident
from daemon.patterns import PATTERNS
from daemon.quantities import percent
from daemon.rules import LOG, RULES, Blind, Rule, RuleState, blind
from daemon.telemetry.catalogue import Catalogue
from daemon.web.views import Row, seen_signals

LOG_REMEDY = (
    "sources.kernel_log: [{path: /dev/kmsg}] on each GPU node, or the files its messages are forwarded to"
)
KIND_REMEDY = "scrape an exporter of it; see deploy/exporters"


def rules(daemon: Daemon, catalogue: Catalogue) -> Row:
    """Every rule with its state, its record, its open shadow incidents."""
    core = daemon.core
    blinded = {b.rule.id for b in _blind(daemon, catalogue)}
    known = [_rule(core, rule, rule.id in blinded) for rule in RULES.values()]
    plugged = [
        _rule(core, Rule(name, "", (), RULES["integrity.target_down"].severity, "plugged in"), False)
        for name in sorted(core.state.ledger.tallies.keys() - RULES.keys())
    ]
    return {
        "at": daemon.frames.at or NAN,
        "rules": known + plugged,
        "shadow": [_shadowed(i) for i in core.state.shadow.open.values()],
        "shadow_closed": [_shadowed(i) for i in reversed(core.state.shadow.closed[-50:])],
    }


def _rule(core: Core, rule: Rule, is_blind: bool) -> Row:
    ledger = core.state.ledger
    tally = ledger.tallies.get(rule.id, Tally())
    low, high = tally.interval()
    state = ledger.state_of(rule.id, core.policy.rules)
    return {
        "id": rule.id,
        "detector": rule.id.partition(".")[0],
        "kind": rule.kind,
        "severity": rule.severity.value,
        "text": rule.text,
        "state": "disabled" if rule.id.partition(".")[0] in core.policy.disabled else state.value,
        "state_why": _why(core, rule, state),
        "is_blind": is_blind,
        "fired": tally.fired,
        "confirmed": tally.confirmed,
        "refuted": tally.refuted,
        "precision_ratio": tally.precision(),
        "precision_low_ratio": low,
        "precision_high_ratio": high,
        "promoted_from_ratio": rule.precision if rule.state is RuleState.SHADOW else NAN,
        "needs": list(rule.needs),
    }


def _why(core: Core, rule: Rule, state: RuleState) -> str:
    if rule.id in core.policy.rules:
        return "set in the configuration"
    if rule.state is RuleState.SHADOW:
        if state is RuleState.ON:
            return f"promoted: its precision is above {percent(rule.precision)} for certain"
        return f"until its precision is above {percent(rule.precision)} for certain"
    return ""


def _shadowed(incident: Incident) -> Row:
    return {
        "id": incident.id,
        "kind": incident.kind,
        "title": PATTERNS[incident.kind].title,
        "scope": str(incident.scope),
        "opened": incident.opened,
        "closed": incident.closed,
        "cause": incident.cause,
    }


def blindspots(daemon: Daemon, catalogue: Catalogue) -> Row:
    """Every rule that cannot fire with what is scraped, the missing signals, the line that would enable each."""
    remedies = {
        f"{s.kind}.{s.signal}": s.remedy for s in catalogue.blind_spots({k: set() for k in catalogue.signals})
    }
    found = _blind(daemon, catalogue)
    return {
        "at": daemon.frames.at or NAN,
        "rules_total": len(RULES),
        "blindspots": [_spot(spot, remedies) for spot in found],
    }


def _blind(daemon: Daemon, catalogue: Catalogue) -> list[Blind]:
    has_log = any(isinstance(source, Urgent) for source in daemon.sources.values())
    seen = seen_signals(daemon.frames, catalogue)
    seen["target"] = set(daemon.frames["target"].signals)
    return blind(seen, has_log)


def _spot(spot: Blind, remedies: dict[str, str]) -> Row:
    lines = [
        " or ".join(dict.fromkeys(_line(signal, remedies) for signal in alternatives))
        for alternatives in spot.missing
    ]
    return {
        "rule": spot.rule.id,
        "kind": spot.rule.kind,
        "severity": spot.rule.severity.value,
        "text": spot.rule.text,
        "missing": [" or ".join(alternatives) for alternatives in spot.missing],
        "remedy": "; and ".join(dict.fromkeys(lines)),
    }


def _line(signal: str, remedies: dict[str, str]) -> str:
    return LOG_REMEDY if signal == LOG else remedies.get(signal) or KIND_REMEDY
