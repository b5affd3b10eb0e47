"""The consumer: polls, hands records over, pauses when the replica is full, gives partitions up in order.

One thread owns the KafkaConsumer, which is not thread-safe; what other threads want of it they leave as an errand.
Polling never stops, so a slow model is never evicted from the group by `max.poll.interval.ms`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import structlog
from kafka import ConsumerGroupMetadata, ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import AuthorizationError, KafkaError
from kafka.structs import OffsetAndMetadata

from twinlens.broker.assignor import SoleOwnerAssignor
from twinlens.broker.client import TRANSIENT, naming_denials, new_consumer
from twinlens.broker.lag import AssignedLag, LagMeter
from twinlens.broker.membership import Membership
from twinlens.broker.publisher import SourceOffset
from twinlens.settings import Settings
from twinlens.window import Abandoned, Backlog, Item, Partition, Window

log = structlog.get_logger(__name__)

POLL_MS = 100
MAX_POLL_RECORDS = 500
#: While records wait for compute the next poll waits too, for up to so long: a fetch of one record costs replica and
#: broker about as much as one of a hundred, and under a steady load there is one to fetch at any moment.
GATHER_S = 0.025
POLLS = 8  #: a poll may bring this part of `intake.max_buffered_bytes`
MAX_PARTITION_FETCH_BYTES = 1024 * 1024
MAX_HEARTBEAT_MS = 1_000  #: members hear of a rebalance with a heartbeat, so this is part of every hand-over

Decode = Callable[[Sequence[Any]], list[Item]]  #: ConsumerRecords of one partition to items, in order
Resume = Callable[[Partition, str], None]  #: a partition begins, with the metadata of its committed offset


class Intake(ConsumerRebalanceListener):  # type: ignore[misc]
    """Feeds `backlog` from the input topic as a member of the consumer group.

    `run` is the thread's body. On revocation, windows under way may finish for a third of the session timeout; what is
    left of the revoked partitions is dropped uncommitted and read again by their next owner. `assigned` is called after
    partitions came, `resume` before the first records of each of them are handed over.
    """

    def __init__(
        self,
        settings: Settings,
        client_id: str,
        backlog: Backlog,
        decode: Decode,
        *,
        assigned: Callable[[], None],
        resume: Resume,
        instance_id: str | None = None,
    ) -> None:
        self._kafka = kafka = settings.kafka
        self._group_id = settings.group_id
        self._topic = settings.topics.input
        self._backlog = backlog
        self._decode = decode
        self._assigned = assigned
        self._resume = resume
        self._resumed: set[Partition] = set()
        # Outside a transaction offsets are committed by this very thread, which cannot while it waits in the callback.
        exactly_once = settings.output.delivery == "exactly_once"
        self._release_budget_s = kafka.session_timeout_ms / 3000 if exactly_once else 0.0
        self._stopping = threading.Event()
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._poll_bytes = settings.intake.max_buffered_bytes // POLLS
        self._poll_records = 1  # of the next poll; nothing is known of the records' size yet
        self._later: list[Callable[[], None]] = []  # errands to try again after the next poll
        self._epochs: dict[Partition, int] = {}  # epoch under which the consumer's position was set
        self._first_offsets: dict[Partition, int] = {}  # of what came first since the assignment
        assignor = SoleOwnerAssignor()
        self._consumer: KafkaConsumer = new_consumer(
            kafka,
            client_id=client_id,
            group_id=settings.group_id,
            group_instance_id=instance_id,
            auto_offset_reset=kafka.auto_offset_reset,
            isolation_level="read_committed",
            partition_assignment_strategy=[assignor],
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=min(kafka.session_timeout_ms // 3, MAX_HEARTBEAT_MS),
            max_poll_interval_ms=kafka.max_poll_interval_ms,
            fetch_max_bytes=self._poll_bytes,
            max_partition_fetch_bytes=min(MAX_PARTITION_FETCH_BYTES, self._poll_bytes),
        )
        self._membership = Membership(self._consumer, assignor)
        self._meter = LagMeter(self._consumer, self._topic)

    def run(self) -> None:
        """Poll until `stop`, then leave the group. AskUser when an ACL is missing."""
        self._consumer.subscribe([self._topic], listener=self)
        try:
            with naming_denials(self._kafka, "Read", group=self._group_id):
                while not self._stopping.is_set():
                    self._pause_or_resume()
                    most = self._poll_records
                    polled = self._poll()
                    self._hand_over(polled)
                    self._run_errands()
                    if 0 < sum(map(len, polled.values())) < most:  # all that there was
                        self._backlog.await_draw(GATHER_S)
                self._run_errands()  # what was published while the last poll ran
        finally:
            self._consumer.close(autocommit=False, timeout_ms=5_000)

    def stop(self) -> None:
        """Ask the thread to end; windows that were committed stay committed."""
        self._stopping.set()

    def group_metadata(self) -> ConsumerGroupMetadata | None:
        """As `Membership.metadata`. Read it before asking whether a window is still current."""
        return self._membership.metadata()

    def read_again(self, abandoned: Mapping[Partition, Abandoned]) -> None:
        """Go back to the committed offsets; to the abandoned window's first ones where there is none yet."""
        for partition, what in abandoned.items():
            self._errands.put(partial(self._seek_back, partition, what))

    def commit(self, window: Window, offsets: Mapping[Partition, SourceOffset]) -> None:
        """Commit a window's offsets outside a transaction (at-least-once delivery)."""
        self._errands.put(partial(self._commit, window, offsets))

    def measure(self, timeout_s: float) -> AssignedLag | None:
        """The lag of the partitions assigned now; None when the thread does not know it within `timeout_s`."""
        measured: Future[AssignedLag | None] = Future()
        self._errands.put(partial(self._measure, measured))
        try:
            return measured.result(timeout_s)
        except TimeoutError:
            measured.cancel()  # nobody waits for it any more
            return None

    # The three methods below are called by kafka-python within poll().

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._membership.forget_answers()
        partitions = [_key(partition) for partition in assigned]
        for partition in partitions:
            self._epochs[partition] = self._backlog.epoch(partition)
        self._resumed.difference_update(partitions)
        for partition in partitions:
            self._first_offsets.pop(partition, None)
        self._membership.assigned()
        if partitions:
            self._assigned()
        log.info("partitions assigned", partitions=sorted(p for _, p in self._epochs))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        partitions = [_key(partition) for partition in revoked]
        finished = self._backlog.release(partitions, self._release_budget_s)
        for partition in partitions:
            self._epochs.pop(partition, None)
        if partitions:
            log.info("partitions revoked", partitions=sorted(p for _, p in partitions), windows_finished=finished)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        partitions = [_key(partition) for partition in lost]
        self._membership.lost(lost)
        self._backlog.invalidate(partitions)
        for partition in partitions:
            self._epochs.pop(partition, None)
        log.warning("partitions lost", partitions=sorted(p for _, p in partitions))

    def _poll(self) -> dict[TopicPartition, list[Any]]:
        """What passes by itself must not end the replica; what such a poll has taken with it is read again."""
        self._membership.keep_joining()
        try:
            polled = dict(self._consumer.poll(POLL_MS, self._poll_records))
        except TRANSIENT as error:
            log.warning("poll failed, reading again from the committed offsets", error=repr(error))
            self._start_over()
            self._stopping.wait(POLL_MS / 1000)
            return {}
        if self._membership.replaced():
            log.warning("evicted, reading again from the committed offsets")
            self._start_over()
            self._membership.adopt()
            return {}
        return polled

    def _start_over(self) -> None:
        """Read all that is assigned again; what is in hand of it is no longer ours to commit."""
        self._backlog.invalidate(self._epochs)
        for key in self._epochs:
            first = self._first_offsets.get(key)
            self._later.append(partial(self._seek_back_settled, key, Abandoned(first, self._backlog.epoch(key))))

    def _seek_back_settled(self, key: Partition, abandoned: Abandoned) -> None:
        """A window that has passed its claim may be committed yet, in this very generation. Between the claim and its
        offsets the broker knows nothing of them: what it calls committed then would be read twice.
        """
        if self._backlog.in_flight(key):
            self._later.append(partial(self._seek_back_settled, key, abandoned))
        else:
            self._seek_back(key, abandoned)

    def _hand_over(self, polled: dict[TopicPartition, list[Any]]) -> None:
        # As of the poll: what is asked of the consumer below may change the assignment, and the positions with it.
        epochs = dict(self._epochs)
        sizes = [0]
        for partition, records in polled.items():
            key = _key(partition)
            if (epoch := epochs.get(key)) is not None:
                self._first_offsets.setdefault(key, records[0].offset)
                if key not in self._resumed and not self._begin(partition):
                    if self._epochs.get(key) == epoch:
                        self._consumer.seek(partition, records[0].offset)  # once more with the next poll
                    continue
                items = self._decode(records)
                self._backlog.fill(key, epoch, items)
                sizes.extend(item.size_bytes for item in items)
        if largest_bytes := max(sizes):
            self._poll_records = min(max(1, self._poll_bytes // largest_bytes), MAX_POLL_RECORDS)

    def _begin(self, partition: TopicPartition) -> bool:
        """Take over what is known of a partition; whether that could be read. Now that its first records are here, the
        committed offset is stable: no transaction is pending on it.
        """
        try:
            committed = self._committed(partition)
        except TRANSIENT as error:
            log.warning("committed metadata not known yet", partition=partition.partition, error=repr(error))
            return False
        # A broker may say null for "no metadata"; the embedded one keeps none of those sent in a transaction.
        self._resume(_key(partition), "" if committed is None else committed.metadata or "")
        self._resumed.add(_key(partition))
        return True

    def _committed(self, partition: TopicPartition) -> OffsetAndMetadata | None:
        self._membership.forget_answers()
        return self._consumer.committed(partition, metadata=True, timeout_ms=5_000)

    def _pause_or_resume(self) -> None:
        paused = self._consumer.paused()
        if self._backlog.full:
            if running := self._consumer.assignment() - paused:
                self._consumer.pause(*running)
        elif paused:
            self._consumer.resume(*paused)

    def _run_errands(self) -> None:
        for errand in self._later:
            self._errands.put(errand)
        self._later.clear()
        while True:
            try:
                errand = self._errands.get_nowait()
            except queue.Empty:
                return
            errand()

    def _measure(self, measured: Future[AssignedLag | None]) -> None:
        if measured.set_running_or_notify_cancel():
            measured.set_result(self._meter.measure(time.monotonic()))

    def _seek_back(self, key: Partition, abandoned: Abandoned) -> None:
        partition = TopicPartition(*key)
        if partition not in self._consumer.assignment() or self._backlog.epoch(key) != abandoned.epoch:
            return  # given up since then: whoever is assigned it reads from the committed offset
        try:
            committed = self._committed(partition)
        except TRANSIENT as error:
            # Meanwhile the epoch keeps what is polled of this partition out of the backlog.
            log.warning("committed offset not known yet", partition=partition.partition, error=repr(error))
            if not self._stopping.is_set():
                self._later.append(partial(self._seek_back, key, abandoned))
            return
        if self._backlog.epoch(key) != abandoned.epoch:
            return
        offset = abandoned.first_offset if committed is None else committed.offset
        if offset is None:
            self._consumer.seek_to_beginning(partition)
        else:
            self._consumer.seek(partition, offset)
        self._resumed.discard(key)  # what was committed may be the window that was thought to have failed
        self._epochs[key] = abandoned.epoch
        log.info("reading again", partition=partition.partition, offset=offset)

    def _commit(self, window: Window, offsets: Mapping[Partition, SourceOffset]) -> None:
        try:
            if self._backlog.current(window):
                self._consumer.commit(
                    {TopicPartition(*p): OffsetAndMetadata(o.next_offset, o.metadata, -1) for p, o in offsets.items()},
                    timeout_ms=10_000,
                )
        except AuthorizationError:
            raise
        except KafkaError as error:
            # At least once: the records are out; without a commit they will be published again.
            log.warning("offsets not committed", error=repr(error))
        finally:
            self._backlog.finish(window)


def _key(partition: TopicPartition) -> Partition:
    return (partition.topic, partition.partition)
