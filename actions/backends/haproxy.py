"""HAProxy: the share of requests an engine gets, over the runtime socket of every process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from actions.backends import haproxy_map
from actions.backends.marks import Mark, Marks, replace_file
from daemon.model import Check, Hopeless, Step, TryAgain, Verb

ANSWER_BYTES_MAX = 32_000_000
FMAINT, CMAINT, FDRAIN = 0x01, 0x04, 0x08
"""Bits of srv_admin_state that a person sets: at runtime, in the configuration, drain. Source: HAProxy management
guide, "show servers state"."""
WEIGHT_STEP_MAX = 0.01
"""How far the whole weight may lie from the share asked for; `actions.reroute.WEIGHT_TOLERANCE` is the same."""
WEIGHT_WANTED = 100
"""HAProxy holds whole weights: 25 % of `weight 1` is 0, a drain. From 100 every per cent can be told apart."""


@dataclass(frozen=True, slots=True)
class Process:
    """socket : path of a stats socket with level admin, or ADDRESS:PORT. state_file : "" = a reload forgets."""

    socket: str
    state_file: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """One line of `show servers state`. weight : now, of 0..256; configured : in haproxy.cfg."""

    backend: str
    name: str
    address: str
    admin: int
    weight: int
    configured: int
    row: str

    @property
    def key(self) -> str:
        return f"{self.backend}/{self.name}"

    @property
    def is_withheld(self) -> bool:
        return bool(self.admin & (FMAINT | CMAINT | FDRAIN))

    @property
    def share(self) -> float:
        """Of what the configuration gives it, 0..1 and above; 0 when drained or in maintenance."""
        if self.is_withheld:
            return 0.0
        return self.weight / self.configured if self.configured else 1.0


@dataclass(frozen=True, slots=True)
class HAProxy:
    """Sets weights of the servers that stand for an engine, in every process and backend where they occur.

    processes : all that serve the route; what only one of two knows moves half of the traffic.
    marks     : what is ours. A weight, drain or maintenance that is not is a person's and is left alone.
    engines   : server name -> engine, where neither the server's address nor its name is the engine's. The servers of a
    balancer over regions are named after the regions, or mapped here likewise.
    backends  : HAProxy backends that may be touched, empty = all.
    zero      : how weight 0 is set. "drain" and "maint" show on the status page; "maint" also stops its health checks.
    timeout_s : for one question to one process. admit_map : path of the map of shares let in, "" = it limits nothing.
    """

    processes: Sequence[Process]
    marks: Marks
    engines: Mapping[str, str] = field(default_factory=dict)
    backends: Sequence[str] = ()
    zero: Literal["weight", "drain", "maint"] = "weight"
    timeout_s: float = 2.0
    admit_map: str = ""
    _saving: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    async def apply(self, step: Step) -> str:
        """Raises Hopeless before anything is changed when any process forbids it; TryAgain when one is silent."""
        if step.verb is Verb.LIMIT:
            return await self._limit(step)
        if step.verb not in (Verb.REROUTE, Verb.BALANCE):
            raise Hopeless(
                f"HAProxy reroutes, balances and limits; it cannot {step.verb}: name another backend under actions"
            )
        seen = await self._seen()
        found = {
            process: self._of_engine(servers, step.target.name)
            for process, servers in seen.items()
            if not isinstance(servers, TryAgain)
        }
        if found and not any(found.values()):
            raise Hopeless(self._unknown(step.target.name, seen))
        plans = {
            process: [
                (server, self._commands(process, server, step, _all(seen[process]))) for server in servers
            ]
            for process, servers in found.items()
        }
        for process, plan in plans.items():
            await self._carry_out(process, plan, step)
        silent = [str(answer) for answer in seen.values() if isinstance(answer, TryAgain)]
        if silent:
            raise TryAgain("; ".join(silent))
        count = sum(len(servers) for servers in found.values())
        return f"{step.target.name} at {step.amount:.0%} of its weight, {count} server entries in {len(found)} processes"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        """{"weight"} or {"admitted"}: the one farthest from what the step wants among all processes and backends."""
        if step.verb is Verb.LIMIT:
            path, key = self._map(), step.target.name
            asked = [partial(self._ask, process) for process in self.processes]
            shares = await asyncio.gather(*(haproxy_map.share_of(ask, path, key) for ask in asked))
            return {"admitted": haproxy_map.farthest(shares, step.amount)}
        weights = []
        for answer in (await self._seen()).values():
            if isinstance(answer, TryAgain):
                raise answer
            weights += [server.share for server in self._of_engine(answer, step.target.name)]
        if not weights:
            return {}
        return {"weight": max(weights, key=lambda share: abs(share - step.amount))}

    async def _limit(self, step: Step) -> str:
        """The same in every process: what only one of two refuses is refused to half of the clients."""
        path, key = self._map(), step.target.name
        asked = [partial(self._ask, process) for process in self.processes]
        await asyncio.gather(*(haproxy_map.set_share(ask, path, key, step.amount) for ask in asked))
        return f"{step.amount:.0%} of {step.target.name} let in by {len(self.processes)} processes"

    def _map(self) -> str:
        if not self.admit_map:
            raise Hopeless(
                "HAProxy cannot limit: set admit_map of this backend to the map that haproxy.cfg asks"
            )
        return self.admit_map

    # -- deciding: pure ----------------------------------------------------------------------------------

    def _of_engine(self, servers: Sequence[Server], engine: str) -> list[Server]:
        allowed = [s for s in servers if not self.backends or s.backend in self.backends]
        told = [s for s in allowed if self.engines.get(s.name, self.engines.get(s.key)) == engine]
        return told or [s for s in allowed if engine in (s.address, s.name, s.key)]

    def _commands(
        self, process: Process, server: Server, step: Step, everybody: Sequence[Server]
    ) -> list[str]:
        """What brings one server to the wanted weight, nothing when it is there. Raises Hopeless."""
        mark = self.marks.get(_key(process, server))
        if mark is not None and mark.step == step.id and mark.value == _shown(server):
            return []
        _refuse_foreign(server, mark)
        wanted = _whole_weight(server, step.amount)
        if step.amount == 0:
            _refuse_last(server, everybody)
        if step.amount == 0 and self.zero != "weight":
            return [f"set server {server.key} state {self.zero}"]
        ready = [f"set server {server.key} state ready"] if server.is_withheld else []
        return [f"set server {server.key} weight {wanted}", *ready]

    def _unknown(self, engine: str, seen: Mapping[Process, Sequence[Server] | TryAgain]) -> str:
        known = sorted({f"{s.key} ({s.address})" for answer in seen.values() for s in _all(answer)})
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        return (
            f"no HAProxy server stands for engine {engine}; servers: {shown or 'none'}. Name the server after the engine "
            "or its address, or map it under engines of this backend"
        )

    # -- acting ------------------------------------------------------------------------------------------

    async def _carry_out(
        self, process: Process, plan: Sequence[tuple[Server, list[str]]], step: Step
    ) -> None:
        if not any(commands for _, commands in plan):
            return
        for server, commands in plan:
            if not commands:
                continue
            # The mark comes first: a change without one, after a crash, would look like a person's.
            mark = Mark(step.id, _after(server, step, self.zero), _shown(server))
            self.marks.put(_key(process, server), mark)
            for command in commands:
                await self._tell(process, command)
            self.marks.put(_key(process, server), None if step.amount >= 1.0 else replace(mark, before=""))
        await self._save(process)

    async def _save(self, process: Process) -> None:
        """Write the servers that are ours, and no others, where a reload finds them.

        A whole dump would bring back drains that a person has lifted in the meantime.
        """
        if not process.state_file:
            return
        async with self._saving:
            text = await self._ask(process, "show servers state")
            ours = {key for key, mark in self.marks.all().items() if key.startswith(f"{process.socket} ")}
            header = [line for line in text.splitlines()[:2] if line]
            rows = [
                s.row
                for s in servers_of(text)
                if _key(process, s) in ours and (s.is_withheld or s.weight != s.configured)
            ]
            replace_file(Path(process.state_file), "\n".join([*header, *rows]) + "\n")

    async def _tell(self, process: Process, command: str) -> None:
        answer = (await self._ask(process, command)).strip()
        # Success is an empty line; anything said is a complaint.
        if answer:
            raise Hopeless(f"HAProxy at {process.socket} refused `{command}`: {answer}{_remedy(answer)}")

    async def _seen(self) -> dict[Process, Sequence[Server] | TryAgain]:
        """The servers of every process, or why it does not answer. Raises Hopeless for lacking rights."""

        async def one(process: Process) -> Sequence[Server] | TryAgain:
            try:
                return servers_of(await self._ask(process, "show servers state"))
            except TryAgain as silence:
                return silence

        answers = await asyncio.gather(*(one(process) for process in self.processes))
        return dict(zip(self.processes, answers, strict=True))

    async def _ask(self, process: Process, command: str) -> str:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await _exchange(process.socket, command)
        except PermissionError as error:
            raise Hopeless(
                f"HAProxy socket {process.socket}: {error.strerror}; in haproxy.cfg set `stats socket PATH group "
                "tidewarden mode 660 level admin` and put this user into that group"
            ) from error
        except TimeoutError:
            raise TryAgain(
                f"HAProxy socket {process.socket} gave no answer within {self.timeout_s:g} s; is the process stopped?"
            ) from None
        except (OSError, EOFError) as error:
            what = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise TryAgain(
                f"HAProxy socket {process.socket}: {what}; is HAProxy running, and is this its `stats socket`?"
            ) from error

    # -- before anything is enabled ----------------------------------------------------------------------

    async def check(self) -> Sequence[Check]:
        """Whether each process answers, may be changed, holds fractions of weights, and keeps them over a reload."""
        rows: list[Check] = []
        for process in self.processes:
            try:
                servers = servers_of(await self._ask(process, "show servers state"))
                # At a level below admin this is refused, and with a server nobody has it changes nothing.
                answer = (await self._ask(process, "set server tidewarden-no-such/server weight 1")).strip()
            except (Hopeless, TryAgain) as trouble:
                rows.append(Check(False, process.socket, "does not work", str(trouble)))
                continue
            if "ermission" in answer:
                rows.append(
                    Check(False, process.socket, answer, "give the socket `level admin` in haproxy.cfg")
                )
                continue
            rows.append(Check(True, process.socket, f"answers with level admin, {len(servers)} servers"))
            rows += self._check_servers(process, servers)
        return rows

    def _check_servers(self, process: Process, servers: Sequence[Server]) -> list[Check]:
        rows = []
        names = {s.backend for s in servers}
        for name in [b for b in self.backends if b not in names]:
            fix = f"correct backends; allowed: {', '.join(sorted(names))}"
            rows.append(Check(False, process.socket, f"no backend {name}", fix))
        mine = [s for s in servers if not self.backends or s.backend in self.backends]
        coarse = [s.key for s in mine if any(abs(_rounded(s, a) - a) > WEIGHT_STEP_MAX for a in (0.25, 0.7))]
        if coarse:
            fix = f"write `default-server weight {WEIGHT_WANTED}` in haproxy.cfg and reload it"
            rows.append(
                Check(False, process.socket, f"weights too small to be divided: {', '.join(coarse[:8])}", fix)
            )
        if not process.state_file:
            fix = "set state_path here; global `server-state-file` and defaults `load-server-state-from-file global` there"
            rows.append(Check(False, process.socket, "a reload of HAProxy forgets the weights", fix))
        return rows

    @property
    def rights(self) -> str:
        return (
            "haproxy.cfg:\n  global\n    stats socket /run/haproxy/admin.sock mode 660 group tidewarden level admin\n"
            "    server-state-file /var/lib/tidewarden/haproxy.state\n"
            f"  defaults\n    load-server-state-from-file global\n    default-server weight {WEIGHT_WANTED}"
        )


def servers_of(text: str) -> list[Server]:
    """The answer to `show servers state`. Raises Hopeless when it is none, such as a refusal."""
    lines = text.splitlines()
    header = next((line for line in lines if line.startswith("# ")), "")
    columns = header.removeprefix("# ").split()
    needed = (
        "be_name",
        "srv_name",
        "srv_addr",
        "srv_port",
        "srv_admin_state",
        "srv_uweight",
        "srv_iweight",
    )
    if any(name not in columns for name in needed):
        said = text.strip()[:200] or "nothing"
        raise Hopeless(f"`show servers state` answered {said!r}{_remedy(said)}")
    found = []
    for line in lines:
        cells = line.split(" ")
        if line.startswith("#") or len(cells) < len(columns):
            continue
        cell = dict(zip(columns, cells, strict=False))
        found.append(
            Server(
                backend=cell["be_name"],
                name=cell["srv_name"],
                address=_address(cell["srv_addr"], cell["srv_port"]),
                admin=int(cell["srv_admin_state"]),
                weight=int(cell["srv_uweight"]),
                configured=int(cell["srv_iweight"]),
                row=line,
            )
        )
    return found


def _address(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _all(answer: Sequence[Server] | TryAgain) -> Sequence[Server]:
    return () if isinstance(answer, TryAgain) else answer


def _key(process: Process, server: Server) -> str:
    return f"{process.socket} {server.key}"


def _shown(server: Server) -> str:
    """How a server stands, as marks write it."""
    if server.admin & (FMAINT | CMAINT):
        return "maint"
    return "drain" if server.admin & FDRAIN else str(server.weight)


def _after(server: Server, step: Step, zero: str) -> str:
    return zero if step.amount == 0 and zero != "weight" else str(_whole_weight(server, step.amount))


def _refuse_foreign(server: Server, mark: Mark | None) -> None:
    shown = _shown(server)
    if shown == str(server.configured) or (mark is not None and shown in (mark.value, mark.before)):
        return
    what = f"is in {shown}" if server.is_withheld else f"has weight {shown} of {server.configured}"
    raise Hopeless(
        f"server {server.key} {what}, set by somebody else; left to them. To hand it back: set server {server.key} "
        f"state ready, and weight {server.configured}"
    )


def _refuse_last(server: Server, everybody: Sequence[Server]) -> None:
    others = [s for s in everybody if s.backend == server.backend and s.name != server.name and s.share > 0]
    if not others:
        raise Hopeless(
            f"server {server.key} is the last of its backend with a weight; HAProxy would answer 503 to everything"
        )


def _rounded(server: Server, share: float) -> float:
    return round(share * server.configured) / server.configured if server.configured else share


def _whole_weight(server: Server, share: float) -> int:
    """Raises Hopeless where the configured weight is too small to be divided like that."""
    if abs(_rounded(server, share) - share) > WEIGHT_STEP_MAX:
        raise Hopeless(
            f"server {server.key} has weight {server.configured} in haproxy.cfg, of which {share:.0%} cannot be set; "
            f"write `default-server weight {WEIGHT_WANTED}` and reload HAProxy"
        )
    return round(share * server.configured)


def _remedy(answer: str) -> str:
    text = answer.lower()
    if "permission" in text:
        return "; give the stats socket `level admin` in haproxy.cfg"
    if "static lb" in text or "static algorithm" in text:
        return "; use a dynamic `balance` such as roundrobin, leastconn or random"
    if "no such" in text:
        return "; somebody removed it: reload the configuration of HAProxy or of tidewarden"
    return ""


async def _exchange(address: str, command: str) -> str:
    """One command, one connection: HAProxy closes it after the answer."""
    if address.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(command.encode() + b"\n")
        await writer.drain()
        answer = bytearray()
        while chunk := await reader.read(65_536):
            answer += chunk
            if len(answer) > ANSWER_BYTES_MAX:
                raise EOFError(f"the answer to `{command}` is longer than {ANSWER_BYTES_MAX} bytes")
    finally:
        writer.close()
    if not answer:
        # Even a success is an empty line: nothing at all means that the process went away meanwhile.
        raise EOFError("closed without an answer")
    return answer.decode(errors="replace")
