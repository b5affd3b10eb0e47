"""Reading whole topics: every committed record that is there now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from kafka import TopicPartition

from twinlens.broker.client import new_consumer
from twinlens.settings import Settings

POLL_MS = 600
LIVE_S = 3.0  #: a topic that keeps growing is read this much longer
QUIET_POLLS = 2  #: the end of a topic is believed after this many empty polls past the end offset


def read_topics(settings: Settings, topics: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Every committed record of `topics` that is there now, as (topic, ConsumerRecord).

    The end offset is where to stop at the earliest: the embedded broker reports one that lags by a batch.
    """
    consumer = new_consumer(
        settings.kafka, isolation_level="read_committed", auto_offset_reset="earliest", max_poll_records=5_000
    )
    try:
        partitions = [
            TopicPartition(topic, number) for topic in topics for number in consumer.partitions_for_topic(topic)
        ]
        ends = consumer.end_offsets(partitions)
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        quiet, reached = 0, None
        while quiet < QUIET_POLLS and (reached is None or time.monotonic() - reached < LIVE_S):
            polled = consumer.poll(POLL_MS)
            for partition, records in polled.items():
                for record in records:
                    yield partition.topic, record
            behind = any(consumer.position(partition) < ends[partition] for partition in partitions)
            quiet = 0 if polled or behind else quiet + 1
            reached = time.monotonic() if reached is None and not behind else reached
    finally:
        consumer.close()
