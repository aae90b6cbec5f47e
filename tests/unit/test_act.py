"""Carrying out steps: once, within their deadline, believed only when the world shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from actions import VERBS
from actions.backends.simulated import Simulated
from actions.lend import Recall
from daemon.act import Executor, Patience
from daemon.clock import VirtualLoop, loop_clock, run_virtual
from daemon.model import (
    NAN,
    Entity,
    Hopeless,
    Outcome,
    Result,
    Step,
    TryAgain,
    Verb,
)
from daemon.record import Record

EPOCH = 1_700_000_000.0
T = TypeVar("T")


@dataclass
class World:
    """Pools with replicas, engines with weights and nodes that are isolated or lent, all in this process.

    trouble : what the next calls of apply raise, in order; "hang" waits for ever. Told of by `calls` and `looks`.
    latency_s : before a change takes effect.
    """

    state: dict[Entity, dict[str, Any]] = field(default_factory=dict)
    trouble: list[Exception | str] = field(default_factory=list)
    latency_s: float = 0.0
    calls: list[tuple[float, str]] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    under_way: int = 0
    under_way_max: int = 0

    async def apply(self, step: Step) -> str:
        now = asyncio.get_running_loop().time()
        self.calls.append((now, step.id))
        trouble = self.trouble.pop(0) if self.trouble else None
        if trouble == "hang":
            await asyncio.Event().wait()
        if isinstance(trouble, Exception):
            raise trouble
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        await asyncio.sleep(self.latency_s)
        self.under_way -= 1
        self.state.setdefault(step.target, {}).update(_shown(step))
        return f"{step.target} changed"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        self.looks.append(asyncio.get_running_loop().time())
        return self.state.get(step.target, {})


def _shown(step: Step) -> dict[str, Any]:
    return {
        Verb.SCALE: {"replicas": int(step.amount), "ready": 0},
        Verb.REROUTE: {"weight": step.amount},
        Verb.ISOLATE: {"isolated": True, "owner": step.arg("owner")},
        Verb.RELEASE: {"isolated": False, "owner": ""},
        Verb.LEND: {"lent": True, "until": step.until},
        Verb.RECALL: {"lent": False, "until": 0.0},
        Verb.BALANCE: {"weight": step.amount},
        Verb.LIMIT: {"admitted": step.amount},
        Verb.ROLLBACK: {"version": step.arg("version")},
    }[step.verb]


def scale(id: str = "s1", pool: str = "chat", **changes: Any) -> Step:
    return replace(
        Step(id, Verb.SCALE, Entity("pool", pool), 4.0, "demand rises", deadline_s=60.0), **changes
    )


def isolate(verb: Verb = Verb.ISOLATE, **changes: Any) -> Step:
    step = Step(
        "s1",
        verb,
        Entity("node", "n03"),
        1.0,
        "gpu_lost",
        deadline_s=60.0,
        args=(("owner", "tidewarden/prod"),),
    )
    return replace(step, **changes)


def play(
    world: World,
    story: Callable[[Executor], Coroutine[Any, Any, T]],
    record: Record | None = None,
    **patience: Any,
) -> tuple[T, Record, float]:
    """Run a story under virtual time; what it returned, the journal, and how long it took."""
    kept = record or Record.open(None)
    actions = {verb: make(Simulated(world)) for verb, make in VERBS.items() if verb is not Verb.NOTIFY}

    async def main(loop: VirtualLoop) -> tuple[T, Record, float]:
        executor = Executor(actions, kept, loop_clock(loop, EPOCH), Patience(**patience))
        return await story(executor), kept, loop.time()

    return run_virtual(main)


def run(world: World, step: Step, record: Record | None = None, **patience: Any) -> Outcome:
    return play(world, lambda executor: executor.run(step), record, **patience)[0]


# -- the good way ---------------------------------------------------------------------------------------


def test_a_step_is_done_when_the_world_shows_it_and_the_journal_tells_the_whole_story() -> None:
    world = World(latency_s=3.0)

    outcome, record, _ = play(world, lambda executor: executor.run(scale()))

    assert (outcome.result, outcome.detail, outcome.took_s) == (Result.DONE, "pool chat changed", 3.0)
    assert outcome.at == EPOCH + 3.0
    assert [(e.type, e.at) for e in record.events()] == [("intent", EPOCH), ("outcome", EPOCH + 3.0)]


def test_the_intent_stands_in_the_journal_before_the_world_is_touched() -> None:
    record = Record.open(None)
    seen: list[list[str]] = []

    class Watching(World):
        async def apply(self, step: Step) -> str:
            seen.append([s.id for s in record.open_intents()])
            return await super().apply(step)

    run(Watching(), scale(), record)

    assert seen == [["s1"]]


def test_the_same_id_is_applied_once_and_answers_with_the_first_outcome() -> None:
    world = World(latency_s=5.0)

    async def story(executor: Executor) -> tuple[list[Outcome], Outcome]:
        together = await asyncio.gather(executor.run(scale()), executor.run(scale()))
        return together, await executor.run(scale(amount=9.0))

    (together, later), _, _ = play(world, story)

    assert len(world.calls) == 1
    assert repr(together[0]) == repr(together[1]) == repr(later)


# -- trouble --------------------------------------------------------------------------------------------


def test_try_again_is_tried_again_later_and_later() -> None:
    world = World(trouble=[TryAgain("busy"), TryAgain("busy"), TryAgain("busy", delay_s=10.0)])

    outcome = run(world, scale())

    waits = [after - before for (before, _), (after, _) in zip(world.calls, world.calls[1:], strict=False)]
    assert outcome.result is Result.DONE
    assert 1.0 <= waits[0] <= 1.25
    assert 2.0 <= waits[1] <= 2.5
    assert waits[2] == 10.0


def test_two_steps_do_not_retry_in_one_instant_and_each_does_so_alike_in_every_run() -> None:
    worlds = [World(trouble=[TryAgain("busy")]) for _ in range(3)]

    for world, id in zip(worlds, ["a", "b", "a"], strict=True):
        run(world, scale(id))

    assert worlds[0].calls == worlds[2].calls
    assert worlds[0].calls[1][0] != worlds[1].calls[1][0]


def test_tries_are_bounded_and_then_nobody_can_tell() -> None:
    world = World(trouble=[TryAgain("busy")] * 99)

    outcome = run(world, scale(), tries_max=4)

    assert len(world.calls) == 4
    assert outcome.result is Result.UNKNOWN
    assert "busy" in outcome.detail
    assert "Please check: has pool chat 4 replicas?" in outcome.detail


def test_a_refusal_is_not_tried_again() -> None:
    world = World(trouble=[Hopeless("no such pool")])

    outcome = run(world, scale())

    assert (outcome.result, outcome.detail) == (Result.REFUSED, "no such pool")
    assert len(world.calls) == 1


def test_a_refusal_after_an_unclear_try_is_a_failure_only_if_the_world_is_as_before() -> None:
    untouched = World(trouble=[TryAgain("lost the connection"), Hopeless("quota")])
    untouched.state[Entity("pool", "chat")] = {"replicas": 2}
    silent = World(trouble=[TryAgain("lost the connection"), Hopeless("quota")])
    changed = World(trouble=[TryAgain("lost the connection"), Hopeless("already so")])
    changed.state[Entity("pool", "chat")] = {"replicas": 4}

    results = [run(world, scale()).result for world in (untouched, silent, changed)]

    assert results == [Result.FAILED, Result.UNKNOWN, Result.DONE]


def test_a_hanging_apply_is_unknown_at_the_deadline() -> None:
    world = World(trouble=["hang"])
    world.state[Entity("pool", "chat")] = {"replicas": 2}

    outcome, record, took_s = play(world, lambda executor: executor.run(scale(deadline_s=60.0)))

    assert outcome.result is Result.UNKNOWN
    assert "did not answer within 30 s" in outcome.detail
    assert 50.0 <= took_s <= 60.0
    assert record.open_intents() == []


def test_a_hanging_apply_whose_effect_is_seen_is_done() -> None:
    world = World(trouble=["hang"])
    world.state[Entity("pool", "chat")] = {"replicas": 4}

    outcome = run(world, scale())

    assert outcome.result is Result.DONE
    assert "the world shows it" in outcome.detail


def test_a_world_that_changes_late_is_waited_for() -> None:
    class Slow(World):
        async def apply(self, step: Step) -> str:
            asyncio.get_running_loop().call_later(25.0, self.state.__setitem__, step.target, {"replicas": 4})
            return "accepted"

    outcome = run(Slow(), scale())

    assert outcome.result is Result.DONE
    assert 25.0 <= outcome.took_s <= 36.0


def test_an_unanswered_look_is_bounded_by_the_deadline() -> None:
    class Blind(World):
        async def observe(self, step: Step) -> Mapping[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

    outcome = run(Blind(), scale())

    assert outcome.result is Result.UNKNOWN
    assert outcome.took_s == 60.0


def test_a_step_nothing_can_do_is_refused() -> None:
    outcome = play(World(), lambda _: _run_without_actions(scale()))[0]

    assert outcome.result is Result.REFUSED
    assert outcome.detail == "no backend is configured for scale"


async def _run_without_actions(step: Step) -> Outcome:
    return await Executor(lambda _: None, Record.open(None), lambda: EPOCH).run(step)


def test_without_a_journal_nothing_is_touched(tmp_path: Path) -> None:
    record = Record.open(tmp_path)
    (tmp_path / "tidewarden.db").unlink()
    world = World()

    outcome = run(world, scale(), record)

    assert world.calls == []
    assert outcome.result is Result.REFUSED
    assert "the journal cannot be written" in outcome.detail
    assert "removed or replaced" in outcome.detail


# -- many at once ---------------------------------------------------------------------------------------


def test_steps_on_one_target_take_turns_and_steps_on_others_do_not_wait() -> None:
    world = World(latency_s=10.0)

    async def story(executor: Executor) -> list[Outcome]:
        steps = [scale("a", "chat"), scale("b", "chat", amount=5.0), scale("c", "code")]
        return await asyncio.gather(*(executor.run(step) for step in steps))

    outcomes, _, took_s = play(world, story)

    assert {o.result for o in outcomes} == {Result.DONE}
    assert [call for call in world.calls if call[1] != "c"] == [(0.0, "a"), (10.0, "b")]
    assert (0.0, "c") in world.calls
    assert took_s == 20.0


def test_the_number_of_steps_in_flight_is_bounded() -> None:
    world = World(latency_s=1.0)

    async def story(executor: Executor) -> list[Outcome]:
        return await asyncio.gather(*(executor.run(scale(f"s{n}", f"pool{n}")) for n in range(40)))

    outcomes, _, _ = play(world, story, in_flight_max=4)

    assert len(outcomes) == 40
    assert world.under_way_max == 4


def test_a_step_that_waited_past_its_deadline_is_not_begun() -> None:
    world = World(latency_s=100.0)

    async def story(executor: Executor) -> list[Outcome]:
        return await asyncio.gather(
            executor.run(scale("a", deadline_s=300.0)), executor.run(scale("b", amount=5.0, deadline_s=20.0))
        )

    (first, second), _, _ = play(world, story)

    assert first.result is Result.DONE
    assert second.result is Result.FAILED
    assert second.detail.startswith("not begun")
    assert [id for _, id in world.calls] == ["a"]


def test_the_same_id_waits_for_its_own_outcome_however_long_that_takes() -> None:
    world = World(latency_s=25.0)

    async def story(executor: Executor) -> list[Outcome]:
        ahead = asyncio.create_task(executor.run(scale("a", deadline_s=60.0)))
        first = asyncio.create_task(executor.run(scale("b", amount=5.0, deadline_s=60.0)))
        await asyncio.sleep(0)
        second = asyncio.create_task(executor.run(scale("b", amount=5.0, deadline_s=40.0)))
        await ahead
        return [await first, await second]

    (first, second), record, _ = play(world, story)

    assert repr(first) == repr(second)
    assert [e.type for e in record.events()].count("outcome") == 2


def test_nothing_is_kept_of_targets_that_are_idle() -> None:
    async def story(executor: Executor) -> int:
        for n in range(50):
            await executor.run(scale(f"s{n}", f"pool{n}"))
        return len(executor._turns) + len(executor._waiting)

    assert play(World(), story)[0] == 0


# -- after a crash --------------------------------------------------------------------------------------


def test_after_a_cancel_the_intent_is_open_and_recovery_looks_without_applying() -> None:
    world = World(trouble=["hang"])
    world.state[Entity("pool", "chat")] = {"replicas": 2}

    async def story(executor: Executor) -> tuple[int, list[Outcome]]:
        task = asyncio.create_task(executor.run(scale()))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        left = len(executor._record.open_intents())
        return left, await executor.recover()

    (left, outcomes), record, _ = play(world, story)

    assert left == 1
    assert [o.result for o in outcomes] == [Result.UNKNOWN]
    assert outcomes[0].detail.startswith(
        "interrupted; the world does not show it. Please check: has pool chat 4"
    )
    assert len(world.calls) == 1
    assert record.open_intents() == []


def test_recovery_waits_for_a_change_that_is_still_coming() -> None:
    world = World()
    record = Record.open(None)
    record.intent(EPOCH - 5, scale())

    async def story(executor: Executor) -> list[Outcome]:
        asyncio.get_running_loop().call_later(
            20.0, world.state.update, {Entity("pool", "chat"): {"replicas": 4}}
        )
        return await executor.recover()

    (outcome,), _, _ = play(world, story, record)

    assert (outcome.result, outcome.detail) == (Result.DONE, "interrupted; the world shows it")
    assert world.calls == []


def test_a_step_run_again_before_recovery_is_looked_for_and_not_applied() -> None:
    world = World()
    world.state[Entity("pool", "chat")] = {"replicas": 4}
    record = Record.open(None)
    record.intent(EPOCH - 5, scale())

    outcome = run(world, scale(), record)

    assert outcome.result is Result.DONE
    assert world.calls == []


# -- what each verb takes for done ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "seen", "result"),
    [
        (scale(), {"replicas": 4}, Result.DONE),
        (scale(), {"replicas": 3}, Result.UNKNOWN),
        (scale(), {"replicas": "4"}, Result.UNKNOWN),
        (scale(amount=1.0), {"replicas": True}, Result.UNKNOWN),
        (scale(), {"ready": 4}, Result.UNKNOWN),
        (scale(verb=Verb.REROUTE, amount=0.5), {"weight": 0.504}, Result.DONE),
        (scale(verb=Verb.REROUTE, amount=0.5), {"weight": 0.6}, Result.UNKNOWN),
        (scale(verb=Verb.REROUTE, amount=0.0), {"weight": 0.004}, Result.UNKNOWN),
        (scale(verb=Verb.REROUTE, amount=0.0), {"weight": NAN}, Result.UNKNOWN),
        (isolate(), {"isolated": True, "owner": "tidewarden/prod"}, Result.DONE),
        (isolate(), {"isolated": True}, Result.UNKNOWN),
        (isolate(), {"isolated": False, "owner": ""}, Result.UNKNOWN),
        (isolate(Verb.RELEASE), {"isolated": False}, Result.DONE),
        (isolate(Verb.RELEASE), {"owner": ""}, Result.UNKNOWN),
        (isolate(Verb.LEND, until=EPOCH + 3600), {"lent": True, "until": EPOCH + 3630}, Result.DONE),
        (isolate(Verb.LEND, until=EPOCH + 3600), {"lent": True, "until": EPOCH + 7200}, Result.UNKNOWN),
        (isolate(Verb.LEND, until=EPOCH + 3600), {"lent": True}, Result.UNKNOWN),
        (isolate(Verb.RECALL), {"lent": False}, Result.DONE),
        (isolate(Verb.RECALL), {"lent": True, "until": EPOCH}, Result.UNKNOWN),
        (isolate(Verb.RECALL), {}, Result.UNKNOWN),
    ],
)
def test_only_what_the_world_shows_counts(step: Step, seen: dict[str, Any], result: Result) -> None:
    class Fixed(World):
        async def apply(self, step: Step) -> str:
            return "accepted"

        async def observe(self, step: Step) -> Mapping[str, Any]:
            return seen

    assert run(Fixed(), step).result is result


@pytest.mark.parametrize(
    ("step", "seen", "why"),
    [
        (
            isolate(Verb.RELEASE),
            {"isolated": True, "owner": "alice"},
            "isolated by alice, not by tidewarden/prod",
        ),
        (isolate(Verb.RELEASE), {"isolated": True, "owner": ""}, "isolated by somebody else"),
        (isolate(), {"isolated": True, "owner": "slurm"}, "already isolated by slurm; left to them"),
        (isolate(), {"isolated": True, "owner": "tidewarden/test"}, "already isolated by tidewarden/test"),
        (isolate(args=()), {}, "carries no owner mark"),
        (isolate(Verb.LEND), {}, "a lease needs an end"),
        (scale(amount=2.5), {}, "whole number of at least 0, got 2.5"),
        (scale(amount=NAN), {}, "got nan"),
        (scale(verb=Verb.REROUTE, amount=1.5), {}, "between 0 and 1, got 1.5"),
    ],
)
def test_what_must_not_be_done_is_refused_before_the_world_is_touched(
    step: Step, seen: dict[str, Any], why: str
) -> None:
    world = World(state={step.target: dict(seen)})

    outcome = run(world, step)

    assert outcome.result is Result.REFUSED
    assert why in outcome.detail
    assert world.calls == []


def test_a_node_whose_owner_cannot_be_told_is_not_released() -> None:
    world = World(state={Entity("node", "n03"): {"isolated": True}})

    outcome = run(world, isolate(Verb.RELEASE))

    assert outcome.result is Result.UNKNOWN
    assert world.calls == []


def test_our_own_isolation_is_lifted_and_one_already_lifted_is_left() -> None:
    world = World(state={Entity("node", "n03"): {"isolated": True, "owner": "tidewarden/prod"}})

    first = run(world, isolate(Verb.RELEASE))
    second = run(world, isolate(Verb.RELEASE, id="s2"))

    assert (first.result, second.result) == (Result.DONE, Result.DONE)
    assert second.detail == "node n03 was in service already"
    assert len(world.calls) == 1


def test_a_recall_is_done_when_the_memory_its_jobs_held_is_free_too() -> None:
    world, step = World(), replace(isolate(Verb.RECALL), reason="wanted back")

    async def story(loop: VirtualLoop) -> tuple[Outcome, Outcome]:
        def held(node: str) -> float:
            assert node == "n03"
            return 4e10 if loop.time() < 40.0 else later

        def hands(memory: Callable[[str], float]) -> Executor:
            actions = {Verb.RECALL: Recall(Simulated(world), memory)}
            return Executor(actions, Record.open(None), loop_clock(loop, EPOCH), Patience())

        freed = await hands(held).run(step)
        return freed, await hands(lambda node: 4e10).run(replace(step, id="s2"))

    later = 3e8
    freed, kept = run_virtual(story)
    later = 1.5e10  # a replica that starts there already takes it
    taken, _ = run_virtual(story)

    assert freed.result is taken.result is Result.DONE
    assert 40.0 <= freed.took_s < 60.0
    assert kept.result is Result.UNKNOWN
    assert "37 GiB of a GPU there are still in use: nvidia-smi on n03 names the process" in kept.detail
