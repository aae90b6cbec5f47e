"""A network namespace of its own behind one link, for what must be slowed down or kept apart."""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FAR = "far"
"""Name of the link inside the namespace, where its address ends in .2; ours ends in .1."""


def has_networks() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, ("ip", "tc")))


@contextmanager
def network(name: str, net: str) -> Iterator[list[str]]:
    """net : the first three bytes, as in 10.211.77. Yields the beginning of a command that runs inside. What an interrupted run has left
    under that name goes first."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    near = f"tw{uuid.uuid4().hex[:8]}"
    if (
        name
        in subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout.split()
    ):
        _end(name)
    ip("netns", "add", name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", FAR, "netns", name)
        ip("addr", "add", f"{net}.1/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{net}.2/30", "dev", FAR)
        ip("-n", name, "link", "set", FAR, "up")
        yield ["ip", "netns", "exec", name]
    finally:
        _end(name)


def _end(name: str) -> None:
    """Take the namespace away, with its link and whatever runs in it: what outlived its parent would keep both."""
    left = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True)
    for pid in left.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "-n", name, "link", "del", FAR], check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
