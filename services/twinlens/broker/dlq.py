"""Reads the dead-letter topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from twinlens.broker.client import new_consumer
from twinlens.broker.reading import polls_until, read_topics
from twinlens.deadletter import DeadLetter, letter_of
from twinlens.errors import AskUser
from twinlens.settings import Settings


def read_letters(settings: Settings) -> Iterator[DeadLetter | None]:
    """Every record of the dead-letter topic, of all applications; None for a record that is not a letter."""
    return (letter_of(record) for _, record in read_topics(settings, (settings.topics.dlq,)))


def letter_at(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """The letter at this place in the dead-letter topic, of any application. Raises AskUser if there is none."""
    topic = settings.topics.dlq
    consumer = new_consumer(settings.kafka, isolation_level="read_committed", max_poll_records=1)
    try:
        count = len(consumer.partitions_for_topic(topic))
        if not 0 <= partition < count:
            raise AskUser(f"{topic} has no partition {partition}; it has the partitions 0 to {count - 1}.")
        record = _record_from(consumer, TopicPartition(topic, partition), offset)
    finally:
        consumer.close()
    where = f"There is no dead letter at {topic} {partition}/{offset}"
    if record is None or record.offset != offset:
        after = "" if record is None else f" The next record is at {partition}/{record.offset}."
        raise AskUser(
            f"{where}: this offset holds no committed record. Offsets have gaps, since Kafka marks the end of each "
            f"transaction at one.{after}"
        )
    if (letter := letter_of(record)) is None:
        raise AskUser(f"{where}: the record there does not have the headers that twinlens writes.")
    return letter


def _record_from(consumer: KafkaConsumer, partition: TopicPartition, offset: int) -> Any | None:
    """The first committed record at `offset` or later; None if only transaction markers follow."""
    start = consumer.beginning_offsets([partition])[partition]
    end = consumer.end_offsets([partition])[partition]
    where = f"partition {partition.partition} of {partition.topic}"
    if start == end:
        raise AskUser(f"There is no offset {offset}: {where} holds nothing.")
    if not start <= offset < end:
        raise AskUser(f"There is no offset {offset}: {where} holds the offsets {start} to {end - 1}.")
    consumer.assign([partition])
    consumer.seek(partition, offset)
    return next((record for records in polls_until(consumer, {partition: end}) for record in records), None)
