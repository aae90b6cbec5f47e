"""Where the log goes: to stderr, one line an event, key=value."""

from __future__ import annotations

import logging
import os
import sys

import structlog


def to_stderr(level: int = logging.INFO) -> None:
    """Log from `level` up. Under systemd the journal stamps the lines, so they carry no time of their own."""
    is_terminal = sys.stderr.isatty()
    stamp = [] if os.environ.get("JOURNAL_STREAM") else [structlog.processors.TimeStamper("iso", utc=True)]
    renderer = (
        structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
        if is_terminal
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *stamp,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Asked at every line: stderr may have been exchanged meanwhile.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
