"""The exporter settings that are shipped leave no rule blind."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from daemon.frame import FrameBuilder
from daemon.model import Entity, Fact, Frames, Layout, Scrape, Series, Shape, Target
from daemon.patterns import PATTERNS
from daemon.policy import Policy
from daemon.rules import RULES, Blind, blind
from daemon.settings_sources import Sources
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from daemon.telemetry.mqtt import read_payload
from daemon.web.views import seen_signals

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "exporters"
GOLDEN = ROOT / "tests" / "golden"
CATALOGUE = load_catalogue()
ENGINE = "10.0.0.7:8000"
GPU = 'gpu="0",UUID="GPU-1",device="nvidia0",Hostname="n0"'
SPECULATION = "\n".join(
    f'vllm:spec_decode_num_{what}_tokens_total{{model_name="m",engine="0"}} 5'
    for what in ("draft", "accepted")
)
"""What a vLLM with speculative decoding adds to its page."""
DRAINED = re.compile(r"~|\||\(|\[")


def counters() -> list[tuple[str, str]]:
    """(field, type) of the shipped CSV."""
    lines = [
        line for line in (SHIPPED / "dcgm-counters.csv").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    return [(row[0].strip(), row[1].strip()) for row in csv.reader(lines)]


def gpu_page() -> str:
    return "".join(f"{name}{{{GPU}}} 3\n" for name, _ in counters())


def node_page() -> str:
    """What node_exporter writes by itself, with what the shipped flags add."""
    flags = (SHIPPED / "node_exporter.args").read_text().split()
    text = (GOLDEN / "node-exporter-1.5-real.txt").read_text()
    for signal in CATALOGUE.signals["port"]:
        for alias in CATALOGUE.aliases.get(("port", signal), ()):
            label = 'device="mlx5_0",port="1"' if alias.family == "infiniband" else 'device="rdma0"'
            is_on = alias.family == "infiniband" or f"--collector.{alias.family}" in flags
            if is_on and not DRAINED.search(alias.name):
                text += f"{alias.name}{{{label}}} 3\n"
    if "--collector.ethtool" in flags:
        for way in ("received", "transmitted"):
            text += f'node_ethtool_{way}_prio3_pause{{device="rdma0"}} 3\n'
            text += f'node_ethtool_{way}_prio3_pause_duration{{device="rdma0"}} 3\n'
    if "--collector.systemd" in flags:
        text += (
            'node_systemd_unit_state{name="nvidia-fabricmanager.service",state="active",type="simple"} 1\n'
        )
    return text


def fabric_page() -> str:
    """What infiniband_exporter writes of one switch port with the shipped flags."""
    if "--collector.switch" not in (SHIPPED / "infiniband_exporter.args").read_text().split():
        return ""
    label = 'guid="0x1",port="1",switch="l0",uplink="n0 HCA-1",uplink_port="1",uplink_type="CA"'
    names = [
        alias.name
        for signal in CATALOGUE.signals["switchport"]
        for alias in CATALOGUE.aliases.get(("switchport", signal), ())
        if alias.family == "infiniband_switch"
    ]
    return "".join(f"{name}{{{label}}} 3\n" for name in names)


def own_layout(sources: Sources) -> Layout:
    """What the daemon reads itself with the shipped sources."""
    series = []
    if sources.nvml is not None and sources.nvml.enabled:
        series += [
            Series(s, Entity("gpu", "n0/gpu0"), Shape.GAUGE, combine="max") for s in ("nvml_hang", "gpu_lost")
        ]
    if sources.mqtt is not None:
        notes, bad = read_payload((SHIPPED / "engine-kv.json").read_bytes(), 1e9, CATALOGUE)
        assert bad == 0
        series += [Series(n.signal, n.entity) for n in notes if n.entity is not None]
    return Layout("own", tuple(series), (Fact(Entity("target", "own"), "job", "own"),))


def shipped_sources() -> Sources:
    return Sources.model_validate(yaml.safe_load((SHIPPED / "sources.yaml").read_text())["sources"])


def lived(pages: dict[Target, str], own: Layout | None) -> Frames:
    """Five scrapes of every page, on each of which every counter has moved on."""
    builder = FrameBuilder(Policy())
    for target, text in pages.items():
        reading = Page(CATALOGUE.wanted, CATALOGUE.keep).parse(text.encode())
        identity = CATALOGUE.identify(target, reading.keys, {"engine0": ENGINE})
        edges = np.array([s.le if s.shape is Shape.BUCKET else 1.0 for s in identity.layout.series])
        for k in range(5):
            # Of a histogram every bucket from one second on has one more.
            values = identity.values(reading.values) + k * (edges >= 1.0)
            builder.absorb(Scrape(identity.layout.target, 1000.0 + 15.0 * k, identity.layout, values))
    for k in range(5):
        at = 1000.0 + 15.0 * k
        if own is not None:
            builder.absorb(Scrape("own", at, own, np.zeros(len(own.series))))
        builder.build(at)
    return builder.build(1061.0)


def blind_with(*leave_out: str) -> list[Blind]:
    engine = Target(ENGINE, labels=(("node", "n0"),))
    pages = {
        Target("n0:9400", labels=(("node", "n0"),)): gpu_page(),
        Target("n0:9100", labels=(("node", "n0"),)): node_page(),
        engine: (GOLDEN / "vllm-0.32-loaded-1.txt").read_text() + SPECULATION + "\n",
        Target("fabric:9315"): fabric_page(),
        Target("lb:8404"): (GOLDEN / "haproxy-2.6-prometheus.txt").read_text(),
    }
    kept = {t: text for t, text in pages.items() if t.address not in leave_out}
    sources = shipped_sources()
    frames = lived(kept, None if "own" in leave_out else own_layout(sources))
    seen = seen_signals(frames, CATALOGUE)
    seen["target"] = set(frames["target"].signals)
    return blind(seen, bool(sources.kernel_log) and "own" not in leave_out)


def test_with_the_shipped_settings_every_rule_can_fire() -> None:
    assert [(b.rule.id, b.missing) for b in blind_with()] == []


@pytest.mark.parametrize(
    ("without", "detector"),
    [("n0:9400", "fault.ecc_storm"), ("fabric:9315", "congestion.uplink_switch"), ("n0:9100", "congestion.pfc_storm"), ("lb:8404", "serving.engine_hung"),
     ("own", "fault.host_io_error"), ("10.0.0.7:8000", "serving.kv_thrash")],
)  # fmt: skip
def test_what_is_not_scraped_blinds_its_rules_and_no_others(without: str, detector: str) -> None:
    found = {b.rule.id for b in blind_with(without)}

    assert detector in found
    assert len(found) < len(RULES) / 2 + 1


def test_every_shipped_gpu_field_means_something_to_the_catalogue() -> None:
    assert [name for name, _ in counters() if not CATALOGUE.wanted(name)] == []


def test_every_rule_names_known_signals_and_a_known_pattern() -> None:
    for rule in RULES.values():
        assert rule.kind in PATTERNS, rule.id
        for need in "|".join(rule.needs).split("|"):
            kind, _, signal = need.partition(".")
            known = kind in ("target", "event") or signal in CATALOGUE.signals[kind]
            assert known, (rule.id, need)


def test_every_signal_a_rule_needs_has_a_line_that_enables_it() -> None:
    remedies = {
        f"{s.kind}.{s.signal}": s.remedy for s in CATALOGUE.blind_spots({k: set() for k in CATALOGUE.signals})
    }

    needed = {n for rule in RULES.values() for need in rule.needs for n in need.split("|")}

    missing = [n for n in needed if n.split(".")[0] not in ("target", "event") and not remedies.get(n)]
    assert missing == []


def test_the_sample_payload_is_json_that_the_daemon_reads() -> None:
    notes, bad = read_payload((SHIPPED / "engine-kv.json").read_bytes(), 1e9, CATALOGUE)

    assert bad == 0
    assert {n.signal for n in notes} == {"kv_used_tokens", "kv_used_blocks", "kv_block_tokens"}
    assert isinstance(json.loads((SHIPPED / "engine-kv.json").read_text()), list)
