"""The consumer's positions: which of them are valid, and how it goes back to the committed offsets.

The position of each assigned partition was set under an epoch of the backlog. If the backlog has a newer epoch by now,
it drops the records that are polled. So there is no hurry to go back.
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

COMMITTED_MS = 5_000  #: time limit for asking the broker for committed offsets

Resume = Callable[[Partition, str], None]  #: called with a partition and the metadata of its committed offset


class Positions:
    """Only the thread that owns the consumer may use it. Calls `resume` before a partition's first records are used.

    `later` has calls that could not be done yet. They are tried after the next poll, and may append to `later` again.
    """

    def __init__(self, consumer: KafkaConsumer, membership: Membership, backlog: Backlog, resume: Resume) -> None:
        self._consumer = consumer
        self._membership = membership
        self._backlog = backlog
        self._resume = resume
        self.epochs: dict[Partition, int] = {}  #: of the assigned partitions
        self.later: list[Callable[[], None]] = []
        self._resumed: set[Partition] = set()
        self._first_offsets: dict[Partition, int] = {}  # of the first records since the assignment

    def assigned(self, partitions: Collection[Partition]) -> None:
        """`partitions` were assigned. The consumer begins at their committed offsets."""
        for partition in partitions:
            self.epochs[partition] = self._backlog.epoch(partition)
            self._resumed.discard(partition)
            self._first_offsets.pop(partition, None)

    def removed(self, partitions: Iterable[Partition]) -> None:
        """`partitions` no longer belong to this member."""
        for partition in partitions:
            self.epochs.pop(partition, None)

    def begin(self, partition: TopicPartition, epoch: int, records: Sequence[Any]) -> bool:
        """Before a partition's first records, call `resume` with the metadata of its committed offset.

        `records` were polled under `epoch`. Returns whether they may be handed over. If the metadata is not known yet,
        the next poll brings the same records again.
        """
        key = (partition.topic, partition.partition)
        self._first_offsets.setdefault(key, records[0].offset)
        if key in self._resumed:
            return True
        # The first records are here, so the committed offset is stable: no transaction is pending on it.
        try:
            committed = self.committed(partition)
        except TRANSIENT as error:
            log.warning("committed metadata not known yet", partition=partition.partition, error=repr(error))
            if self.epochs.get(key) == epoch:
                self._consumer.seek(partition, records[0].offset)
            return False
        # A broker may send null for "no metadata". The embedded broker keeps no metadata sent in a transaction.
        self._resume(key, "" if committed is None else committed.metadata or "")
        self._resumed.add(key)
        return True

    def committed(self, partition: TopicPartition) -> OffsetAndMetadata | None:
        """The committed offset as of now, never the answer to an earlier request."""
        self._membership.forget_answers()
        return self._consumer.committed(partition, metadata=True, timeout_ms=COMMITTED_MS)

    def start_over(self) -> None:
        """Read all assigned partitions again. Their records in hand may no longer be committed."""
        self._backlog.invalidate(self.epochs)
        for key in self.epochs:
            first = self._first_offsets.get(key)
            self.later.append(partial(self._seek_back_settled, key, Abandoned(first, self._backlog.epoch(key))))

    def read_again(self, abandoned: Mapping[Partition, Abandoned]) -> None:
        """Go back to the committed offsets. If there is none, go back to the abandoned window's first."""
        for key, what in abandoned.items():
            self._seek_back(key, what)

    def _seek_back_settled(self, key: Partition, abandoned: Abandoned) -> None:
        """Seek back after all windows of the partition have ended. Until then, try again later.

        A window that has passed its claim may still be committed in this generation. The broker does not know its
        offsets until they are sent, so going back earlier than that would read its records twice.
        """
        if self._backlog.in_flight(key):
            self.later.append(partial(self._seek_back_settled, key, abandoned))
        else:
            self._seek_back(key, abandoned)

    def _seek_back(self, key: Partition, abandoned: Abandoned) -> None:
        partition = TopicPartition(*key)
        if partition not in self._consumer.assignment() or self._backlog.epoch(key) != abandoned.epoch:
            return  # given up in the meantime: its next owner reads from the committed offset
        try:
            committed = self.committed(partition)
        except TRANSIENT as error:
            # Until then the epoch keeps polled records of this partition out of the backlog.
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
        self._resumed.discard(key)  # the window that seemed to have failed may be committed
        self.epochs[key] = abandoned.epoch
        log.info("reading again", partition=partition.partition, offset=offset)
