"""KV transfers: which end, or which pair, is slow; from pages as routers and engines write them to the claim."""

from collections.abc import Callable

import numpy as np
import pytest
from small_frames import kinds

from daemon.frame import FrameBuilder
from daemon.model import Finding, Scrape, Severity, Target
from daemon.policy import Policy
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from detectors.congestion import CongestionDetector
from detectors.twoway import median_polish

CATALOGUE = load_catalogue()
SENDERS, RECEIVERS = tuple(f"p{k}" for k in range(4)), tuple(f"d{k}" for k in range(5))
TICK = 15.0
BYTES_S = 2e9
Slower = Callable[[str, str], float]


def scrape(text: str, target: Target, at: float) -> Scrape:
    reading = Page(CATALOGUE.wanted, CATALOGUE.keep).parse(text.encode())
    identity = CATALOGUE.identify(target, reading.keys, None)
    return Scrape(target.address, at, identity.layout, identity.values(reading.values))


def router_page(at: float, slower: Slower, noise: np.ndarray) -> str:
    """Totals since the start of a router that knows both ends; 3 ns a byte, a fifth more across the room."""
    lines = []
    for i, source in enumerate(SENDERS):
        for j, destination in enumerate(RECEIVERS):
            ends = f'{{source="{source}",destination="{destination}"}}'
            moved = BYTES_S * at
            took = moved * 3e-9 * (1.2 if j > 2 else 1.0) * slower(source, destination) * noise[i, j]
            lines += [f"kv_pair_busy_seconds_total{ends} {took}", f"kv_pair_moved_bytes_total{ends} {moved}"]
    return "\n".join(lines) + "\n"


def told(slower: Slower, minutes: int = 6) -> list[Finding]:
    noise = np.random.default_rng(2).normal(1.0, 0.03, (len(SENDERS), len(RECEIVERS)))
    builder, detector = FrameBuilder(Policy()), CongestionDetector()
    found: list[Finding] = []
    for k in range(4 * minutes + 1):
        at = 1e6 + TICK * k
        builder.absorb(scrape(router_page(TICK * (k + 1), slower, noise), Target("router:9000"), at))
        found = detector.update(builder.build(at))
    return found


def test_transfers_that_all_take_their_time_are_quiet() -> None:
    assert told(lambda s, d: 1.0) == []


def test_one_that_sends_slowly_to_all_is_the_sender() -> None:
    found = told(lambda s, d: 2.0 if s == "p1" else 1.0)

    assert kinds(found) == [("kv_transfer_slow", "node p1")]
    assert (found[0].rule_id, found[0].severity) == ("congestion.kv_slow_sender", Severity.WARNING)
    assert found[0].evidence[0].value == pytest.approx(2.0, rel=0.1)


def test_one_that_receives_slowly_from_all_is_the_receiver() -> None:
    found = told(lambda s, d: 1.8 if d == "d3" else 1.0)

    assert [(f.rule_id, str(f.entity)) for f in found] == [("congestion.kv_slow_receiver", "node d3")]


def test_one_slow_pair_accuses_neither_of_its_ends() -> None:
    found = told(lambda s, d: 3.0 if (s, d) == ("p2", "d0") else 1.0)

    assert [(f.rule_id, str(f.entity)) for f in found] == [("congestion.kv_slow_pair", "pair p2>d0")]
    assert found[0].severity is Severity.INFO


def test_a_slow_sender_and_a_slow_pair_elsewhere_are_two_things() -> None:
    found = told(lambda s, d: 2.0 if s == "p0" else 3.0 if (s, d) == ("p2", "d4") else 1.0)

    assert kinds(found) == [("kv_transfer_slow", "node p0"), ("kv_transfer_slow", "pair p2>d4")]


def test_everything_slower_is_nobodys_fault_and_a_minute_is_too_short() -> None:
    assert told(lambda s, d: 4.0) == []
    assert told(lambda s, d: 2.0 if s == "p1" else 1.0, minutes=2) == []


NIXL = """# TYPE vllm:nixl_xfer_time_seconds histogram
vllm:nixl_xfer_time_seconds_bucket{{engine="0",le="0.005",model_name="m"}} 1
vllm:nixl_xfer_time_seconds_bucket{{engine="0",le="+Inf",model_name="m"}} {count}
vllm:nixl_xfer_time_seconds_sum{{engine="0",model_name="m"}} {seconds}
vllm:nixl_xfer_time_seconds_count{{engine="0",model_name="m"}} {count}
# TYPE vllm:nixl_bytes_transferred histogram
vllm:nixl_bytes_transferred_bucket{{engine="0",le="+Inf",model_name="m"}} {count}
vllm:nixl_bytes_transferred_sum{{engine="0",model_name="m"}} {moved}
vllm:nixl_bytes_transferred_count{{engine="0",model_name="m"}} {count}
"""
SENT = """# TYPE sglang:kv_transfer_latency_ms histogram
sglang:kv_transfer_latency_ms_bucket{{engine_type="prefill",le="+Inf",model_name="m"}} {count}
sglang:kv_transfer_latency_ms_sum{{engine_type="prefill",model_name="m"}} {milliseconds}
sglang:kv_transfer_latency_ms_count{{engine_type="prefill",model_name="m"}} {count}
# TYPE sglang:kv_transfer_total_mb histogram
sglang:kv_transfer_total_mb_bucket{{engine_type="prefill",le="+Inf",model_name="m"}} {count}
sglang:kv_transfer_total_mb_sum{{engine_type="prefill",model_name="m"}} {megabytes}
sglang:kv_transfer_total_mb_count{{engine_type="prefill",model_name="m"}} {count}
"""


@pytest.mark.parametrize("page", [NIXL, SENT])
def test_engines_that_tell_one_end_are_compared_with_others_of_their_pool(page: str) -> None:
    builder, detector = FrameBuilder(Policy()), CongestionDetector()
    found: list[Finding] = []
    for k in range(25):
        at = 1e6 + TICK * k
        for n in range(5):
            moved = BYTES_S * TICK * (k + 1)
            took = moved * 3e-9 * (2.0 if n == 4 else 1.0 + 0.02 * n)
            text = page.format(
                count=100 * k, seconds=took, moved=moved, milliseconds=1e3 * took, megabytes=moved / 2**20
            )
            target = Target(f"10.0.0.{n}:8000", labels=(("pool", "decode"),))
            builder.absorb(scrape(text, target, at))
        found = detector.update(builder.build(at))

    assert [(f.rule_id, str(f.entity)) for f in found] == [("congestion.kv_slow_end", "engine 10.0.0.4:8000")]
    assert found[0].evidence[0].value == pytest.approx(2.0, rel=0.1)


def test_a_table_with_holes_is_taken_apart_as_far_as_it_is_known() -> None:
    rng = np.random.default_rng(4)
    rows, columns = np.array([0.0, 0.0, 0.7, 0.0, 0.0]), np.array([0.0, 0.2, 0.0, 0.0])
    table = 1.0 + rows[:, None] + columns[None, :] + 0.01 * rng.standard_normal((5, 4))
    table[rng.random((5, 4)) < 0.2] = np.nan
    table[4] = np.nan

    found = median_polish(table)

    np.testing.assert_allclose(found.rows[:4] - found.rows[0], rows[:4], atol=0.05)
    assert np.isnan(found.rows[4])
    assert found.sigma < 0.05
