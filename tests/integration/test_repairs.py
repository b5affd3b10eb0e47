"""Defects of kafka-python that twinlens repairs, as kafka-python has them without the repair, on a broker.

A test that fails here says that a repair is no longer needed. The others are in tests/unit/test_repairs.py, the table
of all in `twinlens.broker.repairs`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import (
    ConsumerGroupMetadata,
    ConsumerRebalanceListener,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    TopicPartition,
)
from kafka.admin import ConfigResource, MemberToRemove
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    ConcurrentTransactionsError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NotCoordinatorError,
)
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer import JoinGroupRequest, OffsetFetchRequest
from kafka.protocol.metadata import FindCoordinatorRequest
from kafka.protocol.producer import AddPartitionsToTxnRequest, EndTxnRequest, ProduceRequest
from kafka.structs import MemberState, OffsetAndMetadata

from tests.support.between import Send, between
from tests.support.replicas import DEADLINE_S, wait_until
from tests.unit.test_repairs import no_longer
from twinlens.broker.repairs.producer import close_producer
from twinlens.settings import Settings

pytestmark = pytest.mark.slow  # they look at a fixed version of the client, not at our code

NewSettings = Callable[..., Settings]


@pytest.fixture
def settings(new_settings: NewSettings) -> Settings:
    return new_settings(partitions=1)


@pytest.fixture
def on_kafka(new_kafka_settings: NewSettings) -> Settings:
    """On a real one. The embedded broker evicts nobody at a request, and takes batches of any size."""
    return new_kafka_settings(partitions=2)


def address(settings: Settings) -> dict[str, Any]:
    return {"bootstrap_servers": settings.kafka.bootstrap_servers}


class Callbacks(ConsumerRebalanceListener):  # type: ignore[misc]
    """Which ones the client made."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_partitions_assigned(self, _: Any) -> None:
        self.seen.append("assigned")

    def on_partitions_revoked(self, _: Any) -> None:
        self.seen.append("revoked")

    def on_partitions_lost(self, _: Any) -> None:
        self.seen.append("lost")


class Claims(CooperativeStickyAssignor):  # type: ignore[misc]
    """Keeps what this member claimed with each join."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[list[Any]] = []

    def metadata(self, topics: Any) -> Any:
        found = super().metadata(topics)
        self.made.append(list(found.owned_partitions))
        return found


class Member:
    """A consumer with partitions, of a group of its own."""

    def __init__(self, settings: Settings, heartbeat_ms: int, **options: Any) -> None:
        self.settings, self.claims, self.callbacks = settings, Claims(), Callbacks()
        self.consumer = KafkaConsumer(
            **address(settings),
            group_id=settings.group_id,
            enable_auto_commit=False,
            partition_assignment_strategy=[self.claims],
            session_timeout_ms=30_000,
            heartbeat_interval_ms=heartbeat_ms,
            **options,
        )
        self.subscribe(settings.topics.input)
        # Without a pause between polls: a join that ends within one could be forgotten, as one test shows.
        end = time.monotonic() + DEADLINE_S
        while not self.consumer.assignment():
            assert time.monotonic() < end, "no partitions"
            self.consumer.poll(500)

    def subscribe(self, *topics: str) -> None:
        self.consumer.subscribe(topics, listener=self.callbacks)

    def poll_until(self, condition: Callable[[], bool], what: str) -> None:
        def polled() -> bool:
            self.consumer.poll(100)
            return condition()

        wait_until(polled, what)

    @property
    def known_as(self) -> ConsumerGroupMetadata:
        return self.consumer.group_metadata()

    def evict(self) -> None:
        with closing(KafkaAdminClient(**address(self.settings))) as admin:
            admin.remove_group_members(self.settings.group_id, [MemberToRemove(self.known_as.member_id)])

    def close(self) -> None:
        self.consumer.close(autocommit=False)


@pytest.mark.kafka
def test_a_member_that_was_evicted_claims_what_it_had(on_kafka: Settings) -> None:
    with closing(Member(on_kafka, heartbeat_ms=100)) as member:
        before = len(member.claims.made)
        member.evict()
        member.poll_until(lambda: len(member.claims.made) > before, "it joins again")
        assert "lost" in member.callbacks.seen
    assert member.claims.made[before] != [], no_longer(
        "claims what it has lost", "remove `forget` of broker/repairs/assignor.py"
    )


@pytest.mark.kafka
def test_a_member_that_was_evicted_has_no_name_before_it_tells(on_kafka: Settings) -> None:
    with closing(Member(on_kafka, heartbeat_ms=100)) as member:
        member.evict()
        wait_until(
            lambda: member.known_as.generation_id < 0,
            no_longer("forgets its generation before the callback", "remove `is_member` of repairs/membership.py"),
            5,
        )
        assert member.callbacks.seen == ["assigned"]
        assert member.consumer.assignment()


@pytest.mark.kafka
def test_a_member_that_learns_of_its_eviction_from_a_join_says_nothing(on_kafka: Settings) -> None:
    with closing(Member(on_kafka, heartbeat_ms=10_000)) as member:
        before = member.known_as.member_id
        member.evict()
        member.subscribe(on_kafka.topics.input, on_kafka.topics.logits)  # has it join, before a heartbeat
        member.poll_until(
            lambda: member.known_as.member_id != before and member.known_as.state is MemberState.STABLE,
            "it joins again",
        )
        assert member.consumer.assignment()
    assert "lost" not in member.callbacks.seen, no_longer(
        "becomes another member without a callback", "remove `replaced` and `adopt` of broker/repairs/membership.py"
    )


@pytest.mark.kafka
def test_a_join_that_ends_between_two_polls_is_forgotten(on_kafka: Settings) -> None:
    """One for partitions that were added."""
    late, answered = Future(), []

    def hold(request: Any, send: Send) -> Future:
        if not isinstance(request, JoinGroupRequest) or not holding.is_set():
            return send()
        answered.append(send())
        return late

    holding = threading.Event()
    joined = Member(on_kafka, heartbeat_ms=10_000, kafka_client=between(hold), metadata_max_age_ms=100)
    with closing(joined) as member, closing(KafkaAdminClient(**address(on_kafka))) as admin:
        before, own = member.known_as.generation_id, member.consumer.assignment()
        holding.set()
        admin.create_partitions({on_kafka.topics.input: len(own) + 1})
        member.poll_until(lambda: bool(answered), "it joins for the new one")
        wait_until(lambda: answered[0].is_done, "the broker has answered")
        holding.clear()
        late.success(answered[0].value)
        wait_until(lambda: member.known_as.generation_id > before, "it has heard the answer")
        for _ in range(20):
            member.consumer.poll(100)
        assert member.known_as.state is MemberState.REBALANCING, no_longer(
            "forgets a join", "remove `keep_joining` of broker/repairs/membership.py"
        )
        assert member.consumer.assignment() == own


def test_the_answer_to_a_question_whose_asker_gave_up_is_given_to_the_next(settings: Settings) -> None:
    where = TopicPartition(settings.topics.input, 0)
    answered: list[Future] = []
    late = Future()

    def hold_the_first(request: Any, send: Send) -> Future:
        if not isinstance(request, OffsetFetchRequest) or answered:
            return send()
        answered.append(send())
        return late

    with ExitStack() as stack:
        consumers = [
            KafkaConsumer(**address(settings), group_id=settings.group_id, enable_auto_commit=False, **more)
            for more in ({}, {"kafka_client": between(hold_the_first)})
        ]
        other, asking = (stack.enter_context(closing(consumer)) for consumer in consumers)
        other.commit({where: OffsetAndMetadata(3, "", -1)})
        with pytest.raises(KafkaTimeoutError):
            asking.committed(where, timeout_ms=300)
        wait_until(lambda: answered[0].is_done, "the broker has answered")
        other.commit({where: OffsetAndMetadata(7, "", -1)})
        late.success(answered[0].value)
        assert asking.committed(where) == 3, no_longer(
            "gives an old answer", "remove `forget_answers` of broker/repairs/membership.py"
        )


def test_a_request_to_a_coordinator_that_cannot_be_reached_is_forgotten(settings: Settings) -> None:
    refusals = [KafkaConnectionError("not ready")]

    class Refusing(KafkaNetClient):  # type: ignore[misc]
        """Cannot reach the coordinator at once."""

        def await_ready(self, node_id: Any, timeout_ms: float = 30_000) -> bool:
            if str(node_id).startswith("coordinator") and refusals:
                raise refusals.pop()
            return bool(super().await_ready(node_id, timeout_ms))

    producer = KafkaProducer(
        **address(settings), transactional_id=settings.group_id, max_block_ms=3_000, kafka_client=Refusing
    )
    answered = True
    try:
        producer.init_transactions()
    except KafkaTimeoutError:
        answered = False
    finally:
        close_producer(producer, timeout_s=1)
    assert not refusals
    assert not answered, no_longer(
        "forgets it", "remove `outlive_unreachable_coordinators` of broker/repairs/producer.py"
    )


def lose_records(request: Any, send: Send) -> Future:
    """A broker that does not answer when it is sent records."""
    return Future() if isinstance(request, ProduceRequest) else send()


def test_a_producer_that_cannot_flush_cannot_be_closed(settings: Settings) -> None:
    before = set(threading.enumerate())
    producer = KafkaProducer(**address(settings), kafka_client=between(lose_records))
    producer.send(settings.topics.logits, b"stays")
    try:
        with suppress(KafkaTimeoutError):
            producer.close(timeout=0.2)
        (thread,) = (each for each in set(threading.enumerate()) - before if "network-thread" in each.name)
        thread.join(1)
        assert thread.is_alive(), no_longer(
            "leaves its thread running", "remove `close_producer` of broker/repairs/producer.py"
        )
    finally:
        close_producer(producer, timeout_s=0)


@pytest.fixture
def producers() -> Iterator[Callable[..., KafkaProducer]]:
    """Producers with transactions begun."""
    made: list[KafkaProducer] = []

    def new(settings: Settings, **options: Any) -> KafkaProducer:
        made.append(KafkaProducer(**address(settings), transactional_id=settings.group_id, **options))
        made[-1].init_transactions()
        made[-1].begin_transaction()
        return made[-1]

    yield new
    for producer in made:
        close_producer(producer, timeout_s=0)


NewProducer = Callable[..., KafkaProducer]


def test_a_transaction_is_committed_without_a_record_that_was_given_up(
    settings: Settings, producers: NewProducer
) -> None:
    producer = producers(
        settings, kafka_client=between(lose_records), delivery_timeout_ms=1_000, request_timeout_ms=900, linger_ms=0
    )
    lost = producer.send(settings.topics.logits, b"never stored", partition=0)
    with pytest.raises(KafkaTimeoutError):
        lost.get(10)
    try:
        producer.commit_transaction()
    except KafkaError:
        pytest.fail(
            no_longer("commits without a record", "remove the checks of futures in broker/publisher.py and replay.py")
        )


def test_a_commit_waits_for_longer_than_it_may(settings: Settings, producers: NewProducer) -> None:
    late = Future()

    def hold_the_end(request: Any, send: Send) -> Future:
        return late if isinstance(request, EndTxnRequest) else send()

    producer = producers(settings, kafka_client=between(hold_the_end), max_block_ms=1_000)
    producer.send(settings.topics.logits, b"1", partition=0).get(10)
    ended = threading.Event()

    def commit() -> None:
        try:
            producer.commit_transaction()
        except KafkaError:
            pass
        finally:
            ended.set()

    committing = threading.Thread(target=commit)
    committing.start()
    try:
        assert not ended.wait(3), no_longer(
            "waits without a limit", "remove the threads around it in broker/replay.py and replica/ (`busy_s`)"
        )
    finally:
        late.success(SimpleNamespace(error_code=0, throttle_time_ms=0))
        committing.join()


def test_a_transaction_that_must_wait_for_the_one_before_waits_the_whole_backoff(
    settings: Settings, producers: NewProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has a shorter one for this case, and does not use it."""
    busy = [ConcurrentTransactionsError.errno]
    slept: list[float] = []
    sleep = time.sleep

    def refuse_once(request: Any, send: Send) -> Future:
        if not isinstance(request, AddPartitionsToTxnRequest) or not busy:
            return send()
        slept.clear()
        refused = [(settings.topics.logits, [(0, busy.pop())])]
        return Future().success(SimpleNamespace(results_by_topic_v3_and_below=refused, throttle_time_ms=0))

    def record(seconds: float) -> None:
        if "network-thread" in threading.current_thread().name:
            slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", record)
    producer = producers(settings, kafka_client=between(refuse_once), retry_backoff_ms=321)
    producer.send(settings.topics.logits, b"1", partition=0).get(10)
    assert not busy
    assert 0.321 in slept, no_longer(
        f"sleeps its whole backoff ({slept})", "remove retry_backoff_ms from broker/publisher.py"
    )


def test_an_admin_client_never_asks_again_who_coordinates(settings: Settings) -> None:
    asked: list[Any] = []

    def moved(request: Any, send: Send) -> Future:
        if isinstance(request, OffsetFetchRequest):
            return Future().failure(NotCoordinatorError())
        asked.extend([request] if isinstance(request, FindCoordinatorRequest) else [])
        return send()

    with closing(KafkaAdminClient(**address(settings), kafka_client=between(moved))) as admin:
        for _ in range(2):
            with pytest.raises(NotCoordinatorError):
                admin.list_group_offsets(settings.group_id)
    assert len(asked) == 1, no_longer("stays with a coordinator", "keep the probe of monitor/lag.py after an error")


@pytest.mark.kafka
def test_a_flush_fails_where_a_batch_was_split(on_kafka: Settings) -> None:
    with closing(KafkaAdminClient(**address(on_kafka))) as admin:
        admin.alter_configs([ConfigResource("TOPIC", on_kafka.topics.logits, {"max.message.bytes": "20000"})])
    with closing(KafkaProducer(**address(on_kafka), batch_size=200_000, linger_ms=1_000)) as producer:
        futures = [producer.send(on_kafka.topics.logits, b"x" * 1_000, partition=0) for _ in range(100)]
        failed = False
        try:
            producer.flush(30)
        except KafkaError:
            failed = True
        for future in futures:
            future.get(30)  # all of them are stored
    assert failed, no_longer("fails to flush a batch that it splits", "simplify `_learn` of broker/publisher.py")


@pytest.mark.kafka
def test_offsets_that_the_group_refused_go_with_the_next_transaction(
    on_kafka: Settings, producers: NewProducer
) -> None:
    refused, own = (TopicPartition(on_kafka.topics.input, number) for number in (0, 1))
    producer = producers(on_kafka)
    stale = ConsumerGroupMetadata(on_kafka.group_id, 7, "a member that was evicted")
    with pytest.raises(KafkaError, match="metadata mismatch"):
        producer.send_offsets_to_transaction({refused: OffsetAndMetadata(1, "", -1)}, stale)
    producer.abort_transaction()
    producer.begin_transaction()
    producer.send_offsets_to_transaction({own: OffsetAndMetadata(1, "", -1)}, ConsumerGroupMetadata(on_kafka.group_id))
    producer.commit_transaction()
    with closing(KafkaAdminClient(**address(on_kafka))) as admin:
        committed = admin.list_group_offsets(on_kafka.group_id)
    assert refused in committed[on_kafka.group_id], no_longer(
        "commits offsets of an aborted transaction", "abort instead of making a new producer in broker/publisher.py"
    )
