"""Throughput of the whole system against the limit, in alternating repetitions. Printed, never asserted."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.apache_kafka import apache_kafka, kafka_home
from tests.serving import run, start_http
from twinlens import records
from twinlens.broker import topics
from twinlens.broker.embedded import embedded_broker
from twinlens.broker.feed import feed, new_feed_producer
from twinlens.broker.reading import read_topics
from twinlens.cli.demo import TWEETS
from twinlens.cluster import local_cluster
from twinlens.settings import Settings

Broker = Callable[[], contextlib.AbstractContextManager[str]]

REPETITIONS = 3
COPIES = 4  #: of the demonstration tweets; the first is for warming up and does not count
CPUS = len(os.sched_getaffinity(0))


def limit(dtype: str) -> float:
    """Texts per second of the two paths alone."""
    command = [sys.executable, str(Path(__file__).with_name("limit.py")), dtype, str(CPUS), "2"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(output.splitlines()[-1])
    return found["texts"] / statistics.median(found["seconds"])


@contextlib.contextmanager
def real_kafka() -> Iterator[str]:
    """A broker from `KAFKA_HOME`; the benchmark is skipped where there is none."""
    home = kafka_home()
    if home is None:
        pytest.skip("no KAFKA_HOME with java")
    with apache_kafka(home) as cluster:
        yield cluster.bootstrap()


def twinlens(dtype: str, delivery: str = "exactly_once", broker: Broker = embedded_broker) -> float:
    """Tweets per second of the application, from the end of the first copy to the last commit."""
    from twinlens.app import application

    lines = TWEETS.read_bytes().splitlines()
    total = COPIES * len(lines)
    with broker() as address:
        settings = Settings.load(
            {
                "kafka": {"bootstrap_servers": address, "session_timeout_ms": 3000},
                "raw": {"dtype": dtype},
                "predict": {"dtype": dtype},
                "output": {"delivery": delivery},
            }
        )
        topics.create(settings, 4, 1)
        producer = new_feed_producer(settings.kafka)
        feed(producer, "tweets", lines * COPIES, rate=0, key_field="id", go_on=lambda _: True)
        producer.close()
        with local_cluster(CPUS):
            start_http()
            handle = run(application(settings, ray_actor_options={"num_cpus": CPUS}), settings.application)
            deadline = time.monotonic() + 300
            while tweets(handle) < total:
                assert time.monotonic() < deadline, "the application did not get through"
                time.sleep(0.5)
            done = sorted(
                (r.published_at_ms, r.published)
                for r in (
                    records.decode_comparison(raw.value) for _, raw in read_topics(settings, ["tweets.comparisons"])
                )
            )
    seen = 0
    for at_ms, count in done:
        seen += count
        if seen >= len(lines):
            warm_ms, warm = at_ms, seen
            break
    return (total - warm) / ((done[-1][0] - warm_ms) / 1000)


def tweets(handle) -> int:
    return json.loads(handle.view.remote().result())["summary"]["windows"]["all"]["published"]


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
