"""What every configured backend does when its system is away, or is asked for what it cannot do."""

import asyncio
import json
import socket
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from actions import CONFIGURED, VERBS, Site
from daemon.act import Executor, Patience
from daemon.model import Backend, Checked, Entity, Hopeless, Result, Step, TryAgain, Verb
from daemon.record import Record
from daemon.settings_backends import BackendTree

NOW = 1_800_000_000.0
OWNER = "tidewarden/prod"
DOCS = Path(__file__).parents[2] / "docs" / "en" / "backends"
CAN: Mapping[str, frozenset[Verb]] = {
    "command": frozenset(Verb) - {Verb.NOTIFY},
    "kubernetes": frozenset(Verb) - {Verb.NOTIFY, Verb.BALANCE, Verb.LIMIT, Verb.ROLLBACK},
    "slurm": frozenset({Verb.ISOLATE, Verb.RELEASE, Verb.LEND, Verb.RECALL}),
    "haproxy": frozenset({Verb.REROUTE, Verb.BALANCE, Verb.LIMIT}),
    "nginx": frozenset({Verb.REROUTE}),
    "vllm": frozenset({Verb.SCALE}),
    "ray": frozenset({Verb.SCALE, Verb.LEND, Verb.RECALL}),
    "systemd": frozenset({Verb.SCALE}),
}
STEPS = {
    verb: Step(
        "s1",
        verb,
        Entity(kind, name),
        1.0,
        "why",
        deadline_s=0.6,
        until=NOW + 3600.0,
        args=(("node", "n1"), ("owner", OWNER), ("version", "v1")),
    )
    for verb, kind, name in (
        (Verb.SCALE, "pool", "chat"),
        (Verb.REROUTE, "engine", "10.0.0.7:8000"),
        (Verb.ISOLATE, "node", "n1"),
        (Verb.RELEASE, "node", "n1"),
        (Verb.LEND, "node", "n1"),
        (Verb.RECALL, "node", "n1"),
        (Verb.BALANCE, "region", "eu"),
        (Verb.LIMIT, "pool", "chat"),
        (Verb.ROLLBACK, "pool", "chat"),
    )
}
EVERY = [
    pytest.param(kind, verb, id=f"{kind}-{verb}") for kind, verbs in CAN.items() for verb in sorted(verbs)
]
QUICK = Patience(backoff_s=0.05, backoff_max_s=0.1, poll_s=0.05, poll_max_s=0.1)


def settings_of(kind: str, folder: Path, port: int) -> dict[str, Any]:
    """Of a system at an address where nobody is: a port nobody listens at, a socket or program that is not there."""
    kubeconfig = folder / "kubeconfig.yaml"
    context = {"cluster": "c", "user": "u"}
    config = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": context}],
        "users": [{"name": "u", "user": {"token": "sesame-token-1234567890"}}],
    }
    kubeconfig.write_text(json.dumps(config))
    (folder / "chat.servers").write_text(
        "server 10.0.0.7:8000 weight=100;\nserver 10.0.0.8:8000 weight=100;\n"
    )
    missing = str(folder / "missing")
    return {
        "command": {"argv": [missing]},
        "kubernetes": {
            "kubeconfig": str(kubeconfig), "pools": {"chat": "Deployment/chat"}, "label": "serving", "offline_namespace": "batch", "timeout": "200ms",
        },
        "slurm": {"partitions": ["offline"], "prefix": [missing], "timeout": "200ms"},
        "haproxy": {"processes": [{"socket": missing}], "timeout": "200ms", "admit_map": missing},
        "nginx": {"files": [str(folder / "chat.servers")], "test": [missing], "reload": [missing], "pid_path": missing},
        "vllm": {"pools": {"chat": [f"127.0.0.1:{port}"]}, "timeout": "200ms"},
        "ray": {
            "address": f"http://127.0.0.1:{port}", "pools": {"chat": "shop/Chat"}, "offline_entrypoint": "true", "timeout": "200ms",
        },
        "systemd": {"pools": {"chat": {"vllm@1.service": "127.0.0.1:1"}}, "command": [missing], "timeout": "200ms"},
    }[kind]  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], Backend]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def _build(kind: str) -> Backend:
        tree: Any = TypeAdapter(BackendTree).validate_python(
            {"kind": kind} | settings_of(kind, tmp_path, port)
        )
        return CONFIGURED[kind](tree.model_dump(), Site(tmp_path / "marks.json", OWNER, lambda: NOW))

    return _build


def test_every_kind_of_the_settings_is_covered_and_has_its_page() -> None:
    kinds = {
        typing.get_args(tree.model_fields["kind"].annotation)[0] for tree in typing.get_args(BackendTree)
    }

    assert kinds == set(CONFIGURED) == set(CAN)
    assert {page.stem for page in DOCS.glob("*.md")} == kinds


@pytest.mark.parametrize(("kind", "verb"), EVERY)
def test_a_system_that_is_away_is_never_reported_done_and_the_reason_is_a_sentence(
    build: Callable[[str], Backend], kind: str, verb: Verb
) -> None:
    async def story() -> tuple[Result, str]:
        action = VERBS[verb](build(kind))
        outcome = await Executor({verb: action}, Record.open(None), lambda: NOW, QUICK).run(STEPS[verb])
        return outcome.result, outcome.detail

    result, detail = asyncio.run(story())

    assert result in (Result.REFUSED, Result.UNKNOWN, Result.FAILED)
    assert len(detail.split()) > 5
    assert "Traceback" not in detail
    assert "sesame" not in detail


@pytest.mark.parametrize(("kind", "verb"), EVERY)
def test_only_try_again_and_hopeless_leave_a_backend(
    build: Callable[[str], Backend], kind: str, verb: Verb
) -> None:
    async def story() -> None:
        backend = build(kind)
        with pytest.raises((TryAgain, Hopeless)):
            await backend.apply(STEPS[verb])
        # Of a file that stands there alone something can be told, and of no system at all nothing.
        try:
            seen = await backend.observe(STEPS[verb])
        except (TryAgain, Hopeless):
            seen = {}
        assert seen in ({}, {"replicas": 0, "ready": 0})

    asyncio.run(story())


@pytest.mark.parametrize("kind", [k for k, verbs in CAN.items() if len(verbs) < 6])
def test_what_it_cannot_do_is_said_before_anything_is_asked(
    build: Callable[[str], Backend], kind: str
) -> None:
    async def story() -> None:
        for verb in set(STEPS) - CAN[kind]:
            with pytest.raises(Hopeless, match=f"cannot {verb}: name another backend under actions"):
                await build(kind).apply(STEPS[verb])

    asyncio.run(story())


@pytest.mark.parametrize("kind", sorted(set(CAN) - {"command"}))
def test_a_live_check_of_what_is_away_raises_nothing_and_names_a_remedy(
    build: Callable[[str], Backend], kind: str
) -> None:
    backend = build(kind)
    assert isinstance(backend, Checked)

    rows = list(asyncio.run(backend.check()))  # type: ignore[arg-type]

    wrong = [row for row in rows if not row.is_right]
    assert wrong
    assert all(row.fix for row in wrong)
    assert backend.rights.strip()
    assert "sesame" not in repr(rows) + repr(backend) + backend.rights


@pytest.mark.parametrize(("kind", "verb"), EVERY)
def test_cancelled_it_ends_at_once_and_invents_no_outcome(
    build: Callable[[str], Backend], kind: str, verb: Verb
) -> None:
    record = Record.open(None)

    async def story() -> None:
        action = VERBS[verb](build(kind))
        running = asyncio.create_task(Executor({verb: action}, record, lambda: NOW, QUICK).run(STEPS[verb]))
        await asyncio.sleep(0)
        running.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([running])
        # What is refused before it ever waits has ended already.
        assert running.cancelled() or running.result().result is Result.REFUSED
        assert running.cancelled() == (record.events(type="outcome") == [])

    asyncio.run(story())

    assert [s.id for s in record.open_intents()] in ([], ["s1"])
