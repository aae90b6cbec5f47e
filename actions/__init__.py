"""What the daemon can do to the world: verbs, and the systems that carry them out."""

from __future__ import annotations

from collections.abc import Callable

from actions.backends.command import Command
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

__all__ = ["BACKENDS", "VERBS"]
