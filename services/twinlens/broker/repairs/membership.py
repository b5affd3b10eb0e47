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

    Used by the thread that owns the consumer, and by the client's own while that one polls; `metadata` by any.
    """

    def __init__(self, consumer: KafkaConsumer, assignor: SoleOwnerAssignor) -> None:
        self._consumer = consumer
        self._assignor = assignor
        self._member_id: str | None = None  # None: nothing was assigned yet, or all of it was lost

    def metadata(self) -> ConsumerGroupMetadata | None:
        """Member and generation as of now (KIP-447); None while this is no member, or another than the one that what
        is in hand was assigned to.
        """
        metadata = self._consumer.group_metadata()
        return metadata if is_member(metadata) and metadata.member_id == self._member_id else None

    def assigned(self) -> None:
        """Partitions came."""
        if self._member_id is None:
            self._member_id = self._consumer.group_metadata().member_id

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """The member was evicted and has learned of it."""
        self._assignor.forget(partitions)
        self._member_id = None

    def replaced(self) -> bool:
        """Whether the consumer has become another member, without a word.

        A member that learns of its eviction from the answer to its join gets no callback, and joins again as another:
        what it then gets back, others may have read and committed in between.
        """
        metadata = self._consumer.group_metadata()
        return self._member_id is not None and is_member(metadata) and metadata.member_id != self._member_id

    def adopt(self) -> None:
        """Go on as the member that the consumer has become. What was in hand must be invalid before that: from here on
        `metadata` vouches for it.
        """
        self._member_id = self._consumer.group_metadata().member_id

    def keep_joining(self) -> None:
        """To be called before a poll: the client forgets a join that was begun for new partitions of the topic when it
        ends between two polls, and has no heartbeat from then on. In Java `rejoinNeededOrPending` asks for both
        (AbstractCoordinator.java).
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining:
            coordinator.request_rejoin()

    def forget_answers(self) -> None:
        """To be called before a question for committed offsets: the client keeps the answer to one whose asker gave
        up, and hands it to the next who asks for the same partitions, however old it is by then.
        """
        self._consumer._coordinator._offset_fetch_futures.clear()


def is_member(metadata: ConsumerGroupMetadata) -> bool:
    """Whether group metadata names a member. Between an eviction and its callback it does not, and a broker that is
    handed such metadata checks nothing: the commit of somebody else's partitions would go through."""
    return metadata.generation_id >= 0 and bool(metadata.member_id)
