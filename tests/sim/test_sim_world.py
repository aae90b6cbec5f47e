"""The simulated cluster keeps its own laws: determinism, conservation, monotone counters, honest pages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.model import Entity, Scrape, Shape
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from simulator.faults import Fault
from simulator.spec import WorldSpec
from simulator.world import World, default_spec

EPOCH = 1_754_300_000.0
ROOT = Path(__file__).resolve().parents[2]


def fingerprint(seed: int) -> str:
    world = World(default_spec(16), seed, EPOCH)
    world.inject(Fault("xid79", Entity("gpu", "n00/gpu1"), EPOCH + 200.0, 3600.0))
    digest = hashlib.sha256()
    for tick in range(60):
        world.advance(EPOCH + 15.0 * tick)
        for scrape in world.sweep():
            digest.update(f"{scrape.target} {scrape.at!r} {scrape.error} {len(scrape.events)}".encode())
            digest.update(b"" if scrape.values is None else scrape.values.tobytes())
    return digest.hexdigest()


def by_meaning(scrape: Scrape) -> dict[tuple[str, Entity, Shape, str], float]:
    assert scrape.layout is not None
    assert scrape.values is not None
    keys = [(s.signal, s.entity, s.shape, repr(s.le)) for s in scrape.layout.series]
    return dict(zip(keys, scrape.values.tolist(), strict=True))


def test_same_seed_gives_the_same_scrapes() -> None:
    assert fingerprint(5) == fingerprint(5)
    assert fingerprint(5) != fingerprint(6)


def test_scrapes_do_not_depend_on_the_hash_seed() -> None:
    code = "from tests.sim.test_sim_world import fingerprint; print(fingerprint(5))"
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "4711")
    }  # fmt: skip

    assert prints == {fingerprint(5) + "\n"}


@pytest.mark.parametrize("kind", ["xid79", "node-hang", "engine-hang", "traffic-burst", "kv-thrash"])
def test_every_request_is_finished_lost_or_in_flight(kind: str) -> None:
    entities = {
        "xid79": Entity("gpu", "n00/gpu0"), "node-hang": Entity("node", "n01"),
        "engine-hang": Entity("engine", "n00:8000"), "traffic-burst": Entity("pool", "chat"),
        "kv-thrash": Entity("pool", "chat"),
    }  # fmt: skip
    world = World(default_spec(32), 3, EPOCH)
    world.inject(Fault(kind, entities[kind], EPOCH + 300.0, 900.0))

    world.advance(EPOCH + 2400.0)

    books = world.ledger()
    assert books["requests_total"] > 5000
    accounted = books["requests_finished"] + books["requests_lost"] + books["requests_in_flight"]
    assert accounted == books["requests_total"]


def test_healthy_hours_lose_nothing_and_meet_the_objectives() -> None:
    world = World(default_spec(64), 1, EPOCH)

    world.advance(EPOCH + 2 * 3600.0)

    books = world.ledger()
    assert books["requests_lost"] == 0
    assert books["requests_slow"] < 0.01 * books["requests_total"]


def test_counters_never_go_back_but_for_resets() -> None:
    spec = default_spec(16)
    world = World(spec, 2, EPOCH)
    reset_at = EPOCH + 1400.0
    world.inject(Fault("counter-reset", Entity("target", "n00:9400"), reset_at, 60.0))
    world.inject(Fault("traffic-burst", Entity("pool", "chat"), EPOCH + 600.0, 600.0))
    before: dict[object, float] = {}
    went_back = set()

    # an odd pace, so that readings fall anywhere between physics steps
    for tick in range(250):
        world.advance(EPOCH + 7.3 * tick)
        for target in world.targets():
            for key, value in by_meaning(world.scrape(target.address)).items():
                if key[2] not in (Shape.GAUGE, Shape.LAST_CODE):
                    if value < before.get(key, 0.0):
                        went_back.add((target.address, round(world.at - reset_at, 1)))
                    before[key] = value

    assert {target for target, _ in went_back} == {"n00:9400"}
    assert all(-0.1 <= late < 15.0 for _, late in went_back)


def test_histograms_are_cumulative_and_end_at_their_count() -> None:
    world = World(default_spec(16), 2, EPOCH)
    world.advance(EPOCH + 600.0)

    for target in world.targets():
        if target.job not in ("vllm", "sglang"):
            continue
        scrape = world.scrape(target.address)
        assert scrape.layout is not None
        assert scrape.values is not None
        for name in ("ttft_s", "itl_s", "e2e_s", "queue_s"):
            parts = [
                (s, v) for s, v in zip(scrape.layout.series, scrape.values, strict=True) if s.signal == name
            ]
            buckets = [v for s, v in parts if s.shape is Shape.BUCKET]
            count = next(v for s, v in parts if s.shape is Shape.COUNT)
            assert np.all(np.diff(buckets) >= 0)
            assert buckets[-1] == count > 0


def test_text_pages_say_the_same_as_scrapes_in_process() -> None:
    catalogue = load_catalogue()
    world = World(default_spec(64), 1, EPOCH)
    world.inject(Fault("bad-cable", Entity("port", "n00/mlx5_0"), EPOCH + 100.0, 3600.0))
    world.inject(Fault("thermal-throttle", Entity("gpu", "n01/gpu2"), EPOCH + 100.0, 3600.0))
    world.advance(EPOCH + 1237.0)

    for target in world.targets():
        reading = Page(catalogue.wanted, catalogue.keep).parse(world.exposition(target.address).encode())
        meant = catalogue.identify(target, reading.keys)
        told = Scrape(target.address, world.at, meant.layout, meant.values(reading.values))
        scrape = world.scrape(target.address)

        sums: dict[object, float] = {}
        assert told.layout is not None
        assert told.values is not None
        for series, value in zip(told.layout.series, told.values.tolist(), strict=True):
            key = (series.signal, series.entity, series.shape, repr(series.le))
            # several lines of a page may mean one column, e.g. one for each processor
            sums[key] = (
                max(sums[key], value) if series.combine == "max" and key in sums else sums.get(key, 0) + value
            )
        expected = by_meaning(scrape)
        assert reading.dropped == 0
        assert {k: v for k, v in expected.items() if k not in sums} == {}
        np.testing.assert_allclose([sums[k] for k in expected], list(expected.values()), rtol=1e-6, atol=1e-6)
        assert scrape.layout is not None
        # Under which host a page was read is known of pages alone; here every engine is told its node.
        assert set(scrape.layout.facts) == {f for f in told.layout.facts if f.key != "host"}


def test_text_pages_are_valid_for_the_reference_parser() -> None:
    world = World(default_spec(16), 1, EPOCH)
    world.advance(EPOCH + 300.0)

    for target in world.targets():
        names = {family.name for family in text_string_to_metric_families(world.exposition(target.address))}
        assert len(names) >= 7, target


def test_layouts_are_the_same_object_while_series_are_unchanged() -> None:
    world = World(default_spec(16), 1, EPOCH)
    world.advance(EPOCH + 30.0)
    first = {s.target: s.layout for s in world.sweep() if not s.error}

    world.advance(EPOCH + 300.0)

    assert all(s.layout is first[s.target] for s in world.sweep() if not s.error and s.target in first)


def test_missed_readings_are_about_as_many_as_asked() -> None:
    spec = WorldSpec(nodes=8, pools=default_spec(64).pools, telemetry_loss=0.05)
    world = World(spec, 1, EPOCH)
    errors = []

    for tick in range(200):
        world.advance(EPOCH + 15.0 * tick)
        errors += [bool(s.error) for s in world.sweep()]

    assert 0.035 < np.mean(errors) < 0.065


def test_load_follows_day_night_and_weekend() -> None:
    world = World(default_spec(64), 1, EPOCH)

    history = world.history(weeks=2, step_s=900.0)

    for pool in world.spec.pools:
        at, rate = history[pool.name]["arrivals_per_s"]
        hour, weekday = (at / 3600.0) % 24, (np.floor(at / 86400.0) + 3) % 7
        work = weekday < 5
        peak = rate[work & (np.abs(hour - pool.peak_hour) < 1)].mean()
        night = rate[work & (np.abs((hour - pool.peak_hour) % 24 - 12) < 1)].mean()
        weekend = rate[~work & (np.abs(hour - pool.peak_hour) < 1)].mean()
        assert night / peak == pytest.approx(pool.night_ratio, rel=0.15)
        assert weekend / peak == pytest.approx(pool.weekend_ratio, rel=0.15)
        assert at[-1] < EPOCH <= at[-1] + 901.0


def test_history_goes_over_into_what_the_world_then_does() -> None:
    world = World(default_spec(64), 1, EPOCH)
    past = world.history(weeks=1, step_s=900.0)
    served = {p.name: 0.0 for p in world.spec.pools}

    world.advance(EPOCH + 3600.0)

    for pool in world.spec.pools:
        served[pool.name] = world.ledger()["pools"][pool.name]["requests_total"] / 3600.0
        at, rate = past[pool.name]["arrivals_per_s"]
        yesterday = rate[(at >= EPOCH - 86400.0) & (at < EPOCH - 86400.0 + 3600.0)].mean()
        assert served[pool.name] == pytest.approx(yesterday, rel=0.35)


def data_folder() -> Path:
    return Path(os.environ.get("TIDEWARDEN_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("name", ["azure_llm_2023_conv.csv", "mooncake_conversation_trace.jsonl"])
def test_recorded_traces_are_replayed_request_by_request(name: str) -> None:
    path = data_folder() / "traces" / name
    if not path.exists():
        pytest.skip("no request traces here")
    from simulator.load import read_trace

    at, _, _ = read_trace(str(path))
    spec = WorldSpec(nodes=8, pools=default_spec(64).pools, trace=str(path), trace_pool="chat")
    world = World(spec, 1, EPOCH)

    world.advance(EPOCH + 1800.0)

    pool = world.ledger()["pools"]["chat"]
    expected = int(((at >= 0.0) & (at < 1800.0)).sum())
    # what the warm-up left in flight counts as arrived
    assert expected <= pool["requests_total"] <= expected + 200


def test_a_file_that_is_no_trace_is_refused_with_its_name(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")

    with pytest.raises(ValueError, match=r"wrong\.csv: not a request trace"):
        World(WorldSpec(nodes=8, pools=default_spec(64).pools, trace=str(wrong), trace_pool="chat"), 1, EPOCH)
