"""Vendor series become canonical signals of named entities."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.model import Entity, Layout, Shape, SourceError, Target
from daemon.telemetry.catalogue import Catalogue, load_catalogue
from daemon.telemetry.exposition import Key, Page
from daemon.telemetry.naming import host_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CATALOGUE = load_catalogue()


def read(
    text: str | bytes, target: Target, engines: dict[str, str] | None = None
) -> tuple[Layout, np.ndarray]:
    body = text if isinstance(text, bytes) else text.encode()
    reading = Page(CATALOGUE.wanted, CATALOGUE.keep).parse(body)
    identity = CATALOGUE.identify(target, reading.keys, engines)
    return identity.layout, identity.values(reading.values)


def combined(layout: Layout, values: np.ndarray) -> dict[tuple[str, str, str], float]:
    """(entity, signal, shape) -> the value as a frame would combine it; buckets left out."""
    found: dict[tuple[str, str, str], float] = {}
    for series, value in zip(layout.series, values.tolist(), strict=True):
        if series.shape is Shape.BUCKET:
            continue
        key = (series.entity.name, series.signal, series.shape.value)
        if key in found:
            found[key] = max(found[key], value) if series.combine == "max" else found[key] + value
        else:
            found[key] = value
    return found


def gauge(text: str, signal: str, target: Target, entity: str | None = None) -> float:
    rows = {(e, s): v for (e, s, _), v in combined(*read(text, target)).items()}
    return rows.get((entity or target.address, signal), math.nan)


def facts(layout: Layout, entity: Entity) -> dict[str, str]:
    return {fact.key: fact.value for fact in layout.facts if fact.entity == entity}


ENGINE = Target("10.0.0.7:8000")


def test_a_loaded_vllm_body_gives_the_canonical_signals() -> None:
    layout, values = read((GOLDEN / "vllm-0.32-loaded-1.txt").read_bytes(), ENGINE)

    found = {(signal, shape): v for (_, signal, shape), v in combined(layout, values).items()}

    assert found["running", "gauge"] == 16
    assert found["waiting", "gauge"] == 8
    assert found["waiting_deferred", "gauge"] == 0
    assert found["kv_used_ratio", "gauge"] == 1
    assert found["kv_blocks", "gauge"] == 200
    assert found["kv_block_tokens", "gauge"] == 32
    assert found["kv_capacity_tokens", "gauge"] == 6400
    assert found["prompt_tokens_s", "counter"] == 3595
    assert found["prompt_cached_tokens_s", "counter"] == 2688
    assert found["generation_tokens_s", "counter"] == 29255
    assert found["preemptions_per_s", "counter"] == 72
    assert found["requests_done_per_s", "counter"] == 35
    assert found["requests_failed_per_s", "counter"] == 0
    assert found["asleep", "gauge"] == 0
    assert found["ttft_s", "count"] == 51
    assert found["ttft_s", "sum"] == pytest.approx(38.2398, abs=1e-4)
    assert found["rss_bytes", "gauge"] == 653541376
    assert facts(layout, Entity("engine", ENGINE.address)) == {
        "engine": "vllm",
        "model": "tiny",
        "host": "10.0.0.7",
    }
    assert facts(layout, Entity("target", ENGINE.address)) == {"job": "vllm", "host": "10.0.0.7"}


def test_rates_between_two_loaded_bodies_agree_with_hand_computation() -> None:
    page = Page(CATALOGUE.wanted, CATALOGUE.keep)
    one, two = (page.parse((GOLDEN / f"vllm-0.32-loaded-{n}.txt").read_bytes()) for n in (1, 2))
    identity = CATALOGUE.identify(ENGINE, two.keys)

    first = combined(
        CATALOGUE.identify(ENGINE, one.keys).layout, CATALOGUE.identify(ENGINE, one.keys).values(one.values)
    )
    second = combined(identity.layout, identity.values(two.values))

    def grew(metric: str, *conditions: str) -> float:
        def total(number: int) -> float:
            lines = (GOLDEN / f"vllm-0.32-loaded-{number}.txt").read_text().splitlines()
            return sum(
                float(line.rsplit(" ", 1)[1])
                for line in lines
                if line.startswith(metric + "{") and (not conditions or any(c in line for c in conditions))
            )

        return total(2) - total(1)

    def rate(signal: str, shape: str = "counter") -> float:
        return second[ENGINE.address, signal, shape] - first[ENGINE.address, signal, shape]

    assert rate("generation_tokens_s") == grew("vllm:generation_tokens_total") > 0
    assert rate("prompt_tokens_s") == grew("vllm:prompt_tokens_total") > 0
    assert (
        rate("requests_done_per_s")
        == grew("vllm:request_success_total", '"stop"', '"length"', '"repetition"')
        > 0
    )
    assert rate("ttft_s", "count") == grew("vllm:time_to_first_token_seconds_count") > 0


def test_histogram_buckets_keep_their_upper_edges() -> None:
    layout, values = read((GOLDEN / "vllm-0.32-loaded-1.txt").read_bytes(), ENGINE)

    edges = [
        (s.le, v)
        for s, v in zip(layout.series, values.tolist(), strict=True)
        if s.signal == "ttft_s" and s.shape is Shape.BUCKET
    ]

    assert edges == sorted(edges)
    assert math.isinf(edges[-1][0])
    assert edges[-1][1] == 51


def test_a_histogram_that_looks_like_a_counter_is_no_signal() -> None:
    assert not CATALOGUE.wanted("vllm:iteration_tokens_total")
    assert not CATALOGUE.wanted("vllm:iteration_tokens_total_count")


@pytest.mark.parametrize(
    ("text", "signal", "expected"),
    [
        ('vllm_num_requests_running{engine="0"} 3\n', "running", 3),
        ("vllm:gpu_cache_usage_perc 0.4\n", "kv_used_ratio", 0.4),
        ("vllm:kv_cache_usage_perc 0.5\nvllm:gpu_cache_usage_perc 0.4\n", "kv_used_ratio", 0.5),
        ("vllm:num_preemptions 7\n", "preemptions_per_s", 7),
        ("vllm:num_preemptions 7\nvllm:num_preemptions_total 7\n", "preemptions_per_s", 7),
        ("vllm:num_requests_waiting 9\n", "waiting", 9),
        (
            'vllm:num_requests_waiting 9\nvllm:num_requests_waiting_by_reason{reason="capacity"} 4\n'
            'vllm:num_requests_waiting_by_reason{reason="deferred"} 5\n',
            "waiting",
            4,
        ),
        ('vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n', "running", 7),
        (
            'vllm:kv_cache_usage_perc{engine="0"} 0.3\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n',
            "kv_used_ratio",
            0.4,
        ),
        (
            'vllm:request_success_total{finished_reason="stop"} 1\nvllm:request_success_total{finished_reason="length"} 2\n'
            'vllm:request_success_total{finished_reason="abort"} 4\n',
            "requests_done_per_s",
            3,
        ),
        (
            'vllm:request_success_total{finished_reason="error"} 1\nvllm:request_success_total{finished_reason="abort"} 4\n',
            "requests_failed_per_s",
            5,
        ),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1\n', "kv_blocks", math.nan),
        ('vllm:engine_sleep_state{sleep_state="awake"} 0\n', "asleep", 1),
        ("sglang:token_usage 0.7\n", "kv_used_ratio", 0.7),
        (
            'sglang:prompt_tokens_total 9\nsglang:realtime_tokens_total{mode="prefill_compute"} 5\n'
            'sglang:realtime_tokens_total{mode="prefill_cache"} 2\nsglang:realtime_tokens_total{mode="decode"} 1\n',
            "prompt_tokens_s",
            7,
        ),
        ("trtllm_num_requests_completed_total 12\n", "requests_done_per_s", 12),
        ('nv_trt_llm_request_metrics{request_type="waiting",model="m"} 5\n', "waiting", 5),
        ("tgi_queue_size 2\n", "waiting", 2),
        ("ray_vllm_num_requests_running 2\n", "running", 2),
    ],
)
def test_engine_names_old_and_new(text: str, signal: str, expected: float) -> None:
    assert gauge(text, signal, ENGINE) == pytest.approx(expected, nan_ok=True)


def gpu(metric: str, value: float, **labels: str) -> str:
    inside = ",".join(f'{k}="{v}"' for k, v in {"gpu": "0", "Hostname": "n1", **labels}.items())
    return f"{metric}{{{inside}}} {value}\n"


@pytest.mark.parametrize(
    ("text", "signal", "expected"),
    [
        (gpu("DCGM_FI_DEV_GPU_UTIL", 40), "util_ratio", 0.4),
        (gpu("DCGM_FI_DEV_GPU_UTIL_RATIO", 0.4), "util_ratio", 0.4),
        (gpu("DCGM_FI_DEV_GPU_UTIL", 40) + gpu("DCGM_FI_DEV_GPU_UTIL_RATIO", 0.5), "util_ratio", 0.5),
        (gpu("DCGM_FI_DEV_GPU_TEMP", 61) + gpu("DCGM_FI_DEV_GPU_TEMP_CELSIUS", 61), "temp_c", 61),
        (gpu("DCGM_FI_DEV_GPU_TEMP", 61, pod="a") + gpu("DCGM_FI_DEV_GPU_TEMP", 61, pod="b"), "temp_c", 61),
        (gpu("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 5000), "energy_j_per_s", 5),
        (gpu("DCGM_FI_DEV_FB_USED", 2), "hbm_used_bytes", 2 * 2**20),
        (
            gpu("DCGM_FI_DEV_FB_USED", 2) + gpu("DCGM_FI_DEV_FB_FREE", 3) + gpu("DCGM_FI_DEV_FB_RESERVED", 1),
            "hbm_total_bytes",
            6 * 2**20,
        ),
        (
            gpu("DCGM_FI_DEV_FB_USED", 2, pod="a") + gpu("DCGM_FI_DEV_FB_USED", 2, pod="b"),
            "hbm_total_bytes",
            2 * 2**20,
        ),
        (gpu("DCGM_FI_DEV_FB_TOTAL", 8) + gpu("DCGM_FI_DEV_FB_USED", 2), "hbm_total_bytes", 8 * 2**20),
        (gpu("DCGM_FI_DEV_THERMAL_VIOLATION", 5e8), "thermal_violation_ratio", 0.5),
        (
            gpu("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", 4) + gpu("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", 8),
            "throttle_bits",
            4,
        ),
        (
            gpu("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", 1)
            + gpu("DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", 2),
            "nvlink_crc_per_s",
            3,
        ),
        (gpu("DCGM_FI_DEV_XID_ERROR", 79) + gpu("DCGM_FI_DEV_XID_ERRORS", 31), "xid_code", 79),
    ],
)
def test_gpu_names_and_units_old_and_new(text: str, signal: str, expected: float) -> None:
    assert gauge(text, signal, Target("10.0.0.7:9400"), "n1/gpu0") == pytest.approx(expected)


def test_gpu_rows_carry_what_is_known_of_the_card() -> None:
    text = gpu(
        "DCGM_FI_DEV_GPU_TEMP",
        61,
        UUID="GPU-1",
        modelName="NVIDIA H100",
        pci_bus_id="00000000:3B:00.0",
        pod="p-0",
    )

    layout, _ = read(text, Target("10.0.0.7:9400", labels=(("node", "n9"), ("rack", "r2"))))

    assert facts(layout, Entity("gpu", "n9/gpu0")) == {
        "uuid": "GPU-1",
        "sku": "NVIDIA H100",
        "pci": "00000000:3B:00.0",
        "pod": "p-0",
        "node": "n9",
    }
    assert facts(layout, Entity("node", "n9")) == {"rack": "r2"}


@pytest.mark.parametrize(
    ("text", "signal", "expected"),
    [
        (
            'node_infiniband_port_data_received_bytes_total{device="mlx5_0",port="1"} 8\n'
            'node_infiniband_data_received_bytes_total{device="mlx5_0",port="1"} 9\n',
            "rx_bytes_s",
            8,
        ),
        ('node_infiniband_data_received_bytes_total{device="mlx5_0",port="1"} 9\n', "rx_bytes_s", 9),
        ('node_ethtool_received_prio3_pause{device="rdma0"} 5\n', "rx_pause_per_s", 5),
        (
            'node_ethtool_rx_prio3_pause{device="rdma0"} 5\nnode_ethtool_rx_prio5_pause{device="rdma0"} 2\n',
            "rx_pause_per_s",
            7,
        ),
        ('node_ethtool_tx_prio0_pause_duration{device="rdma0"} 500000\n', "tx_pause_ratio", 0.5),
        (
            'node_ethtool_outbound_pci_stalled_wr{device="rdma0"} 30\nnode_ethtool_outbound_pci_stalled_rd{device="rdma0"} 10\n',
            "pcie_stall_ratio",
            0.3,
        ),
        (
            'node_ethtool_tx_pause_storm_warning_events{device="rdma0"} 1\nnode_ethtool_tx_pause_storm_error_events{device="rdma0"} 2\n',
            "pause_storm_per_s",
            3,
        ),
    ],
)
def test_port_names_meet_on_one_port(text: str, signal: str, expected: float) -> None:
    assert gauge(text, signal, Target("10.0.0.7:9100"), "10.0.0.7/mlx5_0") == pytest.approx(expected)


def test_a_second_port_of_a_card_is_another_port() -> None:
    layout, _ = read('node_infiniband_state_id{device="mlx5_0",port="2"} 4\n', Target("n1:9100"))

    assert [s.entity.name for s in layout.series] == ["n1/mlx5_0:2"]


SWITCH_PAGE = """\
infiniband_switch_port_transmit_data_bytes_total{guid="0x7cfe",port="10"} 36298026860928
infiniband_switch_port_transmit_wait_total{guid="0x7cfe",port="10"} 22730501
infiniband_switch_port_rate_bytes_per_second{guid="0x7cfe",port="10"} 1.25e+10
infiniband_switch_port_transmit_data_bytes_total{guid="0x7cfe",port="1"} 26006570014026
infiniband_switch_uplink_info{guid="0x7cfe",port="1",switch="l1",uplink="spine1",uplink_lid="1516",uplink_port="1",uplink_type="SW"} 1
infiniband_switch_uplink_info{guid="0x7cfe",port="10",switch="l1",uplink="n01 HCA-1",uplink_lid="134",uplink_port="1",uplink_type="CA"} 1
"""
"""As infiniband_exporter 0.6 writes it: counters by guid and port, and one row that says what the port faces."""


def test_a_switch_page_tells_its_ports_and_what_they_face() -> None:
    target = Target("fabric1:9315")
    layout, _ = read(SWITCH_PAGE, target)

    assert gauge(SWITCH_PAGE, "tx_bytes_s", target, "0x7cfe/10") == 36298026860928
    assert gauge(SWITCH_PAGE, "xmit_wait_per_s", target, "0x7cfe/10") == 22730501
    assert gauge(SWITCH_PAGE, "rate_bytes_s", target, "0x7cfe/10") == 1.25e10
    assert facts(layout, Entity("switchport", "0x7cfe/10")) == {
        "switch": "l1",
        "far": "n01 HCA-1",
        "far_port": "1",
        "far_kind": "CA",
    }
    assert facts(layout, Entity("switchport", "0x7cfe/1"))["far_kind"] == "SW"


def test_devices_that_carry_nothing_of_interest_make_no_ports() -> None:
    text = "".join(
        f'node_ethtool_rx_crc_errors_phy{{device="{d}"}} 1\n'
        for d in ("lo", "docker0", "veth12", "ifb0", "eth0")
    )

    layout, _ = read(text, Target("n1:9100"))

    assert [s.entity.name for s in layout.series] == ["n1/eth0"]


def test_a_real_node_page_counts_cores_from_the_idle_rows() -> None:
    found = combined(*read((GOLDEN / "node-exporter-1.5-real.txt").read_bytes(), Target("10.0.0.7:9100")))

    assert found["vm", "cpus", "gauge"] == 2
    assert found["vm", "cpu_idle_s_per_s", "counter"] == pytest.approx(3060.72 + 2805.86)
    assert found["vm", "mem_total_bytes", "gauge"] == 25276518400
    assert found["vm", "fs_readonly", "gauge"] == 0
    assert found["vm", "clock_s", "gauge"] == pytest.approx(1795456150.33)
    assert {name.split("/")[0] for name, _, _ in found} == {"vm"}  # as it calls itself, not its address
    assert not [key for key in found if key[1] == "rss_bytes"]


def test_haproxy_rows_speak_about_the_engines_behind_it() -> None:
    body = (GOLDEN / "haproxy-2.6-prometheus.txt").read_bytes()
    target = Target("10.0.0.1:8404", labels=(("engines", "engine0=10.0.0.7:8000"),))

    found = combined(*read(body, target, {"engines/engine1": "10.0.0.8:8000"}))

    assert found["10.0.0.7:8000", "lb_done_per_s", "counter"] == 426
    assert found["10.0.0.7:8000", "lb_sessions_per_s", "counter"] == 426
    assert found["10.0.0.7:8000", "lb_up", "gauge"] == 1
    assert found["10.0.0.8:8000", "lb_weight", "gauge"] == 100
    assert found["engines", "arrivals_per_s", "counter"] == 1253
    assert {e for e, _, _ in found} - {"engines", "serve", "stats"} == {"10.0.0.7:8000", "10.0.0.8:8000"}


def test_haproxy_says_of_a_pool_what_it_refused() -> None:
    text = (
        'haproxy_backend_requests_denied_total{proxy="bk_chat"} 17\n'
        'haproxy_backend_requests_denied_total{proxy="code"} 5\n'
        'haproxy_server_current_sessions{proxy="code",server="10.0.0.7:8000"} 4\n'
    )

    found = combined(*read(text, Target("lb:8404", labels=(("pools", "bk_chat=chat"),))))

    assert found["chat", "refused_per_s", "counter"] == 17
    assert found["code", "refused_per_s", "counter"] == 5


def test_a_server_named_after_its_address_needs_no_map() -> None:
    text = 'haproxy_server_current_sessions{proxy="p",server="10.0.0.7:8000"} 4\n'

    assert gauge(text, "lb_sessions", Target("lb:8404"), "10.0.0.7:8000") == 4


def test_target_labels_become_facts_of_the_engine() -> None:
    labels = {
        "pool": "chat",
        "role": "decode",
        "version": "v2",
        "gpus": "4",
        "node": "n1",
        "rack": "r1",
        "leaf": "l1",
    }

    layout, _ = read(
        'vllm:num_requests_running{model_name="m"} 1\n', Target("10.0.0.7:8000", labels=tuple(labels.items()))
    )

    known = facts(layout, Entity("engine", "10.0.0.7:8000"))
    assert known == {
        "engine": "vllm",
        "host": "10.0.0.7",
        "model": "m",
        "pool": "chat",
        "role": "decode",
        "version": "v2",
        "gpus": "4",
        "node": "n1",
    }
    assert facts(layout, Entity("node", "n1")) == {"rack": "r1", "leaf": "l1"}


def test_label_instance_names_the_engine() -> None:
    layout, _ = read(
        "vllm:num_requests_running 1\n", Target("10.0.0.7:18000", labels=(("instance", "chat-0"),))
    )

    assert layout.series[0].entity == Entity("engine", "chat-0")


def test_absent_is_unknown_and_never_zero() -> None:
    layout, values = read("vllm:num_requests_running NaN\n", ENGINE)

    assert [s.signal for s in layout.series] == ["running"]
    assert np.isnan(values[0])


def test_blind_spots_name_the_line_that_enables_the_signal() -> None:
    spots = {(s.kind, s.signal): s for s in CATALOGUE.blind_spots({"gpu": {"temp_c"}, "port": set()})}

    assert ("gpu", "temp_c") not in spots
    assert "DCGM_FI_DEV_POWER_VIOLATION, counter" in spots["gpu", "power_violation_ratio"].remedy
    assert "other versions call it DCGM_FI_DEV_POWER_USAGE" in spots["gpu", "power_w"].remedy
    assert "--collector.ethtool" in spots["port", "rx_pause_ratio"].remedy
    assert "nvml" in spots["gpu", "nvml_hang"].remedy
    assert not [kind for kind, _ in spots if kind == "engine"]
    assert all(spot.remedy for spot in spots.values())


def test_every_signal_is_exported_by_some_family_or_read_by_the_daemon() -> None:
    everything = CATALOGUE.blind_spots({kind: set() for kind in ("gpu", "node", "port", "engine")})

    assert [s for s in everything if not s.remedy] == []


@pytest.mark.parametrize("package", ["daemon", "detectors", "actions"])
def test_vendor_names_stand_in_the_catalogue_and_nowhere_else(package: str) -> None:
    sources = {path: path.read_text() for path in (ROOT / package).rglob("*.py")}

    found = [
        (path.name, name)
        for path, text in sources.items()
        for name in CATALOGUE.vendor_names()
        if name in text
    ]

    assert found == []


def test_a_family_that_names_an_unknown_signal_is_refused() -> None:
    text = "signals: {gpu: {}}\nfamilies: {x: {kind: gpu, prefixes: [x_], aliases: {warmth: [t]}}}\n"

    with pytest.raises(SourceError, match="family x names signal 'warmth'"):
        load_catalogue(text=text)


def test_the_catalogue_is_loaded_once_and_small() -> None:
    assert isinstance(CATALOGUE, Catalogue)
    assert len(CATALOGUE.vendor_names()) == len(set(CATALOGUE.vendor_names()))


def test_host_of_an_address() -> None:
    assert [host_of(a) for a in ("n1:9100", "[fe80::1]:9100", "n1", "fe80::1")] == [
        "n1",
        "fe80::1",
        "n1",
        "fe80::1",
    ]


label_words = st.sampled_from(
    ["", "0", "x", "abc", "+Inf", "nan", "mlx5_0", "eth0", "lo", "capacity", "a:1", "²"]
)
any_key = st.builds(
    lambda metric, labels: Key(metric, tuple(sorted(labels.items()))),
    st.sampled_from(sorted(CATALOGUE.vendor_names())),
    st.dictionaries(
        st.sampled_from(
            ["le", "gpu", "device", "port", "server", "num_gpu_blocks", "block_size", "reason", "Hostname"]
        ),
        label_words,
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_key, max_size=20, unique=True), st.sampled_from(["n1:1", "", "[::1]:9", "weird"]))
def test_strange_labels_never_raise_and_every_slot_has_a_value(keys: list[Key], address: str) -> None:
    identity = CATALOGUE.identify(Target(address), keys)

    values = identity.values(np.ones(len(keys)))

    assert len(values) == len(identity.layout.series)
    assert all(series.entity.name for series in identity.layout.series if address)
