"""Notices that a node is taken back: from files, clouds, taints, each told once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from small_frames import frame, frames

from daemon.model import Entity, Event, SourceError
from daemon.telemetry.spot import Notice, SpotNotices, notice_of, notices_in, tainted
from detectors.spot import SpotDetector

NOW = 1_800_000_000.0


def test_a_file_tells_what_is_to_come_and_not_what_is_past() -> None:
    text = '{"node": "n01", "until": "2027-01-15T08:02:00Z"}\n{"node": "n02", "until": 1799999999}\n'

    assert notices_in(text, NOW) == [Notice("n01", NOW + 120.0)]
    assert notices_in(json.dumps([{"node": "n03", "until": NOW + 5}]), NOW) == [Notice("n03", NOW + 5)]


@pytest.mark.parametrize(
    "text", ['{"node": 7, "until": 1}', '["n01"]', "{}", '{"node": "n1", "until": "2027-01-15T08:02:00"}']
)
def test_an_entry_that_is_none_is_named_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        notices_in(text, NOW)


@pytest.mark.parametrize(
    ("cloud", "status", "text", "expected"),
    [
        ("aws", 404, "Not Found", None),
        ("aws", 200, '{"action": "terminate", "time": "2027-01-15T08:02:00Z"}', 120.0),
        ("aws", 200, '{"action": "none", "time": "2027-01-15T08:02:00Z"}', None),
        ("gcp", 200, "FALSE", None),
        ("gcp", 200, "TRUE", 30.0),
        ("azure", 200, '{"DocumentIncarnation": 1, "Events": []}', None),
        ("azure", 200, '{"Events": [{"EventType": "Preempt", "NotBefore": "Fri, 15 Jan 2027 08:00:30 GMT"}]}', 30.0),
        ("azure", 200, '{"Events": [{"EventType": "Freeze", "NotBefore": ""}]}', None),
    ],
)  # fmt: skip
def test_every_cloud_is_understood(cloud: str, status: int, text: str, expected: float | None) -> None:
    found = notice_of(cloud, status, text, "n01", NOW)

    assert (found.until - NOW if found else None) == expected


def test_taints_count_from_when_they_were_set() -> None:
    def node(name: str, **taint: str) -> dict[str, Any]:
        return {"metadata": {"name": name}, "spec": {"taints": [taint]}}

    nodes = [
        node("a", key="karpenter.sh/disrupted", effect="NoSchedule"),
        node("b", key="karpenter.sh/disrupted", timeAdded="2027-01-15T07:59:00Z"),
        node("c", key="other"),
        {"metadata": {"name": "d"}, "spec": {}},
    ]

    assert tainted(nodes, ["karpenter.sh/disrupted"], NOW, 120.0) == [
        Notice("a", NOW + 120.0),
        Notice("b", NOW + 60.0),
    ]


@pytest.fixture
async def metadata() -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A metadata address on this host, and what it answers."""
    state: dict[str, Any] = {"status": 404, "text": ""}

    async def answer(request: web.Request) -> web.Response:
        state["path"] = request.path
        return web.Response(status=state["status"], text=state["text"])

    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", state
    await runner.cleanup()


async def test_a_notice_of_the_metadata_address_is_told_once(metadata: tuple[str, dict[str, Any]]) -> None:
    url, state = metadata
    source = SpotNotices(lambda: NOW, "n05", url=url, cloud="aws")
    quiet = await source.read()

    state |= {"status": 200, "text": '{"action": "terminate", "time": "2027-01-15T08:02:00Z"}'}
    (told,) = await source.read()
    again = await source.read()
    await source.close()

    assert (quiet, again) == ([], [])
    assert [(e.kind, e.entity, e.code) for e in told.events] == [
        ("spot_reclaim", Entity("node", "n05"), 120.0)
    ]
    assert state["path"] == "/latest/meta-data/spot/instance-action"


async def test_an_address_nobody_answers_is_a_source_error_and_the_file_is_heard_all_the_same(
    tmp_path: Path,
) -> None:
    file = tmp_path / "notices"
    source = SpotNotices(lambda: NOW, "n05", files=[file], url="http://127.0.0.1:9", cloud="aws")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9"):
        await source.read()

    file.write_text('{"node": "n01", "until": "2027-01-15T08:02:00Z"}')
    (told,) = await source.read()
    await source.close()

    assert told.events[0].entity == Entity("node", "n01")


def test_a_node_is_claimed_until_it_has_gone() -> None:
    watch = SpotDetector()
    notice = Event(0.0, Entity("node", "n01"), "spot_reclaim", 120.0, "spot")
    there = frame("node", 0.0, {"n01": {"load1": 1.0}, "n02": {"load1": 1.0}})
    gone = frame("node", 0.0, {"n02": {"load1": 1.0}})

    claimed = watch.update(frames(0.0, there, events=[notice]))
    later = watch.update(frames(110.0, there))
    after = watch.update(frames(200.0, gone))
    forgotten = watch.update(frames(500.0, there))

    assert [(f.kind, f.entity.name) for f in (*claimed, *later)] == [("node_reclaimed", "n01")] * 2
    assert (after, forgotten) == ([], [])
