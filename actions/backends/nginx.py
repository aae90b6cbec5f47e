"""nginx: the share of requests an engine gets, by the server lines of an upstream's include file."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actions.backends.marks import replace_file
from actions.backends.program import end
from daemon.model import Check, Hopeless, Step, TryAgain, Verb

WEIGHT_STEP_MAX = 0.01
"""How far the whole weight may lie from the share asked for; `actions.reroute.WEIGHT_TOLERANCE` is the same."""
WEIGHT_WANTED = 100
SAID_MAX = 400
TICK_S = 0.03
"""Process start times and the uptime are told in hundredths of a second, each rounded its own way."""

_LINE = re.compile(r"^(?P<lead>\s*server\s+)(?P<address>[^\s;]+)(?P<rest>[^;#]*);\s*(?:#(?P<note>.*))?$")
_NOTE = re.compile(r"tidewarden step=(?P<step>\S+) was=(?P<was>\d+) set=(?P<set>\d+) up=(?P<up>[\d.]+)")


@dataclass(frozen=True, slots=True)
class Server:
    """One server line. weight : now, 0 = down. was : what its people gave it, before us or without us.

    step : the step that set it, "" = not ours. up : seconds since boot when we did. is_edited : by hand since then.
    """

    line: int
    address: str
    weight: int
    was: int
    step: str
    up: float
    is_edited: bool

    @property
    def share(self) -> float:
        return self.weight / self.was if self.was else 0.0


@dataclass(frozen=True, slots=True)
class Nginx:
    """Rewrites `weight=` and `down` of the lines that stand for an engine, tests, reloads, and puts back what fails.

    files     : include files with the server lines of one upstream each; nothing else in them is touched. What is ours
                is written on the line itself, as a comment.
    test, reload : the commands, never run through a shell.
    pid_path  : of the master: whether its workers began after the change shows that a reload has taken place.
    engines   : server address -> engine, where it is not the engine's own.
    timeout_s : for each command.
    """

    files: Sequence[str]
    test: Sequence[str] = ("nginx", "-t")
    reload: Sequence[str] = ("nginx", "-s", "reload")
    pid_path: str = "/run/nginx.pid"
    engines: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    async def apply(self, step: Step) -> str:
        """Raises Hopeless before anything is changed when one file forbids it, TryAgain when a reload does not answer."""
        if step.verb is not Verb.REROUTE:
            raise Hopeless(f"nginx reroutes; it cannot {step.verb}: name another backend under actions")
        async with self._busy:
            before = {Path(file): _read(Path(file)) for file in self.files}
            found = {
                path: self._of_engine(servers_of(text), step.target.name) for path, text in before.items()
            }
            if not any(found.values()):
                raise Hopeless(self._unknown(step.target.name, before))
            up = _uptime_s()
            after = {path: self._changed(path, before[path], found[path], step, up) for path in before}
            changed = [path for path in before if after[path] != before[path]]
            for path in changed:
                replace_file(path, after[path])
            if changed or self._is_pending(after.values()):
                await self._take_over(changed, before)
        count = sum(len(servers) for servers in found.values())
        return f"{step.target.name} at {step.amount:.0%} of its weight, {count} server lines in {len(self.files)} files"

    async def observe(self, step: Step) -> Mapping[str, Any]:
        """{"weight"}: the one farthest from what the step wants. Raises TryAgain while workers of before still take requests."""
        found = [
            server
            for file in self.files
            for server in self._of_engine(servers_of(_read(Path(file))), step.target.name)
        ]
        if not found:
            return {}
        newest = max((server.up for server in found if server.step), default=0.0)
        began = _workers_began_s(Path(self.pid_path))
        if began and min(began) < newest - TICK_S:
            raise TryAgain(
                "nginx has not reloaded since its servers were changed: workers of before still take requests"
            )
        if not began:
            raise TryAgain(
                f"no nginx worker runs under the pid in {self.pid_path}; is nginx running, and is this its pid file?"
            )
        return {"weight": max((s.share for s in found), key=lambda share: abs(share - step.amount))}

    # -- deciding: pure ----------------------------------------------------------------------------------

    def _of_engine(self, servers: Sequence[Server], engine: str) -> list[Server]:
        return [s for s in servers if self.engines.get(s.address, s.address) == engine]

    def _changed(self, path: Path, text: str, mine: Sequence[Server], step: Step, up: float) -> str:
        """The file as it is to be. Raises Hopeless for what is not ours or would leave nobody."""
        lines = text.split("\n")
        everybody = servers_of(text)
        for server in mine:
            if server.step == step.id and not server.is_edited:
                continue
            _refuse_foreign(path, server)
            if step.amount == 0 and not any(s.weight and s.address != server.address for s in everybody):
                raise Hopeless(
                    f"{path}: server {server.address} is the last one that is not down; nginx would answer 502 to everything"
                )
            lines[server.line] = _written(lines[server.line], server, step, up, path)
        return "\n".join(lines)

    def _unknown(self, engine: str, texts: Mapping[Path, str]) -> str:
        known = sorted({s.address for text in texts.values() for s in servers_of(text)})
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        return (
            f"no nginx server stands for engine {engine}; servers in {', '.join(map(str, texts))}: {shown or 'none'}. "
            "Give the engine's address there, or map it under engines of this backend"
        )

    # -- acting ------------------------------------------------------------------------------------------

    def _is_pending(self, texts: Iterable[str]) -> bool:
        """Whether workers of before our last change still take requests: a crash came between it and the reload."""
        newest = max((server.up for text in texts for server in servers_of(text)), default=0.0)
        return any(began < newest - TICK_S for began in _workers_began_s(Path(self.pid_path)))

    async def _take_over(self, changed: Sequence[Path], before: Mapping[Path, str]) -> None:
        """Test and reload; whatever fails, the files are as they were."""
        try:
            code, said = await self._run(self.test)
            if code:
                raise Hopeless(f"`{' '.join(self.test)}` refused the change, which is taken back: {said}")
            code, said = await self._run(self.reload)
            if code:
                raise Hopeless(
                    f"`{' '.join(self.reload)}` failed, the change is taken back: {said}{_remedy(said)}"
                )
        except (Hopeless, asyncio.CancelledError):
            # A file that nginx has not read would be read by somebody else's next reload.
            for path in changed:
                replace_file(path, before[path])
            raise

    async def _run(self, command: Sequence[str]) -> tuple[int, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Hopeless(
                f"`{command[0]}` cannot be run: {error.strerror}; give its full path under this backend"
            ) from error
        try:
            async with asyncio.timeout(self.timeout_s):
                out, _ = await process.communicate()
        except TimeoutError:
            await end(process)
            raise Hopeless(
                f"`{' '.join(command)}` gave no answer within {self.timeout_s:g} s; it was stopped"
            ) from None
        return process.returncode or 0, out.decode(errors="replace").strip()[-SAID_MAX:]

    # -- before anything is enabled ----------------------------------------------------------------------

    async def check(self) -> Sequence[Check]:
        """Whether the files can be read and written, weights divided, the test passes, and the master is seen."""
        rows: list[Check] = []
        for file in self.files:
            try:
                servers = servers_of(_read(Path(file)))
            except Hopeless as trouble:
                rows.append(Check(False, file, "does not work", str(trouble)))
                continue
            if not servers:
                rows.append(
                    Check(
                        False, file, "no server line", "write `server ADDRESS:PORT weight=100;` lines there"
                    )
                )
                continue
            if not os.access(Path(file).parent, os.W_OK) or not os.access(file, os.W_OK):
                rows.append(Check(False, file, "not writable", "give this user the file with its folder"))
                continue
            coarse = [
                s.address
                for s in servers
                if any(abs(round(s.was * a) / s.was - a) > WEIGHT_STEP_MAX for a in (0.25, 0.7) if s.was)
            ]
            if coarse:
                rows.append(
                    Check(
                        False,
                        file,
                        f"weights too small to be divided: {', '.join(coarse[:8])}",
                        f"write weight={WEIGHT_WANTED}",
                    )
                )
                continue
            rows.append(Check(True, file, f"{len(servers)} servers"))
        try:
            code, said = await self._run(self.test)
            rows.append(
                Check(
                    not code,
                    " ".join(self.test),
                    said or "passes",
                    "" if not code else "correct it: nothing can be reloaded",
                )
            )
        except Hopeless as trouble:
            rows.append(Check(False, " ".join(self.test), "does not work", str(trouble)))
        began = _workers_began_s(Path(self.pid_path))
        fix = "" if began else "set pid_path to the one of `pid` in nginx.conf"
        rows.append(Check(bool(began), self.pid_path, f"{len(began)} workers", fix))
        return rows

    @property
    def rights(self) -> str:
        return (
            "nginx.conf:\n  upstream chat {\n    zone chat 64k;\n    include /etc/nginx/tidewarden/chat.servers;\n  }\n"
            "chat.servers, owned by tidewarden:\n  server 10.0.0.1:8000 weight=100;\n"
            "sudoers, with test: [sudo, nginx, -t] and reload: [sudo, nginx, -s, reload]:\n"
            "  tidewarden ALL=(root) NOPASSWD: /usr/sbin/nginx -t, /usr/sbin/nginx -s reload"
        )


def servers_of(text: str) -> list[Server]:
    """The server lines of an include file; other lines are somebody else's business.

    >>> [(s.address, s.weight, s.was) for s in servers_of("server a:1 weight=5;  # mine\\nserver b:2 down;")]
    [('a:1', 5, 5), ('b:2', 0, 0)]
    """
    found = []
    for number, line in enumerate(text.split("\n")):
        match = _LINE.match(line)
        if match is None:
            continue
        words = match["rest"].split()
        given = next((int(w.removeprefix("weight=")) for w in words if re.fullmatch(r"weight=\d+", w)), 1)
        weight = 0 if "down" in words else given
        note = _NOTE.search(match["note"] or "")
        found.append(
            Server(
                line=number,
                address=match["address"],
                weight=weight,
                was=int(note["was"]) if note else weight,
                step=note["step"] if note else "",
                up=float(note["up"]) if note else 0.0,
                is_edited=note is not None and weight != int(note["set"]),
            )
        )
    return found


def _refuse_foreign(path: Path, server: Server) -> None:
    if server.is_edited:
        raise Hopeless(
            f"{path}: server {server.address} was edited by hand since {server.step}; left to them. To hand it back: write "
            f"weight={server.was} and remove the comment"
        )
    if not server.step and not server.weight:
        raise Hopeless(
            f"{path}: server {server.address} is down, set by somebody else; left to them. To hand it back: remove `down`"
        )


def _written(line: str, server: Server, step: Step, up: float, path: Path) -> str:
    match = _LINE.match(line)
    if match is None:
        raise AssertionError(f"line {server.line + 1} of {path} was a server line a moment ago: {line!r}")
    weight = round(step.amount * server.was)
    if abs(weight / server.was - step.amount) > WEIGHT_STEP_MAX:
        raise Hopeless(
            f"{path}: server {server.address} has weight {server.was}, of which {step.amount:.0%} cannot be set; "
            f"write weight={WEIGHT_WANTED}"
        )
    words = [w for w in match["rest"].split() if w != "down" and not w.startswith("weight=")]
    # nginx has no weight 0; the weight stays on the line for whoever reads it.
    words += [f"weight={weight}"] if weight else [f"weight={server.was}", "down"]
    note = _NOTE.sub("", match["note"] or "").strip()
    # Handed back too: the time is needed until the reload was seen, and the next look finds nothing edited.
    ours = f"tidewarden step={step.id} was={server.was} set={weight} up={up:.2f}"
    comment = f"{note} {ours}".strip()
    return f"{match['lead']}{match['address']} {' '.join(words)}; # {comment}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not text"
        raise Hopeless(f"{path}: {what}; it must be readable and writable for this user") from error


def _uptime_s() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def _workers_began_s(pid_path: Path) -> list[float]:
    """Seconds since boot when each worker that takes requests began; empty when no master or worker is seen."""
    try:
        master = int(pid_path.read_text())
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    except (OSError, ValueError):
        return []
    found = []
    for child in children:
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
            # the name in brackets may hold spaces; what follows its end is field 3 and on
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if b"worker process" in title and b"shutting down" not in title:
            found.append(int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return found


def _remedy(said: str) -> str:
    text = said.lower()
    if "permission" in text or "not permitted" in text:
        return "; allow it by sudoers, see `tidewarden config check --live`"
    if "pid" in text:
        return "; is nginx running?"
    return ""
