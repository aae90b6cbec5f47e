"""What a worker process does first."""

from __future__ import annotations

import os
import signal


def yield_cpu() -> None:
    """Give way to the loop, and leave Ctrl-C to it.

    It stands in a module of its own because a worker of `python -m daemon` cannot import the entry module.
    """
    os.nice(10)
    # One core: the libraries would start a thread a core, and read this when they are imported.
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
