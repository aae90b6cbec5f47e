"""Steps carried out in the simulated cluster, and what it shows afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from daemon.model import Entity, Hopeless, Step, TryAgain, Verb
from simulator import offline
from simulator.fleet import Engine, Lease, State

if TYPE_CHECKING:
    from simulator.world import World

OWNER = "tidewarden"


def apply(world: World, step: Step) -> str:
    """Do the step now and say what was done. Raises TryAgain or Hopeless."""
    if step.verb is Verb.SCALE:
        return _scale(world, step)
    if step.verb is Verb.REROUTE:
        return _reroute(world, step)
    if step.verb is Verb.ISOLATE:
        return _isolate(world, step)
    if step.verb is Verb.RELEASE:
        return _release(world, step)
    if step.verb is Verb.LEND:
        return _lend(world, step)
    if step.verb is Verb.RECALL:
        return _recall(world, step)
    if step.verb is Verb.LIMIT:
        return _admit(world, step)
    if step.verb is Verb.ROLLBACK:
        return _roll_back(world, step)
    raise Hopeless(f"the simulated cluster knows no {step.verb.value}")


def observe(world: World, step: Step) -> Mapping[str, Any]:
    """What the cluster shows for step.target now, as model.Backend defines it."""
    if step.verb is Verb.SCALE:
        pool = _pool(world, step.target)
        live = [e for e in world.fleet.of_pool(pool) if e.state is not State.DRAINING or e.reborn]
        ready = sum(e.state is State.READY for e in live)
        return {"replicas": world.fleet.wanted[pool], "ready": ready}
    if step.verb is Verb.REROUTE:
        engine = world.engine_at(step.target.name)
        return {} if engine is None else {"weight": engine.weight}
    if step.verb is Verb.LIMIT:
        return {"admitted": world.admitted.get(step.target.name, 1.0)}
    if step.verb is Verb.ROLLBACK:
        pool = _pool(world, step.target)
        on_trial = step.arg("from") in world.fleet.canaries
        return {"version": step.arg("from") if on_trial else world.fleet.versions[pool]}
    _gpus(world, step.target)
    if step.verb in (Verb.ISOLATE, Verb.RELEASE):
        owner = world.fleet.isolated.get(step.target, "")
        return {"isolated": bool(owner), "owner": owner}
    lease = world.fleet.lent.get(step.target)
    return {"lent": lease is not None, "until": lease.until if lease else math.nan}


def _pool(world: World, target: Entity) -> int:
    names = [pool.name for pool in world.spec.pools]
    if target.kind != "pool" or target.name not in names:
        raise Hopeless(f"cannot scale {target}: use a pool, one of {names}")
    return names.index(target.name)


def _admit(world: World, step: Step) -> str:
    """The gateway refuses the rest of what comes."""
    world.admitted[step.target.name] = step.amount
    world.send(world.gateway.admit(world.admitted))
    return f"{step.amount:.0%} of {step.target.name} let in"


def _roll_back(world: World, step: Step) -> str:
    pool = _pool(world, step.target)
    world.fleet.end_trial(step.arg("from"))
    world.fleet.versions[pool] = step.arg("version")
    return f"pool {step.target.name} wants version {step.arg('version')}"


def _gpus(world: World, target: Entity) -> list[int]:
    if target.kind not in ("node", "gpu"):
        raise Hopeless(f"cannot set aside or lend {target}: use a node or a gpu")
    try:
        return world.fleet.gpus_of(target)
    except KeyError as unknown:
        raise Hopeless(str(unknown.args[0])) from unknown


def _scale(world: World, step: Step) -> str:
    pool = _pool(world, step.target)
    spec, count = world.spec.pools[pool], round(step.amount)
    if not 0 <= count <= spec.replicas_max:
        raise Hopeless(f"pool {spec.name}: {count} replicas asked, 0 to {spec.replicas_max} are possible")
    before = world.fleet.wanted[pool]
    world.fleet.wanted[pool] = count
    world.fleet.avoid = frozenset(filter(None, step.arg("avoid").split(",")))
    world.fleet.touch()
    victims = [world.engine_at(name) for name in step.arg("engine").split(",")] if step.arg("engine") else []
    for victim in victims[: max(0, before - count)]:
        if victim is not None and victim.pool == pool:
            world.fleet.drain(victim, world.at)
    world.fleet.tick(world.at)
    return f"pool {spec.name}: {before} -> {count} replicas wanted"


def _reroute(world: World, step: Step) -> str:
    engine = world.engine_at(step.target.name)
    if step.target.kind != "engine" or engine is None:
        raise Hopeless(f"cannot reroute {step.target}: no such engine behind the load balancer")
    if not 0.0 <= step.amount <= 1.0:
        raise Hopeless(f"{step.target}: routing weight {step.amount} asked, 0 to 1 is possible")
    before = engine.weight
    world.fleet.weigh(engine, float(step.amount))
    return f"{engine.address}: weight {before:g} -> {step.amount:g}"


def _isolate(world: World, step: Step) -> str:
    gpus = _gpus(world, step.target)
    owner = world.fleet.isolated.get(step.target, "")
    if owner and owner != (step.arg("owner") or OWNER):
        raise Hopeless(f"{step.target} is already set aside by {owner}: not ours to touch")
    if any(entity.kind == step.target.kind == "node" and lease for entity, lease in world.fleet.lent.items()
           if entity == step.target):  # fmt: skip
        raise TryAgain(f"{step.target} is lent; recall it first", 30.0)
    world.fleet.isolated[step.target] = step.arg("owner") or OWNER
    world.fleet.tick(world.at)
    touched = sorted({e.address for e in _engines_on(world, gpus)})
    return f"{step.target} set aside, draining {', '.join(touched) or 'nothing'}"


def _engines_on(world: World, gpus: list[int]) -> list[Engine]:
    return [e for e in world.fleet.engines.values() if set(e.gpus) & set(gpus)]


def _release(world: World, step: Step) -> str:
    _gpus(world, step.target)
    owner = world.fleet.isolated.get(step.target, "")
    if not owner:
        return f"{step.target} was not set aside"
    if owner != (step.arg("owner") or OWNER):
        raise Hopeless(f"{step.target} was set aside by {owner}: not ours to release")
    del world.fleet.isolated[step.target]
    world.fleet.tick(world.at)
    return f"{step.target} back in service"


def _lend(world: World, step: Step) -> str:
    gpus = _gpus(world, step.target)
    if math.isnan(step.until) or step.until <= world.at:
        raise Hopeless(f"{step.target}: a lease needs an end in the future, got {step.until}")
    if step.target in world.fleet.lent:
        raise TryAgain(f"{step.target} is lent already", 30.0)
    fleet = world.fleet
    taken = fleet.lent_mask() | fleet.set_aside() | fleet.broken
    if any(taken[g] for g in gpus) and step.target.kind == "gpu":
        raise Hopeless(f"{step.target} is lent, set aside or broken")
    free = [g for g in gpus if fleet.gpu_slot[g] < 0 and not taken[g]]
    asked = len(gpus) if step.target.kind == "gpu" else min(max(1, round(step.amount)), len(gpus))
    if len(free) < asked:
        raise TryAgain(f"{step.target}: {asked} GPUs asked, {len(free)} are free of engines", 15.0)
    fleet.lent[step.target] = Lease(tuple(free[:asked]), step.until, begun=world.at)
    fleet.touch()
    return f"{step.target}: {asked} GPUs lent until {datetime.fromtimestamp(step.until, UTC):%a %H:%M UTC}"


def _recall(world: World, step: Step) -> str:
    _gpus(world, step.target)
    lease = world.fleet.lent.get(step.target)
    if lease is None:
        return f"{step.target} is not lent"
    # the offline job stops where it is: what it has not saved is lost
    if lease.gone_at == math.inf:
        world.book.lost_offline(offline.lost_gpu_s(world, step.target, lease, world.at))
    lease.gone_at = min(lease.gone_at, world.at + float(world.action_rng.uniform(30.0, 120.0)))
    return f"{step.target}: recalled, free within {lease.gone_at - world.at:.0f} s"
