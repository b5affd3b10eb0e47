"""Counts where code reaches into what another object keeps to itself: `other._name`, `from module import _name`, and
`"_name"` as the second argument of a call, as `setattr` takes it. Run it to see them all:

    python -m tests.support.reach_ins            # a line per place, then the counts
    python -m tests.support.reach_ins --counts   # the counts alone

Names of `self`, `cls` and `super()` are one's own. So are double underscores, which Python itself calls.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDERS = ("services", "tests")
#: Methods of named tuples that Python's own documentation calls public.
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}


class ReachIn(NamedTuple):
    """One place."""

    file: Path
    line: int
    name: str


def reach_ins(file: Path) -> Iterator[ReachIn]:
    """Every place in one Python file."""
    for node in ast.walk(ast.parse(file.read_text())):
        for name in _names(node):
            if re.fullmatch(r"_[a-zA-Z]\w*", name) and name not in PUBLIC:
                yield ReachIn(file, getattr(node, "lineno", 0), name)


def _names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            pass
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
            pass
        case ast.Attribute(attr=name):
            yield name
        case ast.ImportFrom(module=module, names=aliases):
            yield from (alias.name for alias in aliases)
            yield from (module or "").split(".")
        case ast.Import(names=aliases):
            yield from (part for alias in aliases for part in alias.name.split("."))
        case ast.Call(args=[_, ast.Constant(value=str(text)), *_]):  # setattr, getattr, and whatever wraps them
            yield text


def found_in(folder: str) -> list[ReachIn]:
    """Every place in the Python files below `folder` of the repository, in the order of files and lines."""
    return [place for file in sorted((ROOT / folder).rglob("*.py")) for place in reach_ins(file)]


def lines_of(folder: str) -> int:
    """Lines of the Python files below `folder`."""
    return sum(len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py"))


def main() -> None:
    """Print the places and the counts."""
    for folder in FOLDERS:
        places = found_in(folder)
        if "--counts" not in sys.argv[1:]:
            for place in places:
                print(f"{place.file.relative_to(ROOT)}:{place.line}: {place.name}")
        thousands = lines_of(folder) / 1000
        print(f"{folder}: {len(places)} reach-ins, {len(places) / thousands:.1f} per 1,000 lines")


if __name__ == "__main__":
    main()
