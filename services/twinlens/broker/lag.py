"""Consumer lag: records on the input topic that the group has not committed yet."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from twinlens.broker.client import naming_denials, new_admin, new_consumer
from twinlens.errors import AskUser
from twinlens.rates import ArrivalRate
from twinlens.settings import Settings

log = structlog.get_logger(__name__)

MEASURE_TIMEOUT_MS = 1_000


class LagProbe:
    """Asks the broker, so it works without a live replica. Owns two clients: close it. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin = new_admin(settings.kafka)
        try:
            self._consumer: KafkaConsumer = new_consumer(settings.kafka)
        except AskUser:
            self._admin.close()
            raise

    def lag(self) -> dict[int, int]:
        """Records between the committed offset and the end, per partition. Without a commit all records count.

        Raises AskUser if an ACL is missing.
        """
        with naming_denials(self._settings.kafka, "Describe", group=self._settings.group_id):
            return self._lag(self._settings.topics.input, self._settings.group_id)

    def _lag(self, topic: str, group: str) -> dict[int, int]:
        partitions = [TopicPartition(topic, p) for p in sorted(self._consumer.partitions_for_topic(topic))]
        ends = self._consumer.end_offsets(partitions)
        starts = self._consumer.beginning_offsets(partitions)
        committed = self._admin.list_group_offsets({group: partitions})[group]
        lag = {}
        for partition in partitions:
            position = committed[partition].offset if partition in committed else -1
            lag[partition.partition] = max(0, ends[partition] - max(position, starts[partition]))
        return lag

    def close(self) -> None:
        self._admin.close()
        self._consumer.close()


@dataclass(frozen=True)
class AssignedLag:
    """The lag of one consumer in the partitions assigned to it."""

    partitions: int  #: of the whole topic; 0 while no partition is assigned
    measured_partitions: int  #: number of assigned partitions that the numbers below cover
    unread_records: int  #: records that the consumer has not polled yet
    arrival_records_per_s: float


class LagMeter:
    """Measures a consumer's own lag. The thread that owns the consumer calls it between two polls.

    It asks the broker for the end offsets (one request; with `read_committed` they are the ends of what can be read).
    The end offsets that come with fetched records get old while partitions are paused, and a slow replica pauses most
    of the time. It counts offsets: a transaction marker counts as a record until the consumer has passed it.
    """

    def __init__(self, consumer: KafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic
        self._arrival = ArrivalRate()

    def measure(self, now_s: float) -> AssignedLag | None:
        """The lag now; None if the broker does not answer within a second or two. `now_s` is monotonic time."""
        assigned = self._consumer.assignment()
        if not assigned:
            return AssignedLag(0, 0, 0, 0.0)
        try:
            ends: dict[TopicPartition, int] = self._consumer.end_offsets(assigned, timeout_ms=MEASURE_TIMEOUT_MS)
            unread = {}
            for partition in assigned:
                position = self._consumer.position(partition, timeout_ms=MEASURE_TIMEOUT_MS)
                if position is None:
                    return None
                unread[partition] = max(0, ends[partition] - position)
        except KafkaError as error:
            log.warning("own lag is not known", error=repr(error))
            return None
        rates = self._arrival.update(now_s, {(each.topic, each.partition): end for each, end in ends.items()})
        return AssignedLag(
            partitions=len(self._consumer.partitions_for_topic(self._topic)),
            measured_partitions=len(rates),
            unread_records=sum(unread.values()),
            arrival_records_per_s=sum(rates.values()),
        )
