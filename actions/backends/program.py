"""How a backend runs a system's own client: the same way the sources do."""

from daemon.program import OUTPUT_MAX, SAID_MAX, Ran, run

__all__ = ["OUTPUT_MAX", "SAID_MAX", "Ran", "run"]
