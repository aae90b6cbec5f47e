"""The shapes of the API's answers, as JSON Schema.

A number is null where nothing was measured. Times are seconds since the epoch (UTC); other units stand at the end of a
name: _s, _ratio (0 to 1), _w, _c, _gpu_hours. Answers may gain fields; those named here stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.model import Reason, Result, Severity, Verb
from daemon.policy import Mode, PoolKind
from daemon.web.words import STATES

Shape = Mapping[str, Any]

TEXT: Shape = {"type": "string"}
FLAG: Shape = {"type": "boolean"}
COUNT: Shape = {"type": "integer", "minimum": 0}
NUMBER: Shape = {"type": ["number", "null"]}
TIME: Shape = {
    "type": ["number", "null"],
    "description": "seconds since the epoch; null = not yet, or not known",
}
SHARE: Shape = {"type": ["number", "null"], "description": "0 to 1"}
NEXT: Shape = {
    "type": ["string", "null"],
    "description": "the `cursor` of the next page; null = this is the last one",
}


def listed(shape: Shape) -> Shape:
    return {"type": "array", "items": shape}


def mapped(shape: Shape) -> Shape:
    return {"type": "object", "additionalProperties": shape}


def one_of(words: Any) -> Shape:
    return {"type": "string", "enum": [getattr(w, "value", w) for w in words]}


def row(optional: Mapping[str, Shape] | None = None, /, **fields: Shape) -> Shape:
    """An object with all of these fields, and perhaps the optional ones."""
    return {"type": "object", "required": sorted(fields), "properties": {**fields, **(optional or {})}}


def ref(name: str) -> Shape:
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(shape: Shape) -> Shape:
    return {"oneOf": [shape, {"type": "null"}]}


MODE = one_of(Mode)
SEVERITY = one_of(Severity)
VERB = one_of(Verb)
VERDICT = one_of(["", *Reason])
PAUSED: Shape = {
    "oneOf": [{"type": "number"}, {"const": "resumed"}, {"type": "null"}],
    "description": "when the pause ends; `resumed` = when somebody resumes; null = actions are not paused",
}

INCIDENT: Mapping[str, Shape] = {
    "id": TEXT, "kind": TEXT, "title": TEXT, "family": TEXT, "scope": TEXT, "scope_kind": TEXT, "scope_name": TEXT,
    "severity": SEVERITY, "state": one_of(["open", "closed"]), "since": TIME, "opened": TIME, "seen": TIME,
    "closed": TIME, "cause": TEXT, "findings": COUNT,
}  # fmt: skip
ACTION: Mapping[str, Shape] = {
    "id": TEXT, "verb": VERB, "target": TEXT, "amount": NUMBER, "text": TEXT, "pool": TEXT, "incident": TEXT,
    "state": one_of(STATES), "state_text": TEXT, "at": TIME, "why": TEXT, "expected": TEXT, "verdict": VERDICT,
    "verdict_text": TEXT, "begun": TIME, "ended": TIME, "took_s": NUMBER, "result": one_of(["", *Result]),
    "detail": TEXT,
}  # fmt: skip

NODE: Mapping[str, Shape] = {
    "name": TEXT, "rack": TEXT, "leaf": TEXT, "region": TEXT,
    "state": one_of(["silent", "sick", "isolated", "lent", "serving", "idle", "unknown"]), "sku": TEXT,
    "gpus": listed(row(
        name=TEXT, util_ratio=SHARE, temp_c=NUMBER, power_w=NUMBER, hbm_used_ratio=SHARE, engine=TEXT, is_isolated=FLAG,
    )),
    "engines": listed(row(name=TEXT, pool=TEXT)), "incidents": listed(TEXT), "lease_until": TIME, "age_s": NUMBER,
}  # fmt: skip

REGION: Mapping[str, Shape] = {
    "health_ratio": SHARE, "requests_per_s": NUMBER, "carries_per_s": NUMBER, "could_carry_per_s": NUMBER, "ttft_s": NUMBER,
}  # fmt: skip

FRONT: Mapping[str, Shape] = {
    "name": TEXT, "arrivals_per_s": NUMBER, "errors_per_s": NUMBER, "refused_per_s": NUMBER, "queue": NUMBER, "latency_s": NUMBER,
    "admitted": SHARE,
}  # fmt: skip

SHAPES: Mapping[str, Shape] = {
    "Problem": row(type=TEXT, title=TEXT, status=COUNT, detail=TEXT),
    "Queued": row(
        {"undoes": TEXT}, queued=TEXT, argument=TEXT, by=TEXT, within_s={"type": "number", "exclusiveMinimum": 0}
    ),
    "Status": row(
        version=TEXT, cluster=TEXT, now=TIME, started=TIME, decided=TIME, ticks=COUNT, ticks_missed=COUNT, tick_s=NUMBER,
        tick_every_s=NUMBER, is_ready=FLAG, is_deciding=FLAG, journal_is_healthy=FLAG, journal_trouble=TEXT,
        source_errors=mapped(TEXT), reloads=COUNT, reload_error=TEXT, forecast_error=TEXT, mode=MODE, paused_until=PAUSED,
        steps_in_flight=COUNT, letters=mapped(COUNT),
    ),
    "Incident": row(**INCIDENT),
    "Action": row(**ACTION),
    "Approval": row(
        id=TEXT, text=TEXT, why=TEXT, expected=TEXT, incident=TEXT, gpus=NUMBER, at=TIME, is_decided=FLAG
    ),
    "Event": row(at=TIME, type=TEXT, text=TEXT, step=TEXT),
    "Evidence": row(name=TEXT, value=NUMBER, unit=TEXT, peer=NUMBER),
    "Finding": row(
        entity=TEXT, kind=TEXT, detector=TEXT, score_ratio=SHARE, severity=SEVERITY, at=TIME, text=TEXT,
        evidence=listed(ref("Evidence")),
    ),
    "Lease": row(node=TEXT, gpus=NUMBER, since=TIME, until=TIME),
    "Pool": row(
        name=TEXT, is_configured=FLAG, replicas=NUMBER, ready=NUMBER, running_requests=NUMBER, waiting_requests=NUMBER,
        concurrency_requests=NUMBER, capacity_per_replica_requests=NUMBER, load_ratio=NUMBER,
        generation_tokens_per_s=NUMBER, kv_used_mean_ratio=SHARE, kv_used_max_ratio=SHARE, ttft_p95_max_s=NUMBER,
        ttft_slo_s=NUMBER, over_slo_ratio=SHARE, slo_miss_allowed_ratio=SHARE,
    ),
    "Outlook": row(
        gpus_usable=NUMBER, gpus_needed_q50=NUMBER, gpus_needed_q90=NUMBER, gpus_needed_q95=NUMBER, short_in_s=NUMBER,
        short_gpu_hours=NUMBER, short_chance=SHARE, exhausted_in_s=NUMBER, exhausted_early_s=NUMBER,
        gpus_allowance=NUMBER, horizon_s=NUMBER, made_at_s=TIME, learnt_s=NUMBER, skill_ratio=NUMBER, is_known=FLAG,
        gpus_lent=NUMBER, gpu_hours_lent=NUMBER, text=TEXT,
    ),
    "Overview": row(
        cluster=TEXT, at=TIME, health=one_of(["ok", "warning", "critical"]), health_reasons=listed(TEXT), mode=MODE,
        modes=listed(row(verb=VERB, mode=MODE, is_able=FLAG, pools=mapped(MODE))), paused_until=PAUSED,
        discovered=row(
            targets=COUNT, nodes=COUNT, gpus=COUNT, skus=listed(TEXT), engines=COUNT, engine_kinds=listed(TEXT),
            models=listed(TEXT), pools=listed(TEXT), tier=TEXT,
        ),
        targets_up=COUNT, changes=listed(row(at=TIME, sentence=TEXT)), incidents=listed(ref("Incident")),
        approvals=listed(ref("Approval")), pools=listed(ref("Pool")), outlook=ref("Outlook"),
        leases=listed(ref("Lease")),
        isolated=listed(row(entity=TEXT, since=TIME, incident=TEXT, gpus=NUMBER, pool=TEXT)),
        weights=listed(row(engine=TEXT, weight_ratio=SHARE)),
    ),
    "BlindSignal": row(kind=TEXT, signal=TEXT, names=listed(TEXT), remedy=TEXT),
    "Targets": row(
        at=TIME,
        targets=listed(row(
            name=TEXT, state=TEXT, exporter=TEXT, node=TEXT, error=TEXT, took_s=NUMBER, silent_s=NUMBER,
            unchanged_s=NUMBER, fails_in_a_row=NUMBER, series=NUMBER, lines_dropped=NUMBER,
        )),
        counts=mapped(COUNT), sources=listed(row(name=TEXT, error=TEXT)), source_errors=mapped(TEXT),
        blind_spots=listed(ref("BlindSignal")),
    ),
    "Nodes": row(at=TIME, nodes=listed(row(**NODE)), counts=mapped(COUNT)),
    "Trace": row(
        entity=TEXT, signal=TEXT, at=listed(TIME), value=listed(NUMBER), peers_median=listed(NUMBER),
        peers_low=listed(NUMBER), peers_high=listed(NUMBER),
    ),
    "NodeStory": row(
        **NODE, at=TIME, isolated=or_null(row(since=TIME, incident=TEXT)), open=listed(ref("Incident")),
        facts=mapped(TEXT), measured=mapped(listed(row(name=TEXT, signals=mapped(NUMBER)))), traces=listed(ref("Trace")),
    ),
    "Incidents": row(at=TIME, open=listed(ref("Incident")), closed=listed(ref("Incident")), next=NEXT),
    "IncidentStory": row(
        **INCIDENT, text=TEXT,
        case=row(hypothesis=TEXT, evidence=listed(TEXT), at_first=listed(TEXT), rejected=listed(TEXT), response=TEXT, to_do=TEXT),
        verdict=row(rules=listed(TEXT), word=TEXT, by=TEXT), evidence=listed(ref("Finding")),
        timeline=listed(ref("Event")), steps=listed(ref("Action")), letters=listed(ref("Action")),
        traces=listed(ref("Trace")),
    ),
    "Actions": row(at=TIME, actions=listed(ref("Action")), next=NEXT),
    "ActionStory": row(
        **ACTION, deadline_s=NUMBER, until=TIME, gpus=NUMBER, args=mapped(TEXT), can_be_approved=FLAG, can_be_undone=FLAG,
        explanation=listed(TEXT), timeline=listed(ref("Event")),
    ),
    "Alerts": row(
        at=TIME,
        alerts=listed(row(
            key=TEXT, status=one_of(("firing", "resolved")), severity=SEVERITY, summary=TEXT, incident=TEXT,
            labels=mapped(TEXT), started=TIME, ended=TIME, changes=COUNT, acked_by=TEXT, acked_at=TIME,
        )),
        silences=listed(row(id=TEXT, match=mapped(TEXT), start=TIME, end=TIME, by=TEXT, comment=TEXT)),
        letters=listed(row(
            id=TEXT, channel=TEXT, kind=TEXT, status=one_of(("firing", "resolved")), severity=SEVERITY, about=TEXT,
            alerts=COUNT, state=TEXT, at=TIME, tries=COUNT, error=TEXT,
        )),
    ),
    "Audit": row(at=TIME, entries=listed(row(at=TIME, by=TEXT, word=TEXT, argument=TEXT)), next=NEXT),
    "ShadowIncident": row(id=TEXT, kind=TEXT, title=TEXT, scope=TEXT, opened=TIME, closed=TIME, cause=TEXT),
    "Rules": row(
        at=TIME,
        rules=listed(row(
            id=TEXT, detector=TEXT, kind=TEXT, severity=SEVERITY, text=TEXT, state=one_of(["on", "shadow", "off"]),
            state_why=TEXT, is_blind=FLAG, fired=COUNT, confirmed=COUNT, refuted=COUNT, precision_ratio=SHARE,
            precision_low_ratio=SHARE, precision_high_ratio=SHARE, promoted_from_ratio=SHARE, needs=listed(TEXT),
        )),
        shadow=listed(ref("ShadowIncident")), shadow_closed=listed(ref("ShadowIncident")),
    ),
    "BlindSpots": row(
        at=TIME, rules_total=COUNT,
        blindspots=listed(row(
            rule=TEXT, kind=TEXT, severity=SEVERITY, text=TEXT, missing=listed(TEXT), remedy=TEXT
        )),
    ),
    "Cost": row(
        at=TIME, hours=NUMBER, currency=TEXT,
        prices=row(gpu_hour=NUMBER, kwh=NUMBER, pue=NUMBER, carbon_g_per_kwh=NUMBER),
        pools=listed(row(
            name=TEXT, gpu_hours=NUMBER, energy_kwh=NUMBER, facility_kwh=NUMBER, tokens=NUMBER, prompt_tokens=NUMBER,
            kwh_per_mtoken=NUMBER, money=NUMBER, money_per_mtoken=NUMBER, carbon_kg=NUMBER, saved_gpu_hours=NUMBER,
        )),
        total=row(
            gpu_hours=NUMBER, energy_kwh=NUMBER, facility_kwh=NUMBER, money=NUMBER, carbon_kg=NUMBER,
            kwh_per_mtoken=NUMBER, money_per_mtoken=NUMBER, tokens=NUMBER,
        ),
        racks=listed(row(name=TEXT, power_w=NUMBER, cap_w=NUMBER, draw_w=NUMBER, why=TEXT)), advice=listed(TEXT), nodes=listed(row(name=TEXT, power_w=NUMBER)),
        share_of_revenue=NUMBER, missing=listed(TEXT),
    ),
    "Posture": row(
        at=TIME, tier=TEXT, tier_why=TEXT,
        posture=listed(row(
            item=TEXT, tier=TEXT, title=TEXT, state=one_of(["pass", "fail", "unknown", "not_applicable"]), sign=TEXT,
            value=NUMBER, target=NUMBER, unit=TEXT, value_text=TEXT, target_text=TEXT, evidence=TEXT, missing=TEXT,
            todo=TEXT,
        )),
        counts=mapped(COUNT), advice=listed(TEXT), tiers=mapped(TEXT),
    ),
    "Holder": row(
        name=TEXT, priority={"type": "integer"}, is_configured=FLAG, replicas=COUNT, wanted=NUMBER, replicas_min=COUNT,
        replicas_max=COUNT, gpus=COUNT, is_lendable=FLAG, kind=one_of(PoolKind), gpus_spot=COUNT,
    ),
    "Pools": row(
        at=TIME,
        pools=listed(ref("Holder")),
        lanes=listed(row(kind=one_of([*PoolKind, "free"]), gpus=NUMBER, gpus_spot=COUNT, holders=listed({"type": "array"}))),
        takes=listed(row({"from": TEXT}, to=TEXT, gpus=NUMBER, text=TEXT, is_now=FLAG)), spot_advice=listed(TEXT),
        gpus=COUNT, gpus_lent=NUMBER, gpus_isolated=NUMBER, gpus_free=NUMBER,
        flow=listed(row({"from": TEXT}, to=TEXT, kind=one_of(["lent", "may_lend", "grows"]), gpus=NUMBER, text=TEXT)),
        gives_first=listed(TEXT),
    ),
    "Gateway": row(
        at=TIME, missing=TEXT,
        pools=listed(row(**FRONT, members=NUMBER, members_up=NUMBER)), classes=listed(row(**FRONT, pool=TEXT)),
    ),
    "Jobs": row(
        at=TIME, is_listed=FLAG, missing=TEXT,
        jobs=listed(row(
            name=TEXT, title=TEXT, user=TEXT, queue=TEXT, nodes=listed(TEXT), gpus=NUMBER, running_s=NUMBER, saved_by=TEXT,
            checkpoint=TIME, unsaved_s=NUMBER, loss_gpu_hours=NUMBER, is_bound=FLAG, ends=TIME, restarts=NUMBER, is_lent=FLAG,
        )),
        recall_order=listed(row(
            node=TEXT, gpus=NUMBER, until=TIME, loss_gpu_hours=NUMBER, jobs=listed(TEXT), text=TEXT,
        )),
    ),
    "Storage": row(
        at=TIME,
        stores=listed(row(
            name=TEXT, source=TEXT, nodes=COUNT, read_bytes_s=NUMBER, write_bytes_s=NUMBER, read_time_s=NUMBER, busy_ratio=SHARE,
            errors_per_s=NUMBER, resent_ratio=NUMBER, health=NUMBER, free_ratio=SHARE, hit_ratio=SHARE, slowest=TEXT,
            slowest_s=NUMBER,
        )),
        starts=listed(row(
            pool=TEXT, planned_s=NUMBER, configured_s=NUMBER, last_s=NUMBER, weights_s=NUMBER,
            sources=listed(row(source=TEXT, count=COUNT, p50_s=NUMBER, p95_s=NUMBER)),
        )),
        warm=listed(row(pool=TEXT, at=TIME, replicas=COUNT, nodes=listed(TEXT), saves_s=NUMBER, text=TEXT)),
        missing=listed(TEXT),
    ),
    "Placement": row(
        at=TIME,
        wishes=listed(row(
            kind=one_of(["cross_leaf", "detour", "one_rack", "fragment"]), subject=TEXT, pool=TEXT, text=TEXT, bytes_s=NUMBER,
            to=TEXT, kubernetes=TEXT, slurm=TEXT,
        )),
        free=listed(row(pool=TEXT, gpus=COUNT, fits=COUNT, could=COUNT, stranded=COUNT, ratio=SHARE)),
        crossing_bytes_s=NUMBER, leaves=COUNT, racks=COUNT, unplaced=listed(TEXT),
    ),
    "Region": row(
        at=TIME, region=TEXT, **REGION, gpus_usable=NUMBER, gpus_free=NUMBER, money_per_mtoken=NUMBER,
        readings=listed(row(entity=TEXT, signal=TEXT, value=NUMBER, at=TIME)),
    ),
    "Regions": row(
        at=TIME, own=ref("Region"),
        regions=listed(row(
            name=TEXT, state=one_of(["well", "unknown", "back", "lost"]), share=SHARE, wanted=SHARE, **REGION,
            round_trip_s=NUMBER, heard_s=NUMBER,
        )),
        total_per_s=NUMBER, short=SHARE, overflow=TEXT, note=TEXT,
    ),
    "Fit": row(
        at=TIME, minutes=COUNT,
        pools=listed(row(
            name=TEXT, model=TEXT, replicas=COUNT, gpus_per_replica=NUMBER, reserved_bytes_per_gpu=NUMBER,
            memory_bytes_per_gpu=NUMBER, kv_capacity_tokens=NUMBER, kv_peak_ratio=SHARE, kv_capacity_bytes=NUMBER,
            kv_peak_bytes=NUMBER, text=TEXT,
        )),
    ),
    "Score": row(
        forecaster=TEXT, elapsed=COUNT, error_ratio=NUMBER, wql=NUMBER, coverage80=SHARE, brier_skill=NUMBER
    ),
    "Report": row(
        cluster=TEXT, since=TIME, until=TIME, span_s=NUMBER, opened=COUNT, open_now=COUNT,
        kinds=listed(row(
            kind=TEXT, title=TEXT, severity=SEVERITY, count=COUNT, open_s=NUMBER, typical_s=NUMBER
        )),
        worst=listed(ref("Incident")), done=listed(row(verb=VERB, result=one_of(STATES), count=COUNT)),
        refused=listed(row(reason=TEXT, count=COUNT)), deeds=listed(row(at=TIME, id=TEXT, text=TEXT, why=TEXT)),
        gpu_hours_lent=NUMBER, leases=COUNT,
        pools=listed(row(
            name=TEXT, mean_requests=NUMBER, peak_requests=NUMBER, slo_target_ratio=SHARE, slo_attained_ratio=SHARE,
            slo_measured_ratio=SHARE, slo_budget_used_ratio=NUMBER, over_slo_now_ratio=SHARE, scores=listed(ref("Score")),
        )),
        offenders=listed(row(name=TEXT, count=COUNT, open_s=NUMBER, kinds=TEXT)),
    ),
    "Forecast": row(
        at=TIME, outlook=ref("Outlook"), needed=row({"from": TIME}, step_s=NUMBER, gpus=mapped(listed(NUMBER))),
        leases=listed(ref("Lease")), error=TEXT,
        calendar=listed(row(day=TIME, free=listed(NUMBER), lent=listed(NUMBER))),
        cluster=listed(row(signal=TEXT, skill_ratio=NUMBER, q50=NUMBER, q90=NUMBER)),
        pools=listed(ref("PoolAhead")),
    ),
    "PoolAhead": row(
        name=TEXT, signal=TEXT, now=ref("Pool"), planned_requests=NUMBER,
        history=row(at=listed(TIME), step_s=NUMBER, concurrency_requests=listed(NUMBER)),
        forecast=or_null(row(
            made_at=TIME, step_s=NUMBER, model=TEXT, skill_ratio=NUMBER, levels=listed(NUMBER),
            quantiles=listed(listed(NUMBER)),
        )),
        peaks=mapped(row(q50_requests=NUMBER, q90_requests=NUMBER, peak_at=TIME)),
        before=or_null(row(
            made_at=TIME, step_s=NUMBER, forecaster=TEXT, levels=listed(NUMBER), quantiles=listed(listed(NUMBER)),
        )),
        scores=listed(ref("Score")),
        beside=listed(row(signal=TEXT, skill_ratio=NUMBER, q50=NUMBER, q90=NUMBER)),
        short=row(chance=SHARE, exhausted_in_s=NUMBER, gpu_hours=NUMBER), text=TEXT,
    ),
    "PoolStory": row(
        at=TIME, name=TEXT, now=ref("Pool"), holds=or_null(ref("Holder")), open=listed(ref("Incident")),
        objective=listed(row(
            span_s=NUMBER, target_ratio=SHARE, attained_ratio=SHARE, measured_ratio=SHARE, budget_used_ratio=NUMBER,
        )),
        engines=listed(row(
            name=TEXT, node=TEXT, weight_ratio=NUMBER, running=NUMBER, waiting=NUMBER, kv_used_ratio=SHARE,
            ttft_p95_s=NUMBER, itl_mean_s=NUMBER,
        )),
        steps=listed(ref("Action")), ahead=ref("PoolAhead"),
    ),
}  # fmt: skip
