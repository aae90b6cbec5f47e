"""Named days in the life of a cluster: which faults strike, where, when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from numpy.random import Generator

from daemon.model import Entity
from simulator.faults import Fault
from simulator.spec import WorldSpec
from simulator.storage import SHARE
from simulator.wiring import Wiring

Scenario = Callable[[WorldSpec, Generator], tuple[WorldSpec, list[Fault], float]]
"""(spec, rng) -> (spec to use, faults with `at` in seconds after the epoch, hours to run)"""

_SETTLED_S = 1800.0
"""Faults strike after half an hour, when baselines have been learnt."""


def _onset(rng: Generator, spread_s: float = 1800.0) -> float:
    return float(round(_SETTLED_S + rng.uniform(0.0, spread_s), 1))


def _first_gpus(spec: WorldSpec) -> int:
    """How many GPUs carry replicas at the start: they are placed from the first node on."""
    return min(spec.gpus, sum(pool.replicas * pool.tp for pool in spec.pools))


def _busy_gpu(spec: WorldSpec, rng: Generator) -> Entity:
    """A GPU that serves at the start: replicas fill the first nodes."""
    return Entity("gpu", Wiring(spec).gpus[int(rng.integers(_first_gpus(spec)))])


def _steady_gpu(spec: WorldSpec, rng: Generator) -> Entity:
    """A GPU of the pool whose replicas are largest: they begin on whole nodes, and there are few of them to give up for hours."""
    largest = max(range(len(spec.pools)), key=lambda k: spec.pools[k].tp)
    pool = spec.pools[largest]
    before = sum(p.replicas * p.tp for p in spec.pools[:largest])
    first = -(-before // pool.tp) * pool.tp
    return Entity("gpu", Wiring(spec).gpus[first + int(rng.integers(pool.replicas * pool.tp))])


def _busy_node(spec: WorldSpec, rng: Generator) -> Entity:
    return Entity("node", _busy_gpu(spec, rng).name.split("/")[0])


def _busy_port(spec: WorldSpec, rng: Generator) -> Entity:
    wiring = Wiring(spec)
    node = wiring.node(_busy_node(spec, rng).name)
    return Entity("port", wiring.ports[int(rng.choice(list(wiring.ports_of(node))))])


def _engine(spec: WorldSpec, rng: Generator) -> Entity:
    """The engine that sits on the first GPUs of some replica; the world places the first replicas the same way."""
    from simulator.world import World

    world = World(spec, 0, 0.0)
    engines = sorted(world.fleet.engines.values(), key=lambda e: e.address)
    peers = [e for e in engines if len(world.fleet.of_pool(e.pool)) >= 3] or engines
    return Entity("engine", peers[int(rng.integers(len(peers)))].address)


def _largest_pool(spec: WorldSpec) -> Entity:
    return Entity("pool", max(spec.pools, key=lambda pool: pool.replicas * pool.tp).name)


def healthy_day(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Nothing is wrong: tides, bursts, noise, lost scrapes."""
    return spec, [], 24.0


def xid79(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """One GPU that serves falls off the bus."""
    return spec, [Fault("xid79", _busy_gpu(spec, rng), _onset(rng), 3 * 3600.0)], 3.0


def thermal_throttle(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    size = float(rng.uniform(0.25, 0.5))
    return spec, [Fault("thermal-throttle", _busy_gpu(spec, rng), _onset(rng), 5400.0, size)], 3.0


def nic_downgrade(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    size = float(rng.choice([0.5, 0.25]))
    return spec, [Fault("nic-downgrade", _busy_port(spec, rng), _onset(rng), 5400.0, size)], 3.0


def pfc_storm(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    size = float(rng.uniform(0.7, 0.95))
    return spec, [Fault("pfc-storm", _busy_port(spec, rng), _onset(rng), 3600.0, size)], 3.0


def bad_cable(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    size = float(rng.uniform(20.0, 120.0))
    return spec, [Fault("bad-cable", _busy_port(spec, rng), _onset(rng), 5400.0, size)], 3.0


def slow_replica(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    size = float(rng.uniform(0.4, 0.9))
    return spec, [Fault("slow-replica", _engine(spec, rng), _onset(rng), 5400.0, size)], 3.0


def slow_stage(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """The widest replicas with three peers and more are cut into two pipeline stages; one of them takes longer for its layers."""
    from simulator.world import World

    widest = max((p for p in spec.pools if p.replicas > 3), key=lambda p: p.tp, default=spec.pools[-1])
    cut = widest.tp > 1
    built = replace(
        spec, pools=tuple(replace(p, pp=2) if cut and p.name == widest.name else p for p in spec.pools)
    )
    engines = World(built, 0, 0.0).fleet.of_pool(
        built.pools.index(next(p for p in built.pools if p.name == widest.name))
    )
    chosen = engines[int(rng.integers(len(engines)))].address
    stage = str(int(rng.integers(2))) if cut else "0"
    size = float(rng.uniform(0.25, 0.4))
    return (
        built,
        [Fault("slow-stage", Entity("engine", chosen), _onset(rng) + 3600.0, 5400.0, size, detail=stage)],
        4.0,
    )


def draft_drop(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A pool decodes speculatively; then its draft model guesses three in five tokens less well. No hardware is to blame."""
    name = (
        next(p.name for p in spec.pools if p.engine == "vllm") if len(spec.pools) > 1 else spec.pools[0].name
    )
    pools = tuple(replace(p, engine="vllm", accepted=0.7) if p.name == name else p for p in spec.pools)
    return (
        replace(spec, pools=pools),
        [Fault("draft-drop", Entity("pool", name), _onset(rng) + 1800.0, 5400.0, 0.6)],
        3.0,
    )


def sick_downlink(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Switches are scraped. A port gives its switch no credit half of the time, which nobody but the switch counts; later the uplinks
    of a leaf are full."""
    wiring, at = Wiring(spec), _onset(rng)
    sick = Fault("credit-stall", _busy_port(spec, rng), at, 3600.0, float(rng.uniform(0.4, 0.7)))
    full = Fault("uplink-congestion", Entity("leaf", wiring.leaves[-1]), at + 5400.0, 1800.0, 0.6)
    return replace(spec, uplinks=4), [sick, full], 3.0


def engine_hang(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """An engine core hangs behind a living API server."""
    return spec, [Fault("engine-hang", _engine(spec, rng), _onset(rng), 1800.0)], 2.0


def kv_thrash(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    return spec, [Fault("kv-thrash", _largest_pool(spec), _onset(rng), 2700.0, ramp_s=300.0)], 3.0


def traffic_burst(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    size = float(rng.uniform(1.8, 2.6))
    return spec, [Fault("traffic-burst", _largest_pool(spec), _onset(rng), 2700.0, size, ramp_s=60.0)], 3.0


def exporter_outage(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """One node's GPU exporter, then an engine's page, stop answering; serving is well."""
    node, mode = _busy_node(spec, rng), str(rng.choice(["refused", "hang", "error"]))
    first = Fault("exporter-outage", Entity("target", f"{node.name}:9400"), _onset(rng), 1200.0, detail=mode)
    page = Entity("target", _engine(spec, rng).name)
    return spec, [first, Fault("exporter-outage", page, first.at + 2700.0, 900.0, detail="hang")], 3.0


def counter_reset(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Exporters restart one after another: every counter begins again at zero."""
    at, faults = _onset(rng), []
    for number, name in enumerate(Wiring(spec).nodes):
        port = (9400, 9100)[number % 2]
        faults.append(Fault("counter-reset", Entity("target", f"{name}:{port}"), at + 240.0 * number, 60.0))
    return spec, faults, 3.0


def rack_power(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    wiring = Wiring(spec)
    rack = wiring.racks[wiring.node(_busy_node(spec, rng).name)]
    return (
        spec,
        [Fault("rack-power", Entity("rack", rack), _onset(rng), 3600.0, float(rng.uniform(0.35, 0.6)))],
        3.0,
    )


def node_hang(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    return spec, [Fault("node-hang", _busy_node(spec, rng), _onset(rng), 3600.0)], 3.0


def deploy_regression(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A version that is 30 % slower is rolled out replica by replica; no node is to blame."""
    return (
        spec,
        [Fault("deploy-regression", _largest_pool(spec), _onset(rng), 2 * 3600.0, 0.3, detail="v2")],
        4.0,
    )


def tide(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Two quiet days with a deep night, for lending GPUs and having them back."""
    pools = tuple(replace(pool, night_ratio=min(pool.night_ratio, 0.3)) for pool in spec.pools)
    return replace(spec, pools=pools), [], 48.0


def noisy_negatives(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Packet spraying, a program's own XIDs on two GPUs, a missing field, a skewed clock: isolate nothing."""
    wiring, at = Wiring(spec), _onset(rng)
    faults = [
        Fault("packet-spraying", Entity("leaf", wiring.leaves[0]), at, 3600.0),
        Fault("app-xid", _busy_gpu(spec, rng), at + 600.0, 60.0, 31.0),
        Fault("app-xid", _busy_gpu(spec, rng), at + 605.0, 60.0, 31.0),
        Fault(
            "absent-field", Entity("target", f"{wiring.nodes[0]}:9400"), at + 1200.0, 1800.0, detail="power_w"
        ),
        Fault("clock-skew", Entity("node", wiring.nodes[-1]), at + 1800.0, 1800.0),
    ]
    return spec, faults, 3.0


def posture_baseline(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A day for the checklists: one GPU falls off the bus, so that recovery is measured, and the rest is well."""
    return spec, [Fault("xid79", _busy_gpu(spec, rng), _onset(rng), 3 * 3600.0)], 24.0


def cross_leaf_tp(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Half of a large replica's ranks land under another leaf; the small pool stands in one rack. Nothing is broken."""
    from simulator.world import World

    world = World(spec, 0, 0.0)
    widest = max(range(len(spec.pools)), key=lambda k: spec.pools[k].tp)
    engines = sorted(e.address for e in world.fleet.of_pool(widest))
    chosen = Entity("engine", engines[int(rng.integers(len(engines)))])
    return spec, [Fault("cross-leaf", chosen, _onset(rng), 4 * 3600.0)], 2.0


def gateway_overload(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Far more comes for the largest pool than all GPUs together carry: somebody has to be refused."""
    return spec, [Fault("traffic-burst", _largest_pool(spec), _onset(rng), 2700.0, 4.5, ramp_s=300.0)], 3.0


def canary_regression(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A version that is 40 % slower is rolled out replica by replica, and somebody must take it back."""
    return (
        spec,
        [Fault("deploy-regression", _largest_pool(spec), _onset(rng), 3 * 3600.0, 0.4, detail="v2")],
        3.0,
    )


def spot_reclaim(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A spot node that serves is taken back two minutes after its notice; another one two hours later."""
    at = _onset(rng)
    first, second = _busy_node(spec, rng), Entity("node", Wiring(spec).nodes[-1])
    return (
        spec,
        [Fault("spot-reclaim", first, at, 5400.0), Fault("spot-reclaim", second, at + 4800.0, 1800.0)],
        3.0,
    )


def rack_cap(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Twice the usual requests while the rack with the most free GPUs may draw hardly more than it does."""
    return spec, [Fault("traffic-burst", _largest_pool(spec), _onset(rng), 3600.0, 2.0, ramp_s=120.0)], 3.0


def pool_borrowing(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """Three times the usual requests for what serves, while the GPUs it lacks are with a pool that only prepares."""
    pools = tuple(
        replace(
            p,
            kind="preprocessing",
            replicas=3 * p.replicas,
            replicas_max=3 * p.replicas,
            requests_per_s=3.0 * p.requests_per_s,
            lendable=False,
        )
        if p.name == "small"
        else replace(p, lendable=False)
        for p in spec.pools
    )
    at = _onset(rng)
    return (
        replace(spec, pools=pools),
        [Fault("traffic-burst", _largest_pool(spec), at, 2700.0, 2.2, ramp_s=120.0)],
        4.0,
    )


def job_recall(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """With half the usual load and GPUs lent to jobs that save themselves at different paces, four times as many requests come
    in the middle of the night."""
    pools = tuple(
        replace(p, requests_per_s=0.5 * p.requests_per_s, replicas=max(1, p.replicas // 2))
        for p in spec.pools
    )
    at = 3 * 3600.0 + float(round(rng.uniform(0.0, 1800.0), 1))
    burst = Fault("traffic-burst", _largest_pool(spec), at, 2700.0, 4.0, ramp_s=120.0)
    return replace(spec, pools=pools), [burst], 24.0


def slow_store(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """The shared store answers eight times slower and loses requests; a burst then wants replicas that read from it."""
    at, store = _onset(rng), Entity("storage", SHARE)
    sick = Fault("slow-store", store, at, 2 * 3600.0, float(rng.uniform(5.0, 10.0)), detail="errors")
    return (
        spec,
        [sick, Fault("traffic-burst", _largest_pool(spec), at + 900.0, 2700.0, 2.0, ramp_s=60.0)],
        3.5,
    )


def fragmentation(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A scheduler that spreads has left free GPUs in pieces too small for the large pools. Nothing is broken."""
    return replace(spec, is_scattered=True), [], 2.0


def posture_small(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A small cluster, where memory comes first: a tenant with long contexts fills the KV cache."""
    from simulator.defaults import default_spec

    built = default_spec(16)
    # Half its load, so that there are GPUs to grow onto.
    pools = tuple(
        replace(p, requests_per_s=0.5 * p.requests_per_s, replicas=max(1, p.replicas // 2))
        for p in built.pools
    )
    built = replace(built, pools=pools)
    return built, [Fault("kv-thrash", _largest_pool(built), _onset(rng), 2700.0, 7.0, ramp_s=300.0)], 4.0


def posture_medium(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A medium cluster, where communication comes first: a port trains at half its rate, and a GPU slows its group down."""
    from simulator.defaults import default_spec

    built, at = default_spec(96), _onset(rng)
    faults = [
        Fault("nic-downgrade", _busy_port(built, rng), at, 5400.0, 0.5),
        Fault("thermal-throttle", _steady_gpu(built, rng), at + 3600.0, 5400.0, 0.4),
    ]
    return built, faults, 4.0


def posture_large(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A large cluster, where stability comes first: a node hangs, and a GPU falls off the bus elsewhere."""
    from simulator.defaults import default_spec

    built, at = default_spec(408), _onset(rng)
    faults = [
        Fault("node-hang", _busy_node(built, rng), at, 3600.0),
        Fault("xid79", _busy_gpu(built, rng), at + 1800.0, 7200.0),
    ]
    return built, faults, 3.0


def posture_overbuilt(spec: WorldSpec, rng: Generator) -> tuple[WorldSpec, list[Fault], float]:
    """A good day of a medium cluster with a fiftieth of the load it was built for."""
    from simulator.defaults import default_spec

    built = default_spec(max(spec.gpus, 96))
    pools = tuple(
        replace(pool, requests_per_s=0.02 * pool.requests_per_s, lendable=False) for pool in built.pools
    )
    return replace(built, pools=pools), [], 30.0


RACK_CAPS: Mapping[str, float] = {"rack-cap": 4000.0}
"""Scenario -> watts that the last rack may draw."""
LAST_RESORT = frozenset({"gateway-overload", "canary-regression"})
"""Scenarios in which the daemon may refuse requests and take versions back."""

SCENARIOS: Mapping[str, Scenario] = {
    "healthy-day": healthy_day,
    "xid79": xid79,
    "thermal-throttle": thermal_throttle,
    "nic-downgrade": nic_downgrade,
    "pfc-storm": pfc_storm,
    "bad-cable": bad_cable,
    "slow-replica": slow_replica,
    "slow-stage": slow_stage,
    "sick-downlink": sick_downlink,
    "draft-drop": draft_drop,
    "engine-hang": engine_hang,
    "kv-thrash": kv_thrash,
    "traffic-burst": traffic_burst,
    "exporter-outage": exporter_outage,
    "counter-reset": counter_reset,
    "rack-power": rack_power,
    "node-hang": node_hang,
    "deploy-regression": deploy_regression,
    "tide": tide,
    "noisy-negatives": noisy_negatives,
    "posture-baseline": posture_baseline,
    "cross-leaf-tp": cross_leaf_tp,
    "gateway-overload": gateway_overload,
    "spot-reclaim": spot_reclaim,
    "rack-cap": rack_cap,
    "fragmentation": fragmentation,
    "slow-store": slow_store,
    "job-recall": job_recall,
    "pool-borrowing": pool_borrowing,
    "posture-small": posture_small,
    "posture-medium": posture_medium,
    "posture-large": posture_large,
    "posture-overbuilt": posture_overbuilt,
    "canary-regression": canary_regression,
}
"""Fault times are relative: add the world's epoch with `at_epoch`."""


def at_epoch(faults: list[Fault], epoch: float) -> list[Fault]:
    """The faults of a scenario at wall times of a world that begins at `epoch`."""
    return [replace(fault, at=epoch + fault.at) for fault in faults]
