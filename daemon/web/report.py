"""What the last days brought: what happened, what was done, what was lent, how the forecasts did, who offended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from daemon.loop import Daemon
from daemon.model import NAN, Incident, Result, Verb
from daemon.record import StepRow
from daemon.units import duration_s
from daemon.web import ahead
from daemon.web.attainment import Attained, attained
from daemon.web.errors import Unusable
from daemon.web.plot import Line, Plot, Points
from daemon.web.views import RANK, incident_row, pool_rows
from daemon.web.words import told

HOUR_S = 3600.0
LONGEST_S = 366 * 86400.0
ROWS_MAX = 100_000
"""Incidents and steps that are looked at: months of a large fleet."""
SHOWN = 15


def as_written(text: str, **values: Any) -> str:
    return text.format(**values)


def report(daemon: Daemon, span_s: float, words: Callable[..., str] = as_written) -> dict[str, Any]:
    """The report of [now - span_s, now], as plain data with drawings as SVG. words : the language of the drawings."""
    until = daemon.frames.at or daemon.clock()
    since = until - span_s
    found = [i for i in _incidents(daemon) if i.opened < until and not i.closed < since]
    steps = [
        r
        for r in daemon.record.steps(limit=ROWS_MAX)
        if r.step.verb is not Verb.NOTIFY and since <= _ended(r) <= until
    ]
    loans = leases(daemon.record.steps(limit=ROWS_MAX), since, until)
    return {
        "cluster": daemon.core.policy.cluster,
        "since": since,
        "until": until,
        "span_s": span_s,
        "opened": sum(since <= i.opened for i in found),
        "open_now": sum(math.isnan(i.closed) for i in found),
        "kinds": by_kind(found, since, until),
        "worst": [
            incident_row(i) for i in sorted(found, key=lambda i: (RANK[i.severity], -i.opened))[:SHOWN]
        ],
        "done": [
            {"verb": verb, "result": result, "count": count}
            for (verb, result), count in Counter((r.step.verb.value, r.state) for r in steps).most_common()
        ],
        "refused": [
            {"reason": reason, "count": count}
            for reason, count in Counter(
                r.verdict.reason.value for r in steps if r.verdict is not None and not r.verdict.allowed
            ).most_common()
        ],
        "deeds": [
            {"at": _ended(r), "id": r.step.id, "text": told(r.step), "why": r.step.reason}
            for r in steps
            if r.outcome is not None and r.outcome.result is Result.DONE
        ][:SHOWN],
        "gpu_hours_lent": sum(gpus * (end - start) for _, gpus, start, end in loans) / HOUR_S,
        "leases": len(loans),
        "lent_plot": lent_plot(loans, since, until, words).svg(),
        "pools": [_pool(daemon, row, since, until, words) for row in pool_rows(daemon)],
        "offenders": offenders(found, since, until),
        "incident_plot": incident_plot(found, since, until, words).svg(),
    }


def without_drawings(data: dict[str, Any]) -> dict[str, Any]:
    """The report for programs."""
    pools = [{k: v for k, v in pool.items() if not k.endswith("plot")} for pool in data["pools"]]
    return {k: v for k, v in data.items() if not k.endswith("_plot")} | {"pools": pools}


def span_of(text: str) -> float:
    """Seconds of "7d". Raises Unusable."""
    try:
        span_s = duration_s(text)
    except ValueError as error:
        raise Unusable(f"last: {error}") from error
    if not 60.0 <= span_s <= LONGEST_S:
        raise Unusable(f"last is {text!r}; give 1m to 366d")
    return span_s


def _incidents(daemon: Daemon) -> list[Incident]:
    """Closed ones from the journal, open ones as they stand now."""
    live = daemon.core.state.book.open
    past = [i for i in daemon.record.incidents(limit=ROWS_MAX) if i.id not in live]
    return [*live.values(), *past]


def _ended(row: StepRow) -> float:
    return row.outcome.at if row.outcome is not None and row.outcome.at == row.outcome.at else row.at


def lasted_s(incident: Incident, since: float, until: float) -> float:
    """Seconds of the window in which it was open."""
    end = until if math.isnan(incident.closed) else min(incident.closed, until)
    return max(0.0, end - max(incident.opened, since))


def by_kind(found: Sequence[Incident], since: float, until: float) -> list[dict[str, Any]]:
    """A row for each kind, the most frequent first."""
    rows = []
    for kind, count in Counter(i.kind for i in found).most_common():
        own = [i for i in found if i.kind == kind]
        spans = [i.closed - i.opened for i in own if i.closed == i.closed]
        worst = min(own, key=lambda i: RANK[i.severity])
        rows.append(
            {
                "kind": kind,
                "title": incident_row(worst)["title"],
                "severity": worst.severity.value,
                "count": count,
                "open_s": sum(lasted_s(i, since, until) for i in own),
                "typical_s": median(spans) if spans else NAN,
            }
        )
    return rows


def offenders(found: Iterable[Incident], since: float, until: float) -> list[dict[str, Any]]:
    """Places by the time incidents stood on them; pools and the cluster are no place one could repair."""
    count: Counter[str] = Counter()
    time_s: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for incident in found:
        if incident.scope.kind in ("pool", "cluster"):
            continue
        name = str(incident.scope)
        count[name] += 1
        time_s[name] += round(lasted_s(incident, since, until))
        kinds.setdefault(name, Counter())[incident.kind] += 1
    ranked = sorted(count, key=lambda n: (-count[n], -time_s[n], n))[:SHOWN]
    return [
        {
            "name": n,
            "count": count[n],
            "open_s": float(time_s[n]),
            "kinds": ", ".join(k.replace("_", " ") for k, _ in kinds[n].most_common(3)),
        }
        for n in ranked
    ]


def leases(rows: Iterable[StepRow], since: float, until: float) -> list[tuple[str, float, float, float]]:
    """(node, GPUs, from, to) within the window: a lease ends at its recall, or at its own end."""
    done = sorted(
        (
            (_ended(r), r)
            for r in rows
            if r.outcome is not None
            and r.outcome.result is Result.DONE
            and r.step.verb in (Verb.LEND, Verb.RECALL)
        ),
        key=lambda pair: pair[0],
    )
    open_now: dict[str, tuple[float, StepRow]] = {}
    found = []

    def close(node: str, at: float) -> None:
        begun, row = open_now.pop(node)
        start, end = max(begun, since), min(at, row.step.until, until)
        if end > start:
            found.append((node, float(row.step.amount), start, end))

    for at, row in done:
        node = row.step.target.name
        if node in open_now:
            close(node, at)
        if row.step.verb is Verb.LEND:
            open_now[node] = (at, row)
    for node in list(open_now):
        close(node, until)
    return found


def _pool(
    daemon: Daemon, row: dict[str, Any], since: float, until: float, words: Callable[..., str]
) -> dict[str, Any]:
    name = row["name"]
    at, values = ahead.hourly(*daemon.record.series("pool", name, "concurrency", since, until))
    known = values[values == values]
    met = attained(daemon.record, name, since, until)
    allowed = row["slo_miss_allowed_ratio"]
    line = Line(words("requests in flight"), "past", list(zip(at.tolist(), values.tolist(), strict=True)))
    return {
        "name": name,
        "mean_requests": float(known.mean()) if known.size else NAN,
        "peak_requests": float(known.max()) if known.size else NAN,
        "slo_target_ratio": 1.0 - allowed,
        "slo_attained_ratio": met.ratio,
        "slo_measured_ratio": met.measured_ratio,
        "slo_budget_used_ratio": (1.0 - met.ratio) / allowed if allowed > 0 else NAN,
        "over_slo_now_ratio": row["over_slo_ratio"],
        "scores": ahead.scores(daemon, name),
        "plot": Plot(words("Demand of pool {pool}", pool=name), words("requests"), NAN, [line]).svg(),
        "slo_plot": slo_plot(name, met, allowed, words).svg(),
    }


def slo_plot(name: str, met: Attained, allowed: float, words: Callable[..., str]) -> Plot:
    """The share of requests over the objective over time, in per cent, beside what is allowed."""
    points = list(zip(met.at.tolist(), (met.late * 100.0).tolist(), strict=True))
    return Plot(
        words("Requests of pool {pool} over the latency objective", pool=name),
        "%",
        NAN,
        [Line(words("over the objective"), "past", points)],
        levels=[(words("allowed by the objective"), "high", allowed * 100.0)],
    )


def incident_plot(
    found: Sequence[Incident], since: float, until: float, words: Callable[..., str] = as_written
) -> Plot:
    """Open incidents by the hour, the critical ones apart."""
    critical = [i for i in found if i.severity.value == "critical"]
    return Plot(
        words("Open incidents by the hour"),
        words("incidents"),
        NAN,
        [
            Line(words("all"), "past", _standing([(i.opened, i.closed, 1.0) for i in found], since, until)),
            Line(
                words("critical"),
                "high",
                _standing([(i.opened, i.closed, 1.0) for i in critical], since, until),
            ),
        ],
    )


def lent_plot(
    loans: Sequence[tuple[str, float, float, float]],
    since: float,
    until: float,
    words: Callable[..., str] = as_written,
) -> Plot:
    """GPUs with offline work by the hour."""
    # One that lasts to the end of the window still stands there.
    stretches = [(start, end if end < until else NAN, gpus) for _, gpus, start, end in loans]
    line = Line(words("lent"), "past", _standing(stretches, since, until))
    return Plot(words("GPUs lent to offline work"), "GPUs", NAN, [line])


def _standing(stretches: Sequence[tuple[float, float, float]], since: float, until: float) -> Points:
    """How much stood at the end of each quarter of an hour, at most 700 points; an end of NaN = it still stands."""
    step = max(900.0, (until - since) / 700.0)
    points = []
    at = since
    while at <= until:
        points.append((at, sum(w for start, end, w in stretches if start <= at and not end <= at)))
        at += step
    return points
