"""A replica takes no more than it can hold, and a slow model costs it no partition."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import ModelFolder
from tests.support.replicas import (
    DEADLINE_S,
    committed,
    lines,
    produce,
    published,
    run_through,
    running_replica,
    wait_until,
)
from twinlens import records
from twinlens.audit import audit
from twinlens.broker.client import new_producer
from twinlens.broker.intake import Intake
from twinlens.broker.publisher import TransactionalPublisher
from twinlens.paths.raw import RawPath
from twinlens.replica.replica import Replica
from twinlens.settings import Settings
from twinlens.window.backlog import Backlog

NewSettings = Callable[..., Settings]
LARGE_CHARS = 90_000


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For every hand-over: bytes that were polled, bytes in hand after it."""
    seen: list[tuple[int, int]] = []
    fill = Backlog.fill

    def watched(self: Backlog, partition: Any, epoch: int, items: Any) -> None:
        fill(self, partition, epoch, items)
        seen.append((sum(item.size_bytes for item in items), self.size_bytes))

    monkeypatch.setattr(Backlog, "fill", watched)
    return seen


def large(count: int) -> list[bytes]:
    """One word of many letters: no work for the tokenizer, and a fetch of compressed records brings them all."""
    return [json.dumps({"id": str(number), "text": "x" * LARGE_CHARS}).encode() for number in range(count)]


def windows(found: dict[str, list[Any]]) -> list[int]:
    """Tweets by window, where there is one partition."""
    return [records.decode_comparison(raw.value).tally.tweets for raw in found["comparisons"]]


def test_large_records_come_in_small_polls_and_small_windows(
    new_settings: NewSettings, model_folder: ModelFolder, held: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, count = 1_600_000, 60
    settings = new_settings(partitions=1, raw={"model": str(model_folder())}, intake={"max_buffered_bytes": limit})
    producer = new_producer(settings.kafka, compression_type="lz4", linger_ms=100, batch_size=2**20)
    for line in large(count):
        producer.send(settings.topics.input, line)
    producer.close(timeout=10)
    begin, paused = RawPath.begin, threading.Event()

    def behind(self: RawPath, items: Any) -> Any:
        assert paused.wait(DEADLINE_S)
        return begin(self, items)

    monkeypatch.setattr(RawPath, "begin", behind)
    with running_replica(settings) as replica:
        wait_until(lambda: bool(replica.parts.intake.consumer.paused()), "the intake is full")
        paused.set()
        wait_until(lambda: committed(settings, replica) == count, "all of them")
    found = published(settings, "logits", "predictions", "comparisons")
    assert len(found["logits"]) == len(found["predictions"]) == count
    polled, in_hand = (max(column) for column in zip(*held, strict=True))
    assert polled <= limit / 8
    assert limit <= in_hand < limit + polled
    assert max(windows(found)) == limit / 4 // (LARGE_CHARS + 2_000)


def test_records_larger_than_the_limit_pass_one_by_one(
    new_settings: NewSettings, model_folder: ModelFolder, held: list[tuple[int, int]]
) -> None:
    settings = new_settings(partitions=1, raw={"model": str(model_folder())}, intake={"max_buffered_bytes": 1024})
    small = lines(5)
    count = produce(settings, [(None, line, []) for line in [*small, *large(3), *small, *large(1)]])
    found = run_through(settings, count)
    assert len(found["logits"]) == len(found["predictions"]) == count
    assert set(windows(found)) == {1}
    assert all(polled == in_hand for polled, in_hand in held)


def test_small_records_come_in_large_windows(new_settings: NewSettings, model_folder: ModelFolder) -> None:
    settings = new_settings(partitions=1, raw={"model": str(model_folder())})
    found = run_through(settings, produce(settings, [(None, line, []) for line in lines()]))
    assert max(windows(found)) == settings.batching.max_window_items


@contextlib.contextmanager
def publishing_held(
    settings: Settings, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], None]]:
    """No window is published within. There are two already: one that is about to be, one that waits for it. Yields what
    sends tweets and waits until they wait, too.
    """
    publish, go_on = TransactionalPublisher.publish, threading.Event()

    def held(self: TransactionalPublisher, *arguments: Any) -> None:
        assert go_on.wait(DEADLINE_S)
        publish(self, *arguments)

    def send(count: int) -> None:
        in_hand = replica.parts.backlog.unfinished + produce(settings, [(None, line, []) for line in lines(count)])
        wait_until(lambda: replica.parts.backlog.unfinished == in_hand, "they are in hand")

    monkeypatch.setattr(TransactionalPublisher, "publish", held)
    try:
        for _ in range(2):
            send(1)
            wait_until(lambda: replica.parts.backlog.items == 0, "it is in a window")
        yield send
    finally:
        go_on.set()


def test_what_comes_while_a_window_waits_to_be_published_makes_one_window(
    new_settings: NewSettings, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be committed no sooner, and each window has its price."""
    settings = new_settings(
        partitions=1, raw={"model": str(model_folder())}, batching={"latency_objective_ms": DEADLINE_S * 1000}
    )
    with running_replica(settings) as replica:
        with publishing_held(settings, replica, monkeypatch) as send:
            wait_until(lambda: replica.parts.handover.occupied, "the second one is computed")
            send(5)
            send(5)
        wait_until(lambda: committed(settings, replica) == 12, "all of them")
    assert windows(published(settings, "comparisons")) == [1, 1, 10]


def test_a_replica_that_stops_makes_no_window_of_what_waits(
    new_settings: NewSettings, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Least of all the large one that has come together while it could not publish."""
    settings = new_settings(partitions=1, raw={"model": str(model_folder())})
    with running_replica(settings) as replica:
        with publishing_held(settings, replica, monkeypatch) as send:
            send(1)
            stopping = threading.Thread(target=replica.stop)
            stopping.start()
            wait_until(lambda: replica.stopping, "it stops")
        stopping.join(DEADLINE_S)
        assert not stopping.is_alive()
    assert windows(published(settings, "comparisons")) == [1, 1]


@pytest.mark.kafka
@pytest.mark.slow
def test_a_model_slower_than_the_poll_interval_keeps_its_partitions(
    new_kafka_settings: NewSettings, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second consumer of the group would see it; the client leaves the group by itself after `max_poll_interval_ms`.

    The intake is full for most of the time: it polls although it takes nothing.
    """
    settings = new_kafka_settings(
        kafka={"max_poll_interval_ms": 1000, "session_timeout_ms": 10_000},
        raw={"model": str(model_folder())},
        intake={"max_buffered_items": 40},
        batching={"max_window_items": 40},
    )
    count = produce(settings, [(str(number).encode(), line, []) for number, line in enumerate(lines(100))])
    begin, given_up, held_up = RawPath.begin, [], []

    def slowly(self: RawPath, items: Any) -> Any:
        held_up.append(len(items))
        threading.Event().wait(1.5 * settings.kafka.max_poll_interval_ms / 1000)
        return begin(self, items)

    monkeypatch.setattr(RawPath, "begin", slowly)
    for event in ("on_partitions_revoked", "on_partitions_lost"):
        monkeypatch.setattr(Intake, event, lambda _, partitions: given_up.extend(partitions))
    with running_replica(settings) as replica:
        wait_until(lambda: committed(settings, replica) > 0, "the first window")
        generation = replica.parts.intake.group_metadata().generation_id
        wait_until(lambda: committed(settings, replica) >= count, "the last window")
        assert replica.parts.intake.group_metadata().generation_id == generation
        assert given_up == []
        assert len(held_up) >= 3
    report = audit(settings)
    assert report.clean
    assert report.published == count
    assert {name: len(found) for name, found in published(settings, "logits", "predictions").items()} == {
        "logits": count,
        "predictions": count,
    }
