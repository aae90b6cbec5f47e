"""A change of a pool's size says why it is not the one that is wanted."""

from collections.abc import Mapping

from small_frames import frame, frames

from daemon.fleet import Fleet, Mark
from daemon.model import Entity, Step, Verb
from daemon.outlook import Outlook
from daemon.policy import Budgets, Policy, PoolPolicy
from daemon.replica import Learnt
from daemon.resize import Memory, capacity, scale
from daemon.situation import Situation
from daemon.topology import Topology
from daemon.web.sentences import in_chinese

AT = 1_780_272_000.0


def town(nodes: int, gpus: int, homes: Mapping[str, tuple[str, int]]) -> tuple[Mapping[str, float], Topology]:
    """Nodes of so many GPUs; homes : replica of four GPUs -> its node and its first GPU there."""
    gpus_on = {f"n{k}": tuple(f"n{k}/gpu{g}" for g in range(gpus)) for k in range(nodes)}
    gpus_of = {e: gpus_on[n][first : first + 4] for e, (n, first) in homes.items()}
    on = {n: tuple(e for e, (home, _) in homes.items() if home == n) for n in gpus_on}
    running = dict.fromkeys(homes, 150.0 / len(homes))
    return running, Topology(
        nodes=tuple(gpus_on),
        gpus_on=gpus_on,
        gpus_of=gpus_of,
        engine_of={g: e for e, held in gpus_of.items() for g in held},
        engines_on=on,
        pool_of=dict.fromkeys(homes, "chat"),
    )


def situation(
    running: Mapping[str, float], topology: Topology, fleet: Fleet, budgets: Budgets, most: int = 40
) -> Situation:
    """150 requests in flight, of which twenty fit a replica: ten are wanted, `most` allowed."""
    number = float(len(running))
    row = {"concurrency": 150.0, "running": 150.0, "waiting": 0.0, "replicas": number, "ready": number}
    row |= {"requests_done_per_s": 15.0, "lb_sessions_per_s": 15.0, "over_slo_ratio": 0.0}
    engines = {e: {"running": held} for e, held in running.items()}
    shown = frames(AT, frame("engine", AT, engines), frame("pool", AT, {"chat": row}))
    policy = Policy(pools=(PoolPolicy("chat", replicas_max=most),), budgets=budgets, spare_min=0)
    outlook = Outlook(AT, 3600.0, {}, float(topology.gpu_count), AT)
    return Situation(AT, shown, topology, (), fleet, {}, outlook, policy)


def grown(nodes: int, budgets: Budgets) -> Step:
    running, topology = town(nodes, 4, {"e0": ("n0", 0), "e1": ("n1", 0)})
    now = situation(running, topology, Fleet(), budgets)
    memory = Memory({"chat": Learnt(capacity=20.0, minutes=60, stood=2)})
    (step,) = scale(now, memory, capacity(now, memory, {}))
    assert step.verb is Verb.SCALE
    return step


def test_where_the_gpus_run_out_it_says_so() -> None:
    step = grown(3, Budgets())

    assert step.amount == 3.0
    assert step.reason.startswith("2 -> 3 replicas: ")
    assert step.reason.endswith("; it wants 10, there are no GPUs for more")
    assert in_chinese(step.reason).endswith("它想要 10 个，没有 GPU 给更多的了")


def test_where_one_step_is_not_enough_it_says_so() -> None:
    step = grown(20, Budgets(scale_step_max=4))

    assert step.amount == 6.0
    assert step.reason.endswith("; it wants 10, one step adds no more")


def test_what_gets_all_it_wants_says_nothing_of_it() -> None:
    step = grown(20, Budgets(scale_step_max=40))

    assert step.amount == 10.0
    assert "it wants" not in step.reason


def test_one_gpu_set_aside_takes_no_more_than_itself_from_those_that_serve() -> None:
    """The other replica of its node goes on: counting the whole node as lost made pools give up what they had."""
    fleet = Fleet(isolated={Entity("gpu", "n0/gpu7"): Mark(AT, "i1")})
    shown, topology = town(2, 8, {"e0": ("n0", 0), "e1": ("n1", 0), "e2": ("n1", 4)})
    memory = Memory({"chat": Learnt(capacity=20.0, minutes=60, stood=3)})

    found = capacity(situation(shown, topology, fleet, Budgets(), 3), memory, {})

    assert found.room.free == 3.0
    assert found.granted["chat"] == 3
    assert fleet.left_of("n0", topology.gpus_on["n0"]) == 7
    assert Fleet(isolated={Entity("node", "n0"): Mark(AT, "i1")}).left_of("n0", topology.gpus_on["n0"]) == 0
