"""What must never isolate: each row of section 3 of the fault catalogue, from scrape to guard."""

from __future__ import annotations

from dataclasses import replace

from small_cluster import AUTO, NODES, Cluster, engine, gpu, node, settled

from daemon.model import Entity, Severity
from daemon.policy import Maintenance

ALL_GPUS = [gpu(n, k) for n in range(8) for k in range(4)]


def test_a_quiet_cluster_of_this_kind_is_quiet() -> None:
    cluster = settled()
    cluster.run(60)

    assert cluster.kinds() == set()
    assert cluster.decisions[-1].findings == ()


def test_a_counter_reset_after_a_driver_reload_or_gpu_reset_raises_nothing() -> None:
    cluster = settled()
    for entity in ALL_GPUS[:4]:
        cluster.totals[entity, "ecc_dbe_per_s"] = 5.0
        cluster.totals[entity, "nvlink_crc_per_s"] = 900.0
    cluster.run(5)

    for _ in range(4):
        cluster.reset(ALL_GPUS[:4])
        cluster.run(3)

    assert cluster.kinds() == set()
    assert cluster.isolated() == []


def test_a_reboot_that_was_announced_isolates_nothing() -> None:
    cluster = settled()
    cluster.happens(node(2), "reboot", "reboot: Restarting system")
    pages = [f"n2:{port}" for port in (9400, 9100, 8000)]
    cluster.down = dict.fromkeys(pages, "no route to host")
    cluster.show(engine(2), lb_up=0.0, lb_done_per_s=0.0, lb_sessions=0.0)
    cluster.run(8)

    cluster.down = {}
    cluster.reset([gpu(2, k) for k in range(4)] + [node(2), engine(2)])
    cluster.show(engine(2), lb_up=1.0, lb_done_per_s=2.0, lb_sessions=20.0)
    cluster.run(30)

    assert cluster.isolated() == []
    assert not {kind for kind, _ in cluster.kinds()} & {"gpu_lost", "node_hang", "gpu_uncontained"}
    assert cluster.core.state.book.open == {}


def test_an_exporter_upgrade_that_renames_fields_isolates_nothing_and_is_told() -> None:
    cluster = settled()
    cluster.down = {"n1:9400": "connection refused"}
    cluster.run(1)
    cluster.down = {}
    cluster.reset([gpu(1, k) for k in range(4)])
    for k in range(4):
        cluster.show(gpu(1, k), power_w=float("nan"), sm_clock_mhz=float("nan"))
    cluster.run(10)

    assert cluster.isolated() == []
    assert ("field_lost", "node n1") in cluster.kinds()


def test_an_idle_node_is_left_alone() -> None:
    cluster = settled()
    for k in range(4):
        cluster.show(gpu(3, k), util_ratio=0.0, power_w=90.0, sm_clock_mhz=345.0, tensor_active_ratio=0.0,
                     pcie_link_width=4.0, throttle_bits=1.0)  # fmt: skip
    cluster.show(
        engine(3), running=0.0, generation_tokens_s=0.0, prompt_tokens_s=0.0, requests_done_per_s=0.0,
        lb_sessions=0.0, lb_sessions_per_s=0.0, lb_done_per_s=0.0, kv_used_ratio=0.0,
    )  # fmt: skip
    cluster.run(60)

    assert cluster.isolated() == []
    assert not any(i.scope.name.startswith("n3") for i in cluster.opened)


def test_one_application_crashing_on_many_gpus_accuses_no_gpu() -> None:
    cluster = settled()

    for _ in range(3):
        for entity in ALL_GPUS:
            cluster.log(entity, 31, "MMU Fault", app="vllm")
            cluster.log(entity, 45, "Ch 00000008", app="vllm")
        cluster.run(20)

    assert cluster.isolated() == []
    assert cluster.weights == {}
    assert cluster.kinds() == {("gpu_app", "pool chat")}
    assert {i.severity for i in cluster.opened} == {Severity.INFO}


def test_a_fleet_wide_slowdown_blames_no_node() -> None:
    cluster = settled()

    for entity in ALL_GPUS:
        cluster.show(entity, sm_clock_mhz=1300.0, throttle_bits=0x20)
    cluster.run(60)

    assert cluster.isolated() == []
    assert {scope.split()[0] for kind, scope in cluster.kinds() if kind == "gpu_throttle"} <= {
        "rack",
        "cluster",
    }
    assert any(kind == "gpu_throttle" for kind, _ in cluster.kinds())


def test_the_outage_of_one_exporter_is_no_fault_of_what_it_watches() -> None:
    cluster = settled()

    cluster.down = {"n4:9400": "connection refused", "n5:8000": "no answer within 12 s"}
    cluster.run(20)

    assert cluster.isolated() == []
    assert cluster.weights == {}
    assert cluster.kinds() == {("target_down", "target n4:9400"), ("target_down", "target n5:8000")}
    down = next(i for i in cluster.opened if i.scope.name == "n5:8000")
    assert down.findings[0].rejected == ("a fault of the engine: the gateway sees its requests complete",)


def test_a_planned_drain_is_nobodys_fault() -> None:
    window = Maintenance(100_000.0, 200_000.0, node(6), "new power supply")
    cluster = settled(replace(AUTO, maintenance=(window,)))
    cluster.show(
        engine(6), running=0.0, lb_sessions=0.0, lb_weight=0.0, generation_tokens_s=0.0, lb_done_per_s=0.0
    )
    cluster.run(5)

    cluster.leave("n6:8000")
    cluster.run(2)
    cluster.down = {f"n6:{port}": "connection refused" for port in (9400, 9100)}
    cluster.run(30)

    assert cluster.isolated() == []
    assert cluster.weights == {}


def test_a_mig_reconfiguration_is_no_lost_gpu() -> None:
    cluster = Cluster()
    cluster.leave("n7:8000")
    cluster.run(15)

    cluster.absent = {gpu(7, 1)}
    cluster.run(3)
    cluster.absent = set()
    cluster.reset([gpu(7, 1)])
    cluster.run(30)

    assert cluster.isolated() == []
    assert not any(kind == "gpu_lost" for kind, _ in cluster.kinds())


def test_a_sticky_xid_gauge_read_again_after_a_restart_says_nothing() -> None:
    cluster = Cluster(xids=dict.fromkeys(ALL_GPUS, 79.0))
    cluster.run(10)
    again = Cluster(at=cluster.at, xids=dict(cluster.xids))
    again.core.load(cluster.core.dump())

    again.run(30)
    again.down = {f"{n}:9400": "connection refused" for n in NODES[:1]}
    again.run(2)
    again.down = {}
    again.run(10)

    assert cluster.kinds() == set()
    assert {kind for kind, _ in again.kinds()} <= {"target_down"}
    assert again.isolated() == []


def test_a_lost_gpu_in_the_same_cluster_is_isolated() -> None:
    """What keeps the tests above honest: the same path does act when it must."""
    cluster = settled()

    cluster.log(gpu(2, 1), 79, "GPU has fallen off the bus.")
    cluster.absent = {gpu(2, 1)}
    cluster.run(5)

    assert cluster.isolated() == [gpu(2, 1), Entity("node", "n2")]
    assert cluster.weights == {"n2:8000": 0.0}
