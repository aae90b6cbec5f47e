"""The live checklists, on small frames with known answers and on a day of the simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.checklist import ITEMS
from daemon.codec import decode, to_plain
from daemon.core import Command, Core
from daemon.evolution import advice, tier
from daemon.model import NAN, Entity, Frame, Frames, Incident, Outcome, Result, Severity, Step, Verb
from daemon.outlook import Outlook
from daemon.policy import Mode, Policy, PoolPolicy
from daemon.posture import Day, Score, assess, is_failure
from daemon.topology import Topology, picture
from daemon.web import standing
from daemon.web.errors import Missing, Unusable

UNKNOWN = Outlook(NAN, NAN, {}, 0.0, NAN)
HOUR_S = 3600.0


def frame(at: float, kind: str, names: list[str], facts: dict[str, list[str]], **signals: Any) -> Frame:
    columns = [np.broadcast_to(np.asarray(v, dtype=float), len(names)) for v in signals.values()]
    return Frame(
        at, kind, tuple(names), tuple(signals), np.column_stack(columns), np.zeros(len(names)),
        {k: tuple(v) for k, v in facts.items()}, 1,
    )  # fmt: skip


def two_nodes(at: float, **changes: Any) -> Frames:
    """Two nodes of two GPUs, a replica of two GPUs on each, one port a node."""
    gpus = [f"n{n}/gpu{g}" for n in (1, 2) for g in (0, 1)]
    gpu = dict(
        hbm_used_bytes=90.0, hbm_total_bytes=100.0, util_ratio=0.7, tensor_active_ratio=[0.4, 0.4, 0.4, 0.4],
        nvlink_tx_bytes_s=36e9, nvlink_rx_bytes_s=36e9,
    )  # fmt: skip
    engine = dict(
        running=[10.0, 10.0], kv_used_ratio=0.85, kv_blocks=1000.0, kv_block_tokens=16.0,
        generation_tokens_s=300.0, ttft_p50_s=0.05,
    )  # fmt: skip
    port = dict(tx_bytes_s=10e9, rx_bytes_s=5e9, rate_bytes_s=50e9, ecn_marked_per_s=3.0)
    facts = {"engine": ["e1", "e1", "e2", "e2"], "sku": ["NVIDIA H100 80GB HBM3"] * 4}
    frames = {
        "gpu": frame(at, "gpu", gpus, facts, **(gpu | changes.get("gpu", {}))),
        "engine": frame(
            at, "engine", ["e1", "e2"],
            {"node": ["n1", "n2"], "pool": ["chat", "chat"], "model": [changes.get("model", "qwen2.5-7b")] * 2},
            **(engine | changes.get("engine", {})),
        ),
        "port": frame(at, "port", ["n1/p", "n2/p"], {}, **(port | changes.get("port", {}))),
        "node": frame(at, "node", ["n1", "n2"], {}, load1=1.0),
        "target": frame(
            at, "target", [f"t{i}" for i in range(7)],
            {"job": ["haproxy", "haproxy", "etcd", "etcd", "etcd", "ceph", "ceph-2"]}, up=1.0,
        ),
    }  # fmt: skip
    return Frames(at, frames)


def lived(
    hours: float = 1.0, day: Day | None = None, policy: Policy | None = None, **changes: Any
) -> dict[str, Score]:
    day = day if day is not None else Day()
    frames = two_nodes(0.0, **changes)
    for minute in range(round(60 * hours)):
        frames = two_nodes(60.0 * minute, **changes)
        day.watch(frames, picture(frames))
    found = assess(day, frames, picture(frames), policy or Policy(), UNKNOWN)
    return {score.item: score for score in found}


def test_every_measurement_is_what_its_definition_says() -> None:
    found = lived()

    values = {name: found[name].value for name in found}
    assert values["memory_utilisation"] == pytest.approx(0.9)
    assert values["kv_utilisation"] == pytest.approx(0.85)
    assert values["fragmentation"] == pytest.approx(10 * 8 / (0.85 * 16000))
    assert values["ttft_7b"] == pytest.approx(0.05)
    assert values["throughput"] == pytest.approx(150.0)
    assert values["communication_share"] == pytest.approx(0.08)
    assert values["tp_efficiency"] == pytest.approx(0.92)
    assert values["load_deviation"] == pytest.approx(0.0)
    assert values["link_utilisation"] == pytest.approx(0.2)
    assert values["redundancy"] == 2.0
    assert values["gpu_utilisation"] == pytest.approx(0.7)
    assert all(
        found[name].state == "pass"
        for name in values
        if values[name] == values[name] and name != "stragglers_isolated"
    )


def test_unknown_names_what_is_missing_and_is_never_zero() -> None:
    empty = Frames(0.0, {})
    day = Day()
    day.watch(empty, Topology())

    found = assess(day, empty, Topology(), Policy(), UNKNOWN)

    assert len(found) == 18
    for score in found:
        if score.item != "stragglers_isolated":
            assert score.state in ("unknown", "not_applicable")
            assert score.value != score.value
            assert score.missing


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        ("memory_utilisation", {"gpu": {"hbm_used_bytes": 60.0}}),
        ("kv_utilisation", {"engine": {"kv_used_ratio": 0.4}}),
        ("fragmentation", {"engine": {"kv_used_ratio": 0.02}}),
        ("ttft_7b", {"engine": {"ttft_p50_s": 0.3}}),
        ("throughput", {"engine": {"generation_tokens_s": 100.0}}),
        ("tp_efficiency", {"gpu": {"tensor_active_ratio": [0.4, 0.2, 0.4, 0.2]}}),
        ("communication_share", {"gpu": {"nvlink_tx_bytes_s": 300e9}}),
        ("load_deviation", {"engine": {"running": [14.0, 10.0]}}),
        ("link_utilisation", {"port": {"rx_bytes_s": 45e9}}),
        ("congestion_control", {"port": {"ecn_marked_per_s": 0.0, "rx_discards_phy_per_s": 5.0}}),
        ("gpu_utilisation", {"gpu": {"util_ratio": 0.3}}),
    ],
)
def test_what_falls_short_fails_with_what_would_help(item: str, changes: dict[str, Any]) -> None:
    found = lived(**changes)

    assert found[item].state == "fail"
    assert found[item].todo == ITEMS[item].remedy
    others = {name for name, score in found.items() if score.state == "fail"} - {item, "stragglers_isolated"}
    # a link that is busy costs efficiency too, and a nearly empty cache is mostly half-filled blocks
    assert others <= {"tp_efficiency", "kv_utilisation"}


def test_a_fabric_without_congestion_shows_nothing_about_its_control() -> None:
    found = lived(port={"ecn_marked_per_s": 0.0})

    assert found["congestion_control"].state == "unknown"
    assert "did not move" in found["congestion_control"].missing


def test_another_model_size_makes_the_7b_line_not_apply() -> None:
    found = lived(model="llama-3.1-70b")

    assert found["ttft_7b"].state == "not_applicable"
    assert "6 to 9 billion" in found["ttft_7b"].missing


def test_the_busiest_hour_counts_for_what_is_about_capacity() -> None:
    day = Day()
    for hour, ratio in enumerate((0.2, 0.9, 0.3)):
        for minute in range(60):
            now = two_nodes(HOUR_S * hour + 60.0 * minute, engine={"kv_used_ratio": ratio})
            day.watch(now, picture(now))

    assert day.hours.peak("kv_utilisation") == pytest.approx(0.9)
    assert day.hours.mean("kv_utilisation") == pytest.approx((0.2 + 0.9 + 0.3) / 3)


def test_what_is_older_than_a_day_is_forgotten() -> None:
    day = Day()
    for hour in range(30):
        now = two_nodes(HOUR_S * hour, gpu={"util_ratio": 1.0 if hour < 6 else 0.5})
        day.watch(now, picture(now))

    assert day.hours.seen_h("gpu_utilisation") == 24
    assert day.hours.mean("gpu_utilisation") == pytest.approx(0.5)


def test_first_verified_answer_to_an_incident_is_its_recovery_time() -> None:
    day = Day()

    for at, result in ((110.0, Result.FAILED), (112.0, Result.DONE), (400.0, Result.DONE)):
        step = Step("s1", Verb.REROUTE, Entity("engine", "e1"), 0.0, "why", incident="i1")
        day.absorb(Outcome(step, result), {"i1": 100.0}, at)
    found = lived(day=day)

    assert found["recovery_30s"].value == 12.0
    assert (found["recovery_30s"].state, found["recovery_60s"].state) == ("pass", "pass")


def test_stragglers_are_isolated_by_themselves_only_in_mode_auto() -> None:
    assert lived()["stragglers_isolated"].state == "fail"
    assert lived(policy=Policy(mode=Mode.AUTO))["stragglers_isolated"].state == "pass"
    off = Policy(mode=Mode.AUTO, disabled=frozenset({"straggler"}))
    assert lived(policy=off)["stragglers_isolated"].state == "fail"


def test_attested_value_counts_until_it_expires() -> None:
    core = Core(Policy(), {})
    core.absorb(
        Command(
            "attest",
            standing.attestation('{"item": "quantisation_loss", "value": 0.012, "valid_hours": 2}', 0.0),
        )
    )

    fresh = lived(1.0, core.state.day)["quantisation_loss"]
    stale = lived(4.0, core.state.day)["quantisation_loss"]

    assert (fresh.state, fresh.value) == ("pass", 0.012)
    assert stale.state == "unknown"
    assert "ran out" in stale.missing


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "no JSON"),
        ("[]", "a list"),
        ('{"item": "kv_utilisation", "value": 1, "valid_hours": 1}', "can be attested: quantisation_loss"),
        ('{"item": "quantisation_loss", "value": "x", "valid_hours": 1}', "value is 'x'"),
        ('{"item": "quantisation_loss", "value": 0.1, "valid_hours": 1e9}', "valid_hours is 1000000000.0"),
    ],
)
def test_unusable_attestations_are_refused_in_words(body: str, said: str) -> None:
    with pytest.raises((Unusable, Missing), match=said):
        standing.attestation(body, 0.0)


def test_one_gateway_is_no_redundancy_and_an_unseen_part_is_unknown() -> None:
    day, frames = Day(), two_nodes(0.0)
    one = frame(0.0, "target", ["a", "b"], {"job": ["haproxy", "dcgm"]}, up=1.0)
    two = frame(0.0, "target", ["a", "b"], {"job": ["haproxy", "haproxy"]}, up=1.0)

    def redundancy(target: Frame) -> Score:
        seen = Frames(0.0, {**frames.by_kind, "target": target})
        return next(s for s in assess(day, seen, picture(seen), Policy(), UNKNOWN) if s.item == "redundancy")

    assert (redundancy(one).state, redundancy(one).value) == ("fail", 1.0)
    assert redundancy(two).state == "unknown"
    assert "etcd or storage" in redundancy(two).missing


def test_tier_is_found_and_can_be_set() -> None:
    frames = two_nodes(0.0)

    assert tier(frames, Policy()) == ("small", "4 GPUs on 2 nodes")
    assert tier(frames, Policy(tier="large"))[0] == "large"
    assert tier(Frames(0.0, {}), Policy())[0] == ""


def test_a_small_cluster_that_has_grown_is_told_so() -> None:
    frames = two_nodes(0.0)
    pool = frame(0.0, "pool", ["chat"], {}, requests_done_per_s=1500.0)
    busy = Frames(0.0, {**frames.by_kind, "pool": pool})
    strict = Policy(pools=(PoolPolicy("chat", slo_target=0.9995),))

    assert "medium architecture" in advice(Day(), busy, strict)[0]
    relaxed = advice(Day(), busy, Policy(pools=(PoolPolicy("chat", slo_target=0.99),)))
    assert not any("medium architecture" in said for said in relaxed)


def test_the_day_survives_a_restart() -> None:
    day = Day()
    lived(day=day)
    day.attested["quantisation_loss"] = [0.01, 1e6]

    again = decode(Day, json.loads(json.dumps(to_plain(day))))

    assert again == day


def test_every_item_is_explained_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/en/posture.md").read_text("utf-8")

    for name, item in ITEMS.items():
        assert f"`{name}`" in page
        assert item.title in page


def test_costly_inference_is_told_to_co_locate() -> None:
    assert "25% of what it earns" in advice(Day(), Frames(0.0, {}), Policy(), 0.25)[0]
    assert advice(Day(), Frames(0.0, {}), Policy(), 0.15) == []


def test_what_was_done_before_the_cause_was_known_counts_as_its_answer():
    """The engines of a hanging node were relieved at once; isolating the node a minute later is no slower recovery."""
    day = Day()
    relieved = Step("s1", Verb.REROUTE, Entity("engine", "a:8000"), 0.0, "", incident="i1")
    isolated = Step("s2", Verb.ISOLATE, Entity("node", "a"), 1.0, "", incident="i2")

    day.absorb(Outcome(relieved, Result.DONE), {"i1": 100.0}, 120.0)
    day.take_over("i1", "i2")
    day.take_over("i0", "i3")
    day.absorb(Outcome(isolated, Result.DONE), {"i2": 100.0, "i3": 100.0}, 200.0)

    assert day.answers == [[120.0, 20.0]]
    assert "i3" not in day.answered


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("gpu_lost", True), ("node_hang", True), ("replica_slow", False), ("gpu_slow", False)],
)
def test_recovery_is_that_of_failures_and_not_of_what_is_only_slower(kind: str, counts: bool) -> None:
    incident = Incident("i1", kind, Entity("engine", "a:8000"), 0.0, 0.0, Severity.WARNING, ())

    assert is_failure(incident) is counts
