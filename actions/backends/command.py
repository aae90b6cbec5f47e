"""An operator's own program as the hands of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.codec import to_plain
from daemon.model import Hopeless, Step, TryAgain

VERSION = 1
EX_TEMPFAIL = 75
"""sysexits.h: "temporary failure, the user is invited to retry"."""
ANSWER_BYTES_MAX = 1_000_000
STDERR_BYTES_KEPT = 2_000
KILL_S = 5.0
DRAIN_S = 1.0
"""How long after the program's end its pipes are read: a child it left behind may hold them open for ever."""


@dataclass(frozen=True, slots=True)
class Command:
    """Runs `argv` (never a shell) once a call, with one JSON object on standard input.

    Asked  : ``{"call": "apply" | "observe", "version": 1, "step": {"id", "verb", "target": {"kind", "name"},
             "amount", "until", "args": {...}, ...}}``; a time that is not set is null.
    Answer : exit 0 and one JSON object; for apply ``{"detail": "one sentence"}``, for observe the keys of
             `daemon.model.Backend.observe`. Exit 75 = try again. Any other exit = refused, standard error says why.
    An answer that is not a JSON object is "try again": the program may have done its work, and the same step id
    asks it again. The program must therefore treat an id it has done as done.
    timeout_s : then it is killed with its process group. env : all it gets beside PATH, LANG and the step's id.
    """

    argv: Sequence[str]
    timeout_s: float = 30.0
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None

    def __post_init__(self) -> None:
        if (
            isinstance(self.argv, str)
            or not self.argv
            or not all(isinstance(part, str) for part in self.argv)
        ):
            raise ValueError(
                f'argv must be a list of strings such as ["/usr/local/bin/scale", "--fast"], got {self.argv!r}'
            )

    async def apply(self, step: Step) -> str:
        return str((await self._call("apply", step)).get("detail", ""))

    async def observe(self, step: Step) -> Mapping[str, Any]:
        return await self._call("observe", step)

    async def _call(self, call: str, step: Step) -> Mapping[str, Any]:
        process = await self._start(step)
        try:
            async with asyncio.timeout(self.timeout_s):
                output, errors = await _converse(process, _question(call, step))
        except TimeoutError:
            raise TryAgain(
                f"{self.argv[0]} {call} gave no answer within {self.timeout_s:g} s and was killed"
            ) from None
        finally:
            # Also when the daemon is stopping: a program nobody waits for must not go on changing the world.
            if process.returncode is None:
                await _kill(process)
        return self._judge(call, process.returncode, output, errors)

    async def _start(self, step: Step) -> asyncio.subprocess.Process:
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TIDEWARDEN_STEP_ID": step.id, **self.env}
        pipe = asyncio.subprocess.PIPE
        try:
            return await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=environment,
                cwd=self.cwd,
                start_new_session=True,
            )
        except BlockingIOError as error:
            raise TryAgain(f"{self.argv[0]} cannot be started now: {error.strerror}") from error
        except OSError as error:
            raise Hopeless(
                f"{self.argv[0]} cannot be started: {error.strerror}; give the full path of an executable file"
            ) from error

    def _judge(self, call: str, code: int | None, output: bytes, errors: bytes) -> Mapping[str, Any]:
        tail = errors.decode(errors="replace").strip()
        if code == EX_TEMPFAIL:
            raise TryAgain(
                f"{self.argv[0]} {call} asks to try again: {tail or 'no reason on standard error'}"
            )
        if code is not None and code < 0:
            raise TryAgain(
                f"{self.argv[0]} {call} was killed by signal {-code}: {tail or 'nothing on standard error'}"
            )
        if code != 0:
            raise Hopeless(
                f"{self.argv[0]} {call} ended with exit code {code}: {tail or 'no reason on standard error'}"
            )
        try:
            answer = json.loads(output, parse_constant=_not_json)
        except ValueError as error:
            raise TryAgain(f"{self.argv[0]} {call} answered no JSON ({error}): {_shown(output)}") from error
        if not isinstance(answer, dict):
            raise TryAgain(f"{self.argv[0]} {call} must answer a JSON object, got {_shown(output)}")
        return answer


def _question(call: str, step: Step) -> bytes:
    plain = to_plain(step)
    plain["target"] = {"kind": step.target.kind, "name": step.target.name}
    plain["args"] = dict(step.args)
    return json.dumps({"call": call, "version": VERSION, "step": plain}, sort_keys=True).encode() + b"\n"


async def _converse(process: asyncio.subprocess.Process, question: bytes) -> tuple[bytes, bytes]:
    """Standard output and the tail of standard error, once the program has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()
    async with asyncio.TaskGroup() as readers:
        reading = [
            readers.create_task(_read(process.stdout, output, ANSWER_BYTES_MAX)),
            readers.create_task(_read_tail(process.stderr, errors)),
        ]
        # A program may well answer without reading the question.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(question)
            await process.stdin.drain()
        process.stdin.close()
        await process.wait()
        await asyncio.wait(reading, timeout=DRAIN_S)
        for task in reading:
            task.cancel()
    return bytes(output), bytes(errors)


async def _read(stream: asyncio.StreamReader, into: bytearray, most: int) -> None:
    """All of it; what exceeds `most` is read and thrown away, which makes the answer unreadable, not the memory full."""
    while chunk := await stream.read(65_536):
        into += chunk[: max(0, most - len(into))]


async def _read_tail(stream: asyncio.StreamReader, into: bytearray) -> None:
    while chunk := await stream.read(65_536):
        into += chunk
        del into[:-STDERR_BYTES_KEPT]


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Killed it ends at once, unless it hangs in the kernel, and then it is the kernel's.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILL_S)


def _not_json(word: str) -> float:
    raise ValueError(f"{word} is not JSON; leave out what cannot be told")


def _shown(output: bytes) -> str:
    text = output.decode(errors="replace").strip()
    return repr(text if len(text) <= 200 else text[:200] + "...")
