"""Where results go: to standard output, and into the folder that TWINLENS_BENCH_REPORT names, if it does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def number(name: str, default: float) -> float:
    """An environment variable that is a number."""
    return float(os.environ.get(name) or default)


def folder() -> Path | None:
    """The folder for reports, made if need be."""
    name = os.environ.get("TWINLENS_BENCH_REPORT")
    if not name:
        return None
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def publish(text: str, text_file: str | None = None, **data: Any) -> None:
    """Print `text`; into the folder goes `text` as `text_file`, and each of `data` as `<name>.json`."""
    print(f"\n{text}\n", flush=True)
    if (path := folder()) is not None:
        if text_file is not None:
            (path / text_file).write_text(f"{text}\n")
        for name, content in data.items():
            (path / f"{name}.json").write_text(f"{json.dumps(content, indent=1)}\n")
