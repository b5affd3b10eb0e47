"""What the intake does where its client fails or misleads it; one replica on the embedded broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.coordinator.base import Generation
from kafka.errors import KafkaTimeoutError, NotLeaderForPartitionError
from kafka.future import Future
from kafka.structs import OffsetAndMetadata

from tests.conftest import ModelFolder
from tests.support.replicas import DEADLINE_S, assigned, committed, lines, produce, running_replica, wait_until
from twinlens.audit import audit
from twinlens.broker.publisher import TransactionalPublisher
from twinlens.broker.repairs.assignor import SoleOwnerAssignor
from twinlens.replica.replica import Replica
from twinlens.settings import Settings
from twinlens.window.backlog import Backlog


@pytest.fixture
def settings(new_settings: Callable[..., Settings], model_folder: ModelFolder) -> Settings:
    return new_settings(partitions=1, raw={"model": str(model_folder())}, batching={"max_window_items": 20})


@pytest.fixture
def short_session(settings: Settings) -> Settings:
    """The broker lets a member in when the session of the one that was evicted is over."""
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"session_timeout_ms": 1000})})


def feed(settings: Settings, count: int) -> int:
    return produce(settings, [(None, line, []) for line in lines(count)])


def in_its_thread(replica: Replica, question: Callable[[], Any]) -> Any:
    return replica.parts.intake.errand(question).result(DEADLINE_S)


def test_an_old_answer_is_not_taken_for_the_committed_offset(settings: Settings) -> None:
    """kafka-python keeps the answer to a question whose asker has given up."""
    sent = feed(settings, 100)
    with running_replica(settings) as replica:
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
        intake, partition = replica.parts.intake, TopicPartition(settings.topics.input, 0)
        old: Any = Future()
        old.success({partition: OffsetAndMetadata(3, "", -1)})
        intake.consumer._coordinator._offset_fetch_futures[frozenset([partition])] = old
        found = in_its_thread(replica, lambda: intake.positions.committed(partition))
    assert found.offset == sent


def test_a_member_that_was_replaced_without_a_word_starts_over(short_session: Settings) -> None:
    """kafka-python calls no callback when it learns of an eviction from the answer to its own join."""
    settings = short_session
    sent = feed(settings, 100)
    with running_replica(settings) as replica:
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
        intake, partition = replica.parts.intake, (settings.topics.input, 0)

        def evict() -> None:
            coordinator = intake.consumer._coordinator
            known = coordinator._generation
            coordinator._generation = Generation(known.generation_id, "somebody-else", known.protocol)
            coordinator.request_rejoin()

        assert intake.group_metadata() is not None
        in_its_thread(replica, evict)
        wait_until(lambda: replica.parts.backlog.epoch(partition) == 1, "it starts over")
        sent += feed(settings, 100)
        wait_until(lambda: committed(settings, replica) >= sent, "it goes on")
        assert intake.group_metadata() is not None
    report = audit(settings)
    assert report.clean
    assert report.published == sent


def test_a_member_that_was_evicted_claims_nothing(short_session: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    claims: list[list[Any]] = []
    metadata = SoleOwnerAssignor.metadata

    def look(assignor: SoleOwnerAssignor, topics: Any) -> Any:
        found = metadata(assignor, topics)
        claims.append(list(found.owned_partitions))
        return found

    monkeypatch.setattr(SoleOwnerAssignor, "metadata", look)
    with running_replica(short_session) as replica:
        wait_until(lambda: bool(assigned(replica)), "partitions")
        before = len(claims)
        in_its_thread(replica, replica.parts.intake.consumer._coordinator.reset_generation)
        wait_until(lambda: len(claims) > before and bool(assigned(replica)), "partitions again")
    assert claims[before] == []


def test_a_poll_that_fails_for_a_moment_costs_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = feed(settings, 300)
    with running_replica(settings) as replica:
        consumer = replica.parts.intake.consumer
        real, failures = consumer.poll, iter([False, True, False, False, True])

        def poll(*arguments: Any) -> Any:
            polled = real(*arguments)
            if next(failures, False):
                raise NotLeaderForPartitionError  # with what it had in hand
            return polled

        monkeypatch.setattr(consumer, "poll", poll)
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
        assert next(failures, None) is None
    report = audit(settings)
    assert report.clean
    assert report.published == sent


def test_records_wait_until_the_refusals_before_them_are_known(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = feed(settings, 100)
    with running_replica(settings) as replica:
        intake = replica.parts.intake
        real, failures = intake.positions.committed, iter([True, True])

        def sometimes(partition: TopicPartition) -> Any:
            if next(failures, False):
                raise KafkaTimeoutError("not now")
            return real(partition)

        monkeypatch.setattr(intake.positions, "committed", sometimes)
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
    report = audit(settings)
    assert report.clean
    assert report.published == sent


def test_a_poll_that_fails_waits_for_a_window_that_has_passed_its_claim(settings: Settings) -> None:
    """Its offsets are not at the broker yet, and will be."""
    with running_replica(settings) as replica:
        intake, partition = replica.parts.intake, (settings.topics.input, 0)
        sent = feed(settings, 20)
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
        publisher, poll = replica.parts.publisher, intake.consumer.poll
        assert isinstance(publisher, TransactionalPublisher)
        producer = publisher.producer
        send_offsets, claimed, go_on = producer.send_offsets_to_transaction, threading.Event(), threading.Event()

        def send_late(*arguments: Any) -> None:
            claimed.set()
            assert go_on.wait(30)
            send_offsets(*arguments)

        def fail_once(*arguments: Any) -> Any:
            intake.consumer.poll = poll
            raise NotLeaderForPartitionError

        producer.send_offsets_to_transaction = send_late
        sent += feed(settings, 15)
        assert claimed.wait(30)
        intake.consumer.poll = fail_once
        wait_until(lambda: replica.parts.backlog.epoch(partition) == 1, "the poll has failed")
        for _ in range(3):
            in_its_thread(replica, lambda: None)  # the intake thread has gone round, and would have gone back
        go_on.set()
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
        sent += feed(settings, 15)
        wait_until(lambda: committed(settings, replica) >= sent, "it goes on")
    report = audit(settings)
    assert report.clean
    assert report.published == sent


@pytest.mark.kafka  # the embedded broker is not sure where its topics end
def test_what_was_never_committed_is_read_from_where_it_began(
    new_kafka_settings: Callable[..., Settings], model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the beginning of the topic, where the group began at its end."""
    settings = new_kafka_settings(
        partitions=1, kafka={"auto_offset_reset": "latest"}, raw={"model": str(model_folder())}
    )
    sent = feed(settings, 60)
    with running_replica(settings) as replica:
        intake, partition = replica.parts.intake, TopicPartition(settings.topics.input, 0)
        wait_until(lambda: bool(assigned(replica)), "partitions")
        began = in_its_thread(replica, lambda: intake.consumer.position(partition))
        assert began == sent
        sent += feed(settings, 40)
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
        sought: list[int] = []
        monkeypatch.setattr(intake.positions, "committed", lambda _: None)
        monkeypatch.setattr(intake.consumer, "seek", lambda _, offset: sought.append(offset))
        in_its_thread(replica, intake.positions.start_over)
        wait_until(lambda: bool(sought), "it goes back")
    assert sought == [began]


@pytest.mark.parametrize(("max_buffered_bytes", "waits"), [(1_000_000, True), (10_000, False)])
def test_after_a_poll_that_brought_all_there_was_the_next_one_waits_for_compute(
    settings: Settings, max_buffered_bytes: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where a poll may bring one record only, of records that are larger than its share of the memory."""
    awaited: list[float] = []
    monkeypatch.setattr(Backlog, "await_draw", lambda _, timeout_s: awaited.append(timeout_s))
    intake = settings.intake.model_copy(update={"max_buffered_bytes": max_buffered_bytes})
    settings = settings.model_copy(update={"intake": intake})
    sent = feed(settings, 20)
    with running_replica(settings) as replica:
        wait_until(lambda: committed(settings, replica) >= sent, "all committed")
    assert bool(awaited) == waits
