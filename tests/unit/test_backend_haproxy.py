"""What the HAProxy backend reads, keeps and says, short of a HAProxy."""

import typing
from pathlib import Path
from textwrap import dedent

import pytest

from actions import CONFIGURED
from actions.backends.haproxy import HAProxy, Process, servers_of
from actions.backends.marks import Mark, Marks
from daemon.__main__ import backends_of, main
from daemon.config import parse
from daemon.model import Checked, Entity, Hopeless, Step, TryAgain, Verb
from daemon.settings_backends import BackendTree

STATE = dedent("""\
    1
    # be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
    3 chat 1 e0 10.0.0.7 2 0 50 100 7 6 3 4 6 0 0 0 - 8000 - 0 0 - - 0
    3 chat 2 e1 fd00::1 2 8 100 100 7 6 3 4 6 0 0 0 - 8000 - 0 0 - - 0
    3 chat 3 e2 10.0.0.9 0 4 100 100 7 1 0 0 14 0 0 0 - 8000 - 0 0 - - 0
    """)


def test_servers_are_read_with_address_weight_and_who_withholds_them() -> None:
    servers = servers_of(STATE)

    assert [(s.key, s.address, s.share) for s in servers] == [
        ("chat/e0", "10.0.0.7:8000", 0.5),
        ("chat/e1", "[fd00::1]:8000", 0.0),
        ("chat/e2", "10.0.0.9:8000", 0.0),
    ]


@pytest.mark.parametrize("answer", ["Permission denied\n", "", "1\n# be_id be_name\n"])
def test_an_answer_that_is_no_list_of_servers_is_said(answer: str) -> None:
    with pytest.raises(Hopeless, match="`show servers state` answered"):
        servers_of(answer)


async def test_a_silent_world_is_not_taken_for_any_weight(tmp_path: Path) -> None:
    backend = HAProxy((Process(str(tmp_path / "none.sock")),), Marks(tmp_path / "marks.json"))
    step = Step("s1", Verb.REROUTE, Entity("engine", "e0"), 0.0, "slow")

    with pytest.raises(TryAgain, match=r"none\.sock: No such file .*is HAProxy running"):
        await backend.observe(step)
    with pytest.raises(TryAgain, match=r"none\.sock: No such file"):
        await backend.apply(step)

    assert not (tmp_path / "marks.json").exists()


async def test_another_verb_is_refused(tmp_path: Path) -> None:
    backend = HAProxy((Process("/nowhere"),), Marks(tmp_path / "marks.json"))

    with pytest.raises(Hopeless, match="cannot scale: name another backend"):
        await backend.apply(Step("s1", Verb.SCALE, Entity("pool", "chat"), 3.0, "demand"))


def test_marks_outlive_their_writer_and_end_when_taken_away(tmp_path: Path) -> None:
    Marks(tmp_path / "deep" / "marks.json").put("chat/e0", Mark("s1", "25", "100"))

    found = Marks(tmp_path / "deep" / "marks.json").all()
    Marks(tmp_path / "deep" / "marks.json").put("chat/e0", None)

    assert found == {"chat/e0": Mark("s1", "25", "100")}
    assert Marks(tmp_path / "deep" / "marks.json").all() == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": {"step": "s1"}}'])
def test_marks_that_cannot_be_read_stop_everything_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "marks.json"
    path.write_text(text)

    with pytest.raises(Hopeless, match="put the servers back by hand and remove the file"):
        Marks(path).all()

    assert path.read_text() == text


def test_every_kind_of_backend_in_the_settings_can_be_built(tmp_path: Path) -> None:
    settings = parse(
        f"state_dir: {tmp_path}\n"
        "backends:\n  own: {kind: command, argv: [/bin/true]}\n"
        "  lb: {kind: haproxy, processes: [{socket: /run/h.sock, state_path: /run/h.state}], zero: drain}\n"
        "actions: {reroute: lb, scale: own}\n"
    )

    built = backends_of(settings, lambda: 0.0)

    kinds = {
        typing.get_args(tree.model_fields["kind"].annotation)[0] for tree in typing.get_args(BackendTree)
    }
    assert set(CONFIGURED) == kinds
    assert built["lb"] == HAProxy(
        (Process("/run/h.sock", "/run/h.state"),),
        Marks(tmp_path / "backend-lb.json"),
        zero="drain",
    )
    assert isinstance(built["lb"], Checked)


def test_a_live_check_names_what_is_wrong_and_the_least_rights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tidewarden.yaml"
    config.write_text(
        f"state_dir: {tmp_path}\nbackends: {{lb: {{kind: haproxy, processes: [{{socket: {tmp_path}/h.sock}}]}}}}\n"
    )

    offline = main(["config", "check", "-c", str(config)])
    live = main(["config", "check", "--live", "-c", str(config)])

    said = capsys.readouterr().out
    assert (offline, live) == (0, 1)
    assert f"FAIL lb: {tmp_path}/h.sock: does not work" in said
    assert "level admin" in said.partition("lb: least rights needed")[2]
