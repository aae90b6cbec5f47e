"""A cluster as physics: load, engines, GPUs, hosts and fabric advanced together from one seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array, Entity, Event, Scrape, Step, Target
from simulator import actuators, drafts, layouts, load, serving, stages, storage
from simulator.conditions import Conditions
from simulator.defaults import default_spec
from simulator.devices import Gpus
from simulator.devices import Load as GpuLoad
from simulator.fabric import Hosts, Ports
from simulator.faults import Fault
from simulator.fleet import Engine, Fleet, Hooks, State
from simulator.gateway import Gateway
from simulator.ledger import Ledger
from simulator.noise import ColouredNoise, Excursions
from simulator.onset import begin, end
from simulator.pages import Pages
from simulator.spec import RSS_BYTES, PoolSpec, WorldSpec
from simulator.switches import EXPORTER, Switches
from simulator.telemetry import Exporters
from simulator.trouble import Trouble, has_ended, note_harm, refresh
from simulator.wiring import Indices, Wiring, sums

__all__ = ["PoolSpec", "World", "WorldSpec", "default_spec"]

_NONE, _ONE = np.zeros(1), np.ones(1)
_WARM_UP_S = 300.0
_DEVICE_S = 15.0
"""Heat, clocks and fabric move this often, and at the onset of a fault: their time constants are minutes."""
HEALTH_CHECK_S = 12.0
"""The load balancer gives up on a silent engine after this. Source: measured with HAProxy, frozen engine."""
_LINK_BYTES = 2.6e6
"""Bytes a rank exchanges with the others of its group for each token: judgement, from NVLink counters at full load."""
_MOVED_BYTES = 1.2e5
"""Bytes the fabric carries for each prompt token whose KV moves between nodes: judgement."""


class World:
    """One simulated cluster.

    at : wall time it has been advanced to. The physics runs up to one step ahead of it, and what happens in that
    step is shown only from `at` on. Everything follows from (spec, seed, epoch, the calls made).
    """

    def __init__(self, spec: WorldSpec, seed: int, epoch: float) -> None:
        self.spec, self.seed, self.epoch, self.at = spec, seed, epoch, epoch
        self.wiring = Wiring(spec)
        self.node_index = {name: k for k, name in enumerate(self.wiring.nodes)}
        rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(8)]
        self.telemetry_rng, self.action_rng, self._history_seed = rngs[0], rngs[1], (seed, 7)
        slots = _slot_count(spec)
        self.ills = Conditions(spec)
        self.serving, self.drafts = serving.Serving(slots), drafts.Drafts(spec, slots)
        self.gpus, self.ports = Gpus(spec, rngs[2]), Ports(spec, rngs[3])
        self.hosts = Hosts(self.wiring, epoch, rngs[4])
        self.stores, self.switches = storage.Stores(spec.nodes), Switches(self.wiring)
        self._arrivals = load.Load(spec, epoch, rngs[5])
        self._arrivals.until = -_WARM_UP_S
        counts = (spec.gpus, slots, len(self.ports.speed), spec.nodes)
        self._noise = ColouredNoise(counts, _DEVICE_S, rngs[6])
        self._dips = Excursions(spec.gpus, _DEVICE_S, rngs[6])
        self._cuts = tuple(int(c) for c in np.cumsum(counts)[:-1])
        self.fleet = Fleet(
            self.wiring, rngs[7], Hooks(self.serving.held, self._occupied, self._vacated, self._load), slots
        )
        self.book = Ledger(spec)
        self.troubles: list[Trouble] = []
        self.events: list[Event] = []
        self.version_slow: dict[str, float] = {}
        self.admitted: dict[str, float] = {}
        self.gateway = Gateway(spec)
        self.engine_gauges = np.zeros((slots, len(layouts.ENGINE_GAUGES)))
        self.lb_gauges = np.zeros((slots, 4))
        self._by_address: tuple[int, dict[str, Engine]] = (-1, {})
        self._applied: dict[str, str] = {}
        self._slot_pool = np.zeros(slots, dtype=np.intp)
        self._answers_before = np.zeros((2, slots))
        self._stepped, self._span, self._device_at = -_WARM_UP_S, spec.step_s, -math.inf
        self._routes: tuple[int, Any] = (-1, None)
        self._prompts_before = np.zeros(slots)
        self._busy, self._busy_s = np.zeros((5, slots)), 0.0
        self._works: tuple[int, NDArray[np.bool_]] = (-1, np.zeros(slots, dtype=bool))
        self._group_slow = np.ones(slots)
        self._shown = -1
        self._felt: tuple[bytes, frozenset[str]] = (b"", frozenset())
        self._slow = np.ones((2, slots))
        self.any_lost = False
        self._ranks: _Ranks | None = None
        self.exporters = Exporters(self)
        self._pages = Pages(self)
        self._open()

    def _open(self) -> None:
        """Place the first replicas and let load and heat settle before the epoch."""
        nobody = np.zeros(self.spec.gpus, dtype=bool)
        now = self.epoch - _WARM_UP_S
        for pool, spec in enumerate(self.spec.pools):
            for _ in range(spec.replicas):
                if not self.fleet.place(pool, nobody, now, now):
                    raise ValueError(
                        f"pool {spec.name}: no room for {spec.replicas} replicas of {spec.tp} GPUs"
                    )
        while self._stepped < 0.0:
            self._step()
        self.book.open(self)
        self.at = self.epoch

    # -- time -----------------------------------------------------------------------------------------

    def advance(self, to: float) -> None:
        """Physics up to wall time `to`; an earlier time changes nothing."""
        while self._stepped < to - self.epoch - 1e-9:
            self._step()
        self.at = max(self.at, to)

    def share_at(self, at: Array | float) -> Any:
        """How far `at` lies between the last two physics steps, 0..1."""
        share = (at - self.epoch - self._stepped + self._span) * (1.0 / self._span)
        return np.minimum(np.maximum(share, 0.0), 1.0)

    def _step(self) -> None:
        start = self._stepped
        self._span = span = self._next_span(start)
        now = self.epoch + start + span
        self.exporters.keep()
        self.serving.open_step()
        changed = self._follow_faults(now)
        self.fleet.tick(now)
        since_s = start - self._device_at
        if changed or since_s >= _DEVICE_S - 1e-6:
            self._step_devices(min(since_s, _DEVICE_S))
            self._device_at = start
        self._serve(start, span)
        for what in (self.gpus, self.ports, self.hosts, self.stores, self.switches):
            what.count_on(span)
        self._stepped = start + span
        self._show_engines()
        self.book.note(self, span)
        for trouble in self.troubles:
            if trouble.begun and not trouble.is_over:
                note_harm(
                    trouble, self.fleet, self.wiring, self.serving.given_now, self.serving.lost_now, now
                )

    def _next_span(self, start: float) -> float:
        """To the next multiple of the step; short steps while anything is wrong, and never across an onset or end."""
        calm = self.fleet.is_calm and not any(t.begun and not t.is_over for t in self.troubles)
        step = self.spec.calm_step_s if calm else self.spec.step_s
        end = (math.floor(start / step + 1e-6) + 1) * step
        return min(end, self._next_edge(start)) - start

    # -- faults ---------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """Have a fault happen at fault.at (now, if that is past)."""
        self.troubles.append(Trouble(fault))
        self._arrivals.cut(max(fault.at - self.epoch, self._stepped))

    @property
    def faults(self) -> list[Fault]:
        """Everything injected so far, in order of injection."""
        return [trouble.fault for trouble in self.troubles]

    def _follow_faults(self, now: float) -> bool:
        live = [t for t in self.troubles if not t.is_over and t.fault.at < now - 1e-3]
        if not live:
            return False
        changed = False
        for trouble in live:
            if not trouble.begun:
                begin(self, trouble)
                changed = True
            elif has_ended(trouble, self.fleet, now):
                end(self, trouble, now)
                changed = True
        refresh(self.troubles, self.ills, self.wiring, now)
        self._take_effect(now, changed)
        return changed

    def _take_effect(self, now: float, changed: bool) -> None:
        """Have load, processes and routing feel what ails now. changed : a fault has begun or ended."""
        ills = self.ills
        self._arrivals.rate, self._arrivals.prompt = ills.pool_rate, ills.pool_prompt
        self._arrivals.output, self._arrivals.hits = ills.pool_output, ills.pool_hits
        self.any_lost = bool(ills.lost.any())
        dead = ills.lost | (ills.xid == 79)
        self.fleet.broken = dead | ills.hung[self.wiring.gpu_node]
        felt = (self.fleet.broken.tobytes(), frozenset(ills.engine_hung))
        if not changed and felt == self._felt and not self.fleet.broken.any():
            return  # most faults change speeds and counters only: nobody dies or falls silent of them
        self._felt = felt
        for engine in list(self.fleet.engines.values()):
            if dead[list(engine.gpus)].any():
                self.fleet.fail(engine, now)
            mute = bool(ills.hung[engine.node])
            if mute != math.isfinite(engine.silent_since):
                engine.silent_since = now if mute else math.inf
                if not mute and engine.state is State.READY:
                    self.fleet.fail(engine, now)  # a node comes back by a reboot
        self.fleet.touch()

    def emit(self, event: Event) -> None:
        """The kernel of a node logs something: at its own time, but never in what readers have been shown already."""
        shown = self.epoch + self._stepped
        self.events.append(event if event.at >= shown else replace(event, at=shown + 1e-3))

    def events_since(self, at: float) -> list[Event]:
        """Kernel-log events after `at` and up to now, in order. A hung node logs nothing."""
        return sorted((e for e in self.events if at < e.at <= self.at), key=lambda e: e.at)

    def node_events(self, node: str, since: float, until: float) -> tuple[Event, ...]:
        """Events of a node in (since, until]."""
        if not self.events:
            return ()
        return tuple(e for e in self.events if since < e.at <= until and e.entity.name.split("/")[0] == node)

    # -- serving --------------------------------------------------------------------------------------

    def _serve(self, start: float, span: float) -> None:
        new = self._arrivals.take(start, start + span, self._next_edge(start))
        now = self.epoch + start
        slots = np.empty(0, dtype=np.intp)
        self.book.arrived(new[load.POOL])
        came = self._per_pool(new[load.POOL])
        unserved = came
        if new.shape[1]:
            slots, new = self._route(new, now)
            unserved = came - self._per_pool(new[load.POOL])
        usual = self._arrivals.expected(now) * span if self.admitted else came
        self.gateway.count(came, unserved, usual)
        works = self._working()
        s = self.serving
        s.step(start, span, slots, new, works, self._slow[0], self._slow[1])
        self.drafts.count(s.token_rate * span, self._slot_pool, self.ills)
        self._busy[0] += s.busy * span
        self._busy[1] += s.prefill_share * works * span
        self._busy[2] += s.batch * works * span
        self._busy[3] += s.token_rate * span
        self._busy_s += span

    def _per_pool(self, pools: Array) -> Array:
        return np.bincount(pools.astype(np.intp), minlength=len(self.spec.pools)).astype(float)

    def send(self, traffic: Array) -> None:
        """From now on so many times the usual requests come, (pool,): a balancer over several clusters says how many."""
        self._arrivals.traffic = traffic
        self._arrivals.cut(self._stepped)

    def asked_per_s(self) -> float:
        """Requests a second that the clients of this cluster ask for now, whoever answers them."""
        return float(self._arrivals.expected(self.at).sum())

    def _working(self) -> NDArray[np.bool_]:
        """(slot,) true where an engine makes progress."""
        if self._works[0] != self.fleet.routes:
            works, hung = np.zeros(self.serving.slots, dtype=bool), self.ills.engine_hung
            for engine in self.fleet.engines.values():
                if engine.state in (State.READY, State.DRAINING):
                    works[engine.slot] = not (self.ills.hung[engine.node] or engine.address in hung)
            self._works = (self.fleet.routes, works)
        return self._works[1]

    def _next_edge(self, start: float) -> float:
        edges = [
            edge - self.epoch
            for t in self.troubles
            if not t.is_over
            for edge in (t.fault.at, t.fault.end)
            if edge - self.epoch > start + 1e-3
        ]
        return min(edges, default=math.inf)

    def _route(self, new: Array, now: float) -> tuple[Indices, Array]:
        if self._routes[0] != self.fleet.routes or self.fleet.some_silent:
            self._routes = (self.fleet.routes, self.fleet.routing(now, HEALTH_CHECK_S))
        edges, slots, serves = self._routes[1]
        if not serves.all():
            turned_away = ~serves[new[load.POOL].astype(np.intp)]
            self.book.turned_away(new[load.POOL][turned_away])
            new = new[:, ~turned_away]
        place = np.searchsorted(edges, new[load.POOL] + new[load.KEY], side="right")
        return slots[np.minimum(place, len(slots) - 1)] if len(slots) else np.empty(0, dtype=np.intp), new

    def _show_engines(self) -> None:
        s, g, lb = self.serving, self.engine_gauges, self.lb_gauges
        g[:, 0], g[:, 1], g[:, 3] = s.run_gauge, s.wait_gauge, np.round(s.kv_used, 6)
        lb[:, 0] = s.run_gauge + s.wait_gauge
        for engine in self.fleet.engines.values() if self.ills.engine_hung else ():
            if engine.address in self.ills.engine_hung:
                g[engine.slot, :4] = 0.0  # the core answers nobody; its API server shows an idle engine
        for address, leaked in self.ills.leaked.items():
            if (sick := self.engine_at(address)) is not None:
                g[sick.slot, 8] = RSS_BYTES + leaked
        if self._shown != self.fleet.routes or self.fleet.some_silent:
            self._shown = self.fleet.routes
            self._show_servers()

    def _show_servers(self) -> None:
        for engine in self.fleet.engines.values():
            self._slot_pool[engine.slot] = engine.pool
            ready = engine.state in (State.READY, State.DRAINING)
            mute = self.epoch + self._stepped - engine.silent_since >= HEALTH_CHECK_S
            self.lb_gauges[engine.slot, 2] = float(ready and not mute)
            self.lb_gauges[engine.slot, 3] = (
                0.0 if engine.state is State.DRAINING else round(100 * engine.weight)
            )

    def _occupied(self, engine: Engine, is_restart: bool) -> None:
        pool = self.spec.pools[engine.pool]
        self.serving.occupy(engine.slot, pool)
        self.exporters.process_started(engine.slot, not is_restart)
        self.engine_gauges[engine.slot] = 0.0
        took_s = engine.ready_at - engine.started_at or 0.5 * (pool.cold_start_min_s + pool.cold_start_max_s)
        self.engine_gauges[engine.slot, 4:12] = (
            pool.kv_blocks, pool.block_tokens, pool.kv_tokens, 0.0, RSS_BYTES, engine.started_at, took_s, 0.6 * took_s,
        )  # fmt: skip

    def _load(self, node: int, pool: int, draw: float) -> tuple[int, float]:
        """Which store a replica's weights are read from, and how long its start takes."""
        where = self.stores.fetch(node, pool)
        slow = self.ills.share_slow if where else float(self.ills.disk_slow[node])
        return where, storage.cold_start_s(self.spec.pools[pool], draw, where, slow)

    def _vacated(self, engine: Engine) -> None:
        gone = self.serving.abort(engine.slot)
        if engine.state is State.DRAINING and math.isinf(engine.silent_since):
            self.book.cut_off += gone  # it was well: whoever had it go did this
        self.book.fold(self.serving, engine)

    # -- hardware -------------------------------------------------------------------------------------

    def _step_devices(self, span: float) -> None:
        gpu_noise, engine_noise, port_noise, node_noise = np.split(self._noise.step(), self._cuts)
        seconds = max(self._busy_s, 1.0)
        activity = self._busy / seconds
        self._busy, self._busy_s = np.zeros_like(self._busy), 0.0
        answers = self.serving.totals[:, (serving.E2E, serving.DONE)].T
        grown, pools = answers - self._answers_before, len(self.spec.pools)
        took_s = np.bincount(self._slot_pool, grown[0], pools).astype(float)
        self.gateway.time(took_s, np.bincount(self._slot_pool, grown[1], pools).astype(float), seconds)
        self._answers_before = answers
        prompts = self.serving.totals[:, serving.PROMPTS].copy()
        activity[4] = (prompts - self._prompts_before) / seconds
        self._prompts_before = prompts
        slot = self.fleet.gpu_slot
        gpu_load = self._gpu_load(activity, slot)
        self.gpus.step(span, gpu_load, self.ills, gpu_noise, self._dips.step())
        self._step_hosts(activity, port_noise, node_noise)
        self._slow_down(engine_noise)

    def _gpu_load(self, activity: Array, slot: Indices) -> GpuLoad:
        what = GpuLoad(self.spec.gpus)
        busy, prefill, batch, tokens_s, prompts_s = activity[:5]
        decode = np.maximum(busy - prefill, 0.0)
        tensor = prefill * 0.75 + decode * (0.04 + 0.25 * np.minimum(batch / 128.0, 1.0))
        dram = prefill * 0.25 + decode * 0.68
        on = slot >= 0
        what.bound = on.copy()
        what.busy = np.where(on, np.minimum(busy[slot], 1.0), 0.0)
        what.tensor, what.dram = np.where(on, tensor[slot], 0.0), np.where(on, dram[slot], 0.0)
        what.memory = np.where(on, 0.92, 0.004)
        own = stages.paced(self.gpus.decode_slow, self._wire().cut, self)
        what.share = np.where(on, own / self._group_slow[slot], 1.0)
        tp = self._wire().tp[slot]
        traffic = (tokens_s + prompts_s)[slot]
        what.nvlink_bytes_s = np.where(on & (tp > 1), _LINK_BYTES * traffic * (tp - 1) / tp, 0.0)
        what.pcie_bytes_s = np.where(on, 2.0e4 * traffic, 0.0)
        lent = self.fleet.lent_mask() if self.fleet.lent else None
        if lent is not None:
            what.bound |= lent
            what.busy[lent], what.tensor[lent], what.dram[lent], what.memory[lent] = 0.97, 0.45, 0.4, 0.8
            what.nvlink_bytes_s[lent] = 6e10
        return what

    def _wire(self) -> _Ranks:
        """Who runs where, as arrays; made again when the fleet changes."""
        if self._ranks is None or self._ranks.revision != self.fleet.revision:
            self._ranks = _Ranks(self)
        return self._ranks

    def _step_hosts(self, activity: Array, port_noise: Array, node_noise: Array) -> None:
        nodes, ranks = self.spec.nodes, self._wire()
        node = ranks.node
        moved = 5 * _MOVED_BYTES * activity[4] + 4e4 * activity[3]
        moved = 2e8 + sums(node, moved, nodes + 1)[:nodes]
        for slot, gpus in ranks.spread:
            # Ranks on two nodes talk over the fabric what they would have said over NVLink.
            np.add.at(moved, self.wiring.gpu_node[gpus], _LINK_BYTES * activity[3][slot])
        for lease in self.fleet.lent.values():
            moved[self.wiring.gpu_node[lease.gpus[0]]] += 3e9 * len(lease.gpus)
        busy = sums(node, activity[0], nodes + 1)[:nodes]
        tokens = sums(node, activity[3], nodes + 1)[:nodes]
        self.ports.step(moved[self.wiring.port_node] / self.spec.ports_per_node, self.ills, port_noise)
        self.switches.step(self.ports, self.ills)
        self.hosts.step(ranks.count, busy, tokens, self.ills, node_noise)
        self.stores.step(storage.loads_of(self), self.ills)

    def _slow_down(self, noise: Array) -> None:
        """How much longer each engine takes: its slowest rank, host, network, version and its own noise."""
        ranks = self._wire()
        prefill, decode = (
            np.concatenate((stages.paced(slow, ranks.cut, self), _NONE))[ranks.gpus].max(axis=1)
            for slow in (self.gpus.prefill_slow, self.gpus.decode_slow)
        )
        self._group_slow = decode = np.where(decode > 0, decode, 1.0)
        prefill = np.where(prefill > 0, prefill, 1.0)
        net = self.ports.speed.reshape(self.spec.nodes, -1).min(axis=1)
        link = np.concatenate((1 / np.maximum(net, 0.05), _ONE))[ranks.node] - 1
        cpu = np.concatenate((self.ills.cpu, _ONE))[ranks.node] - 1
        own = ranks.version * np.maximum(1 + self.spec.engine_noise * noise, 0.7)
        decode = decode * self.drafts.slower(self._slot_pool, self.ills)
        for address, factor in self.ills.engine_slow.items():
            engine = self.engine_at(address)
            if engine is not None:
                own[engine.slot] *= factor
        self._slow = np.stack(
            (prefill * (1 + cpu) * (1 + 0.15 * link), decode * (1 + 0.2 * cpu) * (1 + 0.05 * link))
        )
        self._slow *= own

    # -- telemetry ------------------------------------------------------------------------------------

    def engine_at(self, address: str) -> Engine | None:
        if self._by_address[0] != self.fleet.revision:
            self._by_address = (self.fleet.revision, {e.address: e for e in self.fleet.engines.values()})
        return self._by_address[1].get(address)

    def slot_of(self, address: str) -> int:
        """Slot of an engine that exists. Raises KeyError for another address."""
        engine = self.engine_at(address)
        if engine is None:
            raise KeyError(f"no engine {address!r}")
        return engine.slot

    def slots_in_use(self) -> list[int]:
        """Slots of the servers the load balancer knows, in order."""
        return sorted(self.fleet.engines)

    def place_of(self, node: int) -> dict[str, str]:
        return {
            "node": self.wiring.nodes[node],
            "rack": self.wiring.racks[node],
            "leaf": self.wiring.leaves[node],
        }

    def facts_of(self, engine: Engine) -> dict[str, str]:
        pool = self.spec.pools[engine.pool]
        return {
            "pool": pool.name, "model": pool.model, "engine": pool.engine, "role": pool.role,
            "version": engine.version, "gpus": ",".join(self._rank_name(engine, g) for g in engine.gpus),
            **({"pp": str(pool.pp)} if pool.pp > 1 else {}), **self.place_of(engine.node),
        }  # fmt: skip

    def _rank_name(self, engine: Engine, gpu: int) -> str:
        """Number on its node; the whole name where ranks stand on several nodes."""
        spans = any(self.wiring.gpu_node[g] != engine.node for g in engine.gpus)
        return self.wiring.gpus[gpu] if spans else str(gpu % self.spec.gpus_per_node)

    def layout_key(self, target: str) -> object:
        """Changes whenever the series or facts of the target do."""
        if target.endswith(":9400"):
            node = self.node_index[target[:-5]]
            lost = self.ills.lost[list(self.wiring.gpus_of(node))] if self.any_lost else None
            return tuple(lost) if lost is not None and lost.any() else None
        if target.endswith((":9100", f":{EXPORTER}")):
            return None
        engine = self.engine_at(target)
        if engine is None:
            return tuple((s, self.fleet.engines[s].address) for s in self.slots_in_use())
        return (engine.pool, engine.version, engine.gpus)

    def targets(self) -> tuple[Target, ...]:
        """What discovery shows now; the same object until replicas come or go."""
        return self.exporters.targets()

    def sweep(self) -> list[Scrape]:
        """One reading of every target now, jitter and chance losses included."""
        return self.exporters.sweep()

    def scrape(self, target: str) -> Scrape:
        """One reading of one target at this instant, without chance losses. A failed one has `error` set."""
        return self.exporters.scrape(target)

    def exposition(self, target: str) -> str:
        """The exporter's text page, the same numbers as scrape(). Raises simulator.telemetry.Unreachable."""
        layout, values = self.exporters.page_values(target)
        return self._pages.text(layout, values)

    # -- model.Backend --------------------------------------------------------------------------------

    async def apply(self, step: Step) -> str:
        """Carry a step out once; a second time with the same id says again what was done."""
        if step.id not in self._applied:
            self._applied[step.id] = actuators.apply(self, step)
        return self._applied[step.id]

    async def observe(self, step: Step) -> Mapping[str, Any]:
        return actuators.observe(self, step)

    def set_aside_by_hand(self, entity: Entity, owner: str) -> None:
        """Somebody else cordons a node or GPU: the daemon must not lift it."""
        self.fleet.isolated[entity] = owner

    # -- truth ----------------------------------------------------------------------------------------

    def ledger(self) -> Mapping[str, Any]:
        """What really happened since the epoch; see simulator.ledger for the keys."""
        return self.book.read(self)

    def history(
        self, weeks: int, step_s: float
    ) -> Mapping[str, Mapping[str, tuple[Array, NDArray[np.float64]]]]:
        """The weeks before the epoch as the same load process would have recorded them; see simulator.load."""
        rng = np.random.default_rng(np.random.SeedSequence(self._history_seed))
        return load.history(self.spec, self.epoch, weeks, step_s, rng)


class _Ranks:
    """Slots to hardware as arrays: gpus (slot, 8) padded with one beyond the last, node (slot,) likewise; cut : see simulator.stages."""

    def __init__(self, world: World) -> None:
        slots, nodes = world.serving.slots, world.spec.nodes
        self.revision = world.fleet.revision
        self.gpus = np.full((slots, 8), world.spec.gpus, dtype=np.intp)
        self.node = np.full(slots, nodes, dtype=np.intp)
        self.tp, self.version = np.ones(slots), np.ones(slots)
        for slot, engine in world.fleet.engines.items():
            self.gpus[slot, : len(engine.gpus)] = engine.gpus
            self.node[slot], self.tp[slot] = engine.node, len(engine.gpus)
            self.version[slot] = world.version_slow.get(f"{engine.pool}/{engine.version}", 1.0)
        self.spread = [
            (slot, np.array(engine.gpus))
            for slot, engine in world.fleet.engines.items()
            if any(world.wiring.gpu_node[g] != engine.node for g in engine.gpus)
        ]
        self.cut = stages.cut(world)
        self.count = np.bincount(self.node, minlength=nodes + 1)[:nodes].astype(float)


def _slot_count(spec: WorldSpec) -> int:
    """Room for every replica that fits on the GPUs, draining ones included."""
    by_pools = sum(pool.replicas_max for pool in spec.pools) + len(spec.pools) * 2
    return max(1, min(by_pools, spec.gpus))
