"""CPU time of one replica by step, outside tokenizers and models. Printed, never asserted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import machine, report
from tests.benchmarks.steps import MEASURING
from tests.benchmarks.system import backlog, real_kafka, tweets
from tests.conftest import ModelFolder
from twinlens.settings import Settings

TWEETS = 20_000
#: What threads are called, and what is told apart within compute and intake, by functions.
THREADS = ("compute", "intake", "publish", "producer", "kafka-io", "MainThread")
PARTS = (
    ("forward (twinlens/paths/raw.py", "the raw path's model"),
    ("ObservedPipeline.preprocess", "the pipeline's tokenizer"),
    ("ObservedPipeline._forward", "the pipeline's model"),
    ("_run (twinlens/paths/predict.py", "the rest of the pipeline"),
    ("tokenize (twinlens/paths/tokenize.py", "the raw path's tokenizer"),
    ("_poll_once", "poll"),
)


def measured(model_folder: ModelFolder, look_on: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """What the program `steps` has found. `look_on` is called with its process once the warm-up is over."""
    with real_kafka() as address:
        tree = {"kafka": {"bootstrap_servers": address}, "raw": {"model": str(model_folder("bert", "three"))}}
        backlog(Settings.load(tree), tweets(TWEETS))
        program = [sys.executable, str(Path(__file__).with_name("steps.py")), json.dumps(tree), str(TWEETS)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            try:
                assert MEASURING in (line.strip() for line in process.stdout), "the replica did not come up"
                look_on(process.pid)
                output, _ = process.communicate(timeout=500)
            finally:
                process.kill()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_steps(model_folder: ModelFolder) -> None:
    found = measured(model_folder)
    threads, calls = found["threads"], found["calls"]
    network = {name: spent for name, spent in threads.items() if name.startswith("kafka-")}
    producer = sum(spent for name, spent in network.items() if "producer" in name)
    models = calls["raw forward"] + calls["pipeline"]
    steps = {
        "poll": calls["poll"] + sum(network.values()) - producer,
        "decode": threads["twinlens-intake"] - calls["poll"] - calls["tokenizer"],
        "split, collect, compare": threads["twinlens-compute"] - models,
        "encode": calls["encode"],
        "publish": threads["twinlens-publish"] - calls["encode"] + producer,
    }
    rows = [(name, f"{spent:.0f}") for name, spent in {**steps, "together": sum(steps.values())}.items()]
    text = f"{machine.description()}; a tiny model, {found['tweets_per_s']:,.0f} tweets/s\n\n"
    report.publish(text + report.table(("step", "CPU µs per tweet"), rows), "steps.md", steps=found)


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_interpreter_lock(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Who holds it, as a share of samples, and a flame graph."""
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if py_spy is None:
        pytest.skip("no py-spy, which Ray brings along")
    samples = tmp_path / "samples.txt"

    def record(form: str, file: Path) -> dict[str, Any]:
        options = ("--gil", "--threads", "--rate", "200", "--format", form, "--output", file.name)

        def look_on(pid: int) -> None:
            command = ["py-spy", "record", *options, "--pid", str(pid), "--duration", "8"]  # as the graph shows it
            subprocess.run(command, executable=py_spy, cwd=file.parent, check=True, timeout=100)

        return measured(model_folder, look_on)

    found = record("raw", samples)
    held: Counter[str] = Counter()
    for line in samples.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        held[holder(stack.split(";"))] += int(count)
    total = sum(held.values())
    rows = [(name, f"{count / total:.0%}") for name, count in held.most_common()]
    text = f"{machine.description()}; a tiny model, {found['tweets_per_s']:,.0f} tweets/s under the profiler\n\n"
    report.publish(text + report.table(("holder of the interpreter lock", "share"), rows), "interpreter_lock.md")
    if (folder := report.folder()) is not None:
        record("flamegraph", folder / "interpreter_lock.svg")


def holder(frames: list[str]) -> str:
    """The thread, and within compute and intake what it was at."""
    thread = next((name for name in THREADS if name in frames[0]), "other")
    inner = (what for part, what in PARTS if any(part in frame for frame in frames))
    return f"{thread}: {next(inner, 'the rest')}" if thread in ("compute", "intake") else thread
