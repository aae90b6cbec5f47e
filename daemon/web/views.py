"""What the pages say about the present, read off the daemon as plain data.

Every function returns JSON-like values: times in seconds since the epoch, other numbers in the unit their key ends
in, NaN where nothing was measured (null in JSON, a dash on a page).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from daemon import histogram, service
from daemon import outlook as outlooks
from daemon.loop import Daemon
from daemon.model import NAN, Frame, Frames, Incident, Reason, Severity, Verb
from daemon.patterns import PATTERNS
from daemon.policy import Mode, PoolPolicy
from daemon.quantities import span
from daemon.telemetry.catalogue import Catalogue
from daemon.web.words import told

Row = dict[str, Any]

RANK = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.INFO: 2}
LATE_TICKS = 4.0
"""Ticks without a decision after which the loop counts as stuck."""


def version() -> str:
    return metadata.version("tidewarden")


def status(daemon: Daemon) -> Row:
    """The state of the daemon itself."""
    own, state = daemon.status, daemon.core.state
    return {
        "version": version(),
        "cluster": daemon.core.policy.cluster,
        "now": daemon.clock(),
        "started": own.started,
        "decided": daemon.frames.at or NAN,
        "ticks": own.ticks,
        "ticks_missed": own.missed,
        "tick_s": own.tick_s,
        "tick_every_s": daemon.pace.tick_s,
        "is_ready": own.is_ready,
        "is_deciding": is_deciding(daemon),
        "journal_is_healthy": daemon.record.healthy,
        "journal_trouble": daemon.record.trouble,
        "source_errors": service.source_errors(daemon),
        "reloads": own.reloads,
        "reload_error": own.reload_error,
        "forecast_error": own.forecast_error,
        "mode": daemon.core.policy.mode.value,
        "paused_until": paused_until(daemon),
        "steps_in_flight": len(state.in_flight),
        "letters": daemon.record.outbox.counts(),
    }


def is_deciding(daemon: Daemon) -> bool:
    """Whether the loop has ticked lately."""
    return (
        daemon.status.ticks > 0 and daemon.clock() - daemon.frames.at < LATE_TICKS * daemon.pace.tick_s + 5.0
    )


def paused_until(daemon: Daemon) -> float | str | None:
    """When the pause ends; "resumed" when only `resume` ends it; None when actions are not paused."""
    until = daemon.core.state.paused_until
    if daemon.clock() >= until:
        return None
    return until if math.isfinite(until) else "resumed"


def overview(daemon: Daemon) -> Row:
    """The whole cluster on one page."""
    open_now = open_incidents(daemon)
    fleet = daemon.core.state.fleet
    return {
        "cluster": daemon.core.policy.cluster,
        "at": daemon.frames.at or NAN,
        "health": health(daemon),
        "health_reasons": [*incident_words(open_now), *health_reasons(daemon)],
        "mode": daemon.core.policy.mode.value,
        "modes": modes(daemon),
        "paused_until": paused_until(daemon),
        "discovered": daemon.discovered(),
        "targets_up": int((daemon.frames["target"].column("up") == 1.0).sum()),
        "changes": changes(daemon),
        "incidents": [incident_row(i) for i in open_now],
        "approvals": approvals(daemon),
        "pools": pool_rows(daemon),
        "outlook": outlook_row(daemon),
        "leases": lease_rows(daemon),
        "isolated": [
            {"entity": str(e), "since": m.at, "incident": m.incident, "gpus": m.gpus, "pool": m.pool}
            for e, m in sorted(fleet.isolated.items())
        ],
        "weights": [{"engine": n, "weight_ratio": w} for n, w in sorted(fleet.weights.items())],
    }


def health(daemon: Daemon) -> str:
    """ "ok", "warning" or "critical": the worst of the open incidents and of the daemon's own trouble."""
    severities = {i.severity for i in daemon.core.state.book.open.values()}
    if Severity.CRITICAL in severities:
        return "critical"
    return "warning" if Severity.WARNING in severities or health_reasons(daemon) else "ok"


def health_reasons(daemon: Daemon) -> list[str]:
    """What is wrong with the daemon's own view of things, as sentences."""
    reasons = []
    if not is_deciding(daemon) and daemon.status.ticks:
        reasons.append(f"no decision for {span(daemon.clock() - daemon.frames.at)}")
    if not daemon.status.is_ready:
        reasons.append("no target has been seen yet")
    if not daemon.record.healthy:
        reasons.append(f"the journal cannot be written, so nothing is changed: {daemon.record.trouble}")
    if daemon.status.reload_error:
        reasons.append("the last reload failed; the earlier configuration is in force")
    reasons += [f"source {name}: {error}" for name, error in service.source_errors(daemon).items()]
    target = daemon.frames["target"]
    down = int((target.column("up") == 0.0).sum())
    if down:
        reasons.append(f"{down} of {len(target.entities)} targets do not answer")
    return reasons


def incident_words(found: list[Incident]) -> list[str]:
    counts = Counter(i.severity for i in found)
    return [f"{counts[s]} {s.value} incident{'s' * (counts[s] > 1)}" for s in RANK if counts[s]]


def open_incidents(daemon: Daemon) -> list[Incident]:
    """Worst first, then newest first."""
    return sorted(daemon.core.state.book.open.values(), key=lambda i: (RANK[i.severity], -i.opened))


def incident_row(incident: Incident) -> Row:
    pattern = PATTERNS.get(incident.kind)
    return {
        "id": incident.id,
        "kind": incident.kind,
        "title": pattern.title if pattern else incident.kind.replace("_", " "),
        "family": pattern.family if pattern else "",
        "scope": str(incident.scope),
        "scope_kind": incident.scope.kind,
        "scope_name": incident.scope.name,
        "severity": incident.severity.value,
        "state": incident.state,
        "since": incident.since,
        "opened": incident.opened,
        "seen": incident.seen,
        "closed": incident.closed,
        "cause": incident.cause,
        "findings": len(incident.findings),
    }


def modes(daemon: Daemon) -> list[Row]:
    """How far each action may go, and whether anything can carry it out."""
    policy = daemon.core.policy
    rows = []
    for verb in Verb:
        if verb is Verb.NOTIFY:
            continue
        own = {p.name: p.modes[verb].value for p in policy.pools if verb in p.modes}
        mode = policy.modes.get(verb, policy.mode)
        rows.append({"verb": verb.value, "mode": mode.value, "is_able": verb in policy.able, "pools": own})
    return rows


def changes(daemon: Daemon, limit: int = 12) -> list[Row]:
    """What the last decisions changed, newest first."""
    entries = daemon.record.events(type="decision", limit=limit, newest_first=True)
    return [{"at": e.at, "sentence": e.payload["sentence"]} for e in entries]


def approvals(daemon: Daemon) -> list[Row]:
    """Steps that wait for an operator now."""
    state = daemon.core.state
    rows = []
    for standing in state.standing.values():
        if standing.reason is not Reason.AWAITS_APPROVAL:
            continue
        row = daemon.record.step(standing.id)
        if row is None:
            continue
        rows.append(
            {
                "id": standing.id,
                "text": told(row.step),
                "why": row.step.reason,
                "expected": row.step.expected,
                "incident": row.step.incident,
                "gpus": row.step.gpus,
                "at": row.at,
                "is_decided": standing.id in state.approved | state.rejected,
            }
        )
    return sorted(rows, key=lambda r: str(r["id"]))


def pool_rows(daemon: Daemon) -> list[Row]:
    frame, learnt = daemon.frames["pool"], daemon.core.state.memory.learnt
    rows = []
    for index, name in enumerate(frame.entities):
        value = dict(zip(frame.signals, frame.values[index].tolist(), strict=True))
        policy = daemon.core.policy.pool(name) or PoolPolicy(name)
        capacity = learnt[name].capacity if name in learnt else NAN
        room = value["ready"] * capacity
        rows.append(
            {
                "name": name,
                "is_configured": daemon.core.policy.pool(name) is not None,
                "replicas": value["replicas"],
                "ready": value["ready"],
                "running_requests": value["running"],
                "waiting_requests": value["waiting"],
                "concurrency_requests": value["concurrency"],
                "capacity_per_replica_requests": capacity,
                "load_ratio": value["concurrency"] / room if room > 0 else NAN,
                "generation_tokens_per_s": value["generation_tokens_s"],
                "kv_used_mean_ratio": value["kv_used_ratio_mean"],
                "kv_used_max_ratio": value["kv_used_ratio_max"],
                "ttft_p95_max_s": value["ttft_p95_s_max"],
                "ttft_slo_s": policy.ttft_slo_s,
                "over_slo_ratio": value["over_slo_ratio"],
                "slo_miss_allowed_ratio": 1.0 - policy.slo_target,
            }
        )
    return rows


def outlook_row(daemon: Daemon) -> Row:
    """Capacity ahead against what stands."""
    outlook, policy = daemon.core.outlook, daemon.core.policy
    frame = outlooks.frame(outlook, policy)
    row: Row = dict(zip(frame.signals, frame.values[0].tolist(), strict=True))
    if math.isnan(outlook.at):
        row["gpus_usable"] = NAN
    row["is_known"] = outlook.is_known
    row["gpus_lent"] = sum(lease.gpus for lease in daemon.core.state.fleet.leases.values())
    row["gpu_hours_lent"] = daemon.core.state.fleet.lent_gpu_s / 3600.0
    row["text"] = outlook_text(row)
    return row


def outlook_text(row: Mapping[str, Any]) -> str:
    if not row["is_known"]:
        return "No capacity outlook yet: every pool needs a forecast and a learnt capacity per replica first."
    days = row["horizon_s"] / 86400.0
    if math.isfinite(row["short_in_s"]):
        return (
            f"GPUs may run short in {span(row['short_in_s'])}: at the 90 % level {row['gpus_needed_q90']:.0f} are "
            f"needed and {row['gpus_usable']:.0f} are usable."
        )
    return (
        f"Enough GPUs for the next {days:.1f} days: at the 90 % level {row['gpus_needed_q90']:.0f} of "
        f"{row['gpus_usable']:.0f} usable are needed at the peak."
    )


def lease_rows(daemon: Daemon) -> list[Row]:
    leases = daemon.core.state.fleet.leases
    return [{"node": n, "gpus": v.gpus, "since": v.at, "until": v.until} for n, v in sorted(leases.items())]


# -- targets -------------------------------------------------------------------------------------------


def targets(daemon: Daemon, catalogue: Catalogue) -> Row:
    """Every scraped address, those in trouble first, and what nobody exports."""
    frame = daemon.frames["target"]
    rows = [_target_row(frame, i) for i in range(len(frame.entities))]
    rows.sort(key=lambda r: (r["state"] == "up", r["name"]))
    return {
        "at": daemon.frames.at or NAN,
        "targets": rows,
        "counts": dict(Counter(r["state"] for r in rows)),
        "sources": [
            {"name": name, "error": service.source_errors(daemon).get(name, "")}
            for name in sorted(daemon.sources)
        ],
        "source_errors": service.source_errors(daemon),
        "blind_spots": blind_spots(daemon, catalogue),
    }


def _target_row(frame: Frame, index: int) -> Row:
    value = dict(zip(frame.signals, frame.values[index].tolist(), strict=True))
    facts = {k: v[index] for k, v in frame.facts.items()}
    up = value["up"]
    return {
        "name": frame.entities[index],
        "state": "up" if up == 1.0 else "down" if up == 0.0 else "unknown",
        "exporter": facts.get("job", ""),
        "node": facts.get("node", ""),
        "error": facts.get("error", ""),
        "took_s": value["took_s"],
        "silent_s": value["silent_s"],
        "unchanged_s": value["unchanged_s"],
        "fails_in_a_row": value["fails"],
        "series": value["series"],
        "lines_dropped": value["dropped"],
    }


def blind_spots(daemon: Daemon, catalogue: Catalogue) -> list[Row]:
    """Signals that no exporter gives, with the line that would enable each."""
    return [
        {"kind": s.kind, "signal": s.signal, "names": list(s.names), "remedy": s.remedy}
        for s in catalogue.blind_spots(seen_signals(daemon.frames, catalogue))
    ]


def seen_signals(frames: Frames, catalogue: Catalogue) -> dict[str, set[str]]:
    """kind -> catalogue names with at least one value; a kind that has no entities is absent."""
    return {
        frame.kind: _measured(frame, catalogue)
        for frame in frames
        if frame.entities and frame.kind in catalogue.signals
    }


def _measured(frame: Frame, catalogue: Catalogue) -> set[str]:
    """Catalogue names with at least one value; a histogram counts by the columns made of it."""
    columns = {s for i, s in enumerate(frame.signals) if np.isfinite(frame.values[:, i]).any()}
    stems = {
        name
        for name, signal in catalogue.signals[frame.kind].items()
        if signal.shape == "histogram" and columns & set(histogram.columns(name))
    }
    # A code that only shows when it changes is exported although it is mostly NaN.
    codes = {
        n for n, s in catalogue.signals[frame.kind].items() if s.shape == "last_code" and n in frame.signals
    }
    return columns | stems | codes


MODE_WORDS: Mapping[Mode, str] = {
    Mode.OBSERVE: "decides and records, changes nothing",
    Mode.ADVISE: "says what it would do, changes nothing",
    Mode.APPROVE: "acts once an operator approves",
    Mode.AUTO: "acts within its budgets",
}
