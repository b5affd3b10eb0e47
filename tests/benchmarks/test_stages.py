"""Where a tweet's time goes, stage by stage, while the application has little to do. Printed, never asserted.

TWINLENS_BENCH_STAGE_RATES (5,100) are the loads in tweets per second, each for TWINLENS_BENCH_STAGE_SECONDS (20).
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.benchmarks import machine, report
from tests.benchmarks.load import Outcome, load
from tests.benchmarks.producing import Plan
from tests.benchmarks.stages import STAGES, WindowTimes, watch
from tests.benchmarks.system import real_kafka, running
from twinlens.broker import topics
from twinlens.settings import Settings

PARTITIONS = 4
WARM_UP_TWEETS = 20


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_stages(tmp_path: Path) -> None:
    rates = [float(rate) for rate in os.environ.get("TWINLENS_BENCH_STAGE_RATES", "5,100").split(",")]
    seconds = report.number("TWINLENS_BENCH_STAGE_SECONDS", 20)
    file = tmp_path / "stages.jsonl"
    with real_kafka() as address:
        settings = Settings.load({"application": "stages", "kafka": {"bootstrap_servers": address}})
        topics.create(settings, PARTITIONS, 1)
        with load(settings, PARTITIONS) as offered, running(settings, prepare=functools.partial(watch, str(file))):
            offered.offer(Plan("warm", ((5.0, WARM_UP_TWEETS / 5.0),)))
            plans = {rate: Plan(f"rate{rate:g}", ((seconds, rate),)) for rate in rates}
            outcomes = {rate: offered.offer(plan) for rate, plan in plans.items()}
    windows = [msgspec.json.decode(line, type=WindowTimes) for line in file.read_bytes().splitlines()]
    found = {rate: stages(plans[rate].name, outcome, windows) for rate, outcome in outcomes.items()}
    columns = ("stage", *(f"{rate:g}/s: {of}, ms" for rate in rates for of in ("mean", "p99")), "")
    text = f"{machine.description()}\n\n{report.table(columns, rows(found))}"
    report.publish(text, "stages.md", stages={"machine": machine.description(), "by_rate": found})


def stages(name: str, outcome: Outcome, windows: list[WindowTimes]) -> dict[str, Any]:
    """Milliseconds in each stage, for a row per tweet of a plan, and what the windows tell."""
    start_s = outcome.start_s
    own = [window for window in windows if window.items[0][0].startswith(f"{name}-")]
    durations: dict[str, list[float]] = {stage: [] for stage, _ in STAGES}
    for window in own:
        for name_and_number, _, fetched_s, waiting_s in window.items:
            row = int(name_and_number.rpartition("-")[2])
            at_s = {"fetched": fetched_s, "waiting": waiting_s, **window.at_s}
            at_s["visible"] = start_s + outcome.visible_s[row]
            before_s = start_s + outcome.due_s[row]
            for stage, _ in STAGES:
                durations[stage].append(1000 * (at_s[stage] - before_s))
                before_s = at_s[stage]
    put_off = sum((Counter(window.retries) for window in own), Counter[str]())
    return {
        "ms": {stage: [float(np.mean(each)), float(np.percentile(each, 99))] for stage, each in durations.items()},
        "all_ms": [float(outcome.latency_ms.mean()), float(np.percentile(outcome.latency_ms, 99))],
        "producer_late_ms": float(outcome.late_s.mean() * 1000),
        "windows": len(own),
        "windows_put_off": sum(bool(window.retries) for window in own),
        "put_off": dict(put_off),
    }


def rows(found: dict[float, dict[str, Any]]) -> list[tuple[str, ...]]:
    lines = [
        (stage, *(f"{value:.1f}" for each in found.values() for value in each["ms"][stage]), what)
        for stage, what in STAGES
    ]
    lines.append(("all", *(f"{value:.1f}" for each in found.values() for value in each["all_ms"]), ""))
    counts = [(f"{each['windows_put_off']} of {each['windows']}", "") for each in found.values()]
    kinds = ", ".join(f"{kind} {count}" for each in found.values() for kind, count in each["put_off"].items())
    lines.append(("windows with a request put off", *(text for pair in counts for text in pair), kinds))
    return lines
