"""What the daemon can do to the world: verbs, and the systems that carry them out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actions.backends.command import Command
from actions.backends.goodbye import Goodbye
from actions.backends.haproxy import HAProxy, Process
from actions.backends.kubernetes import Kubernetes
from actions.backends.kubernetes_events import Events
from actions.backends.kubernetes_jobs import Jobs
from actions.backends.kubernetes_kueue import Kueue
from actions.backends.kubernetes_lease import Leadership
from actions.backends.kubernetes_lend import Lending, Work
from actions.backends.kubernetes_nodes import Nodes
from actions.backends.kubernetes_routes import Routes
from actions.backends.kubernetes_scale import Scaling
from actions.backends.kubernetes_volcano import Volcano
from actions.backends.marks import Marks
from actions.backends.metrics_page import Busy, nobody_tells
from actions.backends.nginx import Nginx
from actions.backends.ray import Ray
from actions.backends.simulated import Simulated
from actions.backends.slurm import Slurm
from actions.backends.systemd import Systemd
from actions.backends.vllm import Vllm
from actions.balance import Balance
from actions.isolate import Isolate, Release
from actions.lend import Lend, Recall
from actions.limit import Limit
from actions.notify import Notify
from actions.reroute import Reroute
from actions.rollback import Rollback
from actions.scale import Scale
from daemon.kubernetes_api import Api
from daemon.model import Action, Backend, Verb

VERBS: dict[Verb, Callable[..., Action]] = {
    Verb.SCALE: Scale,
    Verb.REROUTE: Reroute,
    Verb.ISOLATE: Isolate,
    Verb.RELEASE: Release,
    Verb.LEND: Lend,
    Verb.RECALL: Recall,
    Verb.NOTIFY: Notify,
    Verb.BALANCE: Balance,
    Verb.LIMIT: Limit,
    Verb.ROLLBACK: Rollback,
}
"""All but NOTIFY are built from one Backend."""

BACKENDS: dict[str, Callable[..., Backend]] = {"simulated": Simulated, "command": Command}
"""Those that can carry out every verb."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a backend is told of its surroundings.

    marks : file where it keeps what is ours, where the system has no place for it. owner : our mark,
    ``tidewarden/<cluster>``. clock : wall time. busy : how many requests an engine has. verbs : those it is to carry out.
    others : the backends by name, for one that needs another's help; filled when all are built.
    """

    marks: Path
    owner: str
    clock: Callable[[], float]
    busy: Busy = nobody_tells
    verbs: frozenset[Verb] = frozenset(Verb)
    others: Mapping[str, Backend] = field(default_factory=dict)


def _command(tree: Mapping[str, Any], _: Site) -> Backend:
    return Command(argv=tuple(tree["argv"]), timeout_s=tree["timeout"], env=dict(tree["env"]))


def _haproxy(tree: Mapping[str, Any], site: Site) -> Backend:
    return HAProxy(
        processes=tuple(Process(p["socket"], p["state_path"]) for p in tree["processes"]),
        marks=Marks(site.marks),
        engines=dict(tree["engines"]),
        backends=tuple(tree["backends"]),
        zero=tree["zero"],
        timeout_s=tree["timeout"],
        admit_map=tree["admit_map"],
    )


def _nginx(tree: Mapping[str, Any], _: Site) -> Backend:
    return Nginx(
        files=tuple(tree["files"]),
        test=tuple(tree["test"]),
        reload=tuple(tree["reload"]),
        pid_path=tree["pid_path"],
        engines=dict(tree["engines"]),
        timeout_s=tree["timeout"],
    )


def _kubernetes(tree: Mapping[str, Any], site: Site) -> Backend:
    identity = f"{site.owner}@{platform.node() or 'localhost'}"
    api = Api(tree["kubeconfig"], tree["context"], tree["timeout"])
    events = Events(api, site.clock, identity, tree["events"])
    nodes = Nodes(
        api,
        events,
        names=dict(tree["nodes"]),
        evict=tree["evict"],
        taint=tree["taint"],
        evict_s=tree["evict_timeout"],
        gpu_resources=tuple(tree["gpu_resources"]),
    )
    routes = Routes(
        api,
        events,
        space=tree["namespace"],
        owner=site.owner,
        routes=tuple(tree["routes"]),
        services=dict(tree["services"]),
        label=tree["label"],
    )
    space, _, name = tree["lease"].rpartition("/")
    offline = tree["offline_namespace"]
    work = _work(api, tree, site)
    return Kubernetes(
        api=api,
        nodes=nodes,
        scaling=Scaling(
            api,
            events,
            pools=dict(tree["pools"]),
            space=tree["namespace"],
            owner=site.owner,
            routes=routes,
            busy=site.busy,
            port=tree["metrics_port"],
            drain_s=tree["drain"],
        ),
        routes=routes,
        lending=Lending(api, events, nodes, site.owner, offline, work, site.clock) if offline else None,
        leadership=Leadership(api, site.clock, space or tree["namespace"], name, identity) if name else None,
        verbs=site.verbs,
    )


def _work(api: Api, tree: Mapping[str, Any], site: Site) -> Work:
    space, selector = tree["offline_namespace"], tree["offline_selector"]
    kind, _, queue = tree["offline_queue"].partition("/")
    resources = tuple(tree["gpu_resources"])
    if kind == "ClusterQueue":
        return Kueue(api, site.owner, queue, space, selector, resources, site.clock)
    if kind == "Queue":
        return Volcano(api, site.owner, queue, space, resources)
    return Jobs(api, site.owner, space, selector, site.clock)


def _slurm(tree: Mapping[str, Any], site: Site) -> Backend:
    return Slurm(
        clock=site.clock,
        partitions=tuple(tree["partitions"]),
        user=tree["user"],
        prefix=tuple(tree["prefix"]),
        conf=tree["conf"],
        nodes=dict(tree["nodes"]),
        timeout_s=tree["timeout"],
    )


def _vllm(tree: Mapping[str, Any], site: Site) -> Backend:
    return Vllm(
        pools={pool: tuple(engines) for pool, engines in tree["pools"].items()},
        marks=Marks(site.marks),
        goodbye=_goodbye(tree, site),
        level=tree["level"],
        timeout_s=tree["timeout"],
    )


def _ray(tree: Mapping[str, Any], site: Site) -> Backend:
    return Ray(
        address=tree["address"],
        owner=site.owner,
        clock=site.clock,
        pools={pool: (name.split("/")[0], name.split("/")[1]) for pool, name in tree["pools"].items()},
        nodes=dict(tree["nodes"]),
        entrypoint=tree["offline_entrypoint"],
        runtime_env=dict(tree["offline_runtime_env"]),
        token_path=tree["token_path"],
        timeout_s=tree["timeout"],
    )


def _systemd(tree: Mapping[str, Any], site: Site) -> Backend:
    return Systemd(
        pools={pool: dict(units) for pool, units in tree["pools"].items()},
        goodbye=_goodbye(tree, site),
        command=tuple(tree["command"]),
        timeout_s=tree["timeout"],
    )


def _goodbye(tree: Mapping[str, Any], site: Site) -> Goodbye:
    return Goodbye(lambda: site.others.get(tree["reroute"]), site.busy, tree["drain"])


CONFIGURED: dict[str, Callable[[Mapping[str, Any], Site], Backend]] = {
    "command": _command,
    "haproxy": _haproxy,
    "nginx": _nginx,
    "kubernetes": _kubernetes,
    "slurm": _slurm,
    "vllm": _vllm,
    "ray": _ray,
    "systemd": _systemd,
}
"""Kind -> a backend from its settings (`daemon.settings`) and what it is told of its surroundings."""

__all__ = ["BACKENDS", "CONFIGURED", "VERBS", "Site"]
