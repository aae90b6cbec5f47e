"""Writes the reference pages that follow from the code: config.md, findings.md, thresholds.md, verdicts.md.

Run it after a change of the settings, the patterns, the answers to them, or the reasons of verdicts:

    python docs/build_reference.py          # write
    python docs/build_reference.py --check  # exit 1 and name the pages that are out of date
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from daemon import lease, plan, replica, resize, sizing
from daemon.casefile import TO_DO
from daemon.incident import NEWS_S
from daemon.model import Reason, Verb
from daemon.patterns import PATTERNS, Pattern
from daemon.plan import GROUPS, HOLD_S, LADDER, Rung
from daemon.settings import Settings
from daemon.units import Duration, Instant, Share
from detectors import DETECTORS

HERE = Path(__file__).parent / "en" / "reference"
HEAD = "<!-- Written by docs/build_reference.py; change the code or that file, then run it again. -->\n\n"

REASONS: Mapping[Reason, tuple[str, str]] = {
    Reason.ALLOWED: ("The step was carried out.", "-"),
    Reason.APPROVED: ("An operator approved it and it was carried out.", "-"),
    Reason.REJECTED: ("An operator rejected it; it stays refused while it is proposed.", "Nothing."),
    Reason.MODE_OBSERVE: ("The action kind is in mode observe.", "Raise its mode: `modes`, or the pool's `modes`."),
    Reason.MODE_ADVISE: ("The action kind is in mode advise.", "Do it yourself, or raise its mode to approve."),
    Reason.AWAITS_APPROVAL: ("The action kind is in mode approve.", "`tidewarden actions approve ID` or reject."),
    Reason.PAUSED: ("An operator paused all actions.", "`tidewarden resume`."),
    Reason.MAINTENANCE: ("A maintenance window covers the target.", "Wait for its end, or shorten it under `maintenance`."),
    Reason.STALE_DATA: (
        "Much of the telemetry is silent: no ground to take anything away. Growing and giving back stay allowed.",
        "Repair the telemetry: `tidewarden targets`.",
    ),
    Reason.BUDGET_CLUSTER: ("As many nodes are out, or GPUs lent, as the cluster may spare.", "`budgets.isolated_nodes_max`, `isolated_share_max`, `lent_share_max`."),
    Reason.BUDGET_POOL: ("As many replicas of the pool are out as it may spare.", "`budgets.isolated_pool_share_max`."),
    Reason.BUDGET_DOMAIN: ("As many nodes of the rack are out as may be.", "`budgets.isolated_domain_max`."),
    Reason.BUDGET_RATE: ("Too many such steps in the last hour, or too much traffic moved in the last minute.", "Wait; or `budgets.*_per_hour_max`, `reroute_share_per_min_max`."),
    Reason.LAST_REPLICAS: ("Nobody else serves the pool.", "Add a replica; then it goes by itself."),
    Reason.COOL_DOWN: ("The last try failed a moment ago.", "See why: `tidewarden actions explain ID`. It is tried again by itself."),
    Reason.IN_FLIGHT: ("Another step on the same target is not finished.", "Wait."),
    Reason.FOREIGN: ("Somebody else isolated it; it is left to them.", "Ask them."),
    Reason.NO_BACKEND: ("No backend carries out this verb.", "Name one under `actions`."),
    Reason.NO_JOURNAL: ("The journal cannot be written; nothing is changed that cannot be written down.", "Free disk space, or repair `state_dir`."),
    Reason.WAITS_FOR_SPARE: ("Without the sick part too many requests would be late; a replica more is being started first.", "Wait, or approve the step to have it out at once."),
    Reason.WAITS_FOR_VALLEY: ("Without the sick part too many requests would be late now, and none in the hour that is named.", "Wait, free GPUs for a replica more, or approve."),
    Reason.TOO_DEAR: ("Without the sick part too many requests would be late, and neither a spare nor a quieter hour is in sight.", "Free GPUs for a replica more, or approve and bear it."),
    Reason.UNKNOWN_POOL: ("The pool was discovered and is not configured; it has no limits to scale within.", "List it under `pools`."),
}  # fmt: skip


MEANINGS: Mapping[str, str] = {
    "state_dir": "Folder of the journal, the snapshots, the forecasts and the messages to be sent. One daemon a folder.",
    "mode": "How far action kinds without a mode of their own may go.",
    "sources.http": "Exporters read directly.",
    "sources.http.interval": "How often each exporter is read.",
    "sources.http.static": "Exporters listed here.",
    "sources.http.dns": "Exporters found by name.",
    "sources.http.dns[].name": "Name to ask for.",
    "sources.http.dns[].type": "Kind of record.",
    "sources.http.dns[].job": "As in `static`.",
    "sources.http.dns[].labels": "As in `static`.",
    "sources.http.dns[].refresh": "How often the name is asked again.",
    "sources.http.bearer_token_file": "Token sent with every request.",
    "sources.http.username": "For exporters behind basic authentication.",
    "sources.http.password_file": "Its password.",
    "sources.http.ca_file": "Certificates that https exporters are checked against.",
    "sources.prometheus": "A store that has the past, or the present too.",
    "sources.prometheus.history_span": "How far back the past is read.",
    "sources.prometheus.interval": "How often it is asked for current values.",
    "sources.prometheus.bearer_token_file": "Token sent with every request.",
    "sources.nvml": "GPUs of this host, through the NVIDIA driver.",
    "sources.nvml.enabled": "Whether they are read.",
    "sources.nvml.interval": "How often.",
    "sources.nvml.call_timeout": "A driver call that takes longer is a finding of its own.",
    "sources.sysfs": "RDMA ports of this host.",
    "sources.sysfs.root": "Where they are.",
    "sources.sysfs.interval": "How often they are read.",
    "sources.kernel_log": "Kernel logs, for XIDs and host faults the moment they happen.",
    "sources.kernel_log[].path": "The kernel's own device, or a file in which a node's messages arrive.",
    "sources.mqtt": "A broker to which telemetry is published.",
    "sources.mqtt.host": "The broker.",
    "sources.mqtt.port": "Its port.",
    "sources.mqtt.topics": "What is subscribed to.",
    "sources.mqtt.username": "Name at the broker.",
    "sources.mqtt.password_file": "Its password.",
    "sources.mqtt.tls_ca_file": "Certificates that the broker is checked against; TLS is used when given.",
    "pools": "Objectives and limits of pools. A pool that is not listed is watched and never scaled.",
    "pools[].name": "Its name.",
    "pools[].replicas.min": "Never fewer.",
    "pools[].slo.ttft": "Objective of the time to the first token.",
    "pools[].slo.itl": "Objective of the time between tokens.",
    "pools[].slo.target": "Share of requests that must meet it.",
    "pools[].cold_start": "How long a new replica takes until it serves, until five starts have been measured.",
    "pools[].modes": "Per action kind, for this pool; overrides `modes` and `mode`.",
    "budgets.isolated_nodes_max": "Nodes out of service at once. The smaller of this and the share holds; one node is always allowed.",
    "budgets.isolated_share_max": "The same as a share of all nodes.",
    "budgets.isolated_pool_share_max": "Share of a pool's replicas out of service at once.",
    "budgets.isolations_per_hour_max": "Isolations in an hour.",
    "budgets.scale_step_max": "Replicas added in one step.",
    "budgets.scale_steps_per_hour_max": "Scale steps in an hour.",
    "budgets.reroute_share_per_min_max": "Share of a pool's replicas whose weight may change in a minute; weight 0 is not held back.",
    "budgets.lent_share_max": "Share of all GPUs with offline work at once.",
    "budgets.cool_down": "Wait after a failed try.",
    "maintenance": "Windows in which nothing is isolated, scaled, rerouted or lent.",
    "maintenance[].start": "Begin, like 2026-12-24T18:00:00+01:00.",
    "maintenance[].end": "End.",
    "maintenance[].reason": "Shown with every refusal.",
    "backends": "What carries actions out.",
    "backends.NAME(command).kind": "A program of yours.",
    "backends.NAME(command).timeout": "It is killed after that long.",
    "backends.NAME(command).env": "Its environment beside PATH, LANG and TIDEWARDEN_STEP_ID.",
    "backends.NAME(haproxy).kind": "Weights of HAProxy servers over the runtime socket: docs/en/backends/haproxy.md.",
    "backends.NAME(nginx).kind": "Weights of an nginx upstream by its include file: docs/en/backends/nginx.md.",
    "backends.NAME(nginx).timeout": "For each of the two commands.",
    "backends.NAME(haproxy).timeout": "For one question to one process.",
    "web.listen": "Address of the pages, the API and /metrics.",
    "tuning.tick": "Pace of decisions.",
    "tuning.stale": "A value older than this is unknown.",
    "tuning.stale_veto": "A target silent for longer counts as lost; with 30 % lost nothing is taken away.",
    "tuning.slo_window": "Window of latency quantiles.",
    "tuning.spare_min": "Replicas kept beyond the need of each pool (N+1).",
    "tuning.lease_max": "Longest lease of GPUs to offline work.",
    "tuning.lease_min": "A shorter one is not given.",
    "tuning.recall_lead": "A lease ends, and is recalled, this long ahead of the need.",
    "tuning.forecast_every": "How often demand is forecast.",
    "tuning.forecast_horizon": "How far ahead.",
}
"""For keys whose name nearly says it and that have no docstring in daemon/settings*.py."""


# -- config.md -------------------------------------------------------------------------------------------------


def rows(
    model: type[BaseModel], prefix: str = "", above: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every key, depth first."""
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = model_in(info.annotation)
        if inner is None:
            yield key, type_of(info), default_of(info), meaning_of(info, key)
            continue
        origin = typing.get_origin(info.annotation)
        if origin is list:
            yield key, "list of tables", "none", meaning_of(info, key)
            if inner in above:
                continue  # a table within one of its kind has the same keys
            several = models_in(info.annotation)
            for model in several:
                kind = model.model_fields["kind"].annotation if len(several) > 1 else None
                mark = f"({plain_type(kind)})" if kind else ""
                yield from rows(model, f"{key}[]{mark}.", (*above, model))
        elif origin is dict:
            yield key, "table of tables by name", "none", meaning_of(info, key)
            for model in models_in(info.annotation):
                # Tables of several kinds are told apart by their key `kind`.
                kind = model.model_fields["kind"].annotation if "kind" in model.model_fields else None
                yield from rows(
                    model, f"{key}.NAME({plain_type(kind)})." if kind else f"{key}.NAME.", (*above, model)
                )
        else:
            if type(None) in typing.get_args(info.annotation):
                yield key, "table", "absent", meaning_of(info, key)
            yield from rows(inner, f"{key}.", (*above, inner))


def model_in(kind: Any) -> type[BaseModel] | None:
    """The table inside a list, a dict, an optional or an annotation."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next(iter(models_in(kind)), None)


def models_in(kind: Any) -> list[type[BaseModel]]:
    """All of them, in order, where one of several may stand."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in typing.get_args(kind) for model in models_in(part)]


UNITS = ((Duration, "duration"), (Share, "share"), (Instant, "time with zone"))
NAMED = {id(typing.get_args(kind)[1]): word for kind, word in UNITS}


def type_of(info: FieldInfo) -> str:
    word = next((NAMED[id(m)] for m in info.metadata if id(m) in NAMED), "")
    if word:
        return word
    limits = [f"{sign} {getattr(m, key)}" for m in info.metadata for key, sign in LIMITS if hasattr(m, key)]
    return ", ".join([plain_type(info.annotation), *limits])


LIMITS = (("ge", "at least"), ("le", "at most"), ("min_length", "length at least"))


def plain_type(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in inside or origin is UnionType:
        return " or ".join(plain_type(part) for part in inside if part is not type(None))
    if origin is typing.Annotated and id(inside[1]) in NAMED:
        return NAMED[id(inside[1])]
    if origin is typing.Annotated and kind not in (Duration, Share, Instant):
        return plain_type(inside[0])
    if origin is typing.Literal:
        return ", ".join(str(value) or '""' for value in inside)
    if origin is list:
        return f"list of {plain_type(inside[0])}"
    if origin is dict:
        return f"table {plain_type(inside[0])} -> {plain_type(inside[1])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(member.value) for member in kind)
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(kind, str(kind))


def default_of(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=False)
    if value is PydanticUndefined:
        return "**required**"
    if any(NAMED.get(id(m)) == "duration" for m in info.metadata):
        return f"`{spoken(value)}`"
    if any(NAMED.get(id(m)) == "share" for m in info.metadata):
        return f"`{100 * value:g}%`"
    if isinstance(value, Enum):
        value = value.value
    if value in ("", [], {}, None):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def spoken(seconds: float) -> str:
    """86400 -> 1d, 5400 -> 90m, 30 -> 30s."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def meaning_of(info: FieldInfo, key: str) -> str:
    return " ".join((info.description or MEANINGS.get(key, "")).split()).replace("|", "\\|")


def config_page() -> str:
    lines = [
        "# Configuration",
        "",
        "One YAML file. `tidewarden config check` lists every problem with file and line, `config show` prints what",
        "is in force with secrets hidden, `config init` writes a first one. A key that is not listed here is an error.",
        "",
        "* A **duration** carries its unit: `200ms`, `15s`, `10m`, `8h`, `7d`, `1h30m`. A **share** is `0.2` or `20%`.",
        "* `${VAR}` and `${VAR:-default}` come from the environment, `$$` is a dollar sign.",
        "* `[]` in a key stands for each entry of a list, `NAME` for a name of your choice.",
        "* SIGHUP, `tidewarden reload` and POST /-/reload read the file again. Sources, backends, channels, the web",
        "  address and the state folder change at a restart only.",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        *(f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in rows(Settings)),
    ]
    return HEAD + "\n".join(lines) + "\n"


# -- findings.md -----------------------------------------------------------------------------------------------


def rung_text(rung: Rung) -> str:
    after = f" after {spoken(rung.after_s)}" if rung.after_s else " at once"
    if rung.verb is Verb.REROUTE:
        return f"routing weight {rung.amount:g}{after}"
    on = {"scope": "what the incident names", "node": "the node"}[rung.on]
    return f"{rung.verb.value} {on}{after}"


def finding_text(kind: str, pattern: Pattern) -> list[str]:
    ladder = "; ".join(rung_text(r) for r in LADDER.get(kind, ())) or "people are told, nothing is changed"
    patience = "none: it opens at once" if pattern.patience_s == 0 else spoken(pattern.patience_s)
    facts = [
        f"family {pattern.family}",
        f"patience {patience}",
        f"quiet time {spoken(pattern.quiet_s)}",
        *([f"one incident for a {pattern.shared} that fails as a whole"] if pattern.shared else []),
    ]
    explains = ", ".join(f"`{k}`" for k in sorted(pattern.explains))
    return [
        f"### {kind}",
        "",
        f"**{pattern.title}.** " + "; ".join(facts) + ".",
        "",
        f"* Answer: {ladder}.",
        *([f"* Takes in, as its consequences: {explains}."] if explains else []),
        f"* What to do: {TO_DO[kind]}",
        "",
    ]


def findings_page() -> str:
    families = list(dict.fromkeys(p.family for p in PATTERNS.values()))
    lines = [
        "# Findings and incidents",
        "",
        "A detector *claims* a pattern of an entity; the claim becomes an *incident* when it has lasted its **patience**.",
        "An incident closes when it has not been claimed for its **quiet time** *and* fresh telemetry could have shown it:",
        "silence is never recovery. An incident that comes back within a day must be quiet twice as long each time, up to an hour.",
        "",
        "A claim that an open incident explains joins it as a consequence. What is critical opens an incident of its own all the same where the",
        f"cause is not critical, or was last seen {spoken(NEWS_S)} before: a crashed program, told as information, hides no dead engine, and a",
        "replica a little slow no pool that misses its objective. What was given up before is no news: a node that is taken back, or an engine that",
        "its load balancer has taken out, may go.",
        "",
        f"Scopes that are a common cause ({', '.join(GROUPS)}) get routing weights at most and are never isolated.",
        f"What was isolated is released by itself once its incident has been closed for {spoken(HOLD_S)}; routing weights",
        "rise again in steps. Every answer is subject to the [verdicts](verdicts.md). How the patterns are told apart:",
        "[faults](faults.md), [XIDs](xid.md), [serving](serving.md), [integrity](integrity.md), [congestion](congestion.md),",
        "[stragglers](stragglers.md), [forecasting](forecasting.md). How often each rule is right: [rules](rules.md).",
        "",
    ]
    for family in families:
        lines += [f"## {family.capitalize()}", ""]
        for kind, pattern in PATTERNS.items():
            if pattern.family == family:
                lines += finding_text(kind, pattern)
    return HEAD + "\n".join(lines).rstrip() + "\n"


# -- verdicts.md -----------------------------------------------------------------------------------------------


def verdicts_page() -> str:
    lines = [
        "# Verdicts",
        "",
        "Every proposed step is judged before anything is done, and the answer has a name. Checks run in a fixed order",
        "(`daemon/guard.py`, `CHECKS`); the first that refuses gives the reason. The mode speaks last, so that a dry run",
        "shows what would really have happened. A refusal is reported when its reason changes, not at every tick.",
        "",
        "| reason | what it means | what you can do |",
        "|---|---|---|",
        *(f"| `{reason.value}` | {meaning} | {remedy} |" for reason, (meaning, remedy) in REASONS.items()),
        "",
        "`tidewarden actions list` shows them, `tidewarden actions explain ID` tells one step's whole story.",
    ]
    return HEAD + "\n".join(lines) + "\n"


# -- thresholds.md ---------------------------------------------------------------------------------------------


def numbers(owner: Any) -> Iterator[tuple[str, Any]]:
    """Fields of a detector that are its settings and not its memory: numbers, and tuples of them."""
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        plain = isinstance(value, int | float) or (
            isinstance(value, tuple) and value and isinstance(value[0], float)
        )
        if plain and value == value and field.name not in MEMORY:
            yield field.name, value


MEMORY = {"at", "ticks", "finished", "made_at", "in_a_row", "is_raised"}
PLANNING = {replica: ("KV_TARGET", "LOAD_TARGET", "DEMAND_TAU_S", "BUDGET_SHARE"),
            sizing: ("SHRINK_WINDOW_S", "SHRINK_ROOM", "SHRINK_SHARE", "CRAMPED_LATE", "SHRINK_EVERY_S",
                     "SHRINK_STEP", "HOLD_S", "URGENT", "LOOK_S"),
            lease: ("SPARE_SHARE", "KEPT_LEAST", "LEAD_MARGIN_S"),
            plan: ("RAMP_STEP", "RAMP_EVERY_S", "HOLD_S"), resize: ("DRAIN_S",)}  # fmt: skip


def thresholds_page() -> str:
    lines = [
        "# Thresholds",
        "",
        "What the detectors and the plan go by when nobody tells them otherwise. The unit ends the name: `_s` seconds,",
        "`_ratio` and `_share` parts of one, `_per_s` events a second. What each means stands in the docstring of the class.",
        "",
        "| where | name | value |",
        "|---|---|---|",
    ]
    for name, make in DETECTORS.items():
        lines += [f"| detector `{name}` | `{field}` | {value} |" for field, value in numbers(make())]
    for module, names in PLANNING.items():
        where = module.__name__.replace(".", "/") + ".py"
        lines += [f"| `{where}` | `{constant}` | {getattr(module, constant)} |" for constant in names]
    return HEAD + "\n".join(lines) + "\n"


PAGES = {
    "config.md": config_page,
    "findings.md": findings_page,
    "thresholds.md": thresholds_page,
    "verdicts.md": verdicts_page,
}


def main(arguments: list[str]) -> int:
    stale = [n for n, page in PAGES.items() if not (HERE / n).is_file() or (HERE / n).read_text() != page()]
    if arguments == ["--check"]:
        print(
            "\n".join(f"docs/en/reference/{name} is out of date" for name in stale) or "all pages are current"
        )
        return 1 if stale else 0
    HERE.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (HERE / name).write_text(PAGES[name]())
        print(f"wrote docs/en/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
