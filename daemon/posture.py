"""How the cluster stands against the live checklists: a day of measurements to pass, fail or unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from daemon.checklist import ITEMS, Item
from daemon.hours import DAY_H, HOUR_S, Hours
from daemon.model import NAN, Array, Frame, Frames, Incident, Outcome, Result, Verb
from daemon.outlook import Outlook
from daemon.policy import Mode, Policy, tier_of
from daemon.topology import Topology

EVERY_S = 300.0
"""A day and its busiest hour do not change for a closer look, and one costs as much as a quarter of a tick."""
MONTH_S = 30 * 86400.0
ENOUGH_H = 1
"""Hours seen before an item is judged; how many of the 24 were is said."""
WHOLE_HOUR = 10
"""Looks of an hour that make it a whole one: a replica that stood for a part of it saw another load."""
LEAST_LOAD = 1.0
"""Requests a replica below which a difference says nothing."""
COSTLY = 0.2
"""Share of revenue above which the white paper (2.5.2) advises co-location."""
ANSWERS = (Verb.REROUTE, Verb.ISOLATE)
LINK_BYTES_S = (("A800", 400e9), ("H800", 400e9), ("A100", 600e9), ("H100", 900e9), ("H200", 900e9), ("H20", 900e9), ("B200", 1800e9))  # fmt: skip
"""NVLink of a GPU, both directions, by what its model name holds. Source: data sheets; daemon/advice has them in full."""
ROLES = {
    "gateway": ("haproxy", "nginx", "envoy", "gateway"),
    "etcd": ("etcd",),
    "storage": ("ceph", "lustre", "nfs", "minio", "storage"),
}
"""Part -> words in the job of its targets."""


@dataclass(slots=True)
class Day:
    """What the checklists remember. hours : what was measured over the last 24.

    answers : (at, seconds from opening to answer) of a month. answered : incidents already counted.
    attested : item -> [value, until] by evaluation jobs.
    """

    hours: Hours = field(default_factory=Hours)
    answers: list[list[float]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    attested: dict[str, list[float]] = field(default_factory=dict)
    at: float = -math.inf

    def watch(self, frames: Frames, topology: Topology) -> None:
        """Take in one look, at most one in five minutes."""
        if frames.at - self.at < EVERY_S:
            return
        self.at = frames.at
        for name, value in measured(frames, topology):
            self.hours.add(name, frames.at, value)
        self.hours.forget(frames.at)

    def absorb(self, outcome: Outcome, began: Mapping[str, float], at: float) -> None:
        """Count how long the first verified answer to an incident took. began : incident -> its onset, see `onset`."""
        incident = outcome.step.incident
        if outcome.result is not Result.DONE or outcome.step.verb not in ANSWERS or incident not in began:
            return
        if incident not in self.answered:
            self.answered = [*self.answered[-999:], incident]
            self.answers.append([at, at - began[incident]])
        self.answers = [answer for answer in self.answers if at - answer[0] <= MONTH_S]


def onset(incident: Incident) -> float:
    """When it began as far as its findings can tell, else when it was opened: what was late to be seen was late."""
    return min(incident.opened, incident.since) if incident.since == incident.since else incident.opened


@dataclass(frozen=True, slots=True)
class Score:
    """Where one item stands. state : "pass", "fail", "unknown" or "not_applicable".

    value : NaN = not measured. evidence : what was measured over which window. missing : what is needed, or why the item
    does not apply; "" when it was measured. todo : what would help, "" when it passes.
    """

    item: str
    tier: str
    state: str
    value: float
    target: float
    unit: str
    is_floor: bool
    title: str
    evidence: str
    missing: str
    todo: str


def measured(frames: Frames, topology: Topology) -> Iterator[tuple[str, float]]:
    """(series, value) of everything that is summed up over the day; NaN = not measured now."""
    gpu, engine, port = frames["gpu"], frames["engine"], frames["port"]
    with np.errstate(invalid="ignore", divide="ignore"):
        yield from _of_gpus(gpu, topology)
        yield from _of_engines(engine, gpu)
        yield from _of_ports(port)
        running = engine.column("running")
        for name, value in zip(engine.entities, running.tolist(), strict=True):
            pool, node = topology.pool_of.get(name, ""), topology.node_of_engine.get(name, "")
            if pool and node:
                yield f"load\t{pool}\t{node}", value


def _of_gpus(gpu: Frame, topology: Topology) -> Iterator[tuple[str, float]]:
    serving = np.array(
        [bool(name) for name in gpu.facts.get("engine", ("",) * len(gpu.entities))], dtype=bool
    )
    used = gpu.column("hbm_used_bytes") / gpu.column("hbm_total_bytes")
    yield "memory_utilisation", _mean(used[serving])
    yield "gpu_utilisation", _mean(gpu.column("util_ratio"))
    yield "serving_gpus", float(serving.sum()) if serving.any() else NAN
    places = {name: i for i, name in enumerate(gpu.entities)}
    groups = [[places[g] for g in gpus if g in places] for gpus in topology.gpus_of.values()]
    wide = [group for group in groups if len(group) > 1]
    if not wide:
        return
    links = np.array([_link(sku) for sku in gpu.facts.get("sku", ("",) * len(gpu.entities))])
    busy = (gpu.column("nvlink_tx_bytes_s") + gpu.column("nvlink_rx_bytes_s")) / links
    members = np.concatenate(wide)
    share = _mean(busy[members])
    yield "communication_share", share
    tensor = gpu.column("tensor_active_ratio")
    even = _mean(np.array([_evenness(tensor[group]) for group in wide]))
    yield "tp_efficiency", (1.0 - share) * even
    busy_nodes = gpu.column("sm_active_ratio")
    busy_nodes = np.where(np.isfinite(busy_nodes), busy_nodes, gpu.column("util_ratio"))
    spans = [_stages(group, gpu, busy_nodes) for group in wide]
    yield "pp_bubble", 1.0 - _mean(np.array([_evenness(s) for s in spans if s.size > 1]))


def _stages(group: list[int], gpu: Frame, busy: Array) -> Array:
    """(node,) activity of the nodes a replica spans."""
    nodes: dict[str, list[float]] = {}
    for i in group:
        nodes.setdefault(gpu.entities[i].split("/", 1)[0], []).append(float(busy[i]))
    return np.array([_mean(np.array(values)) for values in nodes.values()])


def _evenness(values: Array) -> float:
    """Mean over highest; NaN for a group that does nothing."""
    top = float(np.max(values, initial=0.0)) if np.isfinite(values).all() else NAN
    return float(values.mean()) / top if top > 0.01 else NAN


def _link(sku: str) -> float:
    return next((rate for word, rate in reversed(LINK_BYTES_S) if word in sku.upper()), NAN)


def _of_engines(engine: Frame, gpu: Frame) -> Iterator[tuple[str, float]]:
    kv, running = engine.column("kv_used_ratio"), engine.column("running")
    yield "kv_utilisation", _mean(kv)
    blocks, size = engine.column("kv_blocks"), engine.column("kv_block_tokens")
    tokens, held = engine.column("kv_used_tokens"), engine.column("kv_used_blocks")
    told = 1.0 - tokens / (held * size)
    # A paged cache wastes what is left of each request's last block: half of it on average.
    expected = running * size / 2.0 / (kv * blocks * size)
    lost = np.where(np.isfinite(told), told, np.where(kv > 0.01, expected, NAN))
    yield "fragmentation", _mean(np.clip(lost, 0.0, 1.0))
    made = engine.column("generation_tokens_s")
    cards = sum(bool(name) for name in gpu.facts.get("engine", ()))
    if cards and np.isfinite(made).any():
        yield "throughput", float(np.nansum(made)) / cards
    models = engine.facts.get("model", ("",) * len(engine.entities))
    small = np.array([6.0 <= billions(name) <= 9.0 for name in models], dtype=bool)
    if small.any():
        yield "ttft_7b", _mean(engine.column("ttft_p50_s")[small])
        yield "serves_7b", 1.0


def billions(model: str) -> float:
    """Parameters as a model's name has them, NaN where it does not say. Mixtures ("8x7b") count whole.

    >>> billions("meta-llama/Llama-3.1-8B-Instruct"), billions("mixtral-8x7b"), billions("chat")
    (8.0, 56.0, nan)
    """
    found = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", model.lower())
    return float(found[1] or 1) * float(found[2]) if found else NAN


def _of_ports(port: Frame) -> Iterator[tuple[str, float]]:
    moved = np.fmax(port.column("tx_bytes_s"), port.column("rx_bytes_s"))
    busy = np.sort((moved / port.column("rate_bytes_s"))[np.isfinite(moved)])
    busy = busy[np.isfinite(busy)]
    yield "link_utilisation", float(busy[math.ceil(0.95 * busy.size) - 1]) if busy.size else NAN
    signs = [port.column(s) for s in ("ecn_marked_per_s", "cnp_handled_per_s", "cnp_sent_per_s", "rx_pause_ratio", "tx_pause_ratio", "rx_pause_per_s")]  # fmt: skip
    known = [s[np.isfinite(s)] for s in signs]
    if any(k.size for k in known):
        yield "congestion_signs", float(sum(k.sum() for k in known))
    drops = port.column("rx_discards_phy_per_s")
    yield "congestion_drops", float(np.nansum(drops)) if np.isfinite(drops).any() else NAN


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else NAN


# -- judging -------------------------------------------------------------------------------------------------


def assess(
    day: Day, frames: Frames, topology: Topology, policy: Policy, outlook: Outlook
) -> tuple[Score, ...]:
    """Every item, in the order of the checklists."""
    special = {
        "load_deviation": _deviation(day),
        "recovery_30s": _recovery(day),
        "recovery_60s": _recovery(day),
        "quantisation_loss": _attested(day, "quantisation_loss", frames.at),
        "redundancy": _redundancy(frames["target"]),
        "congestion_control": _congestion(day),
        "stragglers_isolated": _isolated(policy),
        "capacity_warning": _warned(outlook, frames.at),
        "ttft_7b": _day(day, "ttft_7b") if day.hours.seen_h("serves_7b") else (NAN, "", "no model of 6 to 9 billion parameters is served"),
        "pp_bubble": _stages_seen(day, topology),
        "tp_efficiency": _wide(day, "tp_efficiency", topology),
        "communication_share": _wide(day, "communication_share", topology),
    }  # fmt: skip
    return tuple(_score(name, item, *(special.get(name) or _day(day, name))) for name, item in ITEMS.items())


Found = tuple[float, str, str]
"""Value, what it rests on, why the item does not apply ("" = it does)."""


def _score(name: str, item: Item, value: float, evidence: str, not_here: str) -> Score:
    if not_here:
        state = "not_applicable"
    elif value != value:
        state = "unknown"
    else:
        state = "pass" if (value >= item.target if item.is_floor else value <= item.target) else "fail"
    missing = not_here or (evidence or f"needs {item.needs}" if state == "unknown" else "")
    return Score(
        item=name,
        tier=item.tier,
        state=state,
        value=value,
        target=item.target,
        unit=item.unit,
        is_floor=item.is_floor,
        title=item.title,
        evidence="" if state in ("unknown", "not_applicable") else evidence,
        missing=missing,
        todo=item.remedy if state == "fail" else "",
    )


def _day(day: Day, name: str) -> Found:
    item, seen = ITEMS[name], day.hours.seen_h(name)
    if seen < ENOUGH_H:
        return NAN, "", ""
    value = day.hours.peak(name) if item.over == "peak" else day.hours.mean(name)
    what = "the busiest hour" if item.over == "peak" else "the mean"
    return value, f"{item.how}; {what} of {seen} h", ""


def _wide(day: Day, name: str, topology: Topology) -> Found:
    if topology.gpus_of and all(len(gpus) < 2 for gpus in topology.gpus_of.values()):
        return NAN, "", "every replica runs on one GPU"
    return _day(day, name)


def _stages_seen(day: Day, topology: Topology) -> Found:
    spans = [len({g.split("/", 1)[0] for g in gpus}) for gpus in topology.gpus_of.values()]
    if spans and max(spans) < 2:
        return NAN, "", "every replica stands within one node: there are no stages"
    return _day(day, "pp_bubble")


def _deviation(day: Day) -> Found:
    """The worst pool, hour by hour among nodes that served the whole hour: a moment's difference is chance."""
    pools: dict[str, dict[float, dict[str, float]]] = {}
    for name, rows in day.hours.rows.items():
        if name.startswith("load\t"):
            _, pool, node = name.split("\t")
            for hour, total, count in rows:
                if count >= WHOLE_HOUR:
                    pools.setdefault(pool, {}).setdefault(hour, {})[node] = total / count
    worst, where = NAN, ""
    for pool, hours in sorted(pools.items()):
        found = [_over_mean(loads) for loads in hours.values() if len(loads) > 1]
        known = [value for value in found if value == value]
        if known and not worst >= sum(known) / len(known):
            worst = sum(known) / len(known)
            where = f"pool {pool}, its busiest node over the mean of its nodes, mean of {len(known)} h"
    if (
        worst != worst
        and pools
        and all(len(loads) < 2 for hours in pools.values() for loads in hours.values())
    ):
        return NAN, "", "no pool stands on two nodes"
    return worst, where, ""


def _over_mean(loads: Mapping[str, float]) -> float:
    mean = sum(loads.values()) / len(loads)
    return max(loads.values()) / mean - 1.0 if mean >= LEAST_LOAD else NAN


def _recovery(day: Day) -> Found:
    if not day.answers:
        return NAN, "no incident was answered in 30 days; tidewarden drill --scenario xid79 shows it", ""
    took = sorted(seconds for _, seconds in day.answers)
    value = took[math.ceil(0.9 * len(took)) - 1]
    return value, f"{len(took)} answered incident{'s' if len(took) > 1 else ''} in 30 days", ""


def _attested(day: Day, name: str, at: float) -> Found:
    value, until = day.attested.get(name, (NAN, -math.inf))
    if value == value and until < at:
        return NAN, f"the attested value ran out {(at - until) / HOUR_S:.0f} h ago; {ITEMS[name].needs}", ""
    return value, "attested by an evaluation job" if value == value else "", ""


def _redundancy(target: Frame) -> Found:
    jobs = target.facts.get("job", ("",) * len(target.entities))
    up = target.column("up").tolist()
    counts = {
        part: sum(any(w in job.lower() for w in words) and state == 1.0 for job, state in zip(jobs, up, strict=True))
        for part, words in ROLES.items()
    }  # fmt: skip
    seen = {part: count for part, count in counts.items() if count}
    absent = [part for part, count in counts.items() if not count]
    fewest = min(seen.values(), default=0)
    said = ", ".join(f"{count} {part}" for part, count in seen.items())
    if absent and fewest != 1:
        return NAN, f"no target of {' or '.join(absent)} answers" + (f" (seen: {said})" if said else ""), ""
    return float(fewest), said + (f"; nothing is seen of {' or '.join(absent)}" if absent else ""), ""


def _congestion(day: Day) -> Found:
    if not day.hours.seen_h("congestion_signs"):
        return NAN, "", ""
    if day.hours.mean("congestion_signs") > 0:
        return 1.0, "marks or pause frames were counted in the last day", ""
    if day.hours.mean("congestion_drops") > 0:
        return 0.0, "ports dropped packets and not one was marked or paused", ""
    return (
        NAN,
        "the counters exist and did not move: nothing was congested, so nothing shows whether it is on",
        "",
    )


def _isolated(policy: Policy) -> Found:
    modes = {verb: policy.mode_of(verb, "") for verb in ANSWERS}
    is_on = "straggler" not in policy.disabled and all(mode is Mode.AUTO for mode in modes.values())
    said = ", ".join(f"{verb.value} is in mode {mode.value}" for verb, mode in modes.items())
    return (
        float(is_on),
        said + ("; the detector is switched off" if "straggler" in policy.disabled else ""),
        "",
    )


def _warned(outlook: Outlook, at: float) -> Found:
    if not outlook.is_known:
        return NAN, "", ""
    steps = len(next(iter(outlook.needed.values())))
    ahead = steps * outlook.step_s - max(0.0, at - outlook.made_at)
    return ahead / HOUR_S, f"the forecast of {(at - outlook.made_at) / HOUR_S:.1f} h ago reaches that far", ""


def tier(frames: Frames, policy: Policy) -> tuple[str, str]:
    """The cluster's tier, and why. ("", why) while nothing is seen."""
    nodes, gpus = len(frames["node"].entities), len(frames["gpu"].entities)
    nodes = nodes or len({name.split("/", 1)[0] for name in frames["gpu"].entities})
    seen = f"{gpus} GPUs on {nodes} nodes"
    if policy.tier:
        return policy.tier, f"set in the configuration; seen are {seen}"
    found = tier_of(nodes, gpus)
    return found, seen if found else "no GPU has been seen yet"


def advice(day: Day, frames: Frames, topology: Topology, policy: Policy, spent: float = NAN) -> list[str]:
    """What the white paper would have one consider next, each with its evidence; empty when nothing speaks for a change.

    spent : cost over revenue, NaN = not known.
    """
    found, said = tier(frames, policy)[0], []
    pool = frames["pool"]
    rate = pool.column("requests_done_per_s")
    rps = float(np.nansum(rate)) if np.isfinite(rate).any() else NAN
    strict = [p.name for p in policy.pools if p.slo_target > 0.999]
    if found == "small" and rps > 1000.0 and strict:
        said.append(
            f"{rps:.0f} requests/s, and {', '.join(strict)} ask for more than 99.9 %: a medium architecture "
            "(several nodes a pool, an orchestrator, N+1) carries that"
        )
    regions = {r for r in frames["node"].facts.get("region", ()) if r}
    if len(regions) > 1 and found != "large":
        said.append(
            f"{len(regions)} regions ({', '.join(sorted(regions))}): a large architecture with regional weights"
        )
    busy = day.hours.peak("gpu_utilisation")
    if found in ("medium", "large") and day.hours.seen_h("gpu_utilisation") >= DAY_H - 1 and busy < 0.25:
        said.append(
            f"the busiest hour of the day used {busy:.0%} of the GPUs: the cluster is over-built for its load; "
            "lend GPUs, or serve with fewer"
        )
    if spent > COSTLY:
        said.append(
            f"inference costs {spent:.0%} of what it earns: co-locate offline work (pools: lendable) and look at spot nodes"
        )
    return [*said, *_placed_badly(topology)]


def _placed_badly(topology: Topology) -> Iterator[str]:
    """Replicas whose ranks talk across leaf switches, and pools that one rack could take down."""
    for engine, gpus in sorted(topology.gpus_of.items()):
        leaves = {topology.place.get(g.split("/", 1)[0], {}).get("leaf", "") for g in gpus} - {""}
        if len(leaves) > 1:
            yield (
                f"the GPUs of {engine} sit under {len(leaves)} leaves ({', '.join(sorted(leaves))}): "
                "keep the ranks of a replica under one leaf"
            )
    pools: dict[str, list[str]] = {}
    for engine, pool in sorted(topology.pool_of.items()):
        node = topology.node_of_engine.get(engine, "")
        pools.setdefault(pool, []).append(topology.place.get(node, {}).get("rack", ""))
    racks = {place.get("rack", "") for place in topology.place.values()} - {""}
    for pool, stands in sorted(pools.items()):
        if pool and len(racks) > 1 and len(stands) > 1 and len(set(stands)) == 1 and stands[0]:
            yield f"all {len(stands)} replicas of {pool} stand in rack {stands[0]}: one power failure stops the pool; spread them"
