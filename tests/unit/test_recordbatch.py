"""A window's records in record batches: byte for byte what the client's own encoder makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from twinlens.broker.repairs import recordbatch
from twinlens.broker.repairs.recordbatch import BatchFuture
from twinlens.window.item import OutgoingRecord

TOPIC = "tweets.logits"
payloads = st.binary(max_size=300)
headers = st.lists(st.tuples(st.text(max_size=20), payloads), max_size=3)
records = st.builds(
    OutgoingRecord, st.just(TOPIC), st.just(1), st.one_of(st.none(), payloads), st.one_of(st.none(), payloads), headers
)


class Producer:
    """What `recordbatch.batches` asks of a producer."""

    def __init__(self) -> None:
        self._accumulator = self
        self.config = {"compression_attrs": 0}

    def _ensure_valid_record_size(self, size: int) -> None: ...


def built(window: list[OutgoingRecord], batch_size: int = 1_000_000) -> list[Any]:
    producer: Any = Producer()
    batches = list(recordbatch.batches(producer, TopicPartition(TOPIC, 1), window, batch_size))
    for batch in batches:
        batch.records.close()
    return batches


def unpacked(buffer: bytes) -> list[tuple[Any, ...]]:
    return [(r.offset, r.key, r.value, r.headers) for batch in MemoryRecords(buffer) for r in batch]


@given(window=st.lists(records, min_size=1, max_size=40))
def test_a_batch_is_what_the_client_would_have_made(window: list[OutgoingRecord]) -> None:
    (batch,) = built(window)
    (found,) = list(MemoryRecords(bytes(batch.records.buffer())))
    theirs = MemoryRecordsBuilder(2, 0, 1_000_000)
    for record in window:
        assert theirs.append(found.first_timestamp, record.key, record.value, record.headers) is not None
    theirs.close()
    assert batch.records.buffer() == theirs.buffer()
    assert batch.records.next_offset() == theirs.next_offset() == len(window)


@given(window=st.lists(records, min_size=1, max_size=40), batch_size=st.integers(1, 3_000))
def test_batches_hold_every_record_once_in_order_and_no_more_than_they_may(
    window: list[OutgoingRecord], batch_size: int
) -> None:
    batches = built(window, batch_size)
    found = [unpacked(bytes(batch.records.buffer())) for batch in batches]
    assert [record[1:] for batch in found for record in batch] == [(r.key, r.value, r.headers) for r in window]
    for batch, own in zip(batches, found, strict=True):
        assert [record[0] for record in own] == list(range(len(own)))
        assert batch.record_count == len(own)
        assert len(own) == 1 or batch.records.size_in_bytes() <= batch_size


def split(accumulator: RecordAccumulator, batch: Any) -> list[Any]:
    """The parts, as the client makes them of a batch that the broker did not take."""
    batch.records.close()
    accumulator.split_and_reenqueue(batch)
    first, second = (accumulator._batches[batch.topic_partition].popleft() for _ in range(2))
    return [first, second]


def test_a_batch_that_was_split_is_there_when_all_its_parts_are() -> None:
    window = [OutgoingRecord(TOPIC, 1, None, b"%d" % number, []) for number in range(4)]
    producer: Any = Producer()
    (batch,) = recordbatch.batches(producer, TopicPartition(TOPIC, 1), window, 1_000)
    future, accumulator = BatchFuture(batch), RecordAccumulator()
    first, second = split(accumulator, batch)
    assert batch.produce_future.wait(0)  # who waits for it is woken: nothing else will happen to it
    third, fourth = split(accumulator, second)
    first.complete(0, -1)
    third.complete(2, -1)
    with pytest.raises(KafkaTimeoutError):
        future.check()
    fourth.complete(3, -1)
    future.check()


def test_a_part_that_failed_fails_the_batch() -> None:
    window = [OutgoingRecord(TOPIC, 1, None, b"%d" % number, []) for number in range(4)]
    producer: Any = Producer()
    (batch,) = recordbatch.batches(producer, TopicPartition(TOPIC, 1), window, 1_000)
    future = BatchFuture(batch)
    first, second = split(RecordAccumulator(), batch)
    first.complete(0, -1)
    second.complete_exceptionally(MessageSizeTooLargeError("no"), lambda _: MessageSizeTooLargeError("no"))
    with pytest.raises(MessageSizeTooLargeError):
        future.check()
