"""Dead letters: records that could not be read as a tweet, kept with the reason in headers named `twinlens.*`.

`inference.outputs` writes them, `broker.replay` puts them back. `letter_of` and `overview` are pure.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from twinlens.broker.client import new_consumer
from twinlens.broker.reading import read_topics
from twinlens.errors import AskUser
from twinlens.records import SourceCoordinates
from twinlens.settings import Settings
from twinlens.window import Headers

PREFIX = "twinlens."  #: of the headers that are not the refused record's own
REPLAYED_FROM = "twinlens.replayed_from"  #: on a replayed record: `<dead-letter topic>/<partition>/<offset>`
POLL_MS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One record of the dead-letter topic. Key, value and headers are those of the refused record."""

    topic: str
    partition: int
    offset: int
    reason: str  #: a `RefusalReason`, or one that only another version of twinlens knows
    detail: str
    application: str
    source: SourceCoordinates
    source_timestamp_ms: int
    refused_at_ms: int
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)
    cut_from_bytes: int | None = None  #: what was the value's length, where Kafka would not have taken all of it
    replayed_from: str | None = None  #: the letter of the round before, where the refused record was a replayed one

    @property
    def at(self) -> str:
        """Partition and offset as the commands write them."""
        return f"{self.partition}/{self.offset}"


def own_headers(headers: Headers) -> Headers:
    """The headers that the record had before twinlens refused or replayed it."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def letter_of(record: Any) -> DeadLetter | None:
    """A ConsumerRecord as a letter; None where its headers are not those of one. Of a header that is there twice, the
    last one counts: it is the one that twinlens added. What somebody else has put there may be any bytes.
    """
    headers = [(name, value or b"") for name, value in record.headers]  # a null value is possible
    added = {name: value for name, value in headers if name.startswith(PREFIX)}
    try:
        said = {name.removeprefix(PREFIX): value.decode(errors="replace") for name, value in added.items()}
        return DeadLetter(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=said["reason"],
            detail=said["detail"],
            application=said["application"],
            source=SourceCoordinates(said["source.topic"], int(said["source.partition"]), int(said["source.offset"])),
            source_timestamp_ms=int(said["source.timestamp_ms"]),
            refused_at_ms=int(said["refused_at_ms"]),
            key=record.key,
            value=record.value,
            headers=own_headers(headers),
            cut_from_bytes=int(said["cut_from_bytes"]) if "cut_from_bytes" in said else None,
            replayed_from=said.get("replayed_from"),
        )
    except (KeyError, ValueError):
        return None


@dataclass(slots=True, kw_only=True)
class Overview:
    """What lies on a dead-letter topic, from one application's point of view."""

    reasons: Counter[str] = field(default_factory=Counter)  #: all its letters, by reason
    foreign: int = 0  #: records that are not its letters
    newest: list[DeadLetter] = field(default_factory=list)  #: the newest of the chosen reasons, newest last


def overview(
    letters: Iterable[DeadLetter | None], application: str, reasons: Collection[str] = (), limit: int = 50
) -> Overview:
    """Count all letters of `application`, and keep the `limit` newest whose reason is in `reasons` (none: any)."""
    found = Overview()

    def chosen() -> Iterator[DeadLetter]:
        for letter in letters:
            if letter is None or letter.application != application:
                found.foreign += 1
                continue
            found.reasons[letter.reason] += 1
            if not reasons or letter.reason in reasons:
                yield letter

    newest = heapq.nlargest(limit, chosen(), key=lambda each: (each.refused_at_ms, each.partition, each.offset))
    found.newest = newest[::-1]
    return found


def read_letters(settings: Settings) -> Iterator[DeadLetter | None]:
    """Every record of the dead-letter topic, whoever wrote it; None for what is no letter."""
    return (letter_of(record) for _, record in read_topics(settings, (settings.topics.dlq,)))


def letter_at(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """The letter at these coordinates of the dead-letter topic, of any application. AskUser when there is none."""
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
    """The first committed record at `offset` or later; None where only the marks of transactions follow."""
    start = consumer.beginning_offsets([partition])[partition]
    end = consumer.end_offsets([partition])[partition]
    where = f"partition {partition.partition} of {partition.topic}"
    if start == end:
        raise AskUser(f"There is no offset {offset}: {where} holds nothing.")
    if not start <= offset < end:
        raise AskUser(f"There is no offset {offset}: {where} holds the offsets {start} to {end - 1}.")
    consumer.assign([partition])
    consumer.seek(partition, offset)
    while consumer.position(partition) < end:
        for record in consumer.poll(POLL_MS).get(partition, ()):
            return record
    return None
