"""Throughput of the whole system against the limit, in alternating repetitions. Printed, never asserted."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.system import CPUS, Broker, backlog, rate, real_kafka, running, tweets, wait_for
from twinlens.demo.application import TWEETS
from twinlens.demo.embedded import embedded_broker
from twinlens.settings import Settings

REPETITIONS = 3
COPIES = 4  #: of the demonstration tweets; the first is for warming up and does not count


def limit(dtype: str) -> float:
    """Texts per second of the two paths alone."""
    command = [sys.executable, str(Path(__file__).with_name("limit.py")), dtype, str(CPUS), "2"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(output.splitlines()[-1])
    return found["texts"] / statistics.median(found["seconds"])


def twinlens(dtype: str, delivery: str = "exactly_once", broker: Broker = embedded_broker) -> float:
    """Tweets per second of the application, from the end of the first copy to the last commit."""
    count = len(TWEETS.read_bytes().splitlines())
    with broker() as address:
        settings = Settings.load(
            {
                "kafka": {"bootstrap_servers": address, "session_timeout_ms": 3000},
                "raw": {"dtype": dtype},
                "predict": {"dtype": dtype},
                "output": {"delivery": delivery},
            }
        )
        backlog(settings, tweets(COPIES * count))
        with running(settings) as handle:
            wait_for(handle, COPIES * count)
            return rate(settings, warm_up=count)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_share_of_the_limit() -> None:
    rows = []
    for _ in range(REPETITIONS):
        rows.append((limit("bfloat16"), twinlens("bfloat16")))
        print(f"limit {rows[-1][0]:,.0f}/s, twinlens {rows[-1][1]:,.0f}/s, ratio {rows[-1][1] / rows[-1][0]:.2f}")
    best, system = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(system / best for best, system in rows)
    print(f"\n{platform.processor() or platform.machine()}, {CPUS} CPUs, bfloat16, exactly once, embedded broker")
    print(f"medians of {REPETITIONS}: limit {best:,.0f} tweets/s, twinlens {system:,.0f} tweets/s, ratio {ratio:.2f}")


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("broker", [real_kafka, embedded_broker], ids=["kafka", "embedded"])
def test_cost_of_exactly_once(broker: Broker) -> None:
    """Against at-least-once, in alternation."""
    ratios = []
    for repetition in range(REPETITIONS):
        order = ("exactly_once", "at_least_once") if repetition % 2 else ("at_least_once", "exactly_once")
        rates = {delivery: twinlens("bfloat16", delivery, broker) for delivery in order}
        ratios.append(rates["exactly_once"] / rates["at_least_once"])
        print(", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()), f"ratio {ratios[-1]:.3f}")
    print(f"median of {REPETITIONS}: exactly once has {statistics.median(ratios):.3f} of at-least-once's throughput")
