"""Writes a first configuration, from what a Prometheus already knows if there is one."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from daemon.cli.trouble import Trouble
from daemon.model import SourceError
from daemon.telemetry import load_catalogue
from daemon.telemetry.catalogue import Catalogue
from daemon.telemetry.discovery import target_of

TIMEOUT_S = 20.0
KEPT_LABELS = ("node", "rack", "leaf", "region", "pool", "role", "version", "model", "gpus")
"""Target labels that say where a thing is or what it serves; the others stay in Prometheus."""


@dataclass(frozen=True, slots=True)
class Found:
    """groups : (labels, addresses) to scrape, by exporter. models : names that engines serve.

    unknown : jobs of which no series means anything here. down : addresses that Prometheus cannot reach now.
    """

    url: str
    groups: tuple[tuple[str, Mapping[str, str], tuple[str, ...]], ...] = ()
    models: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    down: tuple[str, ...] = field(default=())


def ask_prometheus(url: str) -> Found:
    """Which exporters it scrapes that we understand, where they are, what is served. Raises Trouble."""
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise Trouble(f"--prometheus {url!r}: an http:// or https:// address is needed", 2)
    catalogue = load_catalogue()
    active = _ask(url, "/api/v1/targets?state=active")["activeTargets"]
    exporter_of: dict[str, str | None] = {}
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    unknown, down = set(), []
    for target in active:
        labels = target.get("labels", {})
        job = labels.get("job", "")
        if job not in exporter_of:
            exporter_of[job] = _exporter(url, catalogue, job)
        address = _address(target.get("scrapeUrl", ""))
        exporter = exporter_of[job]
        if exporter is None or not address:
            unknown.add(job)
            continue
        if target.get("health") == "down":
            down.append(address)
        parts = urllib.parse.urlsplit(target["scrapeUrl"])
        kept = {k: labels[k] for k in KEPT_LABELS if labels.get(k)}
        if parts.path not in ("", "/metrics"):
            kept["__metrics_path__"] = parts.path
        if parts.scheme == "https":
            kept["__scheme__"] = "https"
        groups.setdefault((exporter, tuple(sorted(kept.items()))), []).append(address)
    return Found(
        url,
        tuple((job, dict(labels), tuple(sorted(a))) for (job, labels), a in sorted(groups.items())),
        _models(url, catalogue),
        tuple(sorted(unknown)),
        tuple(down),
    )


def _exporter(url: str, catalogue: Catalogue, job: str) -> str | None:
    """What kind of exporter a job is: None when we know none of its names, "" when it mixes several kinds."""
    match = urllib.parse.quote(f'{{job="{job}"}}', safe="")
    names = _ask(url, f"/api/v1/label/__name__/values?match[]={match}")
    counts: dict[str, int] = {}
    for name in names:
        for meaning in catalogue.meanings(name):
            if not meaning.family.only_with:
                counts[meaning.family.job] = counts.get(meaning.family.job, 0) + 1
    if not counts:
        return None
    most = max(counts, key=lambda found: counts[found])
    return most if counts[most] > 0.9 * sum(counts.values()) else ""


def _models(url: str, catalogue: Catalogue) -> tuple[str, ...]:
    """Values of the labels in which engines name their model."""
    labels = {n for f in catalogue.families.values() if f.kind == "engine" for n in f.facts.get("model", ())}
    found: set[str] = set()
    for label in sorted(labels):
        found |= {v for v in _ask(url, f"/api/v1/label/{label}/values") if v}
    return tuple(sorted(found))


def _address(scrape_url: str) -> str:
    parts = urllib.parse.urlsplit(scrape_url)
    if not parts.hostname or parts.username:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    address = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    try:
        target_of(address, {})
    except SourceError:
        return ""
    return address


def _ask(url: str, path: str) -> Any:
    try:
        with urllib.request.urlopen(url + path, timeout=TIMEOUT_S) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        raise Trouble(
            f"{url}{path.partition('?')[0]}: HTTP status {error.code}; is this the address of a Prometheus?"
        ) from error
    except (OSError, ValueError) as error:
        raise Trouble(
            f"{url} cannot be asked: {getattr(error, 'reason', error)}; check the address"
        ) from error
    if not isinstance(body, dict) or body.get("status") != "success":
        raise Trouble(f"{url} does not answer as Prometheus does; check the address")
    return body["data"]


HEAD = """\
# tidewarden. Every key with its default: tidewarden config show --resolved -c THIS; its meaning: config schema.
# Check with: tidewarden config check -c THIS. Durations carry units (15s, 10m, 8h, 7d); ${VAR} comes from the environment.

cluster: cluster                # name in messages and ownership marks
state_dir: /var/lib/tidewarden  # journal, forecasts, messages to be sent

# observe: decide and record. advise: say so too. approve: act once you approve. auto: act within the budgets.
mode: observe
# modes:                        # per action kind; a pool may have its own
#   scale: approve
#   isolate: advise

"""
TAIL = """
# What an action is carried out by: a program of yours, see docs/en/backends/command.md. Without one nothing can be changed.
# backends:
#   ours:
#     kind: command
#     argv: [/usr/local/bin/tidewarden-backend]
#     timeout: 30s
# actions:
#   scale: ours
#   isolate: ours

# Limits no decision may exceed (these are the defaults).
# budgets:
#   isolated_nodes_max: 4
#   isolated_share_max: 15%
#   isolations_per_hour_max: 4

{notify}
web:
  listen: 127.0.0.1:9095
  # token_file: /etc/tidewarden/token   # writes (approve, pause, reload) need it; without it the pages are read-only
"""
NO_CHANNEL = """\
# Who is told. URLs are secrets: one a line in a file readable by the daemon only. Kinds: docs/en/alerts.md.
# Then: tidewarden alerts test on-call
# notify:
#   external_url: http://tidewarden.example:9095   # links in messages start with it
#   channels:
#     - name: on-call
#       kind: alertmanager   # webhook, pagerduty, slack, teams, feishu, dingtalk, wecom, email, mqtt, grafana, kubernetes
#       url_file: /etc/tidewarden/alertmanager-url
"""
CHANNEL = """\
# Who is told. Try it: tidewarden alerts test on-call -c THIS. Routes, silences, escalation: docs/en/alerts.md.
notify:
  # external_url: http://tidewarden.example:9095   # links in messages start with it
  language: {language}
  channels:
    - name: on-call
      kind: {kind}
      {key}: {file}
"""
EXAMPLE = """\
sources:
  http:
    # interval: 15s
    static:
      - targets: ["127.0.0.1:9400"]   # exporters of GPUs, hosts, engines: the kind is found from the page
        labels: {node: n00, rack: r0, leaf: l0}
    # file_sd: [/etc/prometheus/targets/*.json]
    # dns: [{name: exporters.example, type: SRV}]
  # prometheus:
  #   url: http://prometheus.example:9090   # history for the first forecast
"""
NO_POOLS = """
# Pools are found from the model that engines name; list one to set its objectives and limits.
# pools:
#   - name: chat
#     match: {model: llama-70b}
#     slo: {ttft: 2s, itl: 200ms, target: 99%}
#     replicas: {min: 1, max: 8}
"""


@dataclass(frozen=True, slots=True)
class Told:
    """Who is to be told. kind : of the channel. file : with its address, or with its key where the address is known."""

    kind: str
    file: str
    language: str = "en"


def render(found: Found | None, told: Told | None = None) -> str:
    """The file's text, in observe mode."""
    tail = TAIL.replace("{notify}\n", NO_CHANNEL if told is None else _channel(told))
    if found is None:
        return HEAD + EXAMPLE + NO_POOLS + tail
    return HEAD + _sources(found) + _pools(found) + tail


def _channel(told: Told) -> str:
    key = "secret_file" if told.kind == "pagerduty" else "url_file"
    return CHANNEL.format(kind=told.kind, key=key, file=_flow(told.file), language=told.language)


def _sources(found: Found) -> str:
    lines = [f"# Found through {found.url}: {sum(len(a) for _, _, a in found.groups)} targets."]
    if found.unknown:
        lines.append(f"# Jobs that hold nothing of use here: {', '.join(found.unknown)}.")
    if found.down:
        lines.append(f"# Down at the time of writing: {', '.join(found.down[:20])}.")
    lines.append("sources:")
    if found.groups:
        lines += ["  http:", "    static:"]
    for job, labels, addresses in found.groups:
        lines.append("      - targets:")
        lines += [f"          - {_flow(a)}" for a in addresses]
        if job:
            lines.append(f"        job: {_flow(job)}")
        if labels:
            lines.append(f"        labels: {_flow(dict(labels))}")
    live = "" if found.groups else "\n    live: true   # no exporter was found to ask directly"
    lines.append(f"  prometheus:\n    url: {_flow(found.url)}   # history for the first forecast{live}")
    return "\n".join(lines) + "\n"


def _pools(found: Found) -> str:
    if not found.models:
        return NO_POOLS
    lines = [
        "",
        "# One pool for each model that engines name. slo and replicas are the defaults: set yours.",
        "pools:",
    ]
    for model in found.models:
        lines += [
            f"  - name: {_flow(model.rstrip('/').rpartition('/')[2] or model)}",
            f"    match: {{model: {_flow(model)}}}",
            "    # slo: {ttft: 2s, itl: 200ms, target: 99%}",
            "    # replicas: {min: 1, max: 8}",
        ]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """YAML on one line, quoted where it must be."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()
