"""Where the consumer reads on: which of its positions are good, and how it goes back to what is committed.

Each assigned partition's position was set under an epoch of the backlog. Records that are polled while a newer one
holds never come in, so a partition may be read again at leisure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from twinlens.broker.client import TRANSIENT
from twinlens.broker.repairs.membership import Membership
from twinlens.window.backlog import Abandoned, Backlog
from twinlens.window.item import Partition

log = structlog.get_logger(__name__)

COMMITTED_MS = 5_000  #: for the broker to say what is committed

Resume = Callable[[Partition, str], None]  #: a partition begins, with the metadata of its committed offset


class Positions:
    """Used by the thread that owns the consumer only. `resume` is called before a partition's first records count.

    `later` has what could not be done yet and is to be tried after the next poll. Those tries append to it.
    """

    def __init__(self, consumer: KafkaConsumer, membership: Membership, backlog: Backlog, resume: Resume) -> None:
        self._consumer = consumer
        self._membership = membership
        self._backlog = backlog
        self._resume = resume
        self.epochs: dict[Partition, int] = {}  #: of the assigned partitions
        self.later: list[Callable[[], None]] = []
        self._resumed: set[Partition] = set()
        self._first_offsets: dict[Partition, int] = {}  # of what came first since the assignment

    def assigned(self, partitions: Collection[Partition]) -> None:
        """They came; the consumer begins at their committed offsets."""
        for partition in partitions:
            self.epochs[partition] = self._backlog.epoch(partition)
            self._resumed.discard(partition)
            self._first_offsets.pop(partition, None)

    def removed(self, partitions: Iterable[Partition]) -> None:
        """They are no longer this member's."""
        for partition in partitions:
            self.epochs.pop(partition, None)

    def begin(self, partition: TopicPartition, epoch: int, records: Sequence[Any]) -> bool:
        """Take over what is known of a partition before its first records, which were polled under `epoch`: the
        metadata of its committed offset. Returns whether they may be handed over; where it is not known yet, the same
        records come once more with the next poll.
        """
        key = (partition.topic, partition.partition)
        self._first_offsets.setdefault(key, records[0].offset)
        if key in self._resumed:
            return True
        # Now that its first records are here, the committed offset is stable: no transaction is pending on it.
        try:
            committed = self.committed(partition)
        except TRANSIENT as error:
            log.warning("committed metadata not known yet", partition=partition.partition, error=repr(error))
            if self.epochs.get(key) == epoch:
                self._consumer.seek(partition, records[0].offset)
            return False
        # A broker may say null for "no metadata"; the embedded one keeps none of those sent in a transaction.
        self._resume(key, "" if committed is None else committed.metadata or "")
        self._resumed.add(key)
        return True

    def committed(self, partition: TopicPartition) -> OffsetAndMetadata | None:
        """As of now; never the answer to an earlier question."""
        self._membership.forget_answers()
        return self._consumer.committed(partition, metadata=True, timeout_ms=COMMITTED_MS)

    def start_over(self) -> None:
        """Read all that is assigned again; what is in hand of it is no longer ours to commit."""
        self._backlog.invalidate(self.epochs)
        for key in self.epochs:
            first = self._first_offsets.get(key)
            self.later.append(partial(self._seek_back_settled, key, Abandoned(first, self._backlog.epoch(key))))

    def read_again(self, abandoned: Mapping[Partition, Abandoned]) -> None:
        """Go back to the committed offsets; to the abandoned window's first ones where there is none yet."""
        for key, what in abandoned.items():
            self._seek_back(key, what)

    def _seek_back_settled(self, key: Partition, abandoned: Abandoned) -> None:
        """A window that has passed its claim may be committed yet, in this very generation. Between the claim and its
        offsets the broker knows nothing of them: what it calls committed then would be read twice.
        """
        if self._backlog.in_flight(key):
            self.later.append(partial(self._seek_back_settled, key, abandoned))
        else:
            self._seek_back(key, abandoned)

    def _seek_back(self, key: Partition, abandoned: Abandoned) -> None:
        partition = TopicPartition(*key)
        if partition not in self._consumer.assignment() or self._backlog.epoch(key) != abandoned.epoch:
            return  # given up since then: whoever is assigned it reads from the committed offset
        try:
            committed = self.committed(partition)
        except TRANSIENT as error:
            # Meanwhile the epoch keeps what is polled of this partition out of the backlog.
            log.warning("committed offset not known yet", partition=partition.partition, error=repr(error))
            self.later.append(partial(self._seek_back, key, abandoned))
            return
        if self._backlog.epoch(key) != abandoned.epoch:
            return
        offset = abandoned.first_offset if committed is None else committed.offset
        if offset is None:
            self._consumer.seek_to_beginning(partition)
        else:
            self._consumer.seek(partition, offset)
        self._resumed.discard(key)  # what was committed may be the window that was thought to have failed
        self.epochs[key] = abandoned.epoch
        log.info("reading again", partition=partition.partition, offset=offset)
