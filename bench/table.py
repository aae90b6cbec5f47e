"""Records of many fleets to one table."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bench.events import CONGESTION
from bench.fleets import minutes
from bench.intervals import f_score, poisson_rate, quantile, share

Record = Mapping[str, Any]

BINS = (0.0, 0.02, 0.04, 0.06, 0.1, 0.2, 0.5, 10.0)
DELAYS: Mapping[str, Callable[[Record], bool]] = {
    "deterministic": lambda c: c["group"] == "deterministic",
    "clock >= 10 %": lambda c: c["group"] == "clock" and c["size"] >= 0.1,
    "10 % slower by clock": lambda c: c["group"] == "clock" and c["effect"] >= 0.1,
    "5 % slower by clock": lambda c: c["group"] == "clock" and 0.04 <= c["effect"] < 0.06,
    "replica 1.5x": lambda c: c["label"] == "slow replica" and 0.4 <= c["size"] < 0.7,
    "replica 1.2x": lambda c: c["label"] == "slow replica" and 0.15 <= c["size"] < 0.27,
    "replica 1.1x": lambda c: c["label"] == "slow replica" and 0.08 <= c["size"] < 0.13,
    "congestion": lambda c: c["group"] == "congestion",
    "telemetry": lambda c: c["group"] == "telemetry",
}
"""Rows of the delay table that goals are set for; every label has a row of its own beside them."""


def results(records: Sequence[Record]) -> dict[str, Any]:
    """{"ours": figures, "baselines": {name: figures}} of all records, whatever the order they come in."""
    records = sorted(records, key=lambda r: str(r["fleet"]))
    fleets = [r for r in records if "ours" in r]
    cpu = [r for r in records if "cpu_core_10000_gpus" in r]
    ours = _figures(fleets, [r["ours"] for r in fleets])
    ours |= _storms(fleets) | _busy(fleets)
    ours["cpu_core_10000_gpus"] = cpu[0]["cpu_core_10000_gpus"] if cpu else None
    names = sorted({n for r in fleets for n in r.get("baselines", {})})
    others = {}
    for name in names:
        tried = [r for r in fleets if name in r.get("baselines", {})]
        others[name] = _figures(tried, [r["baselines"][name] for r in tried])
        others[name]["cpu_core_10000_gpus"] = cpu[0].get("baselines", {}).get(name) if cpu else None
    return {"ours": ours, "baselines": others}


def _counts(case: Record) -> bool:
    """Faults of 10 % and more, and all that have no such size."""
    return not case["graded"] or case["size"] >= 0.1


def _figures(fleets: Sequence[Record], verdicts: Sequence[Record]) -> dict[str, Any]:
    stress = [v for r, v in zip(fleets, verdicts, strict=True) if r["purpose"] != "healthy"]
    calm = [v for r, v in zip(fleets, verdicts, strict=True) if r["purpose"] == "healthy"]
    days = sum(r["gpu_days"] for r in fleets if r["purpose"] == "healthy")
    every = [c for v in verdicts for c in v["cases"]]
    cases = [c for v in stress for c in v["cases"] if _counts(c)]
    found = sum(c["found"] for c in cases)
    false = _sum(stress, "false", "warning", "critical")
    precision = found / (found + false) if found + false else math.nan
    recall = share(found, len(cases))[0]
    related = [c for c in cases if c["related"]]
    leaves = [c for c in cases if c["leaf_named"] is not None]
    matrix, macro = confusion(every, [n for v in verdicts for n in v["negatives"]])
    all_days = sum(r["gpu_days"] for r in fleets)
    wrong = _sum(verdicts, "wrong_isolations", "isolation")
    figures = {
        "precision": precision,
        "recall": recall,
        "f1": f_score(precision, recall),
        "entity_accuracy": share(sum(c["found"] for c in related), len(related))[0],
        "leaf_accuracy": share(
            sum(bool(c["leaf_named"]) for c in leaves if c["leaf_related"]),
            sum(bool(c["leaf_related"]) for c in leaves),
        )[0],
        "cause_macro_f1": macro,
        "gpu_days": days,
        "gpu_days_for_isolations": all_days,
        "delay_s": delays(every),
        "events": len(cases),
        "found": found,
        "false_in_stress": false,
        "recall_by_class": _by(every, lambda c: c["label"]),
        "recall_by_size": _by_size(every),
        "confusion": matrix,
        "negatives": _negatives(v for v in verdicts),
        "false_kinds": _kinds(verdicts, "false"),
        "wrong_isolation_kinds": _kinds(verdicts, "wrong_isolations"),
        "false_isolations": wrong,
    }  # fmt: skip
    rates = {
        "false_pages": _sum(calm, "false", "warning", "critical"),
        "false_critical": _sum(calm, "false", "critical"),
        "false_tickets": _sum(calm, "false", "info"),
    }
    for name, count in rates.items():
        figures[f"{name}_per_1000_gpu_days"], low, high = poisson_rate(count, days / 1000.0)
        figures[f"{name}_interval"] = [low, high]
    rate, low, high = poisson_rate(wrong, all_days / 1000.0)
    figures["false_isolations_per_1000_gpu_days"], figures["false_isolations_interval"] = rate, [low, high]
    return figures


def _sum(verdicts: Iterable[Record], what: str, *groups: str) -> int:
    return sum(n for v in verdicts for key, n in v[what].items() if key.split()[0] in groups)


def _kinds(verdicts: Iterable[Record], what: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for verdict in verdicts:
        total.update(verdict[what])
    return dict(total.most_common())


def delays(cases: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Class -> p50, p95 in seconds of what was found, with found and all."""
    rows: defaultdict[str, list[Record]] = defaultdict(list)
    for case in cases:
        for name, belongs in DELAYS.items():
            if belongs(case):
                rows[name].append(case)
        rows[case["label"]].append(case)
    found = {}
    for name, group in rows.items():
        times = [c["delay_s"] for c in group if c["found"]]
        found[name] = {
            "p50": quantile(times, 0.5),
            "p95": quantile(times, 0.95),
            "found": len(times),
            "all": len(group),
        }
    return found


def confusion(
    cases: Iterable[Record], negatives: Iterable[Record]
) -> tuple[dict[str, dict[str, int]], float]:
    """truth -> said -> number, for the rows of the pattern table, with the macro F1 over them.

    A class is said when the right place got that name; "missed" when it got none in time. What is said of packet
    spraying, or of any other innocent thing, counts against the class that was said.
    """
    matrix: dict[str, Counter[str]] = {
        label: Counter() for label in (*CONGESTION, "packet spraying", "nothing")
    }
    for case in cases:
        if case["label"] not in matrix or not _counts(case):
            continue
        # Several kinds may be a right name; then it is as good as the label.
        matrix[case["label"]][case["label"] if case["is_cause"] else str(case["said"])] += 1
    for negative in negatives:
        truth = "packet spraying" if negative["name"] == "packet-spraying" else "nothing"
        for said in negative["said"] or [truth]:
            matrix[truth][said] += 1
    scores = []
    for label in CONGESTION:
        total = sum(matrix[label].values())
        if not total:
            continue
        right = matrix[label][label]
        said = sum(row[label] for row in matrix.values())
        scores.append(2 * right / (total + said))
    macro = sum(scores) / len(scores) if scores else math.nan
    return {k: dict(v) for k, v in matrix.items() if v}, macro


def _by(cases: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[int]]:
    rows: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for case in cases:
        rows[key(case)][0] += bool(case["found"])
        rows[key(case)][1] += 1
    return dict(sorted(rows.items()))


def _by_size(cases: Iterable[Record]) -> dict[str, dict[str, list[int]]]:
    graded = [c for c in cases if c["graded"]]
    return {
        label: _by([c for c in graded if c["label"] == label], lambda c: _bin(c["size"]))
        for label in sorted({c["label"] for c in graded})
    }


def _bin(size: float) -> str:
    for low, high in pairwise(BINS):
        if low <= size < high:
            return f"{low:4.0%}-{high:.0%}" if high < 10 else f"{low:4.0%} up"
    return "?"


def _negatives(verdicts: Iterable[Record]) -> dict[str, list[int]]:
    """name -> [times somebody was blamed for it, times it happened]."""
    rows: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for verdict in verdicts:
        for negative in verdict["negatives"]:
            rows[negative["name"]][0] += bool(negative["blamed"])
            rows[negative["name"]][1] += 1
    return dict(sorted(rows.items()))


def _storms(fleets: Sequence[Record]) -> dict[str, Any]:
    storms = [s for r in fleets for s in r["ours"]["storms"]]
    times = [s["root_s"] for s in storms if s["root_s"] is not None]
    return {
        "storms": len(storms),
        "storm_roots_within_30_s": sum(t <= 30.0 for t in times),
        "storm_root_s": {"p50": quantile(times, 0.5), "p95": quantile(times, 0.95)},
        "storms_with_victims_blamed": sum(s["victims_blamed"] for s in storms),
    }


def _busy(fleets: Sequence[Record]) -> dict[str, Any]:
    loaded = sum(r["loaded_replica_days"] for r in fleets)
    flagged = sum(r["ours"]["busy_flagged"] for r in fleets)
    rate, low, high = poisson_rate(flagged, loaded)
    return {
        "loaded_replica_days": loaded,
        "busy_flagged": flagged,
        "busy_flagged_per_loaded_replica_day": rate,
        "busy_flagged_interval": [low, high],
    }


# -- for people -------------------------------------------------------------------------------------------


def lines(given: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """The whole table as text."""
    ours, others = given["ours"], given["baselines"]
    head = ("precision", "recall", "f1", "entity_accuracy", "leaf_accuracy", "cause_macro_f1")
    rates = ("false_pages", "false_critical", "false_tickets", "false_isolations")
    said = [f"{'':16}" + "".join(f"{h.replace('_', ' '):>17}" for h in head)]
    for name, row in {"ours": ours, **others}.items():
        said.append(f"{name:16}" + "".join(f"{_number(row[h]):>17}" for h in head))
    said += [
        "",
        f"{'per 1,000 GPU-days':22}" + "".join(f"{r.replace('_', ' '):>26}" for r in rates) + "    GPU-days",
    ]
    for name, row in {"ours": ours, **others}.items():
        cells = "".join(f"{_rate(row[f'{r}_per_1000_gpu_days'], row[f'{r}_interval']):>26}" for r in rates)
        said.append(
            f"{name:22}{cells}  {row['gpu_days']:,.0f} healthy, {row['gpu_days_for_isolations']:,.0f} all"
        )
    said += ["", f"{'delay':24}{'p50':>10}{'p95':>10}{'found':>8}{'of':>6}"]
    for name, row in ours["delay_s"].items():
        said.append(
            f"{name:24}{minutes(row['p50']):>10}{minutes(row['p95']):>10}{row['found']:>8}{row['all']:>6}"
        )
    said += ["", "found / all by magnitude"]
    for label, row in ours["recall_by_size"].items():
        said.append(f"  {label:20}" + "  ".join(f"{b.strip()}: {f}/{n}" for b, (f, n) in row.items()))
    said += ["", "cause: truth -> said"]
    for truth, row in ours["confusion"].items():
        cells = ", ".join(f"{k} {v}" for k, v in sorted(row.items(), key=lambda kv: -kv[1]))
        said.append(f"  {truth:22}{cells}")
    said += ["", "innocent things, blamed / happened"]
    said.append("  " + ", ".join(f"{n} {b}/{k}" for n, (b, k) in ours["negatives"].items()))
    said.append(
        f"false alarms by kind: {ours['false_kinds']}; wrong isolations: {ours['wrong_isolation_kinds']}"
    )
    storm = ours["storm_root_s"]
    said.append(
        f"PFC storms {ours['storms']}: root within 30 s {ours['storm_roots_within_30_s']}, p50 {minutes(storm['p50'])}, "
        f"p95 {minutes(storm['p95'])}; victims blamed in {ours['storms_with_victims_blamed']}"
    )
    said.append(
        f"busy replicas flagged: {ours['busy_flagged']} in {ours['loaded_replica_days']:.1f} loaded replica-days "
        f"({_rate(ours['busy_flagged_per_loaded_replica_day'], ours['busy_flagged_interval'])} a day)"
    )
    return [*said, *_cost(given, records)]


def _cost(given: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    fleets = [r for r in records if "ours" in r]
    spent: Counter[str] = Counter()
    for record in fleets:
        spent.update(record["cpu_s"])
    total = sum(spent.values())
    days = sum(r["gpu_days"] for r in fleets)
    parts = ", ".join(f"{k} {v / total:.0%}" for k, v in spent.most_common()) if total else ""
    core = given["ours"]["cpu_core_10000_gpus"]
    said = [f"run: {len(fleets)} fleets, {days:,.0f} GPU-days in {total:,.0f} core-s ({parts})"]
    if total:
        said[0] += f", {days / total:.1f} GPU-days a core-s"
    if core is not None:
        others = {n: row["cpu_core_10000_gpus"] for n, row in given["baselines"].items()}
        known = ", ".join(f"{n} {v:.3f}" for n, v in others.items() if v is not None)
        said.append(f"cores for 10,000 GPUs at 15 s: ours {core:.3f}" + (f"; {known}" if known else ""))
    return said


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _rate(rate: float, interval: Sequence[float]) -> str:
    return "-" if math.isnan(rate) else f"{rate:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"
