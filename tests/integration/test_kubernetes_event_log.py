"""Incidents as Events on nodes, on the protocol server or on a real one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes_town import Town, town

from actions.channel import Channel, ChannelKind
from actions.dispatch import letter_of
from actions.event_log import EventLog
from actions.letters import single
from actions.notify import alert_of
from daemon.alerts import Letter
from daemon.model import Entity, Step, Verb

pytestmark = pytest.mark.integration
NOW = 1_800_000_000.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Town]:
    async with town(tmp_path) as found:
        yield found


@pytest.fixture
async def log() -> AsyncIterator[EventLog]:
    made = EventLog("tidewarden/prod")
    yield made
    await made.close()


def channel(here: Town, **more: Any) -> Channel:
    urls = (f"kubernetes://{here.space}",)
    made = Channel(
        "events", ChannelKind.KUBERNETES, urls, topic=here.space, kubeconfig=here.kubeconfig, timeout_s=10.0
    )
    return replace(made, **more)


def letter(scope: str, scope_kind: str, status: str = "firing", **more: str) -> Letter:
    args = {
        "cluster": "prod",
        "kind": "gpu_lost",
        "scope": scope,
        "scope_kind": scope_kind,
        "severity": "critical",
        "summary": f"GPU lost: {scope_kind} {scope}",
        "description": "XID 79",
        "status": status,
        "starts_at": f"{NOW}",
        **more,
    }
    step = Step("s1", Verb.NOTIFY, Entity("incident", "i1"), 1.0, "told", "i1", args=tuple(args.items()))
    message = single(alert_of(step, NOW))
    return letter_of(message, "events", 0, f"s1/{status}/{scope}")


async def test_an_incident_on_a_node_and_its_end_stand_on_the_node_once_each(
    here: Town, log: EventLog
) -> None:
    name = await here.add_node(1)
    begun, over = letter(f"{name}/gpu5", "gpu"), letter(f"{name}/gpu5", "gpu", "resolved", ends_at=f"{NOW}")

    verdicts = [await log.carry(channel(here), sent) for sent in (begun, begun, over)]

    assert [v.failure for v in verdicts] == ["", "", ""]
    first, last = sorted(await here.events("TidewardenGpuLost"), key=lambda e: str(e["action"]))
    node = await here.node(name)
    assert (first["regarding"]["kind"], first["regarding"]["uid"]) == ("Node", node["metadata"]["uid"])
    assert (first["type"], first["action"], last["type"], last["action"]) == (
        "Warning",
        "Firing",
        "Normal",
        "Resolved",
    )
    assert first["note"] == f"GPU lost: gpu {name}/gpu5\nXID 79"


async def test_a_node_is_found_by_its_hostname_and_by_the_map(here: Town, log: EventLog) -> None:
    name = await here.add_node(1)

    by_host = await log.carry(channel(here), letter(f"{name}.example", "node"))
    by_map = await log.carry(channel(here, nodes=(("n03", name),)), letter("n03", "node"))

    assert (by_host.failure, by_map.failure) == ("", "")
    assert [e["regarding"]["name"] for e in await here.events("TidewardenGpuLost")] == [name, name]


async def test_what_has_no_node_there_stands_on_the_namespace(here: Town, log: EventLog) -> None:
    for sent in (letter("l7", "leaf"), letter("gone", "node")):
        assert (await log.carry(channel(here), sent)).failure == ""

    found = await here.events("TidewardenGpuLost")
    assert [(e["regarding"]["kind"], e["regarding"]["name"]) for e in found] == [
        ("Namespace", here.space)
    ] * 2


async def test_a_refusal_is_final_and_says_what_to_do(here: Town, log: EventLog, tmp_path: Path) -> None:
    nowhere = await log.carry(channel(here, topic="no-such-namespace"), letter("l7", "leaf"))
    blind = await log.carry(channel(here, kubeconfig=str(tmp_path / "none")), letter("l7", "leaf"))

    assert (nowhere.is_final, "no-such-namespace" in nowhere.failure) == (True, True)
    assert (blind.is_final, "none" in blind.failure) == (True, True)


async def test_the_channel_can_be_tried_from_the_command_line(here: Town, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"state_dir: {tmp_path}/state\nsources: {{http: {{static: [{{targets: ['127.0.0.1:9']}}]}}}}\n"
        f"notify:\n  channels: [{{name: events, kind: kubernetes, kubeconfig: {here.kubeconfig}, namespace: {here.space}}}]\n"
    )

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "daemon", "alerts", "test", "events", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, "taken" in done.stdout) == (0, True), done.stdout + done.stderr
    (event,) = await here.events("TidewardenTest")
    assert event["note"].startswith("[TEST]")
