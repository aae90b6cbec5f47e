"""Which backend carries out a verb: the pool's own, else the cluster's."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemon.__main__ import Parts, assemble, fit_here
from daemon.config import ConfigError, masked, parse
from daemon.model import Entity, Result, Step, Verb
from daemon.record import Record

CONFIG = """
mode: auto
backends:
  own: {kind: command, argv: [/bin/true]}
  kube: {kind: command, argv: [/bin/false]}
actions: {isolate: own}
pools:
- {name: chat, actions: {isolate: kube, scale: kube}}
- {name: code}
"""


@dataclass
class World:
    """A node that is isolated or not."""

    asked: list[str] = field(default_factory=list)
    owner: str = ""

    async def apply(self, step: Step) -> str:
        self.asked.append(f"{step.verb} {step.target.name}")
        self.owner = step.arg("owner") if step.verb is Verb.ISOLATE else ""
        return "done"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        return {"isolated": bool(self.owner), "owner": self.owner}


def a_step(verb: Verb, pool: str, id: str) -> Step:
    return Step(
        id, verb, Entity("node", f"n-{pool}"), 1.0, "sick", args=(("owner", "tidewarden/c"),), pool=pool
    )


def test_a_pool_s_own_backend_goes_before_the_cluster_s() -> None:
    settings = parse(CONFIG)
    own, kube = World(), World()
    daemon = assemble(
        Parts(
            policy=settings.policy(),
            sources={},
            record=Record.open(None),
            clock=lambda: 1000.0,
            fit=fit_here,
            backends={"own": own, "kube": kube},
            action_of=settings.actions,
            action_in={pool.name: pool.actions for pool in settings.pools},
        )
    )

    async def story() -> list[Result]:
        steps = [
            a_step(Verb.ISOLATE, "chat", "s1"),
            a_step(Verb.RELEASE, "chat", "s2"),
            a_step(Verb.ISOLATE, "code", "s3"),
        ]
        return [(await daemon.executor.run(step)).result for step in steps]

    results = asyncio.run(story())

    assert results == [Result.DONE] * 3
    assert kube.asked == ["isolate n-chat", "release n-chat"]
    assert own.asked == ["isolate n-code"]
    policy = daemon.core.policy
    assert policy.can(Verb.SCALE, "chat")
    assert not policy.can(Verb.SCALE, "code")
    assert policy.can(Verb.RELEASE, "code")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("scale: kube}", "pools chat: actions.scale: no backend 'cube'; backends: kube, own"),
        ("isolate: kube,", "pools chat: actions.isolate: no backend 'cube'"),
    ],
)
def test_a_backend_nobody_configured_is_named_with_its_pool(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(CONFIG.replace(wrong, wrong.replace("kube", "cube")))


@pytest.mark.parametrize("helper", ["cube", "nap"])
def test_a_router_that_is_no_other_backend_is_refused(helper: str) -> None:
    text = f"backends:\n  lb: {{kind: command, argv: [/bin/true]}}\n  nap: {{kind: vllm, pools: {{chat: ['a:1']}}, reroute: {helper}}}\n"

    with pytest.raises(
        ConfigError, match=f"backends nap: reroute: no other backend '{helper}'; backends: lb"
    ):
        parse(text)


def test_what_a_program_is_given_in_its_environment_is_never_shown() -> None:
    settings = parse(
        "backends:\n  own: {kind: command, argv: [/bin/true], env: {TOKEN: sesame, HOME: /srv}}\n"
        "  ray: {kind: ray, offline_runtime_env: {env_vars: {TOKEN: sesame}, working_dir: /srv}}\n"
    )

    shown = masked(settings)["backends"]

    assert set(shown["own"]["env"]) == {"TOKEN", "HOME"}
    assert set(shown["ray"]["offline_runtime_env"]["env_vars"]) == {"TOKEN"}
    assert shown["ray"]["offline_runtime_env"]["working_dir"] == "/srv"
    assert "sesame" not in str(shown)
