"""What each vendor is sent, byte for byte where it counts, and how its answer is read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from actions.channel import Channel, ChannelKind, redact
from actions.channels import VENDORS, dingtalk, feishu
from actions.dispatch import digest_of, letter_of
from actions.letters import plain_message, single
from actions.notify import KindWords, alert_of
from actions.texts import plain, text_of
from actions.wire import Reply
from daemon.alerts import Alert, Deed, Letter, Message
from daemon.model import Entity, Severity, Step, Verb
from daemon.web.sentences import in_chinese

EPOCH = 1_700_000_000.0
URLS = {
    ChannelKind.WEBHOOK: "https://hooks.example/t0kent0ken",
    ChannelKind.ALERTMANAGER: "http://am.example:9093/",
    ChannelKind.PAGERDUTY: "https://events.example/v2/enqueue",
    ChannelKind.SLACK: "https://hooks.example/services/T000/B000/abcdefghijkl",
    ChannelKind.TEAMS: "https://flow.example/workflows/0123456789/triggers?sig=hushhush",
    ChannelKind.FEISHU: "https://feishu.example/open-apis/bot/v2/hook/0123456789abcdef",
    ChannelKind.DINGTALK: "https://ding.example/robot/send?access_token=0123456789abcdef",
    ChannelKind.WECOM: "https://wecom.example/cgi-bin/webhook/send?key=0123456789abcdef",
    ChannelKind.GRAFANA: "http://grafana.example:3000/",
}


def words(kind: str, language: str) -> KindWords | None:
    return KindWords("GPU 掉卡", "路由权重 0 %，立即", "重启节点") if language == "zh" else None


def alert(status: str = "firing", node: str = "n03", **args: str) -> Alert:
    told = {
        "cluster": "prod",
        "kind": "gpu_lost",
        "scope": f"{node}/gpu5",
        "scope_kind": "gpu",
        "pool": "chat",
        "severity": "critical",
        "summary": f"GPU fell off the bus: gpu {node}/gpu5",
        "description": "Hypothesis: it is <gone> & lost.\nEvidence: gpu n03/gpu5: xid 79 (against 0)\nTo do: Reboot the node.",
        "evidence": f"gpu {node}/gpu5: xid 79 (against 0)",
        "sure": "0.97",
        "starts_at": f"{EPOCH - 30}",
        "ends_at": f"{EPOCH + 600}" if status == "resolved" else "",
        "status": status,
        **args,
    }
    step = Step(
        f"s-{node}-{status}",
        Verb.NOTIFY,
        Entity("incident", "i1"),
        1.0,
        "told",
        "i1",
        args=tuple(told.items()),
    )
    return alert_of(step, EPOCH, words, "http://warden.example", in_chinese)


def channel(kind: ChannelKind, **changes: Any) -> Channel:
    return replace(Channel("it", kind, (URLS[kind],)), **changes)


def message() -> Message:
    deed = Deed({"en": "reroute engine e3 to 0 %", "zh": "引擎 e3 路由权重调为 0 %"}, "done", EPOCH + 5)
    wish = Deed(
        {"en": "isolate node n03", "zh": "隔离节点 n03"},
        "awaiting",
        EPOCH + 5,
        "http://warden.example/go/abc",
    )
    return replace(single(alert()), deeds=(deed, wish), links={"ack": "http://warden.example/go/xyz"})


def sent(own: Channel, told: Message, perhaps: bool = False) -> tuple[str, Any, dict[str, str]]:
    letter = replace(letter_of(told, own.name, 0, "s1/it/0"), perhaps=perhaps)
    made = VENDORS[own.kind].request(own, [letter], EPOCH)
    return made.url, json.loads(made.body), made.headers


# -- what is sent ---------------------------------------------------------------------------------------


def test_pagerduty_gets_an_event_whose_source_is_the_host_and_whose_key_is_the_group(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("R0UT1NGKEY\n")
    own = channel(ChannelKind.PAGERDUTY, secret_file=str(tmp_path / "key"))

    url, body, _ = sent(own, message())
    _, over, _ = sent(own, single(alert("resolved")))

    assert url == URLS[ChannelKind.PAGERDUTY]
    assert body["routing_key"] == "R0UT1NGKEY"
    assert (body["event_action"], over["event_action"]) == ("trigger", "resolve")
    assert body["dedup_key"] == over["dedup_key"] == "prod / gpu_lost / gpu / n03/gpu5"
    assert body["payload"]["source"] == "n03"
    assert body["payload"]["severity"] == "critical"
    assert body["payload"]["timestamp"] == "2023-11-14T22:12:50Z"
    assert body["payload"]["summary"] == "[CRITICAL] GPU fell off the bus: gpu n03/gpu5 (prod)"
    assert {"href": "http://warden.example/incidents/i1", "text": "Details"} in body["links"]


def test_pagerdutys_limits_are_kept() -> None:
    long = replace(single(alert(summary="x" * 3000)), key="k" * 999)

    _, body, _ = sent(channel(ChannelKind.PAGERDUTY, secret="k"), long)

    assert len(body["dedup_key"]) == 255
    assert len(body["payload"]["summary"]) == 1024


def test_slack_gets_a_coloured_attachment_with_its_three_characters_escaped() -> None:
    _, body, _ = sent(channel(ChannelKind.SLACK), message())

    (attachment,) = body["attachments"]
    assert body["text"] == "[CRITICAL] GPU fell off the bus: gpu n03/gpu5 (prod)"
    assert attachment["color"] == "#c62828"
    assert "*Hypothesis* it is &lt;gone&gt; &amp; lost." in attachment["text"]
    assert "<http://warden.example/incidents/i1|Details>" in attachment["text"]
    assert "*Where* gpu n03/gpu5, node n03, pool chat" in attachment["text"]
    assert "*Since* 2023-11-14 22:12:50 UTC" in attachment["text"]


def test_teams_gets_an_adaptive_card_of_version_1_2() -> None:
    _, body, _ = sent(channel(ChannelKind.TEAMS), message())

    (attachment,) = body["attachments"]
    card = attachment["content"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.2")
    facts = {f["title"]: f["value"] for row in card["body"] if row["type"] == "FactSet" for f in row["facts"]}
    assert facts["Where"] == "gpu n03/gpu5, node n03, pool chat"
    assert [a["title"] for a in card["actions"]] == ["Details", "Runbook", "Acknowledge", "Approve"]


def test_feishu_signs_with_seconds_and_an_empty_message() -> None:
    _, body, _ = sent(
        channel(ChannelKind.FEISHU, secret="demo-secret", language="zh", zone="Asia/Shanghai"), message()
    )

    assert feishu.signature("demo-secret", 1700000000) == "mYHw2R2SOm8Rw/sne3lQdmz4sOfntKR+1P/8RKKTwmA="
    assert (body["timestamp"], body["sign"]) == ("1700000000", "mYHw2R2SOm8Rw/sne3lQdmz4sOfntKR+1P/8RKKTwmA=")
    card = body["card"]
    assert body["msg_type"] == "interactive"
    assert card["header"] == {
        "title": {"tag": "plain_text", "content": "[严重] GPU 掉卡：gpu n03/gpu5（prod）"},
        "template": "red",
    }
    text = card["elements"][0]["text"]["content"]
    assert "**开始** 2023-11-15 06:12:50 CST" in text
    assert "**证据** GPU n03/gpu5：XID 79（对照 0）" in text
    assert "**待办** 重启节点" in text
    assert "**已执行** 引擎 e3 路由权重调为 0 %" in text
    assert [b["text"]["content"] for b in card["elements"][1]["actions"]] == [
        "详情",
        "处置手册",
        "确认",
        "批准",
    ]


def test_dingtalk_signs_with_milliseconds_in_the_query_encoded_once() -> None:
    secret = "SEC000000000000000000000000000000000000000000000000000000000000test"

    url, body, _ = sent(channel(ChannelKind.DINGTALK, secret=secret), message())

    assert dingtalk.signature(secret, 1700000000000) == "bCcJiIKqyObgdvB5UiIbViJlixojz9bQW5dnZbgLAd8%3D"
    assert url.endswith("&timestamp=1700000000000&sign=bCcJiIKqyObgdvB5UiIbViJlixojz9bQW5dnZbgLAd8%3D")
    assert parse_qs(urlsplit(url).query)["access_token"] == ["0123456789abcdef"]
    assert body["msgtype"] == "markdown"
    assert body["markdown"]["title"].startswith("[CRITICAL]")
    assert "[Details](http://warden.example/incidents/i1)" in body["markdown"]["text"]


def test_without_a_secret_robots_are_not_signed() -> None:
    ding, _, _ = sent(channel(ChannelKind.DINGTALK), message())
    _, feishus, _ = sent(channel(ChannelKind.FEISHU), message())

    assert ding == URLS[ChannelKind.DINGTALK]
    assert "sign" not in feishus


def test_wecoms_4096_bytes_are_bytes_and_links_survive_the_cut() -> None:
    long = single(alert(evidence="\n".join(f"第 {n} 行证据，很长很长很长很长" for n in range(400))))

    _, body, _ = sent(channel(ChannelKind.WECOM, language="zh"), long)

    content = body["markdown"]["content"]
    assert 3800 < len(content.encode()) <= 4096
    assert content.endswith("[处置手册](http://warden.example/runbooks/TidewardenGpuLost)")
    assert re.search(r"另有 \d+ 条", content)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (ChannelKind.DINGTALK, 20_000),
        (ChannelKind.FEISHU, 20_480),
        (ChannelKind.TEAMS, 28_000),
        (ChannelKind.SLACK, 8_000),
    ],
)
def test_a_storm_fits_into_what_each_vendor_takes(kind: ChannelKind, limit: int) -> None:
    storm = digest_of(
        [single(alert(node=f"节点{n:04d}", evidence="很长的证据" * 50)) for n in range(400)], EPOCH
    )

    own = channel(kind, language="zh")
    body = VENDORS[kind].request(own, [letter_of(storm, "it", 0, "s")], EPOCH).body

    assert len(body) <= limit
    assert storm.firing == 400


def test_nobody_can_wake_a_whole_group_by_a_name() -> None:
    evil = single(alert(description="Evidence: <at id=all></at> <@all>"))

    _, feishus, _ = sent(channel(ChannelKind.FEISHU), evil)
    _, wecoms, _ = sent(channel(ChannelKind.WECOM), evil)
    _, slacks, _ = sent(channel(ChannelKind.SLACK), single(alert(description="Evidence: <!channel>")))

    assert "<at" not in json.dumps(feishus)
    assert "<@all>" not in json.dumps(wecoms)
    assert "<!channel>" not in json.dumps(slacks)


def test_grafana_gets_an_annotation_that_spans_the_incident(tmp_path: Path) -> None:
    url, body, headers = sent(channel(ChannelKind.GRAFANA, secret="glsa_x"), single(alert("resolved")))

    assert url == "http://grafana.example:3000/api/annotations"
    assert headers["Authorization"] == "Bearer glsa_x"
    assert (body["time"], body["timeEnd"]) == (int((EPOCH - 30) * 1000), int((EPOCH + 600) * 1000))
    assert {"tidewarden", "resolved", "cluster:prod"} <= set(body["tags"])


@pytest.mark.parametrize("kind", sorted(VENDORS))
def test_what_may_be_a_repeat_says_so_and_what_is_not_does_not(kind: ChannelKind) -> None:
    own = channel(kind, secret="k")
    if kind is ChannelKind.ALERTMANAGER:
        pytest.skip("Alertmanager knows an alert by its labels: a repeat is the rule")

    once, again = (json.dumps(sent(own, message(), perhaps)[1]) for perhaps in (False, True))

    mark = '"perhaps_repeated": true' if kind is ChannelKind.WEBHOOK else "This may be a repeat"
    assert mark not in once
    assert mark in again


# -- the words ------------------------------------------------------------------------------------------


def test_one_alert_says_what_where_since_when_why_what_was_done_and_what_is_left() -> None:
    text = plain(text_of(message(), "en", "UTC"))

    assert text == (
        "[CRITICAL] GPU fell off the bus: gpu n03/gpu5 (prod)\n"
        "\n"
        "Where: gpu n03/gpu5, node n03, pool chat\n"
        "Since: 2023-11-14 22:12:50 UTC\n"
        "Hypothesis: it is <gone> & lost.\n"
        "Evidence: gpu n03/gpu5: xid 79 (against 0)\n"
        "To do: Reboot the node.\n"
        "Done: reroute engine e3 to 0 %, 2023-11-14 22:13:25 UTC\n"
        "Waits for your approval: isolate node n03\n"
        "\n"
        "Details: http://warden.example/incidents/i1\n"
        "Runbook: http://warden.example/runbooks/TidewardenGpuLost\n"
        "Acknowledge: http://warden.example/go/xyz\n"
        "Approve: http://warden.example/go/abc\n"
    )


def test_the_same_in_chinese() -> None:
    text = plain(text_of(message(), "zh", "Asia/Shanghai"))

    assert text.startswith(
        "[严重] GPU 掉卡：gpu n03/gpu5（prod）\n\n位置: gpu n03/gpu5，node n03，pool chat\n"
    )
    for row in ("判断: GPU 掉卡（把握 97%）", "处置: 路由权重 0 %，立即", "等待您的批准: 隔离节点 n03"):
        assert f"\n{row}\n" in text


def test_many_alerts_take_a_line_each_with_the_host_in_it() -> None:
    many = digest_of([single(alert(node="n03")), single(alert("resolved", node="n04"))], EPOCH)

    text = text_of(many, "en", "UTC")

    assert text.title == "[CRITICAL] 2 groups of alerts: 1 firing, 1 resolved (prod)"
    assert [line for _, line in text.lines] == [
        "[CRITICAL] GPU fell off the bus: gpu n03/gpu5, Since 2023-11-14 22:12:50 UTC",
        "[RESOLVED] GPU fell off the bus: gpu n04/gpu5, Over since 2023-11-14 22:23:20 UTC",
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_test_message_is_marked_as_one(language: str) -> None:
    text = text_of(plain_message("test", channel(ChannelKind.SLACK), EPOCH), language, "UTC")

    assert text.title.startswith("[TEST]" if language == "en" else "[测试]")
    assert len(text.lines) == 1


# -- the answer -----------------------------------------------------------------------------------------

ANSWERS = [
    (ChannelKind.WEBHOOK, Reply(204, ""), "", False, 0.0),
    (ChannelKind.WEBHOOK, Reply(429, "slow down", 30.0), "too many messages", False, 30.0),
    (ChannelKind.WEBHOOK, Reply(404, ""), "no such address", True, 0.0),
    (ChannelKind.WEBHOOK, Reply(502, ""), "HTTP 502", False, 0.0),
    (ChannelKind.WEBHOOK, Reply(302, ""), "HTTP 302", True, 0.0),
    (ChannelKind.PAGERDUTY, Reply(202, '{"status":"success","dedup_key":"k"}'), "", False, 0.0),
    (ChannelKind.PAGERDUTY, Reply(200, "proxy page"), "and not 202", True, 0.0),
    (
        ChannelKind.PAGERDUTY,
        Reply(400, '{"status":"invalid event","message":"Event object is invalid","errors":["Length of \'routing_key\' is incorrect"]}'),
        "routing_key' is incorrect",
        True,
        0.0,
    ),
    (ChannelKind.PAGERDUTY, Reply(429, ""), "HTTP 429", False, 0.0),
    (ChannelKind.SLACK, Reply(200, "ok"), "", False, 0.0),
    (ChannelKind.SLACK, Reply(200, '{"ok":true}'), "", False, 0.0),
    (ChannelKind.SLACK, Reply(200, '{"ok":false,"error":"channel_not_found"}'), "the channel is gone", True, 0.0),
    (ChannelKind.SLACK, Reply(404, "no_service"), "make a new one", True, 0.0),
    (ChannelKind.SLACK, Reply(403, "action_prohibited"), "an administrator forbids", True, 0.0),
    (ChannelKind.SLACK, Reply(429, "rate_limited", 7.0), "HTTP 429", False, 7.0),
    (ChannelKind.TEAMS, Reply(202, ""), "", False, 0.0),
    (ChannelKind.TEAMS, Reply(200, "1"), "", False, 0.0),
    (ChannelKind.TEAMS, Reply(200, "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429"), "Teams refuses", False, 60.0),
    (ChannelKind.TEAMS, Reply(200, "Webhook message delivery failed with error: 413"), "Teams refuses", True, 0.0),
    (ChannelKind.FEISHU, Reply(200, '{"code":0,"msg":"success","data":{}}'), "", False, 0.0),
    (ChannelKind.FEISHU, Reply(200, '{"StatusCode":0,"StatusMessage":"success"}'), "", False, 0.0),
    (ChannelKind.FEISHU, Reply(200, '{"code":19021,"msg":"sign match fail or timestamp is not within one hour"}'), "check secret_file", True, 0.0),
    (ChannelKind.FEISHU, Reply(200, '{"code":9499,"msg":"too many request"}'), "too many", False, 60.0),
    (ChannelKind.FEISHU, Reply(200, "<html>captive portal</html>"), "Feishu refuses: code None", True, 0.0),
    (ChannelKind.DINGTALK, Reply(200, '{"errcode":0,"errmsg":"ok"}'), "", False, 0.0),
    (ChannelKind.DINGTALK, Reply(200, '{"errcode":310000,"errmsg":"sign not match"}'), "check secret_file", True, 0.0),
    (ChannelKind.DINGTALK, Reply(200, '{"errcode":130101,"errmsg":"send too fast"}'), "blocked for 10 minutes", False, 600.0),
    (ChannelKind.WECOM, Reply(200, '{"errcode":0,"errmsg":"ok"}'), "", False, 0.0),
    (ChannelKind.WECOM, Reply(200, '{"errcode":93000,"errmsg":"invalid webhook url"}'), "copy the whole address again", True, 0.0),
    (ChannelKind.WECOM, Reply(200, '{"errcode":45009,"errmsg":"api freq out of limit"}'), "too many", False, 60.0),
    (ChannelKind.GRAFANA, Reply(200, '{"id":1,"message":"Annotation added"}'), "", False, 0.0),
    (ChannelKind.GRAFANA, Reply(401, "unauthorized"), "token is not accepted", True, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reply", "says", "is_final", "wait_s"), ANSWERS)
def test_an_answer_is_read_as_its_vendor_means_it(
    kind: ChannelKind, reply: Reply, says: str, is_final: bool, wait_s: float
) -> None:
    verdict = VENDORS[kind].judge(reply)

    assert bool(verdict.failure) == bool(says)
    assert says in verdict.failure
    assert verdict.is_final == is_final
    assert verdict.wait_s == wait_s


def test_every_kind_over_http_has_answers_here() -> None:
    assert {kind for kind, *_ in ANSWERS} | {ChannelKind.ALERTMANAGER} == set(VENDORS)


# -- secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(VENDORS))
def test_no_part_of_an_address_or_secret_survives_in_a_text(kind: ChannelKind, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("t0p-s3cret\n")
    own = channel(kind, secret_file=str(tmp_path / "secret"))
    parts = urlsplit(own.urls[0])
    said = f"cannot connect to {own.urls[0]}: path {parts.path} query {parts.query} with t0p-s3cret"

    shown = redact(said, own)

    for hidden in (own.urls[0], "t0p-s3cret", "0123456789abcdef", "hushhush", "t0kent0ken", "abcdefghijkl"):
        assert hidden not in shown
    assert own.urls[0] not in repr(own)


def test_a_letter_as_it_is_stored_holds_no_address() -> None:
    letter: Letter = letter_of(message(), "it", 0, "s1/it/0")

    assert not any(url in repr(letter) for url in URLS.values())
    assert letter.severity is Severity.CRITICAL
