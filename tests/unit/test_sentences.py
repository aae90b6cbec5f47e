"""What decisions say is said in Chinese too: drills are played, and nothing of it stays English."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from web_town import Town, first_gpu, lived

from daemon.casefile import AT_NODE, AT_NODE_TO_DO, HYPOTHESES, TO_DO, case_of
from daemon.checklist import ITEMS
from daemon.model import Verb
from daemon.policy import Mode
from daemon.web import cases, pooling, standing, views
from daemon.web.sentences import SENTENCES, in_chinese
from daemon.web.words import REMEDIES
from simulator.faults import Fault

COMMAND = re.compile(r"tidewarden [a-z ]+")
ENGLISH = re.compile(r"[A-Za-z]{3,} [a-z]{2,} [a-z]{2,}")
"""Three words in a row: names of signals and things stay as they are, sentences do not."""


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    found = lived(2.0, Mode.AUTO, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


def test_every_shape_keeps_its_values() -> None:
    for english, chinese in SENTENCES.items():
        holes = re.findall(r"\{(\w+)\}", english)
        assert sorted(holes) == sorted(re.findall(r"\{(\w+)\}", chinese)), english
        assert len(set(holes)) == len(holes), english


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("2 -> 3 replicas: 45 requests in flight, 25 fit a replica: 3 needed now; not in rack r0: its power brake holds clocks down",
         "2 → 3 个副本：45 个请求处理中，每副本可容 25 个：现需 3 个副本；不放在机架 r0：功率制动正在压低频率"),
        ("i00001 gpu_lost opened on gpu n00/gpu0; isolate node n00 refused (awaits_approval): gpu_lost at gpu n00/gpu0 since 120 s (i00001)",
         "i00001 GPU 掉卡：在 GPU n00/gpu0 开启；隔离 节点 n00 未执行（等待操作员批准）：因 GPU n00/gpu0 的“GPU 掉卡”，已 120 秒（i00001）"),
        ("the pool's budget is used up (3 of 12 replicas of chat are out already)", "资源池预算已用尽（chat 的 12 个副本中已有 3 个停用）"),
        ("Bad cable or optic (port n04/mlx5_0; 95% sure)", "线缆或光模块故障（端口 n04/mlx5_0；把握 95%）"),
        ("as a consequence, Acknowledge time-outs (port n02/mlx5_0): ack timeouts 0.355/s (against 0/s), waiting not measured",
         "由此引起，确认超时（端口 n02/mlx5_0）：确认超时 0.355/s（对照 0/s），等待中 未测得"),
        ("confirmed: fault.thermal, by healed after it was isolated", "判断正确：fault.thermal，依据：隔离后恢复正常"),
        ("lend 8 GPUs of n03 until 2026-06-01 00:00:00 UTC", "出借 n03 的 8 块 GPU 至 2026-06-01 00:00:00 UTC"),
    ],
)  # fmt: skip
def test_a_sentence_is_said_with_the_same_values(english: str, chinese: str) -> None:
    assert in_chinese(english) == chinese


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("scale pool small", "调整副本数 资源池 small"),
        ("node critical back in service", "节点 critical 恢复服务"),
        ("small, medium lost", "small, medium 失联"),
        ("operator: approve s1 by info", "操作员 info：approve s1"),
        ("NVRM: Xid (PCI:0000:2a:00): 79", "NVRM: Xid (PCI:0000:2a:00): 79"),
    ],
)
def test_names_are_never_translated(english: str, chinese: str) -> None:
    assert in_chinese(english) == chinese


def test_what_is_not_known_stays_and_does_not_swallow_what_is() -> None:
    assert in_chinese("something new; only 6 GPUs are left idle") == "something new；仅剩 6 块空闲 GPU"


def is_english(text: str) -> bool:
    return ENGLISH.search(COMMAND.sub("", in_chinese(text))) is not None


def said_in_a_life(town: Town) -> set[str]:
    """Everything the pages print that a decision wrote."""
    daemon = town.daemon
    said = {entry.payload["sentence"] for entry in daemon.record.events(type="decision", limit=10_000)}
    for row in daemon.record.steps(limit=10_000):
        if row.step.verb is not Verb.NOTIFY:
            said |= {
                *cases.explanation(row),
                row.step.expected,
                *(e["text"] for e in cases.action(daemon, row.step.id)["timeline"]),
            }
    for incident in daemon.record.incidents(limit=1000):
        found = cases.incident(daemon, incident.id)
        said |= {
            found["text"],
            case_of(incident).response,
            case_of(incident).to_do,
            *case_of(incident).rejected,
            incident.cause,
        }
    said |= {
        views.outlook_row(daemon)["text"],
        *views.health_reasons(daemon),
        *pooling.of(daemon)["gives_first"],
    }
    posture = standing.of(daemon)
    said |= {posture["tier_why"], *posture["advice"]}
    # What must be scraped is named by signals, and they are called alike everywhere.
    said |= {text for r in posture["posture"] for text in (r["evidence"], r["todo"], r["target_text"])}
    return said - {""}  # fmt: skip


def test_hardly_anything_that_a_life_says_stays_english(town: Town) -> None:
    said = said_in_a_life(town)

    left = sorted(text for text in said if is_english(text))

    assert len(said) > 50
    # Sentences come and go faster than their translations: a few may wait for their line in sentences.yaml.
    assert len(left) <= len(said) // 30, "\n".join(f"{t}\n    {in_chinese(t)}" for t in left)


def test_every_remedy_hypothesis_and_task_has_its_words() -> None:
    texts = [r.replace("ID", "s1") for r in REMEDIES.values()] + [*HYPOTHESES.values(), *TO_DO.values()]
    texts += [item.remedy for item in ITEMS.values()] + [*AT_NODE.values(), *AT_NODE_TO_DO.values()]

    assert [t for t in texts if is_english(t)] == []
