"""An operator's own program as the hands of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actions.backends.program import end
from daemon.codec import to_plain
from daemon.model import Hopeless, Step, TryAgain

VERSION = 1
EX_TEMPFAIL = 75
"""sysexits.h: "temporary failure, the user is invited to retry"."""
ANSWER_BYTES_MAX = 1_000_000
STDERR_BYTES_KEPT = 2_000
SECRET_MIN = 6
"""Characters from which a value of the environment may be a secret; `1` and `true` are words of any sentence."""
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
        output, errors = bytearray(), bytearray()
        async with _pipe(output, ANSWER_BYTES_MAX) as out, _pipe(errors, None) as err:
            process = await self._start(call, step, out.end, err.end)
            try:
                async with asyncio.timeout(self.timeout_s):
                    code = await process.wait()
                await asyncio.wait([out.reading, err.reading], timeout=DRAIN_S)
            except TimeoutError:
                raise TryAgain(
                    f"{self.argv[0]} {call} gave no answer within {self.timeout_s:g} s and was killed"
                ) from None
            finally:
                # Also when the daemon is stopping: a program nobody waits for must not go on changing the world.
                if process.returncode is None:
                    await end(process)
        return self._judge(call, code, bytes(output), errors)

    async def _start(self, call: str, step: Step, out: int, err: int) -> asyncio.subprocess.Process:
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TIDEWARDEN_STEP_ID": step.id, **self.env}
        question = _question(call, step)
        try:
            return await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=question,
                stdout=out,
                stderr=err,
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
        finally:
            for end in (question, out, err):
                os.close(end)

    def _judge(self, call: str, code: int | None, output: bytes, errors: bytearray) -> Mapping[str, Any]:
        tail = self._clean(errors.decode(errors="replace").strip())
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
            raise TryAgain(
                f"{self.argv[0]} {call} answered no JSON ({error}): {self._clean(_shown(output))}"
            ) from error
        if not isinstance(answer, dict):
            raise TryAgain(
                f"{self.argv[0]} {call} must answer a JSON object, got {self._clean(_shown(output))}"
            )
        return answer

    def _clean(self, text: str) -> str:
        """Without what the program was given in its environment: that is where its credentials are."""
        for value in self.env.values():
            if len(value) >= SECRET_MIN:
                text = text.replace(value, "***")
        return text


def _question(call: str, step: Step) -> int:
    """The question as an open file in memory: a program that does not read it holds up nobody."""
    plain = to_plain(step)
    plain["target"] = {"kind": step.target.kind, "name": step.target.name}
    plain["args"] = dict(step.args)
    file = os.memfd_create("question")
    os.write(
        file, json.dumps({"call": call, "version": VERSION, "step": plain}, sort_keys=True).encode() + b"\n"
    )
    os.lseek(file, 0, os.SEEK_SET)
    return file


@dataclass(frozen=True, slots=True)
class _Pipe:
    """end : file descriptor the program writes to. reading : done when everybody has closed it."""

    end: int
    reading: asyncio.Task[None]


@contextlib.asynccontextmanager
async def _pipe(into: bytearray, most: int | None) -> AsyncIterator[_Pipe]:
    """A pipe read into a buffer: the first `most` bytes, or with None the last STDERR_BYTES_KEPT.

    Our own and not asyncio's: that one takes a program for running until all its children have closed the pipe.
    """
    readable, writable = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(readable, "rb", 0)
    )
    reading = asyncio.create_task(_read(reader, into, most))
    try:
        yield _Pipe(writable, reading)
    finally:
        reading.cancel()
        transport.close()


async def _read(reader: asyncio.StreamReader, into: bytearray, most: int | None) -> None:
    while chunk := await reader.read(65_536):
        if most is None:
            into += chunk
            del into[:-STDERR_BYTES_KEPT]
        else:
            # What is too much is read and thrown away: the answer becomes unreadable, not the memory full.
            into += chunk[: max(0, most - len(into))]


def _not_json(word: str) -> float:
    raise ValueError(f"{word} is not JSON; leave out what cannot be told")


def _shown(output: bytes) -> str:
    text = output.decode(errors="replace").strip()
    return repr(text if len(text) <= 200 else text[:200] + "...")
