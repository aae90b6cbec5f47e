"""The detection benchmark judges as it says it does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import detect, detect_real
from bench.baselines import BASELINES
from bench.fleets import EPOCH, Case, Fleet, draw
from bench.intervals import plain, poisson_rate, share
from bench.judge import judge
from bench.noise import REAL, of_process
from bench.table import confusion, lines, results
from bench.watch import Claim, Isolation, Seen, watch
from daemon.model import Entity, Frame, Frames
from simulator.defaults import default_spec
from simulator.faults import Fault
from simulator.wiring import Wiring
from simulator.world import World

SPEC = default_spec(64)
GPU = Entity("gpu", "n01/gpu2")


def fleet(*cases: Case, hours: float = 0.5, purpose: str = "fast") -> Fleet:
    return Fleet("hand-made", "tune", purpose, SPEC, 3, EPOCH, hours, cases, False)


def case(kind: str, entity: Entity, at: float = 600.0, lasts: float = 600.0, **more: float) -> Case:
    return Case(kind, Fault(kind, entity, EPOCH + at, lasts, repair_s=float("nan"), **more), False)


def claim(kind: str, scope: Entity, at: float, severity: str = "warning", **more: object) -> Claim:
    made = Claim(f"i{at}", kind, scope, EPOCH + at, severity)
    return replace(made, **more)  # type: ignore[arg-type]


def judged(cases: list[Case], claims: list[Claim], isolations: list[Isolation] | None = None) -> dict:
    seen = Seen(claims={c.id: c for c in claims}, isolations=isolations or [])
    return judge(fleet(*cases), seen, World(SPEC, 1, EPOCH))["ours"]


# -- intervals ------------------------------------------------------------------------------------------------


def test_no_event_in_sixty_thousand_gpu_days_bounds_the_rate_at_a_twentieth() -> None:
    # The rule of three at one side; the exact two-sided bound is 3.69 / 60.
    rate, low, high = poisson_rate(0, 60.0)

    assert (rate, low) == (0.0, 0.0)
    assert high == pytest.approx(3.689 / 60.0, rel=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    drawn = rng.poisson(4.0, 2000)

    held = [low <= 4.0 <= high for _, low, high in (poisson_rate(int(n), 1.0) for n in drawn)]

    assert np.mean(held) >= 0.95


def test_share_of_nothing_is_unknown_and_not_zero() -> None:
    assert np.isnan(share(0, 0)[0])
    assert plain({"a": float("nan")}) == {"a": None}


# -- drawing --------------------------------------------------------------------------------------------------


def test_a_fleet_is_drawn_the_same_every_time() -> None:
    assert draw("tune", "fast", 2, 1) == draw("tune", "fast", 2, 1)


def test_tuning_and_published_fleets_share_nothing() -> None:
    tune, published = draw("tune", "fast", 0, 0), draw("published", "fast", 0, 0)

    assert tune.spec != published.spec
    assert tune.seed != published.seed
    assert [c.fault.magnitude for c in tune.cases] != [c.fault.magnitude for c in published.cases]


def test_seeds_change_faults_and_keep_the_topology() -> None:
    one, other = draw("tune", "fast", 3, 0), draw("tune", "fast", 3, 1)

    assert replace(one.spec, odd_nodes=()) == replace(other.spec, odd_nodes=())
    assert [c.fault for c in one.cases] != [c.fault for c in other.cases]


@pytest.mark.parametrize("purpose", ["fast", "slow"])
def test_faults_strike_places_that_exist_within_the_run(purpose: str) -> None:
    drawn = draw("published", purpose, 1, 0)

    world = World(drawn.spec, drawn.seed, drawn.epoch)
    for struck in drawn.cases:
        world.inject(struck.fault)
    known = set(Wiring(drawn.spec).gpus)

    assert len(drawn.cases) >= 3
    for struck in drawn.cases:
        assert struck.fault.entity.kind != "gpu" or struck.fault.entity.name in known
        if not struck.is_negative:
            assert struck.fault.end <= drawn.epoch + drawn.hours * 3600.0


@pytest.mark.parametrize("purpose", ["small", "clock"])
def test_slow_clocks_and_memories_never_meet_on_a_node(purpose: str) -> None:
    drawn = draw("tune", purpose, 3, 0)
    by_node: dict[str, list[Fault]] = {}
    for case in drawn.cases:
        by_node.setdefault(case.fault.entity.name.split("/")[0], []).append(case.fault)

    assert len(drawn.cases) > 10
    assert all(
        case.name in ("thermal-throttle", "power-cap", "slow-silicon", "dram-slow") for case in drawn.cases
    )
    for faults in by_node.values():
        faults.sort(key=lambda f: f.at)
        assert all(later.at >= earlier.end for earlier, later in pairwise(faults))
    if purpose == "clock":
        assert min(case.fault.magnitude for case in drawn.cases) >= 0.1


def test_unknown_part_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="published"):
        draw("test", "fast", 0, 0)


# -- judging --------------------------------------------------------------------------------------------------


def test_the_right_gpu_in_time_is_found_with_its_delay() -> None:
    result = judged([case("xid79", GPU)], [claim("gpu_lost", GPU, 618.0, "critical")])

    assert result["cases"][0]["found"]
    assert result["cases"][0]["delay_s"] == pytest.approx(18.0)
    assert result["cases"][0]["is_cause"]
    assert result["false"] == {}


def test_a_late_find_is_a_miss_and_no_false_alarm() -> None:
    result = judged([case("xid79", GPU)], [claim("gpu_lost", GPU, 900.0)])

    assert not result["cases"][0]["found"]
    assert result["false"] == {}


def test_blaming_another_gpu_of_the_node_is_a_miss_and_a_false_alarm() -> None:
    result = judged([case("slow-silicon", GPU)], [claim("gpu_slow", Entity("gpu", "n01/gpu3"), 700.0)])

    assert not result["cases"][0]["found"]
    assert result["cases"][0]["related"]
    assert result["false"] == {"warning gpu_slow": 1}


def test_an_alarm_with_nothing_wrong_is_false() -> None:
    assert judged([], [claim("gpu_slow", GPU, 100.0)])["false"] == {"warning gpu_slow": 1}


def test_what_a_root_explains_is_no_false_alarm() -> None:
    engine = Entity("engine", "n05:8000")

    result = judged([], [claim("replica_slow", engine, 100.0, cause="explained by i1 (gpu_slow)")])

    assert result["false"] == {}


def test_load_alarms_are_false_unless_requests_really_suffered() -> None:
    pool = Entity("pool", "chat")

    quiet = judged([], [claim("slo_burn", pool, 100.0)])
    strained = judged([], [claim("slo_burn", pool, 100.0, is_true_load=True)])

    assert quiet["false"] == {"warning slo_burn": 1}
    assert strained["false"] == {}


def test_blame_for_packet_spraying_counts_against_the_blamed_class() -> None:
    innocent = Case(
        "packet-spraying",
        Fault("packet-spraying", Entity("leaf", "l0"), EPOCH + 600.0, 600.0),
        True,
    )
    wrong = claim("lossy_fabric", Entity("leaf", "l0"), 700.0)

    result = judged([innocent], [wrong])
    matrix, _ = confusion([], result["negatives"])

    assert matrix["packet spraying"] == {"lossy fabric": 1}


def test_isolating_a_healthy_node_is_wrong_and_the_sick_one_is_not() -> None:
    at = EPOCH + 700.0
    good = Isolation(at, Entity("node", "n01"), "i1", "gpu_lost")
    bad = Isolation(at, Entity("node", "n02"), "i2", "gpu_slow")

    result = judged([case("xid79", GPU)], [], [good, bad])

    assert result["wrong_isolations"] == {"isolation gpu_slow": 1}


def test_isolating_the_receiver_of_an_incast_is_wrong() -> None:
    isolation = Isolation(EPOCH + 700.0, Entity("node", "n01"), "i1", "pfc_storm")

    result = judged([case("incast", Entity("port", "n01/mlx5_0"))], [], [isolation])

    assert result["wrong_isolations"] == {"isolation pfc_storm": 1}


def test_a_ramp_is_timed_from_half_its_size() -> None:
    ramp = case("slow-silicon", GPU, ramp_s=200.0, magnitude=0.2)

    result = judged([ramp], [claim("gpu_slow", GPU, 760.0)])

    assert result["cases"][0]["delay_s"] == pytest.approx(60.0)


def test_a_storm_whose_victim_is_blamed_is_counted() -> None:
    root, victim = Entity("port", "n00/mlx5_0"), Entity("port", "n01/mlx5_0")
    claims = [claim("pfc_storm", root, 615.0, "critical"), claim("pfc_storm", victim, 615.5, "critical")]

    result = judged([case("pfc-storm", root)], claims)

    assert result["storms"] == [{"root_s": 15.0, "victims_blamed": True}]


# -- whole runs -----------------------------------------------------------------------------------------------


def test_a_lost_gpu_is_found_by_the_daemon_in_a_real_run() -> None:
    run = fleet(case("xid79", GPU, at=900.0))

    seen, world = watch(run, {})
    record = judge(run, seen, world)

    found = record["ours"]["cases"][0]
    assert found["found"]
    assert found["delay_s"] <= 30.0
    assert record["ours"]["wrong_isolations"] == {}
    assert any(i.target in (GPU, Entity("node", "n01")) for i in seen.isolations)


def test_a_run_is_the_same_twice_but_for_its_processor_times() -> None:
    run = fleet(case("bad-cable", Entity("port", "n01/mlx5_0")))

    first, second = (judge(run, *watch(run, {})) for _ in range(2))

    assert {k: v for k, v in first.items() if k != "cpu_s"} == {
        k: v for k, v in second.items() if k != "cpu_s"
    }


def test_every_baseline_looks_at_the_same_frames_and_reports() -> None:
    run = fleet(case("xid79", GPU, at=300.0), hours=0.25)

    seen, world = watch(run, {name: make() for name, make in BASELINES.items()})
    record = judge(run, seen, world)

    assert set(record["baselines"]) == set(BASELINES)
    assert record["baselines"]["static"]["cases"][0]["found"]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baselines_are_quiet_on_constant_and_on_missing_input(name: str) -> None:
    look = BASELINES[name]()
    names = tuple(f"n0/gpu{k}" for k in range(6))
    facts = {"peer": ("a",) * 6}
    alarms = []

    for value in (1000.0, float("nan")):
        for beat in range(300):
            values = np.full((6, 1), value)
            frame = Frame(15.0 * beat, "gpu", names, ("sm_clock_mhz",), values, np.zeros(6), facts, 1)
            alarms += look(Frames(15.0 * beat, {"gpu": frame}))

    assert alarms == []


# -- tables ---------------------------------------------------------------------------------------------------


def records() -> list[dict]:
    runs = [fleet(case("xid79", GPU)), fleet(purpose="healthy")]
    world = World(SPEC, 1, EPOCH)
    seen = [
        Seen(claims={"i1": claim("gpu_lost", GPU, 618.0)}),
        Seen(claims={"i2": claim("gpu_slow", GPU, 5.0)}),
    ]
    return [
        judge(replace(r, name=f"f{k}"), s, world) for k, (r, s) in enumerate(zip(runs, seen, strict=True))
    ]


def test_results_do_not_depend_on_the_order_of_fleets() -> None:
    made = records()

    assert str(results(made)) == str(results(made[::-1]))


def test_false_pages_are_counted_in_healthy_fleets_over_their_gpu_days() -> None:
    ours = results(records())["ours"]

    assert ours["precision"] == 1.0
    assert ours["gpu_days"] == pytest.approx(64 * 0.5 / 24)
    assert ours["false_pages_per_1000_gpu_days"] == pytest.approx(1000.0 / ours["gpu_days"])


def test_merging_files_gives_the_same_and_leaves_out_a_torn_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = records()
    file = tmp_path / "part.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in made) + '{"fleet": "torn')

    read = detect.read([file])

    assert [r["fleet"] for r in read] == ["f0", "f1"]
    assert "not a whole record" in capsys.readouterr().err
    assert lines(results(read), read)


def test_the_last_line_is_json_with_the_keys_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "part.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records()))
    monkeypatch.setattr("sys.argv", ["detect", "--merge", str(file)])

    detect.main()

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(detect.ASKED) <= set(last["ours"])
    assert all(set(row) == set(detect.ASKED) for row in last["baselines"].values())


# -- noise and real data --------------------------------------------------------------------------------------


def test_the_noise_has_the_statistics_that_were_measured() -> None:
    found = of_process(days=2.0, devices=128, seed=5)

    # Two days of one common mode are few independent values: its share is known to a hundredth or two.
    for name, value in found.items():
        low, high = REAL[name]
        assert low - 0.02 <= value <= high + 0.02, (name, value)


def test_a_sample_table_is_read_judged_and_its_slowdowns_found(tmp_path: Path) -> None:
    table = tmp_path / "sample.csv"
    detect_real.write_sample(table, clusters=2, devices=8, hours=14.0, seed=2)

    clusters = detect_real.read(table)
    found = detect_real.by_blocks(clusters, 4, np.random.default_rng(1))
    alarms = detect_real.alarms_of_daemon(clusters[0])

    assert [len(c.entities) for c in clusters] == [8, 8]
    assert found["found"]["1.5"]["recall"] == 1.0
    assert alarms == []


def test_the_daemon_finds_a_slowdown_put_into_the_table(tmp_path: Path) -> None:
    table = tmp_path / "sample.csv"
    detect_real.write_sample(table, clusters=1, devices=8, hours=10.0, seed=3)
    (cluster,) = detect_real.read(table)
    onset = cluster.at[0] + 7 * 3600.0
    cluster.values[cluster.at >= onset, 3] *= 1.6

    alarms = detect_real.alarms_of_daemon(cluster)

    assert [name for name, _ in alarms] == ["d03"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time,group,value\n1,a,2\n", "no column entity"),
        ("time,group,entity,value\n1,a,b,many\n", "many"),
        ("time,group,entity,value\n", "no rows"),
        ("time,group,entity,value\n1,a,b,2\n", "four or more"),
    ],
)
def test_bad_tables_are_told_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    table = tmp_path / "bad.csv"
    table.write_text(text)

    with pytest.raises(detect_real.DataError, match=said):
        detect_real.read(table)


@pytest.mark.parametrize("zone", [None, UTC])
def test_parquet_reads_as_the_same_csv_does(tmp_path: Path, zone: tzinfo | None) -> None:
    """Times with and without a zone, and a value that was not measured."""
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'tidewarden[bench]'")
    from pyarrow import parquet

    devices = ("d1", "d2", "d3", "d4")
    rows = [(k, d, None if (k, d) == (1, "d2") else 10.0 + k) for k in range(9) for d in devices]
    csv, table = tmp_path / "table.csv", tmp_path / "table.parquet"
    lines = [f"2026-01-01T0{k}:00:00,c1,{d},{'' if v is None else v}" for k, d, v in rows]
    csv.write_text("\n".join(["time,group,entity,value", *lines]) + "\n")
    columns = {
        "time": [datetime(2026, 1, 1, k, tzinfo=zone) for k, _, _ in rows],
        "group": ["c1"] * len(rows),
        "entity": [d for _, d, _ in rows],
        "value": [v for _, _, v in rows],
    }
    parquet.write_table(pyarrow.table(columns), table)

    (told,), (same,) = detect_real.read(table), detect_real.read(csv)

    assert (told.name, told.entities) == ("c1", devices)
    np.testing.assert_array_equal(told.at, same.at)
    np.testing.assert_array_equal(told.values, same.values)
    assert np.isnan(told.values[1, 1])


def test_a_parquet_file_without_a_column_is_told(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'tidewarden[bench]'")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"time": [1.0], "group": ["c"], "entity": ["d"]}), tmp_path / "t.parquet"
    )

    with pytest.raises(detect_real.DataError, match=r"t.parquet: no column value; found \['time', 'group'"):
        detect_real.read(tmp_path / "t.parquet")
