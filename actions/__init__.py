"""What the daemon can do to the world: verbs, and the systems that carry them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actions.backends.command import Command
from actions.backends.haproxy import HAProxy, Process
from actions.backends.marks import Marks
from actions.backends.nginx import Nginx
from actions.backends.simulated import Simulated
from actions.isolate import Isolate, Release
from actions.lend import Lend, Recall
from actions.notify import Notify
from actions.reroute import Reroute
from actions.scale import Scale
from daemon.model import Action, Backend, Verb

VERBS: dict[Verb, Callable[..., Action]] = {
    Verb.SCALE: Scale,
    Verb.REROUTE: Reroute,
    Verb.ISOLATE: Isolate,
    Verb.RELEASE: Release,
    Verb.LEND: Lend,
    Verb.RECALL: Recall,
    Verb.NOTIFY: Notify,
}
"""All but NOTIFY are built from one Backend."""

BACKENDS: dict[str, Callable[..., Backend]] = {"simulated": Simulated, "command": Command}
"""Those that can carry out every verb."""


def _command(tree: Mapping[str, Any], _: Path) -> Backend:
    return Command(argv=tuple(tree["argv"]), timeout_s=tree["timeout"], env=dict(tree["env"]))


def _haproxy(tree: Mapping[str, Any], marks: Path) -> Backend:
    return HAProxy(
        processes=tuple(Process(p["socket"], p["state_path"]) for p in tree["processes"]),
        marks=Marks(marks),
        engines=dict(tree["engines"]),
        backends=tuple(tree["backends"]),
        zero=tree["zero"],
        timeout_s=tree["timeout"],
    )


def _nginx(tree: Mapping[str, Any], _: Path) -> Backend:
    return Nginx(
        files=tuple(tree["files"]),
        test=tuple(tree["test"]),
        reload=tuple(tree["reload"]),
        pid_path=tree["pid_path"],
        engines=dict(tree["engines"]),
        timeout_s=tree["timeout"],
    )


CONFIGURED: dict[str, Callable[[Mapping[str, Any], Path], Backend]] = {
    "command": _command,
    "haproxy": _haproxy,
    "nginx": _nginx,
}
"""Kind -> a backend from its settings (`daemon.settings`) and the file where it keeps what is ours."""

__all__ = ["BACKENDS", "CONFIGURED", "VERBS"]
