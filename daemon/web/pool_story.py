"""One pool: does it keep its objective, on which replicas, what stands ahead of it, what was done with it."""

from __future__ import annotations

from daemon.loop import Daemon
from daemon.model import NAN, Entity, Verb
from daemon.web import ahead, pooling
from daemon.web.attainment import Attained, attained
from daemon.web.cases import step_row
from daemon.web.errors import Missing
from daemon.web.plot import Line, Plot
from daemon.web.views import Row, incident_row, open_incidents, pool_rows

WINDOWS_S = (3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
"""Over which the objective is told: from what clients feel now to what is promised for a month."""
STEPS_LOOKED, STEPS_SHOWN = 2000, 20
SIGNALS = ("running", "waiting", "kv_used_ratio", "ttft_p95_s", "itl_mean_s")


def of(daemon: Daemon, name: str) -> Row:
    """The pool as plain data. Raises Missing."""
    now = next((r for r in pool_rows(daemon) if r["name"] == name), None)
    if now is None:
        known = ", ".join(daemon.frames["pool"].entities) or "none yet"
        raise Missing(f"no pool {name!r}; pools: {known}")
    return {
        "at": daemon.frames.at or NAN,
        "name": name,
        "now": now,
        "holds": next((r for r in pooling.of(daemon)["pools"] if r["name"] == name), None),
        "objective": [_window(daemon, name, now["slo_miss_allowed_ratio"], s) for s in WINDOWS_S],
        "engines": _engines(daemon, name),
        "open": [incident_row(i) for i in open_incidents(daemon) if _touches(daemon, i.scope, name)],
        "steps": [
            step_row(r)
            for r in daemon.record.steps(limit=STEPS_LOOKED, without=Verb.NOTIFY)
            if r.step.pool == name
        ][:STEPS_SHOWN],
        "ahead": ahead.pool_ahead(daemon, now),
    }


def _window(daemon: Daemon, name: str, allowed: float, span_s: float) -> Row:
    until = daemon.frames.at or daemon.clock()
    met = attained(daemon.record, name, until - span_s, until)
    return {
        "span_s": span_s,
        "target_ratio": 1.0 - allowed,
        "attained_ratio": met.ratio,
        "measured_ratio": met.measured_ratio,
        "budget_used_ratio": (1.0 - met.ratio) / allowed if allowed > 0 else NAN,
    }


def _engines(daemon: Daemon, name: str) -> list[Row]:
    """Its replicas: where each sits, what it carries, what share of its traffic it is given."""
    frame, core = daemon.frames["engine"], daemon.core
    columns = dict(zip(SIGNALS, frame.columns(SIGNALS).T.tolist(), strict=True)) if frame.entities else {}
    place = {e: i for i, e in enumerate(frame.entities)}
    node_of = {e: node for node, engines in core.topology.engines_on.items() for e in engines}
    return [
        {
            "name": engine,
            "node": node_of.get(engine, ""),
            "weight_ratio": core.state.fleet.weights.get(engine, 1.0),
            **{s: columns[s][place[engine]] if engine in place else NAN for s in SIGNALS},
        }
        for engine in sorted(core.topology.engines_in(name))
    ]


def _touches(daemon: Daemon, scope: Entity, name: str) -> bool:
    return Entity("pool", name) in (scope, *daemon.core.topology.scopes(scope))


def slo_plot(name: str, met: Attained, allowed: float) -> Plot:
    """The share of requests over the objective over time, in per cent, beside what is allowed."""
    points = list(zip(met.at.tolist(), (met.late * 100.0).tolist(), strict=True))
    return Plot(
        f"Requests of pool {name} over the latency objective",
        "%",
        NAN,
        [Line("over the objective", "past", points)],
        levels=[("allowed by the objective", "high", allowed * 100.0)],
    )
