"""A window's records to the client's record batches, as a whole.

`KafkaProducer.send` takes one record: some 15 µs of Python each, twice that where threads share the interpreter, and a
future for each that is resolved one by one. A window is a few hundred records for a few partitions, known at once, so
here each partition's records are encoded together, get one future, and stand in the queue from which the client's
sender takes batches. What `send` checks is checked here, too.

The format is that of the Kafka protocol, "Record Batch", magic 2 (https://kafka.apache.org/documentation/#recordbatch).
Header, checksum, compression, sequence numbers and retries stay the client's. kafka-python has no public way in: the
names with an underscore are those of 3.0, to which the version is pinned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from twinlens.window import Headers

MAGIC = 2
HEADER_BYTES = 61  #: of a record batch


class OutgoingRecord(NamedTuple):
    """One record to publish."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def send(producer: KafkaProducer, topic: str, partition: int, records: Sequence[OutgoingRecord]) -> list[Any]:
    """Hand `records`, all of this partition, to the producer, in order. A future for each batch of them.

    Raises MessageSizeTooLargeError, ValueError where the topic has no such partition, and what waiting for the topic's
    metadata raises. Called by the thread of the producer's transactions.
    """
    if producer._closed:
        raise IllegalStateError("the producer is closed")
    partitions = producer._wait_on_metadata(topic, producer.config["max_block_ms"])
    if partition not in partitions:
        raise ValueError(f"{topic} has partitions {sorted(partitions)}, not {partition}")
    where = TopicPartition(topic, partition)
    batches = list(_batches(producer, where, records))
    if producer._transaction_manager is not None and producer._transaction_manager.is_transactional():
        producer._transaction_manager.maybe_add_partition_to_transaction(where)
    accumulator = producer._accumulator
    accumulator._appends_in_progress.increment()  # closing by force waits for those, and fails their batches
    try:
        with accumulator._tp_lock(where):
            for batch, _ in batches:
                accumulator._batches[where].append(batch)
                accumulator._incomplete.add(batch)
    finally:
        accumulator._appends_in_progress.decrement()
    producer._sender.wakeup()
    return [future for _, future in batches]


def _batches(
    producer: KafkaProducer, where: TopicPartition, records: Sequence[OutgoingRecord]
) -> Iterator[tuple[ProducerBatch, Any]]:
    """Batches of up to `batch_size` bytes, larger where one record is, each with the future of its first record."""
    limits = producer._accumulator.config
    now_ms = time.time_ns() // 1_000_000
    start = 0
    while start < len(records):
        builder = MemoryRecordsBuilder(MAGIC, limits["compression_attrs"], limits["batch_size"])
        batch = ProducerBatch(where, builder)
        first = records[start]
        future = batch.try_append(now_ms, first.key, first.value, first.headers)
        producer._ensure_valid_record_size(builder.size_in_bytes())
        room = limits["batch_size"] - builder.size_in_bytes()
        bodies = []
        for offset, record in enumerate(records[start + 1 :], 1):
            body = encode(record, offset)
            producer._ensure_valid_record_size(HEADER_BYTES + len(body))
            room -= len(body)
            if room < 0:
                break
            bodies.append(body)
        _extend(builder, bodies)
        start += 1 + len(bodies)
        yield batch, future


def _extend(builder: MemoryRecordsBuilder, bodies: Sequence[bytes]) -> None:
    """Append encoded records whose offsets follow, and whose timestamp is that of the first one."""
    inner = builder._builder
    inner._buffer.extend(b"".join(bodies))
    inner._num_records += len(bodies)
    inner._last_offset += len(bodies)
    builder._next_offset += len(bodies)


def encode(record: OutgoingRecord, offset: int) -> bytes:
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
    """Of a number that is not negative, zigzag, seven bits a byte, the lowest first."""
    rest = number << 1
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
