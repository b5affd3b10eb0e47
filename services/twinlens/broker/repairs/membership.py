"""Who this consumer is in its group, and what kafka-python 3.0.12 gets wrong about it.

Four defects, and the test that fails when the repair is no longer needed:

* Between an eviction and its callback the group metadata names no member (`is_member`). Java keeps the last member
  until the next join, and the broker refuses that one. `test_a_member_that_was_evicted_has_no_name_before_it_tells`
* A member that learns of its eviction from the answer to its join gets no callback (`replaced`, `adopt`). Java calls
  `onPartitionsLost`. `test_a_member_that_learns_of_its_eviction_from_a_join_says_nothing`
* A join for partitions that were added is forgotten when it ends between two polls (`keep_joining`). Java asks whether
  a join is needed or pending. `test_a_join_that_ends_between_two_polls_is_forgotten`
* The answer to an old question for committed offsets is given to the next who asks (`forget_answers`). Java's classic
  consumer keeps it, too, but only within a generation.
  `test_the_answer_to_a_question_whose_asker_gave_up_is_given_to_the_next`

That the repairs work is tested in tests/unit/test_membership.py, test_intake.py and test_rebalance.py in
tests/integration.
"""

from __future__ import annotations

from collections.abc import Collection

from kafka import ConsumerGroupMetadata, KafkaConsumer, TopicPartition

from twinlens.broker.repairs.assignor import SoleOwnerAssignor


class Membership:
    """The member that the partitions in hand were assigned to.

    For the thread that owns the consumer and, during a poll, for the client's thread. Any thread may call `metadata`.
    """

    def __init__(self, consumer: KafkaConsumer, assignor: SoleOwnerAssignor) -> None:
        self._consumer = consumer
        self._assignor = assignor
        self._member_id: str | None = None  # None: nothing was assigned yet, or all of it was lost

    def metadata(self) -> ConsumerGroupMetadata | None:
        """Member and generation as of now (KIP-447). None if the consumer is no member, or is no longer the member that
        got the records in hand.
        """
        metadata = self._consumer.group_metadata()
        return metadata if is_member(metadata) and metadata.member_id == self._member_id else None

    def assigned(self) -> None:
        """Partitions were assigned."""
        if self._member_id is None:
            self._member_id = self._consumer.group_metadata().member_id

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """The member was evicted and has learned of it."""
        self._assignor.forget(partitions)
        self._member_id = None

    def replaced(self) -> bool:
        """Whether the consumer has a new member id although no callback said so.

        A member that learns of its eviction from the answer to its join gets no callback, and joins again under another
        id. Others may have read and committed in between what it then gets back.
        """
        metadata = self._consumer.group_metadata()
        return self._member_id is not None and is_member(metadata) and metadata.member_id != self._member_id

    def adopt(self) -> None:
        """Continue as the member that the consumer has become. Call it after the records in hand were invalidated: from
        here on `metadata` names this member.
        """
        self._member_id = self._consumer.group_metadata().member_id

    def keep_joining(self) -> None:
        """Call before a poll. If a join for new partitions ends between two polls, the client forgets it and sends no
        more heartbeats. In Java `rejoinNeededOrPending` covers both cases (AbstractCoordinator.java).
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining:
            coordinator.request_rejoin()

    def forget_answers(self) -> None:
        """Call before asking for committed offsets. The client keeps the answer to a request that timed out, and gives
        it to the next request for the same partitions, however old it is.
        """
        self._consumer._coordinator._offset_fetch_futures.clear()


def is_member(metadata: ConsumerGroupMetadata) -> bool:
    """Whether group metadata names a member.

    Between an eviction and its callback it does not. A broker that gets such metadata checks nothing: a commit for
    partitions of another member would go through.
    """
    return metadata.generation_id >= 0 and bool(metadata.member_id)
