"""Cooperative-sticky assignment in which a partition never has two owners.

Two defects of kafka-python 3.0.12 matter where members are many and die. Together they let two members commit the same
tweets, each in a generation that the broker accepts.

`forget`: an evicted member joins again with a claim to what it had, though somebody else has it by now. In Java the
claim is what the consumer owns at that moment (ConsumerCoordinator.java).
No longer needed when `test_a_member_that_was_evicted_claims_what_it_had` fails.

`assign`: a leader that sees two claims to a partition believes one of them. The partition moves at once, without having
been revoked; KIP-429 has it revoked first. Java believes the claim of the later generation, and none of two claims
of the same one (AbstractStickyAssignor.java).
No longer needed when `test_an_assignor_gives_a_disputed_partition_to_one_of_the_two` fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment


class SoleOwnerAssignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """One per consumer. The consumer tells it which partitions were lost."""

    member_assignment: list[TopicPartition] | None

    def forget(self, lost: Iterable[TopicPartition]) -> None:
        """Stop claiming `lost`: the group has given them to others. Call it before the consumer joins again."""
        if self.member_assignment is not None:
            gone = set(lost)
            self.member_assignment = [partition for partition in self.member_assignment if partition not in gone]

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, Any]:
        """Assignments by member id, as kafka-python makes them, without the partitions that two members claim.

        The member that really has such a partition revokes it, and the next rebalance finds it without an owner.
        """
        claims = Counter(
            partition for member in members for partition in self.parse_member_metadata(member.metadata).partitions
        )
        disputed = {partition for partition, count in claims.items() if count > 1}
        assigned: dict[str, Any] = super().assign(cluster, members)
        if not disputed:
            return assigned
        return {member: self._without(disputed, assignment) for member, assignment in assigned.items()}

    def _without(self, disputed: set[TopicPartition], assignment: Any) -> ConsumerProtocolAssignment:
        kept: dict[str, list[int]] = {}
        for topic, partition in assignment.partitions():
            if (topic, partition) not in disputed:
                kept.setdefault(topic, []).append(partition)
        return ConsumerProtocolAssignment(self.version, sorted(kept.items()), b"")
