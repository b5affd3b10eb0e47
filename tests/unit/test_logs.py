"""Where the logs go."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from twinlens.logs import configure_logging


def test_what_stands_in_for_stderr_does_not_get_the_logs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a replica that is Ray Serve's own log, which drops all of them at a `log_level` of WARNING."""
    serves = io.StringIO()
    monkeypatch.setattr(sys, "stderr", serves)
    try:
        configure_logging()
        structlog.configure(cache_logger_on_first_use=False)
        structlog.get_logger().warning("producer replaced")
    finally:
        structlog.reset_defaults()
    assert "producer replaced" in capfd.readouterr().err
    assert serves.getvalue() == ""
