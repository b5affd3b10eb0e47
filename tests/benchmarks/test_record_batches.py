"""What writing a window as whole record batches gains (`broker/repairs/recordbatch.py`) over a `KafkaProducer.send` per
record: a transaction per window on a real Kafka, CPU time of the whole process, sender included. Printed, never
asserted. Offsets are left out: they cost both the same.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer

from tests.benchmarks import machine, report
from tests.benchmarks.system import real_kafka
from twinlens.broker import topics
from twinlens.broker.publisher import BATCH_BYTES, TransactionalPublisher
from twinlens.broker.reading import read_topics
from twinlens.broker.repairs import recordbatch
from twinlens.records import encode
from twinlens.schemas import example_records
from twinlens.settings import Settings
from twinlens.window.item import OutgoingRecord

TWEETS = 512  #: of a window; each has two records
PARTITIONS = 4
WINDOWS = 20  #: of a repetition
REPETITIONS = 9

Way = Callable[[KafkaProducer, Sequence[OutgoingRecord]], None]


def one_by_one(producer: KafkaProducer, window: Sequence[OutgoingRecord]) -> None:
    futures = [producer.send(r.topic, r.value, r.key, r.headers, r.partition) for r in window]
    producer.flush()
    for future in futures:
        future.get(0)


def as_batches(producer: KafkaProducer, window: Sequence[OutgoingRecord]) -> None:
    futures = recordbatch.send(producer, window, BATCH_BYTES)
    producer.flush()
    for future in futures:
        future.check()


WAYS: dict[str, Way] = {"KafkaProducer.send": one_by_one, "record batches": as_batches}


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_record_batches() -> None:
    with real_kafka() as address, contextlib.ExitStack() as stack:
        settings = Settings.load({"kafka": {"bootstrap_servers": address}})
        topics.create(settings, PARTITIONS, 1)
        window = outputs(settings)
        producers = {
            name: stack.enter_context(contextlib.closing(TransactionalPublisher(settings, name))).producer
            for name in WAYS
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for repetition in range(REPETITIONS + 1):  # the first one warms up
            for name, way in WAYS.items():
                found = transactions(producers[name], way, window)
                if repetition:
                    measured[name].append(found)
        arrived = sum(1 for _ in read_topics(settings, (settings.topics.logits, settings.topics.predictions)))
    assert arrived == len(WAYS) * (REPETITIONS + 1) * WINDOWS * len(window)
    size = statistics.mean(len(record.value or b"") for record in window)
    rows = [(name, *row(found, len(window))) for name, found in measured.items()]
    text = f"{machine.description()}; {len(window):,} records of {size:.0f} bytes a window, {PARTITIONS} partitions, "
    text += f"{settings.output.compression}; medians of {REPETITIONS} repetitions of {WINDOWS} windows\n\n"
    report.publish(text + report.table(("way", "CPU µs per record", "windows/s"), rows), record_batches=measured)


def transactions(producer: KafkaProducer, way: Way, window: Sequence[OutgoingRecord]) -> tuple[float, float]:
    """CPU and wall-clock seconds of `WINDOWS` windows, each in a transaction."""
    cpu, start = time.process_time(), time.perf_counter()
    for _ in range(WINDOWS):
        producer.begin_transaction()
        way(producer, window)
        producer.commit_transaction()
    return time.process_time() - cpu, time.perf_counter() - start


def row(found: Sequence[tuple[float, float]], records: int) -> tuple[str, str]:
    """Medians, as the table shows them."""
    cpu = statistics.median(cpu for cpu, _ in found)
    wall = statistics.median(wall for _, wall in found)
    return f"{cpu * 1e6 / WINDOWS / records:.1f}", f"{WINDOWS / wall:.1f}"


def outputs(settings: Settings) -> list[OutgoingRecord]:
    """A window's logits and predictions: the examples of the documents, with other numbers in each."""
    numbers = random.Random(0)
    examples: dict[str, Any] = example_records()
    logits, prediction = examples[settings.topics.logits], examples[settings.topics.predictions]
    change = msgspec.structs.replace
    records: list[tuple[str, Any]] = []
    for number in range(TWEETS):
        shared = {"id": str(number), "source": change(logits.source, offset=number)}
        own = [round(numbers.gauss(0, 2), 4) for _ in logits.labels]
        records.append((settings.topics.logits, change(logits, logits=own, **shared)))
        records.append((settings.topics.predictions, change(prediction, score=round(numbers.random(), 4), **shared)))
    return [
        OutgoingRecord(topic, int(record.id) % PARTITIONS, record.id.encode(), encode(record), [])
        for topic, record in records
    ]
