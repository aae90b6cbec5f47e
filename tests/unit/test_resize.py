"""A change of a pool's size says why it is not the one that is wanted."""

from small_frames import frame, frames

from daemon.fleet import Fleet
from daemon.model import Step, Verb
from daemon.outlook import Outlook
from daemon.policy import Budgets, Policy, PoolPolicy
from daemon.replica import Learnt
from daemon.resize import Memory, capacity, scale
from daemon.situation import Situation
from daemon.topology import Topology
from daemon.web.sentences import in_chinese

AT = 1_780_272_000.0


def grown(nodes: int, budgets: Budgets) -> Step:
    """Two replicas of four GPUs with 150 requests in flight, of which twenty fit a replica: ten are wanted."""
    homes = {"e0": "n0", "e1": "n1"}
    gpus_on = {f"n{k}": tuple(f"n{k}/gpu{g}" for g in range(4)) for k in range(nodes)}
    topology = Topology(
        nodes=tuple(gpus_on),
        gpus_on=gpus_on,
        gpus_of={e: gpus_on[n] for e, n in homes.items()},
        engine_of={g: e for e, n in homes.items() for g in gpus_on[n]},
        engines_on={n: (e,) for e, n in homes.items()},
        pool_of=dict.fromkeys(homes, "chat"),
    )
    row = {"concurrency": 150.0, "running": 150.0, "waiting": 0.0, "replicas": 2.0, "ready": 2.0}
    row |= {"requests_done_per_s": 15.0, "lb_sessions_per_s": 15.0, "over_slo_ratio": 0.0}
    shown = frames(
        AT, frame("engine", AT, {e: {"running": 75.0} for e in homes}), frame("pool", AT, {"chat": row})
    )
    policy = Policy(pools=(PoolPolicy("chat", replicas_max=40),), budgets=budgets, spare_min=0)
    usable = 4.0 * nodes
    outlook = Outlook(AT, 3600.0, {}, usable, AT)
    situation = Situation(AT, shown, topology, (), Fleet(), {}, outlook, policy)
    memory = Memory({"chat": Learnt(capacity=20.0, stood=2)})
    (step,) = scale(situation, memory, capacity(situation, memory, {}))
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
