"""CPU time of one replica by step, outside tokenizers and models. Printed, never asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import machine, report
from tests.benchmarks.system import backlog, real_kafka, tweets
from tests.conftest import ModelFolder
from twinlens.settings import Settings

TWEETS = 20_000


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_steps(model_folder: ModelFolder) -> None:
    with real_kafka() as address:
        tree = {"kafka": {"bootstrap_servers": address}, "raw": {"model": str(model_folder("bert", "three"))}}
        backlog(Settings.load(tree), tweets(TWEETS))
        command = [sys.executable, str(Path(__file__).with_name("steps.py")), json.dumps(tree), str(TWEETS)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout
    found = json.loads(output.splitlines()[-1])
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
