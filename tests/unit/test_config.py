import pytest

from daemon.config import HIDDEN, ConfigError, load, masked, parse
from daemon.model import Entity, Verb
from daemon.policy import Mode


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "tw.yaml", environ)
    return [str(p) for p in caught.value.problems]


def test_an_empty_file_observes_and_acts_on_nothing():
    policy = parse("").policy()

    assert policy.mode is Mode.OBSERVE
    assert policy.pools == ()


def test_every_problem_is_reported_at_once_with_its_line():
    text = "mode: automatic\ntuning:\n  tick: 15\n  stael: 60s\npools:\n  - name: chat\n    replicas: {min: 3, max: 2}\n"

    found = problems(text)

    assert found[0].startswith(
        "tw.yaml:1: mode: found 'automatic'; allowed: 'observe', 'advise', 'approve' or 'auto'"
    )
    assert found[1] == "tw.yaml:3: tuning.tick: 15 has no unit; write 15s, or one of ms, s, m, h, d, w"
    assert found[2] == "tw.yaml:4: tuning.stael: unknown key; did you mean 'stale'?"
    assert found[3] == "tw.yaml:7: pools.0.replicas: max 2 is below min 3"
    assert len(found) == 4


def test_a_wrong_unit_names_the_right_ones():
    assert problems("tuning: {tick: 15sec}") == [
        "tw.yaml:1: tuning.tick: unknown unit 'sec' in '15sec'; allowed: ms, s, m, h, d, w"
    ]


def test_a_forecast_of_less_than_an_hour_is_refused():
    assert problems("tuning: {forecast_horizon: 30m}") == [
        "tw.yaml:1: tuning.forecast_horizon: Input should be greater than or equal to 3600; found 1800.0"
    ]


def test_calendar_files_are_read_by_the_check_and_each_is_named(tmp_path):
    rule = tmp_path / "rule.ics"
    rule.write_text(
        "BEGIN:VEVENT\nSUMMARY:x\nDTSTART:20260610T180000Z\nDTEND:20260610T190000Z\nRRULE:FREQ=HOURLY\nEND:VEVENT\n"
    )
    missing = tmp_path / "none.ics"

    found = problems(f"calendar:\n  files:\n    - {rule}\n    - {missing}\n")

    assert found[0].startswith(f"tw.yaml:3: calendar.files.0: {rule}:5: ")
    assert found[1].startswith(f"tw.yaml:4: calendar.files.1: {missing}: ")
    assert len(found) == 2


def test_a_missing_secret_file_is_found_before_the_first_page(tmp_path):
    path = tmp_path / "token"

    found = problems(f"web:\n  token_file: {path}\n")

    assert found == [
        f"tw.yaml:2: web.token_file: {path}: No such file or directory; create it readable for this user"
    ]


def test_a_table_where_a_list_belongs_says_how_a_list_is_written():
    """Pools by name, as many tools have them, are what people try first."""
    assert problems("pools:\n  chat: {}\nsources: [a]\n") == [
        "tw.yaml:1: pools: must be a list, each entry on a line that begins with `- `; found a table",
        "tw.yaml:3: sources: must be a table of keys; found a list",
    ]


def test_a_key_that_resembles_none_gets_the_list_of_those_there_are():
    (found,) = problems("scrape: {}\n")

    assert found.startswith("tw.yaml:1: scrape: unknown key; allowed here: actions, backends, budgets")


def test_a_file_that_is_not_there_or_is_no_text_says_what_to_do(tmp_path):
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.yaml: cannot be read: not UTF-8"):
        load(binary)
    with pytest.raises(
        ConfigError, match=r"none\.yaml: there is no such file; `tidewarden config init --file"
    ):
        load(tmp_path / "none.yaml")


def test_broken_yaml_says_where():
    assert problems("mode: [observe\n")[0].startswith("tw.yaml:2: not YAML")


def test_a_key_that_stands_twice_is_an_error():
    assert problems("mode: observe\nmode: auto\n") == ["tw.yaml:2: mode: this key stands twice"]


def test_the_environment_fills_in_and_a_missing_variable_is_named():
    assert parse("cluster: ${NAME}-${ZONE:-a}$$", "f", {"NAME": "prod"}).cluster == "prod-a$"
    assert problems("cluster: ${NAME}") == [
        "tw.yaml:1: cluster: the environment has no NAME; set it, or write ${NAME:-default}"
    ]


def test_a_backend_that_does_not_exist_is_named_with_those_that_do():
    text = "backends: {k8s: {kind: command, argv: [/bin/true]}}\nactions: {scale: k9s}\n"

    assert problems(text) == ["tw.yaml:1: actions.scale: no backend 'k9s'; backends: k8s"]


def test_pool_modes_override_the_clusters():
    policy = parse("mode: auto\npools: [{name: chat, modes: {isolate: approve}}]").policy()

    assert policy.mode_of(Verb.ISOLATE, "chat") is Mode.APPROVE
    assert policy.mode_of(Verb.ISOLATE, "code") is Mode.AUTO


def test_maintenance_needs_a_zone_and_covers_its_scope():
    policy = parse(
        "maintenance: [{start: '2026-12-24T18:00:00+01:00', end: '2026-12-24T20:00:00+01:00', scope: node n03}]"
    ).policy()

    assert policy.in_maintenance(policy.maintenance[0].start, frozenset({Entity("node", "n03")})) is not None
    assert policy.in_maintenance(policy.maintenance[0].start, frozenset({Entity("node", "n04")})) is None
    assert (
        "has no time zone"
        in problems("maintenance: [{start: '2026-12-24T18:00:00', end: '2026-12-24T20:00:00Z'}]")[0]
    )


def test_what_is_shown_hides_secrets():
    settings = parse("notify: {channels: [{name: a, kind: webhook, urls: ['http://h/secret-token']}]}")

    assert masked(settings)["notify"]["channels"][0]["urls"] == [HIDDEN]


def test_a_topology_file_tells_where_nodes_sit_and_the_configuration_wins(tmp_path):
    path = tmp_path / "places.yaml"
    path.write_text("n01: {rack: r1, leaf: l1}\nn02: {rack: r2}\n")

    policy = parse(f"topology: {{file: {path}, nodes: {{n02: {{rack: r9}}}}}}").policy()

    assert policy.places == {"n01": {"rack": "r1", "leaf": "l1"}, "n02": {"rack": "r9"}}


def test_a_wrong_topology_file_is_reported_with_its_own_line(tmp_path):
    path = tmp_path / "places.yaml"
    path.write_text("n01: {rack: r1}\nn02: {shelf: 3}\n")

    found = problems(f"topology: {{file: {path}}}")

    assert found == [f"{path}:2: n02.shelf: found 3; write NODE: {{rack: R, leaf: L, region: G}}"]
    assert "No such file" in problems("topology: {file: /nonexistent}")[0]
