"""Slurm: nodes drained with our reason, lent to offline jobs by a calendar of reservations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from actions.backends.program import Ran, run
from daemon.model import Check, Hopeless, Step, TryAgain, Verb

WHY_MAX = 160
_FIELD = re.compile(r"(?:^|\s)([A-Za-z_:]+)=")
_REASON = re.compile(r"^(?P<owner>\S+) (?P<step>\S+) for=(?P<scopes>\S+): ")
_SIGNED = re.compile(r" \[(?P<user>[^@\]]+)@[^\]]*\]$")
_SILENT = (
    "unable to contact",
    "timed out",
    "timeout",
    "connection refused",
    "connect failure",
    "zero bytes",
    "communication",
)
_FORBIDDEN = ("invalid user id", "permission denied", "access denied", "must be root")
_OVER = frozenset(
    ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PENDING", "REQUEUED", "SPECIAL_EXIT", "REQUEUE_HOLD")
)


@dataclass(frozen=True, slots=True)
class Node:
    """state : base state and flags. reason, user : what stands beside a drain and who wrote it."""

    name: str
    state: frozenset[str]
    reason: str
    user: str

    @property
    def is_drained(self) -> bool:
        return "DRAIN" in self.state

    @property
    def owner(self) -> str:
        """Our mark, or who drained it otherwise."""
        found = _REASON.match(self.reason)
        return found["owner"] if found else f"{self.user or 'somebody'} ({self.reason or 'without a reason'})"

    @property
    def scopes(self) -> list[str]:
        """Targets the node is drained for: itself, or GPUs of it."""
        found = _REASON.match(self.reason)
        return found["scopes"].split(",") if found else []


@dataclass(frozen=True, slots=True)
class Reservation:
    """start : seconds since the epoch from which nobody else gets the node."""

    name: str
    start: float
    is_active: bool


@dataclass(frozen=True, slots=True)
class Slurm:
    """Drains and gives back nodes; lends them by keeping the reservation that shuts offline jobs out for later.

    A node that is not lent carries a reservation that has begun; a lent one, a reservation that begins when the lease
    ends: Slurm starts nothing that would run into it, with or without this daemon.

    clock  : wall time. user : who may use the reservations. partitions : whose jobs are requeued on a recall.
    prefix : before every command, such as sudo. conf : SLURM_CONF, "" = its own. nodes : telemetry -> Slurm.
    """

    clock: Callable[[], float]
    partitions: Sequence[str]
    user: str = "root"
    prefix: Sequence[str] = ()
    conf: str = ""
    nodes: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0

    async def apply(self, step: Step) -> str:
        name = self._name(step)
        match step.verb:
            case Verb.ISOLATE:
                return await self._isolate(name, step)
            case Verb.RELEASE:
                return await self._release(name, step)
            case Verb.LEND:
                return await self._lend(name, step)
            case Verb.RECALL:
                return await self._recall(name, step)
        raise Hopeless(
            f"Slurm isolates, releases, lends and recalls; it cannot {step.verb}: name another backend under actions"
        )

    async def observe(self, step: Step) -> Mapping[str, Any]:
        name = self._name(step)
        if step.verb in (Verb.ISOLATE, Verb.RELEASE):
            return seen_of(await self._node(name), step.target.name)
        ours = await self._ours(name)
        if any(r.is_active for r in ours):
            # Shut, but not back while anything of theirs is left on it.
            return {"lent": bool(await self._jobs(name)), "until": 0.0}
        if not ours:
            return {"lent": True}
        return {"lent": True, "until": min(r.start for r in ours)}

    # -- drains --------------------------------------------------------------------------------------------

    async def _isolate(self, name: str, step: Step) -> str:
        node, owner = await self._node(name), step.arg("owner")
        if node.is_drained and node.owner != owner:
            raise Hopeless(
                f"node {name} is drained by {node.owner}; left to them. To hand it over: scontrol update NodeName={name} State=RESUME"
            )
        scopes = sorted({*(node.scopes if node.is_drained else ()), step.target.name})
        if not node.is_drained or scopes != node.scopes:
            await self._scontrol(
                "update", f"NodeName={name}", "State=DRAIN", f"Reason={_reason(owner, step, scopes)}"
            )
        return f"node {name} drained: nothing new starts there, {len(await self._jobs(name))} jobs end in their own time"

    async def _release(self, name: str, step: Step) -> str:
        node, owner = await self._node(name), step.arg("owner")
        if not node.is_drained:
            return f"node {name} was not drained any more"
        if node.owner != owner:
            raise Hopeless(f"node {name} is drained by {node.owner}, not by {owner}; left to them")
        left = [s for s in node.scopes if s != step.target.name]
        if left:
            await self._scontrol("update", f"NodeName={name}", f"Reason={_reason(owner, step, left)}")
            return f"node {name} stays drained for {', '.join(left)}"
        # Not RESUME, which would also lift a DOWN that is somebody else's.
        await self._scontrol("update", f"NodeName={name}", "State=UNDRAIN")
        return f"node {name} takes jobs again"

    # -- leases --------------------------------------------------------------------------------------------

    async def _lend(self, name: str, step: Step) -> str:
        """The end stands in the calendar before the node is opened."""
        if step.until <= self.clock():
            raise Hopeless(
                f"the lease of {name} would have ended before it began, at {_time(step.until)} UTC"
            )
        node = await self._node(name)
        if node.is_drained or "DOWN" in node.state:
            raise Hopeless(
                f"node {name} is {'+'.join(sorted(node.state))}: nothing could run there; release it first"
            )
        before = await self._ours(name)
        mine = f"tidewarden_{name}_{step.id}"
        if all(r.name != mine for r in before):
            await self._reserve(mine, name, _time(step.until))
        await self._cancel([r.name for r in before if r.name != mine])
        return f"node {name} open to jobs that end by {_time(step.until)} UTC"

    async def _recall(self, name: str, step: Step) -> str:
        """Shut first, then what runs there goes back to the queue."""
        before = await self._ours(name)
        mine = f"tidewarden_{name}_{step.id}"
        if not any(r.is_active for r in before):
            if all(r.name != mine for r in before):
                await self._reserve(mine, name, "now")
            await self._cancel([r.name for r in before if r.name != mine])
        jobs = await self._jobs(name)
        foreign = {job: partition for job, (partition, _) in jobs.items() if partition not in self.partitions}
        requeued = 0
        for job, (partition, state) in jobs.items():
            if partition in self.partitions and state not in ("COMPLETING", *_OVER):
                await self._requeue(job)
                requeued += 1
        if foreign:
            listed = ", ".join(f"{job} of {partition}" for job, partition in foreign.items())
            raise Hopeless(
                f"node {name} still runs {listed}, which is none of {', '.join(self.partitions)}; left to their owners, or name the partition"
            )
        return f"node {name} is shut, {requeued} jobs went back to the queue"

    async def _requeue(self, job: str) -> None:
        ran = await self._run("scontrol", "requeue", job)
        # What ended by itself meanwhile has left the node too.
        if (
            ran.code
            and "invalid job id" not in ran.said.lower()
            and "already completed" not in ran.said.lower()
        ):
            if "disabled" in ran.said.lower() or "requeue" in ran.said.lower():
                raise Hopeless(
                    f"job {job} cannot be requeued: {ran.said}; submit offline jobs with --requeue, or end it: scancel {job}"
                )
            raise self._trouble("scontrol requeue", ran)

    async def _reserve(self, reservation: str, node: str, start: str) -> None:
        await self._scontrol(
            "create",
            "reservation",
            f"ReservationName={reservation}",
            f"StartTime={start}",
            "Duration=UNLIMITED",
            f"Nodes={node}",
            f"Users={self.user}",
            # The old one still stands, and so may jobs that are about to be requeued.
            "Flags=OVERLAP,IGNORE_JOBS",
        )

    async def _cancel(self, names: Sequence[str]) -> None:
        for name in names:
            await self._scontrol("delete", f"ReservationName={name}")

    async def _ours(self, node: str) -> list[Reservation]:
        ran = await self._run("scontrol", "-o", "show", "reservation")
        if ran.code:
            raise self._trouble("scontrol show reservation", ran)
        return [
            Reservation(r["ReservationName"], _seconds(r["StartTime"]), r.get("State") == "ACTIVE")
            for r in map(fields_of, ran.out.splitlines())
            if r.get("ReservationName", "").startswith(f"tidewarden_{node}_") and r.get("Nodes") == node
        ]

    async def _jobs(self, node: str) -> dict[str, tuple[str, str]]:
        """Job id -> (partition, state), of all that hold something of a node."""
        ran = await self._run("squeue", "-h", "-w", node, "-O", "JobID:20,Partition:60,State:30")
        if ran.code:
            raise self._trouble("squeue", ran)
        rows = [line.split() for line in ran.out.splitlines()]
        return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3 and row[2] not in _OVER}

    # -- asking --------------------------------------------------------------------------------------------

    def _name(self, step: Step) -> str:
        wanted = step.arg("node") or step.target.name.partition("/")[0]
        return self.nodes.get(wanted, wanted)

    async def _node(self, name: str) -> Node:
        ran = await self._run("scontrol", "-o", "show", "node", name)
        if ran.code and "not found" in (ran.out + ran.said).lower():
            raise Hopeless(
                f"Slurm has no node {name}; it was removed or renamed: map it under nodes of this backend"
            )
        if ran.code:
            raise self._trouble("scontrol show node", ran)
        return node_of(ran.out)

    async def _scontrol(self, *arguments: str) -> None:
        ran = await self._run("scontrol", *arguments)
        if ran.code:
            raise self._trouble(f"scontrol {' '.join(arguments)}", ran)

    def _trouble(self, what: str, ran: Ran) -> Exception:
        text = ran.said.lower()
        if any(word in text for word in _SILENT):
            return TryAgain(f"`{what}`: {ran.said}; is slurmctld up, and munge?")
        if any(word in text for word in _FORBIDDEN):
            return Hopeless(
                f"`{what}`: {ran.said}; run as SlurmUser or an operator, see `tidewarden config check --live`"
            )
        return Hopeless(f"`{what}`: {ran.said}")

    async def _run(self, *command: str) -> Ran:
        env = {"TZ": "UTC", "SLURM_TIME_FORMAT": "standard"} | (
            {"SLURM_CONF": self.conf} if self.conf else {}
        )
        if self.prefix:
            # sudo starts anew: what it is to know stands on its line.
            return await run(
                [*self.prefix, "env", *(f"{k}={v}" for k, v in env.items()), *command], self.timeout_s
            )
        return await run(command, self.timeout_s, env)

    # -- before anything is enabled ------------------------------------------------------------------------

    @property
    def rights(self) -> str:
        return (
            "the daemon's user as Slurm operator:\n    sacctmgr modify user tidewarden set adminlevel=operator\n"
            "or, without an accounting database, in sudoers with prefix: [sudo, -u, slurm] here:\n"
            "    tidewarden ALL=(slurm) NOPASSWD: /usr/bin/env TZ=UTC SLURM_TIME_FORMAT=standard scontrol *, "
            "/usr/bin/env TZ=UTC SLURM_TIME_FORMAT=standard squeue *"
        )

    async def check(self) -> Sequence[Check]:
        """Whether the controller answers, lets us change nodes, and has the partitions."""
        try:
            # Of a node nobody has: without rights the refusal is another one, and nothing is changed.
            ran = await self._run(
                "scontrol", "update", "NodeName=tidewarden-no-such-node", "State=DRAIN", "Reason=check"
            )
            text = ran.said.lower()
            if any(word in text for word in _FORBIDDEN):
                return [Check(False, "slurmctld", ran.said, "give the rights below")]
            if "invalid node name" not in text:
                return [Check(False, "slurmctld", ran.said, "is slurmctld up, and munge?")]
            rows = [Check(True, "slurmctld", "answers and lets us change nodes")]
            for partition in self.partitions:
                found = await self._run("scontrol", "-o", "show", "partition", partition)
                fix = "" if not found.code else "correct partitions of this backend"
                rows.append(
                    Check(
                        not found.code,
                        f"partition {partition}",
                        "is there" if not found.code else found.said,
                        fix,
                    )
                )
            return rows
        except (Hopeless, TryAgain) as trouble:
            return [Check(False, "slurmctld", "does not work", str(trouble))]


# -- deciding: pure ------------------------------------------------------------------------------------------


def fields_of(line: str) -> dict[str, str]:
    """``KEY=VALUE KEY=VALUE ...`` of `scontrol -o show`; values may hold spaces.

    >>> fields_of("NodeName=n1 OS=Linux 6.1 State=IDLE+DRAIN Reason=bad fan [root@now]")["Reason"]
    'bad fan [root@now]'
    """
    # A reason is free text, may say "a=b", and is the last field.
    head, mark, reason = line.partition(" Reason=")
    found = list(_FIELD.finditer(head))
    ends = [m.start() for m in found[1:]] + [len(head)]
    fields = {m[1]: head[m.end() : end].strip() for m, end in zip(found, ends, strict=False)}
    return fields | ({"Reason": reason.strip()} if mark else {})


def node_of(text: str) -> Node:
    """From `scontrol -o show node`. Raises Hopeless when it is something else."""
    fields = fields_of(text.strip().splitlines()[0] if text.strip() else "")
    if "NodeName" not in fields or "State" not in fields:
        raise Hopeless(f"`scontrol show node` answered {text.strip()[:200]!r}, which is no node")
    reason = fields.get("Reason", "")
    signed = _SIGNED.search(reason)
    state = frozenset(re.sub(r"[^A-Z_+]", "", fields["State"]).split("+"))
    return Node(
        fields["NodeName"],
        state,
        reason[: signed.start()] if signed else reason,
        signed["user"] if signed else "",
    )


def seen_of(node: Node, target: str) -> dict[str, Any]:
    """A drain that is not ours concerns every target of the node, ours only those it names."""
    if not node.is_drained or (node.scopes and target not in node.scopes):
        return {"isolated": False, "owner": ""}
    return {"isolated": True, "owner": node.owner}


def _reason(owner: str, step: Step, scopes: Sequence[str]) -> str:
    why = " ".join(re.sub(r"[\"'\\]", "", step.reason).split())[:WHY_MAX]
    return f"{owner} {step.id} for={','.join(scopes)}: {why}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
