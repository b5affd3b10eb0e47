"""Logging of the processes that twinlens owns: one JSON object per line on standard error. Tweets are never logged."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer


def configure_logging() -> None:
    """Call once per process, at its entry point.

    In a process of Ray Serve, `sys.stderr` goes to Serve's own log, which treats every line as INFO. With a `log_level`
    of WARNING our lines would be lost. So this writes to the original stream, which Ray writes to the worker's file.
    It does not use `print`: Serve replaces `print`, and its version turns output to other streams into tuples.
    """
    # At level DEBUG it logs its whole configuration, including passwords.
    logging.getLogger("kafka.admin.client").setLevel(logging.INFO)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without local variables: they contain tweets and passwords.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.__stderr__ or sys.stderr),
        cache_logger_on_first_use=True,
    )
