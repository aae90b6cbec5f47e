"""The settings of who is told what: what they become, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from actions.channel import ChannelKind
from actions.routing import routes_of
from daemon.alerts import Silence
from daemon.cli import newconfig
from daemon.config import ConfigError, load, parse
from daemon.model import Severity
from daemon.settings import Settings
from daemon.telling import channels_of, kind_words, plan_for

NOTIFY = """
notify:
  language: zh
  zone: Asia/Shanghai
  group_wait: 10s
  group_wait_critical: 2s
  heartbeat_interval: 30s
  mqtt: {host: broker.example}
  channels:
    - {name: am, kind: alertmanager, urls: ["http://am1:9093", "http://am2:9093"], heartbeat: true}
    - {name: ding, kind: dingtalk, urls: ["https://ding.example/send?access_token=x"], severity: critical}
    - {name: pd, kind: pagerduty, secret_file: KEY, language: en, zone: UTC, send_resolved: false}
    - {name: mail, kind: email, host: mx, sender: a@b, to: [c@d], username: u, password_file: KEY, per_minute: 2}
    - {name: mq, kind: mqtt}
    - {name: gf, kind: grafana, urls: ["http://grafana:3000"], secret_file: KEY}
  routes:
    - match: {severity: critical}
      hours: {start: "20:00", end: "08:00", days: [sat, sun]}
      channels: [pd]
      escalate: {after: 15m, to: [mail]}
      group_wait: 0s
    - match: {pool: [chat*, code]}
      channels: [ding]
      continues: true
maintenance:
  - {start: 2026-01-01T00:00:00Z, end: 2026-01-02T00:00:00Z, scope: rack r1, reason: swap}
"""


def settings(tmp_path: Path, text: str = NOTIFY) -> Settings:
    (tmp_path / "key").write_text("hush\n")
    (tmp_path / "c.yaml").write_text(text.replace("KEY", str(tmp_path / "key")))
    return load(tmp_path / "c.yaml")


def test_every_kind_of_channel_becomes_what_was_asked_for(tmp_path: Path) -> None:
    made = {c.name: c for c in channels_of(settings(tmp_path))}

    assert made["am"].urls == ("http://am1:9093", "http://am2:9093")
    assert (made["am"].heartbeat_s, made["ding"].heartbeat_s) == (30.0, 0.0)
    assert (made["ding"].severity_min, made["ding"].per_min) == (Severity.CRITICAL, 18.0)
    assert (made["ding"].language, made["ding"].zone) == ("zh", "Asia/Shanghai")
    assert (made["pd"].language, made["pd"].zone, made["pd"].sends_resolved) == ("en", "UTC", False)
    assert made["pd"].urls == ("https://events.pagerduty.com/v2/enqueue",)
    assert made["mail"].urls == ("smtp://mx:587",)
    assert (made["mail"].user, made["mail"].recipients, made["mail"].per_min) == ("u", ("c@d",), 2.0)
    assert (made["mq"].kind, made["mq"].topic) == (ChannelKind.MQTT, "alerts")
    assert made["gf"].secret_file.endswith("key")


def test_routes_pacing_and_windows_become_a_plan(tmp_path: Path) -> None:
    plan = plan_for(settings(tmp_path))

    assert plan.root is not None
    assert plan.root.channels == ("am", "ding", "pd", "mail", "mq", "gf")
    assert (plan.root.pacing.wait_s, plan.root.pacing.wait_critical_s) == (10.0, 2.0)
    night, pools = plan.root.routes
    assert (night.escalate_after_s, night.escalate_to) == (900.0, ("mail",))
    assert (night.pacing.wait_s, night.pacing.wait_critical_s) == (0.0, 0.0)
    saturday_night = 1_700_000_000.0 + 4 * 86_400.0
    assert list(routes_of(plan.root, {"severity": "critical"}, saturday_night)) == [night]
    assert list(routes_of(plan.root, {"pool": "chat-70b"}, saturday_night)) == [pools]
    (window,) = plan.windows
    assert window == Silence("window 0", {"rack": "r1"}, window.start, window.end, "maintenance", "swap")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("channels: [{name: a, kind: slack}]", "give either urls or url_file"),
        ("channels: [{name: a, kind: telegram, urls: [x]}]", "telegram"),
        ("channels: [{name: a, kind: pagerduty}]", "secret_file"),
        ("channels: [{name: a, kind: mqtt}]", "needs notify.mqtt with the broker"),
        ("channels: [{name: a, kind: slack, urls: [x]}, {name: a, kind: slack, urls: [y]}]", "the name 'a' stands twice"),
        ("channels: [{name: a, kind: slack, urls: [x], zone: Mars/Base}]", "write an IANA name like Asia/Shanghai"),
        ("channels: [{name: a, kind: slack, urls: [x]}]\n  routes: [{channels: [b]}]", "no channel 'b'; channels: a"),
        ("routes: [{hours: {start: '25:00'}}]", "not a time of day"),
        ("routes: [{escalate: {after: 10m, to: [b]}}]", "no channel 'b'"),
        ("group_wait: 30", "30 has no unit"),
        ("mqtt: {host: b, commands: true}", "commands need command_token_file"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(f"notify:\n  {text}\n")

    assert says in str(found.value)
    assert any(problem.line > 0 for problem in found.value.problems)


@pytest.mark.parametrize(("kind", "key"), [("feishu", "url_file"), ("pagerduty", "secret_file")])
def test_config_init_can_write_the_channel_as_well(tmp_path: Path, kind: str, key: str) -> None:
    (tmp_path / "secret").write_text("https://feishu.example/hook/abc\n")

    made = parse(newconfig.render(None, newconfig.Told(kind, str(tmp_path / "secret"), "zh")))

    (channel,) = made.notify.channels
    assert (channel.kind, getattr(channel, key)) == (kind, str(tmp_path / "secret"))
    assert made.notify.language == "zh"


def test_every_kind_of_incident_has_chinese_words() -> None:
    from daemon.patterns import PATTERNS

    missing = [kind for kind in PATTERNS if kind_words(kind, "zh") is None]

    assert missing == []


def test_secrets_of_channels_are_hidden_where_the_configuration_is_shown(tmp_path: Path) -> None:
    from daemon.config import masked

    shown: Any = str(masked(settings(tmp_path)))

    assert "access_token" not in shown
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "channels:\n    - {name: a, kind: slack, urls: [x], severty: info}",
            "notify.channels.0.severty: unknown key; did you mean 'severity'?",
        ),
        ("routes:\n    - {mach: {a: b}}", "notify.routes.0.mach: unknown key; did you mean 'match'?"),
        ("channels: [{name: a, urls: [x]}]", "kind is missing"),
    ],
)
def test_a_misspelt_key_of_a_channel_is_told_with_the_nearest_one(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(f"notify:\n  {text}\n")

    assert says in str(found.value)


def test_a_mistake_in_a_channel_does_not_show_its_address() -> None:
    with pytest.raises(ConfigError) as found:
        parse("notify: {channels: [{name: a, kind: telegram, urls: ['https://x/t0kent0ken']}]}")

    assert "t0ken" not in str(found.value)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examples_of_the_page_are_valid(language: str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / language / "alerts.md").read_text()
    (tmp_path / "secret").write_text("https://hooks.example/x\n")
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)

    made = [parse(re.sub(r"/etc/tidewarden/\w+", str(tmp_path / "secret"), text)) for text in examples]

    assert len(made) == 2
    assert [c.name for c in made[0].notify.channels] == ["chat", "phone", "boss"]
    assert made[1].notify.mqtt is not None
