"""Creating, describing and checking the topics. Outputs are co-partitioned with the input; snapshots need no more than
one partition.
"""

from __future__ import annotations

from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from twinlens.broker.client import asking_user, new_admin
from twinlens.errors import AskUser
from twinlens.settings import KafkaSettings, Settings

DAY_MS = 24 * 60 * 60 * 1000
SEGMENT_BYTES = 16 * 1024 * 1024  #: of the snapshots topic
LARGEST_SEGMENT_BYTES = 2**31 - 1  #: `segment.bytes` is an int32


@dataclass(frozen=True)
class TopicState:
    """What the broker says of one topic; `partitions` is 0 when it does not exist."""

    name: str
    partitions: int
    replication: int


def describe(admin: KafkaAdminClient, settings: Settings) -> list[TopicState]:
    """The input topic, then the outputs, then the snapshots, as they are now."""
    names = [settings.topics.input, *settings.topics.outputs, settings.topics.snapshots]
    existing = set(admin.list_topics())
    found = {topic["name"]: topic for topic in admin.describe_topics([n for n in names if n in existing])}
    states = []
    for name in names:
        partitions = found[name]["partitions"] if name in found else []
        replication = len(partitions[0]["replica_nodes"]) if partitions else 0
        states.append(TopicState(name, len(partitions), replication))
    return states


def create(settings: Settings, partitions: int, replication: int) -> list[str]:
    """Create the topics that are missing; returns their names. Outputs get as many partitions as the input has."""
    admin = new_admin(settings.kafka)
    try:
        states = {state.name: state for state in describe(admin, settings)}
        count = states[settings.topics.input].partitions or partitions
        missing = [
            NewTopic(
                name,
                1 if name == settings.topics.snapshots else count,
                replication,
                topic_configs=_config(settings, name),
            )
            for name, state in states.items()
            if not state.partitions
        ]
        if missing:
            with asking_user(settings.kafka):
                try:
                    admin.create_topics(missing)
                except TopicAlreadyExistsError:
                    pass  # somebody else was a moment faster
                except KafkaError as error:
                    raise AskUser(f"The topics could not be created: {error}.") from None
                admin.wait_for_topics([topic.name for topic in missing])
        return [topic.name for topic in missing]
    finally:
        admin.close()


def check(settings: Settings) -> int:
    """The number of partitions. AskUser when a topic is missing or an output not co-partitioned with the input."""
    admin = new_admin(settings.kafka)
    try:
        with asking_user(settings.kafka):
            states = describe(admin, settings)
    finally:
        admin.close()
    if missing := [state.name for state in states if not state.partitions]:
        raise AskUser(f"Missing topics: {', '.join(missing)}. Create them with `twinlens topics create`.")
    wanted = states[0].partitions
    outputs = [state for state in states if state.name in settings.topics.outputs]
    if uneven := [f"{state.name} ({state.partitions})" for state in outputs if state.partitions != wanted]:
        raise AskUser(
            f"Outputs must have as many partitions as {settings.topics.input} ({wanted}), but: {', '.join(uneven)}. "
            "Recreate them, or name other outputs under `topics`."
        )
    return wanted


def check_exists(kafka: KafkaSettings, topic: str) -> None:
    """AskUser when there is no such topic."""
    admin = new_admin(kafka)
    try:
        with asking_user(kafka):
            names = admin.list_topics()
    finally:
        admin.close()
    if topic not in names:
        raise AskUser(f"There is no topic {topic!r}. Create it with `twinlens topics create`, or name another one.")


def topic_id(kafka: KafkaSettings, topic: str) -> str:
    """The identity of a topic (KIP-516), which another one of the same name does not have. AskUser without the topic.

    Brokers before Apache Kafka 2.8 give all topics the same one.
    """
    admin = new_admin(kafka)
    try:
        with asking_user(kafka):
            if topic not in admin.list_topics():
                raise AskUser(f"Missing topics: {topic}. Create them with `twinlens topics create`.")
            return str(admin.describe_topics([topic])[0]["topic_id"])
    finally:
        admin.close()


def _config(settings: Settings, name: str) -> dict[str, str]:
    """Room for the largest record; a week of everything, a month of what people come back for.

    Of the snapshots only the last one of each application counts. Compaction leaves the segment alone that is being
    written, hence small ones.
    """
    largest = settings.kafka.max_request_bytes
    if name == settings.topics.snapshots:
        segment = min(max(SEGMENT_BYTES, 4 * largest), LARGEST_SEGMENT_BYTES)
        return {"max.message.bytes": str(largest), "cleanup.policy": "compact", "segment.bytes": str(segment)}
    config = {"max.message.bytes": str(largest), "retention.ms": str(7 * DAY_MS)}
    if name in (settings.topics.divergences, settings.topics.comparisons, settings.topics.dlq):
        config["retention.ms"] = str(30 * DAY_MS)
    return config
