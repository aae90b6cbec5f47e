"""Runs a system's own client, each call under a deadline."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from daemon.model import Hopeless, TryAgain

OUTPUT_MAX = 16_000_000
SAID_MAX = 400


class Ran(NamedTuple):
    """said : standard error, else standard output, shortened for a sentence."""

    code: int
    out: str
    said: str


async def run(argv: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
    """Run `argv`, never through a shell, with PATH, LANG and `env` as all its environment.

    Raises Hopeless when it cannot be started, TryAgain when it gives no answer in time; then it is killed, and whether it
    did its work is for a look at the world to tell.
    """
    surroundings = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **(env or {})}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=surroundings,
        )
    except OSError as error:
        raise Hopeless(
            f"`{argv[0]}` cannot be run: {error.strerror}; install it or give its full path under this backend"
        ) from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        raise TryAgain(f"`{' '.join(argv)}` gave no answer within {timeout_s:g} s and was stopped") from None
    finally:
        # Also when the daemon is stopping: nobody waits for it any more.
        if process.returncode is None:
            process.kill()
            await process.wait()
    text, trouble = out[:OUTPUT_MAX].decode(errors="replace"), err.decode(errors="replace")
    said = " ".join((trouble.strip() or text.strip()).split())[-SAID_MAX:] or "nothing"
    return Ran(process.returncode or 0, text, said)
