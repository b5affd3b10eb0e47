"""Creates, describes and checks the topics. Outputs are co-partitioned with the input; snapshots need one partition."""

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
SEGMENT_BYTES = 16 * 1024 * 1024  #: segment size of the snapshots topic
LARGEST_SEGMENT_BYTES = 2**31 - 1  #: `segment.bytes` is an int32


@dataclass(frozen=True)
class TopicState:
    """What the broker says about one topic. `partitions` is 0 if it does not exist."""

    name: str
    partitions: int
    replication: int
    allowed: frozenset[str] | None = None  #: operations this user may do, in capitals; None if not known


def describe(admin: KafkaAdminClient, settings: Settings) -> list[TopicState]:
    """The current state of input, outputs and snapshots, in this order. Raises AskUser if this user may not see one."""
    states = _describe(admin, _names(settings))
    _check_allowed(settings.kafka, states)
    return states


def _names(settings: Settings) -> list[str]:
    return [settings.topics.input, *settings.topics.outputs, settings.topics.snapshots]


def _describe(admin: KafkaAdminClient, names: list[str]) -> list[TopicState]:
    # Ask by name: a list of all topics leaves out those that this user may not see.
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
    """Raise AskUser with all missing rights to these topics: to read `read`, write `write` and see the others."""
    lacking = {"Read": read, "Write": write, "Describe": {state.name for state in states} - {*read, *write}}
    allowed = {state.name: state.allowed for state in states if state.allowed is not None}
    denied = {
        operation: [name for name in allowed if name in names and operation.upper() not in allowed[name]]
        for operation, names in lacking.items()
    }
    if any(denied.values()):
        raise AskUser(denial(kafka, *((operation, "topic", *names) for operation, names in denied.items() if names)))


def create(settings: Settings, partitions: int, replication: int) -> list[str]:
    """Create the missing topics and return their names. Outputs get as many partitions as the input has."""
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
                    pass  # somebody else created them in the meantime
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
    """Check the topics and return the number of partitions.

    Raises AskUser if a topic is missing, if an output is not co-partitioned with the input, or if this user may not
    read the topics in `read` or write those in `write`.
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
    """Raise AskUser if the topic does not exist or this user may not do `operation` on it."""
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
    """The topic's id (KIP-516). A later topic with the same name has another id.

    Brokers before Apache Kafka 2.8 give the same id for all topics. Raises AskUser if the topic is missing.
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
    """The error to raise if these topics do not exist."""
    return AskUser(f"Missing topics: {', '.join(names)}. Create them with `twinlens topics create`, or name others.")


def _config(settings: Settings, name: str) -> dict[str, str]:
    """Topic settings: room for the largest record; retention of a week, or a month for topics that people read later.

    The snapshots topic is compacted, because only the last snapshot of each application counts. Its segments are small,
    because compaction skips the segment that is being written.
    """
    largest = settings.kafka.max_request_bytes
    if name == settings.topics.snapshots:
        segment = min(max(SEGMENT_BYTES, 4 * largest), LARGEST_SEGMENT_BYTES)
        return {"max.message.bytes": str(largest), "cleanup.policy": "compact", "segment.bytes": str(segment)}
    config = {"max.message.bytes": str(largest), "retention.ms": str(7 * DAY_MS)}
    if name in (settings.topics.divergences, settings.topics.comparisons, settings.topics.dlq):
        config["retention.ms"] = str(30 * DAY_MS)
    return config
