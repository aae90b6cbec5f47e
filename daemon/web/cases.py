"""What the pages say about incidents and actions, read off the journal as plain data.

Values as in daemon.web.views. Functions that are asked for one thing raise Missing when there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from daemon import undo
from daemon.casefile import CaseFile, case_of, measurements
from daemon.codec import decode
from daemon.guard import WAITS
from daemon.loop import Daemon
from daemon.model import NAN, Finding, Incident, Outcome, Reason, Step, Verb, Verdict
from daemon.quantities import span
from daemon.record import Entry, StepRow
from daemon.web.errors import Missing
from daemon.web.views import RANK, Row, incident_row
from daemon.web.words import REASONS, REMEDIES, RESULTS, STATES, told, verdict_words, when

SHOWN = 200
EFFECT_S = 6 * 3600.0
"""For so long after its outcome something may be said of what a step did."""
EFFECTS = {
    "seen": "as expected",
    "missing": "no effect",
    "late": "its effect is there, late,",
    "unknown": "effect not known",
}
"""Rows of a list: what is older is found through the API's `cursor`."""

Place = tuple[float, str]
"""Where a list goes on: time and id of the last row shown."""


CURSOR = r"[0-9]{1,12}\.[0-9]{1,9}~[!-~]{1,80}"
"""What a cursor looks like."""


def cursor(place: Place) -> str:
    return f"{place[0]!r}~{place[1]}"


# -- incidents -----------------------------------------------------------------------------------------


def incidents(daemon: Daemon, limit: int = SHOWN, after: Place | None = None) -> Row:
    """Open incidents, worst first, then the newest closed ones. after : (opened, id) of the last one already shown."""
    book = daemon.core.state.book.open
    live = sorted(book.values(), key=lambda i: (RANK[i.severity], -i.opened))
    past = daemon.record.incidents(limit=limit, before=after)
    return {
        "at": daemon.frames.at or NAN,
        "open": [incident_row(i) for i in live],
        "closed": [incident_row(i) for i in past if i.id not in book],
        "next": cursor((past[-1].opened, past[-1].id)) if len(past) == limit else None,
    }


def known(daemon: Daemon, id: str) -> Incident:
    """One incident, open, closed, or only watched. Raises Missing."""
    kept = daemon.core.state.book.open.get(id) or daemon.record.incident_of(id) or _shadowed(daemon, id)
    if kept is None:
        raise Missing(f"no incident {id}; GET /api/v1/incidents lists those there are")
    return kept


def incident(daemon: Daemon, id: str) -> Row:
    """One incident: why, what happened when, what was done, what was refused. Raises Missing."""
    found = known(daemon, id)
    until = math.inf if math.isnan(found.closed) else found.closed + 3600.0
    begin = min(found.opened, found.since) if found.since == found.since else found.opened
    entries = daemon.record.mentions(id, begin - 1.0, until)
    steps = [
        r for r in map(daemon.record.step, _step_ids(entries)) if r is not None and r.step.incident == id
    ]
    deeds = [r for r in steps if r.step.verb is not Verb.NOTIFY]
    return incident_row(found) | {
        "text": incident_text(found, deeds),
        "case": _case(case_of(found), entries),
        "verdict": _verdict(daemon, id),
        "evidence": [_finding(f) for f in found.findings],
        "timeline": timeline(daemon, entries, [r.step.id for r in deeds]),
        "steps": [step_row(r) for r in deeds],
        "letters": [step_row(r) for r in steps if r.step.verb is Verb.NOTIFY],
    }


def _shadowed(daemon: Daemon, id: str) -> Incident | None:
    """An incident of a rule in shadow: it opened nothing, it is only remembered."""
    book = daemon.core.state.shadow
    return book.open.get(id) or next((i for i in book.closed if i.id == id), None)


def _case(case: CaseFile, entries: Iterable[Entry]) -> Row:
    """at_first : the evidence as it was when the incident opened, where it is another by now: what was mended shows nothing any more."""
    first = next((e.payload["case"]["evidence"] for e in entries if e.type == "case"), ())
    return {
        "hypothesis": case.hypothesis,
        "evidence": list(case.evidence),
        "at_first": [line for line in first if line not in case.evidence],
        "rejected": list(case.rejected),
        "response": case.response,
        "to_do": case.to_do,
    }


def _verdict(daemon: Daemon, id: str) -> Row:
    """What is known of its rules being right: rules, word ("" = nobody has said), by whom."""
    case = daemon.core.state.ledger.cases.get(id)
    return {
        "rules": list(case.rules) if case else [],
        "word": case.word if case else "",
        "by": case.by if case else "",
    }


def incident_text(found: Incident, deeds: Iterable[StepRow]) -> str:
    """What an on-call engineer needs in three sentences."""
    row = incident_row(found)
    parts = [f"{row['title']} at {found.scope}"]
    if found.since == found.since and found.opened - found.since > 1.0:
        parts[0] += f", since {when(found.since)} and recognised {span(found.opened - found.since)} later"
    parts[0] += "."
    done = [told(r.step) for r in deeds if r.state == "done"]
    held = [r for r in deeds if r.state in ("withheld", "awaiting")]
    if done:
        parts.append(f"Done: {'; '.join(done)}.")
    if held:
        whys = dict.fromkeys(REASONS[r.verdict.reason] for r in held if r.verdict)
        parts.append(f"Not done: {'; '.join(told(r.step) for r in held)}, because {'; '.join(whys)}.")
    if not done and not held:
        parts.append("Nothing was changed for it.")
    if found.state == "closed":
        parts.append(f"Closed {when(found.closed)}: {found.cause or 'no longer seen'}.")
    return " ".join(parts)


def _finding(finding: Finding) -> Row:
    return {
        "entity": str(finding.entity),
        "kind": finding.kind,
        "detector": finding.detector,
        "score_ratio": finding.score,
        "severity": finding.severity.value,
        "at": finding.at,
        "text": finding.text,
        "evidence": [
            {"name": e.name, "value": e.value, "unit": e.unit, "peer": e.peer} for e in finding.evidence
        ],
    }


def _step_ids(entries: Iterable[Entry]) -> list[str]:
    ids: dict[str, None] = {}
    for entry in entries:
        if entry.type in ("verdict", "outcome"):
            ids[entry.payload["step"]["id"]] = None
        elif entry.type == "intent":
            ids[entry.payload["id"]] = None
    return list(ids)


# -- timeline ------------------------------------------------------------------------------------------


def timeline(daemon: Daemon, entries: Iterable[Entry], step_ids: Iterable[str] = ()) -> list[Row]:
    """Journal entries as sentences in order, with what operators said about the steps."""
    named = set(step_ids)
    said = [
        e
        for e in daemon.record.events(type="command", limit=500, newest_first=True)
        if e.payload["argument"] in named
    ]
    rows: list[Row] = []
    for entry in sorted({e.id: e for e in (*entries, *said)}.values(), key=lambda e: e.id):
        text, step = _sentence(entry, rows)
        if text:
            rows.append({"at": entry.at, "type": entry.type, "text": text, "step": step})
    return rows


def _sentence(entry: Entry, before: list[Row]) -> tuple[str, str]:
    """What one entry says and the step it is about, ("", "") for what tells nothing new."""
    body = entry.payload
    if entry.type == "incident":
        return _incident_sentence(decode(Incident, body), before), ""
    if entry.type == "verdict":
        verdict = decode(Verdict, body)
        if verdict.step.verb is Verb.NOTIFY:
            return "", ""
        how = "allowed" if verdict.allowed else "refused"
        if verdict.reason is Reason.AWAITS_APPROVAL:
            how = "proposed"
        return f"{told(verdict.step)}: {how}, {verdict_words(verdict)}", verdict.step.id
    if entry.type == "intent":
        step = decode(Step, body)
        return ("", "") if step.verb is Verb.NOTIFY else (f"begins: {told(step)}", step.id)
    if entry.type == "outcome":
        outcome = decode(Outcome, body)
        took = f" after {span(outcome.took_s)}" if outcome.took_s == outcome.took_s else ""
        detail = f": {outcome.detail}" if outcome.detail else ""
        return f"{told(outcome.step)}: {outcome.result.value}{took}{detail}", outcome.step.id
    if entry.type == "effect":
        return f"{EFFECTS[body['state']]} after {span(body['took_s'])}: {body['text']}", body["step"]
    if entry.type == "rule" and body["word"] != "fired":
        return f"{body['word']}: {', '.join(body['rules'])}, by {body['by']}", ""
    if entry.type == "command":
        by = f" by {body['by']}" if body.get("by") else ""
        return f"operator: {body['kind']} {body['argument']}{by}", body["argument"]
    return "", ""


def _incident_sentence(now: Incident, before: list[Row]) -> str:
    if now.state == "closed":
        return f"closed: {now.cause or 'no longer seen'}"
    if not any(row["type"] == "incident" for row in before):
        return f"opened, {now.severity.value}: {_first_evidence(now)}"
    return f"now {now.severity.value} with {len(now.findings)} findings"


def _first_evidence(now: Incident) -> str:
    for finding in now.findings:
        if finding.text:
            return finding.text
        if finding.evidence:
            return measurements(finding)
    return str(now.scope)


# -- actions -------------------------------------------------------------------------------------------


def actions(daemon: Daemon, state: str | None = None, limit: int = SHOWN, after: Place | None = None) -> Row:
    """Steps that change the cluster, newest first, notifications left out. state : see daemon.record.StepRow.

    after : (at, id) of the last one already shown.
    """
    rows = daemon.record.steps(limit, state, after, without=Verb.NOTIFY)
    return {
        "at": daemon.frames.at or NAN,
        "actions": [step_row(r) for r in rows],
        "next": cursor((rows[-1].at, rows[-1].step.id)) if len(rows) == limit else None,
    }


def audit(daemon: Daemon, limit: int = SHOWN, before: int | None = None) -> Row:
    """Who said what when, newest first: every word of an operator that was taken in."""
    rows = daemon.record.events(type="command", limit=limit, newest_first=True, before=before)
    return {
        "at": daemon.frames.at or NAN,
        "entries": [
            {"at": e.at, "by": e.payload["by"], "word": e.payload["kind"], "argument": e.payload["argument"]}
            for e in rows
        ],
        "next": str(rows[-1].id) if len(rows) == limit else None,
    }


def step_row(row: StepRow) -> Row:
    step, verdict, outcome = row.step, row.verdict, row.outcome
    return {
        "id": step.id,
        "verb": step.verb.value,
        "target": str(step.target),
        "amount": step.amount,
        "text": told(step),
        "pool": step.pool,
        "incident": step.incident,
        "state": row.state,
        "state_text": STATES.get(row.state, row.state),
        "at": row.at,
        "why": step.reason,
        "expected": step.expected,
        "verdict": verdict.reason.value if verdict else "",
        "verdict_text": verdict_words(verdict) if verdict else "",
        "begun": row.intent_at,
        "ended": outcome.at if outcome else NAN,
        "took_s": outcome.took_s if outcome else NAN,
        "result": outcome.result.value if outcome else "",
        "detail": outcome.detail if outcome else "",
    }


def action(daemon: Daemon, id: str) -> Row:
    """One step with its whole story. Raises Missing."""
    row = daemon.record.step(id)
    if row is None:
        raise Missing(f"no action {id}; GET /api/v1/actions lists those there are")
    until = row.outcome.at if row.outcome and row.outcome.at == row.outcome.at else math.inf
    # An intent replaces the verdict's time, so the story may begin earlier: a standing proposal lives for days.
    entries = daemon.record.mentions(id, row.at - 7 * 86400.0, until + EFFECT_S, limit=100)
    step = row.step
    return step_row(row) | {
        "deadline_s": step.deadline_s,
        "until": step.until,
        "gpus": step.gpus,
        "args": dict(step.args),
        "can_be_approved": is_awaiting(daemon, id),
        "can_be_undone": can_be_undone(daemon, row),
        "explanation": explanation(row),
        "timeline": timeline(daemon, entries, [id]),
    }


def is_awaiting(daemon: Daemon, id: str) -> bool:
    """Whether an approval of this step would count now: it waits for one, or for a better time."""
    standing = daemon.core.state.standing.values()
    return any(
        s.id == id and (s.reason is Reason.AWAITS_APPROVAL or s.reason in WAITS.values()) for s in standing
    )


def can_be_undone(daemon: Daemon, row: StepRow) -> bool:
    """Whether the step was done, still stands, and nobody has asked for its end yet."""
    step = row.step
    if row.state != "done" or step.verb not in undo.INVERSE:
        return False
    order = (
        undo.order(undo.argument_of(step), "", NAN)
        if step.verb is not Verb.SCALE or step.arg("from")
        else None
    )
    if order is None or undo.key(order) in daemon.core.state.undone:
        return False
    return undo.is_in_effect(step, daemon.core.state.fleet)


def explanation(row: StepRow) -> list[str]:
    """Why it was proposed, what was expected, what the guard said, what became of it: one sentence each."""
    step = row.step
    said = [f"Proposed: {told(step)}. Why: {step.reason}."]
    if step.incident:
        said.append(f"It answers incident {step.incident}.")
    if step.expected:
        said.append(f"Expected effect: {step.expected}.")
    if step.gpus:
        verb = "takes away" if step.gpus > 0 else "gives back"
        said.append(f"Price: it {verb} {abs(step.gpus):g} usable GPUs.")
    if row.verdict is not None:
        how = "allowed it" if row.verdict.allowed else "did not allow it"
        said.append(f"The guard {how}: {verdict_words(row.verdict)}.")
        if not row.verdict.allowed and row.verdict.reason in REMEDIES:
            said.append(f"What would change that: {REMEDIES[row.verdict.reason].replace('ID', step.id)}.")
    if row.outcome is not None:
        detail = f": {row.outcome.detail}" if row.outcome.detail else ""
        said.append(f"{RESULTS[row.outcome.result]}, {span(row.outcome.took_s)} after it began{detail}.")
    elif row.intent_at == row.intent_at:
        said.append(f"It began {when(row.intent_at)}, and its end is not known yet.")
    return said
