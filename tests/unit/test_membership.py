"""For whom the group metadata of a commit vouches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kafka import ConsumerGroupMetadata, TopicPartition

from twinlens.broker.repairs.assignor import SoleOwnerAssignor
from twinlens.broker.repairs.membership import Membership


def metadata(member: str, generation: int = 3) -> ConsumerGroupMetadata:
    return ConsumerGroupMetadata("group", generation, member)


def member(name: str) -> tuple[Any, Membership]:
    consumer = SimpleNamespace(group_metadata=lambda: metadata(name))
    return consumer, Membership(consumer, SoleOwnerAssignor())


def test_nothing_is_vouched_for_before_an_assignment() -> None:
    _, membership = member("a")
    assert membership.metadata() is None
    assert not membership.replaced()


def test_a_later_generation_of_the_same_member_is_good() -> None:
    consumer, membership = member("a")
    membership.assigned()
    consumer.group_metadata = lambda: metadata("a", 4)
    membership.assigned()
    assert membership.metadata() == metadata("a", 4)
    assert not membership.replaced()


def test_another_member_vouches_for_nothing_until_it_is_adopted() -> None:
    consumer, membership = member("a")
    membership.assigned()
    consumer.group_metadata = lambda: metadata("b")
    membership.assigned()  # of partitions that came with the silent change: what was in hand before is still wrong
    assert membership.replaced()
    assert membership.metadata() is None, "asking changes nothing: the caller has to invalidate first"
    membership.adopt()
    assert membership.metadata() == metadata("b")
    assert not membership.replaced()


def test_a_member_that_lost_all_is_the_next_one_from_its_assignment_on() -> None:
    consumer, membership = member("a")
    membership.assigned()
    membership.lost([TopicPartition("tweets", 0)])
    consumer.group_metadata = lambda: metadata("b")
    assert membership.metadata() is None
    assert not membership.replaced()
    membership.assigned()
    assert membership.metadata() == metadata("b")


def test_between_an_eviction_and_the_next_join_there_is_no_member() -> None:
    consumer, membership = member("a")
    membership.assigned()
    for nobody in (metadata("", 3), metadata("a", -1)):
        consumer.group_metadata = lambda nobody=nobody: nobody
        assert membership.metadata() is None
        assert not membership.replaced()
