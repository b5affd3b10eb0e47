"""Consumer lag: records on the input topic that the group has not committed yet."""

from __future__ import annotations

from kafka import KafkaConsumer, TopicPartition

from twinlens.broker.client import naming_denials, new_admin, new_consumer
from twinlens.settings import Settings


class LagProbe:
    """Asks the broker; needs no replica to be alive. Owns two clients; not thread-safe; close it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin = new_admin(settings.kafka)
        self._consumer: KafkaConsumer = new_consumer(settings.kafka)

    def lag(self) -> dict[int, int]:
        """Records behind the end of the log, per partition. Without a commit the whole partition counts.

        AskUser when an ACL is missing.
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
