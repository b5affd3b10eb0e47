"""Options that go together, over all commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from twinlens.cli.main import app


def commands(command: Any, *path: str) -> Iterator[tuple[str, set[str]]]:
    """Every command with its options."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, *path, name)
    else:
        yield " ".join(path), {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("name", "options"), [(name, found) for name, found in commands(typer.main.get_command(app)) if "--config" in found]
)
def test_who_reads_a_config_file_lets_one_choose_its_application(name: str, options: set[str]) -> None:
    if name == "serve":  # it deploys all of them
        return
    assert "--app" in options
