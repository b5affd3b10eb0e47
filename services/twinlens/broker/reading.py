"""Reads topics to their end: every committed record that is there now."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from twinlens.broker.client import new_consumer
from twinlens.settings import Settings

FETCH_WAIT_MS = 100  #: the broker answers an empty fetch after this long
POLL_MS = 200  #: more than that, so an empty poll means that nothing was there
LIVE_S = 3.0  #: reading goes on for at most this long after the end offset
QUIET_POLLS = 2  #: after the end offset, this many empty polls in a row mean the end of the topics


def read_topics(settings: Settings, topics: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Every committed record of `topics` that is there now, as (topic, ConsumerRecord).

    Reads on after the end offset, because the one that the embedded broker reports lags by a batch. The end that comes
    with every fetch does not, but it counts records of open transactions, which cannot be read.
    """
    consumer = new_consumer(
        settings.kafka,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_poll_records=5_000,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    try:
        partitions = [
            TopicPartition(topic, number) for topic in topics for number in consumer.partitions_for_topic(topic)
        ]
        ends = consumer.end_offsets(partitions)
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        for records in polls_until(consumer, ends):
            yield from ((record.topic, record) for record in records)
        reached, quiet = time.monotonic(), 0
        while quiet < QUIET_POLLS and time.monotonic() - reached < LIVE_S and not _all_read(consumer, partitions):
            records = _flat(consumer.poll(POLL_MS))
            yield from ((record.topic, record) for record in records)
            quiet = 0 if records else quiet + 1
    finally:
        consumer.close()


def _all_read(consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> bool:
    """Whether nothing lies after the positions, as the latest fetches tell it. Unknown before the first fetch."""
    ends = ((consumer.position(partition), consumer.highwater(partition)) for partition in partitions)
    return all(end is not None and position >= end for position, end in ends)


def polls_until(
    consumer: KafkaConsumer, ends: Mapping[TopicPartition, int], silence_s: float = math.inf
) -> Iterator[list[Any]]:
    """The records of each poll, until the consumer has reached `ends` in all partitions. The last polls may bring more.

    Positions, not records, tell whether the end is reached, because transaction markers take offsets too. Raises
    KafkaTimeoutError if no record came for `silence_s`.
    """
    heard = time.monotonic()
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        records = _flat(consumer.poll(POLL_MS))
        if records:
            heard = time.monotonic()
        elif time.monotonic() - heard > silence_s:
            raise KafkaTimeoutError(f"{next(iter(ends)).topic} gave no record for {silence_s:g} s")
        yield records


def _flat(polled: Mapping[TopicPartition, list[Any]]) -> list[Any]:
    return [record for records in polled.values() for record in records]
