"""The snapshots topic: one partition, compacted. The key is the application; only its last record counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from twinlens.broker.client import close_producer, naming_denials, new_consumer, new_producer
from twinlens.broker.reading import polls_until
from twinlens.broker.topics import missing_topics
from twinlens.errors import AskUser
from twinlens.settings import Settings
from twinlens.window.item import Headers

PARTITION = 0
READ_TIMEOUT_S = 30.0  #: reading is given up after this long without a record
WRITE_TIMEOUT_S = 10.0
STEP = 4  #: each look for the last record covers more offsets than the one before, by this factor


def read_last(settings: Settings) -> bytes | None:
    """The value of the application's last record; None if there is none.

    Looks backwards from the end, because a topic that is not compacted yet may hold thousands of records. Raises
    KafkaError if the topic cannot be read, and AskUser if it is missing: None always means that there is no record.
    """
    partition = TopicPartition(settings.topics.snapshots, PARTITION)
    consumer: KafkaConsumer = new_consumer(settings.kafka, auto_offset_reset="earliest")
    try:
        if PARTITION not in consumer.partitions_for_topic(partition.topic):
            raise missing_topics(partition.topic)
        consumer.assign([partition])
        beginning = consumer.beginning_offsets([partition])[partition]
        end = consumer.end_offsets([partition])[partition]
        back = 1
        while beginning < end:
            start = max(beginning, end - back)
            last = None
            for record in _between(consumer, partition, start, end):
                if record.key == _key(settings):
                    last = record
            if last is not None:
                return None if last.value is None else bytes(last.value)
            end, back = start, back * STEP
        return None
    finally:
        consumer.close()


class SnapshotWriter:
    """Appends to the snapshots topic. Owns a producer and makes a new one after a failure. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: KafkaProducer | None = None

    def write(self, value: bytes, headers: Headers) -> None:
        """Append the application's next record and wait until all replicas have it, up to twice `WRITE_TIMEOUT_S`.

        Raises KafkaError: the record may have been written even then. Raises AskUser, also if the record is too large.
        """
        with naming_denials(self._settings.kafka, "Write"):
            self._write(value, headers)

    def _write(self, value: bytes, headers: Headers) -> None:
        topic, key = self._settings.topics.snapshots, _key(self._settings)
        try:
            if self._producer is None:
                self._producer = new_producer(self._settings.kafka, max_block_ms=int(WRITE_TIMEOUT_S * 1000))
            self._producer.send(topic, value, key, headers, PARTITION).get(timeout=WRITE_TIMEOUT_S)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            raise AskUser(
                f"A snapshot is too large: raise kafka.max_request_bytes, and max.message.bytes of {topic} with it."
            ) from None
        except KafkaError:
            self.close()  # drops what it has not sent yet: the next snapshot is newer
            raise

    def close(self) -> None:
        """Close the producer. May be called more than once."""
        if self._producer is not None:
            close_producer(self._producer, timeout_s=1)
            self._producer = None


def _key(settings: Settings) -> bytes:
    return settings.application.encode()


def _between(consumer: KafkaConsumer, partition: TopicPartition, start: int, end: int) -> Iterator[Any]:
    """The records from offset `start` up to, not including, `end`. Compaction may have removed some of them."""
    consumer.seek(partition, start)
    for records in polls_until(consumer, {partition: end}, silence_s=READ_TIMEOUT_S):
        yield from (record for record in records if record.offset < end)
