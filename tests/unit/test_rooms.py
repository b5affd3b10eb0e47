"""Which modules are pure, and that a room imports only rooms before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import twinlens

PACKAGE = Path(twinlens.__file__).parent

#: Imported without these: no Kafka client, no Ray, no model, no web server. CONTRIBUTING.md points here.
HEAVY = ("kafka", "ray", "torch", "transformers", "fastapi")
PURE = (
    "twinlens",
    "twinlens.autoscaling",
    "twinlens.clock",
    "twinlens.dashboard.letters",
    "twinlens.dashboard.terminal",
    "twinlens.deadletter",
    "twinlens.errors",
    "twinlens.fields",
    "twinlens.monitor.fold",
    "twinlens.monitor.snapshot",
    "twinlens.monitor.state",
    "twinlens.monitor.statistics",
    "twinlens.monitor.summary",
    "twinlens.monitor.view",
    "twinlens.paths.derive",
    "twinlens.paths.observations",
    "twinlens.paths.path",
    "twinlens.rates",
    "twinlens.records",
    "twinlens.replica.batching",
    "twinlens.replica.cost",
    "twinlens.replica.counting",
    "twinlens.replica.decode",
    "twinlens.replica.handover",
    "twinlens.replica.outputs",
    "twinlens.replica.refusals",
    "twinlens.replica.report",
    "twinlens.replica.sampling",
    "twinlens.replica.sizing",
    "twinlens.schemas",
    "twinlens.serving.config",
    "twinlens.settings",
    "twinlens.sketch",
    "twinlens.text",
    "twinlens.threads",
    "twinlens.verdict.cause",
    "twinlens.verdict.compare",
    "twinlens.window.backlog",
    "twinlens.window.item",
    "twinlens.window.window",
)
IMPORT_WITHOUT = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split(","):
            raise ModuleNotFoundError(f"{sys.argv[1]} imports {name}")
sys.meta_path.insert(0, Missing())
importlib.import_module(sys.argv[1])
"""

#: Each room, or module of its own, imports only what comes before it here.
ORDER = [
    "autoscaling",
    "clock",
    "errors",
    "fields",
    "threads",
    "text",
    "records",
    "sketch",
    "logs",
    "settings",
    "window",
    "rates",
    "deadletter",
    "schemas",
    "broker",
    "audit",
    "paths",
    "verdict",
    "replica",
    "monitor",
    "dashboard",
    "serving",
    "app",
    "demo",
    "cli",
]


def import_without(module: str, missing: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Import `module` in a fresh interpreter in which `missing` cannot be imported."""
    command = [sys.executable, "-c", IMPORT_WITHOUT, module, ",".join(missing)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_needs_nothing_heavy(module: str) -> None:
    found = import_without(module, HEAVY)
    assert found.returncode == 0, found.stderr.strip().splitlines()[-1]


def test_the_check_sees_a_heavy_import() -> None:
    found = import_without("twinlens.broker.intake", HEAVY)
    assert found.returncode != 0
    assert "twinlens.broker.intake imports kafka" in found.stderr


def room_of(module: str) -> str:
    """`replica` of `twinlens.replica.outputs`; `twinlens` itself is no room."""
    return module.split(".")[1] if "." in module else ""


def imports() -> Iterator[tuple[str, str]]:
    """Each import of one room by another, late ones and those for types included."""
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.ImportFrom(module="twinlens", names=names):
                    yield from ((room, name.name) for name in names if name.name in ORDER)
                case ast.ImportFrom(module=str(module)) if module.startswith("twinlens."):
                    yield room, room_of(module)


def test_a_room_knows_only_the_rooms_before_it() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(ORDER), "a room without a place in the order"
    rank = {room: number for number, room in enumerate(ORDER)}
    wrong = {(room, other) for room, other in imports() if room in rank and rank[other] > rank[room]}
    assert wrong == set()


def test_only_the_shells_know_ray() -> None:
    """`app` wires it together, `serving` runs it, `autoscaling` names its types; demo and commands are its users."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "ray" for name in names):
                found.add(file.relative_to(PACKAGE).with_suffix("").parts[0])
    assert found == {"app", "autoscaling", "serving", "demo", "cli"}
