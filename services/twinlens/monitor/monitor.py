"""The monitoring actor's body: follows `comparisons` and `divergences`, folds, and answers. One per application.

Its state is nothing but the fold of `monitor.state`, so it may be killed at any time: the next one goes on from
the last snapshot, reads what came after it, and has the same counts. Replicas write to Kafka and never wait for it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from twinlens.broker.client import TRANSIENT, naming_denials, new_consumer
from twinlens.broker.lag import LagProbe
from twinlens.errors import AskUser
from twinlens.monitor.keeper import Image, SnapshotKeeper, new_state
from twinlens.monitor.summary import summary
from twinlens.monitor.view import View
from twinlens.records import DivergenceRecord, decode_comparison, decode_divergence
from twinlens.settings import Settings
from twinlens.threads import WatchedThread

log = structlog.get_logger(__name__)

POLL_MS = 200
LAG_PERIOD_S = 1.0
RETRY_S = 1.0  #: between a poll that failed and the next one
STOP_S = 5.0  #: how long `stop` waits for each thread


class Monitor:
    """Owns the state and the thread that feeds it. `view` may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = new_state(settings)
        self._positions: dict[TopicPartition, int] = {}  # offset of the next record to take, of both topics
        self._whole = False  # there is a state to take a snapshot of, and no exception has left a record half folded
        self._records_read = 0
        self._keeper = SnapshotKeeper(settings)
        self._recent: deque[DivergenceRecord] = deque(maxlen=settings.monitor.recent_divergences)
        self._lag: dict[int, int] | None = None
        self._caught_up = False
        self._unreadable = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._following = WatchedThread("monitor", self._follow)
        self._threads = [
            self._following,
            WatchedThread("snapshots", self._keep_snapshots),
            WatchedThread("lag", self._watch_lag),
        ]

    def start(self) -> None:
        """Start following the topics."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, the one that follows first, so that a last snapshot holds all it has folded."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_S)

    def check_health(self) -> None:
        """Raises ReplaceReplica when a thread died."""
        for thread in self._threads:
            thread.check()

    def view(self, now_ms: int) -> View:
        """Everything there is to show at `now_ms`."""
        with self._lock:
            return View(
                summary=summary(self._state, now_ms),
                lag=self._lag,
                recent=list(self._recent),
                caught_up=self._caught_up,
                unreadable=self._unreadable,
                snapshot=msgspec.structs.replace(self._keeper.status, records_read=self._records_read),
            )

    def _follow(self) -> None:
        """The monitor thread. Raises AskUser when an ACL is missing."""
        with naming_denials(self._settings.kafka, "Read"):
            self._follow_topics()

    def _follow_topics(self) -> None:
        """Every record of the two topics, from where the last snapshot ends."""
        consumer = new_consumer(self._settings.kafka, isolation_level="read_committed", auto_offset_reset="earliest")
        try:
            ends = self._begin(consumer)
            while not self._stopping.is_set():
                try:
                    self._read(consumer, ends)
                except TRANSIENT as error:
                    log.warning("the topics could not be read, trying again", error=repr(error))
                    for partition, position in self._positions.items():
                        consumer.seek(partition, position)  # what the failed poll may have taken with it comes again
                    self._stopping.wait(RETRY_S)
        finally:
            consumer.close()

    def _begin(self, consumer: KafkaConsumer) -> dict[TopicPartition, int]:
        """Take the last snapshot over. Returns where the topics end now: what comes before is not news but history."""
        topics = self._settings.topics
        comparisons, divergences = (
            [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
            for topic in (topics.comparisons, topics.divergences)
        )
        consumer.assign([*comparisons, *divergences])
        ends, beginnings = (
            offsets([*comparisons, *divergences]) for offsets in (consumer.end_offsets, consumer.beginning_offsets)
        )
        # Of the diverging tweets only the newest are shown. Markers take offsets too, hence twice as far back.
        back = 2 * self._settings.monitor.recent_divergences
        positions = {partition: max(beginnings[partition], ends[partition] - back) for partition in divergences}
        state, starts = self._keeper.restore({each.partition: beginnings[each] for each in comparisons})
        positions |= {partition: starts[partition.partition] for partition in comparisons}
        with self._lock:
            self._state, self._positions, self._whole = state, positions, True
        for partition, position in positions.items():
            consumer.seek(partition, position)
        return dict(ends)

    def _read(self, consumer: KafkaConsumer, ends: dict[TopicPartition, int]) -> None:
        """One poll. State and positions change together: a snapshot sees both or neither."""
        polled = consumer.poll(POLL_MS)
        with self._lock:
            self._whole = False
            for partition, records in polled.items():
                for record in records:
                    self._take(partition.topic, record)
                self._positions[partition] = records[-1].offset + 1
            self._whole = True
        # Where the consumer has passed beyond the last record it gave out, there were markers.
        passed = {partition: consumer.position(partition) for partition in ends}
        with self._lock:
            self._positions |= {partition: offset for partition, offset in passed.items() if offset is not None}
            self._caught_up = self._caught_up or all(self._positions[each] >= end for each, end in ends.items())

    def _take(self, topic: str, record: Any) -> None:
        try:
            if topic == self._settings.topics.comparisons:
                comparison = decode_comparison(record.value)
                if comparison.application == self._settings.application:
                    self._records_read += 1
                    self._state.fold(comparison)
            else:
                divergence = decode_divergence(record.value)
                if divergence.application == self._settings.application:
                    self._recent.append(divergence)
        except (msgspec.MsgspecError, TypeError) as error:
            # Somebody else's record; counting it keeps the fold defined without hiding it.
            self._unreadable += 1
            log.warning("not a record of twinlens", topic=topic, partition=record.partition, offset=record.offset,
                        error=str(error))  # fmt: skip

    def _keep_snapshots(self) -> None:
        """The snapshots thread: on a client of its own, since a broker that is away must not hold up the fold."""
        self._keeper.run(self._look, self._stopping, at_last=lambda: self._following.join(STOP_S))

    def _look(self) -> Image | None:
        topic = self._settings.topics.comparisons
        with self._lock:
            positions = {each.partition: offset for each, offset in self._positions.items() if each.topic == topic}
            return self._keeper.take(self._state, positions) if self._whole else None

    def _watch_lag(self) -> None:
        """The lag thread: on clients of its own, since a broker that is away must not hold up the fold."""
        probe: LagProbe | None = None
        try:
            while not self._stopping.wait(LAG_PERIOD_S):
                try:
                    probe = probe or LagProbe(self._settings)
                    self._lag = probe.lag()
                except (KafkaError, AskUser) as error:
                    self._lag = None
                    log.warning("lag is not known", error=repr(error))
                    if probe is not None:  # kafka-python's admin client goes on asking a coordinator that has moved
                        probe.close()
                        probe = None
        finally:
            if probe is not None:
                probe.close()
