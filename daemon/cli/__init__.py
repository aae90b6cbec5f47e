"""The command line: everything an operator can say to tidewarden."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Roots", "run"]


@dataclass(frozen=True, slots=True)
class Roots:
    """What only the composition root can do.

    serve : configuration file, (done, total) of the history that is read at the first start -> exit code. demo, drill : options by name. replay : policy, step in seconds -> a
    daemon.replay.Replay. forecast : hourly values and a horizon in
    hours -> an object with quantiles (quantile, hour), skill and note, see detectors.forecast.Ahead. backtest : hourly
    values, (done, total) -> one row of scores a horizon. look : settings -> backend -> its minimal rights and live checks.
    try_channel : settings, a channel's name -> what came of a test message, an object an address, see daemon.telling.Tried.
    """

    serve: Callable[[Path, Callable[[float, float], None]], int]
    demo: Callable[..., int]
    drill: Callable[..., dict[str, Any]]
    replay: Callable[[Any, float], Any]
    forecast: Callable[[Any, int], Any]
    backtest: Callable[[Any, Callable[[float, float], None]], list[dict[str, Any]]]
    look: Callable[[Any], dict[str, tuple[str, list[Any]]]]
    try_channel: Callable[[Any, str], list[Any]]


def run(roots: Roots, argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say. Returns the exit code: 0 ok, 1 failed, 2 usage, 78 configuration."""
    import click

    from daemon.cli.commands import tidewarden
    from daemon.cli.trouble import Trouble

    try:
        code = tidewarden.main(args=argv, prog_name="tidewarden", standalone_mode=False, obj=roots)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        sys.stderr.close()
        return 1
    except Trouble as error:
        print(f"tidewarden: {error}", file=sys.stderr)
        return error.code
    return code if isinstance(code, int) else 0
