"""Creating, describing and checking the topics. Outputs are co-partitioned with the input; snapshots need no more than
one partition.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import AuthorizationError, KafkaError, TopicAlreadyExistsError, TopicAuthorizationFailedError

from twinlens.broker.client import asking_user, denial, new_admin
from twinlens.errors import AskUser
from twinlens.settings import Settings
from twinlens.settings.kafka import KafkaSettings

DAY_MS = 24 * 60 * 60 * 1000
SEGMENT_BYTES = 16 * 1024 * 1024  #: of the snapshots topic
LARGEST_SEGMENT_BYTES = 2**31 - 1  #: `segment.bytes` is an int32


@dataclass(frozen=True)
class TopicState:
    """What the broker says of one topic; `partitions` is 0 when it does not exist."""

    name: str
    partitions: int
    replication: int
    allowed: frozenset[str] | None = None  #: what this user may do, in capitals; None where the broker does not say


def describe(admin: KafkaAdminClient, settings: Settings) -> list[TopicState]:
    """The input topic, then the outputs, then the snapshots, as they are now. AskUser where one may not be seen."""
    states = _describe(admin, _names(settings))
    _check_allowed(settings.kafka, states)
    return states


def _names(settings: Settings) -> list[str]:
    return [settings.topics.input, *settings.topics.outputs, settings.topics.snapshots]


def _describe(admin: KafkaAdminClient, names: list[str]) -> list[TopicState]:
    # By name: a list of all topics leaves those out that this user may not see.
    found = {topic["name"]: topic for topic in admin.describe_topics(names)}
    states = []
    for name in names:
        topic = found[name]
        partitions = topic["partitions"]
        replication = len(partitions[0]["replica_nodes"]) if partitions else 0
        unseen = topic["error_code"] == TopicAuthorizationFailedError.errno
        allowed = frozenset(topic["authorized_operations"] or ())
        states.append(TopicState(name, len(partitions), replication, allowed if allowed or unseen else None))
    return states


def _check_allowed(
    kafka: KafkaSettings, states: list[TopicState], *, read: Collection[str] = (), write: Collection[str] = ()
) -> None:
    """AskUser with everything that this user lacks: to read, to write, or at least to see these topics."""
    lacking = {"Read": read, "Write": write, "Describe": {state.name for state in states} - {*read, *write}}
    allowed = {state.name: state.allowed for state in states if state.allowed is not None}
    denied = {
        operation: [name for name in allowed if name in names and operation.upper() not in allowed[name]]
        for operation, names in lacking.items()
    }
    if any(denied.values()):
        raise AskUser(denial(kafka, *((operation, "topic", *names) for operation, names in denied.items() if names)))


def create(settings: Settings, partitions: int, replication: int) -> list[str]:
    """Create the topics that are missing; returns their names. Outputs get as many partitions as the input has."""
    admin = new_admin(settings.kafka)
    try:
        with asking_user(settings.kafka):
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
            with asking_user(settings.kafka, "Create"):
                try:
                    admin.create_topics(missing)
                except TopicAlreadyExistsError:
                    pass  # somebody else was a moment faster
                except TopicAuthorizationFailedError:
                    raise TopicAuthorizationFailedError({topic.name for topic in missing}) from None
                except AuthorizationError:
                    raise
                except KafkaError as error:
                    raise AskUser(f"The topics could not be created: {error}.") from None
                admin.wait_for_topics([topic.name for topic in missing])
        return [topic.name for topic in missing]
    finally:
        admin.close()


def check(settings: Settings, *, read: Collection[str] = (), write: Collection[str] = ()) -> int:
    """The number of partitions. AskUser when a topic is missing or an output not co-partitioned with the input, or when
    this user may not read those of `read` or write those of `write`.
    """
    admin = new_admin(settings.kafka)
    try:
        with asking_user(settings.kafka):
            states = _describe(admin, _names(settings))
    finally:
        admin.close()
    _check_allowed(settings.kafka, states, read=read, write=write)
    if missing := [state.name for state in states if not state.partitions]:
        raise missing_topics(*missing)
    wanted = states[0].partitions
    outputs = [state for state in states if state.name in settings.topics.outputs]
    if uneven := [f"{state.name} ({state.partitions})" for state in outputs if state.partitions != wanted]:
        raise AskUser(
            f"Outputs must have as many partitions as {settings.topics.input} ({wanted}), but: {', '.join(uneven)}. "
            "Recreate them, or name other outputs under `topics`."
        )
    return wanted


def check_allowed(kafka: KafkaSettings, topic: str, operation: Literal["Read", "Write"]) -> None:
    """AskUser when there is no such topic, or this user may not do that with it."""
    admin = new_admin(kafka)
    try:
        with asking_user(kafka):
            (state,) = _describe(admin, [topic])
    finally:
        admin.close()
    _check_allowed(kafka, [state], **{operation.lower(): (topic,)})
    if not state.partitions:
        raise missing_topics(topic)


def topic_id(kafka: KafkaSettings, topic: str) -> str:
    """The identity of a topic (KIP-516), which another one of the same name does not have. AskUser without the topic.

    Brokers before Apache Kafka 2.8 give all topics the same one.
    """
    admin = new_admin(kafka)
    try:
        with asking_user(kafka):
            (state,) = _describe(admin, [topic])
            if not state.partitions:
                raise missing_topics(topic)
            return str(admin.describe_topics([topic])[0]["topic_id"])
    finally:
        admin.close()


def missing_topics(*names: str) -> AskUser:
    """The error to raise where these topics do not exist."""
    return AskUser(f"Missing topics: {', '.join(names)}. Create them with `twinlens topics create`, or name others.")


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
