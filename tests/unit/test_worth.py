"""What a token costs on each kind of GPU: at the same load, by what was measured, and what the planner makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_frames import frame, frames

from daemon.codec import decode, to_plain
from daemon.fleet import Fleet
from daemon.model import Frames, Step, Verb
from daemon.outlook import Outlook
from daemon.policy import Cost, Policy, PoolPolicy
from daemon.replica import Learnt
from daemon.resize import Memory, capacity, scale
from daemon.situation import Situation
from daemon.sizing import GUESS_S
from daemon.topology import Topology
from daemon.worth import LEAST_MINUTES, Worth, told

KIND = {
    "n0": "NVIDIA H100 80GB HBM3",
    "n1": "NVIDIA A100-SXM4-80GB",
    "n2": "NVIDIA H100 80GB HBM3",
    "n3": "NVIDIA A100-SXM4-80GB",
}
GPUS = {n: tuple(f"{n}/gpu{k}" for k in range(4)) for n in KIND}
ENGINES = {"a:8000": "n0", "b:8000": "n1"}
TOPOLOGY = Topology(
    nodes=tuple(KIND),
    gpus_on=GPUS,
    engines_on={n: (e,) for e, n in ENGINES.items()},
    gpus_of={e: GPUS[n] for e, n in ENGINES.items()},
    engine_of={g: e for e, n in ENGINES.items() for g in GPUS[n]},
    node_of_engine=ENGINES,
    pool_of=dict.fromkeys(ENGINES, "chat"),
)
H100, A100 = KIND["n0"], KIND["n1"]


def seen(minute: int, slow: float = 1.5, kinds: dict[str, str] = KIND) -> Frames:
    """The balancer gives both alike; on the A100 a token takes `slow` times as long, so that more requests run there."""
    at, load = 60.0 * minute, 16.0 + 4.0 * (minute % 3)
    rows = {
        "a:8000": {"running": load, "itl_mean_s": 0.02 + 0.0005 * load},
        "b:8000": {"running": slow * load, "itl_mean_s": slow * (0.02 + 0.0005 * slow * load)},
    }
    gpus = {g: {"power_w": 700.0 if "H100" in kinds[n] else 400.0} for n, own in GPUS.items() for g in own}
    skus = {g: {"sku": kinds[n]} for n, own in GPUS.items() for g in own}
    pool = {
        "running": 40.0,
        "waiting": 0.0,
        "concurrency": 40.0,
        "replicas": 2.0,
        "ready": 2.0,
        "requests_done_per_s": 2.0,
    }
    return frames(
        at,
        frame("engine", at, rows, {e: {"pool": "chat"} for e in rows}),
        frame("gpu", at, gpus, skus),
        frame("pool", at, {"chat": {**pool, "lb_sessions_per_s": 2.0, "over_slo_ratio": 0.0}}),
    )


def watched(minutes: int = 60, **given: object) -> Worth:
    worth = Worth()
    for minute in range(minutes):
        worth.watch(seen(minute, **given), TOPOLOGY)  # type: ignore[arg-type]
    return worth


def test_without_prices_a_gpu_is_a_gpu_and_the_slower_kind_costs_more() -> None:
    costs = watched().costs("chat", Cost())

    assert costs[H100] == 1.0
    assert costs[A100] == pytest.approx(1.5, rel=0.05)


def test_a_cheaper_gpu_may_be_worth_it_though_it_is_slower() -> None:
    prices = Cost(gpu_hour_by_kind=(("a100", 1.2), ("h100", 2.6)))

    costs = watched().costs("chat", prices)

    assert costs[A100] == 1.0
    assert costs[H100] == pytest.approx(2.6 / (1.5 * 1.2), rel=0.05)
    assert (
        told("chat", {"H100": 1.44, "A100": 1.0})
        == "chat: a token on H100 costs 1.44 times one on A100, as measured"
    )


def test_energy_counts_where_it_has_a_price() -> None:
    dear = Cost(gpu_hour=0.01, kwh=1.0, pue=1.2)

    assert watched().costs("chat", dear)[H100] > 1.1


@pytest.mark.parametrize(
    "given", [{"minutes": LEAST_MINUTES - 1}, {"slow": 1.03}, {"kinds": dict.fromkeys(KIND, H100)}]
)
def test_what_is_new_or_alike_or_of_one_kind_is_not_judged(given: dict[str, object]) -> None:
    assert watched(**given).costs("chat", Cost()) == {}  # type: ignore[arg-type]


def test_a_price_for_one_kind_alone_is_not_held_against_none() -> None:
    assert watched().costs("chat", Cost(gpu_hour_by_kind=(("h100", 2.6),))) == {}


def test_many_replicas_are_not_many_minutes() -> None:
    worth = Worth()
    for minute in range(LEAST_MINUTES - 1):
        shown = seen(minute)
        engine = shown["engine"]
        copies = [f"{name}{k}" for k in range(9) for name in engine.entities]
        rows = {n: {s: engine.value(n[:-1], s) for s in engine.signals} for n in copies}
        more = replace(
            TOPOLOGY, pool_of=dict.fromkeys(rows, "chat"), gpus_of={n: TOPOLOGY.gpus_of[n[:-1]] for n in rows}
        )
        worth.watch(frames(shown.at, frame("engine", shown.at, rows), shown["gpu"]), more)

    assert worth.paces["chat"][H100].minutes == LEAST_MINUTES - 1
    assert worth.costs("chat", Cost()) == {}


def test_what_was_seen_survives_a_restart() -> None:
    memory = Memory(worth=watched())

    assert decode(Memory, to_plain(memory)).worth.costs("chat", Cost()) == memory.worth.costs("chat", Cost())


def steps(demand: float, cost: Cost, capacity_each: float = 20.0) -> list[Step]:
    now = seen(60)
    row = {
        "concurrency": demand,
        "running": demand,
        "waiting": 0.0,
        "replicas": 2.0,
        "ready": 2.0,
        "requests_done_per_s": 2.0,
    }
    pool = frame("pool", now.at, {"chat": {**row, "lb_sessions_per_s": 2.0, "over_slo_ratio": 0.0}})
    policy = Policy(pools=(PoolPolicy("chat", replicas_max=4),), cost=cost, spare_min=0)
    situation = Situation(
        at=now.at,
        frames=Frames(now.at, {**now.by_kind, "pool": pool}),
        incidents=(),
        topology=TOPOLOGY,
        fleet=Fleet(),
        policy=policy,
        forecasts={},
        outlook=Outlook(now.at, 3600.0, {}, 16.0, now.at),
    )
    learnt = Learnt(
        minutes=60,
        capacity=capacity_each,
        needs=[(now.at - 3600.0 + 60.0 * k, 1) for k in range(60)],
        stood=2,
        since=now.at - GUESS_S,
    )
    memory = Memory({"chat": learnt}, worth=watched())
    return [s for s in scale(situation, memory, capacity(situation, memory, {})) if s.verb is Verb.SCALE]


def test_a_pool_grows_where_a_token_is_cheap_and_says_so() -> None:
    (step,) = steps(50.0, Cost())

    assert step.arg("avoid") == "n1,n3"
    assert "; not in NVIDIA A100-SXM4-80GB, where a token costs 1.5" in step.reason


def test_a_pool_shrinks_where_a_token_is_dear() -> None:
    prices = Cost(gpu_hour_by_kind=(("a100", 1.2), ("h100", 2.6)))

    assert [s.arg("engine") for s in steps(2.0, Cost())] == ["b:8000"]
    assert [s.arg("engine") for s in steps(2.0, prices)] == ["a:8000"]


def test_alike_kinds_leave_everything_as_it_was() -> None:
    even = Cost(gpu_hour_by_kind=(("a100", 1.0), ("h100", 1.5)))

    assert [s.arg("avoid") for s in steps(50.0, even)] == [""]
