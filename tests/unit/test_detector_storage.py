"""Slow and failing storage: the store, one node's mount, one disk, and nobody else."""

from small_frames import frame, frames, kinds

from daemon.model import Finding, Frames
from detectors.storage import ADOPT_S, StorageDetector

TICK = 15.0
NODES = [f"n{k:02d}" for k in range(6)]


def stores(
    at: float, mount_s: dict[str, float], disk_s: dict[str, float] | None = None, **more: float
) -> Frames:
    """Every node reads 40 times a second from its mount and 100 times from its disk, each so many seconds."""
    rows, facts = {}, {}
    for node in NODES:
        name = f"{node}/nas:/models"
        rows[name] = {
            "reads_per_s": 40.0,
            "writes_per_s": 10.0,
            "read_s_per_s": 40.0 * mount_s.get(node, mount_s["*"]),
        }
        rows[name] |= {"errors_per_s": 0.0, "resent_per_s": 50.0} | more
        facts[name] = {"node": node, "source": "nfs", "share": "nas:/models"}
        took = (disk_s or {}).get(node, 0.0004)
        rows[f"{node}/nvme0n1"] = {"reads_per_s": 100.0, "writes_per_s": 5.0, "read_s_per_s": 100.0 * took}
        facts[f"{node}/nvme0n1"] = {"node": node, "source": "nvme", "share": ""}
    return frames(at, frame("store", at, rows, facts))


def after_half_an_hour(detector: StorageDetector) -> float:
    """Learns what is usual; nothing is claimed meanwhile. Returns the time of the next tick."""
    for k in range(120):
        assert detector.update(stores(TICK * k, {"*": 0.003})) == []
    return TICK * 120


def said(detector: StorageDetector, given: Frames) -> list[Finding]:
    return detector.update(given)


def test_a_store_that_is_slow_for_everybody_is_one_claim_about_the_store() -> None:
    detector = StorageDetector()
    at = after_half_an_hour(detector)

    (finding,) = said(detector, stores(at, {"*": 0.024}))

    assert (finding.rule, str(finding.entity)) == ("storage.shared_slow", "storage nas:/models")
    assert finding.evidence[0].value == 24.0
    assert finding.evidence[0].peer == 3.0


def test_a_store_that_is_slow_for_one_node_is_that_nodes_mount() -> None:
    detector = StorageDetector()
    at = after_half_an_hour(detector)

    (finding,) = said(detector, stores(at, {"*": 0.003, "n03": 0.060}))

    assert (finding.rule, str(finding.entity)) == ("storage.mount_slow", "store n03/nas:/models")


def test_one_slow_disk_is_named_and_does_not_become_the_usual() -> None:
    detector = StorageDetector()
    at = after_half_an_hour(detector)

    for k in range(240):
        found = said(detector, stores(at + TICK * k, {"*": 0.003}, {"n02": 0.020}))

    assert [(f.rule, str(f.entity), f.since) for f in found] == [
        ("storage.disk_slow", "store n02/nvme0n1", at)
    ]


def test_a_read_that_nobody_waits_for_is_no_claim_however_much_it_grew() -> None:
    detector = StorageDetector()
    for k in range(120):
        detector.update(stores(TICK * k, {"*": 0.0005}))

    assert said(detector, stores(TICK * 120, {"*": 0.005})) == []


def test_before_the_usual_is_known_nothing_is_slow() -> None:
    detector = StorageDetector()

    assert [said(detector, stores(TICK * k, {"*": 0.5})) for k in range(40)] == [[]] * 40


def test_what_lasts_for_hours_becomes_the_usual() -> None:
    detector = StorageDetector()
    at = after_half_an_hour(detector)
    ticks = int((ADOPT_S + 4 * 3600.0) / TICK)

    found = [said(detector, stores(at + TICK * k, {"*": 0.024})) for k in range(ticks)]

    assert found[0] != []
    assert found[-1] == []


def test_requests_that_find_no_answer_are_told_of_the_store() -> None:
    detector = StorageDetector()

    (finding,) = said(detector, stores(0.0, {"*": 0.003}, errors_per_s=0.5))

    assert (finding.rule, str(finding.entity)) == ("storage.errors", "storage nas:/models")


def test_requests_sent_again_are_told_and_a_few_are_not() -> None:
    assert kinds(said(StorageDetector(), stores(0.0, {"*": 0.003}, resent_per_s=55.0))) == [
        ("store_errors", "storage nas:/models")
    ]
    assert said(StorageDetector(), stores(0.0, {"*": 0.003}, resent_per_s=50.2)) == []


def test_a_storage_cluster_in_error_is_critical_and_a_warning_of_its_own_is_not_ours() -> None:
    def ceph(health: float) -> Frames:
        rows = {"ceph": {"health": health}, "ceph/osd.1": {"reads_per_s": 9.0, "read_s_per_s": 0.01}}
        facts = {name: {"source": "ceph", "share": "ceph"} for name in rows}
        return frames(0.0, frame("store", 0.0, rows, facts))

    (finding,) = said(StorageDetector(), ceph(2.0))

    assert (finding.severity, str(finding.entity)) == ("critical", "storage ceph")
    assert said(StorageDetector(), ceph(1.0)) == []


def test_a_late_start_is_told_and_a_usual_one_is_not() -> None:
    def last_took(seconds: float) -> Frames:
        row = {"cold_start_last_s": seconds, "cold_start_p50_s": 70.0}
        return frames(0.0, frame("pool_start", 0.0, {"chat": row}))

    assert kinds(said(StorageDetector(), last_took(190.0))) == [("start_slow", "pool chat")]
    assert said(StorageDetector(), last_took(110.0)) == []
