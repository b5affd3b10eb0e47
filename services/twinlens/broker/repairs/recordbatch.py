"""Turns all records of a window into record batches at once.

`KafkaProducer.send` takes one record: nearly 30 µs of CPU time each, sender and transaction included, and a
future for each that is resolved one by one. A window is a few hundred records for a few partitions, known at once, so
here each partition's records are encoded together, get one future per batch, and stand in the queue from which the
client's sender takes batches. A window of 1,024 records costs a quarter of the CPU time and a third of the wall time
(tests/benchmarks/test_record_batches.py; figures in docs/decisions/0005-kafka-client.md).

This is no defect: the Java client takes one record at a time, too, but in compiled code. Seen in 3.0.12.
`test_a_record_costs_a_send_of_its_own` fails when `KafkaProducer.send` needs about as few calls as this.

The format is that of the Kafka protocol, "Record Batch", magic 2 (https://kafka.apache.org/documentation/#recordbatch).
Header, checksum, compression, sequence numbers and retries stay the client's. kafka-python has no public way in: the
names with an underscore are those of 3.0, to which the version is pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from twinlens.clock import now_ms
from twinlens.errors import ReplaceReplica
from twinlens.window.item import OutgoingRecord

MAGIC = 2
HEADER_BYTES = 61  #: of a record batch


class BatchFuture:
    """The outcome of one record batch, or of all its parts if the client split it."""

    def __init__(self, batch: ProducerBatch) -> None:
        self.was_split = False  #: it was larger than its topic's max.message.bytes
        self._parts = [batch.produce_future]
        batch._record_futures = _RecordFutures(self, batch.produce_future, batch.record_count)

    def check(self) -> None:
        """Raises what the broker or the client said, and KafkaTimeoutError where nothing was said yet."""
        for part in self._parts:
            if not part.is_done:
                raise KafkaTimeoutError("a record batch is not acknowledged")
            if part.failed():
                raise part.exception
            if (error_of_record := part.value[2]) is not None:
                raise error_of_record(0)

    def replace(self, part: Any, by: Any) -> None:
        """A batch was split, and `by` is one of the parts."""
        self.was_split = True
        self._parts = [each for each in self._parts if each is not part]
        if not any(each is by for each in self._parts):
            self._parts.append(by)


class _RecordFutures:
    """Stands for a future per record, which the client moves to the parts of a batch that it splits."""

    def __init__(self, whole: BatchFuture, part: Any, count: int) -> None:
        self._whole, self._part, self._count = whole, part, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> _RecordFuture:
        return _RecordFuture(self._whole, self._part)


class _RecordFuture:
    def __init__(self, whole: BatchFuture, part: Any) -> None:
        self._whole, self._part = whole, part

    def rebind(self, part: Any, _index: int) -> None:
        """Like FutureRecordMetadata's. Wakes whoever waits for the old batch; nothing else does."""
        self._whole.replace(self._part, part)
        old, self._part = self._part, part
        old._latch.set()


def send(producer: KafkaProducer, records: Sequence[OutgoingRecord], batch_bytes: int) -> list[BatchFuture]:
    """Hand a window's records to the producer, in order per partition. Returns a future per batch. A batch has at most
    `batch_bytes`, unless it holds a single record.

    Raises ReplaceReplica where a record is too large or its partition does not exist, and KafkaError where the topic
    cannot be known or the transaction has failed. Called by the thread of the producer's transactions.
    """
    of_partition: dict[TopicPartition, list[OutgoingRecord]] = {}
    for record in records:
        of_partition.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    for where in of_partition:  # all of them first: the sender asks for them in one request
        _begin(producer, where)
    futures = []
    for where, own in of_partition.items():
        made = list(batches(producer, where, own, batch_bytes))
        futures += [BatchFuture(batch) for batch in made]
        _enqueue(producer._accumulator, where, made)
    producer._sender.wakeup()
    return futures


def _begin(producer: KafkaProducer, where: TopicPartition) -> None:
    """Make sure that the partition exists, and that it is part of the transaction, if there is one."""
    if producer._closed:
        raise IllegalStateError("the producer is closed")
    partitions = producer._wait_on_metadata(where.topic, producer.config["max_block_ms"])
    if where.partition not in partitions:
        raise ReplaceReplica(
            f"{where.topic} takes no record for partition {where.partition}, it has {len(partitions)}; outputs need as "
            "many partitions as the input"
        )
    transactions = producer._transaction_manager
    if transactions is not None and transactions.is_transactional():
        transactions.maybe_add_partition_to_transaction(where)


def _enqueue(accumulator: Any, where: TopicPartition, batches: Sequence[ProducerBatch]) -> None:
    """As RecordAccumulator.append does with a new batch."""
    accumulator._appends_in_progress.increment()  # closing by force waits for those
    try:
        with accumulator._tp_lock(where):
            if accumulator._closed:
                raise IllegalStateError("the producer is closed")
            for batch in batches:
                accumulator._batches[where].append(batch)
                accumulator._incomplete.add(batch)
    finally:
        accumulator._appends_in_progress.decrement()


def batches(
    producer: KafkaProducer, where: TopicPartition, records: Sequence[OutgoingRecord], batch_bytes: int
) -> Iterator[ProducerBatch]:
    """Record batches of one partition's records, in order."""
    compression = producer._accumulator.config["compression_attrs"]
    at_ms = now_ms()
    start = 0
    while start < len(records):
        builder = MemoryRecordsBuilder(MAGIC, compression, batch_bytes)
        batch = ProducerBatch(where, builder)
        first = records[start]
        batch.try_append(at_ms, first.key, first.value, first.headers)
        _check_size(producer, where, builder.size_in_bytes())
        room = batch_bytes - builder.size_in_bytes()
        bodies = []
        for offset, record in enumerate(records[start + 1 :], 1):
            body = record_bytes(record, offset)
            _check_size(producer, where, HEADER_BYTES + len(body))
            room -= len(body)
            if room < 0:
                break
            bodies.append(body)
        _extend(builder, bodies)
        start += 1 + len(bodies)
        yield batch


def _check_size(producer: KafkaProducer, where: TopicPartition, size_bytes: int) -> None:
    """Check the size of a record in a batch of its own."""
    try:
        producer._ensure_valid_record_size(size_bytes)
    except MessageSizeTooLargeError as error:
        raise ReplaceReplica(
            f"a record for {where.topic} is larger than kafka.max_request_bytes ({error}); raise it, and "
            "max.message.bytes of the output topics with it"
        ) from error


def _extend(builder: MemoryRecordsBuilder, bodies: Sequence[bytes]) -> None:
    """Append encoded records whose offsets follow, and whose timestamp is that of the first one."""
    inner = builder._builder
    inner._buffer.extend(b"".join(bodies))
    inner._num_records += len(bodies)
    inner._last_offset += len(bodies)
    builder._next_offset += len(bodies)


def record_bytes(record: OutgoingRecord, offset: int) -> bytes:
    """The record with its length before it, at `offset` in its batch, with the batch's first timestamp."""
    parts = [b"\0\0", _varint(offset)]  # no attributes; no milliseconds after the first timestamp
    for field in (record.key, record.value):
        _append(parts, field)
    parts.append(_varint(len(record.headers)))
    for name, held in record.headers:
        _append(parts, name.encode())
        _append(parts, held)
    return _varint(sum(map(len, parts))) + b"".join(parts)


def _append(parts: list[bytes], field: bytes | None) -> None:
    if field is None:
        parts.append(b"\1")  # a length of -1
    else:
        parts.append(_varint(len(field)))
        parts.append(field)


@lru_cache(maxsize=65_536)
def _varint(number: int) -> bytes:
    """Encode a number of at least 0: zigzag, seven bits per byte, the lowest first."""
    rest = number << 1
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
