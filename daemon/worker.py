"""What a worker process does first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def yield_cpu() -> None:
    """Give way to the loop, leave Ctrl-C to it, and end with the daemon however that ends.

    It stands in a module of its own because a worker of `python -m daemon` cannot import the entry module.
    """
    os.nice(10)
    # One core: the libraries would start a thread a core, and read this when they are imported.
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_daemon, name="daemon-watch", daemon=True).start()


def _end_with_the_daemon() -> None:
    """A daemon that was killed tells nobody, and a worker waits for work for ever: it holds the queue's other end itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
