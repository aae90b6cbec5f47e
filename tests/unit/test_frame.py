import math

import numpy as np
import pytest

from daemon.frame import FrameBuilder
from daemon.histogram import describe
from daemon.model import Entity, Fact, Layout, Scrape, Series, Shape
from daemon.policy import Policy, PoolPolicy
from daemon.sweep import combine, rate

GPU = Entity("gpu", "n1/gpu0")
ENGINE = Entity("engine", "n1:8000")


def scrape(layout: Layout, at: float, *values: float) -> Scrape:
    return Scrape(layout.target, at, layout, np.array(values))


def test_a_counter_becomes_a_rate_and_a_reset_becomes_unknown():
    layout = Layout("t", (Series("ecc_sbe_per_s", GPU, Shape.COUNTER),))
    builder = FrameBuilder(Policy())

    seen = []
    for at, value in ((0.0, 100.0), (10.0, 150.0), (20.0, 5.0), (30.0, 25.0)):
        builder.absorb(scrape(layout, at, value))
        seen.append(builder.build(at)["gpu"].value("n1/gpu0", "ecc_sbe_per_s"))

    assert math.isnan(seen[0])
    assert seen[1] == 5.0
    assert math.isnan(seen[2])
    assert seen[3] == 2.0


def test_a_32_bit_counter_that_wraps_keeps_counting():
    assert rate(np.array([2.0**32 - 6]), np.array([4.0]), 5.0) == pytest.approx([2.0])


def test_what_is_not_scraped_any_more_is_unknown_and_not_zero():
    layout = Layout("t", (Series("temp_c", GPU),))
    builder = FrameBuilder(Policy(stale_s=60.0))
    builder.absorb(scrape(layout, 0.0, 55.0))

    fresh, stale = builder.build(50.0)["gpu"], builder.build(61.0)["gpu"]

    assert fresh.value("n1/gpu0", "temp_c") == 55.0
    assert math.isnan(stale.value("n1/gpu0", "temp_c"))
    assert stale.age_s[0] == 61.0


def test_a_last_code_gauge_speaks_only_when_it_changes():
    layout = Layout("t", (Series("xid_code", GPU, Shape.LAST_CODE),))
    builder = FrameBuilder(Policy())

    events = []
    for at, code in ((0.0, 31.0), (10.0, 31.0), (20.0, 79.0), (30.0, 79.0)):
        builder.absorb(scrape(layout, at, code))
        events.append([(e.kind, e.code) for e in builder.build(at).events])

    assert events == [[], [], [("xid", 79.0)], []]


def test_series_that_mean_one_signal_are_added_and_missing_ones_ignored():
    values = np.array([2.0, 3.0, np.nan, np.nan, 7.0, 9.0])

    total = combine(values, np.array([0, 0, 1, 2, 2, 2]), np.array([False, False, True]))

    assert total[0] == 5.0
    assert math.isnan(total[1])
    assert total[2] == 9.0


def test_histogram_quantiles_agree_with_hand_computation():
    edges = np.array([[0.1, 0.2, 0.4, np.inf]])
    counts = np.array([[0.0, 50.0, 90.0, 100.0]])

    mean, p50, p95, floor, over, per_s = describe(
        edges, counts, np.array([[25.0, 100.0]]), np.array([0.3]), 50.0
    )[0]

    assert mean == 0.25
    assert p50 == pytest.approx(0.2)
    assert p95 == 0.4  # beyond the last finite edge: the edge, as Prometheus says
    assert math.isnan(floor)
    assert over == pytest.approx(0.3)
    assert per_s == 2.0


def test_a_quantile_below_the_first_bucket_says_so():
    *_, floor, _, _ = describe(
        np.array([[0.3, np.inf]]), np.array([[99.0, 100.0]]), np.array([[1.0, 100.0]]), np.array([0.2]), 10.0
    )[0]

    assert floor == 0.3


def test_the_pace_of_requests_counts_as_late_from_the_next_edge_on():
    """80 of 100 requests lie between 50 and 75 ms, 5 above: with an objective of 60 ms those 5 are late for certain."""
    series = tuple(Series("tpot_s", ENGINE, Shape.BUCKET, le) for le in (0.05, 0.075, math.inf))
    layout = Layout("n1:8000", (*series, Series("running", ENGINE)), (Fact(ENGINE, "pool", "chat"),))
    builder = FrameBuilder(Policy(pools=(PoolPolicy("chat", itl_slo_s=0.06),), slo_window_s=30.0))
    for at, low, middle, count in ((0.0, 0.0, 0.0, 0.0), (15.0, 15.0, 95.0, 100.0)):
        builder.absorb(scrape(layout, at, low, middle, count, 3.0))
        engines = builder.build(at)["engine"]

    assert engines.value("n1:8000", "tpot_over_ratio") == pytest.approx(0.05)


def test_histograms_are_taken_over_the_window_and_survive_a_reset():
    series = (
        Series("itl_s", ENGINE, Shape.BUCKET, 0.1),
        Series("itl_s", ENGINE, Shape.BUCKET, math.inf),
        Series("itl_s", ENGINE, Shape.SUM),
        Series("itl_s", ENGINE, Shape.COUNT),
        Series("running", ENGINE),
    )
    layout = Layout("n1:8000", series, (Fact(ENGINE, "pool", "chat"),))
    builder = FrameBuilder(Policy(slo_window_s=30.0))
    means = []
    for at, count, total in (
        (0.0, 1000.0, 900.0),
        (15.0, 1100.0, 905.0),
        (30.0, 1200.0, 915.0),
        (45.0, 10.0, 5.0),
        (60.0, 20.0, 5.4),
    ):
        builder.absorb(scrape(layout, at, count, count, total, count, 3.0))
        means.append(builder.build(at)["engine"].value("n1:8000", "itl_mean_s"))

    assert math.isnan(means[0])
    assert means[1] == pytest.approx(0.05)
    assert means[2] == pytest.approx(15.0 / 200)
    assert means[3] == pytest.approx(0.1)  # nothing is known of the interval with the reset
    assert means[4] == pytest.approx(0.04)


def test_engines_are_summed_into_their_pool_and_gpus_find_their_engine():
    layout = Layout(
        "n1:8000",
        (Series("running", ENGINE), Series("waiting", ENGINE)),
        (Fact(ENGINE, "model", "llama"), Fact(ENGINE, "node", "n1"), Fact(ENGINE, "gpus", "0,1")),
    )
    gpus = Layout("n1:9400", (Series("temp_c", GPU), Series("temp_c", Entity("gpu", "n1/gpu7"))))
    builder = FrameBuilder(Policy())
    builder.absorb(scrape(layout, 0.0, 4.0, 2.0))
    builder.absorb(scrape(gpus, 0.0, 50.0, 51.0))

    frames = builder.build(0.0)

    assert frames["pool"].entities == ("llama",)
    assert frames["pool"].value("llama", "concurrency") == 6.0
    assert frames["gpu"].fact("n1/gpu0", "engine") == "n1:8000"
    assert frames["gpu"].fact("n1/gpu7", "engine") == ""


def test_a_failed_scrape_shows_in_the_target_frame_with_its_error():
    builder = FrameBuilder(Policy())
    builder.absorb(Scrape("n1:9400", 0.0, None, None, error="connection refused"))

    target = builder.build(1.0)["target"]

    assert target.value("n1:9400", "up") == 0.0
    assert target.fact("n1:9400", "error") == "connection refused"


def test_a_target_that_left_discovery_is_forgotten_while_others_speak():
    first = Layout("a", (Series("running", ENGINE), Series("kv_used_ratio", ENGINE)))
    other = Layout("b", (Series("running", Entity("engine", "n2:8000")),))
    builder = FrameBuilder(Policy(stale_s=30.0))
    builder.absorb(scrape(first, 0.0, 1.0, 0.5))
    builder.absorb(scrape(other, 0.0, 2.0))

    builder.absorb(scrape(other, 200.0, 3.0))
    frames = builder.build(200.0)

    assert frames["engine"].entities == ("n2:8000",)
    assert frames["engine"].value("n2:8000", "running") == 3.0
    assert frames["target"].entities == ("b",)


def test_silence_of_everything_forgets_nothing():
    layout = Layout("a", (Series("running", ENGINE),))
    builder = FrameBuilder(Policy(stale_s=30.0))
    builder.absorb(scrape(layout, 0.0, 1.0))

    frames = builder.build(3600.0)

    assert frames["engine"].entities == ("n1:8000",)
    assert math.isnan(frames["engine"].value("n1:8000", "running"))


def test_a_gpu_that_vanishes_from_a_living_page_stays_visible_with_nothing_measured():
    both = Layout(
        "n1:9400",
        (Series("temp_c", GPU), Series("temp_c", Entity("gpu", "n1/gpu1"))),
        (Fact(GPU, "sku", "H100"),),
    )
    one = Layout("n1:9400", (Series("temp_c", Entity("gpu", "n1/gpu1")),))
    other = Layout("n2:9400", (Series("temp_c", Entity("gpu", "n2/gpu0")),))
    builder = FrameBuilder(Policy(stale_s=30.0))
    builder.absorb(scrape(both, 0.0, 50.0, 51.0))
    builder.absorb(scrape(other, 0.0, 50.0))
    builder.absorb(scrape(one, 15.0, 52.0))

    gpu = builder.build(200.0)["gpu"]  # n2 has left meanwhile: rows are given out anew
    builder.absorb(scrape(one, 215.0, 53.0))
    after = builder.build(400.0)["gpu"]

    assert math.isnan(gpu.value("n1/gpu0", "temp_c"))
    assert gpu.fact("n1/gpu0", "sku") == "H100"
    assert "n1/gpu0" in after.entities
    assert "n2/gpu0" not in after.entities


def test_the_operators_topology_overrides_discovery_and_reaches_the_gpus():
    node = Entity("node", "n1")
    layout = Layout("n1:9400", (Series("temp_c", GPU), Series("load1", node)), (Fact(node, "rack", "wrong"),))
    builder = FrameBuilder(Policy(places={"n1": {"rack": "r7", "leaf": "l2"}}))
    builder.absorb(scrape(layout, 0.0, 50.0, 1.0))

    frames = builder.build(0.0)

    assert frames["node"].fact("n1", "rack") == "r7"
    assert frames["gpu"].fact("n1/gpu0", "leaf") == "l2"
