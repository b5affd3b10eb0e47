"""The consumer: polls, hands records over, pauses when the replica is full, gives up revoked partitions cleanly.

One thread owns the KafkaConsumer, which is not thread-safe. Other threads leave an errand, a call for that thread to
run. Polling never stops, so a replica with a slow model is never evicted from the group by `max.poll.interval.ms`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import structlog
from kafka import ConsumerGroupMetadata, ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import AuthorizationError, KafkaError
from kafka.structs import OffsetAndMetadata

from twinlens.broker.client import TRANSIENT, naming_denials, new_consumer
from twinlens.broker.lag import AssignedLag, LagMeter
from twinlens.broker.positions import Positions, Resume
from twinlens.broker.publisher import SourceOffset
from twinlens.broker.repairs.assignor import SoleOwnerAssignor
from twinlens.broker.repairs.membership import Membership
from twinlens.settings import Settings
from twinlens.window.backlog import Abandoned, Backlog
from twinlens.window.item import Item, Partition
from twinlens.window.window import Window

log = structlog.get_logger(__name__)

POLL_MS = 100
MAX_POLL_RECORDS = 500
#: While records wait for compute, the next poll waits too, up to this long. Fetching one record costs replica and
#: broker about as much as fetching a hundred, and under a steady load there is always one to fetch.
GATHER_S = 0.025
POLLS = 8  #: one poll may bring up to `intake.max_buffered_bytes` divided by this
MAX_PARTITION_FETCH_BYTES = 1024 * 1024
MAX_HEARTBEAT_MS = 1_000  #: members learn of a rebalance from a heartbeat, so this delays every hand-over

T = TypeVar("T")
Decode = Callable[[Sequence[Any]], list[Item]]  #: turns ConsumerRecords of one partition into items, in order


class Intake(ConsumerRebalanceListener):  # type: ignore[misc]
    """Feeds `backlog` from the input topic as a member of the consumer group.

    `run` is the thread's body. `consumer` and `positions` belong to that thread: others reach them through `errand`.
    When partitions are revoked, windows under way have a third of the session timeout to finish. The other records of
    these partitions are dropped without a commit, and the next owner reads them again. `assigned` is called after
    partitions were assigned, `resume` before the first records of each partition are handed over.
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
        # Without transactions this thread commits the offsets, which it cannot do while it waits in the callback.
        exactly_once = settings.output.delivery == "exactly_once"
        self._release_budget_s = kafka.session_timeout_ms / 3000 if exactly_once else 0.0
        self._stopping = threading.Event()
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._poll_bytes = settings.intake.max_buffered_bytes // POLLS
        self._poll_records = 1  # limit of the next poll; the size of the records is not known yet
        assignor = SoleOwnerAssignor()
        self.consumer = _new_member(settings, client_id, instance_id, assignor, self._poll_bytes)
        self._membership = Membership(self.consumer, assignor)
        self.positions = Positions(self.consumer, self._membership, backlog, resume)
        self._meter = LagMeter(self.consumer, self._topic)

    def run(self) -> None:
        """Poll until `stop`, then leave the group. Raises AskUser if an ACL is missing."""
        self.consumer.subscribe([self._topic], listener=self)
        try:
            with naming_denials(self._kafka, "Read", group=self._group_id):
                while not self._stopping.is_set():
                    self._pause_or_resume()
                    most = self._poll_records
                    polled = self._poll()
                    self.hand_over(polled)
                    self._run_errands()
                    if 0 < sum(map(len, polled.values())) < most:  # there were no more
                        self._backlog.await_draw(GATHER_S)
                self.positions.later.clear()  # no more reading
                self._run_errands()  # commits of windows published during the last poll
        finally:
            self.consumer.close(autocommit=False, timeout_ms=5_000)

    def stop(self) -> None:
        """Ask the thread to end. Committed windows stay committed."""
        self._stopping.set()

    def group_metadata(self) -> ConsumerGroupMetadata | None:
        """Same as `Membership.metadata`. Call it before you check whether a window is still current."""
        return self._membership.metadata()

    def errand(self, call: Callable[[], T]) -> Future[T]:
        """Have the thread run `call` between two polls, after the current poll."""
        answer: Future[T] = Future()

        def run() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
                raise  # it ends this thread, as any other error in it does

        self._errands.put(run)
        return answer

    def read_again(self, abandoned: Mapping[Partition, Abandoned]) -> None:
        """Go back to the committed offsets. If there is none, go back to the abandoned window's first."""
        self.errand(partial(self.positions.read_again, abandoned))

    def commit(self, window: Window, offsets: Mapping[Partition, SourceOffset]) -> None:
        """Commit a window's offsets outside a transaction (at-least-once delivery)."""
        self.errand(partial(self._commit, window, offsets))

    def measure(self, timeout_s: float) -> AssignedLag | None:
        """The lag of the partitions assigned now; None if the thread has no answer within `timeout_s`."""
        measured = self.errand(lambda: self._meter.measure(time.monotonic()))
        try:
            return measured.result(timeout_s)
        except TimeoutError:
            measured.cancel()
            return None

    # kafka-python calls the three methods below within poll().

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._membership.forget_answers()
        partitions = [_key(partition) for partition in assigned]
        self.positions.assigned(partitions)
        self._membership.assigned()
        if partitions:
            self._assigned()
        log.info("partitions assigned", partitions=sorted(p for _, p in self.positions.epochs))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        partitions = [_key(partition) for partition in revoked]
        finished = self._backlog.release(partitions, self._release_budget_s)
        self.positions.removed(partitions)
        if partitions:
            log.info("partitions revoked", partitions=sorted(p for _, p in partitions), windows_finished=finished)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        partitions = [_key(partition) for partition in lost]
        self._membership.lost(lost)
        self._backlog.invalidate(partitions)
        self.positions.removed(partitions)
        log.warning("partitions lost", partitions=sorted(p for _, p in partitions))

    def _poll(self) -> dict[TopicPartition, list[Any]]:
        """Poll once. A transient error does not end the replica: the records lost with that poll are read again."""
        self._membership.keep_joining()
        try:
            polled = dict(self.consumer.poll(POLL_MS, self._poll_records))
        except TRANSIENT as error:
            log.warning("poll failed, reading again from the committed offsets", error=repr(error))
            self.positions.start_over()
            self._stopping.wait(POLL_MS / 1000)
            return {}
        if self._membership.replaced():
            log.warning("evicted, reading again from the committed offsets")
            self.positions.start_over()
            self._membership.adopt()
            return {}
        return polled

    def hand_over(self, polled: dict[TopicPartition, list[Any]]) -> None:
        """Decode the records of a poll and put them into the backlog."""
        # A copy as of the poll: the calls to the consumer below may change the assignment, and so the epochs.
        epochs = dict(self.positions.epochs)
        sizes = [0]
        for partition, records in polled.items():
            key = _key(partition)
            if key in epochs and self.positions.begin(partition, epochs[key], records):
                items = self._decode(records)
                self._backlog.fill(key, epochs[key], items)
                sizes.extend(item.size_bytes for item in items)
        if largest_bytes := max(sizes):
            self._poll_records = min(max(1, self._poll_bytes // largest_bytes), MAX_POLL_RECORDS)

    def _pause_or_resume(self) -> None:
        paused = self.consumer.paused()
        if self._backlog.full:
            if running := self.consumer.assignment() - paused:
                self.consumer.pause(*running)
        elif paused:
            self.consumer.resume(*paused)

    def _run_errands(self) -> None:
        for errand in self.positions.later:
            self._errands.put(errand)
        self.positions.later.clear()
        while True:
            try:
                errand = self._errands.get_nowait()
            except queue.Empty:
                return
            errand()

    def _commit(self, window: Window, offsets: Mapping[Partition, SourceOffset]) -> None:
        try:
            if self._backlog.current(window):
                self.consumer.commit(
                    {TopicPartition(*p): OffsetAndMetadata(o.next_offset, o.metadata, -1) for p, o in offsets.items()},
                    timeout_ms=10_000,
                )
        except AuthorizationError:
            raise
        except KafkaError as error:
            # At-least-once: the outputs are published. Without a commit they will be published again.
            log.warning("offsets not committed", error=repr(error))
        finally:
            self._backlog.finish(window)


def _key(partition: TopicPartition) -> Partition:
    return (partition.topic, partition.partition)


def _new_member(
    settings: Settings, client_id: str, instance_id: str | None, assignor: SoleOwnerAssignor, fetch_bytes: int
) -> KafkaConsumer:
    """The consumer with its part in the group; `fetch_bytes` is the most that a broker sends at once."""
    kafka = settings.kafka
    return new_consumer(
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
        fetch_max_bytes=fetch_bytes,
        max_partition_fetch_bytes=min(MAX_PARTITION_FETCH_BYTES, fetch_bytes),
    )
