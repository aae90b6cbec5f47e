from dataclasses import replace

import numpy as np
import pytest

from daemon.incident import Book, Changes, update
from daemon.model import Entity, Finding, Severity
from daemon.patterns import PATTERNS
from daemon.topology import Topology

RACK = Topology(
    nodes=("n0", "n1", "n2", "n3"),
    gpus_on={n: (f"{n}/gpu0", f"{n}/gpu1") for n in ("n0", "n1", "n2", "n3")},
    engines_on={"n0": ("e0",), "n1": ("e1",)},
    engine_of={"n0/gpu0": "e0", "n0/gpu1": "e0", "n1/gpu0": "e1", "n1/gpu1": "e1"},
    gpus_of={"e0": ("n0/gpu0", "n0/gpu1"), "e1": ("n1/gpu0", "n1/gpu1")},
    node_of_engine={"e0": "n0", "e1": "n1"},
    pool_of={"e0": "chat", "e1": "chat"},
    place={n: {"rack": "r0", "leaf": "l0"} for n in ("n0", "n1", "n2", "n3")},
)


def claim(at: float, kind: str, entity: Entity, severity: Severity = Severity.WARNING) -> Finding:
    return Finding(at, "test", entity, kind, 0.9, severity)


def feed(book: Book, at: float, *findings: Finding, fresh: bool = True) -> Changes:
    return update(book, at, findings, RACK, lambda _: fresh)


def test_a_lost_gpu_opens_at_once_and_stays_one_incident():
    book, gpu = Book(), Entity("gpu", "n0/gpu0")

    first = feed(book, 0.0, claim(0.0, "gpu_lost", gpu))
    second = feed(book, 15.0, claim(15.0, "gpu_lost", gpu))

    assert [i.scope for i in first.opened] == [gpu]
    assert second == Changes()
    assert book.open["i00001"].seen == 15.0


def test_a_statistical_claim_must_last_before_anybody_hears_of_it():
    book, gpu = Book(), Entity("gpu", "n0/gpu0")
    patience = PATTERNS["gpu_throttle"].patience_s

    opened = [feed(book, t, claim(t, "gpu_throttle", gpu)).opened for t in (0.0, 0.5 * patience, patience)]

    assert [len(o) for o in opened] == [0, 0, 1]


def test_a_claim_that_pauses_starts_again():
    book, gpu = Book(), Entity("gpu", "n0/gpu0")
    feed(book, 0.0, claim(0.0, "pcie_downgrade", gpu))
    feed(book, 200.0)

    late = feed(book, 300.0, claim(300.0, "pcie_downgrade", gpu))

    assert late.opened == ()


def test_a_replica_slower_than_others_of_its_slow_version_is_an_incident_of_its_own():
    """The detector withholds what the version explains; what it still says once that is open is meant."""
    book, pool, engine = Book(), Entity("pool", "chat"), Entity("engine", "e0")
    feed(book, 0.0, claim(0.0, "replica_slow", engine))
    feed(book, 15.0, claim(15.0, "deploy_regression", pool))
    version = feed(book, 75.0, claim(75.0, "deploy_regression", pool))

    apart = feed(book, 600.0, claim(600.0, "replica_slow", engine), claim(600.0, "deploy_regression", pool))

    assert [i.cause for i in version.closed] == [f"explained by {version.opened[0].id} (deploy_regression)"]
    assert [(i.kind, i.scope) for i in apart.opened] == [("replica_slow", engine)]


def test_consequences_join_the_cause_and_open_nothing():
    book = Book()
    feed(book, 0.0, claim(0.0, "gpu_lost", Entity("gpu", "n0/gpu0")))

    after = feed(book, 15.0, claim(15.0, "engine_down", Entity("engine", "e0")))
    later = feed(book, 60.0, claim(60.0, "engine_down", Entity("engine", "e0")))

    assert after.opened == later.opened == ()
    assert {f.kind for f in book.open["i00001"].findings} == {"gpu_lost", "engine_down"}


def test_a_cause_found_late_swallows_its_consequence_and_says_so():
    book = Book()
    feed(book, 0.0, claim(0.0, "engine_hung", Entity("engine", "e0")))

    change = feed(book, 30.0, claim(30.0, "gpu_lost", Entity("gpu", "n0/gpu1")))

    assert [i.kind for i in change.opened] == ["gpu_lost"]
    assert change.closed[0].cause == "explained by i00002 (gpu_lost)"
    assert list(book.open) == ["i00002"]


GPU, ENGINE, POOL = Entity("gpu", "n0/gpu0"), Entity("engine", "e0"), Entity("pool", "chat")


@pytest.mark.parametrize(
    ("cause", "told_as", "effect"),
    [
        (("gpu_app", GPU), Severity.INFO, ("engine_down", ENGINE)),
        (("replica_slow", ENGINE), Severity.INFO, ("slo_burn", POOL)),
        (("gpu_throttle", GPU), Severity.WARNING, ("engine_hung", ENGINE)),
    ],
)
def test_what_is_critical_is_told_by_itself_where_its_cause_is_not(
    cause: tuple[str, Entity], told_as: Severity, effect: tuple[str, Entity]
) -> None:
    book = Book()
    for at in (0.0, 30.0):
        feed(book, at, claim(at, *cause, told_as))

    for at in (45.0, 75.0):
        feed(book, at, claim(at, *cause, told_as), claim(at, *effect, Severity.CRITICAL))

    assert {(i.kind, i.severity) for i in book.open.values()} == {
        (cause[0], told_as),
        (effect[0], Severity.CRITICAL),
    }


def test_what_was_announced_wakes_nobody() -> None:
    """A node that is taken back goes, with its GPUs and engines; that the objective is missed for it is news."""
    book, node, critical = Book(), Entity("node", "n0"), Severity.CRITICAL
    feed(book, 0.0, claim(0.0, "node_reclaimed", node))

    gone = feed(
        book, 120.0, claim(120.0, "node_hang", node, critical), claim(120.0, "engine_down", ENGINE, critical)
    )
    feed(book, 130.0, claim(130.0, "slo_burn", POOL, critical))
    late = feed(book, 160.0, claim(160.0, "slo_burn", POOL, critical))

    assert gone.opened == ()
    assert [i.kind for i in late.opened] == ["slo_burn"]


def test_what_an_innocent_cause_explains_pages_nobody() -> None:
    book, port = Book(), Entity("port", "n0/mlx5_0")
    for at in (0.0, 30.0):
        feed(book, at, claim(at, "incast", port, Severity.INFO))

    slow = feed(book, 45.0, claim(45.0, "replica_slow", ENGINE))

    assert slow.opened == ()


def test_a_milder_cause_found_late_does_not_end_the_page_of_what_it_explains() -> None:
    book = Book()
    feed(book, 0.0, claim(0.0, "engine_hung", ENGINE, Severity.CRITICAL))

    late = feed(book, 30.0, claim(30.0, "gpu_hang", GPU))
    later = feed(book, 60.0, claim(60.0, "gpu_hang", GPU))

    assert late.closed == later.closed == ()
    assert {i.kind for i in book.open.values()} == {"engine_hung", "gpu_hang"}


def test_what_hangs_after_its_cause_is_over_is_told_although_that_is_still_open() -> None:
    """An engine that hangs minutes after its GPU has come back; one that went down with the GPU and stays down is part of it."""
    book, critical = Book(), Severity.CRITICAL
    for at in (0.0, 15.0):
        feed(book, at, claim(at, "gpu_lost", GPU, critical), claim(at, "engine_down", ENGINE, critical))

    for at in np.arange(30.0, 300.0, 15.0):
        stays = feed(book, at, claim(at, "engine_down", ENGINE, critical))
        assert stays.opened == ()
    hangs = feed(book, 400.0, claim(400.0, "engine_hung", ENGINE, critical))

    assert [i.kind for i in hangs.opened] == ["engine_hung"]


def test_a_node_is_named_only_when_most_of_its_replicas_are_slow():
    crowded = replace(
        RACK,
        engines_on={"n0": ("e0", "e2", "e3", "e4")},
        node_of_engine=dict.fromkeys(("e0", "e2", "e3", "e4"), "n0"),
    )
    slow = [claim(0.0, "replica_slow", Entity("engine", e)) for e in ("e0", "e2", "e3")]

    two = update(Book(), 0.0, slow[:2], crowded, lambda _: True).opened
    three = update(Book(), 0.0, slow, crowded, lambda _: True).opened

    assert [i.scope for i in two] == [Entity("engine", "e0"), Entity("engine", "e2")]
    assert [i.scope for i in three] == [Entity("node", "n0")]


def test_half_a_rack_failing_together_is_one_incident():
    book = Book()
    findings = [claim(0.0, "node_hang", Entity("node", n)) for n in ("n0", "n1")]

    change = feed(book, 0.0, *findings)

    assert [(i.kind, i.scope) for i in change.opened] == [("node_hang", Entity("rack", "r0"))]


def test_two_gpus_of_a_rack_an_hour_apart_are_two_incidents():
    """What nobody has mended yet makes no rack sick when a second one slows."""
    book = Book()
    old, new = (claim(4000.0, "gpu_slow", Entity("gpu", f"n{k}/gpu0")) for k in (0, 1))
    old = replace(old, since=200.0)
    feed(book, 3600.0, old)
    feed(book, 3700.0, old)

    for at in (4000.0, 4100.0):
        feed(book, at, old, replace(new, since=3900.0))

    assert {i.scope for i in book.open.values()} == {old.entity, new.entity}


def test_two_gpus_of_a_rack_within_minutes_are_the_racks():
    book = Book()
    both = [
        replace(claim(4000.0, "gpu_slow", Entity("gpu", f"n{k}/gpu0")), since=3500.0 + 300.0 * k)
        for k in (0, 1)
    ]

    for at in (4000.0, 4100.0):
        feed(book, at, *both)

    assert {i.scope for i in book.open.values()} == {Entity("rack", "r0")}


def test_what_most_nodes_of_a_rack_state_at_once_needs_no_second_scrape():
    """A brake on one GPU may be a moment of its own; on most nodes of a rack it is the rack's."""
    braked = [claim(0.0, "gpu_throttle", Entity("gpu", f"{n}/gpu0")) for n in ("n0", "n1")]

    alone = feed(Book(), 0.0, braked[0])
    together = feed(Book(), 0.0, *braked)

    assert alone.opened == ()
    assert [i.scope for i in together.opened] == [Entity("rack", "r0")]


def test_one_incident_that_spreads_over_the_rack_becomes_the_racks():
    book = Book()
    feed(book, 0.0, claim(0.0, "node_hang", Entity("node", "n0")))

    change = feed(book, 15.0, *[claim(15.0, "node_hang", Entity("node", n)) for n in ("n0", "n1", "n2")])

    assert [i.scope for i in change.opened] == [Entity("rack", "r0")]
    assert [i.scope for i in change.closed] == [Entity("node", "n0")]


def test_silence_is_never_recovery():
    book, gpu = Book(), Entity("gpu", "n0/gpu0")
    feed(book, 0.0, claim(0.0, "gpu_lost", gpu))

    silent = feed(book, 10_000.0, fresh=False)
    spoken = feed(book, 10_015.0)

    assert silent.closed == ()
    assert [i.id for i in spoken.closed] == ["i00001"]


def test_an_incident_closes_only_after_its_quiet_time():
    book, gpu = Book(), Entity("gpu", "n0/gpu0")
    feed(book, 0.0, claim(0.0, "gpu_lost", gpu))
    quiet = PATTERNS["gpu_lost"].quiet_s

    assert feed(book, quiet - 1).closed == ()
    assert len(feed(book, quiet).closed) == 1


def test_every_pattern_a_detector_can_claim_has_words_and_explains_known_kinds():
    for kind, pattern in PATTERNS.items():
        assert pattern.title, kind
        assert pattern.explains <= PATTERNS.keys() - {kind}, kind
        assert replace(pattern) == pattern
