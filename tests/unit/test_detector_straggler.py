"""Who is slow and who is only busy; what everybody shares is nobody's fault."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from small_frames import frame, frames, kinds, last

from daemon.model import Array, Finding, Frames, Severity
from daemon.plan import ISOLATE_SCORE
from detectors.fusion import FAMILIES, Fusion, fitted
from detectors.gpupace import GpuPace
from detectors.replicapace import _misfit
from detectors.scales import Scales
from detectors.stats import groups
from detectors.steps import StepModel
from detectors.straggler import StragglerDetector
from detectors.versions import VersionWatch

GPUS = tuple(f"n{k // 4}/gpu{k % 4}" for k in range(16))
ENGINES = tuple(f"e{k}" for k in range(8))
TICK = 15.0
Change = Callable[[np.random.Generator], Mapping[str, Mapping[str, float]]]


def gpu_stream(minutes: int, change: Change, start: int = 0, *, peer: str = "chat|H100") -> Iterator[Frames]:
    """Busy GPUs with 1 % of clock noise in steps of 15 MHz; `change` says what some show instead."""
    rng = np.random.default_rng(7)
    for k in range(start * 4, (start + minutes) * 4):
        rows = {
            g: {
                "sm_clock_mhz": 15.0 * round(1900.0 * (1 + 0.01 * rng.standard_normal()) / 15.0),
                "util_ratio": 0.97,
                "power_w": 600.0 + 0.1 * (k % 7),
            }
            for g in GPUS
        }
        for name, values in change(rng).items():
            rows[name] |= values
        yield frames(TICK * k, frame("gpu", TICK * k, rows, {g: {"peer": peer} for g in GPUS}))


def engine_stream(
    minutes: int,
    slow: Mapping[str, float] | None = None,
    batch: Mapping[str, float] | None = None,
    version: Mapping[str, str] | None = None,
    start: int = 0,
    node: Mapping[str, str] | None = None,
) -> Iterator[Frames]:
    """Replicas whose step takes 16 ms and 0.1 ms for each running request, with 2 % of noise."""
    rng = np.random.default_rng(11 + start)
    facts = {
        e: {
            "peer": "chat||llama",
            "pool": "chat",
            "version": (version or {}).get(e, "v1"),
            "node": (node or {}).get(e, ""),
        }
        for e in ENGINES
    }
    for k in range(start * 4, (start + minutes) * 4):
        rows = {}
        for e in ENGINES:
            running = (batch or {}).get(e, 40.0) * (1 + 0.1 * rng.standard_normal())
            step = (0.016 + 1e-4 * running) * (1 + 0.02 * rng.standard_normal()) * (slow or {}).get(e, 1.0)
            rows[e] = {
                "itl_mean_s": step,
                "itl_per_s": running / step,
                "running": max(2.0, running),
                "prompt_tokens_s": 40.0 * running,
            }
        yield frames(TICK * k, frame("engine", TICK * k, rows, facts))


def everything(stream: Iterator[Frames]) -> list[Finding]:
    detector = StragglerDetector()
    return [f for given in stream for f in detector.update(given)]


# -- GPUs -------------------------------------------------------------------------------------------------


def test_equal_gpus_are_quiet():
    assert everything(gpu_stream(60, lambda rng: {})) == []


def test_a_slow_gpu_is_found_against_its_peers():
    found = last(StragglerDetector(), gpu_stream(5, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1600.0}}))

    assert kinds(found) == [("gpu_slow", f"gpu {GPUS[3]}")]
    assert found[0].severity is Severity.WARNING
    assert found[0].evidence[0].value < found[0].evidence[0].peer


def test_what_three_percent_of_silicon_lottery_costs_is_no_straggler():
    assert everything(gpu_stream(60, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1845.0}})) == []


def test_who_dips_on_a_hot_day_is_not_held_against_the_clocks_of_the_minute_before():
    """All of 24 lose a tenth within a minute, and one of them dips by a twentieth: nobody is 15 % slower than the others are now."""
    names, rng = tuple(f"n{k // 8}/gpu{k % 8}" for k in range(24)), np.random.default_rng(7)
    facts = {name: {"peer": "chat|H100"} for name in names}
    detector, found = StragglerDetector(), []
    for k in range(30 * 4):
        clock = 1900.0 if k < 20 * 4 + 1 else 1710.0
        dip = 0.95 if 20 * 4 + 1 <= k < 20 * 4 + 5 else 1.0
        rows = {
            n: {
                "sm_clock_mhz": 15.0 * round(clock * (1 + 0.01 * rng.standard_normal()) / 15.0),
                "util_ratio": 0.97,
                "power_w": 600.0 + 0.1 * (k % 7),
            }
            for n in names
        }
        rows["n1/gpu3"]["sm_clock_mhz"] *= dip
        found += detector.update(frames(TICK * k, frame("gpu", TICK * k, rows, facts)))

    assert found == []


@pytest.mark.parametrize(("minutes", "severity"), [(3 * 60, Severity.INFO), (5 * 60, Severity.WARNING)])
def test_a_replica_less_than_a_tenth_slow_wakes_people_after_four_hours(minutes: int, severity: Severity):
    detector = StragglerDetector()
    last(detector, town_stream(150))
    found = last(detector, town_stream(minutes, 150, slow=0.095))

    assert kinds(found) == [("replica_slow", "engine e5")]
    assert found[0].severity is severity


def test_a_slow_replica_is_dated_once():
    """Dated by a minute that shows little of it, it would have been slow since the daemon began, and page at once."""
    detector = StragglerDetector()
    last(detector, town_stream(150))
    told = [f for given in town_stream(300, 150, slow=0.095) for f in detector.update(given)]

    stands = [(f.at, f.since) for f in told if f.rule_id == "straggler.replica_slow"]
    moved = [b for a, b in pairwise(stands) if b[0] - a[0] <= 2 * TICK and b[1] != a[1]]
    assert stands
    assert moved == []


def test_a_slow_gpu_is_dated_once():
    """What it was short of before is nobody's trouble and no part of how long it has been slow."""
    detector = StragglerDetector()
    last(detector, gpu_stream(60, lambda rng: {}))
    last(detector, gpu_stream(40, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1845.0}}, 60))
    began = last(detector, gpu_stream(10, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1740.0}}, 100))[0].since
    less = last(detector, gpu_stream(8, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1805.0}}, 110))

    assert abs(began - 100 * 60.0) <= 60.0
    assert [f.since for f in less] == [began]


def test_an_idle_gpu_at_a_low_clock_is_not_slow():
    assert everything(gpu_stream(20, lambda rng: {GPUS[3]: {"sm_clock_mhz": 345.0, "util_ratio": 0.0}})) == []


def test_a_gpu_that_begins_to_work_in_the_middle_of_a_minute_is_not_slow():
    idle = {"sm_clock_mhz": 345.0, "util_ratio": 0.0}
    asleep, awake = (list(gpu_stream(22, lambda rng, odd=odd: {GPUS[3]: odd})) for odd in (idle, {}))

    for begins in range(80, 84):  # wherever the minute ends, one of these has it half idle
        detector = StragglerDetector()
        found = [f for given in [*asleep[:begins], *awake[begins:]] for f in detector.update(given)]
        assert found == [], begins


def test_all_gpus_slow_together_are_nobodys_fault():
    detector = StragglerDetector()
    last(detector, gpu_stream(20, lambda rng: {}))

    found = last(
        detector,
        gpu_stream(20, lambda rng: {g: {"sm_clock_mhz": 1300.0 + rng.normal(0, 10)} for g in GPUS}, 20),
    )

    assert found == []


def test_two_skus_are_two_peer_groups():
    def stream() -> Iterator[Frames]:
        for k in range(80):
            clock = {
                g: {"sm_clock_mhz": 1900.0 if i < 8 else 1400.0, "util_ratio": 0.97}
                for i, g in enumerate(GPUS)
            }
            facts = {g: {"peer": "chat|H100" if i < 8 else "chat|A100"} for i, g in enumerate(GPUS)}
            yield frames(TICK * k, frame("gpu", TICK * k, clock, facts))

    assert everything(stream()) == []


def test_a_claim_stands_between_two_blocks_and_ends_with_the_slowness():
    detector = StragglerDetector()
    slow = last(detector, gpu_stream(5, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1600.0}}))

    well = last(detector, gpu_stream(30, lambda rng: {}, 5))

    assert len(slow) == 1
    assert well == []


def test_a_claim_does_not_outlive_the_telemetry_it_was_made_from():
    detector = StragglerDetector()
    last(detector, gpu_stream(5, lambda rng: {GPUS[3]: {"sm_clock_mhz": 1600.0}}))

    assert detector.update(frames(400.0)) == []


# -- lock-step groups --------------------------------------------------------------------------------------


def lockstep_stream(minutes: int, lead: Mapping[str, float], start: int = 0) -> Iterator[Frames]:
    """Four groups of four ranks. lead : how much more a rank works than its group; activity has 2 % of noise."""
    rng = np.random.default_rng(3 + start)
    facts = {g: {"peer": "chat|H100", "engine": f"e{k // 4}"} for k, g in enumerate(GPUS)}
    for k in range(start * 4, (start + minutes) * 4):
        rows = {
            g: {
                "sm_clock_mhz": 1900.0,
                "util_ratio": 0.99,
                "tensor_active_ratio": 0.3 * (1 + lead.get(g, 0.0)) * (1 + 0.02 * rng.standard_normal()),
                "dram_active_ratio": 0.6 * (1 + lead.get(g, 0.0)) * (1 + 0.02 * rng.standard_normal()),
            }
            for g in GPUS
        }
        yield frames(TICK * k, frame("gpu", TICK * k, rows, facts))


def pairs_stream(minutes: int, pairs: int, lead: float = 0.0, start: int = 0) -> Iterator[Frames]:
    """Pairs of ranks whose share of the work wanders by 2.2 % within minutes. lead : of the first rank of all."""
    rng = np.random.default_rng(7 + start)
    names = [f"n{k // 8}/gpu{k % 8}" for k in range(2 * pairs)]
    facts = {g: {"peer": "chat|H100", "engine": f"e{k // 2}"} for k, g in enumerate(names)}
    wander = np.zeros(pairs)
    for k in range(start * 4, (start + minutes) * 4):
        wander = 0.92 * wander + 0.022 * np.sqrt(1 - 0.92**2) * rng.standard_normal(pairs)
        more = np.stack((wander, -wander), axis=1).ravel() / 2
        if lead:
            more[:2] = lead + 0.0001 * (k % 3), 0.0001 * (k % 5)
        rows = {
            g: {"sm_clock_mhz": 1900.0, "util_ratio": 0.99,
                "tensor_active_ratio": 0.3 * (1 + m), "dram_active_ratio": 0.6 * (1 + m)}
            for g, m in zip(names, more.tolist(), strict=True)
        }  # fmt: skip
        yield frames(TICK * k, frame("gpu", TICK * k, rows, facts))


BORN = {GPUS[1]: 0.03, GPUS[6]: 0.04, GPUS[9]: -0.03}
"""What some ranks always work more or less than their group: silicon differs."""


def test_a_page_that_froze_in_a_dip_of_the_clock_is_no_slow_gpu():
    """Seen in a healthy fleet: the dip was over in minutes, the exporter showed it for twenty."""
    detector = StragglerDetector()
    last(detector, lockstep_stream(180, {}))
    found: list[Finding] = []
    frozen: dict[str, Array] = {}
    for given in lockstep_stream(40, {}, start=180):
        gpu = given["gpu"]
        row = gpu.entities.index(GPUS[5])
        values = gpu.values.copy()
        values[row] = frozen.setdefault(
            "page", values[row] * np.where(np.array(gpu.signals) == "sm_clock_mhz", 0.94, 1.0)
        )
        found = detector.update(frames(given.at, replace(gpu, values=values)))
        assert all(f.severity is Severity.INFO for f in found)

    assert found == []


def test_ranks_that_always_differ_a_little_are_quiet():
    assert everything(lockstep_stream(240, BORN)) == []


def test_the_rank_its_group_waits_for_is_found_within_half_an_hour():
    detector = StragglerDetector()
    last(detector, lockstep_stream(180, BORN))

    found = last(detector, lockstep_stream(25, BORN | {GPUS[5]: 0.07}, start=180))

    assert kinds(found) == [("gpu_slow", f"gpu {GPUS[5]}")]
    assert found[0].rule == "straggler.lockstep"


def test_a_lead_that_chance_brings_one_of_many_ranks_within_a_day_is_no_claim():
    few, many = GpuPace(), GpuPace()
    found = []
    for pace, pairs in ((few, 9), (many, 60)):
        claims: list[Finding] = []
        for minutes, lead, start in ((150, 0.0, 0), (6, 0.14, 150)):
            for given in pairs_stream(minutes, pairs, lead, start):
                claims = pace.update(given["gpu"])
        found.append([c.entity.name for c in claims])

    assert found == [["n0/gpu0"], []]


def test_what_the_silicon_of_a_replica_that_has_just_started_brings_is_no_fault():
    """Nobody knows yet which of its ranks always leads; half an hour of it tells no more than that."""
    detector = StragglerDetector()
    found: list[Finding] = []
    for minutes, start in ((90, 0), (60, 90)):
        for given in lockstep_stream(minutes, {GPUS[5]: 0.06}, start=start):
            gpu = given["gpu"]
            if start == 0:
                # the second replica is not there yet
                for name in ("util_ratio", "tensor_active_ratio", "dram_active_ratio"):
                    gpu.values[4:8, gpu.signals.index(name)] = 0.0
            found += detector.update(given)

    assert found == []


def test_what_has_just_been_taken_back_is_not_claimed_again_in_the_same_minute():
    """A longer span still holds it when the shorter one that told it has let it go: it was told as "nan% slower" once more."""
    detector = StragglerDetector()
    last(detector, lockstep_stream(180, BORN))
    found: list[Finding] = []
    for lead, minutes, start in ((0.16, 7, 180), (0.064, 12, 187)):
        for given in lockstep_stream(minutes, BORN | {GPUS[5]: lead}, start=start):
            found += detector.update(given)

    assert found
    assert all(np.isfinite(e.value) for f in found for e in f.evidence if e.name == "slower_by")


def test_what_the_first_rank_of_every_replica_works_more_is_no_fault_of_its_gpu():
    """It samples and gathers for all, more so by day than by night."""
    detector = StragglerDetector()
    first = {g: 0.0 for g in GPUS[::4]}
    found = []
    for hour in range(8):
        first = {g: 0.10 + 0.02 * hour for g in first}
        for given in lockstep_stream(60, first, start=60 * hour):
            found += detector.update(given)
    sick = last(detector, lockstep_stream(40, first | {GPUS[4]: 0.36}, start=480))

    assert found == []
    assert kinds(sick) == [("gpu_slow", f"gpu {GPUS[4]}")]


# -- pipeline stages ---------------------------------------------------------------------------------------


def pipeline_stream(minutes: int, slow: str = "", more: float = 0.0, start: int = 0) -> Iterator[Frames]:
    """Four replicas of two stages of two ranks. The second stage has fewer layers and always waits: a bubble of 20 %."""
    rng = np.random.default_rng(31 + start)
    facts = {
        g: {"peer": "chat|H100", "engine": f"e{k // 4}", "stage": str(k % 4 // 2)} for k, g in enumerate(GPUS)
    }
    for k in range(start * 4, (start + minutes) * 4):
        rows = {}
        for g in GPUS:
            engine, stage = facts[g]["engine"], facts[g]["stage"]
            share = (1.0 if stage == "0" else 0.8) * (1.0 + more if f"{engine}|{stage}" == slow else 1.0)
            rows[g] = {
                "sm_clock_mhz": 1900.0,
                "util_ratio": 0.99,
                "tensor_active_ratio": 0.3 * share * (1 + 0.01 * rng.standard_normal()),
                "dram_active_ratio": 0.6 * share * (1 + 0.01 * rng.standard_normal()),
            }
        engines = frame("engine", TICK * k, {f"e{n}": {"running": 1.0} for n in range(4)})
        yield frames(TICK * k, frame("gpu", TICK * k, rows, facts), engines)


def test_stages_of_unequal_weight_are_quiet():
    assert everything(pipeline_stream(240)) == []


@pytest.mark.parametrize("stage", ["e2|0", "e2|1"])
def test_a_stage_busier_than_the_same_stage_elsewhere_is_told_with_the_bubbles(stage: str):
    detector = StragglerDetector()
    last(detector, pipeline_stream(120))
    found = last(detector, pipeline_stream(20, stage, 0.15, start=120))

    assert kinds(found) == [("stage_slow", "engine e2")]
    bubbles = {e.name: e.value for e in found[0].evidence if e.name.startswith("bubble")}
    assert set(bubbles) == {"bubble_of_stage_0", "bubble_of_stage_1"}
    assert min(bubbles.values()) == 0.0
    assert last(detector, pipeline_stream(40, start=140)) == []


# -- replicas -----------------------------------------------------------------------------------------------


def test_equal_replicas_are_quiet_whatever_their_load():
    batch = {e: 10.0 + 12.0 * k for k, e in enumerate(ENGINES)}

    assert everything(engine_stream(40, batch=batch)) == []


def test_a_busy_replica_is_not_slow():
    assert everything(engine_stream(40, batch={"e2": 160.0})) == []


def engine_rows(k: int, change: Mapping[str, Mapping[str, float]], rng: np.random.Generator) -> Frames:
    """One tick of replicas whose pages tell no start time; `change` says what some show instead."""
    rows, facts = {}, {e: {"peer": "chat||llama", "pool": "chat", "version": "v1"} for e in change}
    for e, other in change.items():
        running = 40.0 * (1 + 0.1 * rng.standard_normal())
        step = (0.016 + 1e-4 * running) * (1 + 0.02 * rng.standard_normal())
        rows[e] = {
            "itl_mean_s": step,
            "itl_per_s": running / step,
            "running": running,
            "prompt_tokens_s": 40.0 * running,
        } | dict(other)
    return frames(TICK * k, frame("engine", TICK * k, rows, facts))


def test_a_replica_that_has_just_come_is_not_compared_although_its_page_tells_no_start_time():
    detector, rng, found = StragglerDetector(), np.random.default_rng(5), []
    for k in range(4 * 60):
        old = {e: {} for e in ENGINES}
        cold = {"e8": {"itl_mean_s": 0.07 if k < 4 * 48 else 0.02}} if k >= 4 * 40 else {}
        found += detector.update(engine_rows(k, old | cold, rng))

    assert found == []


def test_a_replica_that_stays_slow_once_it_is_warm_is_found_without_a_start_time():
    detector, rng = StragglerDetector(), np.random.default_rng(5)
    for k in range(4 * 60):
        came = {"e8": {"itl_mean_s": 0.04}} if k >= 4 * 40 else {}
        found = detector.update(engine_rows(k, {e: {} for e in ENGINES} | came, rng))

    assert kinds(found) == [("replica_slow", "engine e8")]


def test_a_replica_that_reads_its_prompts_again_is_full_and_not_slow():
    """Preempted requests are computed again, which is in no count of prompts, and what has queued drains for minutes more."""
    detector, rng, found = StragglerDetector(), np.random.default_rng(6), []
    for k in range(4 * 60):
        full = {"itl_mean_s": 0.035, "waiting": 40.0} if 4 * 40 <= k < 4 * 46 else {}
        again = {"preemptions_per_s": 0.8 if 4 * 40 <= k < 4 * 43 else 0.0}
        found += detector.update(engine_rows(k, {e: {} for e in ENGINES} | {"e2": full | again}, rng))

    assert found == []


def test_steps_at_a_batch_that_nobody_has_may_take_as_much_longer_as_the_batch_is_larger():
    rng, model = np.random.default_rng(3), StepModel()
    for _ in range(40):
        batch = rng.uniform(20, 50, 8)
        model.learn(batch, 10.0 * batch, 0.01 * batch, np.zeros(8), 0.016 + 1e-4 * batch)

    batch, kv = np.array([50.0, 100.0, 50.0]), np.array([0.5, 0.5, 0.75])
    told, granted = model.expected(batch, np.full(3, 500.0), kv, np.zeros(3), np.ones(3, dtype=bool))
    _, less = model.expected(batch, np.full(3, 500.0), kv, np.zeros(3), np.zeros(3, dtype=bool))
    flooded, _ = model.expected(
        np.array([50.0]), np.array([900.0]), np.array([0.5]), np.zeros(1), np.ones(1, dtype=bool)
    )

    assert told[0] == pytest.approx(np.log(0.021), abs=0.02)
    assert told[1] - told[0] == pytest.approx(np.log(2.0), abs=0.03)
    assert told[2] - told[0] == pytest.approx(np.log(1.5), abs=0.03)
    assert granted == pytest.approx(np.log([1.0, 2.0, 1.5]), abs=0.03)
    assert less == pytest.approx([0.0, 0.36, 0.20], abs=0.05), (
        "a seventh of the step grows with the batch, as far as told, and three more tenths may"
    )
    assert np.isnan(flooded[0])


def test_one_of_a_dozen_replicas_a_tenth_slow_is_found_by_their_own_tail_within_the_hour():
    detector, rng, names = StragglerDetector(), np.random.default_rng(6), [f"e{i}" for i in range(14)]
    for k in range(4 * 160):
        slow = {"itl_mean_s": 0.022 * (1 + 0.02 * rng.standard_normal())} if k >= 4 * 120 else {}
        found = detector.update(engine_rows(k, {e: slow if e == "e2" else {} for e in names}, rng))

    assert kinds(found) == [("replica_slow", "engine e2")]


def crowd_stream(minutes: int, slow: Mapping[str, float], start: int = 0) -> Iterator[Frames]:
    """Forty replicas on eight nodes; `slow` says by how much longer a step those of a node take."""
    rng = np.random.default_rng(31 + start)
    homes = {f"e{i}": f"n{i // 5}" for i in range(40)}
    facts = {e: {"peer": "chat||llama", "pool": "chat", "version": "v1", "node": n} for e, n in homes.items()}
    for k in range(start * 4, (start + minutes) * 4):
        rows = {}
        for e, home in homes.items():
            running = 40.0 * (1 + 0.1 * rng.standard_normal())
            step = (0.016 + 1e-4 * running) * (1 + 0.02 * rng.standard_normal()) * (1 + slow.get(home, 0.0))
            rows[e] = {
                "itl_mean_s": step,
                "itl_per_s": running / step,
                "running": running,
                "prompt_tokens_s": 40.0 * running,
            }
        yield frames(TICK * k, frame("engine", TICK * k, rows, facts))


def test_a_node_all_of_whose_replicas_are_a_little_slower_is_told_by_their_middle():
    detector = StragglerDetector()
    sound = [f for given in crowd_stream(150, {}) for f in detector.update(given)]
    found = last(detector, crowd_stream(40, {"n3": 0.064}, 150))
    over = last(detector, crowd_stream(40, {}, 190))

    assert (sound, over) == ([], [])
    assert kinds(found) == [("replica_slow", "node n3")]
    assert found[0].severity is Severity.INFO
    assert found[0].score < ISOLATE_SCORE


def test_many_nodes_slow_at_once_have_a_cause_that_is_none_of_theirs():
    detector = StragglerDetector()
    last(detector, crowd_stream(150, {}))

    assert last(detector, crowd_stream(40, {"n1": 0.064, "n3": 0.064, "n5": 0.064}, 150)) == []


def test_what_one_replica_alone_runs_teaches_nobody_what_it_costs():
    """Eight times the batch of the others, for a quarter of an hour in shorter steps than later: both are less than so many requests may take."""
    detector, rng, found = StragglerDetector(), np.random.default_rng(6), []
    for k in range(4 * 80):
        step = 0.06 if k < 4 * 55 else 0.08
        busy = {"running": 320.0, "itl_mean_s": step, "itl_per_s": 320.0 / step}
        rows = {e: busy if e == "e2" and k >= 4 * 40 else {} for e in ENGINES}
        found += detector.update(engine_rows(k, rows, rng))

    assert found == []


@pytest.mark.parametrize(("times", "told"), [(1.0, True), (2.0, False)])
def test_what_only_the_busiest_shows_is_held_against_the_doubt_of_the_model(times: float, told: bool):
    """A replica comes to run twice the batch of forty others: what a step takes there the model has from it alone, and a tenth is within what it may err by."""
    detector, rng = StragglerDetector(), np.random.default_rng(6)
    for k in range(4 * 125):
        running = 40.0 * min(times, 1.0 + (times - 1.0) * k / (4 * 40)) * (1 + 0.1 * rng.standard_normal())
        step = (0.016 + 1e-4 * running) * (1 + 0.02 * rng.standard_normal()) * (1.1 if k >= 4 * 100 else 1.0)
        prompts = (1600.0 if times == 1.0 else 1920.0) * (1 + 0.1 * rng.standard_normal())
        busy = {
            "running": running,
            "itl_mean_s": step,
            "itl_per_s": running / step,
            "prompt_tokens_s": prompts,
        }
        found = detector.update(engine_rows(k, {f"e{i}": busy if i == 2 else {} for i in range(40)}, rng))

    assert kinds(found) == ([("replica_slow", "engine e2")] if told else [])


def test_where_the_model_is_off_for_the_busiest_they_are_held_against_one_another():
    """A model 7 % short for the busiest tenth of two hundred, and one of those 20 % slow: only that one is left. Too few cannot tell, and what is far off is no misfit."""
    rng = np.random.default_rng(6)
    expected = np.sort(rng.normal(-3.8, 0.2, 200))
    over = 0.01 * rng.standard_normal(200) + np.where(np.arange(200) >= 180, 0.07, 0.0)
    over[190] += 0.2
    over[5], nobody = np.nan, np.zeros(200, dtype=bool)

    left = over - _misfit(over, expected, nobody, groups(("chat",) * 200))
    few = _misfit(over[-50:], expected[-50:], nobody[-50:], groups(("chat",) * 50))
    slow = np.where(expected > np.median(expected), 0.3, over)
    half = slow - _misfit(slow, expected, nobody, groups(("chat",) * 200))

    assert left[190] == pytest.approx(0.2, abs=0.03)
    assert np.nanmax(np.abs(np.delete(left, 190)[185:])) < 0.04
    assert np.nanmax(np.abs((left - over)[:170])) == 0.0
    assert few.tolist() == [0.0] * 50
    assert np.nanmin(half[105:]) > 0.19


def test_the_busiest_of_a_large_pool_are_not_told_for_what_the_model_has_not_learnt():
    """Twelve of 240 come to run a quarter more, and their steps take 12 % longer than anything the others showed explains."""
    detector, rng = StragglerDetector(), np.random.default_rng(6)
    names, busy = [f"e{i}" for i in range(240)], np.arange(240) < 12
    facts = {
        e: {"peer": "chat||llama", "pool": "chat", "version": "v1", "node": f"n{i % 30}"}
        for i, e in enumerate(names)
    }
    found = []
    for k in range(4 * 150):
        on = busy & (k >= 4 * 90)
        running = 40.0 * np.where(on, 1.25, 1.0) * (1 + 0.05 * rng.standard_normal(240))
        step = (0.016 + 1e-4 * running) * (1 + 0.015 * rng.standard_normal(240)) * np.where(on, 1.12, 1.0)
        rows = {
            e: {"itl_mean_s": s, "itl_per_s": r / s, "running": r, "prompt_tokens_s": 1600.0}
            for e, r, s in zip(names, running.tolist(), step.tolist(), strict=True)
        }
        found += detector.update(frames(TICK * k, frame("engine", TICK * k, rows, facts)))

    assert found == []


def test_a_larger_batch_at_the_same_work_is_no_excuse():
    """By Little's law who takes twice as long for the same requests holds twice as many of them: at a batch that nobody knows as well."""
    detector, rng = StragglerDetector(), np.random.default_rng(6)
    for k in range(4 * 60):
        slow = {"running": 80.0, "itl_mean_s": 0.040, "itl_per_s": 2000.0} if k >= 4 * 45 else {}
        found = detector.update(engine_rows(k, {e: {} for e in ENGINES} | {"e2": slow}, rng))

    assert kinds(found) == [("replica_slow", "engine e2")]


def test_who_has_a_known_load_is_not_slow_because_others_are_granted_much_for_an_unknown_one():
    """A wave of long prompts fills seven of eight, whose steps grow by half of the most that such batches could cost."""
    detector, rng, found = StragglerDetector(), np.random.default_rng(6), []
    for k in range(4 * 50):
        wave = {e: {"running": 90.0, "itl_mean_s": 0.030} for e in ENGINES if e != "e2"}
        rows = wave if k >= 4 * 40 else {}
        found += detector.update(engine_rows(k, {e: rows.get(e, {}) for e in ENGINES}, rng))

    assert found == []


@pytest.mark.parametrize("preempts_in", [(), (57, 58, 59)], ids=["busy", "overloaded until then"])
def test_steps_of_a_load_that_has_just_fallen_are_not_compared_with_the_load_of_now(
    preempts_in: tuple[int, ...],
):
    """They are means over the last minute: a popular session ends, and the page still tells its steps."""
    detector, rng, found = StragglerDetector(), np.random.default_rng(6), []
    falls = [110.0] * 60 + [55.0, 28.0, 14.0, 7.0] + [7.0] * 26
    for minute in range(90):
        for k in range(4 * minute, 4 * minute + 4):
            loads = {e: 6.0 + 17.0 * n for n, e in enumerate(ENGINES)} | {"e7": falls[minute]}
            shown = loads | {"e7": falls[max(minute - 1, 0)]}
            change = {
                e: {
                    "running": n,
                    "prompt_tokens_s": 40.0 * n,
                    "itl_mean_s": (0.005 + 3e-4 * shown[e]) * rng.normal(1, 0.01),
                    "preemptions_per_s": float(e == "e7" and minute in preempts_in),
                }
                for e, n in loads.items()
            }
            found += detector.update(engine_rows(k, change, rng))

    assert found == []


def test_a_slow_replica_is_found_at_equal_batch():
    found = last(StragglerDetector(), engine_stream(12, slow={"e2": 1.5}))

    assert kinds(found) == [("replica_slow", "engine e2")]


def test_a_replica_that_has_left_is_claimed_by_nobody_any_more():
    """Between two minutes claims stand as they are: of one that was drained and is gone it would stand alone."""
    detector = StragglerDetector()
    last(detector, engine_stream(12, slow={"e2": 1.5}))
    gone = next(engine_stream(1, start=12))
    rest = [e for e in ENGINES if e != "e2"]
    rows = {e: {"running": 40.0} for e in rest}
    facts = {e: {"peer": "chat||llama", "pool": "chat"} for e in rest}

    found = detector.update(frames(gone.at, frame("engine", gone.at, rows, facts)))

    assert found == []


def test_a_slow_replica_is_found_although_its_batch_is_smaller():
    detector, batch = StragglerDetector(), {e: 20.0 + 8.0 * k for k, e in enumerate(ENGINES)}
    last(detector, engine_stream(20, batch=batch))

    found = last(detector, engine_stream(12, slow={"e2": 1.5}, batch=batch | {"e2": 20.0}, start=20))

    assert kinds(found) == [("replica_slow", "engine e2")]


def test_a_slow_version_is_blamed_and_no_node():
    detector, rolled_out = StragglerDetector(), dict.fromkeys(ENGINES[:3], "v2")
    last(detector, engine_stream(20))

    found = last(
        detector, engine_stream(12, slow=dict.fromkeys(rolled_out, 1.35), version=rolled_out, start=20)
    )

    assert kinds(found) == [("deploy_regression", "pool chat")]
    assert "v2" in found[0].text
    assert found[0].since >= 20 * 60.0


def test_a_version_that_replaced_all_replicas_is_still_compared_with_the_one_before():
    detector, rolled_out = StragglerDetector(), dict.fromkeys(ENGINES, "v2")
    last(detector, engine_stream(20))

    found = last(detector, engine_stream(6, slow=dict.fromkeys(ENGINES, 1.3), version=rolled_out, start=20))

    assert kinds(found) == [("deploy_regression", "pool chat")]


def test_an_equally_fast_version_is_quiet():
    detector = StragglerDetector()
    last(detector, engine_stream(20))

    assert last(detector, engine_stream(30, version=dict.fromkeys(ENGINES[:4], "v2"), start=20)) == []


def test_a_slow_replica_of_the_old_version_is_not_blamed_on_the_new_one():
    versions = dict.fromkeys(ENGINES[:3], "v2")
    detector = StragglerDetector()
    last(detector, engine_stream(20))

    found = last(detector, engine_stream(12, slow={"e6": 1.6}, version=versions, start=20))

    assert kinds(found) == [("replica_slow", "engine e6")]


def test_half_a_pool_slow_at_once_is_a_common_cause():
    detector = StragglerDetector()
    last(detector, engine_stream(20))

    found = last(detector, engine_stream(12, slow=dict.fromkeys(ENGINES[:3], 1.6), start=20))

    assert kinds(found) == [("fleet_slow", "pool chat")]


def test_replicas_slow_a_quarter_of_an_hour_apart_are_each_to_blame():
    """Three within half an hour were taken for a common cause, which named nobody."""
    detector, slow = StragglerDetector(), {"e0": 1.6}
    last(detector, engine_stream(20))
    last(detector, engine_stream(15, slow=slow, start=20))
    last(detector, engine_stream(15, slow=slow | {"e2": 1.25}, start=35))

    found = last(detector, engine_stream(12, slow=slow | {"e2": 1.25, "e4": 1.5}, start=50))

    assert kinds(found) == [("replica_slow", f"engine {e}") for e in ("e0", "e2", "e4")]


def test_who_is_excused_no_longer_is_told_by_what_is_measured():
    """Three slow down together and two of them get well, while the third has no traffic in every second minute."""
    detector, rng, found = StragglerDetector(), np.random.default_rng(5), []
    for k in range(4 * 60):
        slow = ENGINES[:3] if k < 4 * 45 else ENGINES[:1]
        rows = {e: {"itl_mean_s": 0.033} if k > 4 * 30 and e in slow else {} for e in ENGINES}
        if k > 4 * 45 and k // 4 % 2:
            rows["e0"] = {"running": 0.0, "itl_per_s": 0.0}
        found += detector.update(engine_rows(k, rows, rng))

    assert {"fleet_slow", "replica_slow"} <= {f.kind for f in found}
    assert all(math.isfinite(e.value) for f in found if f.kind == "replica_slow" for e in f.evidence[:2])


def test_replicas_that_became_slow_hours_apart_have_no_cause_in_common():
    detector = StragglerDetector()
    last(detector, engine_stream(20))
    slow: dict[str, float] = {}
    for k, name in enumerate(ENGINES[:3]):
        slow[name] = 1.6
        found = last(detector, engine_stream(60, slow=slow, start=20 + 60 * k))

    assert kinds(found) == [("replica_slow", f"engine {e}") for e in ENGINES[:3]]


def test_replicas_of_one_node_that_slow_down_together_are_its_own_trouble():
    homes = {e: f"n{k // 3}" for k, e in enumerate(ENGINES)}
    detector = StragglerDetector()
    last(detector, engine_stream(20, node=homes))

    found = last(detector, engine_stream(12, slow=dict.fromkeys(ENGINES[:3], 1.6), start=20, node=homes))

    assert kinds(found) == [("replica_slow", f"engine {e}") for e in ENGINES[:3]]


def lone_stream(minutes: int, start: int = 0, *, slow: float = 1.0, cores: float = 12.0) -> Iterator[Frames]:
    """A node with the only replica there is. cores : that are in use on it."""
    for given in engine_stream(minutes, slow={"e0": slow}, start=start):
        at, engine = given.at, given["engine"]
        row = {s: float(v) for s, v in zip(engine.signals, engine.values[0], strict=True)}
        alone = frame(
            "engine",
            at,
            {"e0": row},
            {"e0": {"peer": "chat||llama", "pool": "chat", "version": "v1", "node": "n0"}},
        )
        used = cores * (1.0 + 0.02 * np.sin(at))
        yield frames(at, alone, frame("node", at, {"n0": {"cpus": 64.0, "cpu_idle_s_per_s": 64.0 - used}}))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"slow": 1.16, "cores": 24.0}, [("replica_slow", "engine e0")]),
        ({"slow": 1.16}, []),
        ({"cores": 24.0}, []),
    ],
)
def test_a_replica_without_peers_is_told_when_its_steps_and_its_processors_agree(
    trouble: dict[str, float], said: list[tuple[str, str]]
):
    detector = StragglerDetector()
    last(detector, lone_stream(330))

    found = last(detector, lone_stream(25, 330, **trouble))

    assert kinds(found) == said
    assert all(
        f.score <= 0.5 and "(no peers, low confidence); its node uses 24 cores" in f.text for f in found
    )


def test_a_small_slowness_that_is_over_is_not_found_again_in_what_is_remembered():
    detector = StragglerDetector()
    last(detector, engine_stream(60))

    during = last(detector, engine_stream(300, slow={"e6": 1.09}, start=60))
    after = [
        f for given in engine_stream(480, start=360) for f in detector.update(given) if given.at > 23_000
    ]

    assert kinds(during) == [("replica_slow", "engine e6")]
    assert after == []


def test_a_slow_version_stays_slow_until_it_is_mended():
    detector, new = StragglerDetector(), dict.fromkeys(ENGINES, "v2")
    last(detector, engine_stream(60))

    soon = last(detector, engine_stream(40, slow=dict.fromkeys(ENGINES, 1.25), version=new, start=60))
    late = last(detector, engine_stream(300, slow=dict.fromkeys(ENGINES, 1.25), version=new, start=100))
    mended = last(detector, engine_stream(45, version=new, start=400))

    assert kinds(soon) == kinds(late) == [("deploy_regression", "pool chat")]
    assert mended == []


def test_a_group_of_few_requests_must_stand_out_of_its_own_noise():
    """Three replicas whose steps wander by 13 % from minute to minute beside thirty that hardly do."""
    rng, names = np.random.default_rng(2), tuple(f"e{k}" for k in range(33))
    noise = np.array([0.13] * 3 + [0.01] * 30)
    few = groups(("few",) * 3 + ("many",) * 30)
    alone, among = (Scales((0.20, 0.15, 0.10, 0.09, 0.085, 0.07, 0.06), sigmas=5.0) for _ in range(2))
    hits = np.zeros(2)
    for _ in range(600):
        values = noise * rng.standard_normal(33)
        for k, (scales, where) in enumerate(((alone, None), (among, few))):
            scales.push(names, values)
            hit, _ = scales.beyond(where)
            scales.learn(hit)
            hits[k] += hit[:3].sum()

    assert hits[0] >= 3
    assert hits[1] == 0


def test_two_replicas_have_no_peers_to_be_judged_by():
    few = (
        frames(
            TICK * k,
            frame(
                "engine",
                TICK * k,
                {
                    e: {"itl_mean_s": s, "itl_per_s": 9.0, "running": 9.0}
                    for e, s in (("a", 0.02), ("b", 0.09))
                },
                {e: {"peer": "p"} for e in "ab"},
            ),
        )
        for k in range(60)
    )

    assert everything(few) == []


def test_the_load_model_takes_out_batch_and_prompts_and_is_not_bent_by_a_sick_replica():
    rng = np.random.default_rng(3)
    model = StepModel()
    for _ in range(20):
        batch, prompts = rng.uniform(5, 100, 8), rng.uniform(0, 20_000, 8)
        step = 0.003 * batch**0.4 * np.exp(2e-5 * prompts) * np.exp(0.02 * rng.standard_normal(8))
        step[5] *= 1.6
        model.learn(batch, prompts, np.full(8, 0.3), np.zeros(8), step)

    expected, _ = model.expected(
        np.array([64.0]), np.array([10_000.0]), np.array([0.3]), np.zeros(1), np.ones(1, dtype=bool)
    )
    over = np.log(0.003 * 64**0.4 * np.exp(0.2)) - expected

    assert np.abs(over).max() < 0.05


def test_a_queue_of_prompts_explains_long_steps_once_it_was_seen_on_sound_replicas():
    rng = np.random.default_rng(4)
    model = StepModel()
    for k in range(120):
        batch, queue = rng.uniform(5, 100, 8), np.full(8, float(k % 5 == 0))
        step = 0.003 * batch**0.4 * np.exp(0.25 * queue + 0.02 * rng.standard_normal(8))
        model.learn(batch, np.zeros(8), np.zeros(8), queue, step)

    idle, queued = (
        model.expected(np.array([40.0]), np.zeros(1), np.zeros(1), np.array([q]), np.ones(1, dtype=bool))[0]
        for q in (0.0, 1.0)
    )

    assert float(queued[0] - idle[0]) == pytest.approx(0.25, abs=0.05)


def test_a_load_model_without_enough_rows_says_nothing():
    model = StepModel()
    model.learn(np.full(8, 10.0), np.zeros(8), np.zeros(8), np.zeros(8), np.full(8, 0.02))

    assert np.isnan(
        model.expected(np.array([10.0]), np.zeros(1), np.zeros(1), np.zeros(1), np.ones(1, dtype=bool))[0]
    ).all()


def test_a_version_is_judged_only_after_enough_engine_minutes():
    watch, pools = VersionWatch(), ("chat",) * 4
    for k in range(6):
        watch.judge(60.0 * k, pools, ("v1",) * 4, np.zeros(4))

    early = watch.judge(400.0, pools, ("v1", "v1", "v1", "v2"), np.array([0.0, 0.0, 0.0, 0.4]))
    later = [
        watch.judge(400.0 + 60.0 * k, pools, ("v1", "v1", "v1", "v2"), np.array([0.0, 0.0, 0.0, 0.4]))
        for k in range(1, 13)
    ]

    assert early == []
    assert kinds(later[-1]) == [("deploy_regression", "pool chat")]


def test_a_version_of_few_replicas_must_stand_out_of_how_they_wander():
    """Three replicas whose steps wander together by 8 %, correlated over minutes; some of 40 roll-outs look slower at first."""
    rng, told, found = np.random.default_rng(8), 0, 0
    for slower in (0.0, 0.3):
        for _ in range(40):
            watch, wander, hit = VersionWatch(), 0.0, False
            for k in range(120):
                wander = 0.8 * wander + 0.05 * rng.standard_normal()
                version = "v2" if k >= 60 else "v1"
                over = wander + 0.02 * rng.standard_normal(3) + (np.log1p(slower) if k >= 60 else 0.0)
                hit |= bool(watch.judge(60.0 * k, ("chat",) * 3, (version,) * 3, over))
            told, found = (told + hit, found) if not slower else (told, found + hit)

    assert told <= 2
    assert found >= 38


# -- families together ----------------------------------------------------------------------------------------


def town_stream(
    minutes: int,
    start: int = 0,
    *,
    lead: float = 0.0,
    slow: float = 0.0,
    cores: float = 0.0,
    fault: str = "e5",
) -> Iterator[Frames]:
    """Eight replicas of two ranks on four nodes. lead, slow, cores : what replica `fault` shows of it, in shares."""
    rng = np.random.default_rng(21 + start)
    gpu_facts = {
        g: {"peer": "chat|H100", "engine": f"e{k // 2}", "node": f"n{k // 4}"} for k, g in enumerate(GPUS)
    }
    engine_facts = {
        e: {"peer": "chat||llama", "pool": "chat", "version": "v1", "node": f"n{k // 2}"}
        for k, e in enumerate(ENGINES)
    }
    for k in range(start * 4, (start + minutes) * 4):
        at = TICK * k
        gpus, engines = {}, {}
        for n, g in enumerate(GPUS):
            more = 1 + (lead if n == 2 * int(fault[1]) else 0.0)
            gpus[g] = {
                "sm_clock_mhz": 15.0 * round(1900.0 * (1 + 0.004 * rng.standard_normal()) / 15.0),
                "util_ratio": 0.99,
                "power_w": 600.0 * (1 + 0.01 * rng.standard_normal()),
                "tensor_active_ratio": 0.3 * more * (1 + 0.04 * rng.standard_normal()),
                "dram_active_ratio": 0.6 * more * (1 + 0.04 * rng.standard_normal()),
            }
        for e in ENGINES:
            running = 40.0 * (1 + 0.1 * rng.standard_normal())
            step = (
                (0.016 + 1e-4 * running)
                * (1 + 0.02 * rng.standard_normal())
                * (1 + (slow if e == fault else 0.0))
            )
            engines[e] = {
                "itl_mean_s": step, "itl_per_s": running / step, "running": running,
                "prompt_tokens_s": 40.0 * running, "ttft_mean_s": 0.2 * (1 + 0.05 * rng.standard_normal()),
            }  # fmt: skip
        home = f"n{int(fault[1]) // 2}"
        nodes = {
            n: {
                "cpus": 64.0,
                "cpu_idle_s_per_s": 64.0 - 20.0 * (1 + (cores if n == home else 0.0)) * rng.normal(1, 0.03),
            }
            for n in ("n0", "n1", "n2", "n3")
        }
        yield frames(
            at,
            frame("gpu", at, gpus, gpu_facts),
            frame("engine", at, engines, engine_facts),
            frame("node", at, nodes),
        )


def town(**trouble: float) -> list[Finding]:
    detector = StragglerDetector()
    last(detector, town_stream(150))
    return last(detector, town_stream(22, 150, **trouble))  # type: ignore[arg-type]


def test_signs_too_small_alone_are_told_together_and_page_nobody():
    found = town(lead=0.04, slow=0.06)

    assert kinds(found) == [("gpu_slow", f"gpu {GPUS[10]}")]
    assert (found[0].rule, found[0].severity) == ("straggler.together_gpu", Severity.INFO)
    assert found[0].score < 0.6
    assert {e.name for e in found[0].evidence} >= {"confidence", "sign_step", "sign_lead"}


def test_a_replica_whose_host_is_busy_elsewhere_is_told_with_its_host():
    found = town(slow=0.09, cores=0.4)

    assert kinds(found) == [("replica_slow", "engine e5")]
    assert "sign_host_and_step" in {e.name for e in found[0].evidence}


@pytest.mark.parametrize("alone", [{"lead": 0.045}, {"slow": 0.03}, {"cores": 0.8}])
def test_one_small_sign_alone_is_told_by_nobody(alone: dict[str, float]):
    assert town(**alone) == []


def test_a_fleet_just_met_has_no_noise_to_measure_by():
    detector = StragglerDetector()
    last(detector, town_stream(30))

    assert last(detector, town_stream(22, 30, lead=0.045, slow=0.05)) == []


def test_a_rank_that_leads_while_its_replica_is_slower_is_found_within_minutes():
    """Neither is beyond its own limit so soon: each is the other's witness."""
    detector = StragglerDetector()
    last(detector, town_stream(150))
    soon = last(detector, town_stream(5, 150, lead=0.12, slow=0.1))
    later = last(detector, town_stream(25, 155, lead=0.12, slow=0.1))
    lasting = [c for c in last(detector, town_stream(45, 180, lead=0.12, slow=0.1)) if c.kind == "gpu_slow"]

    assert kinds(soon) == kinds(later) == kinds(lasting) == [("gpu_slow", f"gpu {GPUS[10]}")]
    assert (soon[0].rule, soon[0].severity) == ("straggler.lockstep", Severity.INFO)
    assert later[0].severity is Severity.INFO, "an eighth may be the noise of half an hour"
    assert lasting[0].severity is Severity.WARNING
    assert soon[0].score == later[0].score < 0.6 < lasting[0].score


def test_a_large_lead_wakes_people_within_minutes():
    detector = StragglerDetector()
    last(detector, town_stream(150))

    (found,) = (c for c in last(detector, town_stream(12, 150, lead=0.25, slow=0.2)) if c.kind == "gpu_slow")

    assert (found.severity, found.entity.name) == (Severity.WARNING, GPUS[10])


def test_a_lead_of_a_few_percent_is_told_and_wakes_nobody():
    detector = StragglerDetector()
    last(detector, lockstep_stream(180, BORN))

    (found,) = last(detector, lockstep_stream(25, BORN | {GPUS[5]: 0.07}, start=180))

    assert (found.rule, found.severity) == ("straggler.lockstep", Severity.INFO)
    assert found.score < ISOLATE_SCORE


def test_a_lead_that_has_become_small_takes_no_hardware_away_any_more():
    """It was large while nobody had heard of it yet: an isolation ten minutes later went by that."""
    detector = StragglerDetector()
    last(detector, lockstep_stream(180, BORN))
    large = last(detector, lockstep_stream(12, BORN | {GPUS[5]: 0.16}, start=180))

    small = last(detector, lockstep_stream(14, BORN | {GPUS[5]: 0.09}, start=192))

    assert [f.score > ISOLATE_SCORE for f in large] == [True]
    assert [(f.severity, f.score > ISOLATE_SCORE) for f in small] == [(Severity.INFO, False)]


def test_a_small_lead_in_a_replica_that_is_slow_otherwise_blames_no_gpu():
    assert kinds(town(lead=0.07, slow=0.3)) == [("replica_slow", "engine e5")]


def test_a_small_lead_in_a_replica_that_was_slow_long_before_blames_no_gpu():
    detector = StragglerDetector()
    last(detector, town_stream(150))
    last(detector, town_stream(90, 150, slow=0.1))
    found = last(detector, town_stream(40, 240, slow=0.1, lead=0.08))

    assert kinds(found) == [("replica_slow", "engine e5")]


def test_a_rank_that_leads_while_its_replica_is_as_fast_as_others_is_waited_for_by_nobody():
    assert town(lead=0.12) == []


def test_a_slow_replica_wakes_people_once_all_signs_together_find_it_likely():
    detector = StragglerDetector()
    last(detector, town_stream(150))
    early, late = (last(detector, town_stream(m, s, slow=0.5)) for m, s in ((4, 150), (18, 154)))

    assert kinds(early) == kinds(late) == [("replica_slow", "engine e5")]
    assert (early[0].severity, late[0].severity) == (Severity.INFO, Severity.WARNING)


def test_what_one_family_claims_says_how_sure_all_of_them_are():
    found = town(slow=0.4)

    sure = {e.name: e.value for e in found[0].evidence}
    assert kinds(found) == [("replica_slow", "engine e5")]
    assert (found[0].severity, sure["confidence"] > 0.9) == (Severity.WARNING, True)


def test_the_model_that_ships_is_of_the_families_of_the_code_and_says_where_it_is_from():
    model = fitted()

    assert len(model.weights) == len(FAMILIES)
    assert min(model.weights) >= 0.0
    assert {"version", "trained", "seed", "fleets", "limit_from"} <= model.about.keys()


def test_nobody_is_told_of_when_many_show_it_at_once():
    engine = next(town_stream(1))["engine"]
    alike, signs, nobody = groups(("chat",) * 8), np.zeros((8, len(FAMILIES))), np.full(8, -1)
    signs[:3, FAMILIES.index("step")] = 12.0
    signs[:3, FAMILIES.index("lead")] = 3.0
    one, steps = signs.copy(), signs.copy()
    one[1:] = 0.0
    steps[:, FAMILIES.index("lead")] = 1.5
    steps[1:] = 0.0
    told = []
    for what, recent in ((signs, 0.1), (steps, 0.1), (one, 0.1), (one, 0.065), (one, 0.04)):
        fusion = Fusion()
        for _ in range(5):
            gpu, lag = next(town_stream(1))["gpu"], np.full(8, 0.1)
            fusion.judge(engine, gpu, what, nobody, lag, np.full(8, recent), alike)
        told.append(sorted(fusion.claims))

    assert told == [[], [], ["e0"], [], []], (
        "many at once, steps alone, steps and a lead, the same when it fades and when it is over"
    )


def test_what_has_faded_is_not_told_for_what_it_was():
    """Signs of three minutes are enough, but while they stand what they tell of is fading, and the minute that shows all of its lag shows little else."""
    engine, gpu = next(town_stream(1))["engine"], next(town_stream(1))["gpu"]
    alike, signs, nobody = groups(("chat",) * 8), np.zeros((8, len(FAMILIES))), np.full(8, -1)
    signs[0, FAMILIES.index("step")], signs[0, FAMILIES.index("lead")] = 12.0, 3.0
    weak = signs.copy()
    weak[0, FAMILIES.index("step")] = 3.0
    fusion = Fusion()
    for what, lag, recent in (*[(signs, 0.06, 0.036)] * 3, (weak, 0.034, 0.034)):
        fusion.judge(engine, gpu, what, nobody, np.full(8, lag), np.full(8, recent), alike)

    assert fusion.claims == {}


def test_what_was_told_before_it_fades_stands_until_it_is_half():
    engine, gpu = next(town_stream(1))["engine"], next(town_stream(1))["gpu"]
    alike, signs, nobody = groups(("chat",) * 8), np.zeros((8, len(FAMILIES))), np.full(8, -1)
    signs[0, FAMILIES.index("step")], signs[0, FAMILIES.index("lead")] = 12.0, 3.0
    fusion = Fusion()
    said = []
    for lag in (0.1, 0.09):
        for _ in range(5):
            fusion.judge(
                engine, gpu, signs, nobody, np.full(8, lag), np.full(8, 0.09 if lag == 0.1 else 0.055), alike
            )
        said.append([e.value for e in fusion.claims["e0"].evidence if e.name == "slower_at_equal_load"])

    assert said == [[pytest.approx(np.expm1(0.1))], [pytest.approx(np.expm1(0.09))]]
