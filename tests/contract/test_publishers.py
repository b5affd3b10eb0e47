"""Both publishers, one contract, against the embedded broker; what only Kafka keeps, against a real one."""

from __future__ import annotations

import random
import uuid
from contextlib import closing
from typing import Any

import pytest
from kafka import ConsumerGroupMetadata
from kafka.admin import ConfigResource
from kafka.errors import KafkaConnectionError, KafkaTimeoutError
from kafka.net.compat import KafkaNetClient

from tests.support.replicas import published
from twinlens.audit import committed_offsets
from twinlens.broker import publisher as module
from twinlens.broker import topics
from twinlens.broker.client import new_admin, new_consumer
from twinlens.broker.publisher import (
    AtLeastOncePublisher,
    Publisher,
    SourceOffset,
    TransactionalPublisher,
)
from twinlens.broker.repairs.recordbatch import BatchFuture, send
from twinlens.demo.embedded import embedded_broker
from twinlens.errors import RedoWindow, ReplaceReplica
from twinlens.settings import Settings
from twinlens.threads import WatchedThread
from twinlens.window.item import OutgoingRecord, Partition

PUBLISHERS = {"exactly_once": TransactionalPublisher, "at_least_once": AtLeastOncePublisher}


@pytest.fixture(scope="module")
def address() -> Any:
    with embedded_broker() as found:
        yield found


def prepare(address: str, partitions: int = 1) -> tuple[Settings, Any]:
    """Settings with topics of their own, and a consumer whose group metadata stands for a member's."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    settings = Settings.load({"application": name, "topics": {"input": name}, "kafka": {"bootstrap_servers": address}})
    topics.create(settings, partitions, 1)
    return settings, new_consumer(settings.kafka, group_id=settings.group_id)


def window(settings: Settings, *values: bytes) -> list[OutgoingRecord]:
    return [OutgoingRecord(settings.topics.logits, 0, b"k", value, [("h", b"v")]) for value in values]


def up_to(settings: Settings, next_offset: int, partition: int = 0) -> dict[Partition, SourceOffset]:
    return {(settings.topics.input, partition): SourceOffset(next_offset, "metadata")}


@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_window_is_published_in_order_with_keys_and_headers(delivery: str, address: str) -> None:
    settings, member = prepare(address)
    publisher: Publisher = PUBLISHERS[delivery](settings, "p")
    with closing(publisher), closing(member):
        publisher.publish(window(settings, b"1", b"2", b"3"), up_to(settings, 3), member.group_metadata)
        assert publisher.busy_s == 0
    found = published(settings, "logits")["logits"]
    assert [(r.key, r.value, list(r.headers)) for r in found] == [(b"k", v, [("h", b"v")]) for v in (b"1", b"2", b"3")]
    # Outside a transaction the offsets are the intake thread's to commit, after this.
    assert committed_offsets(settings) == ({0: 3} if delivery == "exactly_once" else {})


@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_window_of_many_record_batches_stays_in_order(delivery: str, address: str) -> None:
    settings, member = prepare(address, partitions=2)
    publisher: Publisher = PUBLISHERS[delivery](settings, "p")
    values = [f"{number:0>1000}".encode() for number in range(1_000)]  # a batch takes 256 KiB
    records = [OutgoingRecord(settings.topics.logits, number % 2, None, v, []) for number, v in enumerate(values)]
    with closing(publisher), closing(member):
        publisher.publish(records, up_to(settings, 1_000), member.group_metadata)
    found = published(settings, "logits")["logits"]
    for partition in (0, 1):
        assert [record.value for record in found if record.partition == partition] == values[partition::2]


@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_partition_that_no_topic_has_asks_for_a_new_replica(delivery: str, address: str) -> None:
    settings, member = prepare(address)
    publisher: Publisher = PUBLISHERS[delivery](settings, "p")
    records = [OutgoingRecord(settings.topics.logits, 1, None, b"1", [])]
    with closing(publisher), closing(member), pytest.raises(ReplaceReplica, match="as many partitions"):
        publisher.publish(records, up_to(settings, 1), member.group_metadata)


@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_window_that_is_no_longer_ours_is_redone_and_the_next_one_goes_through(delivery: str, address: str) -> None:
    settings, member = prepare(address)
    publisher: Publisher = PUBLISHERS[delivery](settings, "p")
    with closing(publisher), closing(member):
        with pytest.raises(RedoWindow, match="revoked"):
            publisher.publish(window(settings, b"1"), up_to(settings, 1), lambda: None)
        assert committed_offsets(settings) == {}
        publisher.publish(window(settings, b"2"), up_to(settings, 1), member.group_metadata)
    assert published(settings, "logits")["logits"][-1].value == b"2"


def test_a_coordinator_that_cannot_be_reached_for_a_moment_does_not_hold_the_window_up_for_ever(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[int] = []
    await_ready = KafkaNetClient.await_ready

    def refuse(self: KafkaNetClient, node_id: int, **arguments: Any) -> bool:
        if refusals:
            raise KafkaConnectionError(f"Node {refusals.pop()} not ready")
        return bool(await_ready(self, node_id, **arguments))

    monkeypatch.setattr(KafkaNetClient, "await_ready", refuse)
    settings, member = prepare(address)
    publisher = TransactionalPublisher(settings, "p")
    refusals.extend([1, 1, 1])
    thread = WatchedThread(
        "publish",
        lambda: publisher.publish(window(settings, b"1"), up_to(settings, 1), member.group_metadata),
    )
    thread.start()
    with closing(publisher), closing(member):
        assert thread.join(20), "the publisher hangs"
        thread.check()
    assert not refusals
    assert committed_offsets(settings) == {0: 1}


@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_record_that_no_topic_takes_asks_for_a_new_replica(delivery: str, address: str) -> None:
    settings, member = prepare(address)
    publisher: Publisher = PUBLISHERS[delivery](settings, "p")
    with closing(publisher), closing(member), pytest.raises(ReplaceReplica, match="max_request_bytes"):
        publisher.publish(window(settings, b"x" * 3_000_000), up_to(settings, 1), member.group_metadata)


@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_record_that_is_too_large_is_found_among_others(delivery: str, address: str) -> None:
    settings, member = prepare(address)
    kafka = settings.kafka.model_copy(update={"max_request_bytes": 20_000})
    publisher: Publisher = PUBLISHERS[delivery](settings.model_copy(update={"kafka": kafka}), "p")
    with closing(publisher), closing(member), pytest.raises(ReplaceReplica, match="max_request_bytes"):
        publisher.publish(window(settings, b"1", b"x" * 20_000, b"3"), up_to(settings, 3), member.group_metadata)
    assert committed_offsets(settings) == {}


@pytest.mark.kafka
@pytest.mark.parametrize("delivery", PUBLISHERS)
def test_a_topic_that_takes_small_batches_only_gets_every_record_once(delivery: str, kafka: str) -> None:
    """The client halves the batches that it is refused, but its flush fails then: the next try has smaller ones."""
    settings, member = prepare(kafka)
    with closing(new_admin(settings.kafka)) as admin:
        resource = ConfigResource("TOPIC", settings.topics.logits, {"max.message.bytes": "20000"})
        admin.alter_configs([resource])
    publisher: Publisher = PUBLISHERS[delivery](settings, "p")
    # Nothing that a codec could make small.
    values = [random.Random(number).randbytes(1_000) for number in range(300)]
    with closing(publisher), closing(member):
        for left in reversed(range(20)):
            try:
                publisher.publish(window(settings, *values), up_to(settings, 300), member.group_metadata)
                break
            except RedoWindow:
                assert left
    found = [record.value for record in published(settings, "logits")["logits"]]
    assert found[-300:] == values
    assert delivery == "at_least_once" or len(found) == 300


@pytest.mark.kafka
def test_readers_never_see_an_aborted_window(kafka: str) -> None:
    settings, member = prepare(kafka)
    publisher = TransactionalPublisher(settings, "p")
    with closing(publisher), closing(member):
        with pytest.raises(RedoWindow):
            publisher.publish(window(settings, b"aborted"), up_to(settings, 1), lambda: None)
        publisher.publish(window(settings, b"good"), up_to(settings, 1), member.group_metadata)
    assert [record.value for record in published(settings, "logits")["logits"]] == [b"good"]
    assert committed_offsets(settings) == {0: 1}


@pytest.mark.kafka
def test_a_fenced_producer_is_replaced_and_its_window_goes_through(kafka: str) -> None:
    from twinlens.broker.client import new_producer

    settings, member = prepare(kafka)
    publisher = TransactionalPublisher(settings, "p")
    usurper = new_producer(settings.kafka, transactional_id=publisher.transactional_id)
    try:
        usurper.init_transactions()
        publisher.publish(window(settings, b"good"), up_to(settings, 1), member.group_metadata)
    finally:
        publisher.close()
        usurper.close()
        member.close()
    assert [record.value for record in published(settings, "logits")["logits"]] == [b"good"]
    assert committed_offsets(settings) == {0: 1}


@pytest.mark.kafka
def test_a_window_outlives_a_rebalance_that_began_after_its_claim(kafka: str) -> None:
    settings, member = prepare(kafka)
    publisher = TransactionalPublisher(settings, "p")
    stale = ConsumerGroupMetadata(settings.group_id, 7, "somebody who is no member")
    claims = iter([stale, stale, member.group_metadata()])
    with closing(publisher), closing(member):
        publisher.publish(window(settings, b"good"), up_to(settings, 1), lambda: next(claims))
    assert [record.value for record in published(settings, "logits")["logits"]] == [b"good"]
    assert committed_offsets(settings) == {0: 1}


@pytest.mark.kafka
def test_offsets_that_the_group_refused_are_not_committed_by_the_next_window(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES_S", (0.01,))
    settings, member = prepare(kafka, partitions=2)
    publisher = TransactionalPublisher(settings, "p")
    stale = ConsumerGroupMetadata(settings.group_id, 7, "a member that was evicted")
    with closing(publisher), closing(member):
        with pytest.raises(RedoWindow, match="metadata mismatch"):
            publisher.publish(window(settings, b"redone elsewhere"), up_to(settings, 1), lambda: stale)
        publisher.publish(window(settings, b"good"), up_to(settings, 1, partition=1), member.group_metadata)
    assert [record.value for record in published(settings, "logits")["logits"]] == [b"good"]
    assert committed_offsets(settings) == {1: 1}


@pytest.mark.kafka
def test_a_window_is_not_committed_without_a_record_that_the_client_gave_up(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that expires leaves kafka-python's transaction as it is: it can be committed all the same."""
    settings, member = prepare(kafka)
    publisher = TransactionalPublisher(settings, "p")
    given_up: list[int] = []

    def expiring(producer: Any, records: Any, batch_bytes: int) -> list[BatchFuture]:
        """The first time they never reach the sender, which has to ask the coordinator before."""
        futures = send(producer, records, batch_bytes)
        if not given_up:
            producer._accumulator.abort_undrained_batches(KafkaTimeoutError("batch expired"))
        given_up.append(len(records))
        return futures

    with closing(publisher), closing(member):
        monkeypatch.setattr(module, "send", expiring)
        publisher.publish(window(settings, b"at the second try"), up_to(settings, 1), member.group_metadata)
    assert given_up == [1, 1]
    assert [record.value for record in published(settings, "logits")["logits"]] == [b"at the second try"]
    assert committed_offsets(settings) == {0: 1}


def test_a_member_without_a_generation_cannot_commit() -> None:
    """Between an eviction and its callback kafka-python has no generation, and the broker checks none then."""
    from twinlens.broker.repairs.membership import is_member

    assert not is_member(ConsumerGroupMetadata("group"))
    assert not is_member(ConsumerGroupMetadata("group", 3, ""))
    assert is_member(ConsumerGroupMetadata("group", 0, "member"))
