"""The monitor: follows `comparisons` and `divergences`, folds, and answers. One per application.

Its state is nothing but the fold of `monitor.state`, so it may be killed at any time: the next one goes on from the
last snapshot, reads what came after it, and has the same counts. Replicas write to Kafka and never wait for it.
"""

from __future__ import annotations

import threading
from functools import partial

import structlog
from kafka import KafkaConsumer, TopicPartition

from twinlens.broker.client import TRANSIENT, naming_denials, new_consumer
from twinlens.monitor.fold import Fold
from twinlens.monitor.keeper import SnapshotKeeper, new_state
from twinlens.monitor.lag import LagWatch
from twinlens.monitor.view import View
from twinlens.settings import Settings
from twinlens.threads import WatchedThread
from twinlens.window.item import Partition

log = structlog.get_logger(__name__)

POLL_MS = 200
RETRY_S = 1.0  #: between a poll that failed and the next one
STOP_S = 5.0  #: how long `stop` waits for each thread


class Monitor:
    """Owns the fold and the thread that feeds it. `view` may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fold = Fold(settings, new_state(settings))
        self._keeper = SnapshotKeeper(settings)
        self._lag = LagWatch(settings)
        self._stopping = threading.Event()
        self._following = WatchedThread("monitor", self._follow)
        self._threads = [
            self._following,
            WatchedThread("snapshots", self._keep_snapshots),
            WatchedThread("lag", partial(self._lag.run, self._stopping)),
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
        return self._fold.view(now_ms, self._lag.lag, self._keeper.status)

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
                    self._fold.take(consumer.poll(POLL_MS))
                    passed = {partition: consumer.position(partition) for partition in ends}
                    self._fold.passed({each: at for each, at in passed.items() if at is not None}, ends)
                except TRANSIENT as error:
                    log.warning("the topics could not be read, trying again", error=repr(error))
                    for partition, position in self._fold.positions.items():
                        consumer.seek(TopicPartition(*partition), position)  # what the failed poll took comes again
                    self._stopping.wait(RETRY_S)
        finally:
            consumer.close()

    def _begin(self, consumer: KafkaConsumer) -> dict[Partition, int]:
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
        # Of the diverging tweets only the newest are shown. Markers take offsets too, so look back twice as far.
        back = 2 * self._settings.monitor.recent_divergences
        positions = {partition: max(beginnings[partition], ends[partition] - back) for partition in divergences}
        state, starts = self._keeper.restore({each.partition: beginnings[each] for each in comparisons})
        positions |= {partition: starts[partition.partition] for partition in comparisons}
        self._fold.begin(state, positions)
        for partition, position in positions.items():
            consumer.seek(partition, position)
        return dict(ends)

    def _keep_snapshots(self) -> None:
        """The snapshots thread: on a client of its own, since a broker that is away must not hold up the fold."""
        self._keeper.run(
            lambda: self._fold.image(self._keeper.take), self._stopping, at_last=lambda: self._following.join(STOP_S)
        )
