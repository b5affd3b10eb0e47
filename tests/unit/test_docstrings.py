"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    ["", "fields", "sketch", "rates", "monitor.statistics", "monitor.state", "monitor.snapshot", "dashboard.letters"],
)
def test_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"twinlens.{module}".removesuffix(".")))
    assert result.failed == 0
    assert result.attempted > 0
