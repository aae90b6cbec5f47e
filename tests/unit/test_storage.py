"""What exporters of disks, mounts, Lustre and Ceph say becomes stores; what to read in before a rise."""

import numpy as np
import pytest

from daemon.coldstart import Start, Starts
from daemon.fleet import Fleet, Lease
from daemon.frame import FrameBuilder
from daemon.model import NAN, Frames, Scrape, Target
from daemon.outlook import Outlook, PoolOutlook
from daemon.policy import Policy
from daemon.storage import Store, stores, to_warm
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from daemon.topology import Topology

CATALOGUE = load_catalogue()
EPOCH = 1_780_272_000.0

NODE = """
node_disk_read_bytes_total{{device="nvme0n1"}} {b}
node_disk_reads_completed_total{{device="nvme0n1"}} {r}
node_disk_read_time_seconds_total{{device="nvme0n1"}} {t}
node_disk_io_time_seconds_total{{device="nvme0n1"}} {t}
node_disk_reads_completed_total{{device="dm-0"}} 999999
node_mountstats_nfs_total_read_bytes_total{{export="nas:/models",mountaddr="10.0.0.9",protocol="tcp"}} {b}
node_mountstats_nfs_operations_requests_total{{export="nas:/models",mountaddr="10.0.0.9",operation="READ",protocol="tcp"}} {r}
node_mountstats_nfs_operations_requests_total{{export="nas:/models",mountaddr="10.0.0.9",operation="WRITE",protocol="tcp"}} 0
node_mountstats_nfs_operations_requests_total{{export="nas:/models",mountaddr="10.0.0.9",operation="GETATTR",protocol="tcp"}} 77777
node_mountstats_nfs_operations_request_time_seconds_total{{export="nas:/models",mountaddr="10.0.0.9",operation="READ",protocol="tcp"}} {t}
node_mountstats_nfs_operations_transmissions_total{{export="nas:/models",mountaddr="10.0.0.9",operation="READ",protocol="tcp"}} {again}
node_mountstats_nfs_operations_major_timeouts_total{{export="nas:/models",mountaddr="10.0.0.9",operation="READ",protocol="tcp"}} 0
"""
CEPH = """
ceph_health_status 1.0
ceph_cluster_total_bytes 1000
ceph_cluster_total_used_bytes 900
ceph_osd_op_r{{ceph_daemon="osd.0"}} {r}
ceph_osd_op_r_out_bytes{{ceph_daemon="osd.0"}} {b}
ceph_osd_op_r_latency_sum{{ceph_daemon="osd.0"}} {t}
ceph_osd_op_r{{ceph_daemon="osd.1"}} {r}
ceph_osd_op_r_out_bytes{{ceph_daemon="osd.1"}} {b}
ceph_osd_op_r_latency_sum{{ceph_daemon="osd.1"}} {t}
"""
LUSTRE = """
lustre_read_bytes_total{{component="client",target="scratch-ffff9d01"}} {b}
lustre_read_samples_total{{component="client",target="scratch-ffff9d01"}} {r}
lustre_read_bytes_total{{component="ost",target="scratch-OST0000"}} 5
lustre_capacity_kilobytes{{component="client",target="scratch-ffff9d01"}} 200
lustre_available_kilobytes{{component="client",target="scratch-ffff9d01"}} 50
lustre_health_check{{component="health",target="lustre"}} 1
"""
CACHE = """
model_cache_hits_total{{cache="weights"}} {r}
model_cache_misses_total{{cache="weights"}} {t}
"""


def seen(*pages: tuple[Target, str]) -> Frames:
    """Frames after two scrapes ten seconds apart: 10,000 reads of a megabyte in between, a tenth of a second together."""
    builder = FrameBuilder(Policy())
    for target, text in pages:
        page = Page(CATALOGUE.wanted, CATALOGUE.keep)
        identity = None
        for k, numbers in enumerate(
            ({"b": 0, "r": 0, "t": 0, "again": 0}, {"b": 1e10, "r": 1e4, "t": 10, "again": 10500})
        ):
            reading = page.parse(text.format(**numbers).encode())
            identity = identity or CATALOGUE.identify(target, reading.keys)
            values = identity.values(reading.values)
            builder.absorb(Scrape(target.address, EPOCH + 10.0 * k, identity.layout, values))
    return builder.build(EPOCH + 10.0)


def node(name: str) -> Target:
    return Target(f"{name}:9100", labels=(("node", name),))


def only(found: tuple[Store, ...], source: str) -> Store:
    (store,) = [s for s in found if s.source == source]
    return store


def test_disks_and_mounts_of_all_nodes_become_stores() -> None:
    found = stores(seen((node("n01"), NODE), (node("n02"), NODE)))

    disk, mount = only(found, "nvme"), only(found, "nfs")
    assert len(found) == 2
    assert (disk.name, disk.nodes, disk.read_bytes_s, disk.busy_ratio) == ("", 2, 2e9, 1.0)
    assert (mount.name, mount.nodes, mount.errors_per_s) == ("nas:/models", 2, 0.0)
    assert mount.read_time_s == pytest.approx(0.001)
    assert mount.resent_ratio == pytest.approx(0.05)
    assert mount.busy_ratio != mount.busy_ratio


def test_a_ceph_cluster_is_one_store_of_no_node_of_ours() -> None:
    frames = seen((Target("mgr:9283"), CEPH))
    ceph = only(stores(frames), "ceph")

    assert (ceph.name, ceph.health, ceph.read_bytes_s) == ("ceph", 1.0, 2e9)
    assert ceph.free_ratio == pytest.approx(0.1)
    assert set(frames["store"].facts.get("node", ("",))) == {""}


def test_lustre_clients_speak_of_their_filesystem() -> None:
    found = stores(seen((node("n01"), LUSTRE)))

    scratch = next(s for s in found if s.name == "scratch")
    assert (scratch.read_bytes_s, scratch.free_ratio) == (1e9, 0.25)
    assert scratch.read_time_s != scratch.read_time_s
    assert next(s for s in found if s.name == "lustre").health == 0.0


def test_a_cache_tells_its_share_of_hits() -> None:
    cache = only(stores(seen((node("n01"), CACHE))), "cache")

    assert cache.hit_ratio == pytest.approx(1e4 / (1e4 + 10))


def test_without_telemetry_there_is_no_store() -> None:
    assert stores(Frames(EPOCH, {})) == ()


# -- what to read in ------------------------------------------------------------------------------------------


def fleet_of(nodes: int) -> Topology:
    gpus = {f"n{k}": tuple(f"n{k}/gpu{g}" for g in range(8)) for k in range(nodes)}
    return Topology(
        nodes=tuple(gpus),
        gpus_on=gpus,
        engine_of={g: "n0:8000" for g in gpus["n0"]},
        node_of_engine={"n0:8000": "n0"},
        pool_of={"n0:8000": "chat"},
    )


def outlook_of(needed: list[float]) -> Outlook:
    paths = np.tile(np.array(needed), (80, 1))
    part = PoolOutlook(paths, 8, 1.0)
    levels = {0.5: paths[0] * 8, 0.9: paths[0] * 8, 0.95: paths[0] * 8}
    return Outlook(EPOCH, 3600.0, levels, 32.0, EPOCH, pools={"chat": part}, paths=paths * 8)


def started(source: str, node: str, took: float) -> Start:
    return Start(EPOCH - 3600.0, took, NAN, source, node)


FAR = Starts(kept={"chat": [started("nfs", "n1", 120.0), started("nvme", "n1", 50.0)]})


def test_before_a_rise_the_nodes_that_have_not_had_the_weights_are_named() -> None:
    (wish,) = to_warm(EPOCH, fleet_of(4), Fleet(), Policy(), outlook_of([1, 1, 3, 3, 2]), FAR)

    # Two more are needed: one finds the weights on n1, the other would read them from afar.
    assert (wish.pool, wish.replicas, wish.nodes, wish.saves_s) == ("chat", 2, ("n2",), 70.0)
    assert wish.at == EPOCH + 2 * 3600.0
    assert "chat needs 2 replicas more by 02:00 UTC" in wish.text


@pytest.mark.parametrize(
    "needed", [[1, 1, 1, 1], [1] * 7 + [4], [3, 1, 1, 1]], ids=["no rise", "too far ahead", "under way"]
)
def test_without_a_rise_near_enough_nothing_is_wished(needed: list[float]) -> None:
    assert to_warm(EPOCH, fleet_of(4), Fleet(), Policy(), outlook_of(needed), FAR) == ()


def test_what_is_lent_is_not_read_in_on() -> None:
    fleet = Fleet(leases={"n2": Lease(EPOCH, EPOCH + 9e3, 8.0), "n3": Lease(EPOCH, EPOCH + 9e3, 8.0)})

    assert to_warm(EPOCH, fleet_of(4), fleet, Policy(), outlook_of([1, 1, 3]), FAR) == ()


def test_a_pool_whose_starts_were_not_seen_to_read_from_afar_is_left_alone() -> None:
    near = Starts(kept={"chat": [started("nvme", "n1", 50.0), started("", "n1", 90.0)]})

    assert to_warm(EPOCH, fleet_of(4), Fleet(), Policy(), outlook_of([1, 1, 3]), near) == ()
