"""Defects of well-known tools, each as a test: section 4 of the fault catalogue, from scrape to guard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_cluster import AUTO, NODES, Cluster, engine, gpu, node, settled

from actions.isolate import Isolate, Release
from daemon.core import Command
from daemon.model import Entity, Event, Hopeless, Scrape, Step, Target, Verb
from daemon.plan import HOLD_S
from daemon.policy import Budgets
from daemon.rules import RULES, RuleState
from daemon.settings import Settings
from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page
from detectors import DETECTORS
from detectors.fault import LIMITS

CATALOGUE = load_catalogue()


@pytest.mark.parametrize("signal", sorted(LIMITS))
def test_a_limit_fires_on_the_very_field_it_is_stated_for(signal: str) -> None:
    cluster = settled()

    value = {"fabric_health": 2.0, "fabric_manager_status": 4.0, "ecc_sbe_per_s": 400.0}.get(signal, 1.0)
    cluster.show(gpu(1, 2), **{signal: value})
    cluster.run(20)

    named = {
        e.name for d in cluster.decisions for f in d.findings for e in f.evidence if f.entity == gpu(1, 2)
    }
    stem = signal.removesuffix("_per_s")
    assert named & {signal, stem, "minutes_with_nvlink_errors"}, signal
    assert {f.entity for d in cluster.decisions for f in d.findings if f.detector == "fault"} == {gpu(1, 2)}


def test_corrected_errors_never_count_as_uncorrectable_ones() -> None:
    def claims(sbe: int, dbe: int) -> set[str]:
        cluster = Cluster()
        identity, pages = None, Page(CATALOGUE.wanted, CATALOGUE.keep)
        found = set()
        for k in range(30):
            body = (
                f'DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{{gpu="0",Hostname="n1"}} {sbe * k}\n'
                f'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{gpu="0",Hostname="n1"}} {dbe * k}\n'
            )
            reading = pages.parse(body.encode())
            identity = identity or CATALOGUE.identify(Target("n1:9400"), reading.keys)
            at = 15.0 * k
            cluster.builder.absorb(Scrape("n1:9400", at, identity.layout, identity.values(reading.values)))
            found |= {f.kind for f in cluster.core.tick(cluster.builder.build(at)).findings}
        return found

    assert claims(sbe=9000, dbe=0) == {"gpu_memory"}
    assert claims(sbe=0, dbe=1) == {"gpu_uncontained"}


def test_a_counter_that_starts_again_is_not_read_as_a_burst() -> None:
    cluster = Cluster()
    for signal in ("ecc_dbe_per_s", "ecc_sbe_per_s", "nvlink_replay_per_s"):
        cluster.totals[gpu(0), signal] = 1e9
    cluster.run(15)

    cluster.reset([gpu(0)])
    cluster.run(10)

    assert [f for d in cluster.decisions for f in d.findings] == []


def test_every_check_of_a_hard_fault_is_on_without_a_line_of_configuration() -> None:
    policy = Settings().policy()
    cluster = Cluster(policy)
    cluster.run(5)

    cluster.log(gpu(2), 79)
    cluster.run(1)

    assert set(cluster.core.detectors) == set(DETECTORS)
    assert all(r.state is RuleState.ON for r in RULES.values() if r.id.startswith("fault."))
    assert cluster.kinds() == {("gpu_lost", "gpu n2/gpu0")}


def test_a_pause_blocks_no_recovery_and_replays_nothing_old_when_it_ends() -> None:
    cluster = settled()
    cluster.log(gpu(2), 79)
    cluster.run(15 + HOLD_S / 60 - 5)
    assert cluster.isolated() == [gpu(2), node(2)]
    cluster.core.absorb(Command("pause", "", "ops", cluster.at))

    cluster.log(gpu(5), 48)
    cluster.run(20)
    cluster.core.absorb(Command("resume", "", "ops", cluster.at))
    cluster.run(60)

    # The fault of gpu(5) was over when the pause ended: nothing is done for a day-old event.
    assert cluster.isolated() == [gpu(2), node(2)]
    assert {s.target for _, s in cluster.done(Verb.RELEASE)} == {gpu(2), node(2)}


def test_a_spent_budget_blocks_no_recovery() -> None:
    one = Budgets(isolated_nodes_max=1, isolated_share_max=0.1, isolations_per_hour_max=2)
    cluster = settled(replace(AUTO, budgets=one))
    cluster.log(gpu(2), 79)
    cluster.run(5)
    cluster.log(gpu(5), 79)
    cluster.run(90)

    assert cluster.isolated()[:2] == [gpu(2), node(2)]
    assert {s.target for _, s in cluster.done(Verb.RELEASE)} >= {gpu(2), node(2)}


def test_a_share_never_forbids_the_only_node_a_small_pool_may_spare() -> None:
    small = Budgets(isolated_share_max=0.05, isolated_pool_share_max=0.05, isolated_nodes_max=4)
    cluster = settled(replace(AUTO, budgets=small))

    cluster.log(gpu(2), 79)
    cluster.log(gpu(5), 79)
    cluster.run(5)

    assert cluster.isolated() == [gpu(2), node(2)]  # one node of eight is more than 5 %, and still one may go


class World:
    """A backend that remembers who isolated what."""

    def __init__(self, **owners: str) -> None:
        self.owners = dict(owners)

    async def apply(self, step: Step) -> str:
        if step.verb is Verb.ISOLATE:
            self.owners[step.target.name] = step.arg("owner")
        else:
            del self.owners[step.target.name]
        return "done"

    async def observe(self, step: Step) -> dict[str, object]:
        owner = self.owners.get(step.target.name, "")
        return {"isolated": bool(owner), "owner": owner}


async def test_a_node_somebody_else_cordoned_is_never_given_back() -> None:
    world = World(n2="kim")
    cluster = settled()
    cluster.log(gpu(2), 79)
    cluster.run(5)
    isolate = next(s for _, s in cluster.done(Verb.ISOLATE) if s.target == node(2))
    release = replace(isolate, verb=Verb.RELEASE)

    with pytest.raises(Hopeless, match="already isolated by kim"):
        await Isolate(world).apply(isolate)
    with pytest.raises(Hopeless, match="isolated by kim"):
        await Release(world).apply(release)

    assert world.owners == {"n2": "kim"}


@pytest.mark.parametrize("code", [79, 48, 119, 74])
def test_every_isolation_has_a_way_out(code: float) -> None:
    cluster = settled()
    cluster.log(gpu(2), code)

    cluster.run(15 + 10 + HOLD_S / 60 + 30)

    assert cluster.isolated() != []
    assert {s.target for _, s in cluster.done(Verb.RELEASE)} == set(cluster.isolated())
    assert cluster.core.state.fleet.isolated == {}
    assert cluster.weights["n2:8000"] == 1.0


def test_the_stronger_answer_to_a_second_fault_is_applied() -> None:
    cluster = settled()
    cluster.log(gpu(2), 48)
    cluster.run(3)
    assert cluster.isolated() == [gpu(2)]

    cluster.log(gpu(2), 79)
    cluster.run(5)

    assert cluster.isolated() == [gpu(2), node(2)]


def test_the_stronger_answer_is_applied_to_what_a_milder_fault_could_explain() -> None:
    """A throttled GPU halves the weight of its engine; that the engine hangs as well is no part of it."""
    cluster = settled()
    cluster.show(gpu(2), throttle_bits=0x20, sm_clock_mhz=1300.0, temp_c=89.0)
    cluster.run(3)
    assert cluster.weights["n2:8000"] == 0.5

    cluster.show(engine(2), lb_sessions=90.0, lb_done_per_s=0.0, generation_tokens_s=0.0)
    cluster.run(2)

    assert cluster.weights["n2:8000"] == 0.0
    assert {i.kind for i in cluster.opened} == {"gpu_throttle", "engine_hung"}


def test_a_new_isolation_is_not_undone_by_the_recovery_before() -> None:
    cluster = settled()
    cluster.log(gpu(2), 79)
    cluster.run(15 + HOLD_S / 60)
    while not cluster.done(Verb.RELEASE):
        cluster.tick()

    cluster.log(gpu(2), 79)
    cluster.run(10)

    state = cluster.core.state
    assert node(2) in state.fleet.isolated or gpu(2) in state.fleet.isolated
    assert cluster.weights["n2:8000"] == 0.0
    assert next(f.text for f in cluster.decisions[-1].findings).startswith("loss number 2 within 30 days")


def test_reasons_that_alternate_do_not_put_the_repair_off() -> None:
    cluster = settled()
    begun = cluster.at

    for k in range(20):
        entity = gpu(2)
        cluster.absent = {entity} if k % 4 == 0 else set()
        if k % 2:
            cluster.queue.append(Event(cluster.at, entity, "gpu_lost", origin="nvml"))
        else:
            cluster.log(entity, 79)
        cluster.tick()

    when = next(at for at, s in cluster.done(Verb.ISOLATE) if s.target == node(2))
    assert when - begun <= 135.0
    assert [kind for kind, _ in cluster.kinds()] == ["gpu_lost"]


def test_the_gateway_outvotes_a_page_that_hangs() -> None:
    """Not of the list, and the worst of them: an engine isolated because its exporter is slow."""
    cluster = settled()

    cluster.down = {f"{n}:8000": "no answer within 12 s" for n in NODES[:1]}
    cluster.run(30)

    assert cluster.weights == {}
    assert np.isfinite(cluster.builder.build(cluster.at)["engine"].value("n0:8000", "lb_done_per_s"))
    assert engine(0) not in {i.scope for i in cluster.opened}
    assert Entity("target", "n0:8000") in {i.scope for i in cluster.opened}
