"""The rule book: what fired, what was right, what is only watched, what chance may claim."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_cluster import AUTO, Cluster, engine, gpu, node, settled
from small_frames import frame, frames

from daemon.__main__ import Parts, assemble, fit_here
from daemon.casefile import (
    AT_NODE,
    AT_NODE_TO_DO,
    HYPOTHESES,
    RULED_OUT,
    TO_DO,
    case_of,
    describe,
)
from daemon.clock import Clock, VirtualLoop, loop_clock, run_virtual
from daemon.codec import decode, to_plain
from daemon.config import ConfigError, parse
from daemon.core import Command, Core
from daemon.gate import believed
from daemon.ledger import Ledger, Tally
from daemon.loop import Daemon
from daemon.model import (
    Entity,
    Event,
    Evidence,
    Finding,
    Frames,
    Incident,
    Judgement,
    Layout,
    Scrape,
    Series,
    Severity,
    Verb,
    Word,
)
from daemon.patterns import PATTERNS
from daemon.plan import HOLD_S
from daemon.policy import Policy
from daemon.record import Record
from daemon.rules import RULES, RuleState
from daemon.settings import Settings
from detectors.xid import CLASSES

E0 = Entity("engine", "e0")


def word(incident: str, said: Word, by: str = "", rules: tuple[str, ...] = ("r",)) -> Judgement:
    return Judgement(0.0, incident, rules, said, by)


# -- the ledger ------------------------------------------------------------------------------------------------


def test_a_word_counts_once_however_often_it_is_said() -> None:
    ledger = Ledger()
    for said in (Word.FIRED, Word.FIRED, Word.CONFIRMED, Word.CONFIRMED):
        ledger.take(word("i1", said))

    assert ledger.tallies["r"] == Tally(fired=1, confirmed=1, refuted=0)


def test_the_operators_word_replaces_any_other_and_is_replaced_by_none() -> None:
    ledger = Ledger()
    ledger.take(word("i1", Word.FIRED))
    ledger.take(word("i1", Word.CONFIRMED, "healed after it was isolated"))
    ledger.take(word("i1", Word.REFUTED, "operator kim"))
    ledger.take(word("i1", Word.CONFIRMED, "healed after it was isolated"))

    assert ledger.tallies["r"] == Tally(fired=1, confirmed=0, refuted=1)


def test_a_word_on_an_incident_nobody_knows_counts_for_nothing() -> None:
    ledger = Ledger()

    assert not ledger.take(word("i9", Word.CONFIRMED))
    assert ledger.tallies == {}


@pytest.mark.parametrize(
    ("confirmed", "refuted", "low", "high"),
    [(0, 0, 0.0, 1.0), (1, 0, 0.207, 1.0), (10, 0, 0.722, 1.0), (35, 0, 0.901, 1.0), (9, 1, 0.596, 0.982)],
)
def test_the_interval_is_wilsons(confirmed: int, refuted: int, low: float, high: float) -> None:
    found = Tally(confirmed + refuted, confirmed, refuted).interval()

    assert found == pytest.approx((low, high), abs=1e-3)


def test_a_shadow_rule_is_promoted_when_its_lower_bound_is_high_enough_and_falls_back() -> None:
    ledger, rule = Ledger(), "serving.kv_filling"
    states = []
    for k in range(36):
        ledger.take(word(f"x{k}", Word.FIRED, rules=(rule,)))
        ledger.take(word(f"x{k}", Word.CONFIRMED, "operator kim", (rule,)))
        states.append(ledger.state_of(rule, {}))
    for k in range(3):
        ledger.take(word(f"x{k}", Word.REFUTED, "operator kim", (rule,)))

    assert states.index(RuleState.ON) == 34  # 35 right of 35
    assert ledger.state_of(rule, {}) is RuleState.SHADOW
    assert ledger.state_of(rule, {rule: RuleState.ON}) is RuleState.ON
    assert ledger.state_of("plugin.mine", {}) is RuleState.ON


def test_the_ledger_survives_a_dump() -> None:
    ledger = Ledger()
    ledger.take(word("i1", Word.FIRED))
    ledger.take(word("i1", Word.REFUTED, "operator kim"))

    assert decode(Ledger, json.loads(json.dumps(to_plain(ledger)))) == ledger


# -- the core --------------------------------------------------------------------------------------------------


class Always:
    """A detector that claims one thing as long as it is told to."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings

    def update(self, given: Frames) -> list[Finding]:
        return [replace(f, at=given.at) for f in self.findings]


def claim(rule: str, kind: str, entity: Entity = E0) -> Finding:
    return Finding(
        0.0, rule.split(".")[0], entity, kind, 0.9, Severity.WARNING, (Evidence("x", 1.0, ""),), rule=rule
    )


def seen(at: float) -> Frames:
    facts = {"e0": {"pool": "chat", "node": "n0"}}
    return frames(at, frame("engine", at, {"e0": {"running": 3.0}}, facts))


def live(core: Core, minutes: float, begin: float = 0.0) -> list[tuple[str, str]]:
    """(what, incident kind) of everything that opened, live or in shadow."""
    found = []
    for k in range(int(minutes * 4)):
        decision = core.tick(seen(begin + 15.0 * k))
        found += [("live", i.kind) for i in decision.opened]
        found += [("shadow", i.kind) for i in decision.shadowed if i.state == "open"]
    return found


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (RuleState.ON, [("live", "prefix_collapse")]),
        (RuleState.SHADOW, [("shadow", "prefix_collapse")]),
        (RuleState.OFF, []),
    ],
)
def test_the_state_of_a_rule_decides_what_becomes_of_its_claims(
    state: RuleState, expected: list[tuple[str, str]]
) -> None:
    policy = Policy(rules={"serving.prefix_collapse": state})
    core = Core(policy, {"serving": Always(claim("serving.prefix_collapse", "prefix_collapse"))})

    assert live(core, 5) == expected
    assert core.state.ledger.tallies.get("serving.prefix_collapse", Tally()).fired == len(expected)


def test_an_incident_in_shadow_proposes_nothing() -> None:
    policy = replace(AUTO, rules={"fault.xid_uncontained": RuleState.SHADOW})
    cluster = settled(policy)
    cluster.log(gpu(2), 48)
    cluster.run(5)

    assert cluster.isolated() == []
    assert cluster.weights == {}
    assert [i.id for d in cluster.decisions for i in d.shadowed] == ["x00001"]


def test_a_shadow_claim_is_confirmed_by_another_rule_at_the_same_place() -> None:
    shadow = Always(claim("serving.spec_drop", "spec_drop"))
    other = Always(claim("serving.engine_hung", "engine_hung"))
    core = Core(Policy(), {"a": shadow, "b": other})
    live(core, 5)

    shadow.findings = other.findings = ()
    live(core, 20, 300.0)

    assert core.state.ledger.tallies["serving.spec_drop"] == Tally(fired=1, confirmed=1)
    assert core.state.ledger.tallies["serving.engine_hung"] == Tally(fired=1)
    assert core.state.ledger.cases["x00001"].by == "i00001 (engine_hung) at the same place"


def test_what_was_isolated_and_healed_confirms_its_rule() -> None:
    cluster = settled()
    cluster.log(gpu(2), 79)
    cluster.run(30)

    judged = [j for d in cluster.decisions for j in d.judged]
    assert [(j.rules, j.word) for j in judged] == [
        (("fault.xid_lost",), Word.FIRED),
        (("fault.xid_lost",), Word.CONFIRMED),
    ]


def test_a_lower_weight_alone_confirms_nothing() -> None:
    cluster = settled()
    cluster.show(engine(1), lb_done_per_s=0.0, generation_tokens_s=0.0, lb_sessions=90.0)
    cluster.run(2)
    cluster.show(engine(1), lb_done_per_s=2.0, generation_tokens_s=900.0, lb_sessions=20.0)
    cluster.run(20)

    assert cluster.done(Verb.REROUTE) != []
    assert cluster.core.state.ledger.tallies["serving.engine_hung"] == Tally(fired=1)


def test_an_operator_refutes_over_the_command_queue_and_the_journal_hears_of_it() -> None:
    cluster = settled()
    cluster.log(gpu(2), 79)
    cluster.run(1)

    cluster.core.absorb(Command("refute", "i00001", "kim", cluster.at))
    decision = cluster.tick()

    assert [(j.incident, j.word, j.by) for j in decision.judged] == [("i00001", Word.REFUTED, "operator kim")]
    assert cluster.core.state.ledger.tallies["fault.xid_lost"] == Tally(fired=1, refuted=1)


def test_words_of_the_journal_taken_in_again_after_a_restart_count_once() -> None:
    cluster = settled()
    cluster.log(gpu(2), 79)
    cluster.run(30)
    said = [j for d in cluster.decisions for j in d.judged]
    fresh = Cluster()

    for _ in range(2):
        for judgement in said:
            fresh.core.absorb(decode(Judgement, json.loads(json.dumps(to_plain(judgement)))))

    assert fresh.core.state.ledger.tallies == cluster.core.state.ledger.tallies


# -- chance ----------------------------------------------------------------------------------------------------


def test_of_many_claims_by_chance_only_those_rare_enough_for_the_fleet_are_believed() -> None:
    rng = np.random.default_rng(7)
    sound = [
        replace(claim("t.r", "gpu_slow", Entity("gpu", f"g{k}")), p=float(p))
        for k, p in enumerate(rng.random(5000))
    ]
    sick = [replace(claim("t.r", "gpu_slow", Entity("gpu", f"sick{k}")), p=1e-7) for k in range(5)]
    sure = claim("t.s", "gpu_lost", Entity("gpu", "g1"))

    kept = believed([*sound, *sick, sure], {"gpu": 5005})

    assert {f.entity.name for f in kept} == {"sick0", "sick1", "sick2", "sick3", "sick4", "g1"}


def test_the_same_p_is_believed_in_a_small_fleet_and_not_in_a_large_one() -> None:
    one = [replace(claim("t.r", "gpu_slow"), p=1e-4)]

    assert believed(one, {"engine": 50}) == one
    assert believed(one, {"engine": 5000}) == []


def test_one_decision_on_a_scope_in_five_minutes() -> None:
    pool = Entity("pool", "chat")
    detector = Always(claim("serving.queue_growth", "queue_growth", pool))
    core = Core(Policy(), {"serving": detector})
    live(core, 2)
    detector.findings += (claim("serving.kv_saturated", "kv_saturated", pool),)

    early = live(core, 3, 120.0)
    late = live(core, 3, 300.0)

    assert early == []
    assert late == [("live", "kv_saturated")]


def test_what_explains_the_decision_before_does_not_wait() -> None:
    pool = Entity("pool", "chat")
    detector = Always(claim("serving.queue_growth", "queue_growth", pool))
    core = Core(Policy(), {"serving": detector})
    live(core, 2)
    detector.findings += (claim("serving.kv_thrash", "kv_thrash", pool),)

    assert live(core, 3, 120.0) == [("live", "kv_thrash")]


def test_too_many_equal_claims_at_once_share_a_cause() -> None:
    cluster = settled()
    for k in range(6):
        cluster.show(gpu(k, 1), pcie_link_width=8.0)
    cluster.run(60)

    assert cluster.kinds() == {("pcie_downgrade", "pool chat")}
    assert cluster.isolated() == []


# -- configuration -----------------------------------------------------------------------------------------------


def test_rules_and_codes_of_the_configuration_reach_the_policy() -> None:
    text = "rules: {serving.kv_filling: on, fault.pcie_replay: off, fault.thermal: shadow}\n"
    policy = parse(text + "xid: {43: gpu_firmware, 121: ignore}\n").policy()

    # A bare on or off is true or false to YAML.
    assert policy.rules == {
        "serving.kv_filling": RuleState.ON,
        "fault.pcie_replay": RuleState.OFF,
        "fault.thermal": RuleState.SHADOW,
    }
    assert policy.told == {"xid": {"43": "gpu_firmware", "121": "ignore"}}


def test_an_unknown_rule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no rule 'serving.kv_fill'; did you mean serving.kv_filling\?"):
        parse("rules: {serving.kv_fill: on}\n")


def test_the_operators_word_over_an_xid_reaches_the_incident() -> None:
    cluster = settled(replace(AUTO, xid={"43": "gpu_uncontained", "48": "ignore"}))
    cluster.log(gpu(1), 43)
    cluster.log(gpu(2), 48)
    cluster.run(1)

    assert cluster.kinds() == {("gpu_uncontained", "gpu n1/gpu0")}


def test_every_meaning_the_settings_allow_is_one_the_detector_knows() -> None:
    allowed = Settings.model_fields["xid"].annotation.__args__[1].__args__  # type: ignore[union-attr]

    assert set(allowed) == set(CLASSES)


# -- case files --------------------------------------------------------------------------------------------------


def test_a_case_file_has_hypothesis_evidence_what_was_ruled_out_and_the_response() -> None:
    cluster = settled()
    cluster.show(gpu(2, 1), throttle_bits=0x20, sm_clock_mhz=1300.0, temp_c=89.0)
    cluster.run(2)

    case = case_of(cluster.opened[0])

    assert (
        case.hypothesis
        == "Something holds the GPU's clock down (gpu n2/gpu1; 95% sure). heat holds the clock down"
    )
    assert "sm clock 1300 MHz (against 1900 MHz)" in case.evidence[0]
    assert "temperature 89 °C" in case.evidence[0]
    assert case.rejected == (
        "the software power cap alone: another reason bit is set",
        "an idle GPU, or a change of the whole group: its peers hold their clock",
    )
    assert case.response == "routing weight 0.5 at once; isolate what the incident names after 300 s"
    assert case.to_do == TO_DO["gpu_throttle"]


def test_the_case_of_a_group_says_why_no_member_is_blamed() -> None:
    cluster = settled()
    for n in (2, 3):
        for k in range(4):
            cluster.show(gpu(n, k), throttle_bits=0x80, sm_clock_mhz=900.0)
    cluster.run(2)

    case = case_of(cluster.opened[0])

    assert cluster.opened[0].scope == Entity("rack", "r1")
    assert "8 members at once: what they share is to blame" in case.hypothesis
    assert case.rejected[0] == "8 faults of their own: they came together in one rack"
    assert "no part of a group is isolated" in case.response


def test_the_message_to_on_call_is_the_case_file() -> None:
    cluster = settled()
    cluster.log(gpu(2), 79, "GPU has fallen off the bus.")
    cluster.run(1)

    text = describe(cluster.opened[0])

    assert text.splitlines()[0].startswith("Hypothesis: The GPU fell off the bus (gpu n2/gpu0; 100% sure).")
    assert "Evidence: gpu n2/gpu0: xid 79 from kernel log" in text
    assert "Response: routing weight 0 at once; isolate what the incident names at once" in text
    assert text.splitlines()[-1].startswith("To do: Reboot the node.")


def claimed(kind: str, scope: Entity, score: float, slower: float) -> Incident:
    """An incident of one finding that says by which share longer a step takes."""
    measured = Evidence("slower_at_equal_load", slower, "ratio", 0.0)
    finding = Finding(0.0, "straggler", scope, kind, score, Severity.WARNING, (measured,), 0.0)
    return Incident("i1", kind, scope, 0.0, 0.0, Severity.WARNING, (finding,))


@pytest.mark.parametrize(
    ("slower", "response"),
    [
        (0.04, "routing weight 0.96 at once"),
        (0.18, "routing weight 0.85 at once"),
        (0.60, "routing weight 0.5 at once; routing weight 0.25 after 600 s"),
    ],
)
def test_the_response_is_the_one_that_is_proposed_for_what_was_measured(slower: float, response: str) -> None:
    assert case_of(claimed("replica_slow", engine(3), 0.85, slower)).response == response


def test_a_guess_is_told_to_isolate_nothing() -> None:
    guess, sure = (case_of(claimed("gpu_slow", gpu(3), score, 0.5)) for score in (0.5, 0.85))

    assert guess.response == "routing weight 0.5 at once; nothing is isolated on a guess"
    assert sure.response == "routing weight 0.5 at once; isolate what the incident names after 600 s"


def test_a_whole_node_is_told_in_its_own_words() -> None:
    whole, one = (case_of(claimed("replica_slow", where, 0.55, 0.04)) for where in (node(3), engine(3)))

    assert whole.hypothesis == f"{AT_NODE['replica_slow']} (node n3; 55% sure)"
    assert whole.to_do == AT_NODE_TO_DO["replica_slow"]
    assert one.hypothesis.startswith(HYPOTHESES["replica_slow"])
    assert one.to_do == TO_DO["replica_slow"]


def test_the_words_of_case_files_are_about_patterns_there_are() -> None:
    assert set(HYPOTHESES) | set(RULED_OUT) | set(AT_NODE) <= set(PATTERNS)
    assert set(TO_DO) | set(AT_NODE_TO_DO) <= set(PATTERNS)


def test_every_rule_that_fires_in_a_sick_cluster_is_in_the_book() -> None:
    cluster = settled()
    cluster.log(gpu(1), 79)
    cluster.log(gpu(2), 94)
    cluster.happens(node(3), "io_error", "I/O error, dev nvme0n1, sector 4")
    cluster.show(gpu(4), ecc_sbe_per_s=500.0, row_remap_pending=1.0)
    cluster.show(engine(5), lb_sessions=90.0, lb_done_per_s=0.0, generation_tokens_s=0.0)
    cluster.down = {"n6:9100": "connection refused"}
    cluster.run(15 + HOLD_S / 60)

    fired = {f.rule_id for d in cluster.decisions for f in d.findings}
    assert len(fired) >= 7
    assert fired <= set(RULES)
    assert {RULES[f.rule_id].kind for d in cluster.decisions for f in d.findings} >= {
        "gpu_lost",
        "engine_hung",
    }


# -- restart -----------------------------------------------------------------------------------------------------


class OneLoss:
    """A source of one GPU page; in the third tick the kernel log says that it fell off the bus."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.reads = clock, 0
        self.layout = Layout("n0:9400", (Series("power_w", Entity("gpu", "n0/gpu0")),))

    async def read(self) -> list[Scrape]:
        self.reads += 1
        at = self.clock()
        page = Scrape("n0:9400", at, self.layout, np.array([500.0 + self.reads]))
        if self.reads != 3:
            return [page]
        lost = Event(at, Entity("gpu", "n0/gpu0"), "xid", 79.0, "kernel_log")
        return [page, Scrape("log", at, None, None, (lost,))]


def daemon_of(folder: Path, loop: VirtualLoop) -> Daemon:
    clock = loop_clock(loop, 1_780_272_000.0)
    return assemble(
        Parts(
            policy=Policy(),
            sources={"one": OneLoss(clock)},
            record=Record.open(folder),
            clock=clock,
            fit=fit_here,
            backends={},
            action_of={},
        )
    )


def test_the_record_of_a_rule_survives_a_kill_without_a_snapshot(tmp_path: Path) -> None:
    async def first(loop: VirtualLoop) -> None:
        daemon = daemon_of(tmp_path, loop)
        await daemon.run(ticks=5)
        daemon.command(Command("refute", "i00001", "kim", loop.time()))
        daemon.tick()
        daemon.record.commit()
        assert daemon.core.state.ledger.tallies["fault.xid_lost"] == Tally(fired=1, refuted=1)
        daemon.record.close()

    async def second(loop: VirtualLoop) -> None:
        daemon = daemon_of(tmp_path, loop)
        daemon.restore()
        found.append(daemon.core.state.ledger)
        daemon.record.close()

    found: list[Ledger] = []
    run_virtual(first)
    with closing(sqlite3.connect(next(tmp_path.glob("*.db")))) as file, file:
        file.execute("DELETE FROM snapshots")

    run_virtual(second)

    assert found[0].tallies == {"fault.xid_lost": Tally(fired=1, refuted=1)}
    assert found[0].cases["i00001"].by == "operator kim"
