"""Says which process listens on a TCP port of this host."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"


def holder_of(port: int, proc: Path = Path("/proc")) -> str:
    """ "pid 123 (name)" of the process that listens on a port, "" when that cannot be told.

    Other users' processes are visible to root only.
    """
    inodes = _inodes(port, proc)
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            if any(_points_to(link, wanted) for link in (folder / "fd").iterdir()):
                return f"pid {folder.name} ({(folder / 'comm').read_text().strip()})"
    return ""


def _points_to(link: Path, wanted: set[str]) -> bool:
    try:
        return os.readlink(link) in wanted
    except OSError:
        return False


def _inodes(port: int, proc: Path) -> set[str]:
    """Socket inodes that listen on the port. Source: proc(5), /proc/net/tcp."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found
