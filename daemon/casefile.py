"""What an incident is told as: hypothesis, what speaks for it, what was ruled out, what is done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.model import Finding, Incident, Verb
from daemon.patterns import PATTERNS
from daemon.plan import GROUPS, ISOLATE_SCORE, LADDER, Rung, bearable, sureness
from daemon.quantities import measured

SHOWN = 8
"""Lines of evidence in a message; the page has them all."""


@dataclass(frozen=True, slots=True)
class CaseFile:
    """One incident in words.

    evidence : a line a measurement that tells this from other causes. rejected : what else it could have been, and
    what speaks against it. response : what the daemon proposes by itself, with what was measured so far. to_do : what is
    left to people.
    """

    hypothesis: str
    evidence: tuple[str, ...]
    rejected: tuple[str, ...]
    response: str
    to_do: str


def case_of(incident: Incident) -> CaseFile:
    """The case file, from the incident alone: the same today and when it is read back years later."""
    direct = [f for f in incident.findings if f.kind == incident.kind]
    own = direct or list(incident.findings)
    rejected = dict.fromkeys(r for f in own for r in f.rejected) or dict.fromkeys(
        RULED_OUT.get(incident.kind, ())
    )
    if incident.scope.kind in GROUPS:
        members = len({f.entity for f in own})
        rejected = {
            f"{members} faults of their own: they came together in one {incident.scope.kind}": None
        } | rejected
    evidence = [_line(f, incident.kind) for f in own]
    others = [f for f in incident.findings if f.kind != incident.kind] if direct else []
    evidence += [f"as a consequence, {_line(f, incident.kind)}" for f in others]
    return CaseFile(
        hypothesis=_hypothesis(incident, own),
        evidence=tuple(dict.fromkeys(evidence)),
        rejected=tuple(rejected),
        response=_response(incident),
        to_do=_worded(AT_NODE_TO_DO, TO_DO, incident),
    )


def _worded(at_node: Mapping[str, str], anywhere: Mapping[str, str], incident: Incident) -> str:
    """The words for an incident's kind, "" where there are none: what is true of one part need not be of its whole node."""
    words = anywhere.get(incident.kind, "")
    return at_node.get(incident.kind, words) if incident.scope.kind == "node" else words


def _hypothesis(incident: Incident, own: list[Finding]) -> str:
    told = next((f.text for f in own if f.text), "")
    said = _worded(AT_NODE, HYPOTHESES, incident) or PATTERNS[incident.kind].title
    where = f"{incident.scope}"
    if incident.scope.kind in GROUPS and len({f.entity for f in own}) > 1:
        where += f", {len({f.entity for f in own})} members at once: what they share is to blame"
    sure = max((f.score for f in own), default=0.0)
    return f"{said} ({where}; {sure:.0%} sure)" + (f". {told}" if told else "")


def _line(finding: Finding, kind: str) -> str:
    """One finding: what was measured where, against what peers show; and what it is, unless that is the incident's own kind."""
    where = (
        f"{finding.entity}" if finding.kind == kind else f"{PATTERNS[finding.kind].title} ({finding.entity})"
    )
    return f"{where}: " + (measurements(finding) or finding.text or "claimed")


def measurements(finding: Finding) -> str:
    """Its evidence in one line, "" without any."""
    return ", ".join(measured(e) for e in finding.evidence)


def _response(incident: Incident) -> str:
    """The steps of its ladder as they are proposed with what was measured: what is a little slower loses a little."""
    rungs = LADDER.get(incident.kind, ())
    weights = [r for r in rungs if r.verb is Verb.REROUTE]
    if incident.scope.kind in GROUPS:
        if not weights:
            return "nothing is changed: no part of a group is taken out for a cause they share"
        return f"{_steps(weights, incident)}; no part of a group is isolated for a cause they share"
    if len(weights) < len(rungs) and sureness(incident) < ISOLATE_SCORE:
        return f"{_steps(weights, incident)}; nothing is isolated on a guess"
    return _steps(rungs, incident) if rungs else "people are told, nothing is changed"


def _steps(rungs: Sequence[Rung], incident: Incident) -> str:
    told, weight = [], 1.0
    for rung in rungs:
        after = f"after {rung.after_s:.0f} s" if rung.after_s else "at once"
        if rung.verb is Verb.REROUTE:
            asked, weight = weight, min(weight, bearable(incident, rung, None))
            if weight < asked:
                told.append(f"routing weight {weight:g} {after}")
        else:
            on = "the node" if rung.on == "node" else "what the incident names"
            told.append(f"{rung.verb.value} {on} {after}")
    return "; ".join(told)


def facts(incident: Incident) -> dict[str, str]:
    """What a text in another language is made of: the lines of evidence, and how sure it is."""
    own = [f.score for f in incident.findings if f.kind == incident.kind]
    shown = case_of(incident).evidence[:SHOWN]
    return {"evidence": "\n".join(shown), "sure": f"{max(own, default=0.0):.2f}"}


def describe(incident: Incident) -> str:
    """The case file as the lines of a message."""
    case = case_of(incident)
    lines = [f"Hypothesis: {case.hypothesis}."]
    lines += [f"Evidence: {text}" for text in case.evidence[:SHOWN]]
    if len(case.evidence) > SHOWN:
        lines.append(f"and {len(case.evidence) - SHOWN} more")
    lines += [f"Ruled out: {text}." for text in case.rejected[:4]]
    lines.append(f"Response: {case.response}.")
    if case.to_do:
        lines.append(f"To do: {case.to_do}")
    return "\n".join(lines).replace("..", ".")


HYPOTHESES: Mapping[str, str] = {
    "gpu_lost": "The GPU fell off the bus",
    "gpu_uncontained": "A memory error may have spread beyond the program that met it",
    "gpu_firmware": "The GPU's firmware or a controller no longer answers the driver",
    "driver_wedged": "The driver no longer gets through to the GPU's firmware",
    "gpu_repeat": "The GPU fails again and again and will go on doing so",
    "gpu_memory": "GPU memory has rows or pages to repair",
    "gpu_contained": "A memory error hit one program and was contained there",
    "gpu_app": "A program made a mistake on the GPU",
    "gpu_notice": "The driver noted something that asks for no action now",
    "gpu_hang": "The GPU or its driver hangs",
    "gpu_throttle": "Something holds the GPU's clock down",
    "pcie_downgrade": "The PCIe link trained below what it can do",
    "pcie_errors": "The PCIe link corrupts packets",
    "nvlink_fault": "An NVLink or its switch is sick",
    "node_hang": "The node hangs or is cut off",
    "host_fault": "The host around the GPUs is sick",
    "gpu_slow": "The GPU computes slower than its peers and gives no reason",
    "replica_slow": "The replica takes longer for the same work than its peers",
    "stage_slow": "One stage of the pipeline works longer than the same stage of other replicas",
    "deploy_regression": "The new version is slower than the one before",
    "fleet_slow": "Something that many replicas share has become slower",
    "engine_hung": "The engine's core hangs behind a living API server",
    "requests_stuck": "The replica, or the way to it, is many times slower than its peers",
    "engine_down": "The engine is gone",
    "engine_out": "The load balancer took the engine out",
    "target_down": "An exporter does not answer",
    "telemetry_lost": "What carries the telemetry failed, not what it watches",
    "telemetry_frozen": "The exporter repeats old figures",
    "field_lost": "An exporter changed what it exports",
}
"""Kinds without an entry are told by the title of their pattern."""

AT_NODE: Mapping[str, str] = {
    "gpu_slow": "GPUs of the node compute slower than their peers and give no reason",
    "gpu_throttle": "Something holds the clocks of the node's GPUs down",
    "replica_slow": "The replicas of the node take longer for the same work than their peers",
    "requests_stuck": "The replicas of the node, or the way to it, are many times slower than their peers",
}
"""Hypotheses about a whole node, where they are others than about one part."""

RULED_OUT: Mapping[str, tuple[str, ...]] = {
    "gpu_slow": (
        "a throttle: no reason bit is set",
        "silicon lottery: the gap is above its floor and outside the spread of the peers",
        "an idle GPU: only busy minutes are compared",
    ),
    "replica_slow": (
        "a busy replica: batch and prompts are taken out before comparing",
        "a version: its peers run the same one",
    ),
    "deploy_regression": ("a sick node: every replica of the version shows it, on different nodes",),
    "fleet_slow": ("sick replicas: too many of the group at once",),
    "nic_downgrade": ("another generation of ports: equal ports run at the higher rate",),
    "bad_cable": ("load: physical errors do not depend on it",),
    "pfc_storm": ("a victim: its own pauses led, and it receives next to nothing",),
    "incast": ("a sick link: no physical error",),
    "uplink_congestion": ("a sick receiver: marks on many leaves, senders behind one",),
    "lossy_fabric": (
        "congestion: neither marks nor pauses",
        "packet spraying: packets are lost, not only late",
    ),
    "capacity_short": ("a spike: it stands in the forecast of two runs in a row",),
    "running_out": (
        "the daily swing: only whole days are compared",
        "one large file: most of the days lost as much",
    ),
}
"""Where a detector does not give its own reasons: what its rule excludes before it claims."""

TO_DO: Mapping[str, str] = {
    "gpu_lost": "Reboot the node. A second loss of the same GPU within 30 days: replace it.",
    "gpu_uncontained": "Reset the GPU, then read its ECC and row-remap counters. Comes back: replace it.",
    "gpu_firmware": "Reset the GPU. If the reset fails or the driver hangs, reboot the node.",
    "gpu_memory": "Pending remap: reset at the next quiet hour. Failed remap: replace. Storm of corrected errors: drain soon.",
    "gpu_contained": "Restart the replica that used it; the hardware contained the error. Twice within a day is escalated by itself.",
    "gpu_app": "Tell the owner of the program. At severity warning two programs met it: run a GPU diagnostic.",
    "gpu_hang": "Look for processes in state D and driver messages in the kernel log; reset, else reboot.",
    "gpu_throttle": "Check fans, inlet temperature and power supply. Several GPUs of one rack: its cooling or power feed.",
    "pcie_downgrade": "Reseat the GPU or its riser; check the BIOS setting of the slot.",
    "nvlink_fault": "Both ends report: the link. Many GPUs report: the switch. Reset the GPUs of the domain.",
    "node_hang": "Try the console and the BMC; power-cycle. If the node answers there, look at its network.",
    "host_fault": "Read the kernel log of the node: memory, disk or filesystem, as the evidence says.",
    "gpu_slow": "No throttle bit and no error, yet slower than its peers: run a GPU benchmark on the idle GPU.",
    "repeat_offender": "Take it out at the next maintenance: run GPU and network benchmarks on the idle node.",
    "replica_slow": "Compare its host's CPU load, NUMA placement and engine flags with a healthy replica; restart it.",
    "stage_slow": "Run a GPU benchmark on the GPUs of that stage; check the links between its node and the next.",
    "deploy_regression": "Roll the version back, or accept it and raise the pool. No hardware is to blame.",
    "fleet_slow": "Look for what they share: a deploy, a model file, a storage or network service, a change of traffic.",
    "nic_downgrade": "Reseat or replace cable and optic; check the speed setting of the switch port.",
    "bad_cable": "Replace the cable or the optic. `remote_phys_errors` at this port: the fault is further up.",
    "pfc_storm": "Isolate the host that sends the pauses; check its NIC firmware and PCIe link.",
    "pause_victim": "Nothing to do at this port: look for the port that sends pauses on the same leaf.",
    "incast": "Spread the senders or the receiver's work; never isolate for it.",
    "uplink_congestion": "Place communicating replicas behind one leaf; check ECMP hashing; plan uplink capacity.",
    "host_drain": "Check the PCIe link, NUMA placement and firmware of the port's host; drain it.",
    "downlink_congestion": "Spread the senders or the receiver's work; never isolate for it.",
    "kv_transfer_slow": "A sender or receiver: look at its ports, PCIe and host. A pair alone: the path between the two leaves.",
    "optic_ageing": "Plan a swap of the optic; nothing is lost yet.",
    "lossy_fabric": "Compare the PFC and ECN settings of the leaf with its neighbours.",
    "ack_timeouts": "The other end of a sick link, or a lossy path: look at the peers it talks to.",
    "slow_receiver": "The receiving process or host is slow: CPU, NUMA, PCIe. The network is well.",
    "engine_down": "Read the engine's log; it has no traffic and can be restarted at once.",
    "engine_out": "The load balancer has taken it out. Find out who and why; the engine may be healthy.",
    "engine_hung": "Restart the engine; keep its stack dump for its makers.",
    "requests_stuck": "The text of the finding says whether its engine or its network is slow; look at that host first.",
    "kv_saturated": "More replicas, shorter contexts, or fewer sequences in a batch.",
    "kv_thrash": "Lower the limit of running sequences, or add replicas: preempted work is done twice.",
    "queue_growth": "More replicas, if scaling is not automatic; shed load that may wait.",
    "slo_burn": "Look at the incidents beside it: this is what clients feel, seldom the cause.",
    "imbalance": "Check the routing policy: sticky sessions, prefix affinity, weights set by hand.",
    "target_down": "See the error of the target (`tidewarden targets`); serving may be well.",
    "telemetry_lost": "Look at what the silent exporters share: a network, a service account, this daemon's host.",
    "telemetry_frozen": "Restart the exporter: it answers with an old page.",
    "clock_skew": "Run chrony on the node.",
    "driver_wedged": "Reboot the node: a reset does not get through any more.",
    "gpu_repeat": "Replace the GPU: resets have not helped.",
    "gpu_notice": "Nothing at once. 54: check the power cables; 78: update the firmware; 142: ask the vendor.",
    "pcie_errors": "Reseat the card or its riser at the next maintenance.",
    "kv_filling": "Nothing yet; add replicas if the trend goes on.",
    "kv_fragmented": "Smaller blocks, or fewer sequences in a batch.",
    "prefix_collapse": "Look for a changed prompt template, a new router, or a cache that was made smaller.",
    "spec_drop": "Compare draft model and traffic with the time before; a new version of either?",
    "memory_leak": "Plan a restart before it is full; report it to the makers.",
    "field_lost": "Compare the exporter's version and its list of fields with deploy/exporters.",
    "gauge_stuck": "Restart the exporter; compare with the driver's own tool.",
    "exporter_slow": "Give the exporter more CPU, or leave expensive fields out.",
    "page_broken": "Look at the page by hand: a series written twice, or a line that is cut.",
    "node_reclaimed": "Nothing by hand: its replicas are drained and started elsewhere. Many at once: buy on-demand for the base load.",
    "region_lost": "See tidewarden regions: where its requests went, what fits nowhere. Ask the region's own on-call and its network.",
    "store_slow": "Look at the storage's own load and network first; until it is well, starts take longer: keep a spare replica warm.",
    "store_errors": "Look at the storage servers and the network to them; a mount that hangs keeps replicas from starting at all.",
    "start_slow": "See tidewarden storage: what the weights were read from. Put them on the node's NVMe, or find who loads the store.",
    "running_out": "Find what grows (du -xh /, journalctl --disk-usage, old checkpoints, a leaking process) before it is full; for a KV cache add replicas or limit lengths.",
    "no_effect": "See tidewarden actions explain ID: whether the system behind the backend does what it accepted, and who else writes to it.",
    "capacity_short": "Order or borrow GPUs, move batch work, or lower a pool's maximum; the text says when and how many.",
}
"""What is left to people, by kind."""

AT_NODE_TO_DO: Mapping[str, str] = {
    "replica_slow": "Look for what else uses the node: jobs on its processors, CPU limits, frequency governor, its disk and network. "
    "Restarting the replicas changes none of it.",
}
"""What is left to people where a whole node is meant, if that is something else."""
