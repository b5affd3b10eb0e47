"""Logging of the processes that twinlens owns: one JSON object per line on standard error. Tweets are never in it."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer


def configure_logging() -> None:
    """Call once per process, at its entry point.

    In a process of Ray Serve `sys.stderr` is Serve's own log, which takes every line for INFO: a `log_level` of WARNING
    would lose ours. Hence the original stream, which Ray writes to the worker's file; and no `print`, since Serve's own
    makes tuples of what goes to other streams.
    """
    # At DEBUG it logs its whole configuration, passwords included.
    logging.getLogger("kafka.admin.client").setLevel(logging.INFO)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without local variables: they hold tweets and passwords.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.__stderr__ or sys.stderr),
        cache_logger_on_first_use=True,
    )
