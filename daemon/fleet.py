"""What the daemon has changed in the world, as far as it was verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daemon.model import NAN, Entity, Outcome, Result, Step, Verb

RECALLS_KEPT = 100
OVER_S = 300.0
"""How long a recall may take of a lease that is over already. Judgement: it only clears away what nobody uses."""


@dataclass(slots=True)
class Mark:
    """An isolation that is ours. pool and gpus are what it cost when it was made."""

    at: float
    incident: str
    pool: str = ""
    gpus: float = 0.0


@dataclass(slots=True)
class Lease:
    """GPUs of a node that are with offline work until a time.

    recalled : when a recall was begun, NaN = never. over : when it was first looked at after its end.
    """

    at: float
    until: float
    gpus: float
    recalled: float = NAN
    over: float = NAN


@dataclass(slots=True)
class Fleet:
    """weights : engine -> routing weight 0..1 we set (absent = 1, untouched). replicas : pool -> wanted by us.

    causes : engine -> kind of the incident its weight was lowered for. weighed : when it was set.
    history : (at, verb, pool) of verified changes in the last hour, for the rate budgets. recall_s : how long the last
    RECALLS_KEPT recalls took until the GPUs were seen free. shares : region -> share of all requests we gave it.
    limits, limited_at : pool or pool/class -> share let in, absent = 1; when it was set. rolled_back : pool -> version that
    was taken back.
    """

    weights: dict[str, float] = field(default_factory=dict)
    causes: dict[str, str] = field(default_factory=dict)
    weighed: dict[str, float] = field(default_factory=dict)
    isolated: dict[Entity, Mark] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    replicas: dict[str, float] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    history: list[tuple[float, str, str]] = field(default_factory=list)
    lent_gpu_s: float = 0.0
    recall_s: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    limited_at: dict[str, float] = field(default_factory=dict)
    rolled_back: dict[str, str] = field(default_factory=dict)

    def absorb(self, outcome: Outcome, at: float) -> None:
        """Take over what was verified. An unknown outcome counts as done for budgets: the careful side."""
        step = outcome.step
        if outcome.result not in (Result.DONE, Result.UNKNOWN):
            return
        self.history = [h for h in self.history if at - h[0] <= 3600.0]
        self.history.append((at, step.verb.value, step.pool))
        if step.verb is Verb.ISOLATE:
            self.isolated[step.target] = Mark(at, step.incident, step.pool, step.gpus)
        if outcome.result is Result.UNKNOWN:
            return
        if step.verb is Verb.RECALL and outcome.took_s == outcome.took_s:
            self.recall_s = [*self.recall_s, outcome.took_s][-RECALLS_KEPT:]
        self._done(step, at)

    def _done(self, step: Step, at: float) -> None:
        name = step.target.name
        if step.verb is Verb.REROUTE:
            self.weighed[name] = at
            if step.arg("cause"):
                self.causes[name] = step.arg("cause")
            if step.amount >= 1.0:
                self.weights.pop(name, None)
                self.causes.pop(name, None)
            else:
                self.weights[name] = step.amount
        elif step.verb is Verb.RELEASE:
            self.isolated.pop(step.target, None)
        elif step.verb is Verb.SCALE:
            self.replicas[name] = step.amount
            self.scaled[name] = at
        elif step.verb is Verb.LEND:
            self.leases[name] = Lease(at, step.until, step.amount)
        elif step.verb is Verb.RECALL:
            self._end_lease(name, at)
        elif step.verb is Verb.LIMIT:
            self.limits[name], self.limited_at[name] = step.amount, at
        elif step.verb is Verb.ROLLBACK:
            self.rolled_back[name] = step.arg("from")
        elif step.verb is Verb.BALANCE:
            self.shares[name] = step.amount

    def _end_lease(self, node: str, at: float) -> None:
        lease = self.leases.pop(node, None)
        if lease is not None:
            self.lent_gpu_s += lease.gpus * max(0.0, min(at, lease.until) - lease.at)

    def expire(self, at: float) -> list[str]:
        """End leases whose time is over: the object in the world carries the same expiry. What was not recalled before, as
        nobody was there, stays for OVER_S more to be recalled: a label or reservation may still stand."""
        for lease in self.leases.values():
            if at >= lease.until and lease.over != lease.over:
                lease.over = at
        over = [n for n, lease in self.leases.items() if at - lease.over >= OVER_S]
        for node in over:
            self._end_lease(node, at)
        return over

    def forget_engines(self, alive: Mapping[str, str] | frozenset[str]) -> None:
        """Weights of engines that no longer exist mean nothing."""
        for name in [n for n in self.weights if n not in alive]:
            del self.weights[name]

    def is_isolated(self, node: str) -> bool:
        """True when the node, or any GPU of it, is isolated by us."""
        return any(e.name == node or e.name.startswith(f"{node}/") for e in self.isolated)

    def left_of(self, node: str, gpus: Sequence[str]) -> int:
        """How many of a node's GPUs are isolated neither themselves nor with the node. The rest of a node with one GPU set
        aside goes on serving."""
        if not self.isolated:
            return len(gpus)
        if Entity("node", node) in self.isolated:
            return 0
        return sum(Entity("gpu", gpu) not in self.isolated for gpu in gpus)

    def recent(self, verb: Verb, at: float, within_s: float = 3600.0) -> int:
        return sum(1 for t, v, _ in self.history if v == verb.value and at - t <= within_s)
