"""No partition is assigned while somebody else may still have it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

from twinlens.broker.repairs.assignor import SoleOwnerAssignor

TOPIC = "tweets"
PARTITIONS = 6
CLUSTER: Any = SimpleNamespace(
    partitions_for_topic=lambda _: set(range(PARTITIONS)), topics=lambda *_: {TOPIC}, available_partitions_for_topic=set
)

claims_of_members = st.lists(st.sets(st.integers(0, PARTITIONS - 1)), min_size=1, max_size=4)


def member(name: str, claims: set[int], kind: type[Any] = SoleOwnerAssignor) -> Any:
    assignor = kind()
    assignor.on_assignment(ConsumerProtocolAssignment(1, [(TOPIC, sorted(claims))], b""), 1)
    return SimpleNamespace(member_id=name, metadata=assignor.metadata({TOPIC}))


def assign(claims: list[set[int]], assignor: Any = None) -> list[set[int]]:
    members = [member(f"member-{number}", claimed) for number, claimed in enumerate(claims)]
    assigned = (assignor or SoleOwnerAssignor()).assign(CLUSTER, members)
    return [{p.partition for p in assigned[m.member_id].partitions()} for m in members]


@given(claims_of_members)
def test_nobody_gets_what_another_may_still_have(claims: list[set[int]]) -> None:
    for number, assigned in enumerate(assign(claims)):
        others = set().union(*(claimed for other, claimed in enumerate(claims) if other != number))
        assert not assigned & others


@given(claims_of_members)
def test_a_second_round_leaves_no_partition_out(claims: list[set[int]]) -> None:
    """Everybody revokes what was not assigned again; after that all is as sticky as before."""
    first = assign(claims)
    second = assign(
        [assigned & claimed | (assigned - claimed) for assigned, claimed in zip(first, claims, strict=True)]
    )
    third = assign(second)
    assert set().union(*third) == set(range(PARTITIONS))
    assert sum(map(len, third)) == PARTITIONS


def test_a_disputed_partition_is_given_to_nobody() -> None:
    disputed = [{0, 1, 3}, {2, 4}, {3, 5}]  # as seen: the third was evicted, and the first has had 3 since then
    assert assign(disputed) == [{0, 1}, {2, 4}, {5}]


def test_what_was_lost_is_claimed_no_more() -> None:
    assignor = SoleOwnerAssignor()
    assignor.forget([TopicPartition(TOPIC, 0)])  # before anything was assigned
    assignor.on_assignment(ConsumerProtocolAssignment(1, [(TOPIC, [0, 1, 2])], b""), 1)
    assignor.forget([TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 2)])
    (owned,) = assignor.metadata({TOPIC}).owned_partitions
    assert (owned.topic, owned.partitions) == (TOPIC, [1])
