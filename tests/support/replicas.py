"""Running a replica in this process, and reading what it published."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from twinlens.broker.client import new_producer
from twinlens.broker.reading import read_topics
from twinlens.demo.application import TWEETS
from twinlens.errors import ReplaceReplica
from twinlens.monitor.monitor import Monitor
from twinlens.replica.replica import Replica, new_replica
from twinlens.replica.report import WindowReport
from twinlens.settings import Settings
from twinlens.window.item import Partition

DEADLINE_S = 60.0


def lines(count: int | None = None) -> list[bytes]:
    """The first `count` demonstration tweets, as JSON."""
    return TWEETS.read_bytes().splitlines()[:count]


def texts(count: int | None = None) -> list[str]:
    return [json.loads(line)["text"] for line in lines(count)]


def produce(settings: Settings, records: Iterable[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> int:
    """Send (key, value, headers) records, all to partition key-hash; returns how many."""
    producer = new_producer(settings.kafka, linger_ms=5)
    try:
        futures = [producer.send(settings.topics.input, value, key, headers) for key, value, headers in records]
        producer.flush(timeout=30)
        for future in futures:
            future.get(timeout=1)
        return len(futures)
    finally:
        producer.close(timeout=5)


@contextlib.contextmanager
def running_replica(
    settings: Settings,
    name: str = "replica-a",
    instance_id: str | None = None,
    observe: Callable[[WindowReport], None] = lambda _: None,
) -> Iterator[Replica]:
    torch.set_num_threads(2)
    replica = new_replica(settings, name, instance_id, observe)
    replica.start()
    try:
        yield replica
    finally:
        replica.stop()


def assigned(replica: Replica) -> set[Partition]:
    """The partitions that its intake has."""
    return set(replica.parts.intake.positions.epochs)


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition with a deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.05)


def is_unwell(body: Replica | Monitor) -> bool:
    """Whether its health check fails."""
    try:
        body.check_health()
    except ReplaceReplica:
        return True
    return False


def published(settings: Settings, *topics: str) -> dict[str, list[Any]]:
    """All records of the named outputs, by the last part of the topic's name."""
    names = topics or ("logits", "predictions", "divergences", "comparisons", "dlq")
    found: dict[str, list[Any]] = {name: [] for name in names}
    full = {getattr(settings.topics, name): name for name in names}
    for topic, record in read_topics(settings, full):
        found[full[topic]].append(record)
    return found


def run_through(settings: Settings, count: int, name: str = "replica-a") -> dict[str, list[Any]]:
    """Run a replica until `count` records have come out, as tweets or dead letters; what it published."""
    with running_replica(settings, name) as replica:
        wait_until(lambda: committed(settings, replica) >= count, f"{count} records committed")
    return published(settings)


def committed(settings: Settings, replica: Replica | None = None) -> int:
    """Sum of the group's committed offsets; fails when the replica is not well."""
    from twinlens.audit import committed_offsets

    if replica is not None:
        replica.check_health()
    return sum(committed_offsets(settings).values())
